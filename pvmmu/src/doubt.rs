//! What a refused undo has left of an address space, and how that is put right.
//!
//! Xen may refuse a change, and then the undo of the part of it that has taken effect. A [`Pgd`]
//! then notes what is not as its invariants say. Every operation that changes it begins by putting
//! that right, and does nothing else while Xen refuses it ([`WalkError::InDoubt`]). So no change
//! builds on what is in doubt, however often Xen refuses. The entries are read again for it: what
//! stands in memory is what Xen has done.
//!
//! Frames whose entries are gone, but whose flush Xen refused, do not wait for that: they go at
//! once to whoever keeps what is uncertain.
#![expect(
    unsafe_code,
    reason = "submits changes of the user half and of its tables, which belong to the address \
              space (I-4)"
)]

use hypercall::{
    Call, Domains, Errno, Error, GuestVa, Level, Machine, Mfn, MmuExtOp, MmuUpdate, PAGE_SHIFT,
    Pfn, Pte, PteFlags, Request, Slot,
};
use x86_64::structures::paging::PageTableIndex;

use crate::access::Access;
use crate::context::{Context, DirectMap};
use crate::error::WalkError;
use crate::hold::{Link, each_table};
use crate::marks::{COPY_ON_WRITE, MARKS, MIRRORED, SHARED, held};
use crate::path::Path;
use crate::pgd::{Loose, Pgd, Pinned, Roots};
use crate::tables::USER_SLOTS;

/// What is in doubt of an address space. In any case TLBs may hold what its entries no longer say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Doubt {
    /// What was to move.
    pub(crate) moving: Option<Moving>,
    /// Whether the tables are as the state of the address space asks for.
    pub(crate) tables: Shape,
}

/// Pins, marks, access to the frames of tables, and the copies in a user root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// All is as it must be.
    Right,
    /// Not known.
    Unknown,
}

/// Pages, or an L1 table, that were to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moving {
    /// Of the entries: L1 for pages, L2 for a table.
    pub(crate) level: Level,
    /// How many.
    pub(crate) count: u16,
    /// Which of them may have an entry at both places.
    pub(crate) twice: Option<u16>,
    /// Where they belong. Pages may be write-protected there, and marked for that.
    pub(crate) from: GuestVa,
    /// Where what has two entries is not to be. An absent one may say what the CPU has noted.
    pub(crate) to: GuestVa,
}

impl Moving {
    /// The addresses of number `at`, at both places.
    fn at(self, at: u16) -> Option<(GuestVa, GuestVa)> {
        let pages = u64::from(at) << (self.level.shift() - PAGE_SHIFT);
        Some((self.from.checked_add_pages(pages).ok()?, self.to.checked_add_pages(pages).ok()?))
    }
}

impl Doubt {
    /// TLBs may hold what is no longer so, and that is all.
    pub(crate) const FLUSH: Self = Self { moving: None, tables: Shape::Right };

    /// And the tables are in doubt.
    pub(crate) const TABLES: Self = Self { tables: Shape::Unknown, ..Self::FLUSH };

    /// Notes this beside what is known.
    pub(crate) fn note(self, known: &mut Option<Self>) {
        let Some(before) = *known else {
            *known = Some(self);
            return;
        };
        let is_right = before.tables == Shape::Right && self.tables == Shape::Right;
        *known = Some(Self {
            moving: self.moving.or(before.moving),
            tables: if is_right { Shape::Right } else { Shape::Unknown },
        });
    }
}

impl Pgd<Pinned> {
    /// Puts right what a refused undo has left, if anything.
    #[inline]
    pub(crate) fn put_right<M: Machine>(
        &mut self,
        context: &Context<'_, M>,
    ) -> Result<(), WalkError> {
        put_right(context, self.roots(), &mut self.doubt)
    }
}

impl Pgd<Loose> {
    /// The same: no table is pinned or read-only then.
    #[inline]
    pub(crate) fn put_right<M: Machine>(
        &mut self,
        context: &Context<'_, M>,
    ) -> Result<(), WalkError> {
        if self.doubt.is_some() {
            make_plain(context, self.roots())?;
            self.doubt = None;
        }
        Ok(())
    }
}

/// Puts right what is in doubt of a pinned tree, if anything.
#[inline]
pub(crate) fn put_right<M: Machine>(
    context: &Context<'_, M>,
    roots: Roots,
    doubt: &mut Option<Doubt>,
) -> Result<(), WalkError> {
    match *doubt {
        None => Ok(()),
        Some(what) => {
            resolve(context, roots, what)?;
            *doubt = None;
            Ok(())
        }
    }
}

#[cold]
fn resolve<M: Machine>(
    context: &Context<'_, M>,
    roots: Roots,
    Doubt { moving, tables }: Doubt,
) -> Result<(), WalkError> {
    if tables == Shape::Unknown {
        make_pinned(context, roots)?;
    }
    if let Some(moving) = moving {
        keep_one(context, roots.kernel, moving)?;
        make_writable(context, roots.kernel, moving)?;
    }
    // SAFETY: a flush changes no mapping.
    unsafe { context.submit_ops(&[MmuExtOp::tlb_flush_all()]) }.map_err(WalkError::InDoubt)
}

/// One update, by itself.
fn update<M: Machine>(context: &Context<'_, M>, update: MmuUpdate) -> Result<(), WalkError> {
    let updates = [update];
    let mut calls = [Call::new(Request::MmuUpdate(&updates, Domains::SELF))];
    // SAFETY: the entry belongs to the address space (I-4), or is that of a table of its in the
    // direct mapping (I-2); it keeps its frame, or is the second one of what is at two places.
    unsafe { context.machine.issue(&mut calls) }
        .and_then(|()| calls[0].result())
        .map_err(WalkError::InDoubt)
}

/// One operation on a table, by itself. Xen answers EINVAL to a pin of a table that is pinned and
/// to an unpin of one that is not.
fn operation<M: Machine>(context: &Context<'_, M>, op: MmuExtOp) -> Result<(), WalkError> {
    // SAFETY: the table belongs to the address space (I-4), and a pin changes no mapping.
    unsafe { context.submit_ops(&[op]) }.map_err(WalkError::InDoubt)
}

fn unpin<M: Machine>(context: &Context<'_, M>, table: Mfn) -> Result<(), WalkError> {
    unless_invalid(operation(context, MmuExtOp::unpin(table)))
}

fn unless_invalid(done: Result<(), WalkError>) -> Result<(), WalkError> {
    match done {
        Err(WalkError::InDoubt(Error { errno: Errno::EINVAL, .. })) => Ok(()),
        done => done,
    }
}

/// Lets go of a pin, if there is one, and takes it: so it is known to be there.
fn pin<M: Machine>(context: &Context<'_, M>, level: Level, table: Mfn) -> Result<(), WalkError> {
    unpin(context, table)?;
    operation(context, MmuExtOp::pin(level, table))
}

/// Takes a pin, if there is none, and lets go of it: so it is known that there is none.
fn no_pin<M: Machine>(context: &Context<'_, M>, level: Level, table: Mfn) -> Result<(), WalkError> {
    unless_invalid(operation(context, MmuExtOp::pin(level, table)))?;
    operation(context, MmuExtOp::unpin(table))
}

/// Gives the direct mapping of the table `mfn` that access, if it has another one.
fn allow<M: Machine>(
    context: &Context<'_, M>,
    direct_map: &mut DirectMap,
    mfn: Mfn,
    access: Access,
) -> Result<(), WalkError> {
    let (slot, pte) = direct_map.entry_of(context, mfn)?;
    let new = access.apply(pte);
    if new == pte { Ok(()) } else { update(context, MmuUpdate::set(slot, new)) }
}

fn both(roots: Roots) -> impl Iterator<Item = Pfn> {
    [Some(roots.kernel), roots.user].into_iter().flatten()
}

/// Makes all tables read-only, has the roots pinned, and of the others those that carry the mark;
/// and makes the user root a copy again.
fn make_pinned<M: Machine>(context: &Context<'_, M>, roots: Roots) -> Result<(), WalkError> {
    let direct_map = &mut DirectMap::default();
    let whole = (Level::L4, roots.kernel);
    each_table(context, whole, Level::L1, &mut |link: Link| {
        allow(context, direct_map, link.pte.mfn(), Access::ReadOnly)
    })?;
    for root in both(roots) {
        let mfn = context.mfn(root)?;
        allow(context, direct_map, mfn, Access::ReadOnly)?;
        pin(context, Level::L4, mfn)?;
    }
    each_table(context, whole, Level::L1, &mut |link: Link| {
        let table = link.pte.mfn();
        match held(link.pte) {
            Some(held) => pin(context, held.level(), table),
            None => no_pin(context, link.level, table),
        }
    })?;
    roots.user.map_or(Ok(()), |user| mirror(context, roots.kernel, user))
}

/// Makes the lower half of the user root what I-6 says.
fn mirror<M: Machine>(context: &Context<'_, M>, kernel: Pfn, user: Pfn) -> Result<(), WalkError> {
    for index in USER_SLOTS.map(PageTableIndex::new_truncate) {
        let original = context.machine.read_entry(kernel, index)?;
        let copy = context.machine.read_entry(user, index)?;
        let wanted = if original.is_present() {
            original.with_flags(original.flags().difference(MARKS).union(MIRRORED))
        } else {
            Pte::ABSENT
        };
        if (copy.is_present() || wanted.is_present()) && !copy.same_for_guest(wanted) {
            update(context, MmuUpdate::set(context.slot(user, index)?, wanted))?;
        }
    }
    Ok(())
}

/// Unpins all tables and makes them writable.
#[cold]
fn make_plain<M: Machine>(context: &Context<'_, M>, roots: Roots) -> Result<(), WalkError> {
    let direct_map = &mut DirectMap::default();
    let whole = (Level::L4, roots.kernel);
    for root in both(roots) {
        unpin(context, context.mfn(root)?)?;
    }
    each_table(context, whole, Level::L1, &mut |link: Link| unpin(context, link.pte.mfn()))?;
    each_table(context, whole, Level::L1, &mut |link: Link| {
        allow(context, direct_map, link.pte.mfn(), Access::Writable)
    })?;
    for root in both(roots) {
        allow(context, direct_map, context.mfn(root)?, Access::Writable)?;
    }
    Ok(())
}

/// The entry of `level` for `va`, if there is a table for it.
fn entry<M: Machine>(
    context: &Context<'_, M>,
    root: Pfn,
    level: Level,
    va: GuestVa,
) -> Result<Option<(Slot, Pte)>, WalkError> {
    let mut path = Path::new(root);
    path.seek(context, va)?;
    match path.table(level) {
        Some(_) => path.entry(context, (level, va)).map(Some),
        None => Ok(None),
    }
}

/// Takes what is at two places from the one where it is not to be. That it was written there is
/// noted in the entry that stays.
fn keep_one<M: Machine>(
    context: &Context<'_, M>,
    root: Pfn,
    moving: Moving,
) -> Result<(), WalkError> {
    let level = moving.level;
    let Some((from, to)) = moving.twice.and_then(|at| moving.at(at)) else { return Ok(()) };
    let (Some((kept, stays)), Some((slot, goes))) =
        (entry(context, root, level, from)?, entry(context, root, level, to)?)
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
        update(context, clear)?;
    }
    match level {
        Level::L1 => note_seen(context, root, kept, stays, to),
        _ => Ok(()),
    }
}

/// Notes in the entry of a page what the CPU noted in the one for `was`, which is absent.
fn note_seen<M: Machine>(
    context: &Context<'_, M>,
    root: Pfn,
    slot: Slot,
    pte: Pte,
    was: GuestVa,
) -> Result<(), WalkError> {
    let left = entry(context, root, Level::L1, was)?.map_or(Pte::ABSENT, |(_, left)| left);
    let seen = left.flags() & (PteFlags::ACCESSED | PteFlags::DIRTY);
    if left.is_present() || pte.flags().contains(seen) {
        return Ok(());
    }
    update(context, MmuUpdate::set_preserving_ad(slot, pte.with_flags(pte.flags() | seen)))
}

/// What a page that was write-protected to be moved is otherwise: `None` if it was not.
pub(crate) fn unprotected(pte: Pte) -> Option<Pte> {
    let flags = pte.flags();
    let was_writable = pte.is_present() && flags.contains(COPY_ON_WRITE) && !flags.contains(SHARED);
    was_writable.then(|| pte.with_flags(flags.difference(COPY_ON_WRITE)).writable())
}

/// Lets pages that were to move be written again.
fn make_writable<M: Machine>(
    context: &Context<'_, M>,
    root: Pfn,
    moving: Moving,
) -> Result<(), WalkError> {
    let pages = if moving.level == Level::L1 { 0..moving.count } else { 0..0 };
    for (va, to) in pages.filter_map(|at| moving.at(at)) {
        let Some((slot, pte)) = entry(context, root, Level::L1, va)? else { continue };
        if let Some(writable) = unprotected(pte) {
            note_seen(context, root, slot, pte, to)?;
            update(context, MmuUpdate::set_preserving_ad(slot, writable))?;
        }
    }
    Ok(())
}
