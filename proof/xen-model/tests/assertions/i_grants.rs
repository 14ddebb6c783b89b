//! Group I: grants of another domain as entries, and what debug builds add.

use hypercall::Mfn;
use xen_model::{GrantEntry, number};

use crate::support::{Bench, EBUSY};

/// Bits of a mapping's flags: for the CPU, into an entry that is named.
const HOST_PTE: u64 = 2 | 16;

/// A live L1 in page 0, whose entry 0 is to map a frame by reference 8.
fn granted(bench: Bench, by: u16, frame: Mfn) -> Bench {
    bench.pinned(0, 1, &[]);
    let owner = bench.model.vcpu(by, 0).expect("a domain");
    owner.write_grant(8, GrantEntry { flags: 1, domain: 1, frame }).expect("an entry");
    bench
}

/// By dom0, of its page 700.
fn granted_by_dom0(bench: Bench) -> Bench {
    let frame = bench.foreign();
    granted(bench, 0, Mfn::new(frame))
}

/// The status of a mapping in that entry.
fn map(bench: &Bench, by: u64) -> u64 {
    let at = bench.scratch(5);
    bench.put(at, &[bench.at(0, 0), 8 << 32 | HOST_PTE, by, 0]);
    assert_eq!(bench.call(number::GRANT_TABLE_OP, [0, at, 1, 0, 0]), 0);
    bench.word_at(at + 16) >> 16 & 0xffff
}

#[test]
fn b028_a_foreign_grants_entry_changes_in_its_unimportant_bits_alone() {
    let bench = granted_by_dom0(Bench::release_build());
    assert_eq!(map(&bench, 0), 0);
    let mapped = bench.entry(0, 0);
    assert_eq!(mapped, bench.foreign() << 12 | 0x8010_0000_0000_0067);
    assert_eq!(bench.set(0, 0, mapped & !(1 << 63)), 0, "NX");
    assert_eq!(bench.set(0, 0, mapped & !0x60), 0, "accessed and dirty");
    assert_eq!(bench.set(0, 0, mapped & !2), EBUSY, "RW");
}

#[test]
fn i092_i095_a_debug_build_marks_the_entry_and_faults_when_it_is_overwritten() {
    let bench = granted_by_dom0(Bench::new());
    assert_eq!(map(&bench, 0), 0);
    assert_eq!(bench.entry(0, 0), bench.foreign() << 12 | 0xc010_0000_0000_0067);
    bench.clear_log();
    assert_eq!(bench.set(0, 0, 0), 0);
    assert!(bench.log()[0].starts_with("Attempt to implicitly unmap d0's grant PTE "));
    assert!(bench.guest().take_general_protection());
}

#[test]
fn i093_a_live_table_that_is_granted_is_named() {
    let bench = Bench::new();
    bench.pinned(1, 1, &[]);
    let frame = bench.mfn(1);
    let bench = granted(bench, 1, Mfn::new(frame));
    bench.clear_log();
    assert_eq!(map(&bench, 1), 0xffff, "GNTST_general_error");
    assert_eq!(bench.log().pop(), Some(format!("Could not pin grant frame {frame:#05x}")));
}
