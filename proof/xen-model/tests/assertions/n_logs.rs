//! Group N: the lines of a debug Xen, release by release; and the two crash logs that this project
//! began with.

use xen_model::{Flavour, Release, Verbosity};

use crate::support::{Bench, EINVAL, P, PIN_L1, RW, UNPIN};

#[test]
fn n115_lines_follow_release_and_build() {
    // Release builds print debug lines up to 4.5 only; the others at full log level.
    let quiet = Bench::release_build();
    assert_eq!(quiet.ext(UNPIN, quiet.foreign()), EINVAL);
    assert_eq!(quiet.log(), [""; 0]);
    let old = Bench::of(Bench::builder().release(Release::V4_4).flavour(Flavour::Release));
    old.clear_log();
    assert_eq!(old.ext(PIN_L1, old.mfn(0)), EINVAL);
    assert_eq!(old.log().len(), 2);
    let all = Bench::builder().flavour(Flavour::Release).verbosity(Verbosity::All);
    let all = Bench::of(all);
    assert_eq!(all.ext(UNPIN, all.foreign()), EINVAL);
    let pfns: Vec<u64> = (3000..3300).collect();
    assert_eq!(all.reserve(6, &pfns, 0, 0x7ff0).0, 256);
    let log = all.log();
    assert!(log[0].starts_with("Error mfn "), "{log:?}");
    assert!(log[1].starts_with("Over-allocation for d1: "), "{log:?}");
    assert_eq!(log.len(), 2);
}

#[test]
fn n116_numbers_and_prefixes() {
    let bench = Bench::new();
    bench.contents(0, &[(0, bench.to(1, P | 0x10))]);
    bench.contents(1, &[(7, bench.to(2, P | 0x10))]);
    bench.clear_log();
    assert_eq!(bench.ext(PIN_L1, bench.mfn(0)), EINVAL);
    assert_eq!(bench.ext(PIN_L1, bench.mfn(1)), EINVAL);
    let log = bench.model.take_log();
    assert!(log.iter().all(|line| line.starts_with("(XEN) arch/x86/mm.c:0:d1v0 ")), "{log:?}");
    assert!(log[1].ends_with("slot 0") && log[5].ends_with("slot 0x7"), "{log:?}");
    assert_eq!(bench.ext(PIN_L1, 0xa0), EINVAL);
    assert!(bench.model.take_log()[0].starts_with("(XEN) d1v0 Error mfn 000a0: rd=d1 od=d[IO] "));
}

/// The text of a line of a real log, behind its prefix, with frame numbers left out.
fn without_numbers(line: &str) -> String {
    let text = line.split_once(" d0v").map_or(line, |(_, text)| text);
    let words = text.split([' ', '(', ')']);
    let mut previous = "";
    let kept = words.filter(|word| {
        let number = matches!(previous, "mfn" | "pfn");
        previous = word;
        !number
    });
    kept.collect::<Vec<_>>().join(" ")
}

/// `(XEN) mm.c:…` lines of a real log, without numbers.
fn real_lines(log: &str) -> Vec<String> {
    let lines = log.lines().filter_map(|line| line.split_once("mm.c:"));
    let text =
        |rest: &str| rest.split_once(' ').map_or(String::new(), |(_, text)| without_numbers(text));
    lines.map(|(_, rest)| text(rest)).collect()
}

#[test]
fn the_early_crash_prints_the_lines_that_were_seen() {
    let seen = "\
(XEN) mm.c:2466:d0 Bad type (saw 7400000000000001 != exp 1000000000000000) for mfn b1d89 (pfn bacf7)
(XEN) mm.c:3027:d0 Error while pinning mfn b1d89";
    // dom0 on Xen 4.4 pins an L1 that its direct mapping still maps writable.
    let bench = Bench::of(Bench::dom0_builder().release(Release::V4_4).flavour(Flavour::Release));
    bench.clear_log();
    assert_eq!(bench.ext(PIN_L1, bench.mfn(0)), EINVAL);
    let log = bench.model.take_log();
    assert!(log[0].starts_with("(XEN) mm.c:0:d0 Bad type"), "{log:?}");
    assert_eq!(real_lines(&log.join("\n")), real_lines(seen));
}

#[test]
fn the_host_crash_prints_the_lines_that_were_seen() {
    let seen = "\
mm.c:2359:d0v1 Bad type (saw 7400000000000001 != exp 1000000000000000) for mfn 8df82b (pfn 1a99dd)
mm.c:3009:d0v1 Error while pinning mfn 8df82b
mm.c:2359:d0v1 Bad type (saw 7400000000000001 != exp 1000000000000000) for mfn 8df82b (pfn 1a99dd)
mm.c:910:d0v1 Attempt to create linear p.t. with write perms
mm.c:1301:d0v1 Failure in alloc_l2_table: entry 390
mm.c:2106:d0v1 Error while validating mfn 10373af (pfn 15cf40) for type 2000000000000000: \
caf=8000000000000003 taf=2000000000000001
mm.c:952:d0v1 Attempt to create linear p.t. with write perms
mm.c:1383:d0v1 Failure in alloc_l3_table: entry 295
mm.c:2106:d0v1 Error while validating mfn 90e857 (pfn 1ac08e) for type 3000000000000000: \
caf=8000000000000003 taf=3000000000000001
mm.c:976:d0v1 Attempt to create linear p.t. with write perms";
    // A fork's new tree, of which one L1 is still mapped writable: first it is pinned alone, then
    // the root.
    let builder = Bench::dom0_builder().release(Release::V4_6);
    let bench = Bench::of(builder);
    bench.contents(1, &[(390, bench.to(0, 0x67))]);
    bench.contents(2, &[(295, bench.to(1, 0x67))]);
    bench.contents(3, &[(200, bench.to(2, 0x67))]);
    assert_eq!(bench.map(0, RW), 0);
    bench.clear_log();
    let _ = bench.ext(PIN_L1, bench.mfn(0));
    assert_eq!(bench.ext(3, bench.mfn(3)), EINVAL);
    let log = real_lines(&bench.model.take_log().join("\n"));
    let seen = real_lines(seen);
    assert_eq!(log[..seen.len()], seen);
}
