//! What needs more than one update at once, with the smallest batch that this crate takes, and with
//! each request refused in turn; and what is said of a smaller one.

#[macro_use]
mod common;
#[macro_use]
mod sweeping;

use common::tools;
use hypercall::{FrameSource as _, Level, PteFlags};
use pvmmu::{MapError, Pages, Pgd, Presence, RangeError, Room, Shares, TablePool, Tools};
use sweeping::{READ_ONLY, Storage, full, sparse, va};

sweep_with!(Room::SMALLEST);

sweep! {
    in batches of Room::SMALLEST;
    protecting_pages_in_place: |pgd, with| {
        with.presence = Presence::Steady;
        pgd.protect(with, sparse(), READ_ONLY)
    };
    mapping_under_a_root_without_tables_of_a_pool: |pgd, with| {
        let machine = with.guest.machine();
        let mut with = with.on_machine(machine);
        with.pool = None;
        pgd.map_pages(&mut with, Pages { start: va(800, 1, 250), count: 9 }, PteFlags::USER_RW)
    };
    filling_and_draining_a_pool: |_pgd, with| {
        let filled = with.fill_pool(Level::L1, 5);
        filled.and_then(|_| with.drain_pool(Level::L1, 9)).map(drop)
    };
    making_a_table_read_only_for_all_its_pages: |pgd, with| {
        let flags = PteFlags::PRESENT | PteFlags::USER;
        pgd.edit(with, |edit| edit.set_table_flags(Level::L4, full().start, flags))
    };
}

/// Every operation that is given less says so, and has done nothing.
#[test]
fn a_batch_that_is_too_small_is_refused_with_the_room_that_it_has() {
    scene!(test, machine, guest, pool);
    let mut counts = vec![0; test.list.len()];
    let mut shares = Shares::new(&mut counts);
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut storage = Storage::new();
    let mut pgd = Pgd::with_user_root(&mut Tools::new(guest, &mut pool)).expect("two roots");
    pgd.map_pages(&mut Tools::new(guest, &mut pool), full(), PteFlags::USER_RW).expect("mapped");
    let mut pgd = pgd.pin(&guest, &mut storage.batch()).expect("pinned");
    for (updates, ops) in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)] {
        let room = Room { updates, ops };
        let too_small = RangeError { done: 0, error: MapError::BatchTooSmall(room) };
        let mut batch = storage.batch_of(updates, ops);
        let mut with = tools(&guest, &mut batch, &mut tables, &mut pool).with_shares(&mut shares);
        let before = machine.counts();
        let far = Pages { start: va(700, 0, 0), count: 3 };
        let [here, there] = [full().start, va(1000, 0, 0)];
        let flags = PteFlags::PRESENT | PteFlags::USER;
        let refused = [
            pgd.protect(&mut with, full(), READ_ONLY),
            pgd.unmap(&mut with, full()),
            pgd.map_pages(&mut with, far, PteFlags::USER_RW),
            pgd.edit(&mut with, |edit| edit.move_table(here, there)),
            pgd.edit(&mut with, |edit| edit.set_table_flags(Level::L4, here, flags)),
        ];
        assert_eq!(refused, [Err(too_small); 5]);
        let forked = pgd.fork(&mut with).map(drop).expect_err("too small");
        assert!(forked.left.is_none(), "{forked}");
        let told = MapError::BatchTooSmall(room);
        assert_eq!(forked.to_string(), format!("not forked: {told}"));
        let kept = pgd.destroy(&mut with).expect_err("too small");
        assert_eq!(kept.to_string(), format!("not taken apart: {told}"));
        pgd = kept.into_pgd().expect("it is there");
        assert_eq!(machine.counts(), before, "Xen was not asked");
    }
    let mut batch = storage.batch();
    let mut with = tools(&guest, &mut batch, &mut tables, &mut pool).with_shares(&mut shares);
    pgd.destroy(&mut with).expect("destroyed");
    test.check();
}
