//! Pfns that stand for the machine's own frames, inside the builder's mapping and behind all
//! memory.

use early_pgt::{BootRegion, EarlyError, Plan, RegionKind, RoundError};
use hypercall::middleware::{FailNth, Refusal};
use hypercall::{BatchStorage, Errno, FrameAccess as _, Frames, Machine, Pfn};
use p2m::{P2m, Pfns};
use pv_tests::booting::{Booting, DIRECT_MAP};
use xen_model::{DomainConfig, Role};

const ISA: Pfns = Pfns::new(Pfn::new(0xa0), 0x60);
const FIRMWARE: Pfns = Pfns::new(Pfn::new(0xf_ffc0), 0x40);

/// A guest that wants the machine's frames in its ISA area, and behind all memory.
fn with_identity(role: Role) -> Booting {
    let mut booting = Booting::with_identity(DomainConfig::new(role, 0x2000), ISA);
    booting.regions.push(BootRegion { pfns: FIRMWARE, kind: RegionKind::Identity });
    booting
}

/// Builds the direct map. How many pages are free, in use, or tables.
fn build<M: Machine>(booting: &Booting, machine: &M, p2m: &P2m<'_>) -> Result<u64, RoundError> {
    let mut storage = Box::new(BatchStorage::<1000, 1>::new());
    let free = booting.build_on(&booting.guest(machine, p2m), &mut storage.batch())?;
    let tables = Plan::new(&booting.memory()).expect("a plan").tables();
    Ok(free.iter().map(Frames::count).sum::<u64>() + booting.used_pages() + tables)
}

#[test]
fn dom0_sees_the_machines_frames_in_both_mappings_and_owns_none_of_them() {
    let booting = with_identity(Role::Dom0);
    let p2m = booting.p2m();
    booting.give_up(&p2m, ISA);
    let pages = build(&booting, &booting.model, &p2m).expect("dom0 may");
    assert_eq!(pages, booting.memory().ram(), "each page of memory is accounted for");
    for pfn in ISA.iter().chain(FIRMWARE.iter()) {
        let (_, pte) = booting.entry(DIRECT_MAP, pfn).expect("has a table");
        assert!(pte.is_present() && pte.mfn().raw() == pfn.raw(), "pfn {pfn}: {pte}");
        assert_eq!(booting.model.machine_to_phys(pte.mfn()), None);
    }
    let (_, pte) = booting.entry(booting.place.kernel.raw(), ISA.start).expect("shared");
    assert_eq!(pte.mfn().raw(), ISA.start.raw());
    let before = booting.entry(DIRECT_MAP, Pfn::new(ISA.start.raw() - 1)).expect("memory").1;
    assert_eq!(p2m.pfn(&booting.model, before.mfn()), Ok(Pfn::new(ISA.start.raw() - 1)));
    booting.check();
}

#[test]
fn each_page_of_the_machines_can_be_refused_and_the_round_done_again() {
    let booting = with_identity(Role::Dom0);
    let p2m = booting.p2m();
    booting.give_up(&p2m, ISA);
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
                booting.entry(kernel, pfn).is_some_and(|(_, pte)| !pte.is_present())
            })
        );
        booting.check();
    }
    assert!(build(&booting, &booting.model, &p2m).is_ok());
}

#[test]
fn a_domu_is_refused_and_all_is_as_it_was() {
    let booting = with_identity(Role::DomU);
    let p2m = booting.p2m();
    booting.give_up(&p2m, ISA);
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
    let booting = with_identity(Role::Dom0);
    // Nothing was given up: the frame map says that there is memory.
    let error = build(&booting, &booting.model, &booting.p2m()).expect_err("memory");
    assert_eq!(error, EarlyError::NotIdentity(ISA.start).into());
    booting.check();
}
