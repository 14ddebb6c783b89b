//! Group C: entries of L2, L3 and L4 tables.

use hypercall::Mfn;
use xen_model::number;

use crate::support::{BASEPTR, Bench, EBUSY, EINVAL, IO, P, PIN_L1, PIN_L4, RW, UNPIN};

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
fn c034_links_are_adjusted() {
    let bench = tables();
    for (level, read) in [(2, 0x07), (3, 0x07), (4, 0x27)] {
        assert_eq!(bench.set(level, 0, bench.to(level - 1, RW)), 0);
        assert_eq!(bench.entry(level, 0), bench.to(level - 1, read));
    }
}

#[test]
fn c035_xens_slots_are_refused() {
    let bench = tables();
    assert_eq!(bench.set(4, 256, 0), EINVAL);
    assert_eq!(bench.set(4, 271, bench.to(3, RW)), EINVAL);
    assert_eq!(
        bench.log(),
        ["L4 update in Xen-private area, slot 0x100", "L4 update in Xen-private area, slot 0x10f"]
    );
    assert_eq!(bench.set(4, 272, bench.to(3, RW)), 0);
}

#[test]
fn c036_junk_in_xens_slots_is_overwritten() {
    let bench = Bench::new();
    let junk: Vec<(usize, u64)> = (256..272).map(|k| (k, 0xdead_beef_dead_beef)).collect();
    bench.pinned(0, 4, &junk);
    assert_eq!(bench.entry(0, 256), 0);
    assert_eq!(bench.entry(0, 258), bench.to(0, 0x8000_0000_0000_0063));
    assert_eq!(bench.entry(0, 259), 0);
    assert_eq!(bench.call(number::VM_ASSIST, [0, 32, 0, 0, 0]), 0);
    bench.pinned(1, 4, &junk);
    assert_ne!(bench.entry(1, 256), 0, "with m2p_strict");
}

/// An L4 in page 0 with the kernel's mappings.
fn second_root(bench: &Bench) {
    let root = bench.guest().kernel_root().expect("root");
    let kernel = bench.model.word(root, 511).expect("RAM");
    bench.contents(0, &[(511, kernel)]);
}

#[test]
fn c037_loading_a_root_gives_it_m2p() {
    let bench = Bench::new();
    second_root(&bench);
    assert_eq!(bench.ext(PIN_L4, bench.mfn(0)), 0);
    assert_eq!(bench.entry(0, 256), 0);
    assert_eq!(bench.ext(BASEPTR, bench.mfn(0)), 0);
    assert_eq!(bench.entry(0, 256) & 0xfff, 0x25);
}

#[test]
fn c038_a_former_root_must_be_zeroed_before_reuse() {
    let bench = Bench::new();
    bench.pinned(0, 4, &[]);
    assert_eq!(bench.ext(UNPIN, bench.mfn(0)), 0);
    assert_eq!(bench.entry(0, 258), bench.to(0, 0x8000_0000_0000_0063));
    assert_eq!(bench.ext(PIN_L1, bench.mfn(0)), EBUSY);
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
fn c043_a_table_under_two_links_stays_one_until_both_go() {
    let bench = tables();
    bench.contents(8, &[(0, bench.to(9, 0x63))]);
    for index in 0..2 {
        assert_eq!(bench.set(2, index, bench.to(8, RW)), 0);
    }
    assert_eq!(bench.set(2, 0, 0), 0);
    assert_eq!(bench.set(1, 0, bench.to(8, RW)), EBUSY);
    assert_eq!(bench.set(2, 1, 0), 0);
    assert_eq!(bench.set(1, 0, bench.to(8, RW)), 0);
    assert_eq!(bench.entry(8, 0), bench.to(9, 0x0010_0000_0000_0067));
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

#[test]
fn c045_links_are_never_for_domid_io() {
    let bench = tables();
    assert_eq!(bench.mmu_for(&[(bench.at(2, 0), 0)], IO).0, EINVAL);
    assert_eq!(bench.mmu_for(&[(bench.at(2, 0), bench.to(1, RW))], IO).0, EINVAL);
    assert_eq!(bench.log(), [""; 0]);
    assert_eq!(bench.set(1, 0, bench.to(8, P)), 0);
    assert_eq!(bench.mmu_for(&[(bench.at(1, 0), 0)], IO).0, 0);
}

#[test]
fn c046_xens_slots_hold_no_references() {
    let bench = Bench::new();
    let before = bench.words(bench.mfn(1));
    // Present entries to a page of the guest's own, as junk.
    let junk: Vec<(usize, u64)> = (256..272).map(|k| (k, bench.to(1, RW))).collect();
    bench.pinned(0, 4, &junk);
    assert_eq!(bench.words(bench.mfn(1)), before);
    bench.audit();
    for k in 256..272 {
        bench.model.poke(Mfn::new(bench.mfn(0)), k, bench.to(1, RW));
    }
    assert_eq!(bench.ext(UNPIN, bench.mfn(0)), 0);
    assert_eq!(bench.words(bench.mfn(1)), before);
}
