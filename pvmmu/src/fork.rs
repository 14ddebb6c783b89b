//! Makes a second address space over the same frames. Every writable page becomes write-protected
//! on both sides, and both sides are marked, so that the last to let go of a frame gets it.
//!
//! Plain stores fill the child while it is loose, and Xen validates it once, when it is pinned. The
//! parent changes table by table, each as soon as the child has its copy. If anything is refused,
//! the parent is restored from the child's entries, which say what was changed for them.

use core::fmt;

use hypercall::{Entry, FrameSource, GuestVa, Level, Machine, Pfn, Pte, PteFlags, Refused};
use x86_64::structures::paging::PageTableIndex;

use crate::doubt::{Doubt, Other};
use crate::edit::Edit;
use crate::entries::{EMPTY, Entries, TABLE_FLAGS, with_table_flags};
use crate::error::PinFailure;
use crate::frames::{CannotShare, Marked, SharedFrame, SpaceFrames, give_shared};
use crate::map_error::MapError;
use crate::marks::{COPY_ON_WRITE, FOREIGN, FORKED, SHARED};
use crate::obstacles::Obstacles;
use crate::path::{Found, Path};
use crate::pgd::{Loose, Pgd, Pinned};
use crate::pin::PinError;
use crate::room::Room;
use crate::tables::{Part, Place, Step};
use crate::tools::Tools;
use p2m::{Guest, walk};

/// Why there is no second address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForkFailure {
    /// The child could not be filled, or the parent not protected.
    Map(MapError),
    /// The child could not be pinned. These mappings are in the way.
    Pin(PinFailure, Obstacles),
}

impl fmt::Display for ForkFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(error) => error.fmt(f),
            Self::Pin(failure, obstacles) => {
                failure.fmt(f)?;
                if obstacles.count() > 0 { obstacles.describe(f) } else { Ok(()) }
            }
        }
    }
}

/// A fork that was refused.
#[derive(Debug)]
#[must_use = "the child comes back in the error if the fork could not be taken back"]
pub struct ForkError {
    /// The reason.
    pub failure: ForkFailure,
    /// The child, and why the fork could not be taken back, if it could not. The two may map the
    /// same frames, and not say so. Until [`Pgd::take_back_fork`] has succeeded, changing, pinning
    /// or ending either of them is [`MapError::HalfForked`].
    pub left: Option<Refused<Pgd<Loose>, MapError>>,
}

impl fmt::Display for ForkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not forked: {}", self.failure)?;
        match &self.left {
            Some(error) => write!(f, "; and that was not taken back: {error}"),
            None => Ok(()),
        }
    }
}

impl core::error::Error for ForkError {}

impl Pgd<Pinned> {
    /// Makes a second address space that maps the same frames, and pins it. Writable pages are
    /// write-protected in both until [`Edit::make_own`]. Foreign frames are not inherited. The
    /// tools must count sharers ([`Tools::with_shares`]). What is written until the parent's pages
    /// are write-protected is marked dirty on both sides.
    ///
    /// # Errors
    /// [`ForkError`]. The parent is as before unless the error says otherwise.
    ///
    /// # Hypercalls
    /// For n writable pages in T tables, a batch of B updates and C tables of the child: as
    /// [`Pgd::protect`] for the parent, T tables or n elements; and as [`Pgd::pin`] for the child.
    /// ```
    /// # use pv_tests::examples::*;
    /// use pvmmu::{Mapped, Pages};
    ///
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// let (mut parent, mut tools) = TestGuest::with_pinned(pages); // eight pages, pinned
    /// let mut child = parent.fork(&mut tools)?;
    /// let page = child.translate(&tools.guest, pages.start)?.ok_or("it is mapped")?;
    /// assert!(matches!(page.frame, Mapped::Shared(_)));
    /// // At the first write each gets a page of its own: what a fault handler does.
    /// child.edit(&mut tools, |edit| edit.make_own(pages.start))?;
    /// let page = child.translate(&tools.guest, pages.start)?.ok_or("it is mapped")?;
    /// assert!(matches!(page.frame, Mapped::Own(_)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn fork<M: Machine, F: FrameSource>(
        &mut self,
        tools: &mut Tools<'_, '_, M, F>,
    ) -> Result<Self, ForkError> {
        let refused = |error| ForkError { failure: ForkFailure::Map(error), left: None };
        let (guest, roots) = (tools.guest, self.roots());
        Room::check(&tools.batch).map_err(|error| refused(error.into()))?;
        self.put_right(&guest).map_err(|error| refused(error.into()))?;
        self.begin_to_release(&guest, &mut tools.frames).map_err(refused)?;
        let before = self.counted;
        let mut child = match roots.user {
            Some(_) => Pgd::with_user_root(tools),
            None => Pgd::new(tools),
        }
        .map_err(refused)?;
        self.counted = tools.frames.counts();
        child.counted = self.counted;
        let mut edit = Edit::begin(self, tools);
        let mut path = Path::new(child.root());
        let mut unseen = Unseen::Nothing;
        let copied = each_l1_table(&guest, roots.kernel, &mut |table| {
            copy_table(&mut edit, &mut child, &mut path, table, &mut unseen)
        });
        let copied = copied.and_then(|()| edit.submit());
        let copied = copied.and_then(|()| match unseen {
            Unseen::Nothing => Ok(()),
            Unseen::Writes => inherit_dirty(&guest, roots.kernel, &child),
        });
        let failure = match copied {
            Ok(()) => match child.pin(&guest, &mut tools.batch) {
                Ok(child) => return Ok(child),
                Err(PinError { pgd, failure, obstacles, .. }) => {
                    child = pgd;
                    ForkFailure::Pin(failure, obstacles)
                }
            },
            Err(error) => {
                edit.abandon();
                ForkFailure::Map(error)
            }
        };
        let left = take_back(self, child, tools).err();
        if left.is_none() {
            self.counted = before;
        }
        Err(ForkError { failure, left })
    }

    /// Takes back a fork that was refused and could not be taken back at once
    /// ([`ForkError::left`]). The parent is then as before the fork, and the child is gone.
    ///
    /// # Errors
    /// [`Refused`] with the child; try again. [`MapError::NotItsFork`] if `child` is not what a
    /// fork of this address space left, [`MapError::OtherShares`], [`MapError::BatchTooSmall`], and
    /// as for [`Pgd::edit`] and [`Pgd::destroy`]. The two stay as they were left, or are closer to
    /// the end.
    ///
    /// # Hypercalls
    /// For n pages of the parent in T tables that the fork changed, as [`Pgd::protect`]: T tables
    /// or n elements; and what repairs the rest that an undo left.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// let (mut parent, mut tools) = TestGuest::with_pinned(pages); // eight pages, pinned
    /// match parent.fork(&mut tools) {
    ///     Ok(child) => child.destroy(&mut tools)?,
    ///     Err(refused) => {
    ///         let mut left = refused.left;
    ///         while let Some(child) = left {
    ///             left = parent.take_back_fork(&mut tools, child.value).err();
    ///         }
    ///     }
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn take_back_fork<M: Machine, F: FrameSource>(
        &mut self,
        tools: &mut Tools<'_, '_, M, F>,
        mut child: Pgd<Loose>,
    ) -> Result<(), Refused<Pgd<Loose>, MapError>> {
        let other = |doubt: Option<Doubt>| doubt.and_then(|doubt| doubt.fork);
        let names = |doubt, root| other(doubt) == Some(Other::with_root(root));
        if !names(self.doubt, child.root()) || !names(child.doubt, self.root()) {
            let error = MapError::NotItsFork(child.root());
            return Err(Refused { value: child, error });
        }
        if let Err(error) = Room::check(&tools.batch) {
            return Err(Refused { value: child, error: error.into() });
        }
        tools.frames.begin(child.counted);
        if tools.frames.is_counted_elsewhere() {
            return Err(Refused { value: child, error: MapError::OtherShares });
        }
        self.doubt = self.doubt.map(Doubt::without_fork);
        // No TLB knows the child.
        child.doubt = child.doubt.map(Doubt::without_fork).filter(|doubt| *doubt != Doubt::FLUSH);
        take_back(self, child, tools)
    }
}

/// Restores the parent as it was before the child was made, and ends the child. If that fails, both
/// note it.
#[cold]
fn take_back<M: Machine, F: FrameSource>(
    parent: &mut Pgd<Pinned>,
    mut child: Pgd<Loose>,
    tools: &mut Tools<'_, '_, M, F>,
) -> Result<(), Refused<Pgd<Loose>, MapError>> {
    let guest = tools.guest;
    let is_put_right = child.put_right(&guest).map_err(MapError::from);
    let is_put_back = is_put_right.and_then(|()| put_back(parent, &child, tools));
    let is_withdrawn = is_put_back.and_then(|()| withdraw(&guest, &child, &mut tools.frames));
    // What the child mapped is the parent's alone: only its tables are left.
    let ended = match is_withdrawn {
        Ok(()) => child.destroy(tools),
        Err(error) => Err(Refused { value: child, error }),
    };
    ended.map_err(|mut left| {
        // INVARIANT: I-4: until the fork is taken back, neither hands out what the other one may
        // map, and the child is not pinned.
        Doubt::of_fork(left.value.root()).note(&mut parent.doubt);
        Doubt::of_fork(parent.root()).note(&mut left.value.doubt);
        left
    })
}

/// Whether the parent's pages may have been written unnoticed until they were write-protected.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unseen {
    Nothing,
    Writes,
}

/// An L1 table of the user half.
#[derive(Clone, Copy)]
struct L1Table {
    pfn: Pfn,
    /// The first address that it maps.
    va: GuestVa,
    /// Flags that an entry on the path to it has, or lacks, unlike usual ones.
    unusual: PteFlags,
}

/// Calls `f` for every L1 table of the user half.
fn each_l1_table<M: Machine>(
    guest: &Guest<'_, M>,
    root: Pfn,
    f: &mut impl FnMut(L1Table) -> Result<(), MapError>,
) -> Result<(), MapError> {
    // The entries on the path, by level.
    let mut unusual = [PteFlags::empty(); 6];
    Part::user_half(root).above(Level::L1).entries(
        guest,
        &mut |Place { va, level, pte, .. }| {
            let at = level as usize;
            unusual[at] = unusual[at + 1] | (pte.flags() ^ PteFlags::TABLE) & TABLE_FLAGS;
            if let (Level::L2, Entry::Table(mfn)) = (level, pte.decode(level)) {
                f(L1Table { pfn: guest.pfn(mfn)?, va, unusual: unusual[at] })?;
            }
            Ok(Step::Into)
        },
    )
}

/// Returns the new entries of parent and child for a parent's entry. `None` if the child does not
/// inherit it.
const fn split(pte: Pte) -> Option<(Pte, Pte)> {
    let flags = pte.flags();
    if !pte.is_present() || flags.contains(FOREIGN) {
        return None;
    }
    if flags.contains(SHARED) {
        return Some((pte, pte.with_flags(flags.difference(FORKED))));
    }
    let was_writable = if pte.is_writable() { COPY_ON_WRITE } else { PteFlags::empty() };
    let flags = flags.difference(FORKED).union(SHARED).union(was_writable);
    let parents = pte.with_flags(flags).read_only();
    Some((parents, parents.with_flags(parents.flags().union(FORKED))))
}

/// Returns the parent's entry before [`split`].
const fn join(parents: Pte) -> Pte {
    let flags = parents.flags();
    let own = parents.with_flags(flags.difference(SHARED.union(COPY_ON_WRITE)));
    if flags.contains(COPY_ON_WRITE) { own.writable() } else { own }
}

/// Copies a table into the child, and protects the parent's.
#[expect(unsafe_code, reason = "stores into a table of a loose tree (I-4, I-5)")]
fn copy_table<M: Machine, F: FrameSource>(
    edit: &mut Edit<'_, '_, '_, M, F>,
    child: &mut Pgd<Loose>,
    path: &mut Path,
    L1Table { pfn: table, va, unusual }: L1Table,
    unseen: &mut Unseen,
) -> Result<(), MapError> {
    let guest = edit.guest();
    let first = PageTableIndex::new(0);
    let mut old = EMPTY;
    guest.machine().read_entries(table, first, &mut old)?;
    let childs_table = child.table(&guest, path, Level::L1, va, edit.frames())?;
    if !unusual.is_empty() {
        inherit(&guest, edit.root(), child, va)?;
    }
    let mut childs = EMPTY;
    let shared = share_all(&guest, &old, &mut childs, edit.frames());
    // SAFETY: the child is loose, and the table its own. What was shared before a failure is
    // stored, too, so that it can be found again.
    let stored = unsafe { guest.machine().write_entries(childs_table, first, &childs) };
    if stored.is_err() {
        let pages = childs.iter().filter(|pte| pte.is_present());
        pages.for_each(|pte| take_back_share(&guest, *pte, edit.frames()));
    }
    stored?;
    shared?;
    if edit.may_be_written() && childs.iter().any(|pte| is_clean_copy(*pte)) {
        *unseen = Unseen::Writes;
    }
    // A parent that already has a child needs no change.
    if !childs.iter().any(|pte| pte.flags().contains(FORKED)) {
        return Ok(());
    }
    let parents = old.map(|pte| split(pte).map_or(pte, |(parents, _)| parents));
    edit.change_entries(table, va, &old, &parents)
}

/// Gives the child's tables above `va` the parent's flags where those are unusual.
fn inherit<M: Machine>(
    guest: &Guest<'_, M>,
    root: Pfn,
    child: &mut Pgd<Loose>,
    va: GuestVa,
) -> Result<(), MapError> {
    for step in walk(guest, root, va)?.steps().filter(|step| step.level > Level::L1) {
        let usual = with_table_flags(step.level, va, step.pte, PteFlags::TABLE)?;
        if usual != step.pte {
            child.give_table_flags(guest, step.level, va, step.pte.flags())?;
        }
    }
    Ok(())
}

/// Counts the child's share of each page that it inherits, and makes its entries. Not inlined, like
/// [`release_all`](crate::leaf::release_all).
#[inline(never)]
fn share_all<M: Machine>(
    guest: &Guest<'_, M>,
    parents: &Entries,
    childs: &mut Entries,
    frames: &mut SpaceFrames<'_, impl FrameSource>,
) -> Result<(), MapError> {
    let mut shares = frames.shares();
    for (parents, childs) in parents.iter().zip(childs) {
        let Some((_, child)) = split(*parents) else { continue };
        let pfn = guest.pfn(child.mfn())?;
        let is_shared = parents.flags().contains(SHARED);
        let marked = if is_shared { Marked::Shared } else { Marked::Own };
        let shared = shares.as_mut().map_or(Err(CannotShare(pfn)), |to| to.share(pfn, marked));
        shared.map_err(|refused| MapError::CannotShare(refused.0))?;
        *childs = child;
    }
    Ok(())
}

/// Returns whether the child's entry is of a page that was writable and had not been written yet.
const fn is_clean_copy(pte: Pte) -> bool {
    let flags = pte.flags();
    flags.contains(FORKED.union(COPY_ON_WRITE)) && !flags.contains(PteFlags::DIRTY)
}

/// Marks in the child's entries what was written through the parent's before those were
/// write-protected, which all are by now.
#[expect(unsafe_code, reason = "stores into a table of a loose tree (I-4, I-5)")]
fn inherit_dirty<M: Machine>(
    guest: &Guest<'_, M>,
    parents_root: Pfn,
    child: &Pgd<Loose>,
) -> Result<(), MapError> {
    let first = PageTableIndex::new(0);
    let mut path = Path::new(parents_root);
    each_l1_table(guest, child.root(), &mut |L1Table { pfn: childs_table, va, .. }| {
        let Found::Table(table) = path.seek(guest, va)? else {
            return Err(MapError::NotMapped(va));
        };
        let (mut childs, mut parents) = (EMPTY, EMPTY);
        guest.machine().read_entries(childs_table, first, &mut childs)?;
        guest.machine().read_entries(table, first, &mut parents)?;
        for (child, parent) in childs.iter_mut().zip(&parents) {
            if is_clean_copy(*child) {
                let seen = parent.flags() & PteFlags::DIRTY;
                *child = child.with_flags(child.flags() | seen);
            }
        }
        // SAFETY: the child is loose, and the table its own.
        Ok(unsafe { guest.machine().write_entries(childs_table, first, &childs) }?)
    })
}

/// Restores the parent's entries as they were before the child was made.
fn put_back<M: Machine, F: FrameSource>(
    parent: &mut Pgd<Pinned>,
    child: &Pgd<Loose>,
    tools: &mut Tools<'_, '_, M, F>,
) -> Result<(), MapError> {
    let guest = tools.guest;
    let mut path = Path::new(parent.root());
    let mut edit = Edit::begin(parent, tools);
    let first = PageTableIndex::new(0);
    let restored =
        each_l1_table(&guest, child.root(), &mut |L1Table { pfn: childs_table, va, .. }| {
            // A table that Xen did not take back is gone, with all that it mapped.
            let Found::Table(table) = path.seek(&guest, va)? else { return Ok(()) };
            let (mut childs, mut old) = (EMPTY, EMPTY);
            guest.machine().read_entries(childs_table, first, &mut childs)?;
            guest.machine().read_entries(table, first, &mut old)?;
            let mut new = old;
            for (parents, child) in new.iter_mut().zip(&childs) {
                if child.flags().contains(FORKED) && parents.flags().contains(SHARED) {
                    *parents = join(*parents);
                }
            }
            edit.change_entries(table, va, &old, &new)
        });
    let restored = restored.and_then(|()| edit.submit());
    if restored.is_err() {
        edit.abandon();
    }
    restored
}

/// Clears the child's entries, and takes back its share of each page. The parent is restored: it
/// shares nothing because of this child any more.
#[expect(unsafe_code, reason = "clears tables of a loose tree (I-4, I-5)")]
fn withdraw<M: Machine>(
    guest: &Guest<'_, M>,
    child: &Pgd<Loose>,
    frames: &mut SpaceFrames<'_, impl FrameSource>,
) -> Result<(), MapError> {
    let first = PageTableIndex::new(0);
    each_l1_table(guest, child.root(), &mut |L1Table { pfn: table, .. }| {
        let mut childs = EMPTY;
        guest.machine().read_entries(table, first, &mut childs)?;
        // SAFETY: the child is loose, and the table its own.
        unsafe { guest.machine().write_entries(table, first, &EMPTY) }?;
        let gone = childs.iter().filter(|pte| pte.is_present());
        gone.for_each(|pte| take_back_share(guest, *pte, frames));
        Ok(())
    })
}

/// Takes back what [`share_all`] has counted for the child's entry, which is gone.
fn take_back_share<M: Machine>(
    guest: &Guest<'_, M>,
    child: Pte,
    frames: &mut SpaceFrames<'_, impl FrameSource>,
) {
    let pfn = match guest.pfn(child.mfn()) {
        Ok(pfn) => pfn,
        Err(error) => return log::error!("a share of mfn {} is lost: {error}", child.mfn()),
    };
    if child.flags().contains(FORKED)
        && let Some(shares) = frames.shares()
        && shares.count(pfn) > 1
    {
        // INVARIANT: I-4: the parent's entry is the frame's one owner, and says so; or it is gone,
        // and the frame went as the parent's own.
        return shares.unshare(pfn);
    }
    give_shared(frames, SharedFrame::released(pfn));
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypercall::Mfn;

    fn pte(flags: PteFlags) -> Pte {
        Pte::new(Mfn::new(7), flags)
    }

    #[test]
    fn a_writable_page_is_write_protected_and_marked_on_both_sides() {
        let before = pte(PteFlags::USER_RW);
        let (parent, child) = split(before).expect("inherited");
        assert!(!parent.is_writable() && !child.is_writable());
        assert!(parent.flags().contains(SHARED | COPY_ON_WRITE));
        assert_eq!(child.flags(), parent.flags() | FORKED);
        assert_eq!(join(parent), before);
    }

    #[test]
    fn a_read_only_page_does_not_become_writable_when_it_is_joined() {
        let before = pte(PteFlags::USER_RW & !PteFlags::WRITABLE);
        let (parent, child) = split(before).expect("inherited");
        assert!(!parent.flags().contains(COPY_ON_WRITE) && child.flags().contains(FORKED));
        assert_eq!(join(parent), before);
    }

    #[test]
    fn a_page_that_is_shared_already_stays_as_it_is() {
        let (_, before) = split(pte(PteFlags::USER_RW)).expect("inherited");
        let (parent, child) = split(before).expect("inherited");
        assert_eq!(parent, before, "nothing is changed for the grandchild");
        assert!(!child.flags().contains(FORKED));
    }

    #[test]
    fn what_is_absent_or_foreign_is_not_inherited() {
        assert_eq!(split(Pte::ABSENT), None);
        assert_eq!(split(pte(PteFlags::USER_RW | FOREIGN)), None);
    }
}
