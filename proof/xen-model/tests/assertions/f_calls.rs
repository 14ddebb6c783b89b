//! Groups F and G: what hypercalls have in common, and multicalls.

use xen_model::{BootMapping, DomainConfig, Model, Role, number};

use crate::support::{Bench, EINVAL, ESRCH, P, RW, UNPIN};

#[test]
fn f066_f067_callers_that_may_not_are_told_why() {
    let bench = Bench::new();
    assert_eq!(bench.mmu_for(&[(bench.slot(0), 0)], 1).0, ESRCH);
    assert_eq!(bench.log(), ["Cannot specify itself as foreign domain"]);
    assert_eq!(bench.mmu_for(&[(bench.slot(0), 0)], 77).0, ESRCH);
    assert_eq!(bench.log(), ["Unknown domain d77"]);
}

#[test]
fn f071_an_m2p_entry_of_a_frame_of_others_is_named() {
    let bench = Bench::new();
    assert_eq!(bench.mmu(&[(bench.foreign() << 12 | 1, 0)]).0, EINVAL);
    assert_eq!(bench.log().pop().as_deref(), Some("Could not get page for mach->phys update"));
}

/// Builds, links, breaks and releases trees; answers everything a guest can see.
fn workload(every: u64) -> Vec<String> {
    let bench = Bench::new();
    bench.model.preempt_every(every);
    let mut seen = Vec::new();
    let mut note = |result: (i64, u32)| seen.push(format!("{result:?}"));
    for page in 0..6 {
        bench.read_only(page);
    }
    // L4 in page 4 over 3, 2, 1; page 5 is a second L1 that maps the L4 writable and is refused.
    bench.contents(1, &[(0, bench.to(0, P)), (9, bench.to(5, P))]);
    bench.contents(5, &[(0, bench.to(0, P)), (1, bench.to(4, RW))]);
    bench.contents(2, &[(0, bench.to(1, RW)), (3, bench.to(1, RW)), (9, bench.to(5, RW))]);
    bench.contents(3, &[(0, bench.to(2, RW)), (1, bench.to(2, RW)), (2, bench.to(2, RW))]);
    bench.contents(4, &[(0, bench.to(3, RW)), (1, bench.to(3, RW)), (300, bench.to(3, RW))]);
    note(bench.ext_for(&[(3, bench.mfn(4), 0)], 0x7ff0));
    bench.contents(5, &[(1, 0)]);
    note(bench.ext_for(&[(3, bench.mfn(4), 0), (2, bench.mfn(3), 0)], 0x7ff0));
    let links = [
        (bench.at(3, 1), 0),
        (bench.at(2, 4), bench.to(5, RW)),
        (bench.at(3, 4), bench.to(2, RW)),
        (bench.at(3, 5), bench.to(1, RW)),
    ];
    note(bench.mmu(&links));
    note(bench.ext_for(&[(UNPIN, bench.mfn(3), 0), (UNPIN, bench.mfn(4), 0)], 0x7ff0));
    for page in 0..6 {
        seen.push(format!("{:x?} {:x?}", bench.words(bench.mfn(page)), bench.entry(page, 0)));
    }
    // A reference that an interrupted validation holds shows in the lines; nowhere else.
    let without_counts = |line: String| line.split(": caf=").next().unwrap_or("").to_owned();
    seen.extend(bench.log().into_iter().map(without_counts));
    if every > 0 {
        assert!(bench.model.statistics().continuations > 0);
    }
    seen
}

#[test]
fn f074_interruptions_change_nothing() {
    let expected = workload(0);
    for every in [1, 2, 3, 7] {
        assert_eq!(workload(every), expected, "every {every}");
    }
}

#[test]
fn f075_debug_builds_clobber_the_registers_of_arguments() {
    for (bench, first) in
        [(Bench::new(), 0xdead_beef_dead_f00d), (Bench::release_build(), bench_list())]
    {
        let mut registers = [bench_list(), 0, 0, 0x7ff0, 5];
        assert_eq!(bench.guest().hypercall_with(number::MMU_UPDATE, &mut registers), 0);
        assert_eq!(registers[0], first);
        assert_eq!(registers[4], 5, "the fifth is not one of its arguments");
    }
}

/// An address for an empty list.
const fn bench_list() -> u64 {
    0x1000
}

#[test]
fn g076_g077_debug_builds_overwrite_entries_and_speak_of_multicalls_inside() {
    let aa = 0xaaaa_aaaa_aaaa_aaaa;
    for (bench, op, rest) in
        [(Bench::new(), aa, aa), (Bench::release_build(), number::XEN_VERSION, 0)]
    {
        let list = bench.scratch(5);
        let nested = [number::MULTICALL, 0, list, 1, 0, 0, 0, 0];
        bench.put(list, &[number::XEN_VERSION, 0, 0, 0, 0, 0, 0, 0]);
        bench.put(list + 64, &nested);
        assert_eq!(bench.call(number::MULTICALL, [list, 2, 0, 0, 0]), 0);
        let entry: [u64; 8] = core::array::from_fn(|k| bench.word_at(list + k as u64 * 8));
        assert_eq!(entry, [op, 0x4_0011, rest, rest, rest, rest, rest, rest]);
        assert_eq!(bench.word_at(list + 64 + 8).cast_signed(), EINVAL);
        let lines = bench.log();
        let nested = lines.last().is_some_and(|line| line == "Multicall reentry is disallowed.");
        assert_eq!(nested, op == aa, "{lines:?}");
    }
}

#[test]
fn two_domains_of_one_machine_do_not_share_frames() {
    let all = BootMapping::AllPages;
    let other = DomainConfig { boot_mapping: all, ..DomainConfig::new(Role::DomU, 512) };
    let model = Model::builder().boot_mapping(all).other(other).build().expect("a machine");
    let (a, b) = (model.vcpu(1, 0).expect("d1"), model.vcpu(2, 0).expect("d2"));
    assert_ne!(a.kernel_root(), b.kernel_root());
    assert!(model.vcpu(1, 1).is_none() && model.vcpu(3, 0).is_none());
}
