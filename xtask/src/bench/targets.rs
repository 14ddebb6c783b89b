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
    /// At most so many hundredths of that; for [`Against::Traps`], so many requests.
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
    of("gather one run", 512, Against::Traps, 3),
    of("gather one run", 64, Against::Traps, 3),
    // 2 MiB of a pool: 32 times this is its 64 MiB, for which 160 traps are allowed.
    of("gather runs of 64", 512, Against::Traps, 5),
];

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
