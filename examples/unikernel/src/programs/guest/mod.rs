//! `guest`: a guest that lives under a toolstack. It works on pages whose contents it knows,
//! follows `memory/target`, answers `control/shutdown` and `control/sysrq`, lets itself be
//! suspended, saved, restored and migrated, and says how it is whenever `data/ask` is written.
//!
//! | xenstore path | who writes it | what happens |
//! |---|---|---|
//! | `control/shutdown` | toolstack | it is acknowledged by an empty value, and obeyed |
//! | `control/sysrq` | toolstack | it is acknowledged by a zero byte, and obeyed |
//! | `memory/static-max` | toolstack | read once: how far the guest may grow |
//! | `memory/target` | toolstack | the guest goes there, growing if it must |
//! | `data/ask` | a test in dom0: `NUMBER` | the guest looks at all it has |
//! | | `NUMBER dump` | it also prints its frame map |
//! | | `NUMBER size` | it only counts |
//! | `data/answer` | the guest | `NUMBER ok KEY=VALUE ...` or `NUMBER fail REASON` |
#![expect(unsafe_code, reason = "asks Xen for a number, and writes pages that it owns")]

mod epoch;
mod hoard;
mod orders;
mod size;
mod span;
#[cfg(all(test, not(target_os = "none")))]
mod tests;
mod turns;
mod workload;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec;

use balloon::{Balloon, Wipe};
use hypercall::{Cpu, FrameSource as _, Machine};
use p2m::FrameList;

use super::publish::places;
use super::{OrSay as _, grow};
use crate::life::{Life, Nanoseconds, Return, Survives, SuspendError, Way, survives};
use crate::program::Kernel;
use crate::report::Verdict;
use crate::store::Store;
use epoch::Epoch;
use hoard::Hoard;
use size::Size;
use span::Span;
use workload::Workload;

/// How long the guest sleeps between two pieces of work.
const PAUSE: Nanoseconds = Nanoseconds(20_000_000);
/// Frames that are left in the pool, for tables and lists.
const POOL_RESERVE: u64 = 128;

survives! {
    /// What the guest knows from turn to turn.
    pub(super) struct State<'s> {
        store: Store,
        workload: Workload,
        hoard: Hoard,
        frame_list: FrameList<'s>,
        size: Size<'s>,
        /// How far it may grow; none if it may not.
        span: Option<Span>,
        /// Frames that are neither free nor in the workload or on the heap.
        apart: u64,
        /// How often it was suspended and came back.
        suspends: u64,
        /// The fewest ticks that it took to stop, and to come back.
        least: Option<(u64, u64)>,
    }
}

/// What comes after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Another one.
    Again,
    /// A pause, unless something happens.
    Pause,
    /// A suspend.
    Suspend,
    /// The end.
    End(Way),
}

impl Survives for Next {}

/// Runs the program.
pub(super) fn run<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Verdict {
    let platform = kernel.platform;
    let mut life = platform.life()?;
    let mut store = Store::default();
    let maximum = span::maximum(&mut store, &*life).unwrap_or(0);
    if maximum <= kernel.guest.p2m().len() {
        return live(kernel, &mut *life, store, None);
    }
    let mut storage = Box::new(span::Storage::new());
    let (p2m, window) = grow::open(kernel, &mut storage.batch())?;
    let span = Span::new(window, maximum);
    live(&mut kernel.on_map(&p2m), &mut *life, store, Some(span))
}

/// From the first turn to the last one.
fn live<M: Machine + Cpu>(
    kernel: &mut Kernel<'_, M>,
    life: &mut dyn Life,
    store: Store,
    span: Option<Span>,
) -> Verdict {
    let maximum = span.as_ref().map_or(kernel.guest.p2m().len(), Span::maximum);
    let (mut balloon_words, mut places) = (vec![0; words(maximum)?], places(maximum));
    // Everything but what is free now is what the guest needs.
    let free = kernel.pool.len() as u64;
    let floor = kernel.guest.p2m().len() - free + POOL_RESERVE;
    let (balloon, _) =
        Balloon::new(&kernel.guest, &mut balloon_words, floor, Wipe::Always).or_say("balloon")?;
    let top = kernel.pool.take().ok_or("the pool is empty")?;
    let mut state = State {
        store,
        workload: Workload::default(),
        hoard: Hoard::default(),
        frame_list: FrameList::new(top, &mut places),
        size: Size::new(balloon),
        span,
        apart: 0,
        suspends: 0,
        least: None,
    };
    Epoch::new(kernel, life).turn(turns::begin, &mut state)?;
    loop {
        let begun = life.now();
        match Epoch::new(kernel, life).turn(turns::work, &mut state)? {
            Next::Again => state.size.passed(life.now() - begun),
            Next::Pause => {
                life.wait(life.now() + PAUSE);
                state.size.passed(life.now() - begun);
            }
            Next::Suspend => suspend(kernel, life, &mut state)?,
            Next::End(way) => {
                Epoch::new(kernel, life).turn(turns::end, &mut state)?;
                life.end(way);
                let State { workload, suspends, .. } = &state;
                let verified = workload.verified;
                return Ok(format!("{way:?}, {verified} pages verified, {suspends} suspends"));
            }
        }
    }
}

/// Words of a balloon's set for `pfns` pfns.
fn words(pfns: u64) -> Result<usize, String> {
    usize::try_from(Balloon::words_needed(pfns)).or_say("the balloon's set")
}

fn suspend<M: Machine + Cpu>(
    kernel: &mut Kernel<'_, M>,
    life: &mut dyn Life,
    state: &mut State<'_>,
) -> Result<(), String> {
    match life.suspend() {
        Ok(Return::Restored) => Epoch::new(kernel, life).turn(turns::restored, state),
        Ok(Return::Cancelled) => Epoch::new(kernel, life).turn(turns::cancelled, state),
        Err(SuspendError::NotSuspended(reason)) => {
            writeln!(kernel.console, "not suspended: {reason}").or_say("console")
        }
        Err(error @ SuspendError::Lost(_)) => Err(format!("{error}")),
    }
}
