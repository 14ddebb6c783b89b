//! Group A of the specification's checklist: page state.

use crate::support::{Bench, EBUSY, EINVAL, P, PIN_L1, RW, SELF, UNPIN};
use hypercall::Mfn;
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
fn a001_populate_gives_an_untyped_frame() {
    let bench = Bench::new();
    let mfn = bench.populate(&[0x1234])[0];
    assert_eq!(bench.words(mfn), (0x8000_0000_0000_0001, 0));
    assert_eq!(bench.m2p(mfn), 0x1234);
}

#[test]
fn a002_increase_leaves_m2p_unset() {
    let bench = Bench::new();
    let (result, list) = bench.reserve(0, &[0], 0, SELF);
    assert_eq!(result, 1);
    assert_eq!(bench.m2p(list[0]), u64::MAX);
}

#[test]
fn a003_each_writable_mapping_counts_once() {
    let bench = with_table();
    let mfn = fresh(&bench);
    assert_eq!(bench.set(0, 0, mfn << 12 | RW), 0);
    assert_eq!(bench.words(mfn), (0x8000_0000_0000_0002, 0xe400_0000_0000_0001));
    assert_eq!(bench.set(0, 1, mfn << 12 | RW), 0);
    assert_eq!(bench.words(mfn), (0x8000_0000_0000_0003, 0xe400_0000_0000_0002));
}

#[test]
fn a004_type_and_validated_stay_when_the_last_mapping_goes() {
    let bench = with_table();
    let mfn = fresh(&bench);
    assert_eq!(bench.set(0, 0, mfn << 12 | RW), 0);
    assert_eq!(bench.set(0, 0, 0), 0);
    assert_eq!(bench.words(mfn), (0x8000_0000_0000_0001, 0xe400_0000_0000_0000));
}

#[test]
fn a005_a_read_only_mapping_takes_no_use_whatever_the_type() {
    let bench = with_table();
    let root = bench.guest().kernel_root().expect("root").raw();
    bench.contents(1, &[]);
    bench.put(bench.scratch(0), &[bench.mfn(1)]);
    assert_eq!(bench.call(2, [bench.scratch(0), 1, 0, 0, 0]), 0, "a GDT");
    for mfn in [root, bench.mfn(0), bench.mfn(1), bench.mfn(2), fresh(&bench)] {
        let (caf, taf) = bench.words(mfn);
        assert_eq!(bench.set(0, 7, mfn << 12 | P), 0);
        let own = u64::from(mfn == bench.mfn(0));
        assert_eq!(bench.words(mfn), (caf + 1, taf), "mfn {mfn:x} {own}");
        assert_eq!(bench.set(0, 7, 0), 0);
    }
}

#[test]
fn a006_going_read_only_drops_the_use_and_keeps_the_reference() {
    let bench = with_table();
    let mfn = fresh(&bench);
    assert_eq!(bench.set(0, 0, mfn << 12 | RW), 0);
    assert_eq!(bench.set(0, 0, mfn << 12 | P), 0);
    assert_eq!(bench.words(mfn), (0x8000_0000_0000_0002, 0xe400_0000_0000_0000));
}

#[test]
fn a007_a_zeroed_read_only_page_can_be_pinned() {
    let bench = Bench::new();
    bench.read_only(0);
    assert_eq!(bench.taf(0), 0xe400_0000_0000_0000);
    assert_eq!(bench.ext(PIN_L1, bench.mfn(0)), 0);
    assert_eq!(bench.taf(0), 0x2c00_0000_0000_0001);
}

#[test]
fn a008_a_writable_alias_refuses_the_pin() {
    let bench = Bench::new();
    let mfn = bench.mfn(0);
    bench.clear_log();
    assert_eq!(bench.ext_for(&[(PIN_L1, mfn, 0)], SELF), (EINVAL, 0));
    let bad = bench.bad_type(0xe400_0000_0000_0001, 0x2000_0000_0000_0000, mfn);
    assert_eq!(bench.log(), [bad, format!("Error -22 while pinning mfn {mfn:05x}")]);
}

#[test]
fn a009_the_same_in_the_old_layout() {
    let bench = Bench::on(Release::V4_9);
    let mfn = bench.mfn(0);
    bench.clear_log();
    assert_eq!(bench.ext(PIN_L1, mfn), EINVAL);
    let bad = bench.bad_type(0x7400_0000_0000_0001, 0x1000_0000_0000_0000, mfn);
    assert_eq!(bench.log()[0], bad);
}

#[test]
fn a010_a_pinned_table_refuses_a_writable_alias() {
    let bench = with_table();
    bench.pinned(1, 1, &[]);
    assert_eq!(bench.set(0, 0, bench.to(1, RW)), EBUSY);
    let bad = bench.bad_type(0x2c00_0000_0000_0001, 0xe000_0000_0000_0000, bench.mfn(1));
    assert_eq!(bench.log()[0], bad);
}

#[test]
fn a011_unpinning_leaves_type_and_adjusted_entries() {
    let bench = Bench::new();
    bench.pinned(0, 1, &[(0, bench.to(1, 0x63))]);
    assert_eq!(bench.ext(UNPIN, bench.mfn(0)), 0);
    assert_eq!(bench.taf(0), 0x2000_0000_0000_0000);
    assert_eq!(bench.entry(0, 0), bench.to(1, 0x0010_0000_0000_0067));
}

#[test]
fn a012_mmu_update_writes_anything_into_an_unused_frame() {
    for type_before in [0, 0x2000_0000_0000_0000] {
        let bench = Bench::new();
        let mfn = fresh(&bench);
        if type_before != 0 {
            for k in 0..512 {
                bench.model.poke(Mfn::new(mfn), k, 0);
            }
            assert_eq!(bench.ext(PIN_L1, mfn), 0);
            assert_eq!(bench.ext(UNPIN, mfn), 0);
        }
        assert_eq!(bench.words(mfn).1, type_before);
        assert_eq!(bench.mmu(&[(mfn << 12 | 8, 0xffff_ffff_ffff_f0ff)]).0, 0);
        assert_eq!(bench.model.word(Mfn::new(mfn), 1), Some(0xffff_ffff_ffff_f0ff));
        assert_eq!(bench.words(mfn).1, 0xe400_0000_0000_0000);
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
