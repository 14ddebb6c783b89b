//! `conformance`: Xen's PV memory management, assertion by assertion, each with its number and what
//! came of it.
//!
//! Arguments: numbers, to make those only; or `list`, to make none and see what there is.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use conformance::{Assertion, AssertionOutcome, Env, Facts, Target, assertions, run as make};
use early_pgt::{FrameUse, UseKind};
use hypercall::Machine;

use super::OrSay;
use super::prove::arena_frames;
use crate::program::Kernel;
use crate::report::Verdict;

/// Frames to play with: enough for two MiB in one piece.
const FRAMES: usize = 700;

/// Runs the program.
pub(super) fn run<M: Machine + Target>(kernel: &mut Kernel<'_, M>) -> Verdict {
    let all = assertions();
    let words: Vec<&str> = kernel.arguments.split_whitespace().collect();
    if words == ["list"] {
        for Assertion { number, group, name, .. } in &all as &Vec<Assertion<M>> {
            writeln!(kernel.console, "{number:>3} {group} {}", &name[5..]).or_say("console")?;
        }
        return Ok(format!("{} assertions", all.len()));
    }
    let numbers: Vec<u16> = words
        .iter()
        .map(|word| word.parse().or_say(&format!("{word:?} is neither a number nor list")))
        .collect::<Result<_, _>>()?;
    let is_there = |number: &u16| all.iter().any(|assertion| assertion.number == *number);
    if let Some(number) = numbers.iter().find(|number| !is_there(number)) {
        return Err(format!("no guest can assert number {number}: see docs/testing-assertions.md"));
    }
    let frames = arena_frames(kernel, FRAMES)?;
    let root = kernel.guest.kernel_root();
    let root_mfn = kernel.guest.mfn(root).or_say("P2M")?;
    let mut env = Env::new(kernel.cpu, kernel.boot, root, root_mfn, frames)?;
    let is_constant =
        |used: &&FrameUse| matches!(used.kind, UseKind::KernelText | UseKind::KernelConstants);
    let constant = kernel.made.uses.iter().filter(is_constant);
    for pfns in kernel.made.tables.iter().copied().chain(constant.map(|used| used.pfns)) {
        env.made_read_only(pfns.start.raw()..pfns.end());
    }
    introduce(kernel, &env)?;
    let (mut hold, mut absent, mut failed) = (0, 0, Vec::new());
    for assertion in &all {
        if !numbers.is_empty() && !numbers.contains(&assertion.number) {
            continue;
        }
        let outcome = make(assertion, &mut env);
        let Assertion { number, name, .. } = assertion;
        let word = match &outcome {
            AssertionOutcome::Holds => "ok".into(),
            AssertionOutcome::Failed(reason) => format!("FAILED {reason}"),
            AssertionOutcome::NotHere(reason) => format!("not here: {reason}"),
        };
        writeln!(kernel.console, "{number:>3} {:<64} {word}", &name[5..]).or_say("console")?;
        match outcome {
            AssertionOutcome::Holds => hold += 1,
            AssertionOutcome::NotHere(_) => absent += 1,
            AssertionOutcome::Failed(_) => failed.push(format!("{number}")),
        }
    }
    match failed.len() {
        0 => Ok(format!("{hold} assertions hold, {absent} are not for here")),
        count => Err(format!("{count} of {} fail: {}", hold + count, failed.join(" "))),
    }
}

/// Says where we are.
fn introduce<M: Machine + Target>(
    kernel: &mut Kernel<'_, M>,
    env: &Env<'_, M>,
) -> Result<(), String> {
    let Facts { boot, release: (major, minor), domain, foreign, .. } = env.facts();
    let role = if boot.is_dom0 { "dom0" } else { "domU" };
    let console = &mut kernel.console;
    write!(console, "Xen {major}.{minor}, {role}, domain {domain}, ").or_say("console")?;
    match foreign {
        Some(mfn) => writeln!(console, "a frame of another one is mfn {mfn:x}"),
        None => writeln!(console, "no other one has memory"),
    }
    .or_say("console")
}
