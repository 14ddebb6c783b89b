//! Pins a loose tree, and unpins it.
//!
//! Xen takes a frame as a table only if nothing maps it writable. So the direct mapping of every
//! table becomes read-only first, in as few hypercalls as the batch allows. The roots are pinned in
//! a request of their own, because a multicall goes on after a refusal. Unpinning is the reverse.
//! Whatever is refused, the steps before it are undone, and the address space comes back in the
//! error in the state it had.
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

/// A pin that was refused, if the address space comes back [`Loose`], or an unpin that was, if it
/// comes back [`Pinned`].
#[derive(Debug)]
#[must_use = "the address space comes back in the error"]
pub struct PinError<S> {
    /// The address space, as before. After a failed undo some of its tables may wrongly be
    /// read-only or writable, and a root unpinned.
    pub pgd: Pgd<S>,
    /// The reason.
    pub failure: PinFailure,
    /// What is in the way of the refused table, in the running tree and in this one: of a pin, the
    /// mappings; of an unpin, the entries that lead to the table, besides its own.
    pub obstacles: Obstacles,
    /// What stopped the undo, if anything. The steps before it, in the order of undoing, are done.
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
    /// [`PinError`] with the address space, loose and writable as before, and the refused table. A
    /// release build of Xen only says that the root is refused. So the tables are tried one by one,
    /// and the running tree and this one are searched for mappings in the way.
    ///
    /// # Hypercalls
    /// For T tables and a batch of B updates: ceil(T / B) `mmu_update`, then one `mmuext_op`. If a
    /// root is refused, up to 2T `mmuext_op` to find the culprit, and ceil(T / B) `mmu_update` to
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
        // While the tables are read-only: writable ones would be in their own way.
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
    /// Has Xen release the tree (`MMUEXT_UNPIN_TABLE`), makes its tables writable, and clears what
    /// Xen left in the roots.
    ///
    /// # Errors
    /// [`PinError`] with the address space, pinned as before, and so are tables that were pinned by
    /// themselves. `EBUSY` while some vCPU runs on the tree: its tables stay tables until it loads
    /// another root.
    ///
    /// # Hypercalls
    /// For T tables and a batch of B updates: one `mmuext_op`, then ceil(T / B) `mmu_update`.
    /// Before that, for H tables that are pinned by themselves and room for O extended operations,
    /// ceil(H / O) `mmuext_op`. After a refusal at most as many again.
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

    /// Returns the error for an unpin that was refused.
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

/// Ends a pinned tree: unpins tables of `lowest` and higher levels that are pinned by themselves,
/// unpins the roots, makes the tables writable, and clears the marks and what Xen left in the
/// roots. On failure all is as before, as far as the undo says. Lower tables that are pinned by
/// themselves stay so, empty or not. Returns how many were unpinned.
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

/// Ends a tree with only its roots pinned.
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

/// Clears the slots of the roots that Xen filled when it validated them.
fn scrub<M: Machine>(guest: &Guest<'_, M>, roots: Roots) -> Result<(), WalkError> {
    const XENS: usize = (*XEN_SLOTS.end() - *XEN_SLOTS.start()) as usize + 1;
    let first = PageTableIndex::new_truncate(*XEN_SLOTS.start());
    for root in [Some(roots.kernel), roots.user].into_iter().flatten() {
        // SAFETY: the root is unpinned and writable again, and nobody else's (I-4).
        unsafe { guest.machine().write_entries(root, first, &[Pte::ABSENT; XENS]) }?;
    }
    Ok(())
}

/// Returns the roots, the kernel's first, and their number.
fn mfns<M: Machine>(guest: &Guest<'_, M>, roots: Roots) -> Result<([Mfn; 2], usize), NotDone> {
    let mfn = |pfn| guest.mfn(pfn).map_err(PinFailure::from);
    let kernel = mfn(roots.kernel)?;
    Ok(match roots.user {
        Some(user) => ([kernel, mfn(user)?], 2),
        None => ([kernel, kernel], 1),
    })
}

/// Submits one operation for each root. If the second is refused, undoes the first with `undo`.
fn on_roots<M: Machine>(
    guest: &Guest<'_, M>,
    roots: Roots,
    op: impl Fn(Mfn) -> MmuExtOp,
    undo: impl Fn(Mfn) -> MmuExtOp,
) -> Result<(), NotDone> {
    let (mfns, count) = mfns(guest, roots)?;
    // SAFETY: the tables belong to the tree (I-4) and are read-only already. A pin changes no
    // mapping, and a root in use stays a root when it is unpinned.
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
    // SAFETY: restores what the request before has changed.
    let undone = unsafe { submit_ops(guest.machine(), &[undo(mfns[0])]) };
    let value = undone.map_err(|error| refused(0, error));
    Err(Refused { value, error: refused(1, error) })
}

/// Pins only the roots.
fn pin_roots<M: Machine>(guest: &Guest<'_, M>, roots: Roots) -> Result<(), NotDone> {
    on_roots(guest, roots, |mfn| MmuExtOp::pin(Level::L4, mfn), MmuExtOp::unpin)
}

fn unpin_roots<M: Machine>(guest: &Guest<'_, M>, roots: Roots) -> Result<(), NotDone> {
    on_roots(guest, roots, MmuExtOp::unpin, |mfn| MmuExtOp::pin(Level::L4, mfn))
}

/// Finds the table for which Xen refused the root: pins each table alone, lower ones first, and
/// unpins those that Xen took.
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

/// Submits one operation on the table behind an entry of a tree that is about to be pinned.
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
