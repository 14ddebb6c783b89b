//! Address spaces that are plain memory.

#[macro_use]
mod common;

use common::{build, destroy, page};
use hypercall::{FrameSource as _, GuestVa, Level, PteFlags};
use p2m::walk;
use pvmmu::{MapError, Pgd, Tools};

#[test]
fn a_mapped_page_is_found_by_a_walk_and_costs_no_hypercall() {
    scene!(test, machine, guest, pool);
    let free = pool.len();
    let pgd = build(&guest, 16, &mut pool);
    assert_eq!(pgd.tables(&guest), Ok(6), "a root, an L3, two L2 and two L1 tables");
    for index in 0..16 {
        let walk = walk(&guest, pgd.root(), page(index)).expect("readable");
        let (_, pte) = walk.leaf().expect("an L1 table");
        assert!(pte.is_writable() && pte.flags().contains(PteFlags::USER));
        assert_eq!(walk.steps().count(), 4);
    }
    destroy(&guest, pgd, &mut pool);
    assert_eq!(pool.len(), free, "every frame came back");
    assert_eq!(machine.counts().hypercalls, 0);
    test.check();
}

#[test]
fn a_new_root_shares_the_kernel_half_and_nothing_else() {
    scene!(test, guest, pool);
    let pgd = Pgd::new(&mut Tools::new(guest, &mut pool)).expect("a root");
    for (va, is_shared) in [(0x1000, false), (0xffff_ffff_8000_0000, true)] {
        let va = GuestVa::new(va).expect("the test's");
        let at =
            |root| walk(&guest, root, va).expect("readable").at(Level::L4).expect("a root").pte;
        assert_eq!(at(pgd.root()).is_present(), is_shared);
        assert_eq!(at(pgd.root()) == at(test.root), is_shared || !at(test.root).is_present());
    }
    destroy(&guest, pgd, &mut pool);
}

#[test]
fn what_cannot_be_mapped_is_told_and_the_frame_comes_back() {
    scene!(test, guest, pool);
    let mut pgd = build(&guest, 1, &mut pool);
    let free = pool.len();
    let kernel = GuestVa::new(0xffff_ffff_8000_0000).expect("the test's");
    let inside = GuestVa::new(page(3).raw() + 8).expect("the test's");
    let mut refuse = |va, flags| {
        let frame = pool.take().expect("a frame");
        let pfn = frame.pfn();
        let failed =
            pgd.map(&mut Tools::new(guest, &mut pool), va, flags, frame).expect_err("must fail");
        let frame = failed.value.expect("the frame comes back");
        assert_eq!(frame.pfn(), pfn);
        pool.give(frame);
        assert_eq!(pool.len(), free, "no table was kept");
        failed.error
    };
    assert_eq!(refuse(kernel, PteFlags::USER_RW), MapError::KernelHalf(kernel));
    assert_eq!(refuse(inside, PteFlags::USER_RW), MapError::Unaligned(inside));
    let flags = PteFlags::WRITABLE;
    assert_eq!(refuse(page(3), flags), MapError::Flags { va: page(3), flags });
    assert!(
        matches!(refuse(page(0), PteFlags::USER_RW), MapError::Occupied { va, .. } if va == page(0))
    );
    destroy(&guest, pgd, &mut pool);
}

#[test]
fn running_out_of_tables_in_the_middle_loses_nothing() {
    scene!(test, guest, pool);
    let mut pgd = Pgd::new(&mut Tools::new(guest, &mut pool)).expect("a root");
    for left in 1..4 {
        let aside = pool.keep(left);
        let frame = pool.take().expect("a frame");
        let failed = pgd
            .map(&mut Tools::new(guest, &mut pool), page(0), PteFlags::USER_RW, frame)
            .expect_err("three tables are needed");
        assert_eq!(failed.error, MapError::OutOfFrames);
        pool.give(failed.value.expect("the frame comes back"));
        let tables = pgd.tables(&guest).expect("readable");
        assert_eq!(pool.len() as u64 + tables, left as u64 + 1, "what was taken is in the tree");
        destroy(&guest, pgd, &mut pool);
        pgd = Pgd::new(&mut Tools::new(guest, &mut pool)).expect("a root");
        aside.into_iter().for_each(|frame| pool.give(frame));
    }
    destroy(&guest, pgd, &mut pool);
}
