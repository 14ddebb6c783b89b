//! A pool of empty tables that stay validated.
//!
//! Validation is most of a page table's cost under Xen: a pass over 512 entries when it becomes a
//! table, and another when it ends. A table in this pool is pinned, read-only in the direct mapping
//! and empty. Linking or unlinking it costs as much as an entry. The places that the pool is given
//! bound it. Its owner fills and drains it, and it counts what passes through.
#![expect(unsafe_code, reason = "pins and unpins frames that the pool owns (I-1)")]

use hypercall::{
    Batch, BatchStorage, Element, Frame, FrameSource, Level, Machine, MmuExtOp, MmuUpdate, Pte,
    Refused, Uncertain,
};

use crate::access::Access;
use crate::error::{NotDone, PinFailure};
use crate::marks::Held;
use crate::obstacles::Obstacles;
use crate::pgd::Roots;
use crate::stack::{PooledTable, Stack};
use crate::store::clear;
use p2m::{DirectMap, Guest, WalkError};

/// Empty validated tables of levels 1 to 3.
///
/// # Invariants
/// I-7: each frame in the pool is pinned as a table of its level, has no present entry, is linked
/// nowhere, and only the direct mapping maps it, read-only.
#[derive(Debug)]
pub struct TablePool<'t> {
    stacks: [Stack<'t, PooledTable>; 3],
    counts: PoolCounts,
}

/// What has passed through a pool. The pool has `made + adopted + returned - taken - ended - lost`
/// tables, and address spaces have [`out`](Self::out) of its tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCounts {
    /// Tables validated for the pool.
    pub made: u64,
    /// Tables from an address space, which had made them and pinned them by themselves, or had
    /// them from another pool.
    pub adopted: u64,
    /// Tables taken into an address space.
    pub taken: u64,
    /// Tables that were taken and came back.
    pub returned: u64,
    /// Tables that were taken and became plain frames: because everything in them was unmapped at
    /// once, or with their address space.
    pub not_returned: u64,
    /// Tables that became plain frames again: drained, or without a place when they came back.
    pub ended: u64,
    /// Tables that Xen did not release, which are lost to the guest.
    pub lost: u64,
}

impl PoolCounts {
    /// Returns the number of tables that are still in address spaces. An address space that is
    /// unpinned without being destroyed keeps its tables, as plain ones: they stay out. So do
    /// tables that went to another pool.
    #[must_use]
    pub const fn out(&self) -> u64 {
        self.taken - self.returned - self.not_returned
    }

    /// Returns the number of tables in the pool.
    #[must_use]
    pub const fn inside(&self) -> u64 {
        self.made + self.adopted + self.returned - self.taken - self.ended - self.lost
    }
}

/// Why filling or draining a pool stopped. Every frame is in the pool or back with the source of
/// frames; as an uncertain one if its direct mapping or its pin was not undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolError {
    /// Tables made or drained before.
    pub done: u64,
    /// The reason.
    pub failure: PinFailure,
    /// The mappings of the running tree in the way of a table that Xen refused.
    pub obstacles: Obstacles,
}

impl core::fmt::Display for PoolError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "after {} tables: {}", self.done, self.failure)?;
        match self.failure {
            PinFailure::Table { .. } => self.obstacles.describe(f),
            _ => Ok(()),
        }
    }
}

impl core::error::Error for PoolError {}

impl PoolError {
    /// Creates an error without obstacles.
    const fn new(done: u64, failure: PinFailure) -> Self {
        Self { done, failure, obstacles: Obstacles::NONE }
    }
}

impl<'t> TablePool<'t> {
    /// Creates an empty pool with places for tables of levels 1, 2 and 3. What is in them is
    /// dropped: tables of an earlier pool are lost. [Drain](Self::drain) a pool before it ends.
    ///
    /// ```
    /// use pvmmu::TablePool;
    ///
    /// // Places for two tables of level 1, and none of levels 2 and 3.
    /// let mut places = [None, None];
    /// let tables = TablePool::new([&mut places, &mut [], &mut []]);
    /// assert!(tables.is_empty());
    /// ```
    pub fn new(places: [&'t mut [Option<PooledTable>]; 3]) -> Self {
        Self { stacks: places.map(Stack::new), counts: PoolCounts::default() }
    }

    /// Returns a pool that has no table and takes none.
    pub(crate) fn none() -> Self {
        Self::new([&mut [], &mut [], &mut []])
    }

    fn stack(&mut self, level: Level) -> Option<&mut Stack<'t, PooledTable>> {
        self.stacks.get_mut(level as usize - 1)
    }

    /// Returns the number of tables of `level` in the pool.
    #[must_use]
    pub fn len(&self, level: Level) -> usize {
        self.stacks.get(level as usize - 1).map_or(0, Stack::len)
    }

    /// Returns whether the pool has no table.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stacks.iter().all(|stack| stack.len() == 0)
    }

    /// Returns what has passed through.
    #[must_use]
    pub const fn counts(&self) -> PoolCounts {
        self.counts
    }

    /// Returns whether there is a table of every level below `level`.
    pub(crate) fn has_all_below(&self, level: Level) -> bool {
        self.stacks[..level as usize - 1].iter().all(|stack| stack.len() > 0)
    }

    /// Takes a table for an address space.
    pub(crate) fn take(&mut self, level: Level) -> Option<Frame> {
        let table = self.stack(level)?.take()?;
        self.counts.taken += 1;
        Some(table.into_frame())
    }

    /// Takes back a table that was not used after all.
    pub(crate) fn return_unused(
        &mut self,
        level: Level,
        frame: Frame,
        frames: &mut (impl FrameSource + ?Sized),
    ) {
        self.counts.taken -= 1;
        self.put(level, frame, frames);
    }

    /// Counts tables that were taken and became plain frames with their address space. Those of
    /// another pool it does not count.
    pub(crate) fn note_not_returned(&mut self, count: u64) {
        self.counts.not_returned += count.min(self.counts.out());
    }

    fn put(&mut self, level: Level, table: Frame, frames: &mut (impl FrameSource + ?Sized)) {
        let table = PooledTable::new(table);
        if let Some(Err(lost)) = self.stack(level).map(|stack| stack.push(table)) {
            log::error!("no place for table {lost:?} in its pool: it is lost");
            self.lose(lost.into_frame(), frames);
        }
    }

    /// Gives up a table that is neither a plain frame nor the pool's any more.
    fn lose(&mut self, table: Frame, frames: &mut (impl FrameSource + ?Sized)) {
        self.counts.lost += 1;
        frames.give_uncertain(Uncertain::from(table));
    }

    /// Takes back a table that has left an address space: empty, and still pinned. Without a place
    /// for it, it becomes a plain frame.
    pub(crate) fn give_back<M: Machine>(
        &mut self,
        guest: &Guest<'_, M>,
        held: Held,
        frame: Frame,
        frames: &mut (impl FrameSource + ?Sized),
    ) {
        let level = held.level();
        match held {
            Held::Pooled(_) if self.counts.out() > 0 => self.counts.returned += 1,
            Held::Pooled(_) | Held::InPlace => self.counts.adopted += 1,
        }
        if self.stack(level).is_some_and(|stack| stack.room() > 0) {
            return self.put(level, frame, frames);
        }
        match end(guest, level, &frame) {
            Ok(()) => {
                self.counts.ended += 1;
                frames.give(frame);
            }
            Err(refused) => {
                log::error!("table {frame:?} has no place in its pool and is lost: {refused}");
                self.lose(frame, frames);
            }
        }
    }

    /// Makes up to `count` tables of `level` from frames of `frames`, as far as there are frames
    /// and places. Returns how many.
    ///
    /// # Errors
    /// [`PoolError`]; the tables made before stay, and the other frames went back. The batch must
    /// have room for an update and an extended operation.
    ///
    /// # Hypercalls
    /// For N tables, a batch of B updates and O extended operations: ceil(N / min(B, O)) multicalls
    /// of an `mmu_update` and an `mmuext_op`. One more after a refusal.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let mut test = TestGuest::new();
    /// let mut places = [const { None }; 8];
    /// let mut pool = TablePool::new([&mut places, &mut [], &mut []]);
    /// let batch = test.batch();
    /// let made = pool.fill(&test.guest, Level::L1, 4, &mut test.frames, batch)?;
    /// assert_eq!((made, pool.len(Level::L1)), (4, 4));
    /// assert_eq!(pool.counts().inside(), 4);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn fill<M: Machine>(
        &mut self,
        guest: &Guest<'_, M>,
        level: Level,
        count: usize,
        frames: &mut (impl FrameSource + ?Sized),
        batch: &mut Batch<'_>,
    ) -> Result<u64, PoolError> {
        let mut made = 0;
        let room = self.stack(level).map_or(0, |stack| stack.room());
        let mut left = count.min(room);
        let whole = batch.updates_max().min(batch.ops_max());
        if left > 0 && whole == 0 {
            return Err(PoolError::new(0, PinFailure::BatchTooSmall));
        }
        while left > 0 {
            match self.fill_some(guest, level, left.min(whole), frames, batch) {
                Ok(0) => break,
                Ok(some) => {
                    left -= some;
                    made += some as u64;
                    self.counts.made += some as u64;
                }
                Err(stopped) => {
                    self.counts.made += stopped.done;
                    return Err(PoolError { done: made + stopped.done, ..stopped });
                }
            }
        }
        Ok(made)
    }

    /// Makes tables in one trap. Returns how many; on failure, how many stay.
    fn fill_some<M: Machine>(
        &mut self,
        guest: &Guest<'_, M>,
        level: Level,
        count: usize,
        frames: &mut (impl FrameSource + ?Sized),
        batch: &mut Batch<'_>,
    ) -> Result<usize, PoolError> {
        batch.clear();
        let Some(stack) = self.stack(level) else { return Ok(0) };
        let mut pushed = 0;
        let planned = plan_fill(guest, stack, count, &mut pushed, frames, batch)
            .and_then(|()| pin_top(guest, level, pushed, stack, batch));
        if let Err(failure) = planned {
            let planned = (0..pushed).filter_map(|_| stack.take());
            planned.for_each(|table| frames.give(table.into_frame()));
            return Err(PoolError::new(0, failure));
        }
        // SAFETY: the frames are the pool's (I-1). Xen pins no frame whose direct mapping is still
        // writable, so the second request cannot overtake the first.
        let Err(refused) = (unsafe { batch.submit(guest.machine()) }) else { return Ok(pushed) };
        // The first ones are pinned, which are the deepest.
        let pinned = batch.applied().filter(|done| matches!(done, Element::Op(_))).count();
        let culprit = pushed.checked_sub(pinned + 1).and_then(|below| stack.peek(below));
        let culprit = culprit.map(PooledTable::pfn);
        let error = refused.error;
        let failure = match culprit.map(|pfn| (pfn, guest.mfn(pfn))) {
            // The first request makes frames read-only, the second one pins them.
            Some((table, _)) if refused.request == 0 => PinFailure::Protect { table, error },
            Some((pfn, Ok(mfn))) => PinFailure::Table { level, pfn, mfn, error },
            _ => PinFailure::Call(error),
        };
        let running = Roots { kernel: guest.kernel_root(), user: None };
        // While the frames are read-only: writable ones would be in their own way.
        let obstacles = Obstacles::of(guest, running, &failure);
        let undone = make_top_writable(guest, stack, pushed - pinned, batch);
        for table in (pinned..pushed).filter_map(|_| stack.take()) {
            let frame = table.into_frame();
            match undone {
                Ok(()) => frames.give(frame),
                // It may still be read-only.
                Err(_) => frames.give_uncertain(Uncertain::from(frame)),
            }
        }
        batch.clear();
        Err(PoolError { done: pinned as u64, failure, obstacles })
    }

    /// Ends up to `count` tables of `level`: they become plain frames and go to `frames`. Returns
    /// how many there were.
    ///
    /// # Errors
    /// [`PoolError`].
    ///
    /// # Hypercalls
    /// One multicall of an `mmuext_op` and an `mmu_update` for each table.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let mut test = TestGuest::new();
    /// let mut places = [const { None }; 8];
    /// let mut pool = TablePool::new([&mut places, &mut [], &mut []]);
    /// let batch = test.batch();
    /// pool.fill(&test.guest, Level::L1, 4, &mut test.frames, batch)?;
    /// assert_eq!(pool.drain(&test.guest, Level::L1, 3, &mut test.frames)?, 3);
    /// assert_eq!(pool.len(Level::L1), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn drain<M: Machine>(
        &mut self,
        guest: &Guest<'_, M>,
        level: Level,
        count: usize,
        frames: &mut (impl FrameSource + ?Sized),
    ) -> Result<u64, PoolError> {
        let mut done = 0;
        while done < count as u64 {
            let Some(table) = self.stack(level).and_then(Stack::take) else { break };
            let frame = table.into_frame();
            match end(guest, level, &frame) {
                Ok(()) => frames.give(frame),
                Err(Refused { value: undone, error }) => {
                    match undone {
                        Ok(()) => self.put(level, frame, frames),
                        Err(_) => self.lose(frame, frames),
                    }
                    return Err(PoolError::new(done, error));
                }
            }
            done += 1;
            self.counts.ended += 1;
        }
        Ok(done)
    }
}

/// Takes frames onto the top of the stack and plans to make them read-only.
fn plan_fill<M: Machine>(
    guest: &Guest<'_, M>,
    stack: &mut Stack<'_, PooledTable>,
    count: usize,
    pushed: &mut usize,
    frames: &mut (impl FrameSource + ?Sized),
    batch: &mut Batch<'_>,
) -> Result<(), PinFailure> {
    let mut direct_map = DirectMap::default();
    while *pushed < count {
        let Some(frame) = frames.take() else { break };
        let known =
            guest.mfn(frame.pfn()).map_err(WalkError::from).and_then(|_| clear(guest, &frame));
        let planned = known.and_then(|()| direct_map.entry(guest, frame.pfn()));
        let pushed_update = planned.map_err(PinFailure::from).and_then(|(slot, pte)| {
            let new = Access::ReadOnly.apply(pte);
            batch.update(MmuUpdate::set(slot, new), pte.raw()).map_err(PinFailure::from)
        });
        if let Err(failure) = pushed_update {
            frames.give(frame);
            return Err(failure);
        }
        if let Err(table) = stack.push(PooledTable::new(frame)) {
            frames.give(table.into_frame());
            return Err(PinFailure::BatchTooSmall);
        }
        *pushed += 1;
    }
    Ok(())
}

/// Plans to pin the top `count` frames of the stack, the deepest first.
fn pin_top<M: Machine>(
    guest: &Guest<'_, M>,
    level: Level,
    count: usize,
    stack: &Stack<'_, PooledTable>,
    batch: &mut Batch<'_>,
) -> Result<(), PinFailure> {
    for below in (0..count).rev() {
        let Some(table) = stack.peek(below) else { break };
        batch.op(MmuExtOp::pin(level, guest.mfn(table.pfn())?))?;
    }
    Ok(())
}

/// Makes the top `count` frames, which are not tables, writable again in the direct mapping.
fn make_top_writable<M: Machine>(
    guest: &Guest<'_, M>,
    stack: &Stack<'_, PooledTable>,
    count: usize,
    batch: &mut Batch<'_>,
) -> Result<(), PinFailure> {
    let mut direct_map = DirectMap::default();
    batch.clear();
    for table in (0..count).filter_map(|below| stack.peek(below)) {
        let (slot, pte) = direct_map.entry(guest, table.pfn())?;
        batch.update(MmuUpdate::set(slot, Access::Writable.apply(pte)), pte.raw())?;
    }
    // SAFETY: the frames are the pool's (I-1).
    unsafe { batch.submit(guest.machine()) }.map_err(|refused| PinFailure::Call(refused.error))
}

/// Turns an empty table that is pinned and linked nowhere into a plain frame. On failure it is what
/// it was, as far as the undo says.
fn end<M: Machine>(guest: &Guest<'_, M>, level: Level, frame: &Frame) -> Result<(), NotDone> {
    let mut storage = BatchStorage::<1, 1>::new();
    let mut batch = storage.batch();
    let planned = (|| -> Result<_, PinFailure> {
        let mfn = guest.mfn(frame.pfn())?;
        let (slot, pte): (_, Pte) = DirectMap::default().entry(guest, frame.pfn())?;
        batch.op(MmuExtOp::unpin(mfn))?;
        batch.update(MmuUpdate::set(slot, Access::Writable.apply(pte)), pte.raw())?;
        Ok(mfn)
    })();
    let mfn = planned?;
    // SAFETY: the frame is the pool's (I-7). If the first request is refused, Xen refuses the
    // second: the frame is still a table.
    let Err(refused) = (unsafe { batch.submit(guest.machine()) }) else { return Ok(()) };
    let unpinned = batch.applied().any(|done| matches!(done, Element::Op(_)));
    batch.invert();
    let pinned = if unpinned { batch.op(MmuExtOp::pin(level, mfn)) } else { Ok(()) };
    // SAFETY: restores what took effect.
    let undone = unsafe { batch.submit(guest.machine()) };
    let undone = undone.map_err(|undo| PinFailure::Call(undo.error));
    let undone = pinned.map_err(PinFailure::from).and(undone);
    let error = PinFailure::Protect { table: frame.pfn(), error: refused.error };
    Err(Refused { value: undone, error })
}
