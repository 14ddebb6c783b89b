//! `balloon grow`: the guest grows beyond its size at boot, as far as Xen lets it. The frame map
//! grows in its window, the direct mapping gets tables, some of the new pfns are set apart for
//! grants, and the balloon fetches memory for the others; then it goes back to where it was.
#![expect(unsafe_code, reason = "extends the direct mapping; claims pfns that nobody ever had")]

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use balloon::{Allocator, Balloon, Reserve, Wipe};
use hypercall::{
    BatchStorage, Counting, Cpu, DomId, Frame, FrameAccess as _, Frames, Hypercalls as _, Level,
    Machine, MemoryOp, MmuUpdate, Pfn, Pte, PteFlags,
};
use p2m::{FindDirect as _, GrowContext, LeafSource as _, P2m, Pfns};
use pvmmu::{DirectEntries, walk};

use super::super::{OrSay, grow};
use super::way::{Ways, go_with};
use super::{SPARE, Storage, audit};
use crate::guest::{Guest, Pool};
use crate::report::Verdict;

/// The most pfns that the guest grows by.
const GROWTH_MAX: u64 = 1 << 14;
/// Pfns that are set apart for grants.
const RESERVED: u64 = 32;
/// Pfns that an L1 table of the direct mapping maps.
const TABLE_PFNS: u64 = 512;

/// The pool, and the frames that it has no place for.
struct Grown<'p> {
    pool: &'p mut Pool,
    built: u64,
    new: Vec<Frame>,
}

impl Allocator for Grown<'_> {
    fn take(&mut self) -> Option<Frame> {
        self.new.pop()
    }

    fn give(&mut self, frame: Frame) {
        if frame.pfn().raw() < self.built { self.pool.give(frame) } else { self.new.push(frame) }
    }
}

/// Runs the program.
pub(super) fn run<M: Machine + Cpu>(guest: &mut Guest<'_, M>, storage: &mut Storage) -> Verdict {
    // SAFETY: it only reports.
    let most = unsafe { guest.machine.memory_op(&mut MemoryOp::MaximumReservation(DomId::SELF)) };
    let built = guest.p2m.len();
    let new = most.or_say("the maximum")?.saturating_sub(built).min(GROWTH_MAX);
    if new <= RESERVED {
        return Ok(format!("Xen lets the guest have no more than its {built} pages"));
    }
    let new = Pfns::new(Pfn::new(built), new);
    let mut batch_storage = Box::new(BatchStorage::<512, 8>::new());
    let mut batch = batch_storage.batch();
    let (p2m, mut window) = grow::open(guest, &mut batch)?;
    let context = GrowContext { machine: &guest.machine, p2m: &p2m, toolstack: None };
    window.grow(context, new.end(), &mut batch).or_say("grow the map")?;
    window.reserve(context, new, &mut guest.pool, &mut batch).or_say("reserve words")?;
    let mut guest = Guest {
        machine: Counting::new(guest.cpu),
        cpu: guest.cpu,
        boot: guest.boot,
        p2m: &p2m,
        kernel_root: guest.kernel_root,
        pool: core::mem::replace(&mut guest.pool, Pool::empty()),
        made: core::mem::take(&mut guest.made),
        second: None,
        arguments: guest.arguments,
        module: None,
        console: &mut *guest.console,
        platform: guest.platform,
    };
    let tables = extend_direct_map(&mut guest, &p2m, new)?;
    let verdict = fetch(&mut guest, new, storage)?;
    Ok(format!("{verdict}; {tables} tables for the direct mapping"))
}

/// Makes L1 tables for `new` in the direct mapping, empty ones. How many.
fn extend_direct_map<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    p2m: &P2m<'_>,
    new: Pfns,
) -> Result<u64, String> {
    let base = guest.machine.direct_map(Pfn::new(0)).or_say("the direct mapping")?;
    let mut made = 0;
    let mut pfn = new.start.raw();
    while pfn < new.end() {
        let va = base.checked_add_pages(pfn).or_say("the direct mapping")?;
        pfn = (pfn / TABLE_PFNS + 1) * TABLE_PFNS;
        let found = walk(&guest.context(), guest.kernel_root, va).or_say("walk")?;
        if found.at(Level::L1).is_some() {
            continue;
        }
        let above = found.at(Level::L2).ok_or("the direct mapping ends at a GiB")?;
        let table = guest.pool.take().ok_or("no frame for a table")?.pfn();
        // SAFETY: the frame has just left the pool (I-1).
        unsafe { guest.machine.clear_frame(table) }.or_say("clear")?;
        let (slot, pte) = DirectEntries::new(guest.context()).find(table).or_say("find")?;
        let link = Pte::new(p2m.mfn(table).or_say("the table")?, PteFlags::TABLE);
        let mut storage = BatchStorage::<2, 1>::new();
        let mut batch = storage.batch();
        batch.update(MmuUpdate::set(slot, pte.read_only()), pte.raw()).or_say("batch")?;
        batch.update(MmuUpdate::set(above.slot, link), above.pte.raw()).or_say("batch")?;
        // SAFETY: the frame is the program's, empty, and becomes a table where there was none; Xen
        // stops if it cannot be made read-only.
        unsafe { batch.submit(&guest.machine) }.or_say("link a table")?;
        made += 1;
    }
    // SAFETY: there is an entry for each of them now, and each is absent until it has memory (I-3).
    unsafe { guest.platform.direct_map_reaches(new.end()) };
    Ok(made)
}

/// Fetches memory for the new pfns but those that are set apart, writes to all of it and reads it
/// back, and gives it up again.
fn fetch<M: Machine + Cpu>(guest: &mut Guest<'_, M>, new: Pfns, storage: &mut Storage) -> Verdict {
    let p2m = guest.p2m;
    let words = usize::try_from(Balloon::words_needed(p2m.len())).or_say("words")?;
    let (mut words, mut bits) = (alloc::vec![0; words], [0; 1]);
    let begun = Balloon::new((&guest.machine, p2m), &mut words, SPARE, Wipe::Always);
    let (mut balloon, _) = begun.or_say("the balloon")?;
    // SAFETY: the map ended before them until now: nobody ever had them (I-1).
    let frames = unsafe { Frames::claim(new.start, new.count) };
    let (apart, rest) = frames.split(RESERVED).map_err(|_| "too few pfns")?;
    let (reserve, _) = Reserve::new(&mut balloon, p2m, apart, &mut bits).or_say("the reserve")?;
    balloon.add_empty(p2m, rest).or_say("the balloon")?;
    let mut grown = Grown { pool: &mut Pool::empty(), built: new.start.raw(), new: Vec::new() };
    let mut ways = Ways::default();
    let (built, more) = (new.start.raw(), new.count - RESERVED);
    for (name, target, out) in [("grow", built + more, 0), ("shrink", built, more)] {
        let step = (&mut balloon, &mut *storage, &mut grown);
        go_with(guest, step, target, (name, &mut ways))?;
        audit(guest, out + RESERVED)?;
        check(guest, &grown.new)?;
    }
    let reserved = reserve.free();
    ways.print(guest)?;
    Ok(format!("{more} pages beyond the {built} at boot came and went, {reserved} set apart"))
}

/// Writes to the first and the last word of each frame, and reads all of them back.
fn check<M: Machine + Cpu>(guest: &Guest<'_, M>, frames: &[Frame]) -> Result<(), String> {
    let word = |pfn: Pfn, offset: usize| (pfn.raw() << 16 | offset as u64).to_le_bytes();
    for frame in frames {
        for offset in [0, 4088] {
            let value = word(frame.pfn(), offset);
            // SAFETY: the frame is the program's by its token (I-1).
            unsafe { guest.machine.write_bytes(frame.pfn(), offset, &value) }.or_say("store")?;
        }
    }
    for frame in frames {
        for offset in [0, 4088] {
            let mut found = [0; 8];
            guest.machine.read_bytes(frame.pfn(), offset, &mut found).or_say("load")?;
            if found != word(frame.pfn(), offset) {
                return Err(format!("{frame:?} does not hold what was written"));
            }
        }
    }
    Ok(())
}
