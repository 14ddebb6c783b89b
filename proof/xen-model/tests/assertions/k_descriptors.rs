//! Group K: descriptor tables.

use xen_model::number;

use crate::support::{Bench, EBUSY, EFAULT, EINVAL, RW};

const CODE: u64 = 0x00af_9b00_0000_ffff;
const TSS: u64 = 0x0000_8900_0000_0067;

fn set_gdt(bench: &Bench, pages: &[u64], entries: u64) -> i64 {
    let list: Vec<u64> = pages.iter().map(|page| bench.mfn(*page)).collect();
    bench.put(bench.scratch(3), &list);
    bench.call(number::SET_GDT, [bench.scratch(3), entries, 0, 0, 0])
}

#[test]
fn k103_a_gdt_frame_is_mapped_read_only_and_lowered() {
    let bench = Bench::new();
    bench.clear_log();
    assert_eq!(set_gdt(&bench, &[0], 512), EINVAL);
    let bad = bench.bad_type(0xe400_0000_0000_0001, 0xa000_0000_0000_0000, bench.mfn(0));
    assert_eq!(bench.log(), [bad]);
    bench.contents(0, &[(1, CODE)]);
    assert_eq!(set_gdt(&bench, &[0], 512), 0);
    assert_eq!(bench.entry(0, 1), 0x00af_fb00_0000_ffff);
    assert_eq!(bench.taf(0), 0xa400_0000_0000_0001);
}

#[test]
fn k104_a_live_gdt_frame_takes_descriptors_only() {
    let bench = Bench::new();
    bench.contents(0, &[]);
    bench.pinned(1, 1, &[]);
    assert_eq!(set_gdt(&bench, &[0], 512), 0);
    assert_eq!(bench.map(0, RW), EBUSY);
    bench.clear_log();
    assert_eq!(bench.set(0, 0, 0), EINVAL);
    assert_eq!(bench.log(), [""; 0]);
    let update = |at, word| bench.call(number::UPDATE_DESCRIPTOR, [at, word, 0, 0, 0]);
    assert_eq!(update(bench.at(0, 2), CODE), 0);
    assert_eq!(bench.entry(0, 2), 0x00af_fb00_0000_ffff);
    assert_eq!(update(bench.at(0, 2), TSS), EINVAL);
    assert_eq!(update(bench.at(0, 2) + 1, CODE), EINVAL);
    assert_eq!(update(bench.at(1, 2), CODE), EINVAL, "a live table");
    assert_eq!(set_gdt(&bench, &[0], 7169), EINVAL);
    assert_eq!(bench.call(number::SET_GDT, [0x1000_0000, 1, 0, 0, 0]), EFAULT);
}

#[test]
fn k105_a_released_gdt_frame_is_a_page_again() {
    let bench = Bench::new();
    bench.contents(0, &[]);
    assert_eq!(set_gdt(&bench, &[0], 1), 0);
    assert_eq!(set_gdt(&bench, &[], 0), 0);
    assert_eq!(bench.set(0, 0, 0x1234), 0);
    assert_eq!(bench.taf(0), 0xe400_0000_0000_0000);
    bench.contents(1, &[(4, TSS)]);
    bench.clear_log();
    assert_eq!(set_gdt(&bench, &[1], 512), EINVAL);
    assert!(bench.log()[0].contains("for type a000000000000000"));
}
