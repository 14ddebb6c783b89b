//! The model of the TLBs: what a guest may count on, and what it must not.

use xen_model::{BootMapping, Guest, Mode, Model, number};

const BASE: u64 = 0xffff_ffff_8000_0000;

fn machine() -> Model {
    let mapping = BootMapping::AllPages;
    Model::builder().pages(512).vcpus(2).boot_mapping(mapping).build().expect("a machine")
}

/// Changes the entry for `va` with `flush` (`UVMF_*`).
fn change(guest: &Guest<'_>, va: u64, entry: u64, flush: u64) {
    let arguments = [va, entry, flush, 0, 0];
    assert_eq!(guest.hypercall(number::UPDATE_VA_MAPPING, arguments), 0);
}

#[test]
fn a_translation_that_is_not_flushed_is_reported_when_it_is_used() {
    let model = machine();
    let guest = model.guest();
    let va = BASE + (guest.first_free_page().raw() << 12);
    let (_, entry) = guest.l1_slot(va).expect("mapped");
    guest.store(va, &[1], Mode::Kernel).expect("writable");
    // Read-only without a flush: loads are fine, a store might still get through.
    change(&guest, va, entry.read_only().raw(), 0);
    assert!(guest.load(va, &mut [0], Mode::Kernel).is_ok());
    assert_eq!(model.take_violations(), [""; 0]);
    change(&guest, va, entry.raw(), 0);
    guest.store(va, &[1], Mode::Kernel).expect("writable");
    change(&guest, va, entry.read_only().raw(), 0);
    assert!(guest.store(va, &[1], Mode::Kernel).is_err());
    let found = model.take_violations();
    assert!(found[0].starts_with("stale translation: store at"), "{found:?}");
    // With a flush of the page it simply faults.
    change(&guest, va, entry.raw(), 2);
    guest.store(va, &[1], Mode::Kernel).expect("writable");
    change(&guest, va, 0, 2);
    assert!(guest.load(va, &mut [0], Mode::Kernel).is_err());
    assert_eq!(model.take_violations(), [""; 0]);
}

#[test]
fn a_local_flush_does_not_reach_other_vcpus() {
    let model = machine();
    let (first, second) = (model.guest(), model.vcpu(1, 1).expect("a second vCPU"));
    let root = first.kernel_root().expect("root");
    assert!(second.load(BASE, &mut [0], Mode::Kernel).is_err(), "not started yet");
    second.initialise(root, None).expect("started");
    model.audit().expect("counts add up");
    let va = BASE + (first.first_free_page().raw() << 12);
    assert!(second.load(va, &mut [0], Mode::Kernel).is_ok());
    change(&first, va, 0, 2);
    assert!(second.load(va, &mut [0], Mode::Kernel).is_err());
    assert!(model.take_violations()[0].starts_with("stale translation: load"));
    let (_, other) = first.l1_slot(va + 4096).expect("mapped");
    assert!(second.load(va + 4096, &mut [0], Mode::Kernel).is_ok());
    assert!(other.is_present());
    change(&first, va + 4096, 0, 2 | 4);
    assert!(second.load(va + 4096, &mut [0], Mode::Kernel).is_err());
    assert_eq!(model.take_violations(), [""; 0]);
}

#[test]
fn a_second_vcpu_needs_a_root() {
    let model = machine();
    let second = model.vcpu(1, 1).expect("a second vCPU");
    let page = second.built_mfn(second.first_free_page()).expect("a page");
    let refused = second.initialise(page, None).expect_err("mapped writable");
    assert_eq!(refused, hypercall::Errno::EINVAL);
    let first = model.guest().initialise(page, None).expect_err("runs already");
    assert_eq!(first, hypercall::Errno::EEXIST);
    model.audit().expect("counts add up");
}
