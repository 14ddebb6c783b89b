//! What a TLB still has of what early mappings were: a second vCPU looks at every address between
//! two requests, as a CPU may that guesses; and the kernel itself used what becomes read-only.
#![expect(unsafe_code, reason = "claims frames of a guest that exists only in the model")]

use std::cell::Cell;

use early_pgt::{Build, OldList, Plan, replace_tables};
use hypercall::middleware::{FailNth, Refusal};
use hypercall::{BatchStorage, Errno, Pfn};
use p2m::Pfns;
use pv_tests::booting::{Booting, DIRECT_MAP};
use pv_tests::meanwhile::Meanwhile;
use xen_model::{DomainConfig, Mode, Model, Role};

const PAGES: u64 = 0x2000;
/// Pages that are looked at, all over the guest.
const LOOKED_AT: u64 = 97;

/// Reads at some addresses. At how many of them there is something.
fn look(vcpu: &xen_model::Vcpu<'_>, addresses: &[u64]) -> usize {
    let found = addresses.iter().filter(|va| vcpu.load(**va, &mut [0; 8], Mode::Kernel).is_ok());
    found.count()
}

/// Addresses all over the direct map.
fn direct_map() -> Vec<u64> {
    let pfns = (0..PAGES).step_by(usize::try_from(LOOKED_AT).expect("small"));
    pfns.map(|pfn| DIRECT_MAP + (pfn << 12)).collect()
}

/// What a guest with two vCPUs is made like.
fn two_vcpus(role: Role) -> DomainConfig {
    let mut config = DomainConfig::new(role, PAGES);
    config.vcpus = 2;
    config
}

/// Its second vCPU, on the same tables.
fn second(booting: &Booting) -> xen_model::Vcpu<'_> {
    let first = booting.model.guest();
    let second = booting.model.vcpu(first.domain(), 1).expect("two vCPUs");
    second.initialise(first.kernel_root().expect("a root"), None).expect("not running yet");
    second
}

#[test]
fn what_was_linked_for_a_moment_is_in_no_tlb_when_the_round_is_undone() {
    let booting = Booting::of(two_vcpus(Role::DomU)).in_two_rounds();
    let (memory, p2m, second) = (booting.memory(), booting.p2m(), second(&booting));
    let plan = Plan::new(&memory).expect("a plan");
    let &[_, round] = plan.rounds() else { panic!("{plan:?}") };
    let mut storage = BatchStorage::<100, 1>::new();
    // SAFETY: the frames exist only in the model.
    let mut build = unsafe { Build::begin(&memory, plan) };
    let guest = booting.guest(&booting.model, &p2m);
    let reach = build.round(&guest, &mut storage.batch()).expect("a round").expect("one of two");
    booting.model.guest().set_direct_map(reach.start, reach.end);
    let addresses = direct_map();
    let mapped = look(&second, &addresses);
    assert!(mapped > 0);
    // All frames are read-only and two tables are linked; the third is refused.
    let done = usize::try_from(round.tables).expect("few") + 2;
    let refusal = Refusal { request: 0, errno: Errno::ENOMEM, done };
    // The most pages that the second vCPU sees after a request, as a CPU may that guesses.
    let most = Cell::new(0);
    let looks = || most.set(most.get().max(look(&second, &addresses)));
    let machine = Meanwhile::after_traps(FailNth::new(&booting.model, refusal), &looks);
    let refused = build.round(&booting.guest(&machine, &p2m), &mut storage.batch());
    assert_eq!(refused.map_err(|error| error.undo), Err(Ok(())));
    assert!(most.get() > mapped, "the second vCPU saw what was linked");
    assert_eq!(look(&second, &addresses), mapped, "and sees it no more");
    assert_eq!(booting.model.take_violations(), Vec::<String>::new());
    let reach = build.round(&guest, &mut storage.batch()).expect("again").expect("the other");
    assert_eq!(reach.end, PAGES);
    assert_eq!(look(&second, &addresses), addresses.len());
    booting.check();
}

#[test]
fn what_was_mapped_in_a_builders_table_for_a_moment_is_in_no_tlb_when_the_round_is_undone() {
    let isa = Pfns::new(Pfn::new(0xa0), 5);
    let booting = Booting::with_identity(two_vcpus(Role::Dom0), isa);
    let (p2m, second) = (booting.p2m(), second(&booting));
    let va = |pfn: Pfn| booting.place.kernel.raw() + (pfn.raw() << 12);
    booting.give_up(&p2m, isa);

    let memory = booting.memory();
    let plan = Plan::new(&memory).expect("a plan");
    let addresses: Vec<u64> = isa.iter().map(va).collect();
    assert_eq!(look(&second, &addresses), 0);
    // The tables are read-only, and three pages of the machine's are mapped; the fourth is refused.
    let done = usize::try_from(plan.tables()).expect("few") + 3;
    let refusal = Refusal { request: 0, errno: Errno::ENOMEM, done };
    // The most pages that the second vCPU sees after a request, as a CPU may that guesses.
    let most = Cell::new(0);
    let looks = || most.set(most.get().max(look(&second, &addresses)));
    let machine = Meanwhile::after_traps(FailNth::new(&booting.model, refusal), &looks);
    let mut storage = BatchStorage::<100, 1>::new();
    // SAFETY: the frames exist only in the model.
    let mut build = unsafe { Build::begin(&memory, plan) };
    let refused = build.round(&booting.guest(&machine, &p2m), &mut storage.batch());
    assert_eq!(refused.map_err(|error| error.undo), Err(Ok(())));
    assert_eq!(most.get(), 3, "the second vCPU saw them");
    assert_eq!(look(&second, &addresses), 0, "and sees them no more");
    booting.check();
}

#[test]
fn frames_that_become_tables_are_written_by_no_stale_translation() {
    let booting = Booting::of(two_vcpus(Role::DomU)).in_two_rounds();
    let (memory, p2m, second) = (booting.memory(), booting.p2m(), second(&booting));
    let plan = Plan::new(&memory).expect("a plan");
    let tables = plan.rounds()[0].used();
    let touch = |vcpu: &xen_model::Vcpu<'_>| {
        let addresses = tables.iter().map(|pfn| booting.place.kernel.raw() + (pfn.raw() << 12));
        addresses.filter(|va| vcpu.store(*va, &[0], Mode::Kernel).is_ok()).count() as u64
    };
    assert_eq!(touch(&second), tables.count, "all are writable");
    let mut storage = BatchStorage::<100, 1>::new();
    // SAFETY: the frames exist only in the model.
    let mut build = unsafe { Build::begin(&memory, plan) };
    let guest = booting.guest(&booting.model, &p2m);
    let reach = build.round(&guest, &mut storage.batch()).expect("a round").expect("one of two");
    assert!(reach.end < PAGES);
    assert_eq!(touch(&second), 0);
    booting.check();
}

#[test]
fn what_the_kernels_own_tables_forbid_is_in_no_tlb_when_they_are_loaded() {
    const LIST_VA: u64 = 0xffff_b000_0000_0000;
    let mut config = DomainConfig::new(Role::DomU, 0x2_0000);
    config.init_p2m = Some(LIST_VA);
    let booting = Booting::with_code(Model::builder(), config);
    let mut free = booting.build();
    let (memory, p2m) = (booting.memory(), booting.p2m());
    let kernel = booting.model.guest();
    // Code and constants, at both of their addresses; a page of data; the list.
    let places = [booting.place.kernel.raw(), DIRECT_MAP];
    let image = places.map(|start| (0x101..0x10e).map(move |pfn| start + (pfn << 12)));
    let image: Vec<u64> = image.into_iter().flatten().collect();
    let touch = || {
        let written = image.iter().filter(|va| kernel.store(**va, &[0], Mode::Kernel).is_ok());
        (written.count(), kernel.load(LIST_VA, &mut [0; 8], Mode::Kernel).is_ok())
    };
    let (_, listed) = touch();
    assert!(listed);
    let (own, rest) = free.pop().expect("memory").split(memory.own_tables()).expect("so many");
    free.push(rest);
    let list = OldList::LeftAt(booting.boot.p2m_list);
    let guest = booting.guest(&booting.model, &p2m);
    let mut storage = BatchStorage::<2000, 3>::new();
    // SAFETY: the frames exist only in the model, and nothing is executed.
    let replaced = unsafe {
        replace_tables(&guest, &memory, list, own, &mut storage.batch(), |run| free.push(run))
    };
    assert!(replaced.is_ok(), "{replaced:?}");
    assert_eq!(touch(), (2, false), "only the page of data is writable");
    booting.check();
}
