//! Pinning: a loose tree becomes one that Xen keeps valid, and back.
//!
//! Plan and order. Xen takes a frame as a table only if nothing maps it writable, so the direct
//! mapping of every table is made read-only first, in as few hypercalls as the batch allows; then
//! the roots are pinned, by themselves, since a multicall would go on to them behind a refused
//! protection. Unpinning is the reverse. Whatever is refused, the steps before it are undone, and
//! the address space comes back in the error in the state it had.
#![expect(
    unsafe_code,
    reason = "asks Xen to change the type of frames that belong to the tree (I-4)"
)]

use core::fmt;

use hypercall::{Batch, Error, Level, Machine, Mfn, MmuExtOp, Pfn, Pte, Refused, XEN_SLOTS};
use x86_64::structures::paging::PageTableIndex;

use crate::access::{Access, Stopped, Tables, set_access, undo};
use crate::doubt::Doubt;
use crate::error::{NotDone, PinFailure, undone};
use crate::hold::{release, take_again};
use crate::obstacles::Obstacles;
use crate::ops::submit_ops;
use crate::pgd::{Holds, Loose, Pgd, Pinned, Roots};
use crate::store::unmark;
use crate::tables::{Part, Place};
use p2m::{Guest, WalkError};

/// A tree that was not pinned, if it comes back [`Loose`], or not unpinned, if it comes back
/// [`Pinned`].
#[derive(Debug)]
#[must_use = "the address space comes back in the error"]
pub struct PinError<S> {
    /// The address space, as before. After a failed undo some of its tables may be read-only or
    /// writable that should not be, and a root unpinned.
    pub pgd: Pgd<S>,
    /// Why.
    pub failure: PinFailure,
    /// What stands in the way of the table that was refused, in the running tree and in this one:
    /// of a pin the mappings, of its end the entries that lead to the table, beside the one that is
    /// its own.
    pub obstacles: Obstacles,
    /// What has stopped the undo, if anything. The steps before that, in the order of undoing, are
    /// done.
    pub undo: Result<(), PinFailure>,
}

impl fmt::Display for PinError<Loose> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not pinned: {}", self.failure)?;
        if self.obstacles.count() > 0 || matches!(self.failure, PinFailure::Table { .. }) {
            self.obstacles.describe(f)?;
        }
        undone(&self.undo, f)
    }
}

impl fmt::Display for PinError<Pinned> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not unpinned: {}", self.failure)?;
        match (self.obstacles.count(), self.failure) {
            (0, PinFailure::Protect { .. }) => f.write_str(
                "; no entry of the running tree or of this one holds it: a vCPU runs on the tree, \
                 or another address space leads to it",
            )?,
            (0, _) => {}
            (count, _) => write!(f, "; {count} in the way: {}", self.obstacles)?,
        }
        undone(&self.undo, f)
    }
}

impl<S: fmt::Debug> core::error::Error for PinError<S> where Self: fmt::Display {}

impl Pgd<Loose> {
    /// Has Xen validate the tree and keep it valid (`MMUEXT_PIN_L4_TABLE`): both roots, if there
    /// are two.
    ///
    /// # Errors
    /// [`PinError`] with the address space, loose and writable as before, the table that was
    /// refused and why: a release Xen says only that the root is no good, so the tables are then
    /// tried one by one, and the running tree and this one are read for the mappings that stand in
    /// the way.
    ///
    /// # Hypercalls
    /// For T tables and a batch of B updates: ceil(T / B) `mmu_update`, then one `mmuext_op`. On
    /// refusal of a root up to 2T `mmuext_op` to find the culprit, and ceil(T / B) `mmu_update` to
    /// undo.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let mut test = TestGuest::new();
    /// let pgd = Pgd::new(&mut Tools::new(test.guest, &mut test.frames))?;
    /// match pgd.pin(&test.guest, test.batch()) {
    ///     Ok(pgd) => assert!(pgd.user_root().is_none()),
    ///     // The tree is loose again, and `why` says what stood in the way.
    ///     Err(error) => panic!("{}", error.why()),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn pin<M: Machine>(
        mut self,
        guest: &Guest<'_, M>,
        batch: &mut Batch<'_>,
    ) -> Result<Pgd<Pinned>, PinError<Loose>> {
        if let Err(error) = self.put_right(guest) {
            let (failure, obstacles) = (error.into(), Obstacles::NONE);
            return Err(PinError { pgd: self, failure, obstacles, undo: Ok(()) });
        }
        let roots = self.roots();
        let to_read_only = Tables { access: Access::ReadOnly, lowest: Level::L1 };
        let read_only = set_access(guest, roots, to_read_only, u64::MAX, batch);
        let (done, refused) = match read_only {
            Err(Stopped { done, failure }) => (done, failure.into()),
            Ok(done) => match pin_roots(guest, roots) {
                // INVARIANT: I-5: all tables are read-only, and the roots are pinned.
                Ok(()) => return Ok(self.into_state()),
                Err(refused) => (done, refused),
            },
        };
        let Refused { value: unpinned, error: failure } = refused;
        let Refused { value: blamed, error: failure } = match failure {
            PinFailure::Root { pfn, .. } if pfn == roots.kernel => blame(guest, pfn, failure),
            _ => failure.into(),
        };
        // While the tables are read-only: afterwards each would stand in its own way.
        let obstacles = Obstacles::of(guest, roots, &failure);
        let undo =
            unpinned.and(blamed).and_then(|()| undo(guest, roots, to_read_only, done, batch));
        if undo.is_err() {
            Doubt::TABLES.note(&mut self.doubt);
        }
        Err(PinError { pgd: self, failure, obstacles, undo })
    }
}

impl Pgd<Pinned> {
    /// Has Xen let go of the tree (`MMUEXT_UNPIN_TABLE`), makes its tables writable, and clears
    /// what Xen left in the roots.
    ///
    /// # Errors
    /// [`PinError`] with the address space, pinned as before, and so is every table that was
    /// pinned by itself. `EBUSY` while some vCPU runs on the tree: its tables stay tables until
    /// another root is loaded.
    ///
    /// # Hypercalls
    /// For T tables and a batch of B updates: one `mmuext_op`, then ceil(T / B) `mmu_update`. For H
    /// tables that are pinned by themselves and room for O extended operations, before that ceil(H
    /// / O) `mmuext_op`. On refusal as many again at most.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// let (pgd, mut tools) = TestGuest::with_pinned(pages); // eight pages, pinned
    /// let pgd = pgd.unpin(&tools.guest, &mut tools.batch)?;
    /// // Its tables are plain memory again.
    /// pgd.destroy(&mut tools)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn unpin<M: Machine>(
        mut self,
        guest: &Guest<'_, M>,
        batch: &mut Batch<'_>,
    ) -> Result<Pgd<Loose>, PinError<Pinned>> {
        if let Err(error) = self.put_right(guest) {
            return Err(self.not_unpinned(guest, PinFailure::from(error).into()));
        }
        match unpin(guest, self.roots(), self.holds, Level::L1, batch) {
            // INVARIANT: I-5: no table of the tree is live or protected any more.
            Ok(_) => {
                self.holds = Holds::Nothing;
                Ok(self.into_state())
            }
            Err(refused) => Err(self.not_unpinned(guest, refused)),
        }
    }

    /// The error for an unpin that was refused.
    pub(crate) fn not_unpinned<M: Machine>(
        mut self,
        guest: &Guest<'_, M>,
        Refused { value: undo, error: failure }: NotDone,
    ) -> PinError<Pinned> {
        let obstacles = Obstacles::of_unpin(guest, self.roots(), &failure);
        if undo.is_err() {
            Doubt::TABLES.note(&mut self.doubt);
        }
        PinError { pgd: self, failure, obstacles, undo }
    }
}

/// Ends a pinned tree: lets go of tables from `lowest` up that are pinned by themselves, unpins the
/// roots, makes the tables writable, and scrubs the roots and the marks. On failure all is as
/// before, as far as the undo says. Tables below `lowest` that are pinned by themselves stay so,
/// empty or not. How many were let go of.
pub(crate) fn unpin<M: Machine>(
    guest: &Guest<'_, M>,
    roots: Roots,
    holds: Holds,
    lowest: Level,
    batch: &mut Batch<'_>,
) -> Result<u64, NotDone> {
    let released = match holds {
        Holds::Nothing => 0,
        Holds::Tables => release(guest, roots, lowest, batch)?,
    };
    match let_go(guest, roots, lowest, released, batch) {
        Ok(()) => Ok(released),
        Err(Refused { value, error }) => {
            let value = value.and_then(|()| take_again(guest, roots, lowest, released, batch));
            Err(Refused { value, error })
        }
    }
}

/// Ends a tree of which only the roots are pinned.
fn let_go<M: Machine>(
    guest: &Guest<'_, M>,
    roots: Roots,
    lowest: Level,
    released: u64,
    batch: &mut Batch<'_>,
) -> Result<(), NotDone> {
    unpin_roots(guest, roots)?;
    let to_writable = Tables { access: Access::Writable, lowest };
    let writable = set_access(guest, roots, to_writable, u64::MAX, batch);
    let scrubbed = writable.and_then(|done| {
        let cleared = scrub(guest, roots).and_then(|()| match released {
            0 => Ok(()),
            _ => unmark(guest, roots, lowest),
        });
        cleared.map_err(|error| Stopped { done, failure: error.into() })
    });
    scrubbed.map_err(|Stopped { done, failure: error }| {
        let value = undo(guest, roots, to_writable, done, batch)
            .and_then(|()| pin_roots(guest, roots).map_err(|refused| refused.error));
        Refused { value, error }
    })
}

/// Clears the slots of the roots that Xen filled when it validated them, and leaves behind.
fn scrub<M: Machine>(guest: &Guest<'_, M>, roots: Roots) -> Result<(), WalkError> {
    const XENS: usize = (*XEN_SLOTS.end() - *XEN_SLOTS.start()) as usize + 1;
    let first = PageTableIndex::new_truncate(*XEN_SLOTS.start());
    for root in [Some(roots.kernel), roots.user].into_iter().flatten() {
        // SAFETY: the root is unpinned and writable again, and nobody else's (I-4).
        unsafe { guest.machine().write_entries(root, first, &[Pte::ABSENT; XENS]) }?;
    }
    Ok(())
}

/// The roots, kernel's first, and how many.
fn mfns<M: Machine>(guest: &Guest<'_, M>, roots: Roots) -> Result<([Mfn; 2], usize), NotDone> {
    let mfn = |pfn| guest.mfn(pfn).map_err(PinFailure::from);
    let kernel = mfn(roots.kernel)?;
    Ok(match roots.user {
        Some(user) => ([kernel, mfn(user)?], 2),
        None => ([kernel, kernel], 1),
    })
}

/// Asks for one operation on each root; if the second is refused, takes the first back with `undo`.
fn on_roots<M: Machine>(
    guest: &Guest<'_, M>,
    roots: Roots,
    op: impl Fn(Mfn) -> MmuExtOp,
    undo: impl Fn(Mfn) -> MmuExtOp,
) -> Result<(), NotDone> {
    let (mfns, count) = mfns(guest, roots)?;
    // SAFETY: the tables belong to the tree (I-4) and are read-only already; a pin changes no
    // mapping, and a root that is in use stays a root when it is unpinned.
    let Err(error) = (unsafe { submit_ops(guest.machine(), &mfns.map(&op)[..count]) }) else {
        return Ok(());
    };
    let refused = |at: usize, error: Error| PinFailure::Root {
        pfn: if at == 0 { roots.kernel } else { roots.user.unwrap_or(roots.kernel) },
        mfn: mfns[at],
        error,
    };
    if error.done == 0 {
        return Err(refused(0, error).into());
    }
    // SAFETY: puts back what the request before has changed.
    let undone = unsafe { submit_ops(guest.machine(), &[undo(mfns[0])]) };
    let value = undone.map_err(|error| refused(0, error));
    Err(Refused { value, error: refused(1, error) })
}

/// Pins the roots and nothing else.
fn pin_roots<M: Machine>(guest: &Guest<'_, M>, roots: Roots) -> Result<(), NotDone> {
    on_roots(guest, roots, |mfn| MmuExtOp::pin(Level::L4, mfn), MmuExtOp::unpin)
}

fn unpin_roots<M: Machine>(guest: &Guest<'_, M>, roots: Roots) -> Result<(), NotDone> {
    on_roots(guest, roots, MmuExtOp::unpin, |mfn| MmuExtOp::pin(Level::L4, mfn))
}

/// Finds the table for which Xen refused the root, by asking for each table alone, lower ones
/// first, and lets go of those that it took.
fn blame<M: Machine>(guest: &Guest<'_, M>, root: Pfn, refusal: PinFailure) -> NotDone {
    let mut pinned = 0u64;
    let tables = Part::user_half(root).above(Level::L1);
    let asked = tables.links(guest, &mut |link| {
        ask(guest, link, MmuExtOp::pin)?;
        pinned += 1;
        Ok(())
    });
    let value = tables.links(guest, &mut |link| {
        if pinned == 0 {
            return Ok(());
        }
        ask(guest, link, |_, mfn| MmuExtOp::unpin(mfn))?;
        pinned -= 1;
        Ok(())
    });
    Refused { value, error: asked.err().unwrap_or(refusal) }
}

/// Asks for one operation on the table behind an entry of a tree that is about to be pinned.
fn ask<M: Machine>(
    guest: &Guest<'_, M>,
    link: Place,
    op: impl Fn(Level, Mfn) -> MmuExtOp,
) -> Result<(), PinFailure> {
    let (level, mfn) = (link.below(), link.pte.mfn());
    let pfn = guest.pfn(mfn)?;
    // SAFETY: as in `on_roots`.
    unsafe { submit_ops(guest.machine(), &[op(level, mfn)]) }.map_err(|error| PinFailure::Table {
        level,
        pfn,
        mfn,
        error,
    })
}
