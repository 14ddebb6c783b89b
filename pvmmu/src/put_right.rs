//! Repairs what a refused undo left.
//!
//! Every operation that changes an address space first repairs what is in [`Doubt`], and does
//! nothing else while Xen refuses that ([`MapError::InDoubt`](crate::MapError::InDoubt)). So no
//! change builds on what is in doubt, however often Xen refuses. A repair reads the entries again:
//! memory shows what Xen has done.
#![expect(
    unsafe_code,
    reason = "submits changes of the user half and of its tables, which belong to the address \
              space (I-4)"
)]

use hypercall::{
    Call, DomId, Errno, Error, GuestVa, Level, Machine, Mfn, MmuExtOp, MmuUpdate, Pfn, Pte,
    PteFlags, Request, Slot,
};
use x86_64::structures::paging::PageTableIndex;

use crate::access::Access;
use crate::doubt::{Doubt, Moving, Shape, unprotected};
use crate::error::NotPutRight;
use crate::marks::{MARKS, MIRRORED, held};
use crate::ops::submit_ops;
use crate::path::Path;
use crate::pgd::{Loose, Pgd, Pinned, Roots};
use crate::store::unmark;
use crate::tables::{Part, Place, USER_SLOTS};
use p2m::{DirectMap, Guest, WalkError};

impl Pgd<Pinned> {
    /// Repairs what a refused undo left, if anything.
    #[inline]
    pub(crate) fn put_right<M: Machine>(
        &mut self,
        guest: &Guest<'_, M>,
    ) -> Result<(), NotPutRight> {
        put_right(guest, self.roots(), &mut self.doubt)
    }
}

impl Pgd<Loose> {
    /// Does the same. Afterwards no table is pinned, marked or read-only.
    #[inline]
    pub(crate) fn put_right<M: Machine>(
        &mut self,
        guest: &Guest<'_, M>,
    ) -> Result<(), NotPutRight> {
        match self.doubt {
            None => Ok(()),
            Some(Doubt { fork: Some(_), .. }) => Err(NotPutRight::HalfForked),
            Some(_) => {
                make_plain(guest, self.roots())?;
                self.doubt = None;
                Ok(())
            }
        }
    }
}

/// Repairs what is in doubt of a pinned tree, if anything.
#[inline]
pub(crate) fn put_right<M: Machine>(
    guest: &Guest<'_, M>,
    roots: Roots,
    doubt: &mut Option<Doubt>,
) -> Result<(), NotPutRight> {
    match *doubt {
        None => Ok(()),
        Some(what) => {
            resolve(guest, roots, what)?;
            *doubt = None;
            Ok(())
        }
    }
}

#[cold]
fn resolve<M: Machine>(
    guest: &Guest<'_, M>,
    roots: Roots,
    Doubt { moving, tables, fork }: Doubt,
) -> Result<(), NotPutRight> {
    if fork.is_some() {
        return Err(NotPutRight::HalfForked);
    }
    if tables == Shape::Unknown {
        make_pinned(guest, roots)?;
    }
    if let Some(moving) = moving {
        keep_one(guest, roots.kernel, moving)?;
        make_writable(guest, roots.kernel, moving)?;
    }
    // SAFETY: a flush changes no mapping.
    unsafe { submit_ops(guest.machine(), &[MmuExtOp::tlb_flush_all()]) }
        .map_err(NotPutRight::Refused)
}

/// Sends one update by itself.
fn update<M: Machine>(guest: &Guest<'_, M>, update: MmuUpdate) -> Result<(), NotPutRight> {
    let updates = [update];
    let mut calls = [Call::new(Request::MmuUpdate(&updates, DomId::SELF))];
    // SAFETY: the entry belongs to the address space (I-4), or maps one of its tables in the direct
    // mapping (I-2). It keeps its frame, or is the second entry of something.
    unsafe { guest.machine().issue(&mut calls) }
        .and_then(|()| calls[0].result())
        .map_err(NotPutRight::Refused)
}

/// Sends one operation on a table by itself. Xen answers EINVAL to a pin of a pinned table, and to
/// an unpin of one that is not pinned.
fn operation<M: Machine>(guest: &Guest<'_, M>, op: MmuExtOp) -> Result<(), NotPutRight> {
    // SAFETY: the table belongs to the address space (I-4), and a pin changes no mapping.
    unsafe { submit_ops(guest.machine(), &[op]) }.map_err(NotPutRight::Refused)
}

fn unpin<M: Machine>(guest: &Guest<'_, M>, table: Mfn) -> Result<(), NotPutRight> {
    unless_invalid(operation(guest, MmuExtOp::unpin(table)))
}

fn unless_invalid(done: Result<(), NotPutRight>) -> Result<(), NotPutRight> {
    match done {
        Err(NotPutRight::Refused(Error { errno: Errno::EINVAL, .. })) => Ok(()),
        done => done,
    }
}

/// Unpins a table that may be pinned, then pins it. So it is certainly pinned.
fn pin<M: Machine>(guest: &Guest<'_, M>, level: Level, table: Mfn) -> Result<(), NotPutRight> {
    unpin(guest, table)?;
    operation(guest, MmuExtOp::pin(level, table))
}

/// Pins a table that may be unpinned, then unpins it. So it is certainly not pinned.
fn no_pin<M: Machine>(guest: &Guest<'_, M>, level: Level, table: Mfn) -> Result<(), NotPutRight> {
    unless_invalid(operation(guest, MmuExtOp::pin(level, table)))?;
    operation(guest, MmuExtOp::unpin(table))
}

/// Gives the table `mfn` this access in the direct mapping, unless it has it.
fn allow<M: Machine>(
    guest: &Guest<'_, M>,
    direct_map: &mut DirectMap,
    mfn: Mfn,
    access: Access,
) -> Result<(), NotPutRight> {
    let (slot, pte) = direct_map.entry_of(guest, mfn)?;
    let new = access.apply(pte);
    if new == pte { Ok(()) } else { update(guest, MmuUpdate::set(slot, new)) }
}

fn both(roots: Roots) -> impl Iterator<Item = Pfn> {
    [Some(roots.kernel), roots.user].into_iter().flatten()
}

/// Makes all tables read-only, pins the roots and the tables with the mark, and makes the user root
/// a copy again.
fn make_pinned<M: Machine>(guest: &Guest<'_, M>, roots: Roots) -> Result<(), NotPutRight> {
    let direct_map = &mut DirectMap::default();
    let tables = Part::user_half(roots.kernel).above(Level::L1);
    tables.links(guest, &mut |link: Place| {
        allow(guest, direct_map, link.pte.mfn(), Access::ReadOnly)
    })?;
    for root in both(roots) {
        let mfn = guest.mfn(root)?;
        allow(guest, direct_map, mfn, Access::ReadOnly)?;
        pin(guest, Level::L4, mfn)?;
    }
    tables.links(guest, &mut |link: Place| {
        let table = link.pte.mfn();
        match held(link.pte) {
            Some(held) => pin(guest, held.level(), table),
            None => no_pin(guest, link.below(), table),
        }
    })?;
    roots.user.map_or(Ok(()), |user| mirror(guest, roots.kernel, user))
}

/// Makes the lower half of the user root what I-6 says.
fn mirror<M: Machine>(guest: &Guest<'_, M>, kernel: Pfn, user: Pfn) -> Result<(), NotPutRight> {
    for index in USER_SLOTS.map(PageTableIndex::new_truncate) {
        let original = guest.machine().read_entry(kernel, index)?;
        let copy = guest.machine().read_entry(user, index)?;
        let wanted = if original.is_present() {
            original.with_flags(original.flags().difference(MARKS).union(MIRRORED))
        } else {
            Pte::ABSENT
        };
        if (copy.is_present() || wanted.is_present()) && !copy.same_for_guest(wanted) {
            update(guest, MmuUpdate::set(guest.slot(user, index)?, wanted))?;
        }
    }
    Ok(())
}

/// Unpins all tables, makes them writable, and clears the marks of pins.
#[cold]
fn make_plain<M: Machine>(guest: &Guest<'_, M>, roots: Roots) -> Result<(), NotPutRight> {
    let direct_map = &mut DirectMap::default();
    for root in both(roots) {
        unpin(guest, guest.mfn(root)?)?;
    }
    let tables = Part::user_half(roots.kernel).above(Level::L1);
    tables.links(guest, &mut |link: Place| unpin(guest, link.pte.mfn()))?;
    tables.links(guest, &mut |link: Place| {
        allow(guest, direct_map, link.pte.mfn(), Access::Writable)
    })?;
    for root in both(roots) {
        allow(guest, direct_map, guest.mfn(root)?, Access::Writable)?;
    }
    Ok(unmark(guest, roots, Level::L1)?)
}

/// Returns the entry of `level` for `va`, if there is a table for it.
fn entry<M: Machine>(
    guest: &Guest<'_, M>,
    root: Pfn,
    level: Level,
    va: GuestVa,
) -> Result<Option<(Slot, Pte)>, WalkError> {
    let mut path = Path::new(root);
    path.seek(guest, va)?;
    match path.table(level) {
        Some(_) => path.entry(guest, level, va).map(Some),
        None => Ok(None),
    }
}

/// Removes what has two entries from where it should not be. If it was written there, the entry
/// that stays says so.
fn keep_one<M: Machine>(
    guest: &Guest<'_, M>,
    root: Pfn,
    moving: Moving,
) -> Result<(), NotPutRight> {
    let level = moving.level;
    let Some((from, to)) = moving.twice.and_then(|at| moving.at(at)) else { return Ok(()) };
    let (Some((kept, stays)), Some((slot, goes))) =
        (entry(guest, root, level, from)?, entry(guest, root, level, to)?)
    else {
        return Ok(());
    };
    if !stays.is_present() {
        return Ok(());
    }
    if goes.is_present() && goes.mfn() == stays.mfn() {
        // The CPU may write up to the last moment: its bits stay in the absent entry.
        let clear = match level {
            Level::L1 => MmuUpdate::set_preserving_ad(slot, Pte::ABSENT),
            _ => MmuUpdate::set(slot, Pte::ABSENT),
        };
        update(guest, clear)?;
    }
    match level {
        Level::L1 => note_seen(guest, root, kept, stays, to),
        _ => Ok(()),
    }
}

/// Adds the bits that the CPU set in `was`, which is absent now, to the entry of a page.
fn note_seen<M: Machine>(
    guest: &Guest<'_, M>,
    root: Pfn,
    slot: Slot,
    pte: Pte,
    was: GuestVa,
) -> Result<(), NotPutRight> {
    let left = entry(guest, root, Level::L1, was)?.map_or(Pte::ABSENT, |(_, left)| left);
    let seen = left.flags() & (PteFlags::ACCESSED | PteFlags::DIRTY);
    if left.is_present() || pte.flags().contains(seen) {
        return Ok(());
    }
    update(guest, MmuUpdate::set_preserving_ad(slot, pte.with_flags(pte.flags() | seen)))
}

/// Makes pages that were to move writable again.
fn make_writable<M: Machine>(
    guest: &Guest<'_, M>,
    root: Pfn,
    moving: Moving,
) -> Result<(), NotPutRight> {
    let pages = if moving.level == Level::L1 { 0..moving.count } else { 0..0 };
    for (va, to) in pages.filter_map(|at| moving.at(at)) {
        let Some((slot, pte)) = entry(guest, root, Level::L1, va)? else { continue };
        if let Some(writable) = unprotected(pte) {
            note_seen(guest, root, slot, pte, to)?;
            update(guest, MmuUpdate::set_preserving_ad(slot, writable))?;
        }
    }
    Ok(())
}
