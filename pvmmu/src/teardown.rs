//! Ends loose tables, and releases what they hold.
#![expect(
    unsafe_code,
    reason = "claims back what cleared entries led to, and clears tables of loose trees (I-4, I-5)"
)]

use hypercall::{Entry, Frame, FrameSource, Level, Machine, Pfn, Pte};

use crate::frames::SpaceFrames;
use crate::leaf::{release, release_all};
use crate::marks::held;
use crate::pool::TablePool;
use crate::store::store;
use crate::tables::{Parts, Present};
use p2m::{Guest, WalkError};

/// Empties a loose table. Clears each entry, and its copy in the root for user code if the table is
/// one of two roots, before it releases what the entry led to. Tables that are pinned by themselves
/// must be empty, and go to the pool.
pub(crate) fn empty<M: Machine>(
    guest: &Guest<'_, M>,
    level: Level,
    table: Pfn,
    user_root: Option<Pfn>,
    pool: &mut TablePool<'_>,
    frames: &mut SpaceFrames<'_, impl FrameSource>,
) -> Result<(), WalkError> {
    let Some(below) = level.below() else { return empty_l1(guest, table, frames) };
    let mut present = Present::of(level, table);
    while let Some((index, pte)) = present.next(guest)? {
        let Entry::Table(mfn) = pte.decode(level) else {
            store(guest, table, index, Pte::ABSENT)?;
            release(guest, pte, frames);
            continue;
        };
        let pfn = guest.pfn(mfn)?;
        if held(pte).is_none() {
            empty(guest, below, pfn, None, pool, frames)?;
        }
        if let Some(user) = user_root {
            store(guest, user, index, Pte::ABSENT)?;
        }
        store(guest, table, index, Pte::ABSENT)?;
        // SAFETY: I-4: the entry that has just been cleared was the only owner; its copy is gone,
        // too (I-6).
        let frame = unsafe { Frame::claim(pfn) };
        match held(pte) {
            Some(held) => pool.give_back(guest, held, frame, frames.of_tables()),
            None => frames.of_tables().give(frame),
        }
    }
    Ok(())
}

/// Empties a loose L1 table, several entries at a time: this is most of the cost of ending an
/// address space that was forked.
fn empty_l1<M: Machine>(
    guest: &Guest<'_, M>,
    table: Pfn,
    frames: &mut SpaceFrames<'_, impl FrameSource>,
) -> Result<(), WalkError> {
    const PART: usize = 32;
    let mut part = [Pte::ABSENT; PART];
    let mut parts = Parts::of(Level::L1, table);
    while let Some(first) = parts.next(guest, &mut part)? {
        // SAFETY: the table is loose, and belongs to the tree (I-4, I-5).
        unsafe { guest.machine().write_entries(table, first, &[Pte::ABSENT; PART]) }?;
        release_all(guest, &part, frames);
    }
    Ok(())
}
