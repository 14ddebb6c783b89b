//! Group C: entries of L2, L3 and L4 tables.

use crate::support::{Bench, EBUSY, EINVAL, P, RW};

const LINEAR: &str = "Attempt to create linear p.t. with write perms";

/// Live tables of every level: L1 in page 1, L2 in 2, L3 in 3, L4 in 4, each pinned and empty.
fn tables() -> Bench {
    let bench = Bench::new();
    for level in 1..=4 {
        bench.pinned(level, level, &[]);
    }
    bench
}

#[test]
fn c033_flags_that_no_link_may_have() {
    let bench = tables();
    for level in 2..=4 {
        for (flags, shown) in [(0x80, "80"), (0x100, "100"), (0x10, "10"), (0x8, "8")] {
            assert_eq!(bench.set(level, 0, bench.to(level - 1, RW | flags)), EINVAL);
            assert_eq!(bench.log(), [format!("Bad L{level} flags {shown}")]);
        }
    }
}

#[test]
fn c035_xens_slots_are_named() {
    let bench = tables();
    assert_eq!(bench.set(4, 256, 0), EINVAL);
    assert_eq!(bench.set(4, 271, bench.to(3, RW)), EINVAL);
    let line = |slot| format!("L4 update in Xen-private area, slot {slot:#x}");
    assert_eq!(bench.log(), [line(256), line(271)]);
}

#[test]
fn c039_a_link_to_a_page_mapped_writable() {
    let bench = tables();
    for (flags, lines) in [(RW, 2), (P, 1)] {
        assert_eq!(bench.set(2, 0, bench.to(8, flags)), EINVAL);
        let bad = bench.bad_type(0xe400_0000_0000_0001, 0x2000_0000_0000_0000, bench.mfn(8));
        let log = bench.log();
        assert_eq!(log[0], bad);
        // A read-only link is then tried as a linear one, which says nothing here.
        assert_eq!(log.len(), lines, "{log:?}");
        assert!(log[1..].iter().all(|line| line == LINEAR));
    }
}

#[test]
fn c040_links_to_frames_of_others() {
    let bench = tables();
    let freed = bench.populate(&[3000])[0];
    assert_eq!(bench.decrease(&[freed]), 1);
    for mfn in [bench.foreign(), freed, 0xfe000] {
        bench.clear_log();
        assert_eq!(bench.set(2, 0, mfn << 12 | RW), EINVAL);
        let log = bench.log();
        assert!(log.contains(&format!("Could not get page ref for mfn {mfn:05x}")), "{log:?}");
    }
}

#[test]
fn c041_links_to_tables_of_the_wrong_level() {
    let bench = tables();
    assert_eq!(bench.set(2, 0, bench.to(3, RW)), EINVAL);
    assert!(bench.log()[0].starts_with("Bad type (saw 6c00000000000001 != exp 2"));
    assert_eq!(bench.set(3, 0, bench.to(4, RW)), EINVAL);
    assert!(bench.log()[0].starts_with("Bad type (saw 8c00000000000001 != exp 4"));
    bench.pinned(5, 2, &[]);
    assert_eq!(bench.set(2, 0, bench.to(5, RW)), EINVAL);
    assert_eq!(bench.log(), [LINEAR]);
    assert_eq!(bench.set(2, 0, bench.to(5, P)), 0);
}

#[test]
fn c042_a_link_to_an_l1_with_a_bad_entry() {
    let bench = tables();
    let words = [(0, bench.to(9, P)), (3, bench.to(4, RW))];
    bench.contents(8, &words);
    bench.clear_log();
    assert_eq!(bench.set(2, 0, bench.to(8, RW)), EBUSY);
    let log = bench.log();
    let (mfn, pfn) = (bench.mfn(8), bench.pfn(8));
    assert_eq!(log[3], "Failure -16 in promote_l1_table: slot 0x3");
    let error =
        format!("Error while validating mfn {mfn:05x} (pfn {pfn:05x}) for type 2000000000000000:");
    assert!(log[4].starts_with(&error), "{log:?}");
    assert_eq!(log.len(), 5, "no linear line: {log:?}");
    assert_eq!(bench.taf(8), 0);
    assert_eq!(bench.entry(8, 0), bench.to(9, 0x0010_0000_0000_0005));
}

#[test]
fn c044_changed_links_flush_once_a_call() {
    let bench = tables();
    let flushes = || bench.model.statistics().table_flushes;
    let start = flushes();
    let (a, b) = ((bench.at(2, 0), bench.to(1, RW)), (bench.at(3, 0), bench.to(2, RW)));
    assert_eq!(bench.mmu(&[a, b]), (0, 2));
    assert_eq!(flushes(), start + 1);
    assert_eq!(bench.set(2, 1, bench.to(8, RW)), EINVAL);
    assert_eq!(flushes(), start + 1);
}
