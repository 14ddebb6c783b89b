//! A CPU without NX, on the model: address spaces do without, and what asks for it all the same is
//! refused as Xen refuses it, and says why.
#![expect(unsafe_code, reason = "a request of its own; no Rust object lives in the model's test")]

#[macro_use]
mod common;

use common::{TestGuest, build, destroy, no_pool, page, pages, tools};
use hypercall::{
    BatchStorage, Call, Errno, Error, FrameAccess as _, FrameSource as _, Hypercall,
    Hypercalls as _, Level, MmuUpdate, Pte, PteFlags, RefusableFlag, Request, VaFlush, VaMapping,
};
use p2m::Guest;
use pvmmu::obstacles::Obstacle;
use pvmmu::primitive::WriteMode;
use pvmmu::{Pages, Pgd, Pinned, Tools, explain};
use xen_model::Model;

/// No entry on the way to any of the pages has the bit, and all are mapped.
fn check(guest: &Guest<'_, Model>, pgd: &Pgd<Pinned>, count: u64) {
    for index in 0..count {
        let walk = p2m::walk(guest, pgd.root(), page(index)).expect("readable");
        for step in walk.steps() {
            assert!(step.pte.is_present(), "{walk}");
            assert!(!step.pte.flags().contains(PteFlags::NO_EXECUTE), "{walk}");
        }
    }
}

#[test]
fn every_operation_goes_without_the_bit() {
    let test = TestGuest::no_nx();
    let p2m = test.p2m();
    let guest = common::guest(&test, &test.model, &p2m);
    let mut pool = test.pool();
    let free = pool.len();
    let mut storage = BatchStorage::<600, 8>::new();
    let mut batch = storage.batch();
    let mut tables = no_pool();
    // Loose.
    let mut loose = build(&guest, 12, &mut pool);
    let read_only = PteFlags::USER_RW - PteFlags::WRITABLE;
    loose.protect(&mut Tools::new(guest, &mut pool), pages(4), read_only).expect("protected");
    let table_flags = PteFlags::TABLE | PteFlags::NO_EXECUTE;
    loose
        .set_table_flags(&mut Tools::new(guest, &mut pool), Level::L2, page(0), table_flags)
        .expect("changed");
    let frame = pool.take().expect("a frame");
    loose
        .replace(&mut Tools::new(guest, &mut pool), page(1), PteFlags::USER_RW, frame)
        .expect("replaced");
    let mut pgd = loose.pin(&guest, &mut batch).expect("pinned");
    check(&guest, &pgd, 12);
    // Live, every way in which flags go in.
    let _ =
        pgd.set_flags(&guest, page(2), PteFlags::USER_RW, WriteMode::Set, None).expect("changed");
    let mut tools = tools(&guest, &mut batch, &mut tables, &mut pool);
    let more = Pages { start: page(12), count: 4 };
    pgd.map_pages(&mut tools, more, PteFlags::USER_RW).expect("mapped");
    pgd.edit(&mut tools, |edit| {
        edit.protect(pages(8), read_only)?;
        edit.set_table_flags(Level::L3, page(0), table_flags)
    })
    .expect("changed");
    let frame = tools.frames.take().expect("a frame");
    let replaced = pgd.edit(&mut tools, |edit| edit.replace(page(3), PteFlags::USER_RW, frame));
    assert!(replaced.is_ok());
    check(&guest, &pgd, 16);
    let loose = pgd.unpin(&guest, &mut tools.batch).expect("unpinned");
    destroy(&guest, loose, &mut pool);
    assert_eq!(pool.len(), free);
    test.check();
}

#[test]
fn an_entry_with_the_bit_is_refused_and_the_reason_names_it() {
    let test = TestGuest::no_nx();
    let p2m = test.p2m();
    let guest = common::guest(&test, &test.model, &p2m);
    let mut pool = test.pool();
    let frame = pool.take().expect("a frame");
    let va = guest.machine().direct_map(frame.pfn()).expect("mapped").addr();
    let pte = Pte::new(p2m.mfn(frame.pfn()).expect("RAM"), PteFlags::KERNEL_RO);
    let mut calls = [Call::new(Request::VaMapping(VaMapping { va, pte, flush: VaFlush::PageAll }))];
    // SAFETY: the frame exists only in the model, and the token is this test's.
    unsafe { test.model.issue(&mut calls) }.expect("issued");
    assert_eq!(calls[0].result().expect_err("refused").errno, Errno::EINVAL);
    let log = test.model.take_log();
    assert!(log.len() == 1 && log[0].ends_with("Bad L1 flags 800000"), "{log:?}");
    let error = Error { hypercall: Hypercall::UpdateVaMapping, errno: Errno::EINVAL, done: 0 };
    let why = explain::mapping_refused(&guest, &[], pte, error).to_string();
    let reason = "the entry has NO_EXECUTE (bit 63), which this CPU does not offer";
    assert!(why.contains(reason), "{why}");
}

#[test]
fn a_refused_update_says_which_flag_the_cpu_lacks() {
    let test = TestGuest::no_nx();
    let mut pool = test.pool();
    let frame = pool.take().expect("a frame");
    let va = test.model.direct_map(frame.pfn()).expect("mapped");
    let (slot, old) = test.model.guest().l1_slot(va.raw()).expect("mapped");
    let with_nx = old.with_flags(PteFlags::KERNEL_RO);
    let mut storage = BatchStorage::<2, 1>::new();
    let mut batch = storage.batch();
    batch.update(MmuUpdate::set(slot, old.read_only()), old.raw()).expect("room");
    batch.update(MmuUpdate::set(slot, with_nx), old.raw()).expect("room");
    // SAFETY: the frame exists only in the model, and the token is this test's.
    let error = unsafe { batch.submit(&test.model) }.expect_err("refused");
    assert_eq!((error.flag, error.error.done), (Some(RefusableFlag::NoExecute), 1));
    assert_eq!(
        error.to_string(),
        "mmu_update refused: EINVAL (-22) after 1 done: the entry asks for NO_EXECUTE, which this \
         CPU does not have"
    );
    batch.clear();
    let mapping = VaMapping { va: va.addr(), pte: with_nx, flush: VaFlush::PageAll };
    batch.va_mapping(mapping, old).expect("room");
    // SAFETY: as above.
    let error = unsafe { batch.submit(&test.model) }.expect_err("refused");
    assert_eq!(error.flag, Some(RefusableFlag::NoExecute), "{error}");
    // What is refused for another reason has no flag that is to blame.
    batch.clear();
    let mapping = VaMapping { pte: old, va: page(0).addr(), ..mapping };
    batch.va_mapping(mapping, old).expect("room");
    // SAFETY: as above.
    let error = unsafe { batch.submit(&test.model) }.expect_err("refused");
    assert_eq!(error.flag, None, "{error}");
}

#[test]
fn a_refused_pin_names_the_entry_and_the_flag() {
    let test = TestGuest::no_nx();
    let p2m = test.p2m();
    let guest = common::guest(&test, &test.model, &p2m);
    let mut pool = test.pool();
    let mut storage = BatchStorage::<600, 8>::new();
    let mut batch = storage.batch();
    let mut loose = build(&guest, 4, &mut pool);
    for (level, flag, words) in [
        (Level::L1, RefusableFlag::NoExecute, "asks for NO_EXECUTE, which this CPU does not have"),
        (Level::L2, RefusableFlag::Global, "asks for GLOBAL, which only L1 entries may have"),
    ] {
        let walk = p2m::walk(&guest, loose.root(), page(2)).expect("readable");
        let step = walk.at(level).expect("mapped");
        let table = guest.pfn(step.slot.table).expect("a table");
        let write = |pte| {
            // SAFETY: the tree is loose, and exists only in the model.
            unsafe { test.model.write_entry(table, step.slot.index, pte) }.expect("writable");
        };
        write(step.pte.with_flags(step.pte.flags() | flag.flag()));
        let error = loose.pin(&guest, &mut batch).expect_err("refused");
        let first = error.obstacles.first().next();
        let Some(Obstacle::Flag(place, named)) = first else { panic!("{error}") };
        assert_eq!((place.level, place.table, named), (level, table, flag), "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.why().to_string().contains(words), "{}", error.why());
        loose = error.pgd;
        write(step.pte);
    }
    let pgd = loose.pin(&guest, &mut batch).expect("no flag is in the way");
    let loose = pgd.unpin(&guest, &mut batch).expect("unpinned");
    destroy(&guest, loose, &mut pool);
    test.check();
}
