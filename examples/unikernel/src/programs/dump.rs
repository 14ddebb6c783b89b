//! `dump`: the frame map as text, and with `svg` as a picture. With `stay` the guest then waits to
//! be examined from outside: it publishes the map, says so, and runs until somebody ends it.

use alloc::format;

use hypercall::{Cpu, Machine};
use p2m::Toolstack;

use super::OrSay;
use super::publish::{places, publish};
use crate::guest::Guest;
use crate::report::Verdict;

/// What a guest prints when it waits.
const STAYING: &str = "PVMMU-STAY";

/// Runs the program.
pub(super) fn run<M: Machine + Cpu>(guest: &mut Guest<'_, M>) -> Verdict {
    let p2m = guest.p2m;
    p2m.dump(guest.console).or_say("console")?;
    let wants = |wanted| guest.arguments.split_whitespace().any(|word| word == wanted);
    if wants("svg") {
        p2m.svg(guest.console).or_say("console")?;
    }
    if wants("stay") {
        let mut places = places(p2m.len());
        let (toolstack, _frame_list) = publish(guest, &mut places)?;
        return wait_to_be_examined(guest, &toolstack);
    }
    Ok(format!("{} pfns", p2m.len()))
}

/// Says that the map is published, and runs until somebody ends the guest.
pub(super) fn wait_to_be_examined<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    toolstack: &Toolstack<'_>,
) -> Verdict {
    writeln!(guest.console, "{STAYING} {:x?}", toolstack.read()).or_say("console")?;
    loop {
        guest.platform.wait();
    }
}
