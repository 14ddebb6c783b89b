//! Group B: L1 entries, as `mmu_update`, `update_va_mapping`, promotion and emulated writes see
//! them.

use hypercall::{Mfn, Pfn};
use xen_model::{Release, SelfSnoop, number};

use crate::support::{Bench, EBUSY, EINVAL, EPERM, IO, P, PIN_L1, RW, SELF};

/// A live L1 table in page 0 of a bench.
fn table(bench: Bench) -> Bench {
    bench.pinned(0, 1, &[]);
    bench
}

/// The line that ends every refusal of an L1 entry.
fn error_getting(bench: &Bench, mfn: u64, entry: u64) -> String {
    let (pfn, id) = (bench.m2p(mfn), bench.guest().domain());
    format!(
        "Error getting mfn {mfn:05x} (pfn {pfn:05x}) from L1 entry {entry:016x} \
         for l1e_owner d{id}, pg_owner d{id}"
    )
}

#[test]
fn b018_cache_bits_are_dom0s_alone() {
    let bench = table(Bench::new());
    assert_eq!(bench.set(0, 0, bench.to(1, 0x83)), EINVAL);
    assert_eq!(bench.set(0, 0, bench.to(1, 0x1b)), EINVAL);
    assert_eq!(bench.log(), ["Bad L1 flags 80", "Bad L1 flags 18"]);
    let bench = table(Bench::on(Release::V4_20));
    assert_eq!(bench.set(0, 0, bench.to(1, 0x83)), EINVAL);
    assert_eq!(bench.log(), ["Bad L1 flags 0x80"]);
    let bench = table(Bench::dom0());
    assert_eq!(bench.set(0, 0, bench.to(1, 0x83)), 0);
    assert_eq!(bench.set(0, 1, bench.to(1, 0x1b)), 0);
}

#[test]
fn b019_entries_are_adjusted() {
    let bench = table(Bench::new());
    let kernel = 1 << 52;
    let cases = [
        (0x63, kernel | 0x67),
        (0x01, kernel | 0x05),
        (0x103, kernel | 0x107),
        (0x67, 0x167),
        (0x05, 0x105),
        (0x167 | kernel, 0x167 | kernel),
    ];
    for (written, read) in cases {
        assert_eq!(bench.set(0, 0, 0), 0);
        assert_eq!(bench.log(), [""; 0]);
        assert_eq!(bench.set(0, 0, bench.to(1, written)), 0);
        assert_eq!(bench.entry(0, 0), bench.to(1, read), "{written:x}");
    }
    let frame = bench.mfn(1);
    assert_eq!(bench.log(), [format!("Global bit is set in kernel page {frame:x}")]);
}

#[test]
fn b020_what_is_not_present_is_stored_verbatim() {
    let bench = table(Bench::new());
    for word in [0x0001_2345_6789_0ab0, 0x0dea_dbee_f1fe] {
        assert_eq!(bench.set(0, 3, word), 0);
        assert_eq!(bench.entry(0, 3), word);
        bench.contents(1, &[(3, word)]);
        assert_eq!(bench.ext(PIN_L1, bench.mfn(1)), 0);
        assert_eq!(bench.entry(1, 3), word);
        bench.ext(4, bench.mfn(1));
    }
}

#[test]
fn b021_bit_62_is_the_debug_builds() {
    let entry = |bench: &Bench| bench.to(1, 1 << 62 | RW);
    let bench = table(Bench::release_build());
    assert_eq!(bench.set(0, 0, entry(&bench)), 0);
    let bench = table(Bench::new());
    assert_eq!(bench.set(0, 0, entry(&bench)), EINVAL);
    assert_eq!(bench.log(), ["Bad L1 flags 400000"]);
}

#[test]
fn without_nx_the_bit_is_refused_at_every_level_and_stored_where_nothing_is_present() {
    let nx = 1 << 63;
    let bench = table(Bench::of(Bench::builder().no_nx()));
    assert_eq!(bench.set(0, 0, bench.to(1, nx | RW)), EINVAL);
    assert_eq!(bench.log(), ["Bad L1 flags 800000"]);
    assert_eq!(bench.set(0, 0, bench.to(1, RW)), 0);
    assert_eq!(bench.set(0, 1, nx | 0x1000), 0, "not present");
    bench.contents(2, &[(0, bench.to(3, nx | P))]);
    assert_eq!(bench.ext(PIN_L1, bench.mfn(2)), EINVAL);
    assert_eq!(bench.log()[0], "Bad L1 flags 800000");
    bench.contents(4, &[(0, bench.to(0, nx | P))]);
    assert_eq!(bench.ext(PIN_L1 + 1, bench.mfn(4)), EINVAL);
    assert_eq!(bench.log()[0], "Bad L2 flags 800000");
}

#[test]
fn b022_frames_that_are_no_ram() {
    let bench = table(Bench::new());
    assert_eq!(bench.set(0, 0, 0x000f_ffff_ffff_f001), EINVAL);
    assert_eq!(bench.log(), [""; 0]);
    assert_eq!(bench.set(0, 0, 0xfe000 << 12 | P), EPERM);
    assert_eq!(bench.set(0, 0, 0xa0 << 12 | RW), EPERM);
    assert_eq!(
        bench.log(),
        [
            "d1 non-privileged attempt to map MMIO space fe000",
            "d1 non-privileged attempt to map MMIO space 000a0"
        ]
    );
}

#[test]
fn b022_dom0_maps_devices_but_those_that_are_xens() {
    let bench = table(Bench::dom0());
    assert_eq!(bench.set(0, 0, 0xfed00 << 12 | RW), 0, "a timer");
    for frame in [0xfee00, 0xfeec2, 0xfeeff] {
        assert_eq!(bench.set(0, 1, frame << 12 | RW), EPERM, "{frame:x}");
        let line = format!("d0 non-privileged attempt to map MMIO space {frame:05x}");
        assert_eq!(bench.log(), [line]);
    }
    assert_eq!(bench.set(0, 1, 0xfef00 << 12 | RW), 0, "behind the window");
    assert_eq!(bench.set(0, 2, 0xfec00 << 12 | RW), 0, "the IO-APIC");
    assert_eq!(bench.entry(0, 2) & 2, 0, "for reading");
}

#[test]
fn b023_frames_of_others_are_busy() {
    let bench = table(Bench::new());
    let foreign = bench.foreign();
    for flags in [P, RW] {
        assert_eq!(bench.set(0, 0, foreign << 12 | flags), EBUSY);
        let log = bench.log();
        assert_eq!(log[0], "pg_owner d1 l1e_owner d1, but real_pg_owner d0");
        assert!(log[1].starts_with(&format!("Error getting mfn {foreign:05x}")), "{log:?}");
    }
    let freed = bench.populate(&[3000])[0];
    assert_eq!(bench.decrease(&[freed]), 1);
    bench.clear_log();
    assert_eq!(bench.set(0, 0, freed << 12 | P), EBUSY);
    let log = bench.log();
    assert_eq!(log[0], "pg_owner d1 l1e_owner d1, but real_pg_owner d-1");
    assert!(log[1].contains("(pfn ffffffffffffffff)"), "{log:?}");
}

#[test]
fn b024_writable_mappings_of_tables_are_refused_in_three_lines() {
    let bench = table(Bench::new());
    bench.pinned(1, 1, &[]);
    bench.contents(2, &[]);
    bench.put(bench.scratch(0), &[bench.mfn(2)]);
    assert_eq!(bench.call(number::SET_GDT, [bench.scratch(0), 1, 0, 0, 0]), 0);
    for page in [1, 2] {
        bench.clear_log();
        assert_eq!(bench.set(0, 0, bench.to(page, RW)), EBUSY);
        let log = bench.log();
        assert!(log[0].starts_with("Bad type (saw "), "{log:?}");
        assert_eq!(log[1], "Could not get page type PGT_writable_page");
        assert!(log[2].starts_with("Error getting mfn"), "{log:?}");
        assert_eq!(log.len(), 3);
    }
}

#[test]
fn b025_the_line_shows_the_entry_adjusted_or_raw() {
    let bench = table(Bench::new());
    bench.pinned(1, 1, &[]);
    let (mfn, raw) = (bench.mfn(1), bench.to(1, RW));
    let adjusted = raw | 0x0010_0000_0000_0004;
    let last = || bench.log().pop().expect("a line");
    assert_eq!(bench.set(0, 0, raw), EBUSY);
    assert_eq!(last(), error_getting(&bench, mfn, adjusted));
    let va = bench.va(3);
    assert_eq!(bench.call(number::UPDATE_VA_MAPPING, [va, raw, 0, 0, 0]), EBUSY);
    assert_eq!(last(), error_getting(&bench, mfn, adjusted));
    bench.contents(2, &[(0, raw)]);
    assert_eq!(bench.ext(PIN_L1, bench.mfn(2)), EBUSY);
    assert_eq!(bench.log()[2], error_getting(&bench, mfn, raw));
    assert_eq!(bench.call(number::VM_ASSIST, [0, 2, 0, 0, 0]), 0);
    bench.clear_log();
    let store = bench.guest().store(bench.va(0), &raw.to_le_bytes(), xen_model::Mode::Kernel);
    assert!(store.is_err());
    assert_eq!(bench.log()[2], error_getting(&bench, mfn, raw));
    // Before 4.15 the entry is shown as it came.
    let old = table(Bench::on(Release::V4_14));
    old.pinned(1, 1, &[]);
    let raw = old.to(1, RW);
    assert_eq!(old.set(0, 0, raw), EBUSY);
    assert_eq!(old.log()[2], error_getting(&old, old.mfn(1), raw));
}

#[test]
fn b026_preserve_ad_keeps_accessed_and_dirty() {
    let bench = table(Bench::new());
    let kernel = 1 << 52 | 4;
    assert_eq!(bench.set(0, 0, bench.to(1, 0x63)), 0);
    assert_eq!(bench.mmu(&[(bench.at(0, 0) | 2, bench.to(1, 0x3))]).0, 0);
    assert_eq!(bench.entry(0, 0), bench.to(1, kernel | 0x63));
    assert_eq!(bench.set(0, 0, bench.to(1, 0x3)), 0);
    assert_eq!(bench.entry(0, 0), bench.to(1, kernel | 0x3));
}

#[test]
fn b027_domid_io_maps_no_ram() {
    let bench = table(Bench::new());
    let write = |value| bench.mmu_for(&[(bench.at(0, 0), value)], IO).0;
    assert_eq!(write(bench.to(1, RW)), EBUSY);
    assert_eq!(bench.log()[0], "pg_owner d32753 l1e_owner d1, but real_pg_owner d1");
    assert_eq!(bench.set(0, 0, bench.to(1, RW)), 0);
    assert_eq!(write(bench.to(1, RW | 0x60)), 0);
}

#[test]
fn b028_a_foreign_grant_entry_changes_only_by_the_fast_path() {
    let bench = table(Bench::release_build());
    let dom0 = bench.model.vcpu(0, 0).expect("dom0");
    let frame = dom0.built_mfn(Pfn::new(700)).expect("a page");
    let entry = xen_model::GrantEntry { flags: 1, domain: 1, frame };
    dom0.write_grant(8, entry).expect("an entry");
    let map = bench.scratch(0);
    bench.put(map, &[bench.at(0, 0), 8 << 32 | 18, 0, 0]);
    assert_eq!(bench.call(number::GRANT_TABLE_OP, [0, map, 1, 0, 0]), 0);
    assert_eq!(bench.word_at(map + 16) >> 16 & 0xffff, 0, "status");
    let mapped = bench.entry(0, 0);
    assert_eq!(bench.set(0, 0, mapped & !(1 << 63)), 0, "NX");
    assert_eq!(bench.set(0, 0, mapped & !0x60), 0, "accessed and dirty");
    assert_eq!(bench.set(0, 0, mapped & !2), EBUSY, "RW");
}

#[test]
fn b029_replacing_an_entry_by_its_like_never_fails() {
    let bench = table(Bench::new());
    bench.unmap(1);
    for flags in [P, RW, P, RW, RW] {
        assert_eq!(bench.set(0, 0, bench.to(1, flags)), 0);
    }
    let before = (bench.caf(1), bench.taf(1));
    assert_eq!(bench.set(0, 0, bench.foreign() << 12 | RW), EBUSY);
    assert_eq!((bench.caf(1), bench.taf(1)), before);
    assert_eq!(bench.entry(0, 0) & 0xfff, 0x7);
}

#[test]
fn b030_every_writable_mapping_must_go_before_a_pin() {
    let bench = table(Bench::new());
    bench.unmap(1);
    for index in 0..2 {
        assert_eq!(bench.set(0, index, bench.to(1, RW)), 0);
    }
    for k in 0..512 {
        bench.model.poke(Mfn::new(bench.mfn(1)), k, 0);
    }
    assert_eq!(bench.set(0, 0, 0), 0);
    assert_eq!(bench.ext(PIN_L1, bench.mfn(1)), EINVAL);
    assert_eq!(bench.set(0, 1, 0), 0);
    assert_eq!(bench.ext(PIN_L1, bench.mfn(1)), 0);
}

#[test]
fn b031_l1_updates_flush_nothing() {
    let bench = table(Bench::new());
    let before = bench.model.statistics();
    for flags in [RW, P, 0] {
        assert_eq!(bench.set(0, 0, bench.to(1, flags)), 0);
    }
    assert_eq!(bench.model.statistics(), before);
}

#[test]
fn b032_write_combining_is_noted_without_self_snoop() {
    let bench = Bench::of(Bench::dom0_builder().self_snoop(SelfSnoop::Absent));
    let bench = table(bench);
    bench.unmap(1);
    assert_eq!(bench.set(0, 0, bench.to(1, 0x83)), 0);
    bench.clear_log();
    assert_eq!(bench.ext_for(&[(PIN_L1, bench.mfn(1), 0)], SELF).0, EINVAL);
    assert!(bench.log()[0].contains("saw e480000000000001"));
}
