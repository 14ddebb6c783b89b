//! Plain stores into tables that nobody else sees: new ones, and those of loose trees.
#![expect(
    unsafe_code,
    reason = "stores into loose tables; I-4 and I-5 say that nobody else uses them"
)]

use hypercall::{Frame, FrameAccess, FrameSource, Level, Machine, Pfn, Pte, PteFlags};
use x86_64::structures::paging::PageTableIndex;

use crate::entries::EMPTY;
use crate::frames::SpaceFrames;
use crate::map_error::MapError;
use crate::marks::{held, not_held};
use crate::pages::{Pages, Run};
use crate::pgd::Roots;
use crate::tables::Part;
use p2m::{Guest, WalkError};

/// Pages that are filled at a time.
pub(crate) const PART: u16 = 64;

/// Takes a frame for a table that the frame map knows, and has `fill` write it. A frame that it
/// does not know is not the guest's memory, and is not even written to.
pub(crate) fn take_table<M: Machine>(
    guest: &Guest<'_, M>,
    frames: &mut SpaceFrames<'_, impl FrameSource>,
    fill: impl FnOnce(&Guest<'_, M>, &Frame) -> Result<(), WalkError>,
) -> Result<Frame, MapError> {
    let table = frames.of_tables().take().ok_or(MapError::OutOfFrames)?;
    match guest.mfn(table.pfn()).map_err(WalkError::from).and_then(|_| fill(guest, &table)) {
        Ok(()) => Ok(table),
        Err(error) => {
            frames.of_tables().give(table);
            Err(error.into())
        }
    }
}

/// Fills the entries of a run of at most [`PART`] pages; on failure none of them. Returns how many
/// there were.
pub(crate) fn fill_run<M: Machine>(
    guest: &Guest<'_, M>,
    table: Pfn,
    run: Run,
    flags: PteFlags,
    frames: &mut SpaceFrames<'_, impl FrameSource>,
) -> Result<u64, MapError> {
    let count = run.count.min(PART);
    let first = run.first();
    if let Some((at, pte)) = guest.machine().next_present(table, first..first + count)? {
        let before = u64::from(u16::from(at).saturating_sub(first));
        let pages = Pages { start: run.va, count: run.count.into() };
        return Err(MapError::Occupied { va: pages.at(before)?, pte });
    }
    let first = PageTableIndex::new_truncate(first);
    let mut buffer = [Pte::ABSENT; PART as usize];
    let entries = &mut buffer[..usize::from(count)];
    let mut filled = 0;
    let mut failure = None;
    let (p2m, frames) = (guest.p2m(), &mut *frames.source);
    for entry in entries.iter_mut() {
        let Some(frame) = frames.take() else {
            failure = Some(MapError::OutOfFrames);
            break;
        };
        match p2m.mfn(frame.pfn()) {
            Ok(mfn) => *entry = Pte::new(mfn, flags),
            Err(error) => {
                frames.give(frame);
                failure = Some(error.into());
                break;
            }
        }
        filled += 1;
    }
    if failure.is_none() {
        // SAFETY: the table is part of a loose tree: I-4 and I-5.
        match unsafe { guest.machine().write_entries(table, first, entries) } {
            // INVARIANT: I-4: the frames' tokens have gone into the entries.
            Ok(()) => return Ok(entries.len() as u64),
            Err(error) => failure = Some(error.into()),
        }
    }
    for entry in entries[..filled].iter().rev() {
        if let Ok(pfn) = guest.pfn(entry.mfn()) {
            // SAFETY: I-1: taken from the source above, and not stored anywhere.
            frames.give(unsafe { Frame::claim(pfn) });
        }
    }
    Err(failure.unwrap_or(MapError::OutOfFrames))
}

/// Stores an entry.
pub(crate) fn store<M: FrameAccess>(
    guest: &Guest<'_, M>,
    table: Pfn,
    index: PageTableIndex,
    pte: Pte,
) -> Result<(), WalkError> {
    // SAFETY: the table is part of a loose tree, or not yet part of one (I-4, I-5).
    Ok(unsafe { guest.machine().write_entry(table, index, pte) }?)
}

/// Clears a frame.
pub(crate) fn clear<M: FrameAccess>(guest: &Guest<'_, M>, frame: &Frame) -> Result<(), WalkError> {
    // SAFETY: the token says that nobody else uses the frame (I-1).
    Ok(unsafe { guest.machine().write_entries(frame.pfn(), PageTableIndex::new(0), &EMPTY) }?)
}

/// Clears the marks of all tables of `lowest` and higher levels, in a tree that is now loose.
pub(crate) fn unmark<M: Machine>(
    guest: &Guest<'_, M>,
    roots: Roots,
    lowest: Level,
) -> Result<(), WalkError> {
    Part::user_half(roots.kernel).above(lowest).links(guest, &mut |link| {
        if held(link.pte).is_none() {
            return Ok(());
        }
        store(guest, link.table, link.index(), not_held(link.pte))
    })
}
