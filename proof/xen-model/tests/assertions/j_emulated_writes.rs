//! Group J: what Xen says of stores to live L1 tables that it does not carry out.

use xen_model::{Mode, PageFault, number};

use crate::support::{Bench, RW};

#[test]
fn j100_j101_refused_stores_are_described() {
    let bench = Bench::new();
    bench.pinned(0, 1, &[]);
    bench.pinned(1, 2, &[]);
    assert_eq!(bench.call(number::VM_ASSIST, [0, 2, 0, 0, 0]), 0);
    let va = bench.va(0);
    let store = |at, bytes: &[u8]| {
        bench.clear_log();
        let fault = PageFault { va: at, code: 3 };
        assert_eq!(bench.guest().store(at, bytes, Mode::Kernel), Err(fault));
        bench.log()
    };
    let log = store(va + 8, &bench.to(1, RW).to_le_bytes());
    assert_eq!((log.len(), log[3].as_str()), (4, "could not get_page_from_l1e()"));
    let access = format!("bad access (cr2={0:x}, addr={0:x}, bytes=8)", va + 4);
    assert_eq!(store(va + 4, &[0; 8]), [access]);
    for bytes in [3, 16] {
        let size = format!("bad write size (addr={va:x}, bytes={bytes})");
        assert_eq!(store(va, &vec![0; bytes]), [size]);
    }
    assert!(bench.guest().compare_exchange(va, 0, 0, 16).is_err());
    assert_eq!(bench.log(), [format!("bad cmpxchg size (addr={va:x}, bytes=16)")]);
}
