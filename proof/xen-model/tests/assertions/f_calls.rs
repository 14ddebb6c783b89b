//! Group F: what hypercalls have in common.

use xen_model::{BootMapping, DomainConfig, Model, Role, number};

use crate::support::{Bench, EFAULT, EINVAL, ENOSYS, EPERM, ESRCH, IO, P, RW, UNPIN, UNTOUCHED};

const HOLE: u64 = 0xffff_8100_0000_0000;
/// An address that nothing maps.
const NOWHERE: u64 = 0x1000_0000;

#[test]
fn f066_a_caller_may_not_name_itself() {
    let bench = Bench::new();
    assert_eq!(bench.mmu_for(&[(bench.slot(0), 0)], 1), (ESRCH, 0));
    assert_eq!(bench.log(), ["Cannot specify itself as foreign domain"]);
    assert_eq!(bench.ext_for(&[(UNPIN, 0, 0)], 1), (ESRCH, UNTOUCHED));
}

#[test]
fn f067_others_domains_need_rights() {
    let bench = Bench::new();
    assert_eq!(bench.mmu_for(&[(bench.slot(0), 0)], 0), (EPERM, 0));
    assert_eq!(bench.ext_for(&[(UNPIN, 0, 0)], 0), (EPERM, UNTOUCHED));
    let arguments = [bench.va(0), 0, 0, 0, 0];
    assert_eq!(bench.call(number::UPDATE_VA_MAPPING_OTHERDOMAIN, arguments), EPERM);
    assert_eq!(bench.mmu_for(&[(bench.slot(0), 0)], 77).0, ESRCH);
    assert_eq!(bench.log(), ["Unknown domain d77"]);
}

#[test]
fn f068_lists_that_cannot_be_read() {
    let bench = Bench::new();
    for (number, size) in [(number::MMU_UPDATE, 16), (number::MMUEXT_OP, 24)] {
        let done = bench.scratch(2);
        let call = |list, count, done_at| {
            bench.put(done, &[u64::from(UNTOUCHED)]);
            let result = bench.call(number, [list, count, done_at, 0x7ff0, 0]);
            (result, (bench.word_at(done) & 0xffff_ffff) as u32)
        };
        assert_eq!(call(HOLE, 1, done), (EFAULT, UNTOUCHED));
        assert_eq!(call(NOWHERE, 1, done), (EFAULT, 0));
        // The second entry lies on a page that is not mapped.
        bench.unmap(1);
        let last = bench.va(1) - size;
        let entry = if size == 16 { vec![bench.slot(2), 0] } else { vec![6, 0, 0] };
        bench.put(last, &entry);
        assert_eq!(call(last, 2, done), (EFAULT, 1));
        assert_eq!(call(NOWHERE, 0, done), (0, 0));
        assert_eq!(call(last, 1, 0), (0, UNTOUCHED));
    }
    assert_eq!(bench.guest().l1_slot(bench.va(2)).map(|(_, entry)| entry.raw()), Some(0));
}

#[test]
fn f069_three_bits_are_the_command() {
    let bench = Bench::new();
    for command in 4..8 {
        assert_eq!(bench.mmu(&[(bench.slot(0) | command, 0)]), (ENOSYS, 0));
    }
}

#[test]
fn f070_entries_before_a_refusal_stay() {
    let bench = Bench::new();
    bench.pinned(0, 1, &[]);
    let page = |index, value| (bench.at(0, index), value);
    let list = [page(0, bench.to(1, P)), page(1, 0x83 | bench.to(1, P)), page(2, bench.to(1, P))];
    assert_eq!(bench.mmu(&list), (EINVAL, 1));
    assert_ne!(bench.entry(0, 0), 0);
    assert_eq!((bench.entry(0, 1), bench.entry(0, 2)), (0, 0));
}

#[test]
fn f071_m2p_takes_any_value() {
    let bench = Bench::new();
    assert_eq!(bench.mmu(&[(bench.mfn(0) << 12 | 1, 0x777)]).0, 0);
    assert_eq!(bench.m2p(bench.mfn(0)), 0x777);
    for bad in [bench.foreign(), 0xfe000] {
        assert_eq!(bench.mmu(&[(bad << 12 | 1, 0)]).0, EINVAL);
        let last = bench.log().pop();
        assert_eq!(last.as_deref(), Some("Could not get page for mach->phys update"));
    }
}

#[test]
fn f072_update_va_mapping_makes_no_tables() {
    let bench = Bench::new();
    let call = |va, entry, flush| bench.call(number::UPDATE_VA_MAPPING, [va, entry, flush, 0, 0]);
    bench.clear_log();
    assert_eq!(call(NOWHERE, bench.to(0, P), 0), EINVAL);
    assert_eq!(call(HOLE, bench.to(0, P), 0), EINVAL);
    assert_eq!(bench.log(), [""; 0]);
    let entry = bench.to(0, 0x0010_0000_0000_0005);
    assert_eq!(call(bench.va(0), entry, NOWHERE | 1), EFAULT);
    let (_, now) = bench.guest().l1_slot(bench.va(0)).expect("mapped");
    assert_eq!(now.raw(), entry, "changed all the same");
}

#[test]
fn f073_domid_io_by_address_is_dom0s() {
    let otherdomain = number::UPDATE_VA_MAPPING_OTHERDOMAIN;
    let bench = Bench::new();
    assert_eq!(bench.call(otherdomain, [bench.va(0), 0, 0, IO, 0]), EPERM);
    let dom0 = Bench::dom0();
    assert_eq!(dom0.call(otherdomain, [dom0.va(0), 0, 0, IO, 0]), 0);
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
fn f075_unknown_numbers_and_clobbered_registers() {
    for (bench, first) in
        [(Bench::new(), 0xdead_beef_dead_f00d), (Bench::release_build(), bench_list())]
    {
        assert_eq!(bench.call(99, [0; 5]), ENOSYS);
        assert_eq!(bench.call(u64::MAX, [0; 5]), ENOSYS);
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
fn two_domains_of_one_machine_do_not_share_frames() {
    let all = BootMapping::AllPages;
    let other = DomainConfig { boot_mapping: all, ..DomainConfig::new(Role::DomU, 512) };
    let model = Model::builder().boot_mapping(all).other(other).build().expect("a machine");
    let (a, b) = (model.vcpu(1, 0).expect("d1"), model.vcpu(2, 0).expect("d2"));
    assert_ne!(a.kernel_root(), b.kernel_root());
    assert!(model.vcpu(1, 1).is_none() && model.vcpu(3, 0).is_none());
}
