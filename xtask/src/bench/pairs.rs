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

/// What stands beside an operation that is not named here: nothing.
pub(crate) const PAIRS: &[Pair] = &[
    similar("pin, sparse tables", "pin, sparse tables", PROGRAM),
    similar("unpin, sparse tables", "unpin, sparse tables", PROGRAM),
    similar("pin and unpin, sparse tables", "pin and unpin, sparse tables", PROGRAM),
    similar("pin, full read-only tables", "pin, full tables", PROGRAM),
    similar("unpin, full read-only tables", "unpin, full tables", PROGRAM),
    similar("pin and unpin, full read-only tables", "pin and unpin, full tables", PROGRAM),
    similar(
        "make, fill and destroy, pooled tables",
        "pin and unpin, sparse tables",
        "ours fills the tables too and takes them apart; Linux's figure is the pin and unpin alone",
    ),
    similar("map, with their tables", "mmap and populate", POPULATE),
    similar("protect to read-only, in place", "mprotect to read-only", AREAS),
    similar("protect to writable, in place", "mprotect to writable", AREAS),
    similar("protect to read-only, whole tables", "mprotect to read-only", VANISH),
    similar("protect to writable, whole tables", "mprotect to writable", VANISH),
    similar("unmap", "munmap", AREAS),
    similar("unmap 511 of 512 in each table", "munmap", PART),
    similar("unmap 256 of 512 in each table", "munmap", PART),
    similar("unmap 32 of 512 in each table", "munmap", PART),
    similar("fork and destroy", "fork, exit and wait", FORK),
    similar("fork and destroy again", "fork, exit and wait again", FORK),
    similar("boot mapping", "boot mapping", BOOT),
    same("balloon out", "balloon out"),
    same("balloon in", "balloon in"),
    same("balloon in, single frames", "balloon in"),
];

const BOOT: &str = "as many pages, for the first time; Linux's figure is the \
                    difference between a boot with 1024 MiB and one with 512";
const PROGRAM: &str = "the same work; Linux's tree also has the program's own tables, which its \
                       row of size 0 shows alone: 3 % at 512 tables";
const AREAS: &str = "Linux's figure holds the system call and its book-keeping of areas and pages";
const VANISH: &str = "as above, and ours lets the pages vanish meanwhile, which Linux does not";
const PART: &str = "Linux's figure is for as many pages side by side, which is cheaper for it";
const POPULATE: &str = "Linux's figure holds the system call, an area, and clearing every page";
const FORK: &str = "Linux's figure holds a process: its areas, its stack, its files, the scheduler";

const fn same(ours: &'static str, linux: &'static str) -> Pair {
    Pair { ours, linux, work: Work::Same }
}

const fn similar(ours: &'static str, linux: &'static str, words: &'static str) -> Pair {
    Pair { ours, linux, work: Work::Similar(words) }
}

/// The pair that an operation of ours is in.
pub(crate) fn pair_of(operation: &str) -> Option<&'static Pair> {
    PAIRS.iter().find(|pair| pair.ours == operation)
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
        for (at, pair) in PAIRS.iter().enumerate() {
            assert!(PAIRS[..at].iter().all(|earlier| earlier.ours != pair.ours), "{pair:?}");
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
