//! The model of the TLBs: what a guest may count on, and what it must not.

use xen_model::{BootMapping, Mode, Model, Vcpu, number};

const BASE: u64 = 0xffff_ffff_8000_0000;

fn machine() -> Model {
    let mapping = BootMapping::AllPages;
    Model::builder().pages(512).vcpus(2).boot_mapping(mapping).build().expect("a machine")
}

/// Changes the entry for `va` with `flush` (`UVMF_*`).
fn change(guest: &Vcpu<'_>, va: u64, entry: u64, flush: u64) {
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
fn a_load_does_not_take_from_a_tlb_that_it_might_still_store() {
    let model = machine();
    let guest = model.guest();
    let va = BASE + (guest.first_free_page().raw() << 12);
    let (_, entry) = guest.l1_slot(va).expect("mapped");
    guest.store(va, &[1], Mode::Kernel).expect("writable");
    change(&guest, va, entry.read_only().raw(), 0);
    assert!(guest.load(va, &mut [0], Mode::Kernel).is_ok());
    assert!(guest.store(va, &[1], Mode::Kernel).is_err());
    assert!(model.take_violations()[0].starts_with("stale translation: store"));
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

/// `MMUEXT_NEW_BASEPTR` and `MMUEXT_NEW_USER_BASEPTR`.
const NEW_BASEPTR: u64 = 5;
const NEW_USER_BASEPTR: u64 = 15;
/// Flags of a page of user mode, which Xen makes global: present, writable, user.
const USER_PAGE: u64 = 7;
const DOMID_SELF: u64 = 0x7ff0;

/// The address of a page that is nothing yet.
fn free(guest: &Vcpu<'_>, number: u64) -> u64 {
    BASE + ((guest.first_free_page().raw() + number) << 12)
}

/// Puts one `mmuext_op` to Xen, from memory of the guest's.
fn extended(guest: &Vcpu<'_>, command: u64, argument: u64) {
    let at = free(guest, 0);
    for (offset, word) in [(0, command), (8, argument), (16, 0)] {
        guest.store(at + offset, &word.to_le_bytes(), Mode::Kernel).expect("writable");
    }
    assert_eq!(guest.hypercall(number::MMUEXT_OP, [at, 1, 0, DOMID_SELF, 0]), 0);
}

/// A guest whose user mode runs on the kernel's root, with a user page that its TLB knows.
fn with_user_page() -> (Model, u64) {
    let model = machine();
    let guest = model.guest();
    let va = free(&guest, 1);
    let (_, entry) = guest.l1_slot(va).expect("mapped");
    let root = guest.kernel_root().expect("it runs");
    extended(&guest, NEW_USER_BASEPTR, root.raw());
    change(&guest, va, entry.mfn().raw() << 12 | USER_PAGE, 2);
    guest.load(va, &mut [0], Mode::User).expect("mapped");
    (model, va)
}

#[test]
fn a_global_translation_stays_between_the_kernel_and_the_user_root() {
    let (model, va) = with_user_page();
    let guest = model.guest();
    change(&guest, va, 0, 0);
    assert!(guest.load(free(&guest, 2), &mut [0], Mode::Kernel).is_ok());
    assert!(guest.load(va, &mut [0], Mode::User).is_err());
    let found = model.take_violations();
    let is_stale = found.first().is_some_and(|line| line.starts_with("stale translation: load"));
    assert!(is_stale, "the global translation is gone: {found:?}");
}

#[test]
fn a_load_of_a_root_drops_global_translations_too() {
    let (model, va) = with_user_page();
    let guest = model.guest();
    change(&guest, va, 0, 0);
    extended(&guest, NEW_BASEPTR, guest.kernel_root().expect("it runs").raw());
    assert!(guest.load(va, &mut [0], Mode::User).is_err());
    assert_eq!(model.take_violations(), [""; 0]);
}

#[test]
fn a_translation_that_is_not_global_ends_where_user_mode_begins() {
    let (model, user) = with_user_page();
    let guest = model.guest();
    let va = free(&guest, 2);
    guest.load(va, &mut [0], Mode::Kernel).expect("mapped");
    change(&guest, va, 0, 0);
    guest.load(user, &mut [0], Mode::User).expect("mapped");
    assert!(guest.load(va, &mut [0], Mode::Kernel).is_err());
    assert_eq!(model.take_violations(), [""; 0]);
}
