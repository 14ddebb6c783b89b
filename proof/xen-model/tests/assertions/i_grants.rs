//! Group I: grants, as far as page tables are concerned.

use hypercall::{Mfn, Pfn};
use xen_model::{GrantEntry, number};

use crate::support::{Bench, EFAULT, EINVAL, P, PIN_L1, RW};

const HOST_PTE: u64 = 2 | 16;
const READ_ONLY: u64 = 4;

/// A domU with a live L1 in page 0, to which dom0 grants a frame by reference 8, and one read-only
/// by 9.
struct Granted {
    bench: Bench,
    frame: u64,
}

impl Granted {
    fn of(bench: Bench) -> Self {
        bench.pinned(0, 1, &[]);
        let dom0 = bench.model.vcpu(0, 0).expect("dom0");
        let frame = dom0.built_mfn(Pfn::new(700)).expect("a page");
        for (reference, flags) in [(8, 1), (9, 1 | 4)] {
            dom0.write_grant(reference, GrantEntry { flags, domain: 1, frame }).expect("entry");
        }
        Self { bench, frame: frame.raw() }
    }

    /// Status and handle of a map operation.
    fn map(&self, host: u64, flags: u64, reference: u64, domain: u64) -> (i16, u64) {
        let at = self.bench.scratch(5);
        self.bench.put(at, &[host, reference << 32 | flags, domain, 0]);
        assert_eq!(self.bench.call(number::GRANT_TABLE_OP, [0, at, 1, 0, 0]), 0);
        let word = self.bench.word_at(at + 16);
        ((word >> 16 & 0xffff) as u16 as i16, word >> 32)
    }

    fn map_slot(&self, flags: u64) -> (i16, u64) {
        self.map(self.bench.at(0, 0), flags, 8, 0)
    }

    fn unmap(&self, host: u64, handle: u64) -> i16 {
        let at = self.bench.scratch(5);
        self.bench.put(at, &[host, 0, handle]);
        assert_eq!(self.bench.call(number::GRANT_TABLE_OP, [1, at, 1, 0, 0]), 0);
        (self.bench.word_at(at + 16) >> 32 & 0xffff) as u16 as i16
    }

    fn flags(&self, reference: u32) -> u16 {
        self.bench.model.vcpu(0, 0).expect("dom0").read_grant(reference).expect("entry").flags
    }
}

#[test]
fn i092_the_entry_of_a_grant() {
    let granted = Granted::of(Bench::release_build());
    let cases = [
        (0, 0x8010_0000_0000_0067),
        (READ_ONLY, 0x8010_0000_0000_0065),
        (8, 0x8000_0000_0000_0167),
    ];
    for (flags, expected) in cases {
        let (status, handle) = granted.map_slot(HOST_PTE | flags);
        assert_eq!(status, 0);
        assert_eq!(granted.bench.entry(0, 0), granted.frame << 12 | expected);
        let in_use = if flags == READ_ONLY { 8 } else { 8 | 16 };
        assert_eq!(granted.flags(8), 1 | in_use);
        assert_eq!(granted.unmap(granted.bench.at(0, 0), handle), 0);
        assert_eq!((granted.bench.entry(0, 0), granted.flags(8)), (0, 1));
    }
    let debug = Granted::of(Bench::new());
    assert_eq!(debug.map_slot(HOST_PTE).0, 0);
    assert_eq!(debug.bench.entry(0, 0), debug.frame << 12 | 0xc010_0000_0000_0067);
}

#[test]
fn i093_a_frame_granted_for_writing_is_no_table_and_the_reverse() {
    // A domain may grant to itself: then the frame is its own to pin.
    let bench = Bench::new();
    bench.pinned(0, 1, &[]);
    bench.contents(1, &[]);
    let frame = Mfn::new(bench.mfn(1));
    bench.guest().write_grant(8, GrantEntry { flags: 1, domain: 1, frame }).expect("entry");
    let granted = Granted { bench, frame: frame.raw() };
    let bench = &granted.bench;
    let map = |flags| granted.map(bench.at(0, 0), flags, 8, 1);
    let (status, handle) = map(HOST_PTE);
    assert_eq!(status, 0);
    assert_eq!(bench.ext(PIN_L1, frame.raw()), EINVAL);
    assert_eq!(granted.unmap(bench.at(0, 0), handle), 0);
    assert_eq!(bench.ext(PIN_L1, frame.raw()), 0);
    bench.clear_log();
    assert_eq!(map(HOST_PTE).0, -1);
    let last = bench.log().pop();
    assert_eq!(last, Some(format!("Could not pin grant frame {:#05x}", frame.raw())));
    assert_eq!(map(HOST_PTE | READ_ONLY).0, 0);
}

#[test]
fn i094_what_a_map_operation_refuses() {
    let granted = Granted::of(Bench::new());
    let bench = &granted.bench;
    let slot = bench.at(0, 0);
    assert_eq!(granted.map(slot | 1, HOST_PTE, 8, 0).0, -1, "misaligned");
    assert_eq!(granted.map(bench.at(1, 0), HOST_PTE, 8, 0).0, -1, "no L1");
    assert_eq!(granted.map(0x1000_0000, 2, 8, 0).0, -1, "an address without L1");
    assert_eq!(granted.map(slot, HOST_PTE, 9, 0).0, -1, "writing by a read-only grant");
    assert_eq!(granted.map(slot, HOST_PTE, 7, 0).0, -1, "an entry that grants nothing");
    assert_eq!(granted.map(slot, HOST_PTE, 1 << 20, 0).0, -3);
    assert_eq!(granted.map(slot, 16, 8, 0).0, -3, "neither host nor device");
    assert_eq!(granted.map(slot, HOST_PTE, 8, 77).0, -2);
    assert_eq!(granted.flags(8), 1);
}

#[test]
fn i095_an_entry_overwritten_behind_the_grant() {
    let granted = Granted::of(Bench::release_build());
    let bench = &granted.bench;
    let (_, handle) = granted.map_slot(HOST_PTE);
    let entry = bench.entry(0, 0);
    assert_eq!(bench.set(0, 0, 0), 0);
    for _ in 0..2 {
        assert_eq!(granted.unmap(bench.at(0, 0), handle), -1);
    }
    assert_eq!(granted.flags(8), 1 | 8 | 16);
    // Frame, presence and writability are all that is compared.
    bench.model.poke(Mfn::new(bench.mfn(0)), 0, 0);
    let (status, second) = granted.map(bench.at(0, 1), HOST_PTE, 8, 0);
    assert_eq!((status, bench.entry(0, 1)), (0, entry));
    assert_eq!(granted.unmap(bench.at(0, 1), handle), 0, "another entry like it");
    let _ = second;
    let debug = Granted::of(Bench::new());
    let bench = &debug.bench;
    let _ = debug.map_slot(HOST_PTE);
    bench.clear_log();
    assert_eq!(bench.set(0, 0, 0), 0);
    assert!(bench.log()[0].starts_with("Attempt to implicitly unmap d0's grant PTE "));
    assert!(bench.guest().take_general_protection());
}

#[test]
fn i096_unmapping_twice_or_not_at_all() {
    let granted = Granted::of(Bench::new());
    let bench = &granted.bench;
    let (_, handle) = granted.map_slot(HOST_PTE);
    assert_eq!(granted.unmap(0, handle), 0);
    assert_ne!(bench.entry(0, 0), 0, "the entry stays");
    assert_eq!(granted.unmap(bench.at(0, 0), handle), 0);
    assert_eq!(granted.unmap(bench.at(0, 0), handle), -4);
    let call = |list, count| bench.call(number::GRANT_TABLE_OP, [1, list, count, 0, 0]);
    assert_eq!(call(bench.scratch(5), 1 << 31), EINVAL);
    assert_eq!(call(0x1000_0000, 1), EFAULT);
}

#[test]
fn i097_frames_of_the_grant_table_are_the_owners_to_map() {
    let bench = Bench::new();
    let (at, list) = (bench.scratch(5), bench.scratch(6));
    bench.put(at, &[2 << 32 | 0x7ff0, 0, list]);
    assert_eq!(bench.call(number::GRANT_TABLE_OP, [2, at, 1, 0, 0]), 0);
    assert_eq!(bench.word_at(at + 8) & 0xffff, 0);
    for k in 0..2 {
        let mfn = bench.word_at(list + k * 8);
        assert_eq!(bench.m2p(mfn), u64::MAX);
        for flags in [P, RW] {
            assert_eq!(bench.mmu(&[(bench.slot(k), mfn << 12 | flags)]).0, 0);
        }
        assert_eq!(bench.unmap_foreign(k), 0);
    }
}
