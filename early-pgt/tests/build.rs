//! The direct map on the model: every page, every protection, every cost.
#![expect(unsafe_code, reason = "claims frames of a guest that exists only in the model")]

use early_pgt::{Build, Plan};
use hypercall::{BatchStorage, Counting, FrameAccess as _, Pfn};
use p2m::Pfns;
use pv_tests::booting::Booting;
use xen_model::{DomainConfig, Role};

type Storage = BatchStorage<6000, 1>;

/// Builds the whole map and gives the number of free frames, and of hypercalls.
fn build(booting: &Booting) -> (u64, u64) {
    let (memory, p2m) = (booting.memory(), booting.p2m());
    let machine = Counting::new(&booting.model);
    let plan = Plan::new(&memory).expect("a plan");
    let mut storage = Box::new(Storage::new());
    let mut batch = storage.batch();
    // SAFETY: the frames exist only in the model; nobody else claims any.
    let mut build = unsafe { Build::begin(&memory, plan) };
    while let Some(mapped) =
        build.round(booting.guest(&machine, &p2m), &mut batch).expect("a round")
    {
        booting.model.guest().set_direct_map(mapped.start, mapped.end);
    }
    let mut free = 0;
    assert_eq!(build.finish(|frames| free += frames.count()), None, "nothing was refused");
    (free, machine.counts().hypercalls)
}

#[test]
fn every_page_is_mapped_where_it_belongs_and_every_table_read_only() {
    for (role, pages) in [(Role::DomU, 0x2000), (Role::Dom0, 0x2100), (Role::DomU, 0x2_0000)] {
        let booting = Booting::new(role, pages);
        let (free, hypercalls) = build(&booting);
        let tables = Plan::new(&booting.memory()).expect("a plan").tables();
        let used: u64 = booting.uses.iter().map(|used| used.pfns.count).sum();
        assert_eq!(free + used + tables, pages, "{role:?} {pages:#x}: each page is accounted for");
        assert!(hypercalls <= 3, "{hypercalls} hypercalls");
        for pfn in (0..pages).map(Pfn::new) {
            let va = booting.model.direct_map(pfn).expect("mapped");
            let (_, pte) = booting.model.guest().l1_slot(va.raw()).expect("has a table");
            assert_eq!(Some(pte.mfn()), booting.model.guest().built_mfn(pfn));
            let info = booting.model.frame(pte.mfn()).expect("a frame");
            let is_table = format!("{:?}", info.kind.kind).starts_with('L');
            assert_eq!(pte.is_writable(), !is_table, "pfn {pfn} {pte}");
        }
        booting.check();
    }
}

#[test]
fn a_round_that_ends_within_a_gib_is_followed_by_one_that_hangs_in_its_tables() {
    const PAGES: u64 = (1 << 18) + (1 << 13);
    let mut config = DomainConfig::new(Role::DomU, PAGES);
    // So many frames of the builder's mapping are free that the first round ends in the second GiB.
    config.kernel_pages = 988;
    let booting = Booting::of(config);
    let memory = booting.memory();
    let plan = Plan::new(&memory).expect("a plan");
    let ends: Vec<u64> = plan.rounds().iter().map(|round| round.maps.end()).collect();
    assert!(1 << 18 < ends[0] && ends[0] < PAGES, "{ends:?}");
    build(&booting);
    for pfn in (0..PAGES).step_by(512).map(Pfn::new) {
        let va = booting.model.direct_map(pfn).expect("mapped");
        let (_, pte) = booting.model.guest().l1_slot(va.raw()).expect("has a table");
        assert_eq!(Some(pte.mfn()), booting.model.guest().built_mfn(pfn), "pfn {pfn}");
    }
    booting.check();
}

#[test]
fn a_list_outside_of_the_kernels_mapping_stays_read_only_with_its_tables() {
    // Until now the builder's list was at VIRT_BASE; INIT_P2M puts it, and tables that nothing
    // maps, into frames behind the kernel's mapping.
    let mut config = DomainConfig::new(Role::DomU, 0x2_0000);
    config.init_p2m = Some(0xffff_b000_0000_0000);
    let booting = Booting::of(config);
    let (first, frames) = booting.boot.p2m_frames.expect("the builder says where");
    assert!(first.raw() >= booting.place.kernel_pages);
    let (free, hypercalls) = build(&booting);
    let tables = Plan::new(&booting.memory()).expect("a plan").tables();
    let used: u64 = booting.uses.iter().map(|used| used.pfns.count).sum();
    assert_eq!(free + used + tables, 0x2_0000);
    assert!(hypercalls <= 6, "{hypercalls} hypercalls");
    for pfn in Pfns::new(first, frames).iter() {
        let va = booting.model.direct_map(pfn).expect("mapped");
        let (_, pte) = booting.model.guest().l1_slot(va.raw()).expect("has a table");
        assert_eq!(Some(pte.mfn()), booting.model.guest().built_mfn(pfn));
        assert!(!pte.is_writable(), "pfn {pfn} may be one of the list's tables");
    }
    booting.check();
}
