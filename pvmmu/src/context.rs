//! What every operation needs to know of its surroundings.

use hypercall::{
    Call, DomId, ENTRIES, Error, FrameAccess, GuestVa, Hypercalls, Level, Mfn, MmuExtOp, Pfn, Pte,
    Request, Slot,
};
use p2m::{FindDirect, NoDirectEntry, P2m};
use x86_64::structures::paging::PageTableIndex;

use crate::error::WalkError;
use crate::walk::walk;

/// The guest around an operation: a bundle of borrows, handed on by value.
///
/// # Invariants
/// I-18: the frame map is that of the guest on this machine, and the upper half of the kernel root
/// is the one that runs.
#[derive(Debug)]
pub struct Context<'a, M> {
    pub(crate) machine: &'a M,
    pub(crate) p2m: &'a P2m<'a>,
    pub(crate) kernel_root: Pfn,
}

impl<M> Clone for Context<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Context<'_, M> {}

impl<'a, M> Context<'a, M> {
    /// Describes the guest on `machine` with the frame map `p2m`, whose kernel runs on
    /// `kernel_root`.
    ///
    /// # Safety
    /// `p2m` is the frame map of the guest that runs on `machine`. `kernel_root` is the root that
    /// it runs on, or one whose upper half (slots 256 to 511) leads to the same tables: through it
    /// the direct mapping's entries are found and changed (I-18).
    ///
    /// ```
    /// # use pv_tests::guest::Guest;
    /// use pvmmu::Context;
    ///
    /// # let Guest { model, p2m, context, .. } = Guest::new();
    /// # let root = context.kernel_root();
    /// // The root that the builder made, on which the kernel runs.
    /// let context = unsafe { Context::new(model, p2m, root) };
    /// # let _ = context;
    /// ```
    #[must_use]
    #[expect(unsafe_code, reason = "believes what the caller says of the guest (I-18)")]
    pub const unsafe fn new(machine: &'a M, p2m: &'a P2m<'a>, kernel_root: Pfn) -> Self {
        Self { machine, p2m, kernel_root }
    }

    /// Describes the same guest through another machine: a middleware around its own.
    ///
    /// ```
    /// # use pv_tests::guest::Guest;
    /// use hypercall::Counting;
    ///
    /// # let Guest { context, .. } = Guest::new();
    /// let counting = Counting::new(context.machine());
    /// let context = context.with_machine(&counting);
    /// # let _ = context;
    /// ```
    #[must_use]
    pub const fn with_machine<N>(self, machine: &'a N) -> Context<'a, N> {
        Context { machine, p2m: self.p2m, kernel_root: self.kernel_root }
    }

    /// The machine.
    #[must_use]
    pub const fn machine(&self) -> &'a M {
        self.machine
    }

    /// The frame map.
    #[must_use]
    pub const fn p2m(&self) -> &'a P2m<'a> {
        self.p2m
    }

    /// The root that the kernel runs on, whose upper half holds the direct mapping.
    #[must_use]
    pub const fn kernel_root(&self) -> Pfn {
        self.kernel_root
    }
}

impl<M: Hypercalls> Context<'_, M> {
    /// Asks Xen for extended operations, in one request.
    ///
    /// # Safety
    /// As for [`Hypercalls::issue`].
    #[expect(unsafe_code, reason = "hands the promise on to the seam")]
    pub(crate) unsafe fn submit_ops(&self, ops: &[MmuExtOp]) -> Result<(), Error> {
        let mut calls = [Call::new(Request::MmuExt(ops, DomId::SELF))];
        // SAFETY: the caller's promise is the one that `issue` asks for.
        unsafe { self.machine.issue(&mut calls) }?;
        calls[0].result()
    }
}

impl<M: FrameAccess> Context<'_, M> {
    /// The place of entry `index` of the table in frame `table`.
    pub(crate) fn slot(&self, table: Pfn, index: PageTableIndex) -> Result<Slot, WalkError> {
        Ok(Slot { table: self.mfn(table)?, index })
    }

    /// The machine frame behind `pfn`.
    pub(crate) fn mfn(&self, pfn: Pfn) -> Result<Mfn, WalkError> {
        Ok(self.p2m.mfn(pfn)?)
    }
}

/// Finds the entries of the direct mapping; frames that lie together cost one walk.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DirectMap {
    last: Option<Span>,
}

/// An L1 table of the direct mapping.
#[derive(Clone, Copy, Debug)]
struct Span {
    /// Number of the 2 MiB that it maps.
    number: u64,
    /// The pfn that its first entry maps, if all entries map pfns that follow one another.
    first: u64,
    table: Pfn,
    mfn: Mfn,
}

impl DirectMap {
    /// The place of the entry that maps `pfn`, and the entry.
    #[inline]
    pub(crate) fn entry<M: FrameAccess>(
        &mut self,
        context: &Context<'_, M>,
        pfn: Pfn,
    ) -> Result<(Slot, Pte), WalkError> {
        let va = context.machine.direct_map(pfn)?;
        let number = va.raw() >> Level::L2.shift();
        let span = match self.last {
            Some(span) if span.number == number => span,
            _ => self.find(context, (pfn, va))?,
        };
        let index = Level::L1.index_of(va);
        let pte = context.machine.read_entry(span.table, index)?;
        Ok((Slot { table: span.mfn, index }, pte))
    }

    /// The same for the frame `mfn`. M2P says where to look, and an entry that maps the frame
    /// confirms it as well as P2M would.
    #[inline]
    pub(crate) fn entry_of<M: FrameAccess>(
        &mut self,
        context: &Context<'_, M>,
        mfn: Mfn,
    ) -> Result<(Slot, Pte), WalkError> {
        if let (Some(span), Some(pfn)) = (self.last, context.machine.machine_to_phys(mfn)) {
            let index = pfn.raw().wrapping_sub(span.first);
            if index < u64::from(ENTRIES) {
                #[expect(clippy::cast_possible_truncation, reason = "below 512")]
                let index = PageTableIndex::new_truncate(index as u16);
                let pte = context.machine.read_entry(span.table, index)?;
                if pte.is_present() && pte.mfn() == mfn {
                    return Ok((Slot { table: span.mfn, index }, pte));
                }
            }
        }
        self.entry_of_pfn(context, mfn)
    }

    #[cold]
    fn entry_of_pfn<M: FrameAccess>(
        &mut self,
        context: &Context<'_, M>,
        mfn: Mfn,
    ) -> Result<(Slot, Pte), WalkError> {
        let pfn = context.p2m.pfn(context.machine, mfn)?;
        self.entry(context, pfn)
    }

    /// Walks to another L1 table, once for each 2 MiB.
    #[cold]
    fn find<M: FrameAccess>(
        &mut self,
        context: &Context<'_, M>,
        (pfn, va): (Pfn, GuestVa),
    ) -> Result<Span, WalkError> {
        let path = walk(context, context.kernel_root, va)?;
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

/// Finds the entries of the direct mapping for the crates that change frames in bulk and walk no
/// tables. Frames that lie together cost one walk.
#[derive(Debug)]
pub struct DirectEntries<'a, M> {
    context: Context<'a, M>,
    direct_map: DirectMap,
}

impl<'a, M> DirectEntries<'a, M> {
    /// Those of the kernel that `context` describes.
    ///
    /// ```
    /// # use pv_tests::guest::Guest;
    /// use p2m::FindDirect;
    /// use pvmmu::{DirectEntries, FrameSource};
    ///
    /// let Guest { context, mut frames, .. } = Guest::new();
    /// let pfn = frames.take().ok_or("no memory")?.pfn();
    /// let (_, entry) = DirectEntries::new(context).find(pfn)?;
    /// assert_eq!(entry.mfn(), context.p2m().mfn(pfn)?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn new(context: Context<'a, M>) -> Self {
        Self { context, direct_map: DirectMap::default() }
    }
}

#[expect(unsafe_code, reason = "promises that entries are the direct mapping's")]
// SAFETY: the walk begins at the root of the kernel that runs, at the address where the machine
// says that it maps the pfn, so the entry it ends at is that address's (I-3).
unsafe impl<M: FrameAccess> FindDirect for DirectEntries<'_, M> {
    fn find(&mut self, pfn: Pfn) -> Result<(Slot, Pte), NoDirectEntry> {
        self.direct_map.entry(&self.context, pfn).map_err(|_| NoDirectEntry(pfn))
    }
}
