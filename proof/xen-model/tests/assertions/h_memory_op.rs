//! Group H: `memory_op`.

use hypercall::Pfn;
use xen_model::{BootMapping, DomainConfig, Model, Role, number};

use crate::support::{Bench, EACCES, EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ESRCH, P, RW, SELF};

const EXCHANGE: u64 = 11;

/// `XENMEM_exchange`. Answers the result, `nr_exchanged`, and the taken list.
fn exchange(
    bench: &Bench,
    give: (&[u64], u64),
    take: (&[u64], u64),
    done: u64,
) -> (i64, u64, Vec<u64>) {
    let (given, taken) = (bench.scratch(4), bench.scratch(5));
    bench.put(given, give.0);
    bench.put(taken, take.0);
    let words =
        [given, give.0.len() as u64, give.1, SELF, taken, take.0.len() as u64, take.1, SELF, done];
    let (result, words) = bench.memory(EXCHANGE, words);
    let list = (0..take.0.len() as u64).map(|k| bench.word_at(taken + k * 8)).collect();
    (result, words[8], list)
}

#[test]
fn h079_a_mapped_page_is_given_up_but_stays() {
    let bench = Bench::new();
    let (total, mfn) = (bench.total(), bench.mfn(0));
    assert_eq!(bench.decrease(&[mfn]), 1);
    assert_eq!(bench.total(), total);
    assert_eq!(bench.m2p(mfn), bench.pfn(0));
    assert_eq!(bench.caf(0), 1);
    assert_eq!(bench.decrease(&[mfn]), 1);
    bench.unmap(0);
    assert_eq!(bench.total(), total - 1);
    assert_eq!(bench.m2p(mfn), u64::MAX);
    bench.clear_log();
    assert_eq!(bench.decrease(&[mfn]), 0);
    let last = bench.log().pop();
    assert_eq!(last, Some(format!("Bad page free for Dom1 GFN {mfn:x}")));
}

#[test]
fn h080_a_live_table_is_given_up_but_stays() {
    let bench = Bench::new();
    bench.pinned(0, 1, &[]);
    assert_eq!(bench.decrease(&[bench.mfn(0)]), 1);
    assert_eq!(bench.taf(0), 0x2c00_0000_0000_0001);
    assert_eq!(bench.set(0, 0, bench.to(1, P)), 0);
}

#[test]
fn h081_an_extent_that_fails_half_way_is_not_counted() {
    let bench = Bench::new();
    // An aligned pair of which the second frame goes first.
    let (result, list) = bench.reserve(6, &[3000], 1, SELF);
    assert_eq!(result, 1);
    assert_eq!(bench.decrease(&[list[0] + 1]), 1);
    let total = bench.total();
    assert_eq!(bench.reserve(1, &[list[0]], 1, SELF).0, 0);
    assert_eq!(bench.total(), total - 1, "the first frame is gone all the same");
}

#[test]
fn h082_nonsense_answers_zero() {
    let bench = Bench::new();
    bench.clear_log();
    for command in [0, 1, 6] {
        assert_eq!(bench.call(number::MEMORY_OP, [command, 0x1000_0000, 0, 0, 0]), 0);
        assert_eq!(bench.reserve(command, &[0], 0, 77).0, 0);
        assert_eq!(bench.reserve(command, &[0], 0, 0).0, 0, "another domain");
        let words = [bench.scratch(4), 0x400_0000, 0, SELF];
        assert_eq!(bench.memory(command, words).0, 0);
    }
    assert_eq!(bench.decrease(&[0x1234_5678]), 0);
    assert_eq!(bench.log(), ["Domain 1 page number 12345678 invalid"]);
    assert_eq!(bench.reserve(6, &[3000], 0, 1).0, 1, "its own number");
    // The second pfn cannot be read.
    bench.unmap(1);
    bench.put(bench.va(1) - 8, &[3001]);
    assert_eq!(bench.memory(6, [bench.va(1) - 8, 2, 0, SELF]).0, 1);
    assert_eq!(bench.memory(0, [0, 1, 0, SELF]).0, 1, "increase without a list");
}

#[test]
fn h083_a_domu_may_have_extents_of_order_9() {
    let guest =
        DomainConfig { boot_mapping: BootMapping::AllPages, ..DomainConfig::new(Role::DomU, 2048) };
    let bench = Bench::of(Model::builder().guest(guest).seed(3).spare_pages(8192));
    // Room below max_pages, which is 256 above what it has.
    for k in 0..300 {
        bench.unmap(k);
        assert_eq!(bench.decrease(&[bench.mfn(k)]), 1);
    }
    let (result, list) = bench.reserve(6, &[10000], 9, SELF);
    assert_eq!(result, 1);
    assert!(list[0].is_multiple_of(512));
    assert_eq!(bench.m2p(list[0] + 511), 10511);
    assert_eq!(bench.reserve(6, &[20000], 10, SELF).0, 0);
}

#[test]
fn h084_a_domain_cannot_grow_beyond_its_maximum() {
    let bench = Bench::new();
    bench.clear_log();
    let pfns: Vec<u64> = (3000..3300).collect();
    assert_eq!(bench.reserve(6, &pfns, 0, SELF).0, 256);
    let over = bench.total() + 1;
    assert_eq!(
        bench.log(),
        [
            format!("Over-allocation for d1: {over} > {}", over - 1),
            "Could not allocate order=0 extent: id=1 memflags=0 (256 of 300)".to_owned()
        ]
    );
}

#[test]
fn h085_an_occupied_pfn_gets_a_second_frame() {
    let bench = Bench::new();
    let pfn = bench.pfn(0);
    let info = bench.guest().start_info().expect("start_info");
    let before = bench.word_at(info.mfn_list + pfn * 8);
    let mfn = bench.populate(&[pfn])[0];
    assert_eq!((bench.m2p(mfn), bench.m2p(bench.mfn(0))), (pfn, pfn));
    assert_eq!(bench.word_at(info.mfn_list + pfn * 8), before);
}

#[test]
fn h086_an_unmapped_page_is_exchanged() {
    let bench = Bench::new();
    bench.unmap(0);
    let (total, mfn) = (bench.total(), bench.mfn(0));
    let (result, done, list) = exchange(&bench, (&[mfn], 0), (&[0x4321], 0), 0);
    assert_eq!((result, done), (0, 1));
    assert_eq!((bench.m2p(mfn), bench.m2p(list[0])), (u64::MAX, 0x4321));
    assert_eq!(bench.total(), total);
}

#[test]
fn h087_a_mapped_page_is_not_exchanged() {
    let bench = Bench::new();
    bench.unmap(0);
    bench.read_only(1);
    bench.clear_log();
    let give = [bench.mfn(0), bench.mfn(1)];
    let (result, done, _) = exchange(&bench, (&give, 0), (&[10, 11], 0), 0);
    assert_eq!((result, done), (EINVAL, 1));
    assert_eq!(bench.m2p(give[0]), u64::MAX);
    let (mfn, taf) = (give[1], bench.taf(1));
    assert_eq!(
        bench.log(),
        [format!("Bad steal mfn {mfn:05x} from d1 (owner d1) caf=8000000000000002 taf={taf:016x}")]
    );
}

#[test]
fn h088_many_small_extents_for_a_large_one() {
    let bench = Bench::new();
    let give: Vec<u64> = (0..512).map(|k| bench.mfn(k)).collect();
    for k in 0..512 {
        bench.unmap(k);
    }
    let (result, done, list) = exchange(&bench, (&give, 0), (&[0x8000], 9), 0);
    assert_eq!((result, done), (0, 512));
    assert!(list[0].is_multiple_of(512));
    for k in 0..512 {
        assert_eq!(bench.m2p(list[0] + k), 0x8000 + k);
    }
}

#[test]
fn h089_exchanges_that_make_no_sense() {
    let bench = Bench::new();
    bench.unmap(0);
    let mfn = bench.mfn(0);
    assert_eq!(exchange(&bench, (&[mfn], 0), (&[1, 2], 0), 0).0, EINVAL);
    assert_eq!(exchange(&bench, (&[mfn], 20), (&[1], 20), 0).0, EPERM);
    assert_eq!(exchange(&bench, (&[mfn], 0), (&[1], 0), 1).0, 0);
    assert_eq!(exchange(&bench, (&[mfn], 0), (&[1], 0), 2).0, EINVAL);
}

#[test]
fn h090_the_size_of_the_machine() {
    let bench = Bench::new();
    let end = bench.model.ram_end().raw();
    assert_eq!(bench.call(number::MEMORY_OP, [2, 0, 0, 0, 0]).cast_unsigned(), end);
    let (start, stop) = (0xffff_8000_0000_0000, 0xffff_8040_0000_0000);
    assert_eq!(bench.memory(12, [0; 3]), (0, [start, stop, 0x7_ffff_ffff]));
    let dom0 = Bench::dom0();
    let last = dom0.model.ram_end().raw() - 1;
    assert_eq!(dom0.memory(12, [0; 3]), (0, [start, stop, last]));
}

#[test]
fn h091_what_a_pv_guest_may_not_ask() {
    let bench = Bench::new();
    assert_eq!(bench.memory(7, [SELF, 0, 0]).0, EACCES);
    assert_eq!(bench.memory(7, [4 << 32 | SELF, 0, 0]).0, ENOSYS);
    assert_eq!(bench.memory(15, [SELF, 0]).0, EACCES);
    assert_eq!(bench.memory(10, [0, 0]).0, EPERM);
    assert_eq!(bench.memory(60, [0]).0, ENOSYS);
    assert_eq!(bench.memory(3, [0]).0, EPERM);
    assert_eq!(bench.memory(3, [77]).0, ESRCH);
    assert_eq!(bench.memory(3, [SELF]).0.cast_unsigned(), bench.total());
    assert_eq!(bench.memory(23, [3 << 16 | SELF, 0, 0, 0]).0, EOPNOTSUPP);
    assert_eq!(bench.memory(23, [2 << 16 | SELF, 0, 0, 0]).0, EACCES);
    bench.put(bench.scratch(3), &[0, 0x1000, 1]);
    assert_eq!(bench.memory(13, [SELF, 1, bench.scratch(3)]).0, 0);
    assert_eq!(bench.memory(9, [5, bench.scratch(4)]), (0, [1, bench.scratch(4)]));
    assert_eq!(bench.word_at(bench.scratch(4) + 8), 0x1000);
}

#[test]
fn a_frame_given_up_is_poisoned_and_may_come_back() {
    let bench = Bench::new();
    bench.put(bench.va(0), &[0x1234]);
    bench.unmap(0);
    let mfn = bench.mfn(0);
    assert_eq!(bench.decrease(&[mfn]), 1);
    assert_eq!(bench.model.word(hypercall::Mfn::new(mfn), 0), Some(0xc2c2_c2c2_c2c2_c2c2));
    let back = bench.populate(&[bench.pfn(0)])[0];
    assert_eq!(bench.mmu(&[(bench.slot(0), back << 12 | RW)]).0, 0);
    assert_eq!(bench.guest().built_mfn(Pfn::new(bench.pfn(0))).map(|old| old.raw()), Some(mfn));
}
