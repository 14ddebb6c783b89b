//! Group G: multicalls.

use xen_model::number;

use crate::support::{Bench, EBUSY, EFAULT, EINVAL, ENOSYS, P, RW};

/// Words of a multicall entry.
fn entry(op: u64, arguments: [u64; 5]) -> [u64; 8] {
    let [a, b, c, d, e] = arguments;
    [op, 0x55, a, b, c, d, e, 0x66]
}

fn multicall(bench: &Bench, entries: &[[u64; 8]]) -> (i64, Vec<[u64; 8]>) {
    let list = bench.scratch(5);
    bench.put(list, entries.as_flattened());
    let result = bench.call(number::MULTICALL, [list, entries.len() as u64, 0, 0, 0]);
    let read = |k: usize| core::array::from_fn(|w| bench.word_at(list + (k * 8 + w) as u64 * 8));
    (result, (0..entries.len()).map(read).collect())
}

#[test]
fn g076_refusals_stay_in_their_entries() {
    let bench = Bench::new();
    bench.pinned(0, 1, &[]);
    bench.pinned(1, 1, &[]);
    let map = |page: u64, to: u64| {
        entry(number::UPDATE_VA_MAPPING, [bench.va(page), bench.to(to, RW), 0, 0, 0])
    };
    let nested = entry(number::MULTICALL, [bench.scratch(5), 1, 0, 0, 0]);
    bench.unmap(3);
    bench.clear_log();
    let (result, entries) = multicall(&bench, &[map(2, 1), map(3, 3), entry(99, [0; 5]), nested]);
    assert_eq!(result, 0);
    let results: Vec<i64> = entries.iter().map(|entry| entry[1].cast_signed()).collect();
    assert_eq!(results, [EBUSY, 0, ENOSYS, EINVAL]);
    assert_eq!(bench.log().pop().as_deref(), Some("Multicall reentry is disallowed."));
    assert_eq!(bench.guest().l1_slot(bench.va(3)).map(|(_, e)| e.is_writable()), Some(true));
}

#[test]
fn g077_debug_builds_overwrite_entries() {
    let call = entry(number::XEN_VERSION, [0; 5]);
    let (_, entries) = multicall(&Bench::new(), &[call]);
    let aa = 0xaaaa_aaaa_aaaa_aaaa;
    assert_eq!(entries, [[aa, 0x4_0011, aa, aa, aa, aa, aa, aa]]);
    let (_, entries) = multicall(&Bench::release_build(), &[call]);
    let [op, _, rest @ ..] = call;
    assert_eq!((entries[0][0], &entries[0][2..]), (op, &rest[..]));
}

#[test]
fn g078_lists_that_cannot_be_used() {
    let bench = Bench::release_build();
    let call = |list, count| bench.call(number::MULTICALL, [list, count, 0, 0, 0]);
    assert_eq!(call(0xffff_8100_0000_0000, 1), EFAULT);
    assert_eq!(call(0x1000_0000, 1), EFAULT);
    assert_eq!(call(0x1000_0000, 0), 0);
    // The second entry is not mapped; the first one runs.
    bench.unmap(1);
    bench.unmap(2);
    let list = bench.va(1) - 64;
    let map = [bench.va(2), bench.to(2, P), 0, 0, 0];
    bench.put(list, &entry(number::UPDATE_VA_MAPPING, map));
    assert_eq!(call(list, 2), EFAULT);
    assert!(bench.guest().l1_slot(bench.va(2)).is_some_and(|(_, entry)| entry.is_present()));
    // The result cannot be written.
    bench.put(bench.va(3), &entry(number::XEN_VERSION, [0; 5]));
    bench.read_only(3);
    assert_eq!(call(bench.va(3), 1), EFAULT);
}
