//! Group L: what a guest cannot read of the state that it starts in.

use hypercall::Pfn;
use xen_model::{Model, Role, number};

use crate::support::Bench;

const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;

/// A domain just as its builder leaves it.
fn built(role: Role) -> Bench {
    Bench::of(Model::builder().role(role).pages(4096).seed(11))
}

#[test]
fn l107_words_of_the_builders_frames() {
    let bench = built(Role::DomU);
    let guest = bench.guest();
    let info = guest.start_info().expect("start_info");
    let built = |pfn| guest.built_mfn(Pfn::new(pfn)).expect("a page").raw();
    let root = (info.pt_base - VIRT_BASE) >> 12;
    let (slot, _) = guest.l1_slot(VIRT_BASE).expect("mapped");
    for (mfn, words) in [
        (built(root), (0x8000_0000_0000_0004, 0x8c00_0000_0000_0002)),
        (slot.table.raw(), (0x8000_0000_0000_0003, 0x2400_0000_0000_0001)),
        (built(1), (0x8000_0000_0000_0002, 0xe400_0000_0000_0001)),
        (built(info.nr_pages - 1), (0x8000_0000_0000_0001, 0)),
    ] {
        assert_eq!(bench.words(mfn), words);
    }
    assert_eq!(bench.words(built(root + 2)).1, 0x4400_0000_0000_0001);
}

#[test]
fn l108_flags_of_start_info_are_the_roles() {
    let flags = |role| built(role).guest().start_info().expect("start_info").flags;
    assert_eq!((flags(Role::DomU), flags(Role::Dom0)), (0, 3));
}

#[test]
fn l109_a_debug_build_prints_what_a_domu_writes() {
    let bench = Bench::new();
    bench.put(bench.scratch(3), &[u64::from_le_bytes(*b"a line\n\0")]);
    assert_eq!(bench.call(number::CONSOLE_IO, [0, 7, bench.scratch(3), 0, 0]), 0);
    assert_eq!(bench.model.take_console(), ["(d1) a line"]);
}
