//! Pinning: a loose tree becomes one that Xen holds valid, and back.
//!
//! Plan and order. Xen takes a frame as a table only if nothing maps it writable, so the direct
//! mapping of every table is made read-only first, in as few hypercalls as the batch allows; then
//! the root is pinned, by itself, since a multicall would go on to it behind a refused protection.
//! Unpinning is the reverse. Whatever is refused, the steps before it are undone, and the address
//! space comes back in the error in the state it had.
#![expect(
    unsafe_code,
    reason = "asks Xen to change the type of frames that belong to the tree (I-4)"
)]

use core::marker::PhantomData;

use hypercall::{Batch, Level, Machine, MmuExtOp, Pfn, Pte, XEN_SLOTS};
use x86_64::structures::paging::PageTableIndex;

use crate::context::Context;
use crate::error::{PinError, PinFailure, UndoError, UnpinError, WalkError};
use crate::pgd::{Loose, Pgd, Pinned};
use crate::protect::{Access, Stopped, set_access, undo};
use crate::tables::visit;

impl Pgd<Loose> {
    /// Has Xen validate the tree and hold it (`MMUEXT_PIN_L4_TABLE`).
    ///
    /// # Errors
    /// [`PinError`] with the address space, loose and writable as before, the table that was
    /// refused and why: a release Xen says only that the root is no good, so the tables are
    /// then tried one by one.
    ///
    /// # Hypercalls
    /// For T tables and a batch of B updates: ceil(T / B) `mmu_update`, then one `mmuext_op`. On
    /// refusal of the root up to 2T `mmuext_op` to find the culprit, and ceil(T / B)
    /// `mmu_update` to undo.
    pub fn pin<M: Machine>(
        self,
        context: &Context<'_, M>,
        batch: &mut Batch<'_>,
    ) -> Result<Pgd<Pinned>, PinError> {
        let root = self.root();
        let (done, failure) = match set_access(context, root, (Access::ReadOnly, u64::MAX), batch) {
            Err(Stopped { done, failure }) => (done, failure),
            Ok(done) => match pin_root(context, root) {
                // INVARIANT: I-5: all tables are read-only, and the root is pinned.
                Ok(()) => return Ok(Pgd { root: self.root, state: PhantomData }),
                Err(failure) => (done, failure),
            },
        };
        let (failure, blamed) = match failure {
            PinFailure::Root { .. } => blame(context, root, failure),
            _ => (failure, Ok(())),
        };
        let undo = blamed.and(undo(context, root, (Access::ReadOnly, done), batch));
        Err(PinError { pgd: self, failure, undo })
    }
}

impl Pgd<Pinned> {
    /// Has Xen let go of the tree (`MMUEXT_UNPIN_TABLE`), makes its tables writable, and clears
    /// what Xen left in the root.
    ///
    /// # Errors
    /// [`UnpinError`] with the address space, pinned as before. `EBUSY` while some vCPU runs on the
    /// tree: its tables stay tables until another root is loaded.
    ///
    /// # Hypercalls
    /// For T tables and a batch of B updates: one `mmuext_op`, then ceil(T / B) `mmu_update`.
    pub fn unpin<M: Machine>(
        self,
        context: &Context<'_, M>,
        batch: &mut Batch<'_>,
    ) -> Result<Pgd<Loose>, UnpinError> {
        let root = self.root();
        let unpin = match context.mfn(root) {
            // SAFETY: the tree belongs to this address space (I-4), and a root in use stays a root.
            Ok(mfn) => unsafe { context.submit_op(MmuExtOp::unpin(mfn)) }
                .map_err(|error| PinFailure::Root { pfn: root, mfn, error }),
            Err(error) => Err(error.into()),
        };
        if let Err(failure) = unpin {
            return Err(UnpinError { pgd: self, failure, undo: Ok(()) });
        }
        let writable = set_access(context, root, (Access::Writable, u64::MAX), batch);
        let scrubbed = writable.and_then(|done| {
            scrub(context, root).map_err(|error| Stopped { done, failure: error.into() })
        });
        match scrubbed {
            // INVARIANT: I-5: no table of the tree is live or protected any more.
            Ok(()) => Ok(Pgd { root: self.root, state: PhantomData }),
            Err(Stopped { done, failure }) => {
                let undo = undo(context, root, (Access::Writable, done), batch).and_then(|()| {
                    pin_root(context, root).map_err(|failure| UndoError { failure })
                });
                Err(UnpinError { pgd: self, failure, undo })
            }
        }
    }
}

/// Clears the slots of a root that Xen filled when it validated it, and leaves behind.
fn scrub<M: Machine>(context: &Context<'_, M>, root: Pfn) -> Result<(), WalkError> {
    for index in XEN_SLOTS.map(PageTableIndex::new_truncate) {
        // SAFETY: the root is unpinned and writable again, and nobody else's (I-4).
        unsafe { context.machine.write_entry(root, index, Pte::ABSENT) }?;
    }
    Ok(())
}

/// Pins the root and nothing else.
fn pin_root<M: Machine>(context: &Context<'_, M>, pfn: Pfn) -> Result<(), PinFailure> {
    let mfn = context.mfn(pfn)?;
    // SAFETY: the tables belong to the tree (I-4) and are read-only already; a pin changes no
    // mapping.
    unsafe { context.submit_op(MmuExtOp::pin(Level::L4, mfn)) }.map_err(|error| PinFailure::Root {
        pfn,
        mfn,
        error,
    })
}

/// Finds the table for which Xen refused the root, by asking for each table alone, lower ones
/// first, and lets go of those that it took.
fn blame<M: Machine>(
    context: &Context<'_, M>,
    root: Pfn,
    refusal: PinFailure,
) -> (PinFailure, Result<(), UndoError>) {
    let mut pinned = 0u64;
    let asked = visit(context, root, &mut |level, pfn| {
        if level == Level::L4 {
            return Ok(false);
        }
        let mfn = context.mfn(pfn)?;
        // SAFETY: as in `pin_root`.
        unsafe { context.submit_op(MmuExtOp::pin(level, mfn)) }
            .map_err(|error| PinFailure::Table { level, pfn, mfn, error })?;
        pinned += 1;
        Ok(true)
    });
    let undone =
        visit(context, root, &mut |level, pfn| {
            if pinned == 0 {
                return Ok(false);
            }
            let mfn = context.mfn(pfn)?;
            // SAFETY: takes back a pin of the loop above.
            unsafe { context.submit_op(MmuExtOp::unpin(mfn)) }
                .map_err(|error| PinFailure::Table { level, pfn, mfn, error })?;
            pinned -= 1;
            Ok(true)
        });
    let culprit = asked.err().unwrap_or(refusal);
    (culprit, undone.map(drop).map_err(|failure| UndoError { failure }))
}
