//! A refusal is explained on the spot, and Xen's own log lines for the same refusal, read by
//! `xen-explain`, say the same.
#![expect(unsafe_code, reason = "makes a forbidden alias; the test is a model")]

#[macro_use]
mod common;

use common::{TestGuest, build, destroy, guest, page};
use hypercall::explain::Cause;
use hypercall::{
    BatchStorage, Call, Errno, Error, FrameAccess as _, FrameSource as _, Hypercall, Level, Pfn,
    Pte, PteFlags, Request, VaFlush, VaMapping,
};
use p2m::{Guest, walk};
use pvmmu::explain::mapping_refused;
use xen_explain::Explainer;
use xen_model::Model;

/// Lets the direct mapping of `window` show `pfn`, writable.
fn show(guest: &Guest<'_, Model>, window: Pfn, pfn: Pfn) {
    let va = guest.machine().direct_map(window).expect("mapped");
    let pte = Pte::new(guest.p2m().mfn(pfn).expect("RAM"), PteFlags::KERNEL_RW);
    let mapping = VaMapping { va: va.addr(), pte, flush: VaFlush::PageAll };
    let mut calls = [Call::new(Request::VaMapping(mapping))];
    // SAFETY: the test exists only in the model.
    unsafe { hypercall::Hypercalls::issue(guest.machine(), &mut calls) }.expect("one call");
    calls[0].result().expect("the frame is no table yet");
}

#[test]
fn the_guest_and_xen_explain_say_the_same_of_a_refused_pin() {
    scene!(test, guest, pool);
    let pgd = build(&guest, 16, &mut pool);
    let table = walk(&guest, pgd.root(), page(0)).expect("readable").at(Level::L1);
    let table = table.expect("a table").table;
    let window = pool.take().expect("a frame");
    show(&guest, window.pfn(), table);
    let _ = test.model.take_log();
    let error = pgd.pin(&guest, &mut BatchStorage::<32, 4>::new().batch());
    let error = error.map(drop).expect_err("must be refused");
    let why = error.why();

    // What a debug Xen prints of it.
    let mut explainer = Explainer::new();
    for line in test.model.take_log() {
        explainer.line(line.as_bytes());
    }
    let explanation = explainer.finish();
    let conflict = why.conflict.expect("the tables show it");
    assert_eq!(explanation.problems[0].what, [conflict.to_string()]);
    let causes: Vec<_> = explanation.problems[0].causes.iter().map(|cause| cause.name).collect();
    let own: Vec<_> = why.causes.iter().map(|cause| cause.name()).collect();
    assert_eq!(causes, own);

    // And what only the test knows: who maps it.
    let window_va = guest.machine().direct_map(window.pfn()).expect("mapped");
    let told = why.to_string();
    assert!(told.contains("was mapped writable once while it was to become an L1 table"), "{told}");
    assert!(told.contains(&format!("{:#018x}", window_va.raw())), "{told}");
    assert!(told.contains("1. ") && told.contains("check: "), "{told}");

    show(&guest, window.pfn(), window.pfn());
    pool.give(window);
    destroy(&guest, error.pgd, &mut pool);
    test.check();
}

#[test]
fn a_refused_mapping_of_a_table_of_nobodys_frame_and_of_bad_flags_is_explained() {
    let test = TestGuest::new();
    let p2m = test.p2m();
    let guest = guest(&test, &test.model, &p2m);
    let refused = |errno| Error { hypercall: Hypercall::MmuUpdate, errno, done: 0 };
    let root = p2m.mfn(test.root).expect("RAM");
    let why = |pte, errno| mapping_refused(&guest, &[], pte, refused(errno));

    let table = why(Pte::new(root, PteFlags::USER_RW), Errno::EBUSY);
    let conflict = table.conflict.expect("a table of the running tree");
    assert_eq!(
        conflict.to_string(),
        format!(
            "frame mfn {root} (pfn {}) was an L4 table, in use while it was to be mapped writable",
            test.root
        )
    );
    assert_eq!(table.causes[0], Cause::TableNotReleased);

    let nobodys = hypercall::Mfn::new(test.model.ram_end().raw() - 1);
    let foreign = why(Pte::new(nobodys, PteFlags::USER_RW), Errno::EBUSY);
    assert_eq!((foreign.conflict, foreign.causes[0]), (None, Cause::FrameGone));
    let device = why(Pte::new(nobodys, PteFlags::USER_RW), Errno::EPERM);
    assert_eq!(device.causes[0], Cause::NoIoPermission);

    let own = p2m.mfn(Pfn::new(0x41)).expect("RAM");
    let flags = why(Pte::new(own, PteFlags::USER_RW), Errno::EINVAL);
    assert_eq!((flags.conflict, flags.causes[0]), (None, Cause::FlagsRefused));
    assert!(flags.to_string().contains("do not show what stood in the way"), "{flags}");
}
