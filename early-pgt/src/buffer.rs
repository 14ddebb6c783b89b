//! The table buffer: frames that are mapped and become tables, `[start, end, top)`.
//!
//! ```text
//!   start            end                  top
//!     |  tables        |  never used        |
//!     |  read-only     |  writable          |
//! ```
//!
//! A round moves `end`. It fills the next frames by plain stores, for which they must be writable.
//! One request then makes them read-only *and* tables. So a frame is read-only before Xen takes it
//! as a table, and a frame that does not become a table never loses its writable entry. There is no
//! third state to repair afterwards, and no moment at which someone could get a read-only frame.
//! The reviewers of the 2011 patch asked for this.
//!
//! [`TableBuffer::begin`] borrows the buffer, which owns its frames, and [`TableRound::finish`]
//! ends the borrow. Until then nobody can reach `[end, top)`. If a round is dropped instead, its
//! buffer refuses to hand anything out.
#![expect(unsafe_code, reason = "links tables in frames that the buffer owns (I-1, I-13)")]

use hypercall::{Batch, Frames, Machine, Pfn, Refused, Uncertain};
use p2m::{Guest, Pfns};

use crate::changes::{Change, link, unlink};
use crate::error::{EarlyError, RoundError};

/// The three marks of a table buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Marks {
    /// The first frame.
    pub start: Pfn,
    /// The first frame that is not yet a table.
    pub end: Pfn,
    /// The first frame behind the buffer.
    pub top: Pfn,
}

impl Marks {
    /// Returns the frames that are tables.
    #[must_use]
    pub fn tables(self) -> Pfns {
        run(self.start, self.end)
    }

    /// Returns the other frames.
    #[must_use]
    pub fn unused(self) -> Pfns {
        run(self.end, self.top)
    }

    /// Returns all frames.
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
    /// Creates a buffer of `frames`, which the direct mapping maps writable.
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
    /// let (tables, unused) = buffer.into_parts().map_err(|refused| refused.error)?;
    /// assert_eq!((tables.count, unused.count()), (0, 8));
    /// # Ok::<(), early_pgt::EarlyError>(())
    /// ```
    pub const fn new(frames: Frames) -> Self {
        Self { frames, tables: 0, state: State::Closed }
    }

    /// Returns its marks.
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
    /// [`EarlyError::RoundUnfinished`] if the last round was dropped.
    pub fn begin(&mut self) -> Result<TableRound<'_>, EarlyError> {
        self.check_closed()?;
        self.state = State::Open;
        let first = self.tables;
        Ok(TableRound { buffer: self, first })
    }

    /// Ends the buffer. Returns the frames that are tables, and the others, which are writable.
    ///
    /// # Errors
    /// [`EarlyError::RoundUnfinished`] with the buffer, if a round was dropped.
    pub fn into_parts(self) -> Result<(Pfns, Frames), Refused<Self, EarlyError>> {
        if let Err(error) = self.check_closed() {
            return Err(Refused { value: self, error });
        }
        let marks = self.marks();
        match self.frames.split(self.tables) {
            Ok((_, unused)) => Ok((marks.tables(), unused)),
            // There are never more tables than frames.
            Err(frames) => {
                let error = EarlyError::RoundUnfinished { buffer: marks.all() };
                Err(Refused { value: Self { frames, ..self }, error })
            }
        }
    }

    /// Ends a buffer whose round was dropped or could not be undone. Nobody knows which of its
    /// frames are tables, so all of them belong in a quarantine.
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

/// A round, which takes and fills frames and makes all of them tables at once.
#[derive(Debug)]
#[must_use = "a round that is dropped leaves a buffer that nobody can use"]
pub struct TableRound<'b> {
    buffer: &'b mut TableBuffer,
    /// Frames that were tables before.
    first: u64,
}

impl TableRound<'_> {
    /// Takes the next frame. It is writable in the direct mapping and may contain anything.
    ///
    /// # Errors
    /// [`EarlyError::BufferEmpty`].
    pub fn take(&mut self) -> Result<Pfn, EarlyError> {
        let marks @ Marks { end, top, .. } = self.buffer.marks();
        if end == top {
            return Err(EarlyError::BufferEmpty { buffer: marks.all() });
        }
        self.buffer.tables += 1;
        Ok(end)
    }

    /// Returns the frames taken in this round.
    #[must_use]
    pub fn taken(&self) -> Pfns {
        let Marks { start, end, .. } = self.buffer.marks();
        run(Pfn::new(start.raw() + self.first), end)
    }

    /// Puts back all frames that were taken. None is a table, and all are writable.
    pub fn abandon(self) {
        self.buffer.tables = self.first;
        self.buffer.state = State::Closed;
    }

    /// Makes the frames taken read-only, then makes `changes`, which link them, in as few requests
    /// as the batch allows. Xen stops at the first element that it refuses, so nothing is linked
    /// before everything is read-only. An undo iterates `changes` again, and must get the same in
    /// the same order.
    ///
    /// # Errors
    /// [`RoundError`]. The frames are back in the buffer, as after [`abandon`](Self::abandon). If
    /// the undo failed too, the buffer stays closed
    /// ([`into_uncertain`](TableBuffer::into_uncertain)). [`EarlyError::NoStorage`] if the batch
    /// has no room for an operation: an undo needs one to flush.
    ///
    /// # Hypercalls
    /// ceil((T + L) / U) `mmu_update`, for T frames, L changes and room for U updates. After a
    /// refusal, as many again and at most one more, with a flush.
    ///
    /// # Safety
    /// The frames were filled as tables, and `changes` are of entries that the caller owns.
    pub unsafe fn finish<M, I>(
        self,
        guest: &Guest<'_, M>,
        changes: impl Fn() -> I,
        batch: &mut Batch<'_>,
    ) -> Result<Pfns, RoundError>
    where
        M: Machine,
        I: Iterator<Item = Result<Change, EarlyError>>,
    {
        let taken = self.taken();
        if batch.ops_max() == 0 {
            self.abandon();
            return Err(EarlyError::NoStorage.into());
        }
        let Err(stopped) = link(guest, taken, &changes, batch) else {
            self.buffer.state = State::Closed;
            return Ok(taken);
        };
        let undo = unlink(guest, taken, stopped.done, &changes, batch);
        if undo.is_ok() {
            self.abandon();
        }
        Err(RoundError { failure: stopped.failure, undo })
    }
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
        assert_eq!(
            round.take(),
            Err(EarlyError::BufferEmpty { buffer: Pfns::new(Pfn::new(0x40), 3) })
        );
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
        let refused = buffer.into_parts().expect_err("shut");
        assert_eq!(refused.error, unfinished);
        let doubtful = refused.value.into_uncertain();
        assert_eq!((doubtful.start(), doubtful.count()), (Pfn::new(0x40), 3));
    }
}
