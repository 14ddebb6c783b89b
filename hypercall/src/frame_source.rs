//! Where frames come from, and where they return to.

use crate::own::Frame;
use crate::quarantine::Uncertain;

/// Hands out frames, for pages and for tables, and takes them back.
///
/// A frame that is handed out is the guest's own memory. Only the direct mapping maps it, writable.
/// Its contents do not matter. Frames with neighbouring pfns are the cheapest to change, because
/// their entries are in one table.
pub trait FrameSource {
    /// Hands out a frame, if there is one.
    fn take(&mut self) -> Option<Frame>;

    /// Takes a frame back. It is in the direct mapping, writable, and holds anything, perhaps what
    /// another domain left in it.
    fn give(&mut self, frame: Frame);

    /// Takes frames that a refused undo has left in doubt. They may still be mapped somewhere, so
    /// nobody may use them: put them in a [`Quarantine`](crate::Quarantine), which counts and lists
    /// them.
    ///
    /// The default logs them and leaks them.
    fn give_uncertain(&mut self, frames: Uncertain) {
        log::error!("{frames}: Xen refused an undo, and nobody may use it any more");
    }
}
