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
//! is no third state to repair afterwards, and so no window in which someone could be handed a
//! frame that is still read-only: what the reviewers of the 2011 patch asked for.
//!
//! The bracket is one value: [`TableBuffer::begin`] borrows the buffer, which owns its frames, and
//! [`TableRound::finish`] gives the borrow back. Until then nobody can reach `[end, top)`; a round
//! that is dropped in between leaves a buffer that refuses to hand anything out.
#![expect(unsafe_code, reason = "links tables in frames that the buffer owns (I-1, I-13)")]

use hypercall::{Batch, Frames, Machine, Pfn, Refused, Uncertain};
use p2m::{Guest, Pfns};

use crate::changes::{Change, link, unlink};
use crate::error::{EarlyError, RoundError};

/// The three marks of a table buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Marks {
    /// First frame.
    pub start: Pfn,
    /// First frame that is no table yet.
    pub end: Pfn,
    /// First frame after the buffer.
    pub top: Pfn,
}

impl Marks {
    /// Returns the frames that are tables.
    #[must_use]
    pub fn tables(self) -> Pfns {
        run(self.start, self.end)
    }

    /// Returns the frames that are not.
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
    /// Makes a buffer of `frames`, which are in the direct mapping, writable.
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

    /// Returns where its marks are.
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

    /// Ends the buffer. Returns which frames are tables now, and the others, writable.
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
    /// Takes the next frame: in the direct mapping, writable, with anything in it.
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

    /// Puts back all frames that were taken: none of them is a table, all are writable.
    pub fn abandon(self) {
        self.buffer.tables = self.first;
        self.buffer.state = State::Closed;
    }

    /// Makes the frames taken read-only, then makes `changes`, which link them, in as few requests
    /// as the batch has room for. Xen stops at the first element it refuses, so nothing is linked
    /// before everything is read-only.
    ///
    /// `changes` is asked once more, for the same changes in the same order, if what it linked has
    /// to come out again.
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
