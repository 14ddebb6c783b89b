//! The output of the guest's program `prove`:
//!
//! | line | means |
//! |---|---|
//! | `P seed S` | the sequence of seed S begins |
//! | `D N X` | after N groups the digest of all answers is X |
//! | `S N STEP` | a step of group N |
//! | `O N WORDS` | what was observed after group N |
//! | `C OPERATION ERRNO COUNT` | how often the operation met the answer |
//! | `T FROM TO COUNT` | how often a frame went from one type to another (the model only) |

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;

use crate::boot::verdict::Verdict;

/// A group of steps and what was observed after it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Group {
    pub(super) steps: Vec<String>,
    pub(super) observed: String,
}

impl Group {
    /// Returns whether the group puts everything back.
    pub(super) fn is_clean_up(&self) -> bool {
        self.steps == ["= clean"]
    }
}

/// What one run printed.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    /// Seed, groups, digest.
    digests: Vec<(u64, u64, String)>,
    seed: u64,
    groups: Vec<Group>,
    coverage: BTreeMap<(String, String), u64>,
    transitions: BTreeMap<(String, String), u64>,
    verdict: Option<Verdict>,
}

impl Record {
    /// Takes a line in.
    pub(super) fn line(&mut self, line: &str) {
        if let Some(verdict) = Verdict::parse(line) {
            self.verdict = Some(verdict);
        }
        let Some((kind, rest)) = line.split_once(' ') else { return };
        match kind {
            "P" => self.seed = rest.trim_start_matches("seed ").parse().unwrap_or_default(),
            "D" => {
                let (groups, digest) = rest.split_once(' ').unwrap_or((rest, ""));
                let groups = groups.parse().unwrap_or_default();
                self.digests.push((self.seed, groups, digest.to_owned()));
            }
            "S" | "O" => self.group_line(kind, rest),
            "C" => {
                let mut words: Vec<&str> = rest.split_whitespace().collect();
                let count =
                    words.pop().and_then(|word| word.parse::<u64>().ok()).unwrap_or_default();
                let errno = words.pop().unwrap_or_default().to_owned();
                *self.coverage.entry((words.join(" "), errno)).or_default() += count;
            }
            "T" => {
                let words: Vec<&str> = rest.split_whitespace().collect();
                if let [from, to, count] = words[..] {
                    let count: u64 = count.parse().unwrap_or_default();
                    *self.transitions.entry((from.to_owned(), to.to_owned())).or_default() += count;
                }
            }
            _ => {}
        }
    }

    fn group_line(&mut self, kind: &str, rest: &str) {
        let (_, text) = rest.split_once(' ').unwrap_or((rest, ""));
        if self.groups.last().is_none_or(|group| !group.observed.is_empty()) {
            self.groups.push(Group::default());
        }
        let Some(group) = self.groups.last_mut() else { return };
        match kind {
            "S" => group.steps.push(text.to_owned()),
            _ => text.clone_into(&mut group.observed),
        }
    }

    /// Returns whether the run came to its end.
    pub(super) fn has_verdict(&self) -> bool {
        self.verdict.is_some()
    }

    /// Returns how many operations were done, in the program's words.
    pub(super) fn operations(&self) -> u64 {
        match &self.verdict {
            Some(Verdict::Pass(words)) => {
                words.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or_default()
            }
            _ => 0,
        }
    }

    /// Returns the groups shown in full.
    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Returns whether both runs saw the same.
    pub(super) fn same_as(&self, other: &Self) -> bool {
        self.digests == other.digests
            && self.groups == other.groups
            && self.coverage == other.coverage
            && self.verdict == other.verdict
    }

    /// Returns the seed whose digests differ first, and between which groups.
    pub(super) fn first_difference(&self, other: &Self) -> Option<(u64, Range<u64>)> {
        let pairs = self.digests.iter().zip(&other.digests);
        let at = pairs.clone().position(|(mine, theirs)| mine != theirs)?;
        let (seed, groups, _) = &self.digests[at];
        let before = at.checked_sub(1).map(|before| &self.digests[before]);
        let start = before.filter(|(same, ..)| same == seed).map_or(0, |(_, groups, _)| *groups);
        Some((*seed, start..groups.max(&other.digests[at].1) + 1))
    }

    /// Returns what differs although the digests do not.
    pub(super) fn other_differences(&self, other: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.verdict != other.verdict {
            lines.push(format!("real Xen: {:?}, model: {:?}", self.verdict, other.verdict));
        }
        for (key, count) in &self.coverage {
            let theirs = other.coverage.get(key).copied().unwrap_or_default();
            if *count != theirs {
                lines.push(format!("{} {}: {count} times, on the model {theirs}", key.0, key.1));
            }
        }
        lines
    }

    /// Adds the coverage of another run.
    pub(super) fn add_coverage(&mut self, other: &Self) {
        for (key, count) in &other.coverage {
            *self.coverage.entry(key.clone()).or_default() += count;
        }
    }

    /// Adds the transitions that the model counted in another run.
    pub(super) fn add_transitions(&mut self, other: &Self) {
        for (key, count) in &other.transitions {
            *self.transitions.entry(key.clone()).or_default() += count;
        }
    }

    /// Returns the coverage: a row for each operation, its answers in columns. Operations that
    /// never happened are named.
    pub(super) fn coverage_table(&self) -> String {
        let mut operations: BTreeMap<&str, Vec<(&str, u64)>> = BTreeMap::new();
        for ((operation, errno), count) in &self.coverage {
            operations.entry(operation).or_default().push((errno, *count));
        }
        let mut text = format!("{:<22} answers (errno: how often)\n", "operation");
        let mut missing = Vec::new();
        for (operation, answers) in operations {
            if answers.iter().all(|(_, count)| *count == 0) {
                missing.push(operation);
                continue;
            }
            let _ = write!(text, "{operation:<22}");
            for (errno, count) in answers.iter().filter(|(_, count)| *count > 0) {
                let _ = match *errno {
                    "0" => write!(text, " done: {count}"),
                    "1000" => write!(text, " fault: {count}"),
                    errno => write!(text, " -{errno}: {count}"),
                };
            }
            text.push('\n');
        }
        match missing.is_empty() {
            true => text += "every operation happened\n",
            false => text += &format!("never happened: {}\n", missing.join(", ")),
        }
        text
    }

    /// Returns how often frames went from one type to another; what never happened is named.
    pub(super) fn transition_table(&self) -> String {
        let mut text = "frames taken into use as (what they were last: how often)\n".to_owned();
        let mut missing = Vec::new();
        let mut columns: BTreeMap<&str, Vec<(&str, u64)>> = BTreeMap::new();
        for ((from, to), count) in &self.transitions {
            columns.entry(to).or_default().push((from, *count));
            if *count == 0 {
                missing.push(format!("{from} to {to}"));
            }
        }
        for (to, rows) in columns {
            let _ = write!(text, "{to:<22}");
            for (from, count) in rows.iter().filter(|(_, count)| *count > 0) {
                let _ = write!(text, " {from}: {count}");
            }
            text.push('\n');
        }
        match missing.is_empty() {
            true => text += "every transition happened\n",
            false => text += &format!("never happened: {}\n", missing.join(", ")),
        }
        text
    }

    /// Returns the groups as a file keeps them.
    pub(super) fn transcript(&self) -> String {
        let mut text = String::new();
        for group in &self.groups {
            let _ = writeln!(text, "{}\nO {}", group.steps.join("\n"), group.observed);
        }
        text
    }

    /// Returns the steps in a file written by [`Record::transcript`].
    pub(super) fn steps_of(text: &str) -> Vec<String> {
        let steps = text.lines().filter(|line| line.starts_with(['=', '+', '*']));
        steps.map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(text: &str) -> Record {
        let mut record = Record::default();
        text.lines().for_each(|line| record.line(line));
        record
    }

    #[test]
    fn the_first_digest_that_differs_names_the_groups_in_question() {
        let real = record("P seed 4\nD 100 aa\nP seed 5\nD 100 bb\nD 200 cc\nD 230 dd\n");
        let model = record("P seed 4\nD 100 aa\nP seed 5\nD 100 bb\nD 200 xx\nD 230 yy\n");
        assert_eq!(real.first_difference(&model), Some((5, 100..201)));
        assert_eq!(real.first_difference(&real.clone()), None);
        let model = record("P seed 4\nD 100 aa\nP seed 5\nD 100 xx\n");
        assert_eq!(real.first_difference(&model), Some((5, 0..101)));
    }

    #[test]
    fn groups_are_kept_with_their_steps_and_read_back() {
        let text = "S 7 = zero f1\nO 7 0 f0000001\nS 8 = update 0 f1.2 f3 63\nS 8 + ext 4 f1 zero\n\
                    O 8 100000016 2\nS 9 = clean\nO 9 0\n";
        let record = record(text);
        assert_eq!(record.groups().len(), 3);
        assert_eq!(record.groups()[1].steps, ["= update 0 f1.2 f3 63", "+ ext 4 f1 zero"]);
        assert_eq!(record.groups()[1].observed, "100000016 2");
        assert!(record.groups()[2].is_clean_up());
        let steps = ["= zero f1", "= update 0 f1.2 f3 63", "+ ext 4 f1 zero", "= clean"];
        assert_eq!(Record::steps_of(&record.transcript()), steps);
    }

    #[test]
    fn coverage_names_what_never_happened() {
        let table = record("C pin L1 0 12\nC pin L1 22 3\nC mark_super - 0\n").coverage_table();
        assert!(table.contains("pin L1                 done: 12 -22: 3\n"), "{table}");
        assert!(table.ends_with("never happened: mark_super\n"), "{table}");
    }

    #[test]
    fn transitions_come_from_one_side_and_do_not_count_as_a_difference() {
        let model = record("D 5 aa\nT none L1 4\nT L1 L2 0\n");
        assert!(record("D 5 aa\n").same_as(&model));
        let mut total = Record::default();
        total.add_transitions(&model);
        total.add_transitions(&model);
        let table = total.transition_table();
        assert!(table.contains("L1                     none: 8\n"), "{table}");
        assert!(table.ends_with("never happened: L1 to L2\n"), "{table}");
    }

    #[test]
    fn runs_that_differ_only_in_coverage_or_verdict_are_not_the_same() {
        let one = record("D 5 aa\nC pin L1 0 1\nPVMMU-VERDICT pass 9 operations\n");
        assert_eq!(one.operations(), 9);
        assert!(one.same_as(&one.clone()));
        let other = record("D 5 aa\nC pin L1 0 2\nPVMMU-VERDICT pass 9 operations\n");
        assert!(!one.same_as(&other));
        assert_eq!(one.other_differences(&other), ["pin L1 0: 1 times, on the model 2"]);
        let failed = record("D 5 aa\nC pin L1 0 1\nPVMMU-VERDICT fail x\n");
        assert!(!one.same_as(&failed));
    }
}
