//! Group J: stores to live L1 tables that Xen carries out.

use xen_model::{Mode, PageFault, number};

use crate::support::{Bench, P, RW};

/// A live L1 in page 0 and an L2 in page 1, with the assist on.
fn assisted() -> Bench {
    let bench = Bench::new();
    bench.pinned(0, 1, &[]);
    bench.pinned(1, 2, &[]);
    assert_eq!(bench.call(number::VM_ASSIST, [0, 2, 0, 0, 0]), 0);
    bench
}

fn store(bench: &Bench, page: u64, offset: u64, bytes: &[u8]) -> Result<(), PageFault> {
    bench.guest().store(bench.va(page) + offset, bytes, Mode::Kernel)
}

const KERNEL: u64 = 0x0010_0000_0000_0004;

#[test]
fn j098_a_store_to_a_live_l1_is_validated_and_done() {
    let bench = assisted();
    let entry = bench.to(2, RW);
    assert_eq!(store(&bench, 0, 0, &entry.to_le_bytes()), Ok(()));
    assert_eq!(bench.entry(0, 0), entry | KERNEL);
    assert_eq!(bench.call(number::VM_ASSIST, [1, 2, 0, 0, 0]), 0);
    let fault = PageFault { va: bench.va(0), code: 3 };
    assert_eq!(store(&bench, 0, 0, &[0; 8]), Err(fault));
    let dom0 = Bench::dom0();
    dom0.pinned(0, 1, &[]);
    assert_eq!(store(&dom0, 0, 0, &dom0.to(2, P).to_le_bytes()), Ok(()));
}

#[test]
fn j099_other_tables_are_not_for_stores() {
    let bench = assisted();
    bench.read_only(2);
    for page in [1, 2] {
        let fault = PageFault { va: bench.va(page), code: 3 };
        assert_eq!(store(&bench, page, 0, &[0; 8]), Err(fault));
    }
}

#[test]
fn j100_a_refused_entry_is_a_page_fault() {
    let bench = assisted();
    bench.clear_log();
    let entry = bench.to(1, RW);
    let fault = PageFault { va: bench.va(0) + 8, code: 3 };
    assert_eq!(store(&bench, 0, 8, &entry.to_le_bytes()), Err(fault));
    assert_eq!(bench.entry(0, 1), 0);
    let log = bench.log();
    assert_eq!(log.len(), 4);
    assert_eq!(log[3], "could not get_page_from_l1e()");
}

#[test]
fn j101_short_and_misplaced_stores() {
    let bench = assisted();
    let caf = bench.caf(2);
    assert_eq!(store(&bench, 0, 0, &bench.to(2, P).to_le_bytes()), Ok(()));
    assert_eq!(bench.caf(2), caf + 1);
    // A byte store that makes it writable is validated like any other.
    let low = (bench.entry(0, 0) & 0xff) as u8;
    assert_eq!(store(&bench, 0, 0, &[low | 2]), Ok(()));
    assert_eq!(bench.entry(0, 0) & 2, 2);
    assert_eq!(store(&bench, 0, 0, &[0; 4]), Ok(()));
    assert_eq!((bench.entry(0, 0), bench.caf(2)), (KERNEL & !4, caf));
    bench.clear_log();
    let va = bench.va(0);
    assert!(store(&bench, 0, 4, &[0; 8]).is_err());
    assert_eq!(bench.log(), [format!("bad access (cr2={0:x}, addr={0:x}, bytes=8)", va + 4)]);
    assert!(bench.guest().compare_exchange(va, 0, 0, 16).is_err());
    assert_eq!(bench.log(), [format!("bad cmpxchg size (addr={va:x}, bytes=16)")]);
    for bytes in [3, 16] {
        assert!(store(&bench, 0, 0, &vec![0; bytes]).is_err());
        assert_eq!(bench.log(), [format!("bad write size (addr={va:x}, bytes={bytes})")]);
    }
    assert_eq!(store(&bench, 0, 0, &[0; 8]), Ok(()));
}

#[test]
fn j102_compare_and_exchange() {
    let bench = assisted();
    let (va, guest) = (bench.va(0), bench.guest());
    let (old, new) = (bench.to(2, P), bench.to(3, RW));
    assert_eq!(store(&bench, 0, 0, &old.to_le_bytes()), Ok(()));
    let before = (bench.caf(2), bench.caf(3), bench.taf(3));
    let seen = guest.compare_exchange(va, 0, u128::from(new), 8);
    assert_eq!(seen, Ok(u128::from(old | KERNEL)));
    assert_eq!((bench.caf(2), bench.caf(3), bench.taf(3)), before);
    let seen = guest.compare_exchange(va, u128::from(old | KERNEL), u128::from(new), 8);
    assert_eq!(seen, Ok(u128::from(old | KERNEL)));
    assert_eq!(bench.entry(0, 0), new | KERNEL);
    assert_eq!((bench.caf(2), bench.taf(3)), (before.0 - 1, before.2 + 1));
    let garbage = 0xdead_beef_dead_beee;
    let seen = guest.compare_exchange(va, u128::from(new | KERNEL), garbage, 8);
    assert!(seen.is_ok());
    assert_eq!(u128::from(bench.entry(0, 0)), garbage);
}
