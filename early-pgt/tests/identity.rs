//! Pfns that stand for the machine's own frames, inside the builder's mapping and behind all
//! memory.
#![expect(unsafe_code, reason = "claims frames of a guest that exists only in the model")]

use early_pgt::{Build, EarlyError, Plan, Region, RegionKind, RoundError, UseKind};
use hypercall::{Batch, BatchStorage, Errno, FrameAccess as _, Machine, MmuUpdate, Pfn, Pte, Slot};
use hypercall::{FailNth, Refusal};
use p2m::{P2m, Pfns};
use pv_tests::booting::{Booting, DIRECT_MAP};
use xen_model::{DomainConfig, Role};

const ISA: Pfns = Pfns::new(Pfn::new(0xa0), 0x60);
const FIRMWARE: Pfns = Pfns::new(Pfn::new(0xf_ffc0), 0x40);

fn region(start: u64, end: u64, kind: RegionKind) -> Region {
    Region { pfns: Pfns::new(Pfn::new(start), end - start), kind }
}

/// A guest that has no memory in its ISA area any more, and wants the machine's there.
fn guest(role: Role) -> Booting {
    let mut booting = Booting::of(DomainConfig::new(role, 0x2000));
    // The image is behind the area.
    let image = booting.uses.iter_mut().find(|used| used.kind == UseKind::KernelData);
    image.expect("there is one").pfns = Pfns::new(Pfn::new(0x100), 1);
    booting.regions = vec![
        region(0, ISA.start.raw(), RegionKind::Ram),
        region(ISA.start.raw(), ISA.end(), RegionKind::Identity),
        region(ISA.end(), 0x2000, RegionKind::Ram),
        region(FIRMWARE.start.raw(), FIRMWARE.end(), RegionKind::Identity),
    ];
    booting
}

/// Takes the area's memory out of the builder's mapping and out of the frame map.
fn give_up(booting: &Booting, p2m: &P2m<'_>) {
    let mut storage = BatchStorage::<200, 1>::new();
    let mut batch: Batch<'_> = storage.batch();
    for pfn in ISA.iter() {
        let (slot, pte) = entry(booting, booting.place.kernel.raw(), pfn).expect("mapped");
        batch.update(MmuUpdate::set(slot, Pte::ABSENT), pte.raw()).expect("room");
        // SAFETY: the guest exists only in the model.
        unsafe { p2m.depopulate(pfn) }.expect("memory");
    }
    // SAFETY: nothing of this host is in the model's frames.
    unsafe { batch.submit(&booting.model) }.expect("not refused");
    // SAFETY: the guest exists only in the model.
    unsafe { p2m.set_identity(ISA) }.expect("absent");
}

fn entry(booting: &Booting, start: u64, pfn: Pfn) -> Option<(Slot, Pte)> {
    booting.model.guest().l1_slot(start + (pfn.raw() << 12))
}

fn build<M: Machine>(booting: &Booting, machine: &M, p2m: &P2m<'_>) -> Result<u64, RoundError> {
    let memory = booting.memory();
    let plan = Plan::new(&memory).expect("a plan");
    let mut storage = Box::new(BatchStorage::<1000, 1>::new());
    // SAFETY: the frames exist only in the model; a build before this one gave up.
    let mut build = unsafe { Build::begin(&memory, plan) };
    let guest = booting.guest(machine, p2m);
    while let Some(mapped) = build.round(guest, &mut storage.batch())? {
        booting.model.guest().set_direct_map(mapped.start, mapped.end);
    }
    let mut free = 0;
    assert_eq!(build.finish(|frames| free += frames.count()), None, "nothing was refused");
    let used: u64 = booting.uses.iter().map(|used| used.pfns.count).sum();
    Ok(free + used + plan.tables())
}

#[test]
fn dom0_sees_the_machines_frames_in_both_mappings_and_owns_none_of_them() {
    let booting = guest(Role::Dom0);
    let p2m = booting.p2m();
    give_up(&booting, &p2m);
    let pages = build(&booting, &booting.model, &p2m).expect("dom0 may");
    assert_eq!(pages, booting.memory().ram(), "each page of memory is accounted for");
    for pfn in ISA.iter().chain(FIRMWARE.iter()) {
        let (_, pte) = entry(&booting, DIRECT_MAP, pfn).expect("has a table");
        assert!(pte.is_present() && pte.mfn().raw() == pfn.raw(), "pfn {pfn}: {pte}");
        assert_eq!(booting.model.machine_to_phys(pte.mfn()), None);
    }
    let (_, pte) = entry(&booting, booting.place.kernel.raw(), ISA.start).expect("shared");
    assert_eq!(pte.mfn().raw(), ISA.start.raw());
    let before = entry(&booting, DIRECT_MAP, Pfn::new(ISA.start.raw() - 1)).expect("memory").1;
    assert_eq!(p2m.pfn(&booting.model, before.mfn()), Ok(Pfn::new(ISA.start.raw() - 1)));
    booting.check();
}

#[test]
fn each_page_of_the_machines_can_be_refused_and_the_round_done_again() {
    let booting = guest(Role::Dom0);
    let p2m = booting.p2m();
    give_up(&booting, &p2m);
    let tables = usize::try_from(Plan::new(&booting.memory()).expect("a plan").tables());
    let tables = tables.expect("few");
    for done in [tables, tables + 1, tables + 0x5f, tables + 0x60] {
        let machine =
            FailNth::new(&booting.model, Refusal { request: 0, errno: Errno::ENOMEM, done });
        let error = build(&booting, &machine, &p2m).expect_err("refused");
        assert_eq!(error.undo, Ok(()), "after {done}");
        assert!(matches!(error.failure, EarlyError::Link { .. }), "after {done}: {error}");
        let kernel = booting.place.kernel.raw();
        assert!(
            ISA.iter().all(|pfn| {
                entry(&booting, kernel, pfn).is_some_and(|(_, pte)| !pte.is_present())
            })
        );
        booting.check();
    }
    assert!(build(&booting, &booting.model, &p2m).is_ok());
}

#[test]
fn a_domu_is_refused_and_all_is_as_it_was() {
    let booting = guest(Role::DomU);
    let p2m = booting.p2m();
    give_up(&booting, &p2m);
    let error = build(&booting, &booting.model, &p2m).expect_err("a domU may not");
    assert_eq!(error.undo, Ok(()));
    let text = error.to_string();
    assert!(matches!(error.failure, EarlyError::Link { .. }) && text.contains("EPERM"), "{text}");
    let slot = hypercall::Level::L4.index_of(booting.place.direct_map);
    assert!(!booting.model.read_entry(booting.root, slot).expect("the root").is_present());
    booting.check();
}

#[test]
fn memory_is_never_taken_for_the_machines() {
    let booting = guest(Role::Dom0);
    // Nothing was given up: the frame map says that there is memory.
    let error = build(&booting, &booting.model, &booting.p2m()).expect_err("memory");
    assert_eq!(error, EarlyError::NotIdentity(ISA.start).into());
    booting.check();
}
