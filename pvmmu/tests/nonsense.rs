//! A machine that answers nonsense: whatever it says, nothing panics, and everything ends.

use hypercall::{BatchStorage, GuestVa, Level, PteFlags};
use pv_tests::guest::TestGuest;
use pv_tests::nonsense::{Nonsense, seeds};
use pvmmu::{Pages, Pgd, Presence};

const RW: PteFlags = PteFlags::USER_RW;

fn pages(page: u64, count: u64) -> Pages {
    Pages { start: GuestVa::new(page << 12).expect("the user half"), count }
}

#[test]
fn an_address_space_changes_or_is_refused_whatever_a_machine_says() {
    for seed in seeds(60) {
        let (mut pgd, mut tools) = TestGuest::with_pinned(pages(512, 700));
        let nonsense = Nonsense::new(tools.guest.machine(), seed);
        let guest = tools.guest.with_machine(&nonsense);
        let mut tools = tools.on_machine(&nonsense);
        if seed % 2 == 0 {
            tools.presence = Presence::MayVanish;
        }
        let _ = tools.fill_pool(Level::L1, 3);
        for at in 0..4 {
            let _ = pgd.map_pages(&mut tools, pages(4096 + 600 * at, 530), RW);
            let _ = pgd.protect(&mut tools, pages(520, 600), RW - PteFlags::WRITABLE);
            let _ = pgd.remap(&mut tools, pages(600 + at, 40), pages(9000 + 64 * at, 1).start);
            let _ = pgd.unmap(&mut tools, pages(1100, 30 + at));
            let _ = pgd.edit(&mut tools, |edit| {
                edit.clear_reading_ad(pages(512, 60), &mut |_, _| ())?;
                edit.move_table(pages(512, 1).start, pages(512 * 40, 1).start)
            });
            let _ = pgd.hold_l1_tables(&guest, &mut tools.batch);
            if let Ok(child) = pgd.fork(&mut tools) {
                let _ = child.destroy(&mut tools);
            }
            let _ = pgd.translate(&guest, pages(513, 1).start);
            let _ = pgd.tables(&guest);
        }
        match pgd.unpin(&guest, &mut tools.batch) {
            Ok(loose) => {
                let _ = loose.destroy(&mut tools).map_err(|error| error.to_string());
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        let _ = tools.drain_pool(Level::L1, 9);
    }
}

#[test]
fn a_loose_tree_is_made_and_pinned_or_refused_whatever_a_machine_says() {
    for seed in seeds(60) {
        let mut tools = TestGuest::new().tools();
        let nonsense = Nonsense::new(tools.guest.machine(), seed);
        let guest = tools.guest.with_machine(&nonsense);
        let mut storage = BatchStorage::<512, 8>::new();
        let mut tools = tools.on_machine(&nonsense);
        tools.presence = Presence::Steady;
        tools.batch = match seed % 3 {
            0 => storage.batch_of(2, 1),
            1 => storage.batch_of(7, 3),
            _ => storage.batch(),
        };
        let made = match seed % 2 {
            0 => Pgd::new(&mut tools),
            _ => Pgd::with_user_root(&mut tools),
        };
        let Ok(mut loose) = made else { continue };
        for at in 0..4 {
            let _ = loose.map_pages(&mut tools, pages(4096 + 600 * at, 530), RW);
            let _ = loose.protect(&mut tools, pages(4100, 600), RW - PteFlags::WRITABLE);
            let to = pages(9000 + 64 * at, 1).start;
            let _ = loose.remap(&mut tools, pages(4200 + at, 40), to);
            let _ = loose.unmap(&mut tools, pages(4400, 30 + at));
            let (from, to) = (pages(4096, 1).start, pages(512 * (90 + at), 1).start);
            let _ = loose.move_table(&mut tools, from, to);
            let _ = loose.set_table_flags(&mut tools, Level::L2, to, PteFlags::TABLE);
        }
        let mut pgd = match loose.pin(&guest, &mut tools.batch) {
            Ok(pgd) => pgd,
            Err(error) => {
                assert!(!error.to_string().is_empty() && !error.why().to_string().is_empty());
                continue;
            }
        };
        if seed % 5 == 0 {
            tools.presence = Presence::MayVanish;
        }
        for level in [Level::L1, Level::L2, Level::L3] {
            let _ = tools.fill_pool(level, 3);
        }
        let _ = pgd.map_pages(&mut tools, pages(1 << 20, 600), RW);
        let _ = pgd.unmap(&mut tools, pages(4096, 2_000));
        let child = pgd.fork(&mut tools);
        let _ = pgd.edit(&mut tools, |edit| edit.make_own(pages((1 << 20) + 5, 1).start));
        for pgd in [Some(pgd), child.ok()].into_iter().flatten() {
            if let Err(error) = pgd.destroy(&mut tools) {
                assert!(!error.to_string().is_empty());
            }
        }
    }
}
