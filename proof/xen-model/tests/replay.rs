//! Traces: what one machine answered, another must answer too.
#![expect(unsafe_code, reason = "the guest exists only in the model")]

use hypercall::memory::{Exchange, Extent, MemoryOp, Reservation};
use hypercall::middleware::Traced;
use hypercall::{
    BatchStorage, DomId, FrameAccess, Hypercalls, Level, MmuExtOp, MmuUpdate, Pfn, Pte,
};
use x86_64::structures::paging::PageTableIndex;
use xen_model::{BootMapping, Model, ReplayFault, replay};

fn model(seed: u64) -> Model {
    let mapping = BootMapping::AllPages;
    Model::builder().pages(512).boot_mapping(mapping).seed(seed).build().expect("a machine")
}

/// A guest's work: a table, a refused pin, an exchange, reads.
fn work(traced: &Traced<&Model, String>) {
    let guest = traced.inner().guest();
    let first = guest.first_free_page().raw();
    let at = |k: u64| guest.l1_slot(0xffff_ffff_8000_0000 + ((first + k) << 12)).expect("mapped");
    let mut storage = BatchStorage::<8, 4>::new();
    let mut batch = storage.batch();
    let (slot, pte) = at(0);
    batch.op(MmuExtOp::pin(Level::L1, pte.mfn())).expect("room");
    batch.update(MmuUpdate::set(slot, pte.read_only()), pte.raw()).expect("room");
    batch.op(MmuExtOp::pin(Level::L1, pte.mfn())).expect("room");
    batch.op(MmuExtOp::tlb_flush_all()).expect("room");
    let index = PageTableIndex::new(3);
    // SAFETY: here and below: the guest exists only in the model.
    unsafe { traced.write_entry(Pfn::new(first), index, at(1).1) }.expect("writable");
    // SAFETY: as above.
    let refused = unsafe { batch.submit(traced) }.expect_err("still mapped writable");
    assert_eq!(refused.request, 0);
    assert!(traced.read_entry(Pfn::new(first), index).is_ok_and(Pte::is_present));
    batch.clear();
    batch.update(MmuUpdate::set(at(2).0, Pte::ABSENT), 0).expect("room");
    batch.op(MmuExtOp::tlb_flush_all()).expect("room");
    // SAFETY: as above.
    unsafe { batch.submit(traced) }.expect("unmapped");
    let mut give = [Extent::from_mfn(guest.built_mfn(Pfn::new(first + 2)).expect("a page"))];
    let mut take = [Extent::from_pfn(Pfn::new(first + 2))];
    let list = |extents| Reservation { extents, order: 0, flags: 0, domain: DomId::SELF };
    let swap = Exchange { give: list(&mut give), take: list(&mut take) };
    // SAFETY: as above.
    unsafe { traced.memory_op(&mut MemoryOp::Exchange(swap)) }.expect("exchanged");
    let pte = Pte::from_raw(take[0].raw() << 12 | 0x63);
    batch.update(MmuUpdate::set(at(2).0, pte), 0).expect("room");
    // SAFETY: as above.
    unsafe { batch.submit(traced) }.expect("mapped");
    // SAFETY: as above.
    unsafe { traced.write_bytes(Pfn::new(first + 2), 8, b"hello") }.expect("writable");
}

fn trace() -> String {
    let model = model(1);
    let traced = Traced::new(&model, String::new());
    work(&traced);
    traced.finish().expect("a string takes everything")
}

#[test]
fn a_trace_is_repeated_on_other_frames() {
    let other = model(2);
    let compared = replay(&other.guest(), &trace()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(compared, 3 + 1 + 2 + 1 + 1);
    other.audit().expect("counts add up");
}

#[test]
fn another_answer_is_named_with_its_line() {
    let other = model(2);
    // The page is not mapped writable on this machine, so the first pin works.
    let first = other.guest().first_free_page().raw();
    let (slot, pte) = other.guest().l1_slot(0xffff_ffff_8000_0000 + (first << 12)).expect("mapped");
    let mut storage = BatchStorage::<1, 1>::new();
    let mut batch = storage.batch();
    batch.update(MmuUpdate::set(slot, pte.read_only()), pte.raw()).expect("room");
    // SAFETY: the guest exists only in the model.
    unsafe { batch.submit(&other) }.expect("read-only");
    let error = replay(&other.guest(), &trace()).expect_err("differs");
    let text = error.to_string();
    assert!(text.contains("the trace says \"-> 22 0\", the model \"-> ok\""), "{text}");
}

#[test]
fn a_trace_that_was_tampered_with_is_refused() {
    let good = trace();
    let fault = |text: &str| {
        let error = replay(&model(2).guest(), text).expect_err("refused");
        (error.line, error.fault)
    };
    let lines: Vec<&str> = good.lines().collect();
    let last = lines.len();
    assert_eq!(fault(&lines[..last - 1].join("\n")), (last, ReplayFault::Truncated));
    assert_eq!(fault(&good.replacen("-> ok", "-> no", 1)).1, ReplayFault::Checksum);
    let mut lost = lines.clone();
    lost.remove(2);
    assert_eq!(fault(&lost.join("\n")), (3, ReplayFault::Checksum));
    assert_eq!(fault(&good[..good.len() / 2]).1, ReplayFault::Checksum);
    let newer = good.replacen("xen-trace 1", "xen-trace 2", 1);
    assert!(matches!(fault(&newer), (1, ReplayFault::Version(_))));
    assert_eq!(fault(""), (1, ReplayFault::Truncated));
}
