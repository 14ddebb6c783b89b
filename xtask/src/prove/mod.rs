//! `cargo xtask prove`: random operations on real Xen and on the model, every answer compared.
//!
//! The guest's program `prove` makes the same operations from the same seed wherever it runs, and
//! prints what it sees in terms that do not depend on the machine. Here it is run on both, and the
//! outputs are compared. Digests say that they differ, a second run of the part in question says
//! where, and then the sequence is cut down, by more runs, to the shortest one that still differs.
//!
//! | file | what it does |
//! |---|---|
//! | `machines` | runs the program on real Xen and on the model |
//! | `record` | reads its output |
//! | `shrink` | cuts a sequence down |

mod machines;
mod record;
mod shrink;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use self::machines::Run;
pub(crate) use self::machines::{Machines, Where};
use self::record::{Group, Record};
use crate::ExitStatus;
use crate::cli::ProveArguments;
use crate::paths;
use crate::progress::Step;

/// Groups between two digests: so many are looked at one by one when a digest differs.
const EVERY: u64 = 100;

/// Runs the comparison that the arguments ask for.
///
/// # Errors
///
/// This machine lacks something, a guest did not come to its end, or a signal asked us to end.
pub(crate) fn prove(arguments: &ProveArguments) -> Result<ExitStatus> {
    let mut machines = Machines::open()?;
    if let Some(file) = &arguments.replay {
        return replay(&mut machines, arguments, file);
    }
    let seeds = arguments.seeds.max(1);
    let ops = arguments.ops.div_ceil(seeds);
    let mut diverged = 0;
    let mut total = Record::default();
    for &role in &arguments.role {
        for &release in &arguments.xen {
            let place = Where { release, role };
            let words = format!("seed={} seeds={seeds} ops={ops} every={EVERY}", arguments.seed);
            let run = Run { place, words, steps: None };
            let (real, model) = machines.both(&run)?;
            let same = report(&run, &real, &model);
            total.add_coverage(&real);
            total.add_transitions(&model);
            if !same {
                diverged += 1;
                investigate(&mut machines, &run, &real, &model)?;
            }
        }
    }
    println!("\n{}\n{}", total.coverage_table(), total.transition_table());
    let passed = arguments.role.len() * arguments.xen.len() - diverged;
    println!("prove: {passed} passed, {diverged} failed");
    Ok(if diverged == 0 { ExitStatus::Pass } else { ExitStatus::Fail })
}

/// Compares both sides on `ops` operations from one seed, for `cargo xtask test`.
///
/// # Errors
///
/// They differ, or could not be run: the command that shows more is named.
pub(crate) fn compare(machines: &mut Machines, place: Where, ops: u64) -> Result<String> {
    let words = format!("seed=1 seeds=1 ops={ops} every={EVERY}");
    let (real, model) = machines.both(&Run { place, words, steps: None })?;
    if !real.same_as(&model) {
        let Where { release, role } = place;
        let role = role.to_string().to_lowercase();
        bail!("the model diverges: cargo xtask prove --ops {ops} --xen {release} --as {role}");
    }
    Ok(format!("{} operations agree", real.operations()))
}

/// One line for a comparison; whether both sides agree.
fn report(run: &Run, real: &Record, model: &Record) -> bool {
    let same = real.same_as(model);
    let word = if same { "agree" } else { "DIVERGE" };
    println!("{}: {}: {} operations, {word}", run.place, run.words, real.operations());
    same
}

/// Finds the first group that differs, cuts the sequence down and keeps it.
fn investigate(machines: &mut Machines, run: &Run, real: &Record, model: &Record) -> Result<()> {
    let Some((seed, groups)) = real.first_difference(model) else {
        println!("  the digests agree, the coverage or the verdict does not");
        for line in real.other_differences(model) {
            println!("  {line}");
        }
        return Ok(());
    };
    println!("  seed {seed}: the first difference is within groups {groups:?}; looking closer");
    let words = format!("{} show={seed} from=0 to={}", run.words, groups.end);
    let close = Run { words, ..run.clone() };
    let (real, model) = machines.both(&close)?;
    let differs = real.groups().iter().zip(model.groups()).position(|(real, model)| real != model);
    let Some(at) = differs else {
        bail!("seed {seed}: the difference did not show again: is the program deterministic?");
    };
    let last_clean = real.groups()[..at].iter().rposition(Group::is_clean_up);
    let from = last_clean.map_or(0, |clean| clean + 1);
    let suspects = &real.groups()[from..=at];
    show(&real.groups()[at], &model.groups()[at]);
    let progress = Step::begin("cutting the sequence down");
    let place = run.place;
    let found = shrink::shrink(suspects, |candidate, tries| {
        progress.at(format!("{} groups left, {tries} tries", candidate.len()));
        let steps = Some(candidate.iter().map(|group| group.steps.join("\n")).collect());
        let run = Run { place, words: "replay".to_owned(), steps };
        let (real, model) = machines.both(&run)?;
        Ok(!real.same_as(&model))
    })?;
    progress.vanish();
    match found {
        None => println!(
            "  the last {} groups alone do not show it: it depends on what came before",
            suspects.len()
        ),
        Some(shortest) => keep(machines, run, &shortest, seed)?,
    }
    Ok(())
}

fn show(real: &Group, model: &Group) {
    for step in &real.steps {
        println!("  {step}");
    }
    println!("  real Xen: {}", real.observed);
    println!("  model:    {}", model.observed);
}

/// Writes the shortest sequence and what real Xen answers to it where the model's tests find it.
fn keep(machines: &mut Machines, run: &Run, shortest: &[Group], seed: u64) -> Result<()> {
    let steps: Vec<String> = shortest.iter().map(|group| group.steps.join("\n")).collect();
    let replay = Run { place: run.place, words: "replay".to_owned(), steps: Some(steps) };
    let (real, model) = machines.both(&replay)?;
    for (real, model) in real.groups().iter().zip(model.groups()) {
        if real != model {
            show(real, model);
        }
    }
    let Where { release, role } = run.place;
    let role = role.to_string().to_lowercase();
    let name = format!("xen-{release}-{role}-seed-{seed}.ops");
    let folder = paths::workspace().join("tests/divergences");
    fs::create_dir_all(&folder)?;
    let file = folder.join(&name);
    let text = format!(
        "# Found by `cargo xtask prove` on Xen {release} as {role}, seed {seed}.\n\
         # Steps, and after `O` what real Xen answers (crate prove says how to read it).\n{}",
        real.transcript()
    );
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    println!("  {} groups are enough; kept as tests/divergences/{name}", shortest.len());
    println!(
        "  again: cargo xtask prove --xen {release} --as {role} --replay tests/divergences/{name}"
    );
    Ok(())
}

/// Runs a kept sequence on both sides.
fn replay(
    machines: &mut Machines,
    arguments: &ProveArguments,
    file: &PathBuf,
) -> Result<ExitStatus> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let steps = Record::steps_of(&text);
    let mut status = ExitStatus::Pass;
    for &role in &arguments.role {
        for &release in &arguments.xen {
            let place = Where { release, role };
            let run = Run { place, words: "replay".to_owned(), steps: Some(steps.clone()) };
            let (real, model) = machines.both(&run)?;
            for (real, model) in real.groups().iter().zip(model.groups()) {
                if real != model {
                    show(real, model);
                    break;
                }
            }
            if !report(&run, &real, &model) {
                status = ExitStatus::Fail;
            }
        }
    }
    Ok(status)
}
