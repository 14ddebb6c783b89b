//! The report in text: a line for each row, and the targets behind them.

use std::fmt::Write as _;

use super::pairs::{Work, linux_figure, pair_of};
use super::row::{Figures, Row};
use super::targets::{Against, ELSEWHERE, Judged, TARGETS, Target, judge_all};
use crate::release::Release;

/// How many operations are named as the furthest from their floors, and under which words.
const FURTHEST: usize = 10;
pub(crate) const FURTHEST_WORDS: [&str; 3] = ["furthest from the floor", "of floor", "in Xen"];

impl Figures<'_> {
    /// How a target for our rows was met.
    fn judge(self, target: &Target) -> Judged {
        target.judge(self.rows, |row| linux_figure(self.linux, row))
    }

    /// How each target was met.
    pub(crate) fn judged(self) -> Vec<(&'static Target, Judged)> {
        judge_all(self.rows, self.host, |row| linux_figure(self.linux, row))
    }
}

/// Returns a line for each row, under a head for each operation.
pub(crate) fn rows(figures: Figures<'_>) -> String {
    let mut text = format!(
        "{:>10} {:>13} {:>9} {:>6} {:>6} {:>8} {:>9} {:>9}\n",
        "size", "instructions", "each", "in Xen", "traps", "entries", "of floor", "of Linux"
    );
    let mut operation = "";
    for row in by_operation(figures.rows) {
        if row.operation != operation {
            operation = &row.operation;
            let _ = writeln!(text, "{operation} ({})", row.unit);
        }
        let [each, in_xen, traps, entries, of_floor, of_linux] = row_words(row, figures.linux);
        let _ = writeln!(
            text,
            "{:>10} {:>13} {each:>9} {in_xen:>6} {traps:>6} {entries:>8} {of_floor:>9} \
             {of_linux:>9}",
            row.size, row.instructions
        );
    }
    text
}

/// Returns what a report says of a row behind its size and its instructions: instructions for each,
/// the part in Xen, traps, entries, the share of the floor and of Linux.
pub(crate) fn row_words(row: &Row, linux: &[Row]) -> [String; 6] {
    let nothing = || "-".to_owned();
    let share = |figure: u64| format!("{:.3}", row.instructions as f64 / figure.max(1) as f64);
    let part = |in_xen: u64| format!("{}%", in_xen * 100 / row.instructions.max(1));
    [
        (row.instructions / row.size.max(1)).to_string(),
        row.in_xen.map_or_else(nothing, part),
        row.traps.to_string(),
        row.entries.to_string(),
        row.floor.map_or_else(nothing, share),
        linux_figure(linux, row).map_or_else(nothing, share),
    ]
}

/// Returns what a report says of a target: whose figure, how much of it at most, how much it is,
/// and a word on that.
pub(crate) fn target_words(target: &Target, judged: Judged) -> [String; 4] {
    let share = target.most as f64 / 100.0;
    let (against, most) = match target.against {
        Against::Linux => ("Linux", format!("{share:.2}")),
        Against::Floor => ("the floor", format!("{share:.2}")),
        Against::Traps => ("traps", target.most.to_string()),
        Against::Each => ("each", target.most.to_string()),
    };
    let figure = |value: f64| match target.against {
        Against::Traps => format!("{value:.0}"),
        Against::Each if value < 1000.0 => format!("{value:.1}"),
        Against::Each => format!("{value:.0}"),
        Against::Linux | Against::Floor => format!("{value:.3}"),
    };
    let (is, word) = match judged {
        Judged::Met(value) => (figure(value), "met"),
        Judged::Missed(value) => (figure(value), "MISSED"),
        Judged::Unknown => ("-".to_owned(), "not measured"),
    };
    [against.to_owned(), most, is, word.to_owned()]
}

/// Returns the rows, those of one operation together, otherwise in the order in which they were
/// measured.
pub(crate) fn by_operation(rows: &[Row]) -> Vec<&Row> {
    let first = |row: &Row| rows.iter().position(|other| other.operation == row.operation);
    let mut sorted: Vec<&Row> = rows.iter().collect();
    sorted.sort_by_key(|row| first(row));
    sorted
}

/// Returns a line for each target, how many are met, and where the others are judged.
pub(crate) fn targets(figures: Figures<'_>) -> String {
    let mut text =
        format!("{:<42} {:>9}  {:<9} {:>8} {:>8}\n", "target", "size", "against", "at most", "is");
    let (mut met, mut known) = (0, 0);
    for (target, judged) in figures.judged() {
        let [against, most, is, word] = target_words(target, judged);
        met += u32::from(matches!(judged, Judged::Met(_)));
        known += u32::from(judged != Judged::Unknown);
        let name = target.operation;
        let _ =
            writeln!(text, "{name:<42} {:>9}  {against:<9} {most:>8} {is:>8}  {word}", target.size);
    }
    let _ = writeln!(text, "{met} of {known} targets met\njudged elsewhere:");
    for target in ELSEWHERE {
        let _ = writeln!(text, "  {}: {}", target.promise, target.command);
    }
    text
}

/// Returns the targets on several releases, as a table that a document can have.
pub(crate) fn side_by_side(releases: &[(Release, Figures<'_>)]) -> String {
    let mut text = "| target | size | against | at most |".to_owned();
    for (release, _) in releases {
        let _ = write!(text, " {release} |");
    }
    text = text + "\n|---|---|---|---|" + &"---|".repeat(releases.len()) + "\n";
    for target in TARGETS {
        let mut cells = String::new();
        let mut head = String::new();
        for (_, figures) in releases {
            let judged = figures.judge(target);
            let [against, most, is, _] = target_words(target, judged);
            head = format!("| {} | {} | {against} | {most} |", target.operation, target.size);
            let _ = match judged {
                Judged::Missed(_) => write!(cells, " **{is}** |"),
                Judged::Met(_) | Judged::Unknown => write!(cells, " {is} |"),
            };
        }
        let _ = writeln!(text, "{head}{cells}");
    }
    text
}

/// Returns a line for each of the operations that are furthest from their floors.
pub(crate) fn furthest(figures: Figures<'_>) -> String {
    let [head, of_floor, in_xen] = FURTHEST_WORDS;
    let mut text = format!("{head:<44} {:>9} {of_floor:>9} {in_xen:>9}\n", "size");
    for (row, [of_floor, in_xen]) in furthest_rows(figures.rows) {
        let name = &row.operation;
        let _ = writeln!(text, "{name:<44} {:>9} {of_floor:>9} {in_xen:>9}", row.size);
    }
    text
}

/// Of each operation the size in which it is furthest from its floor; of all these the furthest,
/// with how much of the floor they are, and how much of it passes in Xen.
pub(crate) fn furthest_rows(rows: &[Row]) -> Vec<(&Row, [String; 2])> {
    let share = |row: &Row, part: u64| part as f64 / row.floor.unwrap_or(1).max(1) as f64;
    let whole = |row: &Row| share(row, row.instructions);
    let mut worst: Vec<&Row> = Vec::new();
    for row in rows.iter().filter(|row| row.floor.is_some()) {
        match worst.iter_mut().find(|other| other.operation == row.operation) {
            Some(other) if whole(other) >= whole(row) => {}
            Some(other) => *other = row,
            None => worst.push(row),
        }
    }
    worst.sort_by(|one, other| whole(other).total_cmp(&whole(one)));
    let words = |row: &Row| {
        let in_xen = row.in_xen.map(|part| format!("{:.3}", share(row, part)));
        [format!("{:.3}", whole(row)), in_xen.unwrap_or_else(|| "-".to_owned())]
    };
    worst.into_iter().take(FURTHEST).map(|row| (row, words(row))).collect()
}

/// Returns what stands beside what, and how far it is the same work.
pub(crate) fn pairs(figures: Figures<'_>) -> String {
    let mut text = "beside Linux:\n".to_owned();
    let mut before = "";
    let rows = by_operation(figures.rows);
    for row in rows.into_iter().filter(|row| linux_figure(figures.linux, row).is_some()) {
        let Some(pair) = pair_of(&row.operation).filter(|pair| pair.ours != before) else {
            continue;
        };
        before = pair.ours;
        let words = match pair.work {
            Work::Same => "the same work",
            Work::Similar(words) => words,
        };
        let _ = writeln!(text, "  {} / Linux's {}: {words}", pair.ours, pair.linux);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::row::test_row;
    use super::*;

    #[test]
    fn the_sizes_of_an_operation_stand_together() {
        let rows = [test_row("b", 1, 1), test_row("a", 1, 1), test_row("b", 2, 1)];
        let sorted: Vec<_> = by_operation(&rows).into_iter().map(|row| &row.operation).collect();
        assert_eq!(sorted, ["b", "b", "a"]);
        let text = super::rows(Figures { rows: &rows, linux: &[], host: &[] });
        assert_eq!(text.lines().count(), 1 + 2 + 3, "{text}");
    }

    #[test]
    fn what_stands_beside_linux_is_explained_once() {
        let rows = [test_row("unmap", 1, 10), test_row("unmap", 2, 10)];
        let linux = [test_row("munmap", 1, 100), test_row("munmap", 2, 100)];
        let text = pairs(Figures { rows: &rows, linux: &linux, host: &[] });
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("areas and pages"), "{text}");
    }

    #[test]
    fn every_target_has_its_line_and_those_without_figures_do_not_count() {
        let none = Figures { rows: &[], linux: &[], host: &[] };
        let text = targets(none);
        assert_eq!(text.lines().count(), none.judged().len() + ELSEWHERE.len() + 3, "{text}");
        assert!(text.contains("\n0 of 0 targets met\n"), "{text}");
    }

    #[test]
    fn of_each_operation_the_furthest_size_is_named_and_the_furthest_first() {
        let row = |operation, size, instructions| Row {
            floor: Some(100),
            ..test_row(operation, size, instructions)
        };
        let rows = [row("a", 1, 150), row("a", 2, 120), row("b", 1, 300), test_row("c", 1, 9)];
        let text = furthest(Figures { rows: &rows, linux: &[], host: &[] });
        let words: Vec<Vec<&str>> =
            text.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words, [["b", "1", "3.000", "-"], ["a", "1", "1.500", "-"]]);
    }

    #[test]
    fn a_release_has_its_column_and_a_missed_target_stands_out() {
        let linux = [test_row("munmap", 65_536, 100)];
        let rows = [7, 9].map(|instructions| [test_row("unmap", 65_536, instructions)]);
        let figures = |rows| Figures { rows, linux: &linux, host: &[] };
        let releases =
            [(Release::Xen4_14, figures(&rows[0])), (Release::Xen4_20, figures(&rows[1]))];
        let text = side_by_side(&releases);
        assert!(text.starts_with("| target | size | against | at most | 4.14 | 4.20 |\n|---|"));
        assert!(text.contains("| unmap | 65536 | Linux | 0.08 | 0.070 | **0.090** |\n"), "{text}");
        assert_eq!(text.lines().count(), 2 + TARGETS.len());
    }
}
