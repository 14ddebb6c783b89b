//! A request to Xen, and its outcome.

use crate::error::{Errno, Error, Hypercall};
use crate::op::{DomId, MmuExtOp, MmuUpdate, VaMapping};

/// The most requests that go to Xen in one multicall. A request is a run of elements of any length,
/// so real work needs few of them. The limit bounds the stack space for the multicall entries, 64
/// bytes each.
pub const CALLS_MAX: usize = 16;

/// A request to Xen: one hypercall, or one entry of a multicall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// `mmu_update`: a run of any length; Xen stops at the first element it refuses.
    MmuUpdate(&'a [MmuUpdate], DomId),
    /// `mmuext_op`: a run of any length; Xen stops at the first element it refuses.
    MmuExt(&'a [MmuExtOp], DomId),
    /// `update_va_mapping`.
    VaMapping(VaMapping),
}

impl Request<'_> {
    /// Returns which hypercall carries the request.
    #[must_use]
    pub const fn hypercall(&self) -> Hypercall {
        match self {
            Self::MmuUpdate(..) => Hypercall::MmuUpdate,
            Self::MmuExt(..) => Hypercall::MmuExtOp,
            Self::VaMapping(_) => Hypercall::UpdateVaMapping,
        }
    }

    /// Returns the number of elements.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self {
            Self::MmuUpdate(updates, _) => updates.len(),
            Self::MmuExt(ops, _) => ops.len(),
            Self::VaMapping(_) => 1,
        }
    }

    /// Returns whether there are no elements.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Xen has not seen it.
    NotIssued,
    /// Every element took effect.
    Done,
    /// The first `done` elements took effect, the next was refused, and Xen did not look at the
    /// rest.
    Refused {
        /// Why.
        errno: Errno,
        /// Elements in effect.
        done: u32,
    },
}

/// A request together with its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call<'a> {
    /// What to ask.
    pub request: Request<'a>,
    /// The outcome, set by the machine.
    pub outcome: Outcome,
}

impl<'a> Call<'a> {
    /// Creates a request that has not been issued.
    ///
    /// ```
    /// use hypercall::{Call, DomId, Hypercalls, MmuExtOp, Request};
    ///
    /// let model = xen_model::Model::builder().build()?;
    /// let flush = [MmuExtOp::tlb_flush_all()];
    /// let mut calls = [Call::new(Request::MmuExt(&flush, DomId::SELF))];
    /// unsafe { model.issue(&mut calls) }?;
    /// assert_eq!((calls[0].result(), calls[0].done()), (Ok(()), 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn new(request: Request<'a>) -> Self {
        Self { request, outcome: Outcome::NotIssued }
    }

    /// Returns how many elements of the request took effect: never more than it has, whatever the
    /// machine says.
    #[must_use]
    pub const fn done(&self) -> usize {
        let len = self.request.len();
        match self.outcome {
            Outcome::NotIssued => 0,
            Outcome::Refused { done, .. } if (done as usize) < len => done as usize,
            Outcome::Done | Outcome::Refused { .. } => len,
        }
    }

    /// Returns the outcome as a result.
    ///
    /// # Errors
    /// The refusal; a request that was never issued counts as refused with `EINTR`.
    pub const fn result(&self) -> Result<(), Error> {
        let hypercall = self.request.hypercall();
        match self.outcome {
            Outcome::Done => Ok(()),
            Outcome::Refused { errno, done } => Err(Error { hypercall, errno, done }),
            Outcome::NotIssued => Err(Error { hypercall, errno: Errno::EINTR, done: 0 }),
        }
    }
}
