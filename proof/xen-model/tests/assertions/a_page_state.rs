//! Group A: what Xen writes into a frame's words and into its log.

use crate::support::{Bench, EBUSY, EINVAL, P, PIN_L1, RW, UNPIN};
use xen_model::{Release, Statistics};

/// A bench with a live L1 table in page 0.
fn with_table() -> Bench {
    let bench = Bench::new();
    bench.pinned(0, 1, &[]);
    bench
}

/// A fresh frame that nothing maps.
fn fresh(bench: &Bench) -> u64 {
    let mfn = bench.populate(&[5000])[0];
    bench.clear_log();
    mfn
}

#[test]
fn a001_a003_a004_words_follow_the_mappings_of_a_frame() {
    let bench = with_table();
    let mfn = fresh(&bench);
    assert_eq!(bench.words(mfn), (0x8000_0000_0000_0001, 0));
    for (slot, flags, words) in [
        (0, RW, (0x8000_0000_0000_0002, 0xe400_0000_0000_0001)),
        (1, RW, (0x8000_0000_0000_0003, 0xe400_0000_0000_0002)),
        (0, P, (0x8000_0000_0000_0003, 0xe400_0000_0000_0001)),
        (1, P, (0x8000_0000_0000_0003, 0xe400_0000_0000_0000)),
    ] {
        assert_eq!(bench.set(0, slot, mfn << 12 | flags), 0);
        assert_eq!(bench.words(mfn), words);
    }
    assert_eq!(bench.mmu(&[(bench.at(0, 0), 0), (bench.at(0, 1), 0)]), (0, 2));
    assert_eq!(bench.words(mfn), (0x8000_0000_0000_0001, 0xe400_0000_0000_0000));
}

#[test]
fn a007_a011_a012_type_words_follow_pins_and_plain_stores() {
    let bench = Bench::new();
    bench.read_only(0);
    assert_eq!(bench.taf(0), 0xe400_0000_0000_0000);
    assert_eq!(bench.ext(PIN_L1, bench.mfn(0)), 0);
    assert_eq!(bench.taf(0), 0x2c00_0000_0000_0001);
    assert_eq!(bench.ext(UNPIN, bench.mfn(0)), 0);
    assert_eq!(bench.taf(0), 0x2000_0000_0000_0000);
    assert_eq!(bench.set(0, 1, 0xffff_ffff_ffff_f0ff), 0);
    assert_eq!(bench.taf(0), 0xe400_0000_0000_0000);
}

#[test]
fn a008_a009_a_refused_pin_shows_the_type_in_the_layout_of_its_release() {
    for (release, saw, expected) in [
        (Release::V4_9, 0x7400_0000_0000_0001, 0x1000_0000_0000_0000),
        (Release::V4_14, 0xe400_0000_0000_0001, 0x2000_0000_0000_0000),
        (Release::V4_17, 0xe400_0000_0000_0001, 0x2000_0000_0000_0000),
    ] {
        let bench = Bench::on(release);
        let mfn = bench.mfn(0);
        bench.clear_log();
        assert_eq!(bench.ext(PIN_L1, mfn), EINVAL);
        let [bad, pinning] = &bench.log()[..] else { panic!("two lines") };
        assert_eq!(*bad, bench.bad_type(saw, expected, mfn));
        assert_eq!(*pinning, format!("Error -22 while pinning mfn {mfn:05x}"));
    }
}

#[test]
fn a013_bad_flags_refuse_the_pin_and_forget_the_type() {
    let cases = [
        (Bench::new(), 0xffff_ffff_ffff_f0ff, "400098"),
        (Bench::new(), 0xbfff_ffff_ffff_f0ff, "98"),
        (Bench::dom0(), 0xffff_ffff_ffff_f0ff, "400000"),
    ];
    for (bench, entry, flags) in cases {
        bench.contents(0, &[(1, entry)]);
        let mfn = bench.mfn(0);
        bench.clear_log();
        assert_eq!(bench.ext(PIN_L1, mfn), EINVAL);
        let log = bench.log();
        assert_eq!(log[0], format!("Bad L1 flags {flags}"));
        assert_eq!(log[1], "Failure -22 in promote_l1_table: slot 0x1");
        let pfn = bench.m2p(mfn);
        // References: its owner's, the read-only mapping's, and the one being taken.
        assert_eq!(
            log[2],
            format!(
                "Error while validating mfn {mfn:05x} (pfn {pfn:05x}) for type 2000000000000000: \
                 caf=8000000000000003 taf=2000000000000001"
            )
        );
        assert_eq!(log[3], format!("Error -22 while pinning mfn {mfn:05x}"));
        assert_eq!(log.len(), 4);
        assert_eq!(bench.taf(0), 0);
    }
}

#[test]
fn a014_a_refused_upper_table_forgets_or_keeps_its_bare_type() {
    for level in 2..=4 {
        for slot in [0, 5] {
            let bench = Bench::new();
            // Page 2 is mapped writable, so it cannot be a table; page 1 is one that the walk
            // accepts before.
            let good = bench.to(1, 0x67);
            bench.contents(1, &[]);
            let mut words = vec![(slot, bench.to(2, 0x67))];
            if slot > 0 {
                words.push((0, good));
            }
            bench.contents(0, &words);
            let before = (bench.words(bench.mfn(1)), bench.words(bench.mfn(2)));
            assert_eq!(bench.ext(level - 1, bench.mfn(0)), EINVAL);
            let bare = if slot == 0 { 0 } else { level << 61 };
            assert_eq!(bench.taf(0), bare, "L{level} slot {slot}");
            let (caf1, _) = bench.words(bench.mfn(1));
            assert_eq!((caf1, bench.words(bench.mfn(2))), (before.0.0, before.1));
            assert_eq!(bench.map(0, RW), 0);
        }
    }
}

#[test]
fn a015_a_table_being_edited_shows_its_lock() {
    let bench = Bench::new();
    bench.contents(0, &[]);
    bench.pinned(1, 2, &[(0, bench.to(0, 0x67))]);
    assert_eq!(bench.taf(0), 0x2400_0000_0000_0001);
    assert_eq!(bench.set(0, 4, bench.to(0, RW)), EBUSY);
    let bad = bench.bad_type(0x3400_0000_0000_0002, 0xe000_0000_0000_0000, bench.mfn(0));
    assert_eq!(bench.log()[0], bad);
}

#[test]
fn a016_a_change_of_type_flushes_and_a_return_to_the_same_does_not() {
    let bench = Bench::new();
    bench.read_only(0);
    let flushes = || {
        let Statistics { type_flushes, .. } = bench.model.statistics();
        type_flushes
    };
    let start = flushes();
    assert_eq!(bench.ext(PIN_L1, bench.mfn(0)), 0);
    assert_eq!(flushes(), start + 1, "writable to L1");
    assert_eq!(bench.ext(UNPIN, bench.mfn(0)), 0);
    assert_eq!(bench.ext(PIN_L1, bench.mfn(0)), 0);
    assert_eq!(flushes(), start + 1, "L1 to L1");
    assert_eq!(bench.ext(UNPIN, bench.mfn(0)), 0);
    assert_eq!(bench.map(0, RW), 0);
    assert_eq!(flushes(), start + 2, "L1 to writable");
    assert_eq!(bench.map(0, P), 0);
    assert_eq!(bench.map(0, RW), 0);
    assert_eq!(flushes(), start + 2, "writable to writable");
}

#[test]
fn a017_counts_add_up_after_any_calls() {
    let bench = Bench::new();
    for k in 0..200u64 {
        let (a, b) = (k * 7 % 6, k * 5 % 6);
        let _ = bench.mmu(&[(bench.at(a, k % 4), bench.to(b, [P, RW, 0x67, 0][(k % 4) as usize]))]);
        let _ = bench.ext(k % 5, bench.mfn(b));
        let _ = bench.map(a, [P, RW][(k % 2) as usize]);
        bench.audit();
    }
}
