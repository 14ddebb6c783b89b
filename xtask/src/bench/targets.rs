//! Every target of the project, in one table: an operation in a size, what its cost is held
//! against, and how much of that it may be.

use super::row::{Row, find};

/// What a cost is held against.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Against {
    /// Linux's figure for the operation that `pairs` puts beside ours.
    Linux,
    /// What bare requests take.
    Floor,
    /// Nothing: it is the number of requests that is limited.
    Traps,
    /// Nothing: it is the instructions for each that are limited.
    Each,
}

/// A target.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    /// Our operation.
    pub(crate) operation: &'static str,
    /// Its size.
    pub(crate) size: u64,
    /// What it is held against.
    pub(crate) against: Against,
    /// At most so many hundredths of that; so many requests, or instructions for each.
    pub(crate) most: u64,
}

const fn of(operation: &'static str, size: u64, against: Against, most: u64) -> Target {
    Target { operation, size, against, most }
}

/// All of them. An owner of operations adds a line for each target here.
pub(crate) const TARGETS: &[Target] = &[
    of("pin and unpin, sparse tables", 512, Against::Linux, 90),
    of("pin and unpin, sparse tables", 512, Against::Floor, 110),
    of("pin, sparse tables", 512, Against::Traps, 5),
    of("pin and unpin, full read-only tables", 128, Against::Linux, 90),
    of("pin and unpin, full read-only tables", 128, Against::Floor, 110),
    of("pin and unpin, full writable tables", 128, Against::Floor, 110),
    of("make, fill and destroy, pooled tables", 512, Against::Linux, 25),
    of("unmap", 65_536, Against::Linux, 8),
    of("unmap 511 of 512 in each table", 65_408, Against::Linux, 20),
    of("unmap 256 of 512 in each table", 32_768, Against::Linux, 20),
    of("unmap 32 of 512 in each table", 4_096, Against::Linux, 20),
    of("protect to read-only, whole tables", 65_536, Against::Linux, 50),
    of("protect to writable, whole tables", 65_536, Against::Linux, 50),
    of("protect to read-only, in place", 65_536, Against::Linux, 75),
    of("protect to writable, in place", 65_536, Against::Linux, 75),
    of("fork and destroy", 65_536, Against::Linux, 30),
    of("fork and destroy again", 65_536, Against::Linux, 30),
    of("boot mapping", 131_072, Against::Linux, 99),
    of("boot mapping", 131_072, Against::Floor, 110),
    of("boot mapping", 131_072, Against::Traps, 10),
    of("balloon out", 16_384, Against::Floor, 120),
    of("balloon out", 16_384, Against::Linux, 50),
    of("balloon in", 16_384, Against::Floor, 120),
    of("balloon in", 16_384, Against::Linux, 50),
    of("balloon in, single frames", 16_384, Against::Floor, 120),
    // A quarter of a GiB, for which 1,100 are allowed.
    of("balloon out", 65_536, Against::Traps, 275),
    of("balloon in", 65_536, Against::Traps, 275),
    of("balloon in, single frames", 65_536, Against::Traps, 275),
    of("balloon out, longest step", 1, Against::Each, 1_000_000),
    of("balloon in, longest step", 1, Against::Each, 1_000_000),
    of("balloon in, single frames, longest step", 1, Against::Each, 1_000_000),
    of("gather one run", 512, Against::Traps, 3),
    of("gather one run", 64, Against::Traps, 3),
    // 2 MiB of a pool: 32 times this is its 64 MiB, for which 160 traps are allowed.
    of("gather runs of 64", 512, Against::Traps, 5),
    // Of the five that growth by a GiB may take, two are the growth's and three the reservation's.
    of("P2M growth", 1 << 18, Against::Traps, 2),
    of("P2M reserve", 1 << 18, Against::Traps, 3),
];

/// Those of the pure parts, counted on a host: `bench --host`.
pub(crate) const HOST_TARGETS: &[Target] = &[
    // The floor is an index into a slice. Both make the pfn as well, in 17 instructions with the
    // index, so that 1.30 for the index alone are at most four more: 1.23. And 64 MiB and 1 TiB are
    // to cost the same.
    of("p2m look up 1000", 1 << 14, Against::Floor, 123),
    of("p2m look up 1000", 1 << 28, Against::Floor, 123),
    of("p2m audit", 1 << 14, Against::Each, 40),
    of("p2m audit", 1 << 22, Against::Each, 40),
    of("dma map and unmap as it is", 1000, Against::Each, 120),
];

/// A target that no row can judge: what is promised, and the command that shows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Elsewhere {
    /// What, and how much of it.
    pub(crate) promise: &'static str,
    /// What shows it.
    pub(crate) command: &'static str,
}

const fn elsewhere(promise: &'static str, command: &'static str) -> Elsewhere {
    Elsewhere { promise, command }
}

/// All of those: they depend on a clock, on a long run, or on two machines.
pub(crate) const ELSEWHERE: &[Elsewhere] = &[
    elsewhere("from a bare machine to the verdict in 10 min, the build included", ".ci/run"),
    elsewhere("warm run to the verdict: dom0 in 15 s", "cargo xtask run"),
    elsewhere("warm run to the verdict: domU in 90 s", "cargo xtask run --as domu"),
    elsewhere("boots with 33 MiB, 256 MiB and 2 GiB, both roles", "cargo xtask test"),
    elsewhere("tests without Xen in 60 s, warm", "cargo xtask test --quick"),
    elsewhere(
        "500,000 operations on each release, no divergence; 20,000 in the tests",
        "cargo xtask prove --ops 500000 --seeds 25 --xen 4.14,4.17,4.20",
    ),
    elsewhere(
        "the model: 2 million operations in a second, a 1 TiB guest in 1 GiB, a boot in 5 ms",
        "cargo run --release -p xen-model --example speed",
    ),
    elsewhere("a 1 TiB list adopted without a copy", "cargo xtask bench --host"),
    elsewhere(
        "at most 10 hypercalls for the mapping of 8 GiB",
        "cargo xtask run --mem 8192 memory",
    ),
    elsewhere(
        "a plan for 16 TiB, and its tables, in 50 ms",
        "cargo run --release -p early-pgt --example boot_mapping 16384",
    ),
    elsewhere("a bounce pool of 64 MiB in 160 traps", "cargo test -p swiotlb --test region"),
    elsewhere("no hypercall in a DMA mapping's life", "cargo test -p swiotlb --test stream"),
    elsewhere(
        "two threads in two areas of a bounce pool: 1.8 times one",
        "cargo run --release -p pv-tests --example dma_threads 10000000",
    ),
    elsewhere(
        "1 GiB in 1,100 traps each way, and a million instructions a step, in one run",
        "cargo xtask run --icount --mem 1216 --timeout 500 balloon",
    ),
    elsewhere("50 changes of the balloon's target under load", "cargo xtask test"),
    elsewhere(
        "200 cycles of save and restore without a page lost",
        "cargo xtask run --as domu --mem 33 --timeout 7200 guest 'save*200'",
    ),
    elsewhere("the bench with Linux in 15 min", "time cargo xtask bench --vs linux"),
    elsewhere("the bench of the tests in 3 min", "cargo xtask test"),
    elsewhere("no count more than 2 % above its baseline", "cargo xtask bench --check"),
    elsewhere("logs explained at 100 MB in a second", "cargo bench -p xen-explain"),
];

/// How each target was met, by rows of a guest and of the host. `linux` is Linux's figure for a row
/// of ours.
pub(crate) fn judge_all(
    rows: &[Row],
    host: &[Row],
    linux: impl Fn(&Row) -> Option<u64>,
) -> Vec<(&'static Target, Judged)> {
    let guests = TARGETS.iter().map(|target| (target, target.judge(rows, &linux)));
    let hosts = HOST_TARGETS.iter().map(|target| (target, target.judge(host, |_| None)));
    guests.chain(hosts).collect()
}

/// How a target was met.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Judged {
    /// The cost is this share of what it is held against, or this number of requests.
    Met(f64),
    /// It is, and that is too much.
    Missed(f64),
    /// There is no figure to hold it against, or none of ours.
    Unknown,
}

impl Target {
    /// Judges our rows. `linux` is Linux's figure for a row of ours.
    pub(crate) fn judge(&self, rows: &[Row], linux: impl Fn(&Row) -> Option<u64>) -> Judged {
        let Some(row) = find(rows, self.operation, self.size) else { return Judged::Unknown };
        let share = |figure: u64| row.instructions as f64 / figure as f64;
        let (value, most) = match self.against {
            Against::Traps => (Some(row.traps as f64), self.most as f64),
            Against::Each => (Some(row.instructions as f64 / row.size as f64), self.most as f64),
            Against::Linux => (linux(row).map(share), self.most as f64 / 100.0),
            Against::Floor => (row.floor.map(share), self.most as f64 / 100.0),
        };
        match value {
            None => Judged::Unknown,
            Some(value) if value <= most => Judged::Met(value),
            Some(value) => Judged::Missed(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::test_row;
    use super::*;

    #[test]
    fn a_target_is_met_up_to_its_limit_and_missed_beyond() {
        let row = Row { floor: Some(100), ..test_row("x", 1, 110) };
        let rows = [row];
        let judge = |against, most| of("x", 1, against, most).judge(&rows, |_| Some(200));
        assert_eq!(judge(Against::Floor, 110), Judged::Met(1.1));
        assert_eq!(judge(Against::Floor, 109), Judged::Missed(1.1));
        assert_eq!(judge(Against::Linux, 55), Judged::Met(0.55));
        assert_eq!(judge(Against::Traps, 0), Judged::Missed(1.0));
    }

    #[test]
    fn without_a_figure_nothing_is_claimed() {
        let rows = [test_row("x", 1, 110)];
        assert_eq!(of("x", 1, Against::Floor, 1).judge(&rows, |_| None), Judged::Unknown);
        assert_eq!(of("x", 1, Against::Linux, 1).judge(&rows, |_| None), Judged::Unknown);
        assert_eq!(of("y", 1, Against::Traps, 9).judge(&rows, |_| None), Judged::Unknown);
    }
}
