//! `dump`: the frame map as text, and with `svg` as a picture. With `stay` the guest then waits to
//! be examined from outside: it publishes the map, says so, and runs until someone ends it.

use alloc::format;

use hypercall::{Cpu, Machine};
use p2m::Toolstack;

use super::OrSay;
use super::publish::{places, publish};
use crate::program::Kernel;
use crate::report::Verdict;

/// What a guest prints when it waits.
const STAYING: &str = "PVMMU-STAY";

/// Runs the program.
pub(super) fn run<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Verdict {
    let p2m = kernel.guest.p2m();
    p2m.dump(kernel.console).or_say("console")?;
    let wants = |wanted| kernel.arguments.split_whitespace().any(|word| word == wanted);
    if wants("svg") {
        p2m.svg(kernel.console).or_say("console")?;
    }
    if wants("stay") {
        let mut places = places(p2m.len());
        let (toolstack, _frame_list) = publish(kernel, &mut places)?;
        return wait_to_be_examined(kernel, &toolstack);
    }
    Ok(format!("{} pfns", p2m.len()))
}

/// Says that the map is published, and runs until someone ends the guest.
pub(super) fn wait_to_be_examined<M: Machine + Cpu>(
    kernel: &mut Kernel<'_, M>,
    toolstack: &Toolstack<'_>,
) -> Verdict {
    writeln!(kernel.console, "{STAYING} {:x?}", toolstack.read()).or_say("console")?;
    loop {
        kernel.platform.wait();
    }
}
