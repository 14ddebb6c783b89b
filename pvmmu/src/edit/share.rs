//! Makes a shared page the address space's own when it is written.

use hypercall::{Entry, FrameSource, GuestVa, Level, Machine, MmuExtOp, Pte, PteFlags};

use super::Edit;
use crate::doubt::unprotected;
use crate::entries::keeping_seen;
use crate::map_error::MapError;
use crate::marks::{COPY_ON_WRITE, FOREIGN, FORKED, SHARED};
use crate::pages::check_page;
use crate::path::Found;
use p2m::WalkError;

impl<M: Machine, F: FrameSource> Edit<'_, '_, '_, M, F> {
    /// Makes the page at `va`, which fork has write-protected, writable again. The last sharer gets
    /// the frame, and any other a copy.
    ///
    /// # Errors
    /// [`MapError::NotMapped`] if the page is not mapped; [`MapError::NotShared`] if it is not
    /// shared (another vCPU may have been first), or was not writable before it was;
    /// [`MapError::OtherShares`], and as for [`Pgd::map_pages`](crate::Pgd::map_pages).
    ///
    /// # Hypercalls
    /// As for [`Pgd::edit`](crate::Pgd::edit), one element; before it, for a copy, one `mmuext_op`.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let page = Pages::one(GuestVa::new(0x40_0000)?);
    /// let (mut parent, mut tools) = TestGuest::with_pinned(page);
    /// let mut child = parent.fork(&mut tools)?;
    /// child.edit(&mut tools, |edit| edit.make_own(page.start))?; // a copy
    /// parent.edit(&mut tools, |edit| edit.make_own(page.start))?; // the last one keeps the frame
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn make_own(&mut self, va: GuestVa) -> Result<(), MapError> {
        check_page(va)?;
        self.submit()?;
        let guest = self.tools.guest;
        let Found::Table(_) = self.path.seek(&guest, va)? else {
            return Err(MapError::NotMapped(va));
        };
        let (slot, old) = self.path.entry(&guest, Level::L1, va)?;
        let Entry::Leaf(mfn) = old.decode(Level::L1) else { return Err(MapError::NotMapped(va)) };
        let marks = old.flags() & (SHARED | FOREIGN | COPY_ON_WRITE);
        if let Some(writable) = unprotected(old) {
            // It was about to move when Xen refused that, and more.
            self.push(keeping_seen(slot, writable), old.raw())?;
            self.flush.add(va, 1);
            self.passed(va, 1);
            return self.submit();
        }
        if marks != SHARED | COPY_ON_WRITE {
            return Err(MapError::NotShared { va, pte: old });
        }
        if self.tools.frames.is_counted_elsewhere() {
            return Err(MapError::OtherShares);
        }
        let flags = (old.flags() | PteFlags::WRITABLE) & !(SHARED | COPY_ON_WRITE | FORKED);
        let pfn = guest.pfn(mfn).map_err(WalkError::from)?;
        let is_last = self.tools.frames.shares().is_some_and(|shares| shares.is_last(pfn));
        if is_last {
            self.push(keeping_seen(slot, old.with_flags(flags)), old.raw())?;
            self.flush.add(va, 1);
            let owned = self.submit();
            // If an undo was refused, too, the entry itself says whose the frame is.
            let is_own = owned.is_ok() || !self.is_shared(va);
            if is_own && let Some(shares) = self.tools.frames.shares() {
                // INVARIANT: I-4: the entry is the frame's one owner now, and says so.
                shares.unshare(pfn);
            }
            return owned;
        }
        self.copy(slot, va, old, flags)
    }

    /// Returns whether the entry for `va` shares its frame, as far as it can be read.
    #[cold]
    fn is_shared(&mut self, va: GuestVa) -> bool {
        let guest = self.tools.guest;
        self.path.forget();
        let _ = self.path.seek(&guest, va);
        let entry = self.path.entry(&guest, Level::L1, va);
        entry.map_or(true, |(_, pte)| pte.flags().contains(SHARED))
    }

    #[expect(unsafe_code, reason = "has Xen copy into a frame that nobody else uses (I-1)")]
    fn copy(
        &mut self,
        slot: hypercall::Slot,
        va: GuestVa,
        old: Pte,
        flags: PteFlags,
    ) -> Result<(), MapError> {
        let guest = self.tools.guest;
        let frame = self.tools.frames.take().ok_or(MapError::OutOfFrames)?;
        let copied = guest.mfn(frame.pfn()).map_err(MapError::from).and_then(|mfn| {
            let batch = &mut self.tools.batch;
            batch.clear();
            batch.op(MmuExtOp::copy_page(mfn, old.mfn()))?;
            // SAFETY: the token says that nobody else uses the frame (I-1).
            unsafe { batch.submit(guest.machine()) }.map_err(MapError::RefusedCall)?;
            Ok(mfn)
        });
        let mfn = match copied {
            Ok(mfn) => mfn,
            Err(error) => {
                self.tools.batch.clear();
                self.tools.frames.give(frame);
                return Err(error);
            }
        };
        // INVARIANT: I-4: the token goes into the batch; if that is refused, it goes to the frames
        // of the tools.
        self.push(keeping_seen(slot, Pte::new(mfn, flags)), old.raw())?;
        self.flush.add(va, 1);
        self.submit()
    }
}
