//! What others do to a guest's memory while it runs.
#![expect(unsafe_code, reason = "hypercalls of a guest that exists only in the model")]

use hypercall::grants::{
    GrantAccess, GrantHandle, GrantMap, GrantRef, GrantStatus, GrantUnmap, Grants,
};
use hypercall::memory::{Extent, MemoryOp, Reservation};
use hypercall::{DomId, GuestVa, Hypercalls, Mfn, Pfn};
use xen_model::{BootMapping, DomainConfig, GrantEntry, Model, Role};

/// Asks for a frame for each of `count` pfns; how many came.
fn populate(model: &Model, count: u64) -> u64 {
    let mut extents: Vec<_> =
        (9000..9000 + count).map(|pfn| Extent::from_pfn(Pfn::new(pfn))).collect();
    let list = Reservation { extents: &mut extents, order: 0, flags: 0, domain: DomId::SELF };
    // SAFETY: the guest exists only in the model.
    unsafe { model.memory_op(&mut MemoryOp::Populate(list)) }.expect("never an errno")
}

fn maximum(model: &Model) -> u64 {
    // SAFETY: it only reports.
    unsafe { model.memory_op(&mut MemoryOp::MaximumReservation(DomId::SELF)) }.expect("a number")
}

#[test]
fn a_maximum_below_the_size_takes_nothing_away_and_stops_growth() {
    let model = Model::builder().build().expect("a guest");
    let pages = model.guest().total_pages();
    model.guest().set_maximum(pages - 7);
    assert_eq!((maximum(&model), model.guest().total_pages()), (pages - 7, pages));
    assert_eq!(populate(&model, 1), 0);
    model.guest().set_maximum(pages + 2);
    assert_eq!(populate(&model, 5), 2);
    assert_eq!(model.guest().total_pages(), pages + 2);
    model.audit().expect("every reference has its holder");
}

#[test]
fn other_domains_take_what_xen_has_free_and_give_it_back() {
    let model = Model::builder().build().expect("a guest");
    let free = model.free_frames();
    model.leave_free(3);
    assert_eq!((model.free_frames(), populate(&model, 5)), (3, 3));
    assert!(model.take_log().pop().is_some_and(|line| line.contains("Could not allocate order=0")));
    model.leave_free(u64::MAX);
    assert_eq!((model.free_frames(), populate(&model, 5)), (free - 3, 5));
    model.audit().expect("every reference has its holder");
}

#[test]
fn grants_are_mapped_through_the_seam() {
    let mut config = DomainConfig::new(Role::DomU, 2048);
    config.boot_mapping = BootMapping::AllPages;
    let dom0 = DomainConfig::new(Role::Dom0, 1024);
    let model = Model::builder().guest(config.clone()).other(dom0).build().expect("two domains");
    let dom0 = model.vcpu(0, 0).expect("dom0");
    let frame = dom0.built_mfn(Pfn::new(700)).expect("a page");
    let domain = model.guest().domain();
    dom0.write_grant(8, GrantEntry { flags: 1, domain, frame }).expect("an entry");
    let free = model.guest().first_free_page();
    let va = GuestVa::new(config.virt_base + (free.raw() << 12)).expect("a guest address");
    let map =
        |reference| GrantMap::kernel(va, DomId(0), GrantRef(reference), GrantAccess::ReadOnly);

    let mut maps = [map(8), map(9)];
    // SAFETY: the guest exists only in the model.
    unsafe { model.grant_map(&mut maps) }.expect("never as a whole");
    assert_eq!((maps[0].status(), maps[0].mfn()), (GrantStatus::OKAY, Some(frame)));
    assert_eq!((maps[1].status(), maps[1].mfn()), (GrantStatus(-1), None));
    let (_, pte) = model.guest().l1_slot(va.raw()).expect("a table");
    assert_eq!((pte.mfn(), pte.is_writable()), (frame, false));
    model.audit().expect("every reference has its holder");

    let handle = GrantHandle(maps[0].handle);
    let mut unmaps = [GrantUnmap::kernel(va, handle), GrantUnmap::kernel(va, handle)];
    // SAFETY: as above.
    unsafe { model.grant_unmap(&mut unmaps) }.expect("never as a whole");
    assert_eq!(unmaps.map(|unmap| unmap.status().0), [0, -4]);
    let (_, pte) = model.guest().l1_slot(va.raw()).expect("a table");
    assert!(!pte.is_present());
    model.audit().expect("every reference has its holder");

    let mut table = [Mfn::new(0); 2];
    model.grant_table(&mut table).expect("two frames are no more than it may have");
    assert_ne!(table[0], table[1]);
    assert!(model.grant_table(&mut [Mfn::new(0); 33]).is_err());
}
