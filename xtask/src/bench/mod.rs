//! `cargo xtask bench`: what every operation costs on real Xen, in executed instructions.
//!
//! | file | what it knows |
//! |---|---|
//! | `row` | a figure, as the guest prints it and as files keep it |
//! | `targets` | every target of the project, in one table |
//! | `pairs` | which of Linux's operations stands beside which of ours |
//! | `host` | counts the pure parts under valgrind |
//! | `early` | what Linux takes to map its memory at boot |
//! | `linux` | boots Linux and reads its figures |
//! | `baseline` | figures of an earlier run, and what has become worse |
//! | `text`, `html`, `plot` | the report: in text, as a page for a browser, its pictures |

mod baseline;
mod early;
mod host;
mod html;
mod linux;
mod pairs;
mod plot;
mod row;
mod targets;
mod text;

use std::time::Duration;

use anyhow::{Result, bail};

use self::baseline::Comparison;
use self::row::Figures;
use self::row::Row;
use self::targets::Judged;
use crate::ExitStatus;
use crate::boot::Clock;
use crate::cli::{BenchArguments, Rival, Role, WITHIN};
use crate::progress::Step;
use crate::release::{Release, Releases};
use crate::station::{Boot, Station};

/// A boot of the guest, in which it measures a part of the rows.
struct Part {
    /// What the guest is.
    role: Role,
    /// What it is told.
    arguments: &'static str,
    /// Its memory: 65,536 pages, and what the kernel needs.
    memory_mib: u32,
    /// Its virtual CPUs, each on a processor of its own.
    vcpus: u32,
}

/// All of them. What needs another guest than the first one is a part of its own.
const PARTS: [Part; 3] = [
    Part { role: Role::Dom0, arguments: "bench all", memory_mib: 512, vcpus: 1 },
    Part { role: Role::Dom0, arguments: "bench flush", memory_mib: 512, vcpus: 2 },
    Part { role: Role::Domu, arguments: SAVED, memory_mib: 64, vcpus: 1 },
];
/// A domU that is saved and restored by xl: the least of three counts, as dom0 may run in between.
const SAVED: &str = "guest save*3";

/// Two runs may differ by this part of a figure.
const INTERRUPTS: u64 = 10_000;
/// How long the guest may take, on a machine that others use too.
const LIMIT: Duration = Duration::from_secs(600);

/// How often what is worse than the baseline is measured again.
const AGAIN_MAX: usize = 3;

/// When a guest begins to measure: so many times some three million instructions later than it
/// could. A clock interrupts Xen every ten million, at the same instruction of every boot; in a run
/// that begins later it comes in another row.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Late(usize);

/// Measures twice, compares, judges, and reports, on each release that the arguments name.
///
/// # Errors
///
/// This machine lacks something, the guest fails, or a file cannot be read or written.
pub(crate) fn bench(arguments: &BenchArguments) -> Result<ExitStatus> {
    if arguments.host {
        return bench_host(arguments);
    }
    let Releases(releases) = &arguments.xen;
    let files = [&arguments.json, &arguments.html, &arguments.baseline];
    if files.iter().any(|file| file.is_some()) && releases.len() > 1 {
        bail!("a file has the figures of one release: name one with --xen");
    }
    let mut station = Station::open()?;
    let host = row::read(&baseline::host())?;
    let mut status = ExitStatus::Pass;
    let mut all = Vec::new();
    for &release in releases {
        let (one, rows, linux) = bench_on(&mut station, release, arguments, &host)?;
        if one == ExitStatus::Fail {
            status = one;
        }
        all.push((release, rows, linux));
    }
    if let [_, _, ..] = &all[..] {
        let side_by_side: Vec<_> = all
            .iter()
            .map(|(release, rows, linux)| (*release, Figures { rows, linux, host: &host }))
            .collect();
        print!("{}", text::side_by_side(&side_by_side));
    }
    Ok(status)
}

/// Returns the same on one release: whether it is as good as it was, our rows and Linux's.
fn bench_on(
    station: &mut Station,
    release: Release,
    arguments: &BenchArguments,
    host: &[Row],
) -> Result<(ExitStatus, Vec<Row>, Vec<Row>)> {
    let rows = measure(station, release, Late(0))?;
    let again = measure(station, release, Late(0))?;
    let same = compare(&rows, &again)?;
    let linux = linux_rows(arguments, release)?;
    let figures = Figures { rows: &rows, linux: &linux, host };
    println!("Xen {release}, QEMU {}: two runs, {same}", station.qemu_version());
    print!("{}\n{}\n{}\n", text::rows(figures), text::pairs(figures), text::furthest(figures));
    print!("{}", text::targets(figures));
    if let Some(file) = &arguments.json {
        row::write_all(file, figures)?;
    }
    if let Some(file) = &arguments.html {
        html::write(file, &format!("pvmmu on Xen {release}"), figures)?;
    }
    if arguments.update {
        let late = measure(station, release, Late(1))?;
        row::write(&baseline::ours(release), &row::least(&rows, &late))?;
    }
    let status = match arguments.check {
        true => {
            let ours = baseline::ours(release);
            let file = arguments.baseline.as_deref().unwrap_or(&ours);
            let before = row::read(file)?;
            let comparison = hold(station, release, &rows, &before, arguments.within)?;
            report(&comparison, arguments.within)
        }
        false => ExitStatus::Pass,
    };
    Ok((status, rows, linux))
}

/// Compares rows with those of a baseline. What is worse is measured again, and counts only if it
/// is worse whenever it is measured.
fn hold(
    station: &mut Station,
    release: Release,
    rows: &[Row],
    before: &[Row],
    within: u64,
) -> Result<Comparison> {
    let mut rows = rows.to_vec();
    for late in (1..=AGAIN_MAX).map(Late) {
        let comparison = baseline::compare(before, &rows, within);
        if comparison.worse.is_empty() {
            return Ok(comparison);
        }
        rows = row::least(&rows, &measure(station, release, late)?);
    }
    Ok(baseline::compare(before, &rows, within))
}

/// Compares two runs: the same rows, requests and elements, and the same instructions but for an
/// interrupt of Xen's that came in one row and not in the next. What there is to say of it.
fn compare(rows: &[Row], again: &[Row]) -> Result<String> {
    let mut differs = Vec::new();
    let mut off = 0;
    for (one, other) in rows.iter().zip(again).filter(|(one, other)| one != other) {
        let apart = one.instructions.abs_diff(other.instructions);
        let named = one.is(&other.operation, other.size);
        let counts = (one.traps, one.entries) == (other.traps, other.entries);
        if !named || !counts || apart > one.instructions / INTERRUPTS {
            differs.push(format!("{one:?}\n  in the second run {other:?}"));
        }
        off += 1;
    }
    if rows.len() != again.len() || !differs.is_empty() {
        bail!("two runs do not give the same figures:\n{}", differs.join("\n"));
    }
    Ok(match off {
        0 => format!("{} rows, the same to the last digit", rows.len()),
        off => format!("{} rows, {off} of them apart by less than 0.01 %", rows.len()),
    })
}

/// Returns the same for the pure parts, on this host, where no two runs are needed: nothing else
/// runs in valgrind.
fn bench_host(arguments: &BenchArguments) -> Result<ExitStatus> {
    let rows = host::measure()?;
    print!("{}", text::rows(Figures { rows: &rows, linux: &[], host: &[] }));
    let figures = Figures { rows: &[], linux: &[], host: &rows };
    print!("{}", text::targets(figures));
    if let Some(file) = &arguments.json {
        row::write_all(file, figures)?;
    }
    if arguments.update {
        row::write(&baseline::host(), &rows)?;
    }
    if arguments.check {
        let ours = baseline::host();
        let before = row::read(arguments.baseline.as_deref().unwrap_or(&ours))?;
        let comparison = baseline::compare(&before, &rows, arguments.within);
        return Ok(report(&comparison, arguments.within));
    }
    Ok(ExitStatus::Pass)
}

/// Linux's figures: of this run, or recorded ones.
fn linux_rows(arguments: &BenchArguments, release: Release) -> Result<Vec<Row>> {
    let file = baseline::linux(release);
    if arguments.vs == Some(Rival::Linux) {
        let rows = linux::measure(release)?;
        if arguments.update {
            row::write(&file, &rows)?;
        }
        return Ok(rows);
    }
    if !file.is_file() {
        println!("Linux's figures on Xen {release} are not recorded: --vs linux");
        return Ok(Vec::new());
    }
    println!("Linux's figures are those recorded in {}: --vs linux measures", file.display());
    row::read(&file)
}

/// Boots the guest once for each part, and holds its figures against the baseline. How many of them
/// are more or fewer.
///
/// # Errors
///
/// As for [`bench()`]; or a figure is worse than it may be: named with both figures.
pub(crate) fn check_once(release: Release) -> Result<String> {
    let mut station = Station::open()?;
    let rows = measure(&mut station, release, Late(0))?;
    let before = row::read(&baseline::ours(release))?;
    let comparison = hold(&mut station, release, &rows, &before, WITHIN)?;
    if !comparison.worse.is_empty() {
        bail!("{}", comparison.worse.join("\n"));
    }
    Ok(format!("({comparison})"))
}

/// Counts the pure parts, and holds them against their baseline and their targets. How many rows
/// there are.
///
/// # Errors
///
/// As for [`bench()`]; or a figure is worse than it may be, or more than its target.
pub(crate) fn check_host() -> Result<String> {
    if !host::can_count() {
        return Ok("(not counted: this machine has no valgrind)".to_owned());
    }
    let rows = host::measure()?;
    let mut wrong = baseline::compare(&row::read(&baseline::host())?, &rows, WITHIN).worse;
    for (target, judged) in targets::judge_all(&[], &rows, |_| None) {
        if let Judged::Missed(_) = judged {
            let [against, most, is, _] = text::target_words(target, judged);
            let name = target.operation;
            wrong.push(format!("{name}, {}: {is} of {against}, {most} allowed", target.size));
        }
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(format!("({} rows)", rows.len()))
}

fn report(comparison: &Comparison, within: u64) -> ExitStatus {
    println!("{comparison}");
    match &comparison.worse[..] {
        [] => {
            println!("nothing is more than {within} % above the baseline");
            ExitStatus::Pass
        }
        worse => {
            println!("more than {within} % above the baseline:\n  {}", worse.join("\n  "));
            ExitStatus::Fail
        }
    }
}

/// Returns the rows of one boot for each part.
fn measure(station: &mut Station, release: Release, Late(late): Late) -> Result<Vec<Row>> {
    let step = Step::begin(&format!("bench on Xen {release}"));
    let mut rows = row::Reader::default();
    for part in PARTS {
        let boot = Boot {
            release,
            role: part.role,
            memory_mib: part.memory_mib,
            vcpus: part.vcpus,
            arguments: match part.role {
                Role::Dom0 => format!("{}{}", part.arguments, " late".repeat(late)),
                Role::Domu => part.arguments.to_owned(),
            },
            module: None,
            limit: LIMIT,
            clock: Clock::Instructions,
        };
        let report = station.boot(&boot, |line| rows.line(line, &step))?;
        if !report.outcome.passed() {
            bail!("{report}");
        }
    }
    step.vanish();
    rows.end()
}

#[cfg(test)]
mod tests {
    use super::row::test_row;
    use super::*;

    #[test]
    fn two_runs_agree_but_for_an_interrupt() {
        let one = [test_row("x", 1, 1_000_000), test_row("x", 2, 2_000_000)];
        assert!(compare(&one, &one).unwrap().contains("to the last digit"));
        let other = [test_row("x", 1, 1_000_100), test_row("x", 2, 2_000_000)];
        assert!(compare(&one, &other).unwrap().contains("1 of them"));
        let apart = [test_row("x", 1, 1_000_101), test_row("x", 2, 2_000_000)];
        assert!(compare(&one, &apart).unwrap_err().to_string().contains("1000101"));
        let traps = [Row { traps: 2, ..one[0].clone() }, one[1].clone()];
        assert!(compare(&one, &traps).is_err());
        assert!(compare(&one, &one[..1]).is_err());
    }
}
