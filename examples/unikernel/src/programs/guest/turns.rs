//! The turns of the guest: between two of them it may be suspended.

use alloc::format;
use alloc::string::String;

use balloon::frames_of_kib;
use hypercall::{Cpu, FrameSource as _, Machine};

use super::super::OrSay as _;
use super::epoch::Epoch;
use super::orders::{Order, Sysrq};
use super::span::Span;
use super::workload::Workload;
use super::{Next, State};
use crate::life::{Away, Way};
use crate::store::StoreError;

/// Pages that are looked at in a turn.
const PAGES_PER_TURN: u64 = 64;
/// Objects of the heap that are looked at in a turn.
const OBJECTS_PER_TURN: usize = 4;
/// Pages that are filled in a turn.
const PAGES_FILLED_PER_TURN: u64 = 1024;
/// Steps of the balloon in a turn.
const STEPS_PER_TURN: u32 = 4;

const SHUTDOWN: &str = "control/shutdown";
const SYSRQ: &str = "control/sysrq";
const TARGET: &str = "memory/target";
const ASK: &str = "data/ask";
const ANSWER: &str = "data/answer";

/// The first turn: the frame map is published, the pages are filled, the toolstack is listened to.
pub(super) fn begin<M: Machine + Cpu>(
    epoch: &mut Epoch<'_, '_, M>,
    state: &mut State<'_>,
) -> Result<(), String> {
    epoch.publish(&mut state.frame_list, state.span.as_ref().map(Span::window))?;
    epoch.fill(&mut state.workload, &mut state.hoard, u64::MAX)?;
    state.apart = epoch.apart(&state.workload, &state.hoard);
    listen(epoch, state)?;
    let held = state.workload.len();
    epoch.say(&format!("PVMMU-GUEST is up and holds {held} pages"))
}

/// Watches everything that a toolstack may write.
fn listen<M: Machine + Cpu>(epoch: &Epoch<'_, '_, M>, state: &mut State<'_>) -> Result<(), String> {
    let (life, store) = (epoch.life(), &mut state.store);
    for path in [SHUTDOWN, SYSRQ, TARGET, ASK] {
        match store.watch(life, path) {
            // A domain that is resumed where it was still has its watches.
            Err(StoreError::Refused(errno)) if errno == "EEXIST" => {}
            watched => watched.or_say(path)?,
        }
    }
    for feature in ["poweroff", "reboot", "suspend", "sysrq"] {
        // A toolstack that did not make these does not look at them either.
        let _ = store.write(life, &format!("control/feature-{feature}"), b"1");
    }
    Ok(())
}

/// Back in another domain: every frame has another number, and nobody knows of the watches.
pub(super) fn restored<M: Machine + Cpu>(
    epoch: &mut Epoch<'_, '_, M>,
    state: &mut State<'_>,
) -> Result<(), String> {
    state.suspends += 1;
    state.store.reconnect(epoch.life());
    epoch.publish(&mut state.frame_list, state.span.as_ref().map(Span::window))?;
    let Away { begun, from, until } = epoch.life().away();
    let (stop, back) = (from - begun, epoch.machine().ticks().wrapping_sub(until));
    let before = state.least.unwrap_or((u64::MAX, u64::MAX));
    state.least = Some((before.0.min(stop), before.1.min(back)));
    listen(epoch, state)?;
    state.workload.verify(epoch.machine())?;
    state.hoard.verify()?;
    let suspends = state.suspends;
    epoch.say(&format!("PVMMU-GUEST was restored, {suspends} suspends so far"))
}

/// Back where it was.
pub(super) fn cancelled<M: Machine + Cpu>(
    epoch: &mut Epoch<'_, '_, M>,
    state: &mut State<'_>,
) -> Result<(), String> {
    state.suspends += 1;
    state.workload.verify(epoch.machine())?;
    state.hoard.verify()?;
    epoch.say("PVMMU-GUEST was suspended in vain")
}

/// The last turn: every page is looked at once more.
pub(super) fn end<M: Machine + Cpu>(
    epoch: &mut Epoch<'_, '_, M>,
    state: &mut State<'_>,
) -> Result<(), String> {
    while let Some(frames) = state.hoard.shrink(epoch.platform())? {
        epoch.pool().give_run(frames);
    }
    while let Some((frame, sound)) = state.workload.release(epoch.machine()) {
        epoch.pool().give(frame);
        sound?;
    }
    costs(epoch, state)
}

/// Says what a save and a restore took, as rows of `cargo xtask bench`. What goes to Xen meanwhile
/// goes past the seam, and is not counted.
fn costs<M: Machine + Cpu>(epoch: &mut Epoch<'_, '_, M>, state: &State<'_>) -> Result<(), String> {
    let Some((stop, back)) = state.least else { return Ok(()) };
    let pfns = epoch.p2m().len();
    for (operation, ticks) in [("stop to be saved", stop), ("come back restored", back)] {
        epoch.say(&format!(
            "PVMMU-BENCH {{\"operation\":{operation:?},\"unit\":\"pfns\",\"size\":{pfns},\
             \"instructions\":{ticks},\"in_xen\":null,\"traps\":0,\"entries\":0,\"floor\":null}}"
        ))?;
    }
    Ok(())
}

/// A turn of work: whatever the toolstack said since the last one, then the pages.
pub(super) fn work<M: Machine + Cpu>(
    epoch: &mut Epoch<'_, '_, M>,
    state: &mut State<'_>,
) -> Result<Next, String> {
    while let Some(path) = state.store.event(epoch.life()).or_say("xenstore")? {
        match path.as_str() {
            SHUTDOWN => {
                if let Some(next) = shutdown(epoch, state)? {
                    return Ok(next);
                }
            }
            SYSRQ => {
                if let Some(way) = sysrq(epoch, state)? {
                    return Ok(Next::End(way));
                }
            }
            TARGET => retarget(epoch, state)?,
            ASK => answer(epoch, state)?,
            _ => {}
        }
    }
    epoch.work(&mut state.workload, PAGES_PER_TURN)?;
    state.hoard.work(OBJECTS_PER_TURN)?;
    for _ in 0..STEPS_PER_TURN {
        if !state.size.wants_step() {
            make_pfns(epoch, state)?;
            // What the balloon brought is put to use.
            let State { workload, hoard, .. } = state;
            epoch.fill(workload, hoard, PAGES_FILLED_PER_TURN)?;
            return Ok(Next::Pause);
        }
        let State { workload, hoard, size, .. } = &mut *state;
        if let Some(words) = size.step(epoch, workload, hoard)? {
            epoch.say(&words)?;
        }
    }
    Ok(Next::Again)
}

fn shutdown<M: Machine + Cpu>(
    epoch: &mut Epoch<'_, '_, M>,
    state: &mut State<'_>,
) -> Result<Option<Next>, String> {
    let Some(value) = state.store.take(epoch.life(), SHUTDOWN, b"").or_say(SHUTDOWN)? else {
        return Ok(None);
    };
    match Order::parse(&value) {
        Ok(Order::Suspend) => Ok(Some(Next::Suspend)),
        Ok(Order::End(way)) => Ok(Some(Next::End(way))),
        Err(unknown) => epoch.say(&format!("{unknown}")).map(|()| None),
    }
}

fn sysrq<M: Machine + Cpu>(
    epoch: &mut Epoch<'_, '_, M>,
    state: &mut State<'_>,
) -> Result<Option<Way>, String> {
    let value = state.store.take(epoch.life(), SYSRQ, b"\0").or_say(SYSRQ)?;
    match value.and_then(|value| Sysrq::parse(&value)) {
        Some(Sysrq::End(way)) => return Ok(Some(way)),
        Some(Sysrq::Memory) => {
            let words = words(epoch, state)?;
            epoch.say(&format!("sysrq m: {words}"))?;
        }
        Some(Sysrq::Help) => {
            epoch.say("sysrq: b reboot, c crash, m memory, o poweroff")?;
        }
        None => {}
    }
    Ok(None)
}

fn retarget<M: Machine + Cpu>(
    epoch: &mut Epoch<'_, '_, M>,
    state: &mut State<'_>,
) -> Result<(), String> {
    let value = state.store.read(epoch.life(), TARGET).or_say(TARGET)?;
    match frames_of_kib(&value.unwrap_or_default()) {
        Ok(pages) => {
            state.size.aim(pages);
            state.span.iter_mut().for_each(Span::try_again);
            make_pfns(epoch, state)?;
        }
        Err(bad) => epoch.say(&format!("memory/target: {bad}; the guest stays as it is"))?,
    }
    Ok(())
}

/// Makes pfns for the target, if it is beyond those that there are, as far as the guest may have
/// them and has the memory for their tables: if not now, then in a later turn.
fn make_pfns<M: Machine + Cpu>(
    epoch: &mut Epoch<'_, '_, M>,
    state: &mut State<'_>,
) -> Result<(), String> {
    let State { span: Some(span), frame_list, workload, hoard, size, apart, .. } = state else {
        return Ok(());
    };
    let Some(wanted) = size.lacks_pfns() else { return Ok(()) };
    let before = epoch.apart(workload, hoard);
    let grown = span.grow(epoch, frame_list, workload, wanted);
    // Tables and lists took frames of the pool's.
    *apart += epoch.apart(workload, hoard) - before;
    match grown {
        Ok(None) => Ok(()),
        Ok(Some(frames)) => {
            size.widen(epoch.p2m(), frames)?;
            size.aim(wanted);
            Ok(())
        }
        Err((reason, lost)) => {
            size.leave_out(lost);
            epoch.say(&format!("no growth to {wanted} pages, {lost} pfns are left out: {reason}"))
        }
    }
}

/// Says how the guest is.
fn answer<M: Machine + Cpu>(
    epoch: &mut Epoch<'_, '_, M>,
    state: &mut State<'_>,
) -> Result<(), String> {
    let Some(asked) = state.store.read(epoch.life(), ASK).or_say(ASK)? else { return Ok(()) };
    let asked = String::from_utf8_lossy(&asked).into_owned();
    let mut parts = asked.split_whitespace();
    let Some(number) = parts.next() else { return Ok(()) };
    let health = match parts.next() {
        Some("size") => words(epoch, state),
        Some("dump") => epoch.dump().and_then(|()| health(epoch, state)),
        _ => health(epoch, state),
    };
    let line = match health {
        Ok(words) => format!("{number} ok {words}"),
        Err(reason) => format!("{number} fail {reason}"),
    };
    epoch.say(&format!("PVMMU-ANSWER {line}"))?;
    state.store.write(epoch.life(), ANSWER, line.as_bytes()).or_say(ANSWER)
}

/// Looks at everything.
fn health<M: Machine + Cpu>(
    epoch: &mut Epoch<'_, '_, M>,
    state: &mut State<'_>,
) -> Result<String, String> {
    epoch.audit(&state.frame_list, state.span.as_ref().map(Span::window))?;
    epoch.audit_tables()?;
    let apart = epoch.apart(&state.workload, &state.hoard);
    if apart != state.apart {
        let known = state.apart;
        return Err(format!("{apart} frames are in no use that is known, {known} should be"));
    }
    state.workload.verify(epoch.machine())?;
    state.hoard.verify()?;
    words(epoch, state)
}

/// What the guest has, in words that tests read.
fn words<M: Machine + Cpu>(epoch: &Epoch<'_, '_, M>, state: &State<'_>) -> Result<String, String> {
    let pages = epoch.reservation()?;
    let ram = p2m::runs::Census::of(epoch.p2m(), epoch.p2m().all()).ram;
    let State { workload, hoard, size, suspends, .. } = state;
    let (held, heap, size) = (workload.len(), hoard.heap_kib(), size.account(epoch)?);
    let Workload { verified, beside, .. } = workload;
    Ok(format!(
        "pages={pages} ram={ram} {size} held={held} heap={heap} verified={verified} \
         beside={beside} suspends={suspends}"
    ))
}
