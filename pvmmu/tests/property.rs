//! Random operations on a live address space, against a map from page to frame and flags.

mod common;

use std::collections::BTreeMap;

use arbtest::arbitrary::{Result, Unstructured};
use common::tables::{check_counts, check_marks, pooled};
use common::{Guest, Pool, context, tools};
use hypercall::{Batch, BatchStorage, Frame, GuestVa, Level, Machine, Mfn, PteFlags};
use pvmmu::{Context, MapError, Pages, Pgd, Pinned, Presence, TablePool, Tools, walk};

const READ_ONLY: PteFlags = PteFlags::USER_RW.difference(PteFlags::WRITABLE);
/// Regions in which pages are mapped: neighbours under one L1 table, under one L2 table, and apart.
const REGIONS: [u64; 4] = [0x3_fe00, 0x4_0000, 0x4_0200, 0x700_0000];

/// What every page is known to map: its frame, and whether it is writable.
type Known = BTreeMap<u64, (Mfn, bool)>;

fn pages(input: &mut Unstructured<'_>) -> Result<Pages> {
    let region = *input.choose(&REGIONS)?;
    let start = region + input.int_in_range(0..=511)?;
    let count = *input.choose(&[1, 2, 7, 30, 100, 512, 600])?;
    let start = GuestVa::new(start << 12).expect("user half");
    Ok(Pages { start, count })
}

fn numbers(pages: Pages) -> impl Iterator<Item = u64> {
    let first = pages.start.raw() >> 12;
    first..first + pages.count
}

/// What the tables say of a page.
fn read<M: Machine>(context: &Context<'_, M>, pgd: &Pgd<Pinned>, page: u64) -> Option<(Mfn, bool)> {
    let va = GuestVa::new(page << 12).expect("user half");
    let leaf = walk(context, pgd.root(), va).expect("readable").leaf();
    leaf.filter(|(_, pte)| pte.is_present()).map(|(_, pte)| (pte.mfn(), pte.is_writable()))
}

/// One operation, and what it makes of what is known.
fn step<M: Machine>(
    input: &mut Unstructured<'_>,
    (pgd, known): (&mut Pgd<Pinned>, &mut Known),
    with: &mut Tools<'_, '_, '_, M, Pool>,
) -> Result<()> {
    let pages = pages(input)?;
    let flags = *input.choose(&[PteFlags::USER_RW, READ_ONLY])?;
    let writable = flags == PteFlags::USER_RW;
    with.presence = *input.choose(&[Presence::Steady, Presence::MayVanish])?;
    let (mapped, all) =
        (numbers(pages).filter(|page| known.contains_key(page)).count(), pages.count);
    match input.int_in_range(0..=2)? {
        0 => {
            let room = with.frames.len() as u64 > all + 20;
            match pgd.map_pages(with, pages, flags) {
                Ok(()) => assert_eq!(mapped, 0, "nothing was in the way"),
                Err(refused) if matches!(refused.error, MapError::Occupied { .. }) => {
                    assert!(mapped > 0);
                }
                Err(refused) => assert!(!room, "{refused}"),
            }
        }
        1 => {
            let unmapped = pgd.unmap(with, pages);
            assert_eq!(unmapped.is_ok(), mapped as u64 == all, "{unmapped:?}");
        }
        _ => {
            let protected = pgd.protect(with, pages, flags);
            assert_eq!(protected.is_ok(), mapped as u64 == all, "{protected:?}");
            if protected.is_ok() {
                numbers(pages).for_each(|page| {
                    known.entry(page).and_modify(|(_, is_writable)| *is_writable = writable);
                });
            }
        }
    }
    for page in numbers(pages) {
        let now = read(&with.context, pgd, page);
        match (known.get(&page), now) {
            // A frame stays where it is mapped; a refused operation may have got a part of its way.
            (Some((frame, _)), Some((mfn, _))) => assert_eq!(*frame, mfn, "page {page:#x}"),
            (None, Some((mfn, _))) => {
                assert!(known.values().all(|(other, _)| *other != mfn), "a frame is mapped twice");
            }
            (_, None) => {}
        }
        match now {
            Some(now) => known.insert(page, now),
            None => known.remove(&page),
        };
    }
    Ok(())
}

/// A whole life: the property that the fuzzer and the test share.
fn property(input: &mut Unstructured<'_>) -> Result<()> {
    match input.int_in_range(0..=3)? {
        0 => life(input, &mut BatchStorage::<2, 1>::new().batch()),
        1 => life(input, &mut BatchStorage::<5, 1>::new().batch()),
        2 => life(input, &mut BatchStorage::<33, 8>::new().batch()),
        _ => life(input, &mut BatchStorage::<700, 16>::new().batch()),
    }
}

fn life(input: &mut Unstructured<'_>, batch: &mut Batch<'_>) -> Result<()> {
    let guest = Guest::new();
    let p2m = guest.p2m();
    let context = context(&guest, &guest.model, &p2m);
    let mut pool = guest.pool();
    let free = pool.len();
    let mut places = [const { None::<Frame> }; 12];
    let (l1, rest) = places.split_at_mut(6);
    let (l2, l3) = rest.split_at_mut(3);
    let mut tables = TablePool::new([l1, l2, l3]);
    for level in [Level::L1, Level::L2, Level::L3] {
        let count = input.int_in_range(0..=4)?;
        tables.fill(&context, (level, count), &mut pool, batch).expect("filled");
    }
    let pgd = match input.ratio(1, 2)? {
        true => Pgd::with_user_root(&context, &mut pool),
        false => Pgd::new(&context, &mut pool),
    };
    let mut pgd = pgd.expect("a root").pin(&context, batch).expect("pinned");
    let mut known = Known::new();
    let mut with = tools(&context, batch, &mut tables, &mut pool);
    for _ in 0..input.int_in_range(1..=12)? {
        if input.ratio(1, 5)? {
            let held = pgd.hold_l1_tables(&context, with.batch);
            assert!(held.is_ok(), "{held:?}");
        }
        step(input, (&mut pgd, &mut known), &mut with)?;
        guest.model.audit().expect("counts add up");
        check_marks(&guest, pgd.root());
        check_counts(with.tables, pooled(&guest, pgd.root()));
    }
    for (page, entry) in &known {
        assert_eq!(read(&context, &pgd, *page), Some(*entry), "page {page:#x}");
    }
    pgd.destroy(&mut with).expect("destroyed");
    check_counts(&tables, 0);
    for level in [Level::L1, Level::L2, Level::L3] {
        tables.drain(&context, (level, 99), &mut pool).expect("drained");
    }
    assert_eq!(pool.len(), free, "frames were lost");
    guest.check();
    Ok(())
}

#[test]
fn a_live_address_space_is_a_map_from_page_to_frame_and_flags() {
    arbtest::arbtest(property).budget_ms(8_000).size_min(256);
}
