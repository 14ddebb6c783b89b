//! Finds a frame's entry in the direct mapping.

use core::fmt;

use hypercall::{ENTRIES, FrameAccess, GuestVa, Level, Mfn, Pfn, Pte, Slot};
use x86_64::structures::paging::PageTableIndex;

use crate::guest::Guest;
use crate::walk::{WalkError, walk};

/// Finds entries of the direct mapping. Neighbouring frames cost one walk.
#[derive(Clone, Copy, Debug, Default)]
pub struct DirectMap {
    last: Option<Span>,
}

/// An L1 table of the direct mapping.
#[derive(Clone, Copy, Debug)]
struct Span {
    /// The number of the 2 MiB that it maps.
    number: u64,
    /// The pfn that its first entry maps, if all entries map consecutive pfns.
    first: u64,
    table: Pfn,
    mfn: Mfn,
}

impl DirectMap {
    /// Returns the slot that maps `pfn`, and the entry in it.
    ///
    /// # Errors
    /// [`WalkError`] if the direct mapping has no table there.
    #[inline]
    pub fn entry<M: FrameAccess>(
        &mut self,
        guest: &Guest<'_, M>,
        pfn: Pfn,
    ) -> Result<(Slot, Pte), WalkError> {
        let va = guest.machine().direct_map(pfn)?;
        let number = va.raw() >> Level::L2.shift();
        let span = match self.last {
            Some(span) if span.number == number => span,
            _ => self.find(guest, pfn, va)?,
        };
        let index = Level::L1.index_of(va);
        let pte = guest.machine().read_entry(span.table, index)?;
        Ok((Slot { table: span.mfn, index }, pte))
    }

    /// Returns the same for the frame `mfn`. M2P tells where to look. An entry that maps the frame
    /// confirms the answer as well as P2M would.
    ///
    /// # Errors
    /// As for [`entry`](Self::entry), and if the frame is not the guest's.
    #[inline]
    pub fn entry_of<M: FrameAccess>(
        &mut self,
        guest: &Guest<'_, M>,
        mfn: Mfn,
    ) -> Result<(Slot, Pte), WalkError> {
        if let (Some(span), Some(pfn)) = (self.last, guest.machine().machine_to_phys(mfn)) {
            let index = pfn.raw().wrapping_sub(span.first);
            if index < u64::from(ENTRIES) {
                #[expect(clippy::cast_possible_truncation, reason = "below 512")]
                let index = PageTableIndex::new_truncate(index as u16);
                let pte = guest.machine().read_entry(span.table, index)?;
                if pte.is_present() && pte.mfn() == mfn {
                    return Ok((Slot { table: span.mfn, index }, pte));
                }
            }
        }
        self.entry_of_pfn(guest, mfn)
    }

    #[cold]
    fn entry_of_pfn<M: FrameAccess>(
        &mut self,
        guest: &Guest<'_, M>,
        mfn: Mfn,
    ) -> Result<(Slot, Pte), WalkError> {
        let pfn = guest.pfn(mfn)?;
        self.entry(guest, pfn)
    }

    /// Walks to another L1 table, once for each 2 MiB.
    #[cold]
    fn find<M: FrameAccess>(
        &mut self,
        guest: &Guest<'_, M>,
        pfn: Pfn,
        va: GuestVa,
    ) -> Result<Span, WalkError> {
        let path = walk(guest, guest.kernel_root(), va)?;
        let step = path.at(Level::L1).ok_or(WalkError::NotMapped(va))?;
        let span = Span {
            number: va.raw() >> Level::L2.shift(),
            first: pfn.raw().wrapping_sub(u64::from(u16::from(Level::L1.index_of(va)))),
            table: step.table,
            mfn: step.slot.table,
        };
        self.last = Some(span);
        Ok(span)
    }
}

/// The entries of a guest's direct mapping, for changes of many frames. By slot, one `mmu_update`
/// changes any number of them; by address, each would be a request. Neighbouring frames cost one
/// walk.
#[derive(Debug)]
pub struct DirectEntries<'a, M> {
    guest: Guest<'a, M>,
    direct_map: DirectMap,
}

impl<'a, M> DirectEntries<'a, M> {
    /// Creates a finder of entries in `guest`'s direct mapping.
    ///
    /// ```
    /// # use pv_tests::guest::TestGuest;
    /// use hypercall::FrameSource;
    /// use p2m::DirectEntries;
    ///
    /// let TestGuest { guest, mut frames, .. } = TestGuest::new();
    /// let pfn = frames.take().ok_or("no memory")?.pfn();
    /// let (_, entry) = DirectEntries::new(guest).find(pfn)?;
    /// assert_eq!(entry.mfn(), guest.mfn(pfn)?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn new(guest: Guest<'a, M>) -> Self {
        Self { guest, direct_map: DirectMap::default() }
    }

    /// Returns the guest.
    #[must_use]
    pub const fn guest(&self) -> &Guest<'a, M> {
        &self.guest
    }
}

impl<M: FrameAccess> DirectEntries<'_, M> {
    /// Returns the slot that maps `pfn`, or would if it had memory, and the present entry.
    ///
    /// # Errors
    /// [`NoDirectEntry`].
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// # use p2m::{DirectEntries, NoDirectEntry};
    /// let TestGuest { guest, .. } = TestGuest::new();
    /// let far = Pfn::new(1 << 30);
    /// assert_eq!(DirectEntries::new(guest).find(far), Err(NoDirectEntry(far)));
    /// ```
    pub fn find(&mut self, pfn: Pfn) -> Result<(Slot, Pte), NoDirectEntry> {
        self.direct_map.entry(&self.guest, pfn).map_err(|_| NoDirectEntry(pfn))
    }
}

/// The direct mapping has no table for this pfn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoDirectEntry(pub Pfn);

impl fmt::Display for NoDirectEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the direct mapping has no table for pfn {}: extend it first", self.0)
    }
}

impl core::error::Error for NoDirectEntry {}
