//! Which of Linux's operations stands beside which of ours, and how far it is the same work.

use super::row::{Row, find};

/// An operation of ours beside one of Linux's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    /// Ours.
    pub(crate) ours: &'static str,
    /// Linux's.
    pub(crate) linux: &'static str,
    /// How far it is the same work.
    pub(crate) work: Work,
}

/// How far two operations are the same work.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Work {
    /// The same entries of the same tables change in the same way.
    Same,
    /// Not quite: the words say what one does and the other does not.
    Similar(&'static str),
}

/// Pairs of ours and Linux's that are the same work as far as the first word says. What stands
/// beside an operation that is not named here: nothing.
const PAIRS: &[(Work, &[(&str, &str)])] = &[
    (
        Work::Similar(PROGRAM),
        &[
            ("pin, sparse tables", "pin, sparse tables"),
            ("unpin, sparse tables", "unpin, sparse tables"),
            ("pin and unpin, sparse tables", "pin and unpin, sparse tables"),
            ("pin, full read-only tables", "pin, full tables"),
            ("unpin, full read-only tables", "unpin, full tables"),
            ("pin and unpin, full read-only tables", "pin and unpin, full tables"),
        ],
    ),
    (
        Work::Similar(ALONE),
        &[("make, fill and destroy, pooled tables", "pin and unpin, sparse tables")],
    ),
    (Work::Similar(POPULATE), &[("map, with their tables", "mmap and populate")]),
    (
        Work::Similar(AREAS),
        &[
            ("protect to read-only, in place", "mprotect to read-only"),
            ("protect to writable, in place", "mprotect to writable"),
            ("unmap", "munmap"),
        ],
    ),
    (
        Work::Similar(VANISH),
        &[
            ("protect to read-only, whole tables", "mprotect to read-only"),
            ("protect to writable, whole tables", "mprotect to writable"),
        ],
    ),
    (
        Work::Similar(PART),
        &[
            ("unmap 511 of 512 in each table", "munmap"),
            ("unmap 256 of 512 in each table", "munmap"),
            ("unmap 32 of 512 in each table", "munmap"),
        ],
    ),
    (
        Work::Similar(FORK),
        &[
            ("fork and destroy", "fork, exit and wait"),
            ("fork and destroy again", "fork, exit and wait again"),
        ],
    ),
    (Work::Similar(BOOT), &[(BOOT_ROW, BOOT_ROW)]),
    (Work::Similar(BOOT_MAPPING), &[("boot mapping", "boot mapping")]),
    (
        Work::Same,
        &[
            ("balloon out", "balloon out"),
            ("balloon in", "balloon in"),
            ("balloon in, single frames", "balloon in"),
        ],
    ),
];

const BOOT_ROW: &str = "boot, to the first program";
const BOOT_MAPPING: &str = "as many pages, for the first time; Linux's figure is the \
                            difference between a boot with 1024 MiB and one with 512";
const PROGRAM: &str = "the same work; Linux's tree also has the program's own tables, which its \
                       row of size 0 shows alone: 3 % at 512 tables";
const ALONE: &str =
    "ours fills the tables too and takes them apart; Linux's figure is the pin and unpin alone";
const BOOT: &str = "from power on, so Xen's own boot (our floor) is in both; Linux has 1,024 MiB, \
                    starts its devices, and waits for them; ours has 512 MiB and neither";
const AREAS: &str = "Linux's figure holds the system call and its book-keeping of areas and pages";
const VANISH: &str = "as above, and ours lets the pages vanish meanwhile, which Linux does not";
const PART: &str = "Linux's figure is for as many pages side by side, which is cheaper for it";
const POPULATE: &str = "Linux's figure holds the system call, an area, and clearing every page";
const FORK: &str = "Linux's figure holds a process: its areas, its stack, its files, the scheduler";

/// All pairs.
pub(crate) fn pairs() -> impl Iterator<Item = Pair> {
    let pair = |work: Work| move |&(ours, linux): &_| Pair { ours, linux, work };
    PAIRS.iter().flat_map(move |(work, pairs)| pairs.iter().map(pair(*work)))
}

/// Returns the pair that an operation of ours is in.
pub(crate) fn pair_of(operation: &str) -> Option<Pair> {
    pairs().find(|pair| pair.ours == operation)
}

/// Linux's figure for a row of ours: of the same size, or if ours is a part of each table, of the
/// largest size in proportion.
pub(crate) fn linux_figure(linux: &[Row], row: &Row) -> Option<u64> {
    let pair = pair_of(&row.operation)?;
    if let Some(exact) = find(linux, pair.linux, row.size) {
        return Some(exact.instructions);
    }
    if pair.work != Work::Similar(PART) {
        return None;
    }
    let sizes = linux.iter().filter(|row| row.operation == pair.linux);
    let largest = sizes.max_by_key(|row| row.size)?;
    Some(largest.instructions * row.size / largest.size)
}

#[cfg(test)]
mod tests {
    use super::super::row::test_row;
    use super::*;

    #[test]
    fn an_operation_is_in_one_pair_at_most() {
        for (at, pair) in pairs().enumerate() {
            assert!(pairs().take(at).all(|earlier| earlier.ours != pair.ours), "{pair:?}");
        }
    }

    #[test]
    fn figures_of_other_sizes_serve_only_where_the_pair_says_so() {
        let linux = [test_row("munmap", 1000, 5000)];
        let ours = |operation, size| linux_figure(&linux, &test_row(operation, size, 1));
        assert_eq!(ours("unmap", 1000), Some(5000));
        assert_eq!(ours("unmap", 10), None);
        assert_eq!(ours("unmap 32 of 512 in each table", 10), Some(50));
        assert_eq!(ours("load", 1000), None);
    }
}
