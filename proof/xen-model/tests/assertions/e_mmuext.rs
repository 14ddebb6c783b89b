//! Groups E and K: `mmuext_op` and descriptor tables.

use xen_model::number;

use crate::support::{
    BASEPTR, Bench, EBUSY, EINVAL, P, PIN_L1, PIN_L4, RW, SELF, UNPIN, USER_BASEPTR,
};

const CLEAR: u64 = 16;
const COPY: u64 = 17;
/// A present TSS descriptor.
const TSS: u64 = 0x0000_8900_0000_0067;

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
fn e053_e058_pin_kernel_root_and_user_root_count_once_each() {
    let bench = second_root();
    bench.unmap(0);
    let root = bench.mfn(0);
    for (command, words) in [
        (BASEPTR, (0x8000_0000_0000_0003, 0x8c00_0000_0000_0002)),
        (USER_BASEPTR, (0x8000_0000_0000_0004, 0x8c00_0000_0000_0003)),
        (UNPIN, (0x8000_0000_0000_0003, 0x8400_0000_0000_0002)),
    ] {
        assert_eq!(bench.ext(command, root), 0);
        assert_eq!(bench.words(root), words);
    }
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
fn e060_clearing_and_copying_are_refused_by_name() {
    let bench = Bench::new();
    bench.pinned(0, 1, &[]);
    let (table, page) = (bench.mfn(0), bench.mfn(1));
    for (op, line) in [
        ((CLEAR, table, 0), format!("Error clearing mfn {table:05x}")),
        ((COPY, table, page), format!("Error copying to mfn {table:05x}")),
        ((COPY, page, 0xfe000), "Error copying from mfn fe000".to_owned()),
    ] {
        assert_eq!(bench.ext_for(&[op], SELF).0, EINVAL);
        assert_eq!(bench.log().pop(), Some(line));
    }
    bench.read_only(1);
    assert_eq!(bench.ext_for(&[(COPY, page, table)], SELF).0, 0);
    assert_eq!(bench.taf(1), 0xe400_0000_0000_0000);
}

#[test]
fn e062_an_ldt_of_the_wrong_shape_is_shown() {
    let bench = Bench::new();
    assert_eq!(bench.ext_for(&[(13, 0x1000, 8193)], SELF).0, EINVAL);
    assert_eq!(bench.log(), ["Bad args to SET_LDT: ptr=1000, ents=2001"]);
}

#[test]
fn e063_faults_at_an_ldt_name_the_address_and_the_page() {
    let bench = Bench::new();
    let set = |page, entries| bench.ext_for(&[(13, bench.va(page), entries)], SELF).0;
    let fault = |page: u64| Err(xen_model::PageFault { va: bench.va(page) + 8, code: 0 });
    assert_eq!(set(0, 512), 0);
    bench.clear_log();
    assert_eq!(bench.guest().load_ldt_selector(1), fault(0));
    let bad = bench.bad_type(0xe400_0000_0000_0001, 0xa000_0000_0000_0000, bench.mfn(0));
    assert_eq!(bench.log(), [bad]);
    bench.contents(1, &[(1, TSS)]);
    assert_eq!(set(1, 512), 0);
    bench.clear_log();
    assert_eq!(bench.guest().load_ldt_selector(1), fault(1));
    assert!(bench.log()[0].contains("for type a000000000000000"));
}

#[test]
fn k103_k105_a_frame_that_cannot_be_a_gdt_is_shown() {
    let bench = Bench::new();
    let set_gdt = |page| {
        bench.put(bench.scratch(3), &[bench.mfn(page)]);
        bench.call(number::SET_GDT, [bench.scratch(3), 512, 0, 0, 0])
    };
    bench.clear_log();
    assert_eq!(set_gdt(0), EINVAL);
    let bad = bench.bad_type(0xe400_0000_0000_0001, 0xa000_0000_0000_0000, bench.mfn(0));
    assert_eq!(bench.log(), [bad]);
    bench.contents(1, &[(4, TSS)]);
    bench.clear_log();
    assert_eq!(set_gdt(1), EINVAL);
    assert!(bench.log()[0].contains("for type a000000000000000"));
    bench.contents(2, &[]);
    assert_eq!(set_gdt(2), 0);
    assert_eq!(bench.taf(2), 0xa400_0000_0000_0001);
}
