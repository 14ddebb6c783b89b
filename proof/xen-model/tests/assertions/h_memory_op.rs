//! Group H: `memory_op`.

use hypercall::Pfn;

use crate::support::{Bench, EINVAL, RW, SELF};

#[test]
fn h079_a_frame_given_up_twice_is_named() {
    let bench = Bench::new();
    let mfn = bench.mfn(0);
    assert_eq!(bench.decrease(&[mfn]), 1);
    assert_eq!(bench.caf(0), 1, "a mapping holds it, no allocation does");
    bench.unmap(0);
    bench.clear_log();
    assert_eq!(bench.decrease(&[mfn]), 0);
    assert_eq!(bench.log().pop(), Some(format!("Bad page free for Dom1 GFN {mfn:x}")));
}

#[test]
fn h082_a_frame_that_does_not_exist_is_named_and_increase_needs_no_list() {
    let bench = Bench::new();
    bench.clear_log();
    assert_eq!(bench.decrease(&[0x1234_5678]), 0);
    assert_eq!(bench.log(), ["Domain 1 page number 12345678 invalid"]);
    assert_eq!(bench.memory(0, [0, 1, 0, SELF]).0, 1);
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
fn h087_a_mapped_page_that_is_exchanged_is_named() {
    let bench = Bench::new();
    bench.read_only(1);
    bench.clear_log();
    let (mfn, taf) = (bench.mfn(1), bench.taf(1));
    bench.put(bench.scratch(4), &[mfn]);
    bench.put(bench.scratch(5), &[10]);
    let (give, take) = (bench.scratch(4), bench.scratch(5));
    assert_eq!(bench.memory(11, [give, 1, 0, SELF, take, 1, 0, SELF, 0]).0, EINVAL);
    assert_eq!(
        bench.log(),
        [format!("Bad steal mfn {mfn:05x} from d1 (owner d1) caf=8000000000000002 taf={taf:016x}")]
    );
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
