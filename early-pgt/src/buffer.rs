//! The table buffer: frames that are mapped already and become tables, `[start, end, top)`.
//!
//! ```text
//!   start            end                  top
//!     |  tables        |  never used        |
//!     |  read-only     |  writable          |
//! ```
//!
//! A round moves `end`. The frames in front of it are filled by plain stores, which needs them
//! writable, and then become read-only *and* tables in one request: before Xen first takes a frame
//! as a table it is read-only, and a frame that is not taken never loses its writable entry. There
//! is no third state to repair afterwards, and so no window in which somebody could be handed a
//! frame that is still read-only: what the reviewers of the 2011 patch asked for.
//!
//! The bracket is one value: [`TableBuffer::begin`] borrows the buffer, which owns its frames, and
//! [`TableRound::finish`] gives the borrow back. Until then nobody can reach `[end, top)`; a round
//! that is dropped in between leaves a buffer that refuses to hand anything out.
#![expect(unsafe_code, reason = "protects frames that the buffer owns, and sends what links them")]

use hypercall::{
    Batch, Entry, FrameAccess, Frames, GuestVa, Level, Machine, Mfn, MmuExtOp, MmuUpdate, Pfn, Pte,
    Slot, Uncertain,
};
use p2m::{Guest, P2m, Pfns};

use crate::error::{EarlyError, RoundError};
use crate::memory::Access;

/// The three marks of a table buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Marks {
    /// First frame.
    pub start: Pfn,
    /// First frame that is no table yet.
    pub end: Pfn,
    /// First frame behind the buffer.
    pub top: Pfn,
}

impl Marks {
    /// The frames that are tables.
    #[must_use]
    pub fn tables(self) -> Pfns {
        run(self.start, self.end)
    }

    /// The frames that are not.
    #[must_use]
    pub fn unused(self) -> Pfns {
        run(self.end, self.top)
    }

    /// All frames.
    #[must_use]
    pub fn all(self) -> Pfns {
        run(self.start, self.top)
    }
}

fn run(start: Pfn, end: Pfn) -> Pfns {
    Pfns::new(start, end.offset_from(start).unwrap_or(0))
}

/// The owner of the frames of a buffer.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the frames are in here"]
pub struct TableBuffer {
    frames: Frames,
    /// Frames that are tables.
    tables: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between rounds.
    Closed,
    /// In a round, or in one that was dropped.
    Open,
}

impl TableBuffer {
    /// A buffer of `frames`, which are in the direct mapping, writable.
    ///
    /// ```
    /// use early_pgt::TableBuffer;
    /// use hypercall::{Frames, Pfn};
    ///
    /// let mut buffer = TableBuffer::new(unsafe { Frames::claim(Pfn::new(0x3000), 8) });
    /// let mut round = buffer.begin()?;
    /// let table = round.take()?; // to be filled by plain stores, then `finish`
    /// assert_eq!(table, Pfn::new(0x3000));
    /// round.abandon(); // or not: then it is a page as before
    /// let (tables, unused) = buffer.into_parts().map_err(|(_, error)| error)?;
    /// assert_eq!((tables.count, unused.count()), (0, 8));
    /// # Ok::<(), early_pgt::EarlyError>(())
    /// ```
    pub const fn new(frames: Frames) -> Self {
        Self { frames, tables: 0, state: State::Closed }
    }

    /// Where its marks are.
    #[must_use]
    pub const fn marks(&self) -> Marks {
        let start = self.frames.start();
        Marks {
            start,
            end: Pfn::new(start.raw() + self.tables),
            top: Pfn::new(start.raw() + self.frames.count()),
        }
    }

    /// Begins a round.
    ///
    /// # Errors
    /// [`EarlyError::RoundUnfinished`] if the one before was dropped.
    pub fn begin(&mut self) -> Result<TableRound<'_>, EarlyError> {
        self.check_closed()?;
        self.state = State::Open;
        let first = self.tables;
        Ok(TableRound { buffer: self, first })
    }

    /// Ends the buffer: which frames are tables now, and the others, writable, to whoever wants
    /// them.
    ///
    /// # Errors
    /// [`EarlyError::RoundUnfinished`] with the buffer, if a round was dropped.
    pub fn into_parts(self) -> Result<(Pfns, Frames), (Self, EarlyError)> {
        if let Err(error) = self.check_closed() {
            return Err((self, error));
        }
        let tables = self.marks().tables();
        match self.frames.split(self.tables) {
            Ok((_, unused)) => Ok((tables, unused)),
            // There are never more tables than frames.
            Err(frames) => Err((Self { frames, ..self }, EarlyError::BufferEmpty)),
        }
    }

    /// Gives up a buffer of which a round was dropped, or could not be undone: which of its frames
    /// are tables is not known, so all of them are for a quarantine.
    pub fn into_uncertain(self) -> Uncertain {
        self.frames.into()
    }

    fn check_closed(&self) -> Result<(), EarlyError> {
        match self.state {
            State::Closed => Ok(()),
            State::Open => Err(EarlyError::RoundUnfinished { buffer: self.marks().all() }),
        }
    }
}

/// A round: frames are taken, filled, and all of them become tables at once.
#[derive(Debug)]
#[must_use = "a round that is dropped leaves a buffer that nobody can use"]
pub struct TableRound<'b> {
    buffer: &'b mut TableBuffer,
    /// Frames that were tables before.
    first: u64,
}

impl TableRound<'_> {
    /// The next frame: in the direct mapping, writable, with anything in it.
    ///
    /// # Errors
    /// [`EarlyError::BufferEmpty`].
    pub const fn take(&mut self) -> Result<Pfn, EarlyError> {
        let Marks { end, top, .. } = self.buffer.marks();
        if end.raw() == top.raw() {
            return Err(EarlyError::BufferEmpty);
        }
        self.buffer.tables += 1;
        Ok(end)
    }

    /// The frames taken in this round.
    #[must_use]
    pub fn taken(&self) -> Pfns {
        let Marks { start, end, .. } = self.buffer.marks();
        run(Pfn::new(start.raw() + self.first), end)
    }

    /// Puts all frames back that were taken: none of them is a table, all are writable.
    pub fn abandon(self) {
        self.buffer.tables = self.first;
        self.buffer.state = State::Closed;
    }

    /// Makes the frames taken read-only, then makes `changes`, which link them: all in as few
    /// requests as the batch has room for. Xen stops at the first element it refuses, so nothing is
    /// linked before everything is read-only.
    ///
    /// `changes` is asked for the changes that link, and, if that fails, for those that undo them.
    ///
    /// # Errors
    /// [`RoundError`]; the frames are back in the buffer, as after [`abandon`](Self::abandon). If
    /// not even the undo worked the buffer stays shut
    /// ([`into_uncertain`](TableBuffer::into_uncertain)). [`EarlyError::NoStorage`] if the batch
    /// has no room for an operation: undoing what was linked takes a flush.
    ///
    /// # Hypercalls
    /// ceil((T + L) / U) `mmu_update`, for T frames, L changes and room for U updates. If one is
    /// refused, at most one more than again as many, with a flush.
    ///
    /// # Safety
    /// The frames were filled as tables, and `changes` are of entries that the caller owns.
    pub unsafe fn finish<M, I>(
        self,
        guest: Guest<'_, M>,
        changes: impl Fn(Direction) -> I,
        batch: &mut Batch<'_>,
    ) -> Result<Pfns, RoundError>
    where
        M: Machine,
        I: Iterator<Item = Change>,
    {
        let taken = self.taken();
        if batch.ops_max() == 0 {
            self.abandon();
            return Err(EarlyError::NoStorage.into());
        }
        let Err((done, failure)) = link(guest, taken, &changes, batch) else {
            self.buffer.state = State::Closed;
            return Ok(taken);
        };
        let undo = unlink(guest, (taken, done), &changes, batch);
        if undo.is_ok() {
            self.abandon();
        }
        Err(RoundError { failure, undo })
    }
}

/// Makes frames that were filled as tables read-only, then makes `changes`, which link them. How
/// many elements took effect before one failed.
pub(crate) fn link<M: Machine, I: Iterator<Item = Change>>(
    guest: Guest<'_, M>,
    tables: Pfns,
    changes: &impl Fn(Direction) -> I,
    batch: &mut Batch<'_>,
) -> Result<(), (u64, EarlyError)> {
    let forth = protections(guest, tables.iter(), Access::ReadOnly);
    let all = forth.chain(changes(Direction::Forth));
    apply(guest, all, None, batch).map_err(|(done, stop)| {
        let protecting = done < tables.count;
        (done, if protecting { stop.protecting() } else { stop.linking() })
    })
}

/// Takes back the first `done` elements of a [`link`]: what was linked comes out again before its
/// frames become writable, and before the way to their entries is looked up.
pub(crate) fn unlink<M: Machine, I: Iterator<Item = Change>>(
    guest: Guest<'_, M>,
    (tables, done): (Pfns, u64),
    changes: &impl Fn(Direction) -> I,
    batch: &mut Batch<'_>,
) -> Result<(), EarlyError> {
    let linked = count(done.saturating_sub(tables.count));
    if linked > 0 {
        let back = changes(Direction::Back).take(linked);
        // A CPU may have looked at what was there for a moment: of that Xen flushes what goes with
        // a table, and nothing that an L1 maps.
        let flush = Some(MmuExtOp::tlb_flush_all());
        apply(guest, back, flush, batch).map_err(|(_, stop)| stop.linking())?;
    }
    let protected = Pfns::new(tables.start, done.min(tables.count));
    set_protected(guest, (protected.iter(), Access::Writable), batch)
}

/// Gives the entries of the direct mapping for `frames` this access.
pub(crate) fn set_protected<M: Machine>(
    guest: Guest<'_, M>,
    (frames, access): (impl Iterator<Item = Pfn>, Access),
    batch: &mut Batch<'_>,
) -> Result<(), EarlyError> {
    let changes = protections(guest, frames, access);
    apply(guest, changes, None, batch).map_err(|(_, stop)| stop.protecting())
}

/// Whether changes are made or taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Made.
    Forth,
    /// Taken back, with the same entries in the same order.
    Back,
}

/// An update, and what stands in its place before.
pub type Change = Result<(MmuUpdate, Pte), EarlyError>;

/// What stopped a run of changes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stop {
    /// It could not be asked for.
    Error(EarlyError),
    /// Xen refused; the frame that the entry leads to, if it is known.
    Refused(Option<Pfn>, hypercall::BatchError),
}

impl Stop {
    /// The error, if it stopped something that changes what frames of the buffer allow.
    const fn protecting(self) -> EarlyError {
        match self {
            Self::Refused(Some(table), error) => EarlyError::Protect { table, error },
            other => other.linking(),
        }
    }

    /// The error, if it stopped something that links tables.
    pub(crate) const fn linking(self) -> EarlyError {
        match self {
            Self::Error(error) => error,
            Self::Refused(frame, error) => EarlyError::Link { frame, error },
        }
    }
}

/// Makes entries of the direct mapping read-only or writable: what the second face of the table
/// buffer, [`PastPgt`](crate::PastPgt), says is to be done, and what a port does that gives the
/// builder's tables back.
///
/// # Errors
/// [`EarlyError::Protect`]; those in front of the frame it names are changed.
///
/// # Hypercalls
/// ceil(N / U) `mmu_update`, for N frames and room for U updates; Linux takes N.
///
/// # Safety
/// The caller owns the frames (I-1), no Rust object lives in those that become read-only, and those
/// that become writable are no tables any more. Nothing is flushed: Xen does that when a frame that
/// was writable becomes a table; until then a TLB may let it be written.
///
/// ```
/// # use hypercall::BatchStorage;
/// # use p2m::Pfns;
/// # use pv_tests::booting::Booting;
/// # use xen_model::Role;
/// use early_pgt::{Access, set_access};
///
/// let booting = Booting::new(Role::DomU, 1 << 14);
/// let p2m = booting.p2m();
/// let guest = booting.guest(&booting.model, &p2m);
/// let slack = Pfns::new(booting.model.guest().first_free_page(), 4);
/// let mut storage = BatchStorage::<4, 1>::new();
/// let batch = &mut storage.batch();
/// // Nobody writes these four pages from here on.
/// unsafe { set_access(guest, (slack, Access::ReadOnly), batch) }?;
/// # Ok::<(), early_pgt::EarlyError>(())
/// ```
pub unsafe fn set_access<M: Machine>(
    guest: Guest<'_, M>,
    (frames, access): (Pfns, Access),
    batch: &mut Batch<'_>,
) -> Result<(), EarlyError> {
    set_protected(guest, (frames.iter(), access), batch)
}

/// Sends changes, as many at a time as there is storage for, and `flush` with the last of them. How
/// many were made before one failed.
pub(crate) fn apply<M: Machine>(
    guest: Guest<'_, M>,
    changes: impl Iterator<Item = Change>,
    flush: Option<MmuExtOp>,
    batch: &mut Batch<'_>,
) -> Result<(), (u64, Stop)> {
    batch.clear();
    let mut done = 0;
    for change in changes {
        let (update, old) = change.map_err(|failure| (done, Stop::Error(failure)))?;
        if batch.room() == 0 {
            send(guest, batch, &mut done)?;
        }
        let pushed = batch.update(update, old.raw());
        pushed.map_err(|full| (done, Stop::Error(full.into())))?;
    }
    if let Some(flush) = flush {
        batch.op(flush).map_err(|full| (done, Stop::Error(full.into())))?;
    }
    send(guest, batch, &mut done)
}

fn send<M: Machine>(
    guest: Guest<'_, M>,
    batch: &mut Batch<'_>,
    done: &mut u64,
) -> Result<(), (u64, Stop)> {
    let updates = batch.updates() as u64;
    // SAFETY: each entry changed maps a frame of the buffer, which the caller owns, or is one that
    // the caller of `finish` vouches for.
    let Err(error) = (unsafe { batch.submit(guest.machine()) }) else {
        *done += updates;
        return Ok(());
    };
    *done += batch.applied().count() as u64;
    let frame = batch.refused_update().and_then(|update| {
        let mfn = Pte::from_raw(update.value()).mfn();
        guest.p2m().pfn(guest.machine(), mfn).ok()
    });
    batch.clear();
    Err((*done, Stop::Refused(frame, error)))
}

/// The entries of the direct mapping that map `frames`, given `access`.
pub(crate) fn protections<M: FrameAccess>(
    guest: Guest<'_, M>,
    frames: impl Iterator<Item = Pfn>,
    access: Access,
) -> impl Iterator<Item = Change> {
    let mut last = None;
    frames.map(move |pfn| {
        let va = guest.machine().direct_map(pfn)?;
        let number = va.raw() >> Level::L2.shift();
        let (table, mfn) = match last {
            Some((same, table, mfn)) if same == number => (table, mfn),
            _ => l1_table((guest.machine(), guest.p2m()), guest.kernel_root(), va)?,
        };
        last = Some((number, table, mfn));
        let index = Level::L1.index_of(va);
        let old = guest.machine().read_entry(table, index)?;
        let new = match access {
            Access::ReadOnly => old.read_only(),
            Access::Writable => old.writable(),
        };
        Ok((MmuUpdate::set(Slot { table: mfn, index }, new), old))
    })
}

/// The L1 table that maps `va` in the tree under `root`.
pub(crate) fn l1_table<M: FrameAccess>(
    around: (&M, &P2m<'_>),
    root: Pfn,
    va: GuestVa,
) -> Result<(Pfn, Mfn), EarlyError> {
    let (_, p2m) = around;
    let mut table = root;
    for level in [Level::L4, Level::L3, Level::L2] {
        table = step_down(around, table, (va, level))?;
    }
    Ok((table, p2m.mfn(table)?))
}

/// The table in which a table of `level` for `va` hangs.
pub(crate) fn table_above<M: FrameAccess>(
    around: (&M, &P2m<'_>),
    root: Pfn,
    (va, level): (GuestVa, Level),
) -> Result<Pfn, EarlyError> {
    let mut table = root;
    for above in Level::TOP_DOWN.into_iter().filter(|above| *above as u8 > level as u8 + 1) {
        table = step_down(around, table, (va, above))?;
    }
    Ok(table)
}

pub(crate) fn step_down<M: FrameAccess>(
    (machine, p2m): (&M, &P2m<'_>),
    table: Pfn,
    (va, level): (GuestVa, Level),
) -> Result<Pfn, EarlyError> {
    match machine.read_entry(table, level.index_of(va))?.decode(level) {
        Entry::Table(mfn) => Ok(p2m.pfn(machine, mfn)?),
        Entry::Absent | Entry::Leaf(_) => Err(EarlyError::NotMapped(va)),
    }
}

fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(count: u64) -> TableBuffer {
        // SAFETY: no frame stands behind the numbers.
        TableBuffer::new(unsafe { Frames::claim(Pfn::new(0x40), count) })
    }

    #[test]
    fn marks_move_with_the_frames_taken_and_go_back_if_the_round_is_abandoned() {
        let mut buffer = buffer(3);
        let mut round = buffer.begin().expect("closed");
        assert_eq!(round.take(), Ok(Pfn::new(0x40)));
        assert_eq!(round.take(), Ok(Pfn::new(0x41)));
        assert_eq!(round.taken(), Pfns::new(Pfn::new(0x40), 2));
        assert_eq!(round.take(), Ok(Pfn::new(0x42)));
        assert_eq!(round.take(), Err(EarlyError::BufferEmpty));
        round.abandon();
        assert_eq!(buffer.marks().unused(), Pfns::new(Pfn::new(0x40), 3));
        let (tables, unused) = buffer.into_parts().expect("closed");
        assert_eq!((tables.count, unused.count()), (0, 3));
    }

    #[test]
    fn a_round_that_was_dropped_shuts_the_buffer() {
        let mut buffer = buffer(3);
        let taken = buffer.begin().and_then(|mut round| round.take());
        assert_eq!(taken, Ok(Pfn::new(0x40)));
        let unfinished = EarlyError::RoundUnfinished { buffer: Pfns::new(Pfn::new(0x40), 3) };
        assert_eq!(buffer.begin().map(TableRound::abandon), Err(unfinished));
        let (buffer, refused) = buffer.into_parts().expect_err("shut");
        assert_eq!(refused, unfinished);
        let doubtful = buffer.into_uncertain();
        assert_eq!((doubtful.start(), doubtful.count()), (Pfn::new(0x40), 3));
    }
}
