//! Tells the toolstack where the frame map is.
#![expect(unsafe_code, reason = "publishes the builder's list, where it is")]

use alloc::string::String;
use alloc::vec::Vec;

use hypercall::{Cpu, Frame, FrameSource as _, Machine};
use p2m::{BuilderList, FrameList, Toolstack};

use super::OrSay;
use crate::program::Kernel;

/// Pfns that a page of the frame list describes.
const PFNS_PER_PAGE: u64 = 1 << 18;

/// Places for the pages of a frame list of `pfns` pfns.
pub(super) fn places(pfns: u64) -> Vec<Option<Frame>> {
    (0..pfns.div_ceil(PFNS_PER_PAGE)).map(|_| None).collect()
}

/// Publishes a frame list of the builder's list, in frames of the pool. The list itself lies where
/// toolstacks would misread it.
pub(super) fn publish<'a, 's, M: Machine + Cpu>(
    kernel: &mut Kernel<'a, M>,
    places: &'s mut [Option<Frame>],
) -> Result<(Toolstack<'a>, FrameList<'s>), String> {
    let toolstack = Toolstack::new(kernel.platform.shared_info()?);
    let (list, p2m) = (builder_list(kernel)?, kernel.guest.p2m());
    let top = kernel.pool.take().ok_or("the pool is empty")?;
    let mut frame_list = FrameList::new(top, places);
    frame_list.build(&kernel.guest, &list, &mut kernel.pool).or_say("frame list")?;
    let top = frame_list.top(p2m).or_say("frame list")?;
    // SAFETY: it was built of the builder's list, which stays where it is.
    unsafe { toolstack.publish_frame_list(p2m, Some(top)) };
    Ok((toolstack, frame_list))
}

/// Where the list is.
pub(super) fn builder_list<M: Machine + Cpu>(
    kernel: &Kernel<'_, M>,
) -> Result<BuilderList, String> {
    let list = kernel.made.list().ok_or("nobody knows where the list is")?;
    // SAFETY: that is where the list is.
    Ok(unsafe { BuilderList::new(list.start) })
}
