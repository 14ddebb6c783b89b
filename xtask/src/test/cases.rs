//! The guests that the test command boots, and what must come of each.

/// What must come of a guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Expectation {
    /// It passes.
    Pass,
    /// It ends with a fault, whether Xen ends it or it gives itself up.
    Fault,
    /// It shuts down without a verdict.
    NoVerdict,
    /// It does not end.
    Hang,
    /// Xen panics, as it was given no kernel.
    XenPanic,
}

/// A guest and what must come of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) program: &'static str,
    pub(super) memory_mib: u32,
    pub(super) maximum_mib: u32,
    pub(super) vcpus: u32,
    pub(super) seconds: u64,
    pub(super) expectation: Expectation,
}

/// For guests that should end.
const ENOUGH_SECONDS: u64 = 300;

pub(super) const fn case(program: &'static str, memory_mib: u32, expectation: Expectation) -> Case {
    let maximum_mib = memory_mib;
    Case { program, memory_mib, maximum_mib, vcpus: 1, seconds: ENOUGH_SECONDS, expectation }
}

/// Two vCPUs, which share one processor or have one each.
pub(super) const TWO_VCPUS: Case = Case { vcpus: 2, ..case("vcpus", 256, Expectation::Pass) };

/// Sizes that catch mistakes: 33 MiB is not a multiple of 2 MiB, 2 GiB needs more than one L3
/// entry, with 1216 MiB the direct mapping takes two rounds and the first one ends within a GiB.
pub(super) const CASES: [Case; 30] = [
    case("demo", 256, Expectation::Pass),
    case("demo", 33, Expectation::Pass),
    case("demo", 2048, Expectation::Pass),
    case("alias", 256, Expectation::Pass),
    case("primitives", 256, Expectation::Pass),
    case("spaces", 256, Expectation::Pass),
    case("flags", 256, Expectation::Pass),
    case("foreign", 256, Expectation::Pass),
    case("mapper", 256, Expectation::Pass),
    TWO_VCPUS,
    case("conformance", 256, Expectation::Pass),
    case("memory", 32, Expectation::Pass),
    case("memory", 256, Expectation::Pass),
    case("memory", 1216, Expectation::Pass),
    case("memory", 2048, Expectation::Pass),
    case("memory", 8192, Expectation::Pass),
    case("rights", 33, Expectation::Pass),
    case("rights", 256, Expectation::Pass),
    case("audit", 64, Expectation::Pass),
    case("audit", 8192, Expectation::Pass),
    case("grow", 64, Expectation::Pass),
    case("balloon", 33, Expectation::Pass),
    case("balloon", 256, Expectation::Pass),
    case("balloon", 1216, Expectation::Pass),
    case("balloon grow", 64, Expectation::Pass),
    case("fault", 256, Expectation::Fault),
    case("fault call", 256, Expectation::Fault),
    case("fault overflow", 256, Expectation::Fault),
    case("silent", 256, Expectation::NoVerdict),
    Case { seconds: 5, ..case("hang", 256, Expectation::Hang) },
];

/// Guests that make entries of every kind: those that must do without a bit of them.
pub(super) const ON_ANY_CPU: [Case; 6] = [
    case("demo", 256, Expectation::Pass),
    case("flags", 256, Expectation::Pass),
    case("rights", 33, Expectation::Pass),
    case("balloon", 33, Expectation::Pass),
    case("conformance", 256, Expectation::Pass),
    TWO_VCPUS,
];

/// Guests whose frame map dom0 examines: as the builder made it, and grown in its window with
/// entries of every kind.
pub(super) const EXAMINED: [Case; 2] =
    [case("dump stay", 64, Expectation::Pass), case("grow stay pfns=20000", 64, Expectation::Pass)];

/// Guests, and everything that xl can do to one (`dom0_session.sh`). The first one's core is
/// dumped.
pub(super) const LIVES: [Case; 4] = [
    Case {
        seconds: 300,
        ..under_xl("guest dump-core save*3 shrink save grow checkpoint pause sysrq migrate reboot")
    },
    Case { seconds: 300, vcpus: 2, ..under_xl("guest save*2 checkpoint shrink save grow reboot") },
    Case {
        seconds: 600,
        maximum_mib: 96,
        ..under_xl("guest maximum save shrink move garbage grow capped maximum checkpoint")
    },
    Case { seconds: 900, ..under_xl("guest mem-set*50") },
];

/// What takes all memory of the machine, so that it is nothing for a machine of someone's.
pub(super) const ALONE: [Case; 1] = [Case { seconds: 300, ..under_xl("guest starved") }];

const fn under_xl(program: &'static str) -> Case {
    case(program, 64, Expectation::Pass)
}
