//! `balloon grow`: the guest grows beyond its size at boot, as far as Xen lets it. The frame map
//! grows in its window, the direct mapping gets tables, some of the new pfns are set apart for
//! grants, and the balloon fetches memory for the others; then it goes back to where it was.
#![expect(unsafe_code, reason = "claims pfns that nobody ever had, and stores into them")]

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use balloon::{Balloon, Reserve, Wipe};
use hypercall::memory::MemoryOp;
use hypercall::{
    BatchStorage, Cpu, DomId, Frame, FrameAccess as _, FrameSource, Frames, Hypercalls as _,
    Machine, Pfn,
};
use p2m::Pfns;

use super::super::extend::extend_direct_map;
use super::super::{OrSay, grow};
use super::way::Ways;
use super::{SPARE, audit};
use crate::pool::Pool;
use crate::program::Kernel;
use crate::report::Verdict;

/// The most pfns that the guest grows by.
const GROWTH_MAX: u64 = 1 << 14;
/// Pfns that are set apart for grants.
const RESERVED: u64 = 32;

/// The pool, and the frames that it has no place for.
struct Grown<'p> {
    pool: &'p mut Pool,
    built: u64,
    new: Vec<Frame>,
}

impl FrameSource for Grown<'_> {
    fn take(&mut self) -> Option<Frame> {
        self.new.pop()
    }

    fn give(&mut self, frame: Frame) {
        if frame.pfn().raw() < self.built { self.pool.give(frame) } else { self.new.push(frame) }
    }
}

/// Runs the program.
pub(super) fn run<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Verdict {
    // SAFETY: it only reports.
    let most =
        unsafe { kernel.guest.machine().memory_op(&mut MemoryOp::MaximumReservation(DomId::SELF)) };
    let built = kernel.guest.p2m().len();
    let new = most.or_say("the maximum")?.saturating_sub(built).min(GROWTH_MAX);
    if new <= RESERVED {
        return Ok(format!("Xen lets the guest have no more than its {built} pages"));
    }
    let new = Pfns::new(Pfn::new(built), new);
    let mut batch_storage = Box::new(BatchStorage::<512, 8>::new());
    let mut batch = batch_storage.batch();
    let (p2m, mut window) = grow::open(kernel, &mut batch)?;
    let kernel = &mut kernel.on_map(&p2m);
    window.grow(&kernel.guest, None, new.end(), &mut batch).or_say("grow the map")?;
    let reserved = window.reserve(&kernel.guest, None, new, &mut kernel.pool, &mut batch);
    reserved.or_say("reserve words")?;
    let tables = extend_direct_map(kernel, new)?;
    let verdict = fetch(kernel, new)?;
    Ok(format!("{verdict}; {tables} tables for the direct mapping"))
}

/// Fetches memory for the new pfns but those that are set apart, writes to all of it and reads it
/// back, and gives it up again.
fn fetch<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>, new: Pfns) -> Verdict {
    let p2m = kernel.guest.p2m();
    let words = usize::try_from(Balloon::words_needed(p2m.len())).or_say("words")?;
    let (mut words, mut bits) = (alloc::vec![0; words], [0; 1]);
    let begun = Balloon::new(&kernel.guest, &mut words, SPARE, Wipe::Always);
    let (mut balloon, _) = begun.or_say("the balloon")?;
    // SAFETY: the map ended before them until now: nobody ever had them (I-1).
    let frames = unsafe { Frames::claim(new.start, new.count) };
    let (apart, rest) = frames.split(RESERVED).map_err(|_| "too few pfns")?;
    let (reserve, _) = Reserve::new(&mut balloon, p2m, apart, &mut bits).or_say("the reserve")?;
    balloon.add_empty(p2m, rest).or_say("the balloon")?;
    let mut grown = Grown { pool: &mut Pool::empty(), built: new.start.raw(), new: Vec::new() };
    let mut ways = Ways::new();
    let (built, more) = (new.start.raw(), new.count - RESERVED);
    for (name, target, out) in [("grow", built + more, 0), ("shrink", built, more)] {
        ways.go(kernel, &mut balloon, &mut grown, name, target)?;
        audit(kernel, out + RESERVED)?;
        check(kernel, &grown.new)?;
    }
    let reserved = reserve.free();
    ways.print(kernel)?;
    Ok(format!("{more} pages beyond the {built} at boot came and went, {reserved} set apart"))
}

/// Writes to the first and the last word of each frame, and reads all of them back.
fn check<M: Machine + Cpu>(kernel: &Kernel<'_, M>, frames: &[Frame]) -> Result<(), String> {
    let word = |pfn: Pfn, offset: usize| (pfn.raw() << 16 | offset as u64).to_le_bytes();
    for frame in frames {
        for offset in [0, 4088] {
            let value = word(frame.pfn(), offset);
            // SAFETY: the frame is the program's by its token (I-1).
            unsafe { kernel.guest.machine().write_bytes(frame.pfn(), offset, &value) }
                .or_say("store")?;
        }
    }
    for frame in frames {
        for offset in [0, 4088] {
            let mut found = [0; 8];
            kernel.guest.machine().read_bytes(frame.pfn(), offset, &mut found).or_say("load")?;
            if found != word(frame.pfn(), offset) {
                return Err(format!("{frame:?} does not hold what was written"));
            }
        }
    }
    Ok(())
}
