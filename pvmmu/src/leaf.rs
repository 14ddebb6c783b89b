//! What a page's entry stood for, once it is gone.
#![expect(unsafe_code, reason = "claims back the frames of entries that are gone (I-4)")]

use hypercall::{Frame, FrameSource, Machine, Pte, Uncertain};

use crate::frames::{SharedFrame, SpaceFrames, give_shared, give_uncertain_share};
use crate::marks::{FOREIGN, SHARED};
use p2m::Guest;

/// Releases what the leaf `pte`, which no table has any more, stood for: the guest's frame, a share
/// of one, or somebody else's frame. A frame that P2M does not confirm counts as somebody else's,
/// and is never handed out.
#[expect(clippy::inline_always, reason = "a call is a third of what ending a shared page costs")]
#[inline(always)]
pub(crate) fn release<M: Machine>(
    guest: &Guest<'_, M>,
    pte: Pte,
    frames: &mut SpaceFrames<'_, impl FrameSource>,
) {
    if !pte.flags().contains(FOREIGN)
        && let Ok(pfn) = guest.pfn(pte.mfn())
    {
        if pte.flags().contains(SHARED) {
            give_shared(frames, SharedFrame::released(pfn));
        } else {
            // SAFETY: I-4: the entry was the frame's only owner, and it is gone.
            frames.give(unsafe { Frame::claim(pfn) });
        }
    } else {
        frames.give_foreign(pte.mfn());
    }
}

/// Does the same for each leaf of `gone`, the entries of a table. Not inlined: inside the functions
/// that end or replace a table, this loop takes ten instructions more for each page.
#[inline(never)]
pub(crate) fn release_all<M: Machine>(
    guest: &Guest<'_, M>,
    gone: &[Pte],
    frames: &mut SpaceFrames<'_, impl FrameSource>,
) {
    let guest = *guest;
    for pte in gone.iter().filter(|pte| pte.is_present()) {
        release(&guest, *pte, frames);
    }
}

/// Gives up what the leaf stood for as uncertain, because a TLB may still have it.
#[cold]
pub(crate) fn lose<M: Machine>(
    guest: &Guest<'_, M>,
    pte: Pte,
    frames: &mut SpaceFrames<'_, impl FrameSource>,
) {
    match guest.pfn(pte.mfn()) {
        Ok(pfn) if !pte.flags().contains(FOREIGN) => {
            if pte.flags().contains(SHARED) {
                return give_uncertain_share(frames, SharedFrame::released(pfn));
            }
            // SAFETY: I-4: the entry was the frame's only owner. The new token says that the frame
            // may still be in use.
            frames.give_uncertain(Uncertain::from(unsafe { Frame::claim(pfn) }));
        }
        _ => log::warn!("mfn {} is not ours, and may be mapped still", pte.mfn()),
    }
}

/// Does the same for an entry that led to a table, which goes where tables go.
#[cold]
pub(crate) fn lose_table<M: Machine>(
    guest: &Guest<'_, M>,
    pte: Pte,
    frames: &mut SpaceFrames<'_, impl FrameSource>,
) {
    match guest.pfn(pte.mfn()) {
        // SAFETY: as for a leaf.
        Ok(pfn) => frames.of_tables().give_uncertain(unsafe { Frame::claim(pfn) }.into()),
        Err(error) => log::error!("table mfn {} is lost: {error}", pte.mfn()),
    }
}
