//! Group E: `mmuext_op`.

use crate::support::{
    BASEPTR, Bench, EACCES, EBUSY, EINVAL, ENOSYS, EOPNOTSUPP, P, PIN_L1, PIN_L4, RW, SELF, UNPIN,
    USER_BASEPTR,
};

/// A pinned L4 in page 0 that maps the kernel.
fn second_root() -> Bench {
    let bench = Bench::new();
    let root = bench.guest().kernel_root().expect("root");
    let kernel = bench.model.word(root, 511).expect("RAM");
    bench.pinned(0, 4, &[(511, kernel)]);
    bench
}

#[test]
fn e051_a_pin_of_what_is_pinned_or_of_another_level() {
    let bench = second_root();
    let root = bench.mfn(0);
    let before = (bench.caf(0), bench.taf(0));
    assert_eq!(bench.ext(PIN_L4, root), EINVAL);
    assert_eq!(bench.log(), [format!("mfn {root:05x} already pinned")]);
    assert_eq!((bench.caf(0), bench.taf(0)), before);
    assert_eq!(bench.ext(PIN_L1, root), EINVAL);
    let bad = bench.bad_type(0x8c00_0000_0000_0001, 0x2000_0000_0000_0000, root);
    assert_eq!(bench.log(), [bad, format!("Error -22 while pinning mfn {root:05x}")]);
    bench.pinned(1, 2, &[]);
    assert_eq!(bench.ext(PIN_L1, bench.mfn(1)), EINVAL);
    assert_eq!(bench.log(), [format!("Error -22 while pinning mfn {:05x}", bench.mfn(1))]);
}

#[test]
fn e052_unpins_and_updates_of_what_is_not_ours_or_not_pinned() {
    let bench = Bench::new();
    let mfn = bench.mfn(0);
    assert_eq!(bench.ext(UNPIN, mfn), EINVAL);
    assert_eq!(bench.log(), [format!("mfn {mfn:05x} not pinned")]);
    for bad in [bench.foreign(), 0xfe000] {
        assert_eq!(bench.ext(UNPIN, bad), EINVAL);
        let last = bench.log().pop();
        assert_eq!(last, Some(format!("mfn {bad:05x} bad, or bad owner d1")));
    }
    assert_eq!(bench.mmu(&[(bench.foreign() << 12, 0)]).0, EINVAL);
    assert_eq!(bench.log().pop().as_deref(), Some("Could not get page for normal update"));
}

#[test]
fn e053_the_running_root_may_be_unpinned() {
    let bench = second_root();
    assert_eq!(bench.ext(BASEPTR, bench.mfn(0)), 0);
    assert_eq!(bench.taf(0), 0x8c00_0000_0000_0002);
    assert_eq!(bench.ext(UNPIN, bench.mfn(0)), 0);
    assert_eq!(bench.taf(0), 0x8400_0000_0000_0001);
    let bench = second_root();
    assert_eq!(bench.ext(BASEPTR, bench.mfn(0)), 0);
    assert_eq!(bench.ext(USER_BASEPTR, bench.mfn(0)), 0);
    assert_eq!(bench.ext(UNPIN, bench.mfn(0)), 0);
    assert_eq!(bench.taf(0), 0x8400_0000_0000_0002);
}

#[test]
fn e054_a_root_needs_no_pin_to_run() {
    let bench = second_root();
    assert_eq!(bench.ext(UNPIN, bench.mfn(0)), 0);
    assert_eq!(bench.ext(BASEPTR, bench.mfn(0)), 0);
    let before = (bench.caf(0), bench.taf(0));
    assert_eq!(bench.ext(BASEPTR, bench.mfn(0)), 0);
    assert_eq!((bench.caf(0), bench.taf(0)), before);
}

#[test]
fn e055_roots_that_are_none() {
    let bench = Bench::new();
    assert_eq!(bench.ext(BASEPTR, 0), EINVAL);
    let log = bench.log();
    assert!(log[0].starts_with("Error mfn 00000: rd=d1 od=d[IO] "), "{log:?}");
    assert_eq!(
        log[1..],
        ["Could not get page ref for mfn 00000", "Error while installing new baseptr 00000"]
    );
    bench.pinned(1, 1, &[]);
    assert_eq!(bench.ext(BASEPTR, bench.mfn(1)), EINVAL);
    let bad = bench.bad_type(0x2c00_0000_0000_0001, 0x8000_0000_0000_0000, bench.mfn(1));
    assert_eq!(bench.log()[0], bad);
}

#[test]
fn e056_leaving_an_unpinned_root_releases_its_tree() {
    let bench = second_root();
    let old = bench.guest().kernel_root().expect("root").raw();
    assert_eq!(bench.ext(BASEPTR, bench.mfn(0)), 0);
    assert_eq!(bench.ext(UNPIN, bench.mfn(0)), 0);
    assert_eq!(bench.ext(BASEPTR, old), 0);
    assert_eq!(bench.taf(0), 0x8000_0000_0000_0000);
    assert_eq!(bench.map(0, RW), 0);
}

#[test]
fn e057_the_user_root_may_be_none() {
    let bench = second_root();
    let before = (bench.caf(0), bench.taf(0));
    assert_eq!(bench.ext(USER_BASEPTR, bench.mfn(0)), 0);
    assert_eq!(bench.ext(USER_BASEPTR, bench.mfn(0)), 0);
    assert_eq!(bench.taf(0), before.1 + 1);
    assert_eq!(bench.ext(USER_BASEPTR, 0), 0);
    assert_eq!((bench.caf(0), bench.taf(0)), before);
}

#[test]
fn e058_pin_kernel_root_and_user_root_count_once_each() {
    let bench = second_root();
    bench.unmap(0);
    assert_eq!(bench.ext(BASEPTR, bench.mfn(0)), 0);
    assert_eq!((bench.taf(0), bench.caf(0)), (0x8c00_0000_0000_0002, 0x8000_0000_0000_0003));
    assert_eq!(bench.ext(USER_BASEPTR, bench.mfn(0)), 0);
    assert_eq!((bench.taf(0), bench.caf(0)), (0x8c00_0000_0000_0003, 0x8000_0000_0000_0004));
}

#[test]
fn e059_a_deep_failure_is_told_level_by_level() {
    let bench = Bench::new();
    // Page 4 is the L4, 3 the L3, 2 the L2, 1 the L1, whose slot 7 maps the L4 writable.
    bench.contents(1, &[(7, bench.to(4, RW)), (0, bench.to(0, P))]);
    for level in 2..=4u64 {
        bench.contents(level, &[(5, bench.to(level - 1, RW)), (0, 0)]);
    }
    bench.clear_log();
    assert_eq!(bench.ext(PIN_L4, bench.mfn(4)), EBUSY);
    let log = bench.log();
    let bad = bench.bad_type(0x8000_0000_0000_0001, 0xe000_0000_0000_0000, bench.mfn(4));
    assert_eq!(log[0], bad);
    assert_eq!(log[1], "Could not get page type PGT_writable_page");
    assert!(log[2].starts_with("Error getting mfn"));
    for (level, pair) in (1..).zip(log[3..11].chunks(2)) {
        let slot = if level == 1 { 7 } else { 5 };
        assert_eq!(pair[0], format!("Failure -16 in promote_l{level}_table: slot {slot:#x}"));
        assert!(pair[1].starts_with("Error while validating mfn"), "{pair:?}");
    }
    assert_eq!(log[11], format!("Error -16 while pinning mfn {:05x}", bench.mfn(4)));
    assert_eq!(log.len(), 12);
    for page in 0..5 {
        assert_eq!(bench.map(page, RW), 0);
    }
}

#[test]
fn e060_clearing_and_copying() {
    let bench = Bench::new();
    bench.pinned(0, 1, &[(3, bench.to(2, 0x63))]);
    let op = |command, to, from| bench.ext_for(&[(command, to, from)], SELF).0;
    let (table, page) = (bench.mfn(0), bench.mfn(1));
    assert_eq!(op(16, table, 0), EINVAL);
    assert_eq!(bench.log().pop(), Some(format!("Error clearing mfn {table:05x}")));
    assert_eq!(op(17, table, page), EINVAL);
    assert_eq!(bench.log().pop(), Some(format!("Error copying to mfn {table:05x}")));
    bench.read_only(1);
    assert_eq!(op(17, page, table), 0);
    assert_eq!(bench.entry(1, 3), bench.entry(0, 3));
    assert_eq!(bench.taf(1), 0xe400_0000_0000_0000);
    assert_eq!(op(16, page, 0), 0);
    assert_eq!(bench.entry(1, 3), 0);
    let freed = bench.populate(&[3000])[0];
    assert_eq!(bench.decrease(&[freed]), 1);
    for bad in [bench.foreign(), freed] {
        assert_eq!(op(16, bad, 0), EINVAL);
        assert_eq!(op(17, page, bad), EINVAL);
        assert_eq!(bench.log().pop(), Some(format!("Error copying from mfn {bad:05x}")));
    }
}

#[test]
fn e061_cache_flushes_and_unknown_commands() {
    let bench = Bench::new();
    assert_eq!(bench.ext(12, 0), EACCES);
    assert_eq!(bench.ext(18, 0), EINVAL);
    let newest = Bench::on(xen_model::Release::V4_20);
    assert_eq!(newest.ext(18, 0), EACCES);
    let dom0 = Bench::dom0();
    assert_eq!((dom0.ext(12, 0), dom0.ext(18, 0)), (0, 0));
    assert_eq!((bench.ext(19, 0), bench.ext(20, 0)), (EOPNOTSUPP, EOPNOTSUPP));
    for command in [14, 21, 22, u64::from(u32::MAX)] {
        assert_eq!(bench.ext(command, 0), ENOSYS);
    }
}

#[test]
fn e062_set_ldt_looks_at_the_numbers_only() {
    let bench = Bench::new();
    let set = |base, entries| bench.ext_for(&[(13, base, entries)], SELF).0;
    assert_eq!(set(0x1000, 8193), EINVAL);
    assert_eq!(bench.log(), ["Bad args to SET_LDT: ptr=1000, ents=2001"]);
    assert_eq!(set(0x1008, 1), EINVAL);
    assert_eq!(set(0xffff_8000_0000_0000, 1), EINVAL);
    assert_eq!(set(0x1000, 8192), 0);
}

#[test]
fn e063_ldt_pages_are_looked_at_when_they_are_used() {
    let bench = Bench::new();
    let set = |page, entries| bench.ext_for(&[(13, bench.va(page), entries)], SELF).0;
    let fault = |page: u64| Err(xen_model::PageFault { va: bench.va(page) + 8, code: 0 });
    assert_eq!(set(0, 512), 0);
    bench.clear_log();
    assert_eq!(bench.guest().load_ldt_selector(1), fault(0));
    let bad = bench.bad_type(0xe400_0000_0000_0001, 0xa000_0000_0000_0000, bench.mfn(0));
    assert_eq!(bench.log(), [bad]);
    // A present TSS descriptor.
    bench.contents(1, &[(1, 0x0000_8900_0000_0067)]);
    assert_eq!(set(1, 512), 0);
    bench.clear_log();
    assert_eq!(bench.guest().load_ldt_selector(1), fault(1));
    assert!(bench.log()[0].contains("for type a000000000000000"));
    bench.contents(2, &[(1, 0x00af_9b00_0000_ffff)]);
    assert_eq!(set(2, 512), 0);
    assert_eq!(bench.guest().load_ldt_selector(1), Ok(()));
    assert_eq!(bench.map(2, RW), EBUSY);
    assert_eq!(set(2, 0), 0);
    assert_eq!(bench.map(2, RW), 0);
}

#[test]
fn e064_flushes_of_xens_addresses_and_unreadable_masks() {
    let bench = Bench::new();
    for command in [7, 11] {
        assert_eq!(bench.ext(command, 0xffff_8000_0000_1000), 0);
        assert_eq!(bench.ext(command, 0x8000_0000_0000_0000), 0);
    }
    for command in [8, 9] {
        let op = (command, bench.va(0), 0xdead_0000);
        assert_eq!(bench.ext_for(&[op], SELF).0, EINVAL);
        bench.put(bench.scratch(3), &[1]);
        assert_eq!(bench.ext_for(&[(command, bench.va(0), bench.scratch(3))], SELF).0, 0);
    }
}

#[test]
fn e065_a_batch_stops_at_its_first_refusal() {
    let bench = Bench::new();
    bench.read_only(0);
    bench.pinned(1, 1, &[]);
    let (a, b) = (bench.mfn(0), bench.mfn(1));
    assert_eq!(bench.ext(UNPIN, b), 0);
    let list = [(PIN_L1, a, 0), (UNPIN, b, 0), (PIN_L1, b, 0)];
    assert_eq!(bench.ext_for(&list, SELF), (EINVAL, 1));
    assert_eq!((bench.taf(0), bench.taf(1)), (0x2c00_0000_0000_0001, 0x2000_0000_0000_0000));
}
