//! `cargo xtask bench`: what every operation costs on real Xen, in executed instructions.
//!
//! | file | what it knows |
//! |---|---|
//! | `row` | a figure, as the guest prints it and as files keep it |
//! | `targets` | every target of the project, in one table |
//! | `pairs` | which of Linux's operations stands beside which of ours |
//! | `baseline` | figures of an earlier run, and what has become worse |
//! | `text` | the report in text |

mod baseline;
mod pairs;
mod row;
mod targets;
mod text;

use std::time::Duration;

use anyhow::{Result, bail};

use self::row::Row;
use self::text::Figures;
use crate::ExitStatus;
use crate::boot::Clock;
use crate::cli::{BenchArguments, Release, Role};
use crate::progress::Step;
use crate::station::{Boot, Station};

/// Memory of the guest: 65,536 pages, and what the kernel needs.
const MEMORY_MIB: u32 = 512;
/// How long the guest may take, on a machine that others use too.
const LIMIT: Duration = Duration::from_secs(600);

/// Measures twice, compares, judges, and reports.
///
/// # Errors
///
/// This machine lacks something, the guest fails, or a file cannot be read or written.
pub(crate) fn bench(arguments: &BenchArguments) -> Result<ExitStatus> {
    let release = arguments.xen;
    let mut station = Station::open()?;
    let rows = measure(&mut station, release)?;
    let again = measure(&mut station, release)?;
    let mut differs = Vec::new();
    for (one, other) in rows.iter().zip(&again).filter(|(one, other)| one != other) {
        differs.push(format!("{one:?}\n  in the second run {other:?}"));
    }
    if rows.len() != again.len() || !differs.is_empty() {
        bail!("two runs do not give the same figures:\n{}", differs.join("\n"));
    }
    let linux_file = baseline::linux(release);
    let linux = if linux_file.is_file() { row::read(&linux_file)? } else { Vec::new() };
    let figures = Figures { rows: &rows, linux: &linux };
    println!("Xen {release}, QEMU {}: two runs, the same figures", station.qemu_version());
    print!("{}\n{}\n{}", text::rows(figures), text::pairs(figures), text::targets(figures));
    if let Some(file) = &arguments.json {
        row::write(file, &rows)?;
    }
    if arguments.update {
        row::write(&baseline::ours(release), &rows)?;
    }
    if arguments.check {
        return Ok(report_worse(&check(&rows, release)?));
    }
    Ok(ExitStatus::Pass)
}

/// Boots the guest once, and holds its figures against the baseline. How many rows there are.
///
/// # Errors
///
/// As for [`bench()`]; or a figure is worse than it may be: named with both figures.
pub(crate) fn check_once(release: Release) -> Result<String> {
    let rows = measure(&mut Station::open()?, release)?;
    let worse = check(&rows, release)?;
    if !worse.is_empty() {
        bail!("{}", worse.join("\n"));
    }
    Ok(format!("({} rows)", rows.len()))
}

fn check(rows: &[Row], release: Release) -> Result<Vec<String>> {
    Ok(baseline::worse(&row::read(&baseline::ours(release))?, rows))
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

/// The rows of one boot.
fn measure(station: &mut Station, release: Release) -> Result<Vec<Row>> {
    let step = Step::begin(&format!("bench on Xen {release}"));
    let boot = Boot {
        release,
        role: Role::Dom0,
        memory_mib: MEMORY_MIB,
        arguments: "bench".to_owned(),
        module: None,
        limit: LIMIT,
        clock: Clock::Instructions,
    };
    let mut rows = Vec::new();
    let report = station.boot(&boot, |line| match Row::parse(line) {
        Ok(Some(row)) => {
            step.at(row.operation.clone());
            rows.push(Ok(row));
        }
        Ok(None) => {}
        Err(error) => rows.push(Err(error)),
    })?;
    step.vanish();
    if !report.outcome.passed() {
        bail!("{report}");
    }
    let rows = rows.into_iter().collect::<Result<Vec<_>>>()?;
    row::check_names(&rows)?;
    Ok(rows)
}
