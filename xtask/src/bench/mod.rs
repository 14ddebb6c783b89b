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

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use self::row::Row;
use self::text::Figures;
use crate::ExitStatus;
use crate::boot::Clock;
use crate::cli::{BenchArguments, Release, Rival, Role};
use crate::progress::Step;
use crate::station::{Boot, Station};

/// A boot of the guest, in which it measures a part of the rows.
struct Part {
    /// What the guest is told.
    arguments: &'static str,
    /// Its memory: 65,536 pages, and what the kernel needs.
    memory_mib: u32,
    /// Its virtual CPUs, each on a processor of its own.
    vcpus: u32,
}

/// All of them. What needs another guest than the first one is a part of its own.
const PARTS: [Part; 2] = [
    Part { arguments: "bench", memory_mib: 512, vcpus: 1 },
    Part { arguments: "bench flush", memory_mib: 512, vcpus: 2 },
];

/// Two runs may differ by this part of a figure.
const INTERRUPTS: u64 = 10_000;
/// How long the guest may take, on a machine that others use too.
const LIMIT: Duration = Duration::from_secs(600);

/// Measures twice, compares, judges, and reports.
///
/// # Errors
///
/// This machine lacks something, the guest fails, or a file cannot be read or written.
pub(crate) fn bench(arguments: &BenchArguments) -> Result<ExitStatus> {
    let release = arguments.xen;
    if arguments.host {
        return bench_host(arguments);
    }
    let mut station = Station::open()?;
    let rows = measure(&mut station, release)?;
    let again = measure(&mut station, release)?;
    let same = compare(&rows, &again)?;
    let linux = linux_rows(arguments)?;
    let figures = Figures { rows: &rows, linux: &linux };
    println!("Xen {release}, QEMU {}: two runs, {same}", station.qemu_version());
    print!("{}\n{}\n{}", text::rows(figures), text::pairs(figures), text::targets(figures));
    if let Some(file) = &arguments.json {
        row::write_all(file, figures)?;
    }
    if let Some(file) = &arguments.html {
        html::write(file, &format!("pvmmu on Xen {release}"), figures)?;
    }
    keep(arguments, &baseline::ours(release), &rows)
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

/// The same for the pure parts, on this host, where no two runs are needed: nothing else runs in
/// valgrind.
fn bench_host(arguments: &BenchArguments) -> Result<ExitStatus> {
    let rows = host::measure()?;
    let figures = Figures { rows: &rows, linux: &[] };
    print!("{}", text::rows(figures));
    if let Some(file) = &arguments.json {
        row::write_all(file, figures)?;
    }
    keep(arguments, &baseline::host(), &rows)
}

/// Holds the figures against a baseline, or makes them one, as was asked.
fn keep(arguments: &BenchArguments, baseline: &Path, rows: &[Row]) -> Result<ExitStatus> {
    if arguments.update {
        row::write(baseline, rows)?;
    }
    if arguments.check {
        return Ok(report_worse(&baseline::worse(&row::read(baseline)?, rows)));
    }
    Ok(ExitStatus::Pass)
}

/// Linux's figures: of this run, or recorded ones.
fn linux_rows(arguments: &BenchArguments) -> Result<Vec<Row>> {
    let file = baseline::linux(arguments.xen);
    if arguments.vs == Some(Rival::Linux) {
        let rows = linux::measure(arguments.xen)?;
        if arguments.update {
            row::write(&file, &rows)?;
        }
        return Ok(rows);
    }
    if !file.is_file() {
        println!("Linux's figures on Xen {} are not recorded: --vs linux", arguments.xen);
        return Ok(Vec::new());
    }
    println!("Linux's figures are those recorded in {}: --vs linux measures", file.display());
    row::read(&file)
}

/// Boots the guest once, and holds its figures against the baseline. How many rows there are.
///
/// # Errors
///
/// As for [`bench()`]; or a figure is worse than it may be: named with both figures.
pub(crate) fn check_once(release: Release) -> Result<String> {
    let rows = measure(&mut Station::open()?, release)?;
    let worse = baseline::worse(&row::read(&baseline::ours(release))?, &rows);
    if !worse.is_empty() {
        bail!("{}", worse.join("\n"));
    }
    Ok(format!("({} rows)", rows.len()))
}

fn report_worse(worse: &[String]) -> ExitStatus {
    match worse {
        [] => {
            println!("nothing is more than 2 % above the baseline");
            ExitStatus::Pass
        }
        worse => {
            println!("worse than the baseline:\n  {}", worse.join("\n  "));
            ExitStatus::Fail
        }
    }
}

/// The rows of one boot for each part.
fn measure(station: &mut Station, release: Release) -> Result<Vec<Row>> {
    let step = Step::begin(&format!("bench on Xen {release}"));
    let mut rows = row::Reader::default();
    for part in PARTS {
        let boot = Boot {
            release,
            role: Role::Dom0,
            memory_mib: part.memory_mib,
            vcpus: part.vcpus,
            arguments: part.arguments.to_owned(),
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
