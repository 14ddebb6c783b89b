//! Group D: linear page tables.

use crate::support::{Bench, EINVAL, P, RW};

/// Two live, empty L4 tables in pages 0 and 1, a third in page 2, an L3 in page 3.
fn roots() -> Bench {
    let bench = Bench::new();
    for page in 0..3 {
        bench.pinned(page, 4, &[]);
    }
    bench.pinned(3, 3, &[]);
    bench
}

#[test]
fn d047_a_read_only_link_to_itself_costs_nothing() {
    let bench = roots();
    for page in [0, 3] {
        let before = (bench.caf(page), bench.taf(page));
        assert_eq!(bench.set(page, 300, bench.to(page, RW)), EINVAL);
        let linear = "Attempt to create linear p.t. with write perms".to_owned();
        assert!(bench.log().contains(&linear));
        assert_eq!(bench.set(page, 300, bench.to(page, P)), 0);
        assert_eq!((bench.caf(page), bench.taf(page)), before);
    }
}

#[test]
fn d048_a_read_only_link_to_another_root_holds_it() {
    let bench = roots();
    let (caf, taf) = (bench.caf(0), bench.taf(0));
    assert_eq!(bench.set(1, 300, bench.to(0, P)), 0);
    assert_eq!((bench.caf(0), bench.taf(0)), (caf + 1, taf + 1));
}

#[test]
fn d049_there_are_no_chains() {
    let bench = roots();
    assert_eq!(bench.set(1, 300, bench.to(0, P)), 0);
    bench.clear_log();
    assert_eq!(bench.set(0, 300, bench.to(1, P)), EINVAL);
    assert_eq!(bench.set(2, 300, bench.to(1, P)), EINVAL);
    assert_eq!(bench.log(), [""; 0]);
}

#[test]
fn d050_unlinking_gives_the_counts_back() {
    let bench = roots();
    let before = (bench.caf(0), bench.taf(0));
    assert_eq!(bench.set(1, 300, bench.to(0, P)), 0);
    assert_eq!(bench.set(1, 300, 0), 0);
    assert_eq!((bench.caf(0), bench.taf(0)), before);
    // And the roles can be swapped now.
    assert_eq!(bench.set(0, 300, bench.to(1, P)), 0);
}
