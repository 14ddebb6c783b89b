//! `guest`: a guest that lives under a toolstack. It works on pages whose contents it knows,
//! follows `memory/target`, answers `control/shutdown` and `control/sysrq`, lets itself be
//! suspended, saved, restored and migrated, and says how it is whenever `data/ask` is written.
//!
//! | xenstore path | who writes it | what happens |
//! |---|---|---|
//! | `control/shutdown` | toolstack | it is acknowledged by an empty value, and obeyed |
//! | `control/sysrq` | toolstack | it is acknowledged by a zero byte, and obeyed |
//! | `memory/target` | toolstack | the guest goes there |
//! | `data/ask` | a test in dom0: `NUMBER` or `NUMBER dump` | the guest looks at all it has |
//! | `data/answer` | the guest | `NUMBER ok KEY=VALUE ...` or `NUMBER fail REASON` |
#![expect(unsafe_code, reason = "asks Xen for a number, and writes pages that it owns")]

mod epoch;
mod orders;
#[cfg(all(test, not(target_os = "none")))]
mod tests;
mod turns;
mod workload;

use alloc::format;
use alloc::string::String;

use hypercall::{Cpu, Machine};
use p2m::{FrameList, LeafSource as _};

use super::OrSay as _;
use super::publish::places;
use crate::guest::Guest;
use crate::life::{Life, Nanoseconds, Return, Survives, SuspendError, Way, survives};
use crate::report::Verdict;
use crate::store::Store;
use epoch::Epoch;
use workload::Workload;

/// How long the guest sleeps between two pieces of work.
const PAUSE: Nanoseconds = Nanoseconds(20_000_000);

survives! {
    /// What the guest knows from turn to turn.
    pub(super) struct State<'s> {
        store: Store,
        workload: Workload,
        frame_list: FrameList<'s>,
        /// Pages that the toolstack wants the guest to have.
        target: Option<u64>,
        /// How often it was suspended and came back.
        suspends: u64,
    }
}

/// What comes after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// A pause, unless something happens.
    Pause,
    /// A suspend.
    Suspend,
    /// The end.
    End(Way),
}

impl Survives for Next {}

/// Runs the program.
pub(super) fn run<M: Machine + Cpu>(guest: &mut Guest<'_, M>) -> Verdict {
    let platform = guest.platform;
    let mut life = platform.life()?;
    let mut places = places(guest.p2m.len());
    let top = guest.pool.take().ok_or("the pool is empty")?;
    let mut state = State {
        store: Store::default(),
        workload: Workload::default(),
        frame_list: FrameList::new(top, &mut places),
        target: None,
        suspends: 0,
    };
    Epoch::new(guest, &*life).turn(turns::begin, &mut state)?;
    loop {
        match Epoch::new(guest, &*life).turn(turns::work, &mut state)? {
            Next::Pause => life.wait(life.now() + PAUSE),
            Next::Suspend => suspend(guest, &mut *life, &mut state)?,
            Next::End(way) => {
                Epoch::new(guest, &*life).turn(turns::end, &mut state)?;
                life.end(way);
                let State { workload, suspends, .. } = &state;
                let verified = workload.verified;
                return Ok(format!("{way:?}, {verified} pages verified, {suspends} suspends"));
            }
        }
    }
}

fn suspend<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    life: &mut dyn Life,
    state: &mut State<'_>,
) -> Result<(), String> {
    match life.suspend() {
        Ok(Return::Restored) => Epoch::new(guest, life).turn(turns::restored, state),
        Ok(Return::Cancelled) => Epoch::new(guest, life).turn(turns::cancelled, state),
        Err(SuspendError::NotSuspended(reason)) => {
            writeln!(guest.console, "not suspended: {reason}").or_say("console")
        }
        Err(error @ SuspendError::Lost(_)) => Err(format!("{error}")),
    }
}
