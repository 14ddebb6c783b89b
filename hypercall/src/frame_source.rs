//! Where frames come from and go to.

use crate::own::Frame;
use crate::quarantine::Uncertain;

/// Hands out frames, for pages and for tables, and takes them back.
///
/// A frame that is handed out is memory of the guest's own, mapped by the direct mapping alone, and
/// writable there. What is in it does not matter. Frames whose pfns are near each other are the
/// cheapest to change, since their entries lie in one table.
pub trait FrameSource {
    /// Hands out a frame, if there is one.
    fn take(&mut self) -> Option<Frame>;

    /// Takes a frame back. It is in the direct mapping, writable, and holds anything, such as what
    /// another domain left in it.
    fn give(&mut self, frame: Frame);

    /// Takes frames that a refused undo has left in doubt. They may still be mapped somewhere, so
    /// nobody may use them: put them in a [`Quarantine`](crate::Quarantine), which counts and lists
    /// them.
    ///
    /// Logs them, and leaks them, unless it is implemented.
    fn give_uncertain(&mut self, frames: Uncertain) {
        log::error!("{frames}: Xen refused an undo, and nobody may use it any more");
    }
}
