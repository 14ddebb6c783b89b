//! The direct map on the model: every page, every protection, every cost.

use early_pgt::Plan;
use hypercall::middleware::Counting;
use hypercall::{BatchStorage, FrameAccess as _, Frames, Pfn};
use p2m::Pfns;
use pv_tests::booting::Booting;
use xen_model::{DomainConfig, Role};

/// Builds the whole map and gives the number of free frames, and of hypercalls.
fn build(booting: &Booting) -> (u64, u64) {
    let (p2m, machine) = (booting.p2m(), Counting::new(&booting.model));
    let mut storage = Box::new(BatchStorage::<6000, 1>::new());
    let free = booting.build_on(&booting.guest(&machine, &p2m), &mut storage.batch());
    let free = free.expect("nothing is refused").iter().map(Frames::count).sum();
    (free, machine.counts().hypercalls)
}

#[test]
fn every_page_is_mapped_where_it_belongs_and_every_table_read_only() {
    for (role, pages) in [(Role::DomU, 0x2000), (Role::Dom0, 0x2100), (Role::DomU, 0x2_0000)] {
        let booting = Booting::new(role, pages);
        let (free, hypercalls) = build(&booting);
        let tables = Plan::new(&booting.memory()).expect("a plan").tables();
        assert_eq!(
            free + booting.used_pages() + tables,
            pages,
            "{role:?} {pages:#x}: each page is accounted for"
        );
        assert!(hypercalls <= 3, "{hypercalls} hypercalls");
        for pfn in (0..pages).map(Pfn::new) {
            let va = booting.model.direct_map(pfn).expect("mapped");
            let (_, pte) = booting.model.guest().l1_slot(va.raw()).expect("has a table");
            assert_eq!(Some(pte.mfn()), booting.model.guest().built_mfn(pfn));
            assert_eq!(pte.is_writable(), !booting.is_table(pfn), "pfn {pfn} {pte}");
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
    assert_eq!(free + booting.used_pages() + tables, 0x2_0000);
    assert!(hypercalls <= 6, "{hypercalls} hypercalls");
    for pfn in Pfns::new(first, frames).iter() {
        let va = booting.model.direct_map(pfn).expect("mapped");
        let (_, pte) = booting.model.guest().l1_slot(va.raw()).expect("has a table");
        assert_eq!(Some(pte.mfn()), booting.model.guest().built_mfn(pfn));
        assert!(!pte.is_writable(), "pfn {pfn} may be one of the list's tables");
    }
    booting.check();
}
