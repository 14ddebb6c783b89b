//! The numbers that Xen's public headers give to what crosses the seam, and the words for it.

use hypercall::grants::{
    GrantAccess, GrantHandle, GrantMap, GrantRef, GrantStatus, GrantUnmap, flags,
};
use hypercall::memory::{Exchange, Extent, MachphysMapping, MemoryOp, Reservation};
use hypercall::{
    AccessError, DomId, Fault, GuestVa, Level, Mfn, MmuExtOp, MmuUpdate, Pfn, Request, VaFlush,
    VcpuSet,
};
use x86_64::VirtAddr;

#[test]
fn a_grant_status_has_the_name_and_number_of_grant_table_h() {
    let words: Vec<_> = (0..=14).map(|number| GrantStatus(-number).to_string()).collect();
    assert_eq!(
        words,
        [
            "GNTST_okay (0)",
            "GNTST_general_error (-1)",
            "GNTST_bad_domain (-2)",
            "GNTST_bad_gntref (-3)",
            "GNTST_bad_handle (-4)",
            "GNTST_bad_virt_addr (-5)",
            "GNTST_bad_dev_addr (-6)",
            "GNTST_no_device_space (-7)",
            "GNTST_permission_denied (-8)",
            "GNTST_bad_page (-9)",
            "GNTST_bad_copy_arg (-10)",
            "GNTST_address_too_big (-11)",
            "GNTST_eagain (-12)",
            "GNTST_no_space (-13)",
            "grant status -14",
        ]
    );
    let named = [
        (GrantStatus::OKAY, "GNTST_okay (0)"),
        (GrantStatus::GENERAL_ERROR, "GNTST_general_error (-1)"),
        (GrantStatus::BAD_DOMAIN, "GNTST_bad_domain (-2)"),
        (GrantStatus::BAD_GRANT_REF, "GNTST_bad_gntref (-3)"),
        (GrantStatus::BAD_HANDLE, "GNTST_bad_handle (-4)"),
        (GrantStatus::BAD_VIRTUAL_ADDRESS, "GNTST_bad_virt_addr (-5)"),
        (GrantStatus::BAD_PAGE, "GNTST_bad_page (-9)"),
        (GrantStatus::NOT_ISSUED, "not issued"),
    ];
    for (status, words) in named {
        assert_eq!(format!("{status} {status:?}"), format!("{words} {words}"));
    }
}

#[test]
fn a_mapping_for_the_kernel_names_its_place_and_its_rights() {
    let va = GuestVa::new(0xffff_8880_0000_5000).expect("a guest address");
    let map = |access| GrantMap::kernel(va, DomId(3), GrantRef(9), access);
    let (read, write) = (map(GrantAccess::ReadOnly), map(GrantAccess::ReadWrite));
    assert_eq!((read.host_addr, write.host_addr), (va.raw(), va.raw()));
    assert_eq!(read.flags, flags::HOST_MAP | flags::READONLY);
    assert_eq!(write.flags, flags::HOST_MAP);
    let unmap = GrantUnmap::kernel(va, GrantHandle(4));
    assert_eq!((unmap.host_addr, unmap.handle, unmap.dev_bus_addr), (va.raw(), 4, 0));
}

fn list(extents: &mut [Extent]) -> Reservation<'_> {
    Reservation { extents, order: 0, flags: 0, domain: DomId::SELF }
}

#[test]
fn a_memory_op_has_the_name_and_number_of_memory_h() {
    let (a, b, c, d, e, f) = (
        &mut [Extent::from_mfn(Mfn::new(1)); 3][..],
        &mut [Extent::from_mfn(Mfn::new(1)); 4][..],
        &mut [Extent::from_mfn(Mfn::new(1)); 5][..],
        &mut [Extent::from_mfn(Mfn::new(1)); 6][..],
        &mut [Extent::from_mfn(Mfn::new(1)); 7][..],
        &mut [Extent::from_mfn(Mfn::new(1)); 8][..],
    );
    let mut mapping = MachphysMapping::default();
    let exchange = Exchange { give: list(d), take: list(e) };
    let ops = [
        (MemoryOp::Increase(list(a)), 0, "increase_reservation", 3),
        (MemoryOp::Decrease(list(b)), 1, "decrease_reservation", 4),
        (MemoryOp::MaximumRamPage, 2, "maximum_ram_page", 0),
        (MemoryOp::CurrentReservation(DomId::SELF), 3, "current_reservation", 0),
        (MemoryOp::MaximumReservation(DomId::SELF), 4, "maximum_reservation", 0),
        (MemoryOp::MachphysMfnList(f), 5, "machphys_mfn_list", 0),
        (MemoryOp::Populate(list(c)), 6, "populate_physmap", 5),
        (MemoryOp::MemoryMap(&mut []), 9, "memory_map", 0),
        (MemoryOp::MachineMemoryMap(&mut []), 10, "machine_memory_map", 0),
        (MemoryOp::Exchange(exchange), 11, "exchange", 6),
        (MemoryOp::MachphysMapping(&mut mapping), 12, "machphys_mapping", 0),
        (MemoryOp::MaximumGpfn(DomId::SELF), 14, "maximum_gpfn", 0),
    ];
    for (op, number, name, extents) in ops {
        assert_eq!((op.number(), op.name(), op.extents()), (number, name, extents));
    }
}

#[test]
fn an_extent_is_the_word_that_xen_reads() {
    let extents = [Extent::from_pfn(Pfn::new(0x12)), Extent::from_mfn(Mfn::new(0x3456))];
    assert_eq!(extents.map(Extent::raw), [0x12, 0x3456]);
    assert_eq!(format!("{extents:?}"), "[12, 3456]");
}

#[test]
fn an_update_shows_its_command() {
    let words = (0..5).map(|command| format!("{:?}", MmuUpdate::from_raw(0x5008 | command, 7)));
    assert_eq!(
        words.collect::<Vec<_>>(),
        [
            "set 5008 := 0000000000000007",
            "m2p 5008 := 0000000000000007",
            "set-keep-ad 5008 := 0000000000000007",
            "set-no-translate 5008 := 0000000000000007",
            "bad-command 5008 := 0000000000000007",
        ]
    );
}

#[test]
fn an_extended_operation_is_the_words_of_xen_h() {
    let (table, from) = (Mfn::new(0x203), Mfn::new(0x45));
    let va = VirtAddr::new(0x5000);
    let vcpus = VcpuSet::one(3);
    let words = |op: MmuExtOp| (op.command(), op.argument1(), op.argument2(), op.vcpus().0);
    for (op, expected) in [
        (MmuExtOp::pin(Level::L1, table), (0, 0x203, 0, 0)),
        (MmuExtOp::pin(Level::L4, table), (3, 0x203, 0, 0)),
        (MmuExtOp::unpin(table), (4, 0x203, 0, 0)),
        (MmuExtOp::new_baseptr(table), (5, 0x203, 0, 0)),
        (MmuExtOp::tlb_flush_local(), (6, 0, 0, 0)),
        (MmuExtOp::invlpg_local(va), (7, 0x5000, 0, 0)),
        (MmuExtOp::tlb_flush_vcpus(vcpus), (8, 0, 0, 8)),
        (MmuExtOp::invlpg_vcpus(va, vcpus), (9, 0x5000, 0, 8)),
        (MmuExtOp::tlb_flush_all(), (10, 0, 0, 0)),
        (MmuExtOp::invlpg_all(va), (11, 0x5000, 0, 0)),
        (MmuExtOp::new_user_baseptr(Some(table)), (15, 0x203, 0, 0)),
        (MmuExtOp::new_user_baseptr(None), (15, 0, 0, 0)),
        (MmuExtOp::clear_page(table), (16, 0x203, 0, 0)),
        (MmuExtOp::copy_page(table, from), (17, 0x203, 0x45, 0)),
    ] {
        assert_eq!(words(op), expected, "{op:?}");
    }
    let shown = [MmuExtOp::unpin(table), MmuExtOp::new_baseptr(table), MmuExtOp::clear_page(table)];
    assert_eq!(format!("{shown:?}"), "[unpin 00203, baseptr 00203, ext 16 203 0]");
}

#[test]
fn a_flush_behind_a_mapping_is_the_word_of_xen_h() {
    let flushes =
        [VaFlush::None, VaFlush::TlbLocal, VaFlush::PageLocal, VaFlush::TlbAll, VaFlush::PageAll];
    assert_eq!(flushes.map(VaFlush::raw), [0, 1, 2, 5, 6]);
}

#[test]
fn a_set_of_vcpus_has_those_below_32() {
    let set = VcpuSet::one(0).union(VcpuSet::one(31)).union(VcpuSet::one(31));
    assert_eq!(
        (set.0, VcpuSet::one(32), VcpuSet::one(33)),
        (1 << 31 | 1, VcpuSet::NONE, VcpuSet::NONE)
    );
    assert_eq!((set.to_string(), VcpuSet::NONE.to_string()), ("0, 31".into(), "none".into()));
}

#[test]
fn a_request_without_elements_is_empty() {
    assert!(Request::MmuUpdate(&[], DomId::SELF).is_empty());
    assert!(!Request::MmuUpdate(&[MmuUpdate::EMPTY], DomId::SELF).is_empty());
}

#[test]
fn what_could_not_be_accessed_is_named() {
    let va = GuestVa::new(0xffff_8880_0000_5000).expect("a guest address");
    assert_eq!(Fault(va).to_string(), "the access to 0xffff888000005000 faulted");
    let pfn = Pfn::new(0x12);
    let outside = AccessError::OutsideFrame { pfn, offset: 0xff8, len_bytes: 16 };
    assert_eq!(
        [AccessError::Unmapped(pfn), AccessError::ReadOnly(pfn), outside].map(|e| e.to_string()),
        [
            "pfn 00012 is not in the direct mapping",
            "pfn 00012 is mapped read-only",
            "16 bytes at offset 0xff8 leave the frame of pfn 00012",
        ]
    );
}

#[test]
fn an_address_is_shown_whole_and_what_is_none_with_its_reason() {
    let va = GuestVa::new(0x5001).expect("user half");
    assert_eq!(format!("{va} {va:?}"), "0x0000000000005001 va 0x0000000000005001");
    let page = GuestVa::new(0x5000).expect("user half");
    assert_eq!((va.is_page_aligned(), page.is_page_aligned()), (false, true));
    let words = [0x8000_0000_0000, 0xffff_8000_0000_0000]
        .map(|number| GuestVa::new(number).expect_err("none of the guest's").to_string());
    assert_eq!(
        words,
        [
            "address 0x800000000000 is not canonical",
            "address 0xffff800000000000 lies in Xen's range \
             0xffff800000000000..0xffff880000000000",
        ]
    );
}
