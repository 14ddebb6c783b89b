//! What a page's entry stood for, once it is gone.
#![expect(unsafe_code, reason = "claims back the frames of entries that are gone (I-4)")]

use hypercall::{Frame, Machine, Pte};

use crate::context::Context;
use crate::frames::{FrameSource, SharedFrame};
use crate::marks::{FOREIGN, SHARED};

/// Hands on what the leaf `pte`, which no table holds any more, stood for: the guest's frame, a share of one, or
/// somebody else's frame. A frame that P2M does not confirm is taken for somebody else's: it is never handed out.
pub(crate) fn release<M: Machine>(
    context: &Context<'_, M>,
    pte: Pte,
    frames: &mut impl FrameSource,
) {
    let mfn = pte.mfn();
    if pte.flags().contains(FOREIGN) {
        return frames.give_foreign(mfn);
    }
    match context.p2m.pfn(context.machine, mfn) {
        Ok(pfn) if pte.flags().contains(SHARED) => frames.give_shared(SharedFrame::released(pfn)),
        // SAFETY: I-4: the entry was the frame's only owner, and it is gone.
        Ok(pfn) => frames.give(unsafe { Frame::claim(pfn) }),
        Err(_) => frames.give_foreign(mfn),
    }
}
