//! Group B: L1 entries, as `mmu_update`, `update_va_mapping`, promotion and emulated writes see
//! them.

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
fn b018_b021_refused_flags_are_named() {
    for (release, flags, shown) in [
        (Release::V4_17, 0x80, "80"),
        (Release::V4_17, 0x18, "18"),
        (Release::V4_17, 1 << 62, "400000"),
        (Release::V4_20, 0x80, "0x80"),
    ] {
        let bench = table(Bench::on(release));
        assert_eq!(bench.set(0, 0, bench.to(1, RW | flags)), EINVAL);
        assert_eq!(bench.log(), [format!("Bad L1 flags {shown}")]);
    }
}

#[test]
fn b019_a_global_kernel_entry_is_remarked_on() {
    let bench = table(Bench::new());
    assert_eq!(bench.set(0, 0, bench.to(1, 1 << 52 | 0x167)), 0);
    assert_eq!(bench.log(), [format!("Global bit is set in kernel page {:x}", bench.mfn(1))]);
}

#[test]
fn b022_frames_that_are_no_ram_are_named() {
    let bench = table(Bench::new());
    assert_eq!(bench.set(0, 0, 0x000f_ffff_ffff_f001), EINVAL);
    assert_eq!(bench.log(), [""; 0]);
    assert_eq!(bench.set(0, 0, 0xa0 << 12 | RW), EPERM);
    assert_eq!(bench.log(), ["d1 non-privileged attempt to map MMIO space 000a0"]);
    let dom0 = table(Bench::dom0());
    assert_eq!(dom0.set(0, 1, 0xfee00 << 12 | RW), EPERM);
    assert_eq!(dom0.log(), ["d0 non-privileged attempt to map MMIO space fee00"]);
}

#[test]
fn b023_b027_the_real_owner_of_a_frame_is_named() {
    let bench = table(Bench::new());
    let freed = bench.populate(&[3000])[0];
    assert_eq!(bench.decrease(&[freed]), 1);
    for (mfn, on_behalf, owners) in [
        (bench.foreign(), SELF, "pg_owner d1 l1e_owner d1, but real_pg_owner d0"),
        (freed, SELF, "pg_owner d1 l1e_owner d1, but real_pg_owner d-1"),
        (bench.mfn(1), IO, "pg_owner d32753 l1e_owner d1, but real_pg_owner d1"),
    ] {
        bench.clear_log();
        assert_eq!(bench.mmu_for(&[(bench.at(0, 0), mfn << 12 | RW)], on_behalf).0, EBUSY);
        let log = bench.log();
        assert_eq!(log[0], owners);
        assert!(log[1].starts_with(&format!("Error getting mfn {mfn:05x} (pfn ")), "{log:?}");
        assert_eq!(log[1].contains("(pfn ffffffffffffffff)"), mfn == freed, "{log:?}");
    }
}

#[test]
fn a010_b024_a_writable_mapping_of_a_table_is_refused_in_three_lines() {
    let bench = table(Bench::new());
    bench.pinned(1, 1, &[]);
    let mfn = bench.mfn(1);
    assert_eq!(bench.set(0, 0, bench.to(1, RW)), EBUSY);
    let getting = error_getting(&bench, mfn, bench.to(1, RW | 1 << 52 | 4));
    let bad = bench.bad_type(0x2c00_0000_0000_0001, 0xe000_0000_0000_0000, mfn);
    assert_eq!(bench.log(), [bad, "Could not get page type PGT_writable_page".into(), getting]);
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
