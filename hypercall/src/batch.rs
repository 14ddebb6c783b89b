//! Batches: MMU work collected in the caller's memory and sent to Xen in one trap.
//!
//! Neighbouring elements of one kind form a run. A run is one request, however long it is: 500
//! page-table updates are one `mmu_update`. One run goes out as a direct hypercall, several as a
//! multicall.
//!
//! ```
//! use hypercall::{BatchStorage, Level, Mfn, MmuExtOp, MmuUpdate, Pte, Slot};
//! use x86_64::structures::paging::PageTableIndex;
//!
//! let mut storage = BatchStorage::<8, 2>::new();
//! let mut batch = storage.batch();
//! let slot = Slot { table: Mfn::new(0x203), index: PageTableIndex::new(0) };
//! let old = Pte::from_raw(0x5067);
//! batch.update(MmuUpdate::set(slot, Pte::ABSENT), old.raw())?;
//! batch.op(MmuExtOp::tlb_flush_local())?;
//! assert_eq!(batch.requests(), 2);
//! # Ok::<(), hypercall::Full>(())
//! ```

use core::fmt;
use core::ops::Range;

use crate::batch_error::{BatchError, Full};
use crate::batch_runs::{BatchRuns, Kind, Run};
use crate::call::{CALLS_MAX, Call, Outcome, Request};
use crate::commands::mmu;
use crate::error::{Errno, Error};
use crate::machine::Machine;
use crate::op::{DomId, MmuExtOp, MmuUpdate, VaMapping};
use crate::pte::{Level, Pte, PteFlags};
use crate::refusable_flag::RefusableFlag;

/// Memory for a batch of up to `UPDATES` page-table updates and `OPS` extended operations.
#[derive(Debug)]
pub struct BatchStorage<const UPDATES: usize, const OPS: usize> {
    updates: [MmuUpdate; UPDATES],
    old: [u64; UPDATES],
    ops: [MmuExtOp; OPS],
    runs: BatchRuns,
}

impl<const UPDATES: usize, const OPS: usize> BatchStorage<UPDATES, OPS> {
    /// Creates empty storage.
    ///
    /// ```
    /// use hypercall::BatchStorage;
    ///
    /// // Room for 512 updates and 8 extended operations, in the caller's memory.
    /// let mut storage = BatchStorage::<512, 8>::new();
    /// let batch = storage.batch();
    /// assert_eq!((batch.room(), batch.ops_room()), (512, 8));
    /// ```
    #[must_use]
    pub const fn new() -> Self {
        Self {
            updates: [MmuUpdate::EMPTY; UPDATES],
            old: [0; UPDATES],
            ops: [MmuExtOp::EMPTY; OPS],
            runs: BatchRuns::new(),
        }
    }

    /// Makes an empty batch in this storage.
    pub const fn batch(&mut self) -> Batch<'_> {
        self.batch_of(UPDATES, OPS)
    }

    /// Makes an empty batch in part of this storage: `updates` updates and `ops` extended
    /// operations, or as many as fit. This decides at run time how much a trap may carry.
    ///
    /// ```
    /// # use hypercall::BatchStorage;
    /// let mut storage = BatchStorage::<512, 8>::new();
    /// let batch = storage.batch_of(16, 1); // what goes in one trap is 16 updates at most
    /// assert_eq!((batch.updates_max(), batch.ops_max()), (16, 1));
    /// ```
    pub const fn batch_of(&mut self, updates: usize, ops: usize) -> Batch<'_> {
        let updates = if updates < UPDATES { updates } else { UPDATES };
        let (updates, _) = self.updates.split_at_mut(updates);
        let (ops, _) = self.ops.split_at_mut(if ops < OPS { ops } else { OPS });
        Batch::within(updates, &mut self.old, ops, &mut self.runs)
    }
}

impl<const UPDATES: usize, const OPS: usize> Default for BatchStorage<UPDATES, OPS> {
    fn default() -> Self {
        Self::new()
    }
}

/// One element of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// A page-table or M2P update.
    Update(MmuUpdate),
    /// An extended operation.
    Op(MmuExtOp),
    /// An `update_va_mapping`.
    Va(VaMapping),
}

/// Elements collected for one trip to Xen.
///
/// After a successful [`submit`](Self::submit) the batch is empty again. After a refused one it
/// keeps its elements and their outcomes until [`clear`](Self::clear), so that
/// [`applied`](Self::applied) can tell what has to be undone.
#[must_use = "a batch does nothing until it is submitted"]
pub struct Batch<'s> {
    updates: &'s mut [MmuUpdate],
    /// The old value of each entry.
    old: &'s mut [u64],
    updates_used: usize,
    /// Updates of own tables for own frames extend the last run while there are fewer than this. It
    /// ends where they do then, whatever it says itself. At 0 they need a run of their own.
    extends_to: usize,
    ops: &'s mut [MmuExtOp],
    ops_used: usize,
    runs: &'s mut [Run],
    runs_used: usize,
    /// The runs of the last submit, if it succeeded and nothing has been pushed since.
    runs_sent: usize,
}

impl Batch<'_> {
    /// Makes an empty batch in memory of any size, with room for as many updates as both of the
    /// first two slices hold.
    ///
    /// ```
    /// use hypercall::{Batch, BatchRuns, MmuExtOp, MmuUpdate};
    ///
    /// let (mut updates, mut old) = (vec![MmuUpdate::EMPTY; 64], vec![0; 64]);
    /// let (mut ops, mut runs) = ([MmuExtOp::EMPTY], BatchRuns::new());
    /// let batch = Batch::within(&mut updates, &mut old, &mut ops, &mut runs);
    /// assert_eq!(batch.updates_max(), 64);
    /// ```
    pub const fn within<'m>(
        updates: &'m mut [MmuUpdate],
        old: &'m mut [u64],
        ops: &'m mut [MmuExtOp],
        runs: &'m mut BatchRuns,
    ) -> Batch<'m> {
        let room = if updates.len() < old.len() { updates.len() } else { old.len() };
        Batch::over(updates.split_at_mut(room).0, old, ops, &mut runs.0)
    }

    const fn over<'m>(
        updates: &'m mut [MmuUpdate],
        old: &'m mut [u64],
        ops: &'m mut [MmuExtOp],
        runs: &'m mut [Run],
    ) -> Batch<'m> {
        let (updates_used, extends_to, ops_used, runs_used, runs_sent) = (0, 0, 0, 0, 0);
        Batch { updates, old, updates_used, extends_to, ops, ops_used, runs, runs_used, runs_sent }
    }

    /// Lends the memory of this batch, which is empty from then on.
    ///
    /// ```
    /// use hypercall::BatchStorage;
    ///
    /// let mut storage = BatchStorage::<8, 2>::new();
    /// let mut batch = storage.batch();
    /// assert_eq!(batch.lend().room(), 8); // for one operation
    /// assert!(batch.is_empty());
    /// ```
    pub const fn lend(&mut self) -> Batch<'_> {
        self.clear();
        Batch::over(self.updates, self.old, self.ops, self.runs)
    }

    /// Returns a batch that holds nothing, in no memory: every push is refused.
    ///
    /// ```
    /// use hypercall::{Batch, MmuUpdate};
    ///
    /// assert!(Batch::none().update(MmuUpdate::EMPTY, 0).is_err());
    /// ```
    pub const fn none() -> Self {
        Batch::over(&mut [], &mut [], &mut [], &mut [])
    }

    /// Returns how many page-table updates the storage can hold.
    #[must_use]
    pub const fn updates_max(&self) -> usize {
        self.updates.len()
    }

    /// Returns how many extended operations the storage can hold.
    #[must_use]
    pub const fn ops_max(&self) -> usize {
        self.ops.len()
    }

    /// Returns the number of page-table updates in the batch.
    #[must_use]
    pub fn updates(&self) -> usize {
        self.runs().map(|run| run.updates(0).len()).sum()
    }

    /// Returns the update that Xen refused, if the first refused request is a run of updates.
    #[must_use]
    pub fn refused_update(&self) -> Option<MmuUpdate> {
        self.runs().find_map(|run| match (run.kind, run.outcome) {
            (Kind::Updates(_), Outcome::Refused { done, .. }) => {
                self.updates[run.start..run.end].get(done as usize).copied()
            }
            _ => None,
        })
    }

    /// Returns whether the batch is empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.runs_used == 0
    }

    /// Returns how many requests the batch would send.
    #[must_use]
    pub const fn requests(&self) -> usize {
        self.runs_used
    }

    /// Adds an update of own tables for own frames. `old` is the value that it replaces, for
    /// [`invert`](Self::invert).
    ///
    /// # Errors
    /// [`Full`].
    ///
    /// ```
    /// use hypercall::{BatchStorage, FrameAccess, MmuUpdate};
    ///
    /// let model = xen_model::Model::builder().build()?;
    /// let page = model.direct_map(model.guest().first_free_page())?;
    /// let (slot, pte) = model.guest().l1_slot(page.raw()).ok_or("it is mapped")?;
    ///
    /// let mut storage = BatchStorage::<8, 2>::new();
    /// let mut batch = storage.batch();
    /// batch.update(MmuUpdate::set(slot, pte.read_only()), pte.raw())?;
    /// // The page is this program's own, and it expects the change.
    /// unsafe { batch.submit(&model) }?;
    /// # assert!(!model.guest().l1_slot(page.raw()).ok_or("it is mapped")?.1.is_writable());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn update(&mut self, update: MmuUpdate, old: u64) -> Result<(), Full> {
        let at = self.updates_used;
        if at < self.extends_to
            && let Some(place) = self.updates.get_mut(at)
            && let Some(place_of_old) = self.old.get_mut(at)
        {
            *place = update;
            *place_of_old = old;
            self.updates_used = at + 1;
            return Ok(());
        }
        self.update_for(update, old, DomId::SELF)
    }

    /// Adds an update of own tables for frames of `owner`.
    ///
    /// # Errors
    /// [`Full`].
    ///
    /// ```
    /// # use hypercall::{BatchStorage, DomId, Mfn, MmuUpdate, Pte, PteFlags, Slot};
    /// # use x86_64::structures::paging::PageTableIndex;
    /// let slot = Slot { table: Mfn::new(7), index: PageTableIndex::new(0) };
    /// let vga = MmuUpdate::set(slot, Pte::new(Mfn::new(0xb8), PteFlags::KERNEL_RW));
    /// let mut storage = BatchStorage::<8, 2>::new();
    /// let mut batch = storage.batch();
    /// batch.update_for(vga, 0, DomId::IO)?;
    /// assert_eq!(batch.requests(), 1);
    /// # Ok::<(), hypercall::Full>(())
    /// ```
    pub fn update_for(&mut self, update: MmuUpdate, old: u64, owner: DomId) -> Result<(), Full> {
        let at = self.updates_used;
        if at == self.updates.len() {
            return Err(Full);
        }
        self.close();
        match self.last() {
            Some(Run { kind: Kind::Updates(same), end, .. }) if *same == owner && *end == at => {
                *end = at + 1;
            }
            _ => self.open(Kind::Updates(owner), at)?,
        }
        self.updates[at] = update;
        self.old[at] = old;
        self.updates_used = at + 1;
        self.extends_to = if owner == DomId::SELF { self.updates.len() } else { 0 };
        Ok(())
    }

    /// Adds updates of own tables for own frames, each with the value that it replaces, as many as
    /// there is room for. Returns how many it added.
    ///
    /// # Errors
    /// [`Full`] if there was an update and it added none.
    ///
    /// ```
    /// # use hypercall::{BatchStorage, Mfn, MmuUpdate, Pfn};
    /// let mut storage = BatchStorage::<8, 2>::new();
    /// let mut batch = storage.batch();
    /// let many = (0..100).map(|at| (MmuUpdate::machphys(Mfn::new(at), Pfn::new(at)), 0));
    /// assert_eq!(batch.extend(many)?, 8); // as many as there is room for
    /// # Ok::<(), hypercall::Full>(())
    /// ```
    pub fn extend(
        &mut self,
        updates: impl IntoIterator<Item = (MmuUpdate, u64)>,
    ) -> Result<usize, Full> {
        let mut updates = updates.into_iter();
        let Some((first, old)) = updates.next() else { return Ok(0) };
        self.update(first, old)?;
        let at = self.updates_used;
        let places = self.updates[at..].iter_mut().zip(&mut self.old[at..]);
        let mut taken = 0;
        for ((place, place_of_old), (update, old)) in places.zip(updates) {
            *place = update;
            *place_of_old = old;
            taken += 1;
        }
        self.updates_used = at + taken;
        Ok(taken + 1)
    }

    /// Adds an extended operation on own frames.
    ///
    /// # Errors
    /// [`Full`].
    ///
    /// ```
    /// use hypercall::{BatchStorage, MmuExtOp};
    ///
    /// let model = xen_model::Model::builder().build()?;
    /// let mut storage = BatchStorage::<0, 1>::new();
    /// let mut batch = storage.batch();
    /// batch.op(MmuExtOp::tlb_flush_all())?;
    /// unsafe { batch.submit(&model) }?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn op(&mut self, op: MmuExtOp) -> Result<(), Full> {
        let at = self.ops_used;
        if at == self.ops.len() {
            return Err(Full);
        }
        match self.last() {
            Some(Run { kind: Kind::Ops(DomId::SELF), end, .. }) => *end = at + 1,
            _ => self.open(Kind::Ops(DomId::SELF), at)?,
        }
        self.ops[at] = op;
        self.ops[at].point_at_vcpus();
        self.ops_used = at + 1;
        Ok(())
    }

    /// Adds an `update_va_mapping`, a request of its own. `old` is the entry that it replaces.
    ///
    /// # Errors
    /// [`Full`].
    ///
    /// ```
    /// use hypercall::{BatchStorage, FrameAccess, VaFlush, VaMapping};
    ///
    /// let model = xen_model::Model::builder().build()?;
    /// let page = model.direct_map(model.guest().first_free_page())?;
    /// let (_, old) = model.guest().l1_slot(page.raw()).ok_or("it is mapped")?;
    ///
    /// let mut storage = BatchStorage::<0, 0>::new();
    /// let mut batch = storage.batch();
    /// let flush = VaFlush::PageAll;
    /// batch.va_mapping(VaMapping { va: page.addr(), pte: old.read_only(), flush }, old)?;
    /// unsafe { batch.submit(&model) }?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn va_mapping(&mut self, mapping: VaMapping, old: Pte) -> Result<(), Full> {
        self.open(Kind::Va(mapping, old), 0)
    }

    /// Turns a refused batch into the one that undoes it: the updates and va mappings that took
    /// effect, in reverse, each with the value that stood there before. Extended operations are
    /// left out. The caller knows what undoes a pin or a flush, and can add it.
    ///
    /// ```
    /// use hypercall::{BatchStorage, FrameAccess, Mfn, MmuUpdate, Pte, PteFlags};
    ///
    /// let model = xen_model::Model::builder().build()?;
    /// let page = model.direct_map(model.guest().first_free_page())?;
    /// let (slot, pte) = model.guest().l1_slot(page.raw()).ok_or("it is mapped")?;
    ///
    /// let mut storage = BatchStorage::<8, 2>::new();
    /// let mut batch = storage.batch();
    /// batch.update(MmuUpdate::set(slot, pte.read_only()), pte.raw())?;
    /// // There is no such frame: Xen refuses the second update, the first has taken effect.
    /// let wrong = Pte::new(Mfn::new(0xff_ffff_ffff), PteFlags::KERNEL_RW);
    /// batch.update(MmuUpdate::set(slot, wrong), pte.read_only().raw())?;
    /// let refused = unsafe { batch.submit(&model) }.unwrap_err();
    /// assert_eq!(refused.error.done, 1);
    /// batch.invert();
    /// unsafe { batch.submit(&model) }?;
    /// let (_, now) = model.guest().l1_slot(page.raw()).ok_or("it is mapped")?;
    /// assert!(now.same_for_guest(pte));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn invert(&mut self) {
        self.close();
        let mut kept = 0;
        for at in 0..self.runs_used {
            let mut run = self.runs[at];
            let done = Call { request: self.request(&run), outcome: run.outcome }.done();
            run.end = run.start + done;
            run.outcome = Outcome::NotIssued;
            if done == 0 || matches!(run.kind, Kind::Ops(_)) {
                continue;
            }
            match &mut run.kind {
                Kind::Updates(_) => self.invert_updates(run.start..run.end),
                Kind::Va(mapping, old) => core::mem::swap(&mut mapping.pte, old),
                Kind::Ops(_) => {}
            }
            self.runs[kept] = run;
            kept += 1;
        }
        self.runs[..kept].reverse();
        self.runs_used = kept;
        // What was refused has not been sent, even if there is nothing left to undo.
        self.runs_sent = 0;
        self.ops_used = 0;
    }

    /// Returns the updates of the last successful [`submit`](Self::submit), each with the value
    /// that it replaced, until something is pushed.
    pub fn sent(&self) -> impl Iterator<Item = (MmuUpdate, u64)> + '_ {
        let runs = if self.runs_used == 0 { self.runs_sent } else { 0 };
        self.runs[..runs].iter().flat_map(|run| self.pairs(run.updates(0)))
    }

    /// Returns the updates that have not taken effect: not submitted, refused, or after a refused
    /// one in the same run.
    pub fn unapplied(&self) -> impl Iterator<Item = (MmuUpdate, u64)> + '_ {
        self.runs().flat_map(|run| {
            let done = Call { request: self.request(&run), outcome: run.outcome }.done();
            self.pairs(run.updates(done))
        })
    }

    /// Returns the updates that took effect in a refused submit, each with the value that it
    /// replaced.
    ///
    /// ```
    /// # use hypercall::middleware::{FailNth, Refusal};
    /// # use hypercall::{BatchStorage, Errno, Mfn, MmuUpdate, Pfn};
    /// # let model = xen_model::Model::builder().build()?;
    /// let machine = FailNth::new(&model, Refusal { request: 0, done: 0, errno: Errno::EINVAL });
    /// let mut storage = BatchStorage::<1, 0>::new();
    /// let mut batch = storage.batch();
    /// batch.update(MmuUpdate::machphys(Mfn::new(7), Pfn::new(7)), 0)?;
    /// let refused = unsafe { batch.submit(&machine) };
    /// assert!(refused.is_err());
    /// assert_eq!((batch.in_effect().count(), batch.unapplied().count()), (0, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn in_effect(&self) -> impl Iterator<Item = (MmuUpdate, u64)> + '_ {
        self.runs().flat_map(|run| {
            let done = Call { request: self.request(&run), outcome: run.outcome }.done();
            self.pairs(run.updates(0)).take(done)
        })
    }

    /// Returns the updates in these places, each with its old value.
    fn pairs(&self, range: Range<usize>) -> impl Iterator<Item = (MmuUpdate, u64)> + '_ {
        let old = self.old[range.clone()].iter().copied();
        self.updates[range].iter().copied().zip(old)
    }

    /// Returns how many more updates fit.
    #[must_use]
    pub const fn room(&self) -> usize {
        self.updates.len() - self.updates_used
    }

    /// Returns how many more extended operations fit.
    #[must_use]
    pub const fn ops_room(&self) -> usize {
        self.ops.len() - self.ops_used
    }

    /// Empties the batch, submitted or not.
    pub const fn clear(&mut self) {
        self.runs_sent = 0;
        self.updates_used = 0;
        self.extends_to = 0;
        self.ops_used = 0;
        self.runs_used = 0;
    }

    /// Sends everything to Xen in one trap.
    ///
    /// # Errors
    /// [`BatchError`] with the first request that was refused. Requests after it may still have
    /// taken effect: see [`applied`](Self::applied).
    ///
    /// # Hypercalls
    /// None if empty; one otherwise.
    ///
    /// # Safety
    /// As for [`Hypercalls::issue`](crate::Hypercalls::issue).
    ///
    /// ```
    /// use hypercall::{BatchStorage, Level, MmuExtOp};
    ///
    /// let model = xen_model::Model::builder().build()?;
    /// let page = model.guest().first_free_page();
    /// let mfn = model.guest().built_mfn(page).ok_or("it is memory")?;
    /// let mut storage = BatchStorage::<0, 1>::new();
    /// let mut batch = storage.batch();
    /// batch.op(MmuExtOp::pin(Level::L1, mfn))?;
    /// // The direct mapping shows the page writable, so it cannot become a table.
    /// let refused = unsafe { batch.submit(&model) }.unwrap_err();
    /// assert_eq!(refused.to_string(), "mmuext_op refused: EINVAL (-22)");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[expect(unsafe_code, reason = "the funnel through which all MMU work is submitted")]
    pub unsafe fn submit<M: Machine + ?Sized>(&mut self, machine: &M) -> Result<(), BatchError> {
        // A change and its flush are the most frequent batch, and should not pay for a longer one.
        match self.runs_used {
            0 => {
                self.clear();
                Ok(())
            }
            // SAFETY: the caller's promise is handed on.
            1..=2 => unsafe { self.submit_calls::<M, 2>(machine) },
            // SAFETY: as above.
            _ => unsafe { self.submit_calls::<M, CALLS_MAX>(machine) },
        }
    }

    /// Does the same for a batch of at most `MAX` requests.
    #[expect(unsafe_code, reason = "the funnel through which all MMU work is submitted")]
    unsafe fn submit_calls<M: Machine + ?Sized, const MAX: usize>(
        &mut self,
        machine: &M,
    ) -> Result<(), BatchError> {
        self.close();
        // A machine that panics says nothing of what it did: then nobody takes that for undone.
        let requests = core::mem::take(&mut self.runs_used);
        let runs = &self.runs[..requests];
        let mut calls: [_; MAX] = core::array::from_fn(|at| {
            let request = runs.get(at).map(|run| self.request(run));
            Call::new(request.unwrap_or(Request::MmuExt(&[], DomId::SELF)))
        });
        // SAFETY: the caller's promise is the one that `issue` asks for.
        let whole = unsafe { machine.issue(&mut calls[..requests]) };
        let are_done = calls[..requests].iter().all(|call| call.outcome == Outcome::Done);
        if whole.is_err() || !are_done {
            let outcomes = calls.map(|call| call.outcome);
            self.runs_used = requests;
            if let Some(refused) = self.note(whole.err(), &outcomes, machine.missing_flags()) {
                return Err(refused);
            }
        }
        self.clear();
        self.runs_sent = requests;
        Ok(())
    }

    /// Notes the outcome of each request, and returns why the batch was refused as a `whole`, or
    /// else the first request that was.
    #[cold]
    #[inline(never)]
    fn note(
        &mut self,
        whole: Option<Error>,
        outcomes: &[Outcome],
        missing: PteFlags,
    ) -> Option<BatchError> {
        let requests = self.runs_used;
        let mut first = None;
        for (at, outcome) in outcomes.iter().enumerate().take(requests) {
            self.runs[at].outcome = *outcome;
            let call = Call { request: self.request(&self.runs[at]), outcome: *outcome };
            first = first.or(call.result().err().map(|error| (at, error)));
        }
        match (whole, first) {
            (Some(error), first) => {
                let last = requests.saturating_sub(1);
                let request = first.map_or(last, |(request, _)| request);
                Some(BatchError::of(request, requests, error))
            }
            (None, first) => first.map(|(request, error)| self.refusal(request, error, missing)),
        }
    }

    /// Returns the refusal of a request, with the flag for which Xen refuses such an entry, if the
    /// refused one has any.
    #[cold]
    fn refusal(&self, request: usize, error: Error, missing: PteFlags) -> BatchError {
        let run = &self.runs[request];
        let entry = match run.kind {
            Kind::Updates(_) => self.updates[run.start..run.end]
                .get(error.done as usize)
                .filter(|update| update.target() & mmu::MASK != mmu::MACHPHYS)
                .map(|update| (Pte::from_raw(update.value()), None)),
            Kind::Va(mapping, _) => Some((mapping.pte, Some(Level::L1))),
            Kind::Ops(_) => None,
        };
        let entry = entry.filter(|_| error.errno == Errno::EINVAL);
        let flag = entry.and_then(|(pte, level)| RefusableFlag::find(pte, level, missing));
        BatchError { flag, ..BatchError::of(request, self.runs_used, error) }
    }

    /// Returns the elements that took effect in a refused submit, in order.
    ///
    /// ```
    /// # use hypercall::middleware::{FailNth, Refusal};
    /// # use hypercall::{BatchStorage, Errno, MmuExtOp};
    /// let model = xen_model::Model::builder().build()?;
    /// let machine = FailNth::new(&model, Refusal { request: 0, done: 1, errno: Errno::EINVAL });
    /// let mut storage = BatchStorage::<0, 2>::new();
    /// let mut batch = storage.batch();
    /// batch.op(MmuExtOp::tlb_flush_local())?;
    /// batch.op(MmuExtOp::tlb_flush_all())?;
    /// let refused = unsafe { batch.submit(&machine) };
    /// assert!(refused.is_err() && batch.applied().count() == 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn applied(&self) -> impl Iterator<Item = Element> + '_ {
        self.runs().flat_map(move |run| {
            let done = Call { request: self.request(&run), outcome: run.outcome }.done();
            (0..done).map(move |at| match run.kind {
                Kind::Updates(_) => Element::Update(self.updates[run.start + at]),
                Kind::Ops(_) => Element::Op(self.ops[run.start + at]),
                Kind::Va(mapping, _) => Element::Va(mapping),
            })
        })
    }

    fn invert_updates(&mut self, range: Range<usize>) {
        let (updates, old) = (&mut self.updates[range.clone()], &mut self.old[range]);
        for (update, old) in updates.iter_mut().zip(old.iter_mut()) {
            let before = core::mem::replace(old, update.value());
            *update = MmuUpdate::from_raw(update.target(), before);
        }
        updates.reverse();
        old.reverse();
    }

    const fn last(&mut self) -> Option<&mut Run> {
        match self.runs_used {
            0 => None,
            used => Some(&mut self.runs[used - 1]),
        }
    }

    /// Notes where the last run ends. No update extends it without a look at it from now on.
    const fn close(&mut self) {
        if self.extends_to > 0 {
            let end = self.updates_used;
            self.extends_to = 0;
            if let Some(run) = self.last() {
                run.end = end;
            }
        }
    }

    /// Returns the runs, each with its end.
    fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        let used = self.runs_used;
        self.runs[..used].iter().enumerate().map(move |(at, run)| {
            let is_extended = self.extends_to > 0 && at + 1 == used;
            if is_extended { Run { end: self.updates_used, ..*run } } else { *run }
        })
    }

    fn open(&mut self, kind: Kind, start: usize) -> Result<(), Full> {
        self.close();
        let run = self.runs.get_mut(self.runs_used).ok_or(Full)?;
        *run = Run { kind, start, end: start + 1, outcome: Outcome::NotIssued };
        self.runs_used += 1;
        Ok(())
    }

    fn request(&self, run: &Run) -> Request<'_> {
        match run.kind {
            Kind::Updates(owner) => Request::MmuUpdate(&self.updates[run.start..run.end], owner),
            Kind::Ops(domain) => Request::MmuExt(&self.ops[run.start..run.end], domain),
            Kind::Va(mapping, _) => Request::VaMapping(mapping),
        }
    }
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.runs().map(|run| self.request(&run))).finish()
    }
}
