//! The guest's frame map from inside and from outside: a guest dumps its own map and waits, and
//! `xen-mfndump` in dom0 dumps the same map as a toolstack reads it. Both must say the same of
//! every pfn.

use std::fmt;

use anyhow::{Context as _, Result, bail};

/// What a pfn stands for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Ram(u64),
    Absent,
    Identity,
    Foreign { owner: u64, mfn: u64 },
}

impl Kind {
    /// Returns what the word of a frame map says (`p2m`, module `entry`).
    const fn of_word(word: u64) -> Self {
        const SHARED: u64 = 1 << 61;
        match word {
            _ if word < SHARED => Self::Ram(word),
            u64::MAX => Self::Absent,
            _ if word >> 63 != 0 => {
                Self::Foreign { owner: word >> 40 & 0xffff, mfn: word & ((1 << 40) - 1) }
            }
            _ if word >> 62 != 0 => Self::Identity,
            _ => Self::Absent,
        }
    }

    /// Returns what the pfn `count` further on stands for, in a run.
    const fn further(self, count: u64) -> Self {
        match self {
            Self::Ram(mfn) => Self::Ram(mfn + count),
            Self::Foreign { owner, mfn } => Self::Foreign { owner, mfn: mfn + count },
            hole => hole,
        }
    }
}

/// Pfns that stand for the same, with frames that follow one another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Run {
    start: u64,
    count: u64,
    first: Kind,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{:#x} {:x?}", self.start, self.count, self.first)
    }
}

/// A map, in runs that are as long as they can be.
#[derive(Debug, Default, Eq, PartialEq)]
struct Map(Vec<Run>);

impl Map {
    fn add(&mut self, run: Run) {
        match self.0.last_mut() {
            Some(last)
                if last.start + last.count == run.start
                    && last.first.further(last.count) == run.first =>
            {
                last.count += run.count;
            }
            _ => self.0.push(run),
        }
    }

    fn pfns(&self) -> u64 {
        self.0.iter().map(|run| run.count).sum()
    }
}

/// Returns whether dom0 saw fewer pfns than the guest has: lines of its dump are missing. A map
/// that is wrong has as many.
pub(super) fn misses_lines(lines: &[String]) -> bool {
    let seen = both(lines, "PVMMU-SEEN ");
    seen.is_ok_and(|(inside, outside)| outside.pfns() < inside.pfns())
}

/// Compares the two dumps among the lines of a guest.
///
/// # Errors
///
/// The first run that differs, or a dump that is missing.
pub(super) fn compare(lines: &[String]) -> Result<String> {
    let (inside, outside) = both(lines, "PVMMU-SEEN ")?;
    same(&inside, &outside)
}

/// Compares a guest's dump with what `xl dump-core` wrote, which is silent on pfns without memory.
///
/// # Errors
///
/// As for [`compare`].
pub(super) fn compare_core(lines: &[String]) -> Result<String> {
    let (mut inside, outside) = both(lines, "PVMMU-CORE ")?;
    inside.0.retain(|run| matches!(run.first, Kind::Ram(_)));
    same(&inside, &outside)
}

/// Returns the guest's dump, and the lines of dom0's that begin with `mark`.
fn both(lines: &[String], mark: &str) -> Result<(Map, Map)> {
    let (mut inside, mut outside) = (Map::default(), Map::default());
    for line in lines {
        if let Some(words) = line.strip_prefix(mark) {
            outside.add(seen(words).with_context(|| format!("dom0 says {line:?}"))?);
        } else if line.starts_with("pfn ") {
            inside.add(dumped(line).with_context(|| format!("the guest says {line:?}"))?);
        }
    }
    Ok((inside, outside))
}

fn same(inside: &Map, outside: &Map) -> Result<String> {
    if inside.0.is_empty() || outside.0.is_empty() {
        bail!("the guest dumped {} pfns, dom0 saw {}", inside.pfns(), outside.pfns());
    }
    for (one, other) in inside.0.iter().zip(&outside.0) {
        if one != other {
            bail!("the guest says {one}, dom0 saw {other}");
        }
    }
    if inside != outside {
        bail!("the guest dumped {} runs, dom0 saw {}", inside.0.len(), outside.0.len());
    }
    Ok(format!("({} pfns in {} runs)", inside.pfns(), inside.0.len()))
}

/// Returns `PFN COUNT MFN` or `PFN COUNT 0xWORD`.
fn seen(words: &str) -> Result<Run> {
    let [start, count, first] = words.split(' ').collect::<Vec<_>>()[..] else {
        bail!("not three words");
    };
    let word = match first.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16)?,
        None => first.parse()?,
    };
    Ok(Run { start: start.parse()?, count: count.parse()?, first: Kind::of_word(word) })
}

/// Returns `pfn START..END  KIND  mfn START..END of domain OWNER`, all but the owner in
/// hexadecimal.
fn dumped(line: &str) -> Result<Run> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let bounds = |at: usize| -> Result<(u64, u64)> {
        let (start, end) =
            words.get(at).and_then(|word| word.split_once("..")).context("no range")?;
        Ok((u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?))
    };
    let (start, end) = bounds(1)?;
    let first = match *words.get(2).context("no kind")? {
        "ram" => Kind::Ram(bounds(4)?.0),
        "absent" => Kind::Absent,
        "identity" => Kind::Identity,
        "foreign" => {
            let owner = words.last().context("no owner")?.parse()?;
            Kind::Foreign { owner, mfn: bounds(4)?.0 }
        }
        kind => bail!("no kind {kind}"),
    };
    Ok(Run { start, count: end - start, first })
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSIDE: [&str; 5] = [
        "pfn 00000..00200  ram  mfn 2a600..2a800",
        "pfn 00200..00300  absent",
        "pfn 00300..00310  identity",
        "pfn 00310..00312  foreign  mfn 00777..00779 of domain 77",
        "786 pfns: 512 ram, 256 absent, 16 identity, 2 foreign",
    ];

    fn compared(outside: &[&str]) -> Result<String> {
        let lines: Vec<String> =
            INSIDE.iter().chain(outside).map(|line| (*line).to_owned()).collect();
        compare(&lines)
    }

    #[test]
    fn two_views_of_one_map_agree_however_they_are_cut() {
        let words = compared(&[
            "PVMMU-SEEN 0 256 173568",
            "PVMMU-SEEN 256 256 173824",
            "PVMMU-SEEN 512 200 0xffffffffffffffff",
            "PVMMU-SEEN 712 56 0x3fffffffffffffff",
            "PVMMU-SEEN 768 16 0x4000000000000000",
            "PVMMU-SEEN 784 1 0x80004d0000000777",
            "PVMMU-SEEN 785 1 0x80004d0000000778",
        ]);
        assert_eq!(words.unwrap(), "(786 pfns in 4 runs)");
    }

    #[test]
    fn a_core_dump_has_only_memory() {
        let of = |core: &str| {
            let lines: Vec<String> = INSIDE.iter().map(|line| (*line).to_owned()).collect();
            compare_core(&[&lines[..], &[core.to_owned()]].concat())
        };
        assert_eq!(of("PVMMU-CORE 0 512 173568").unwrap(), "(512 pfns in 1 runs)");
        assert!(of("PVMMU-CORE 0 511 173568").is_err());
        assert!(of("PVMMU-SEEN 0 512 173568").is_err());
    }

    #[test]
    fn a_dump_that_misses_lines_is_told_from_a_map_that_is_wrong() {
        let misses = |outside: &str| {
            let lines: Vec<String> = INSIDE.iter().map(|line| (*line).to_owned()).collect();
            misses_lines(&[&lines[..], &[outside.to_owned()]].concat())
        };
        assert!(misses("PVMMU-SEEN 0 512 173568"));
        assert!(!misses("PVMMU-SEEN 0 786 173569"));
        assert!(!misses_lines(&["no dump".to_owned()]));
    }

    #[test]
    fn the_first_difference_is_named() {
        let error = compared(&["PVMMU-SEEN 0 512 173569"]).unwrap_err().to_string();
        assert_eq!(error, "the guest says 0x0+0x200 Ram(2a600), dom0 saw 0x0+0x200 Ram(2a601)");
        let error = compared(&["PVMMU-SEEN 0 512 173568"]).unwrap_err().to_string();
        assert_eq!(error, "the guest dumped 4 runs, dom0 saw 1");
        assert!(compared(&[]).unwrap_err().to_string().contains("dom0 saw 0"));
        assert!(compared(&["PVMMU-SEEN mfndump: no"]).is_err());
    }
}
