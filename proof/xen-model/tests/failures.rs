//! The sweep of failures finds what it is there to find.
#![expect(unsafe_code, reason = "the guest exists only in the model")]

use hypercall::memory::{Extent, MemoryOp, Reservation};
use hypercall::{BatchStorage, DomId, Hypercalls, Level, MmuExtOp, MmuUpdate, Pfn};
use xen_model::{BootMapping, Failing, Model, for_each_failure};

fn build() -> Model {
    Model::builder().pages(512).boot_mapping(BootMapping::AllPages).build().expect("a machine")
}

/// Makes three pages read-only in one call and pins the first; on failure makes them writable
/// again.
fn pin(machine: &Failing<'_>) -> bool {
    let guest = machine.inner().guest();
    let first = guest.first_free_page().raw();
    let slot = |k: u64| guest.l1_slot(0xffff_ffff_8000_0000 + ((first + k) << 12)).expect("mapped");
    let mut storage = BatchStorage::<8, 2>::new();
    let mut batch = storage.batch();
    for k in 0..3 {
        let (slot, pte) = slot(k);
        batch.update(MmuUpdate::set(slot, pte.read_only()), pte.raw()).expect("room");
    }
    // SAFETY: the guest exists only in the model.
    let protected = unsafe { batch.submit(machine) }.is_ok();
    batch.clear();
    let mfn = guest.built_mfn(Pfn::new(first)).expect("a page");
    batch.op(MmuExtOp::pin(Level::L1, mfn)).expect("room");
    // SAFETY: as above.
    if protected && unsafe { batch.submit(machine) }.is_ok() {
        return true;
    }
    batch.clear();
    for k in 0..3 {
        let (slot, pte) = slot(k);
        batch.update(MmuUpdate::set(slot, pte.writable()), pte.raw()).expect("room");
    }
    // SAFETY: as above.
    let _ = unsafe { batch.submit(machine) };
    false
}

#[test]
fn every_failure_is_tried() {
    let sweep = for_each_failure(build, pin, |model, failure, pinned| {
        let first = model.guest().first_free_page();
        let mfn = model.guest().built_mfn(first).ok_or("no page")?;
        let live = model.frame(mfn).and_then(|frame| frame.kind.live_level()).is_some();
        match (failure, pinned == live) {
            (_, false) => Err("the answer is wrong".to_owned()),
            (None, _) if !pinned => Err("nothing was refused, and nothing pinned".to_owned()),
            _ => Ok(()),
        }
    });
    let sweep = sweep.expect("pin cleans up");
    // Three updates in one request: 3 errnos, 3 counts; one pin: 2 errnos.
    assert_eq!((sweep.requests, sweep.runs), (2, 3 * 3 + 2));
}

#[test]
fn a_failure_that_is_ignored_is_named() {
    let error = for_each_failure(
        build,
        |machine| {
            let _ = pin(machine);
        },
        |model, _, ()| {
            let first = model.guest().first_free_page();
            let mfn = model.guest().built_mfn(first).ok_or("no page")?;
            let live = model.frame(mfn).and_then(|frame| frame.kind.live_level());
            live.map(drop).ok_or_else(|| "not pinned".to_owned())
        },
    );
    let error = error.expect_err("some run does not pin");
    let expected =
        "request 0 (mmu_update of 3 elements) refused with EINVAL (-22) after 0: not pinned";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn operations_on_extents_come_up_short() {
    let sweep = for_each_failure(
        build,
        |machine| {
            let mut extents = [600, 601, 602].map(|pfn| Extent::from_pfn(Pfn::new(pfn)));
            let extents = &mut extents[..];
            let list = Reservation { extents, order: 0, flags: 0, domain: DomId::SELF };
            // SAFETY: as above.
            unsafe { machine.memory_op(&mut MemoryOp::Populate(list)) }
        },
        |model, failure, answer| {
            let total = model.guest().total_pages();
            let done = failure.map_or(3, |failure| failure.refusal.done as u64);
            let fine = answer == Ok(done) && total == 512 + done;
            if fine { Ok(()) } else { Err(format!("{answer:?}, {total} pages")) }
        },
    );
    assert_eq!(sweep.expect("counts add up").runs, 2 * 3);
}
