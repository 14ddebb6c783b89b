//! `dump`: the frame map as text, and with `svg` as a picture. With `stay` the guest then waits to
//! be examined from outside: it publishes the map, says so, and runs until somebody ends it;
//! `stay=list` and `stay=tree` publish one form only.

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
    let mut words = guest.arguments.split_whitespace();
    if words.clone().any(|word| word == "svg") {
        p2m.svg(guest.console).or_say("console")?;
    }
    match words.find_map(|word| word.strip_prefix("stay")) {
        Some(forms) => stay(guest, forms),
        None => Ok(format!("{} pfns", p2m.len())),
    }
}

/// Publishes the map and waits.
fn stay<M: Machine + Cpu>(guest: &mut Guest<'_, M>, forms: &str) -> Verdict {
    let mut places = places(guest.p2m.len());
    let (toolstack, _frame_list) = publish(guest, &mut places)?;
    match forms {
        "=list" => toolstack.publish_frame_list(guest.p2m, None),
        "=tree" => toolstack.withdraw_list(),
        "" => {}
        _ => return Err(format!("stay{forms} is not known: stay=list and stay=tree are")),
    }
    wait_to_be_examined(guest, &toolstack)
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
