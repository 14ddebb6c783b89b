//! Reads all tables and says, in words, what is wrong or will be refused: a release build of Xen
//! only returns an errno.
//!
//! The audit asks nothing of Xen and changes nothing. It needs two bits of memory for each pfn,
//! from the caller.

use core::fmt;

use hypercall::{ENTRIES, Entry, FrameAccess, GuestVa, Level, Mfn, Pfn, Pte, PteFlags};
use x86_64::structures::paging::PageTableIndex;

use crate::marks::{FOREIGN, MARKS};
use crate::pgd::Pgd;
use crate::tables::{Part, Step, USER_SLOTS};
use p2m::{Guest, WalkError};

pub use crate::tables::Place;

/// The roots of a tree to audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tree {
    /// The kernel root.
    pub kernel: Pfn,
    /// The root for user code.
    pub user: Option<Pfn>,
}

impl<S> Pgd<S> {
    /// Returns its roots, for an audit.
    #[must_use]
    pub fn tree(&self) -> Tree {
        Tree { kernel: self.root(), user: self.user_root() }
    }
}

/// Something that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A frame that serves as a table is mapped writable.
    WritableTable {
        /// The entry that maps it.
        place: Place,
        /// The table.
        table: Pfn,
    },
    /// An entry of the kernel half that the guest has made a user mapping.
    UserInKernelHalf(Place),
    /// An entry that leads to a frame which is not the guest's, and is not marked as foreign.
    UnknownFrame(Place),
    /// An entry that is not present but still names a frame.
    FrameBitsLeft(Place),
    /// The user root has another entry than the kernel root.
    RootsDiffer {
        /// The slot.
        slot: u16,
        /// The kernel root's entry.
        kernel: Pte,
        /// The user root's.
        user: Pte,
    },
}

/// Says what is wrong, and what Xen makes of it.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WritableTable { place, table } => write!(
                f,
                "{place} maps pfn {table} writable, which is a table: Xen refuses one of the two, \
                 pin with EINVAL or the mapping with EBUSY, since a frame has one type at a time"
            ),
            Self::UserInKernelHalf(place) => write!(
                f,
                "{place} is a kernel mapping with USER set by the guest: Xen takes it for a user \
                 mapping and makes it global, so that user code may find it in the TLB"
            ),
            Self::UnknownFrame(place) => write!(
                f,
                "{place} points to mfn {}, which P2M does not know: Xen refuses a frame of another \
                 owner with EBUSY, or the frame map is wrong",
                place.pte.mfn()
            ),
            Self::FrameBitsLeft(place) => write!(
                f,
                "{place} is not present but names mfn {}: on CPUs with L1TF Xen shadows or crashes \
                 a guest that leaves such entries",
                place.pte.mfn()
            ),
            Self::RootsDiffer { slot, kernel, user } => write!(
                f,
                "slot {slot}: the kernel root has {kernel}, the user root {user}: user code sees \
                 other pages than the kernel"
            ),
        }
    }
}

/// Why an audit failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditError {
    /// The memory is too small: this many words are needed.
    Memory(u64),
    /// A table cannot be read.
    Walk(WalkError),
}

impl From<WalkError> for AuditError {
    fn from(error: WalkError) -> Self {
        Self::Walk(error)
    }
}

impl fmt::Display for AuditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(words) => {
                write!(f, "an audit of this guest needs {words} words of memory")
            }
            Self::Walk(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for AuditError {}

/// Adds `pfn` to a set. Returns whether it was new. One beyond the set never is.
fn insert(set: &mut [u64], pfn: Pfn) -> bool {
    let word = usize::try_from(pfn.raw() / 64).ok().and_then(|at| set.get_mut(at));
    let bit = 1 << (pfn.raw() % 64);
    word.is_some_and(|word| {
        let new = *word & bit == 0;
        *word |= bit;
        new
    })
}

fn contains(set: &[u64], pfn: Pfn) -> bool {
    let word = usize::try_from(pfn.raw() / 64).ok().and_then(|at| set.get(at));
    word.is_some_and(|word| word & 1 << (pfn.raw() % 64) != 0)
}

/// Returns how many words of memory an audit of a guest with `pfns` pfns needs.
#[must_use]
pub const fn audit_words(pfns: u64) -> u64 {
    2 * pfns.div_ceil(64)
}

/// Reads every table of the running tree and of `trees`, which must be live, and calls `report`
/// with every finding. Returns how many tables it read.
///
/// # Errors
/// [`AuditError`].
///
/// ```
/// # use pv_tests::examples::*;
/// use pvmmu::{Pages, audit};
///
/// let (pgd, tools) = TestGuest::with_pinned(Pages::one(GuestVa::new(0x40_0000)?));
/// let words = audit::audit_words(tools.guest.p2m().len());
/// let mut memory = vec![0; words as usize];
/// let mut findings = Vec::new();
/// let report = &mut |finding| findings.push(finding);
/// let tables = audit::audit(&tools.guest, &[pgd.tree()], &mut memory, report)?;
/// assert!(findings.is_empty() && tables > 4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn audit<M: FrameAccess>(
    guest: &Guest<'_, M>,
    trees: &[Tree],
    memory: &mut [u64],
    report: &mut impl FnMut(Finding),
) -> Result<u64, AuditError> {
    let words = audit_words(guest.p2m().len());
    if (memory.len() as u64) < words {
        return Err(AuditError::Memory(words));
    }
    memory.fill(0);
    let (tables, seen) = memory.split_at_mut(memory.len() / 2);
    let roots = || {
        let running = Tree { kernel: guest.kernel_root(), user: None };
        let trees = core::iter::once(running).chain(trees.iter().copied());
        trees.flat_map(|tree| [Some(tree.kernel), tree.user]).flatten()
    };
    for root in roots() {
        visit(guest, root, tables, &mut |_| {})?;
    }
    let mut read = 0;
    for root in roots() {
        read += visit(guest, root, seen, &mut |place| check(guest, place, tables, report))?;
    }
    for tree in trees {
        compare_roots(guest, *tree, report)?;
    }
    Ok(read)
}

/// Calls `f` for every entry that is not zero of every table that is not in `seen`, and adds the
/// tables. Returns their number.
fn visit<M: FrameAccess>(
    guest: &Guest<'_, M>,
    root: Pfn,
    seen: &mut [u64],
    f: &mut impl FnMut(Place),
) -> Result<u64, WalkError> {
    if !insert(seen, root) {
        return Ok(0);
    }
    let mut read = 1;
    each_absent(guest, Part::whole(root), f)?;
    Part::whole(root).entries(guest, &mut |place| {
        f(place);
        let Entry::Table(mfn) = place.pte.decode(place.level) else { return Ok(Step::Over) };
        let Ok(table) = guest.pfn(mfn) else { return Ok(Step::Over) };
        if !insert(seen, table) {
            return Ok(Step::Over);
        }
        read += 1;
        each_absent(guest, Part::one_table(place.below(), table, place.va.raw()), f)?;
        Ok::<_, WalkError>(Step::Into)
    })?;
    Ok(read)
}

/// Calls `f` for every entry of a table that is not present, and not zero either.
fn each_absent<M: FrameAccess>(
    guest: &Guest<'_, M>,
    part: Part,
    f: &mut impl FnMut(Place),
) -> Result<(), WalkError> {
    for index in (0..ENTRIES).map(PageTableIndex::new_truncate) {
        let pte = guest.machine().read_entry(part.table, index)?;
        if pte != Pte::ABSENT && !pte.is_present() {
            part.place(index, pte).into_iter().for_each(&mut *f);
        }
    }
    Ok(())
}

fn check<M: FrameAccess>(
    guest: &Guest<'_, M>,
    place: Place,
    tables: &[u64],
    report: &mut impl FnMut(Finding),
) {
    let Place { va, level, pte, .. } = place;
    if !pte.is_present() {
        if pte.mfn() != Mfn::new(0) {
            report(Finding::FrameBitsLeft(place));
        }
        return;
    }
    if level == Level::L1 && va.raw() >= hypercall::XEN_HOLE_END {
        let flags = pte.flags() & (PteFlags::USER | PteFlags::GUEST_KERNEL);
        if flags == PteFlags::USER {
            report(Finding::UserInKernelHalf(place));
        }
    }
    match guest.pfn(pte.mfn()) {
        Ok(table) if level == Level::L1 && pte.is_writable() && contains(tables, table) => {
            report(Finding::WritableTable { place, table });
        }
        Err(_) if level > Level::L1 || !pte.flags().contains(FOREIGN) => {
            report(Finding::UnknownFrame(place));
        }
        _ => {}
    }
}

fn compare_roots<M: FrameAccess>(
    guest: &Guest<'_, M>,
    tree: Tree,
    report: &mut impl FnMut(Finding),
) -> Result<(), WalkError> {
    let Some(user_root) = tree.user else { return Ok(()) };
    let plain = |pte: Pte| {
        let adjusted = MARKS.union(PteFlags::ADJUSTED_BY_XEN);
        pte.with_flags(pte.flags().difference(adjusted))
    };
    for slot in USER_SLOTS {
        let index = PageTableIndex::new_truncate(slot);
        let kernel = guest.machine().read_entry(tree.kernel, index)?;
        let user = guest.machine().read_entry(user_root, index)?;
        if plain(kernel) != plain(user) {
            report(Finding::RootsDiffer { slot, kernel, user });
        }
    }
    Ok(())
}

/// Calls `found` for every entry, in the running tree and in `trees`, that maps `pfn` writable:
/// they keep it from becoming a table. Tables that several trees share are read again for each.
///
/// # Errors
/// A table cannot be read.
///
/// ```
/// # use pv_tests::examples::*;
/// use pvmmu::{Pages, audit};
///
/// let va = GuestVa::new(0x40_0000)?;
/// let (pgd, tools) = TestGuest::with_pinned(Pages::one(va));
/// let page = pgd.translate(&tools.guest, va)?.and_then(|page| page.frame.pfn());
/// let mut found = Vec::new();
/// let (pfn, trees) = (page.ok_or("it is mapped")?, [pgd.tree()]);
/// audit::writable_mappings(&tools.guest, &trees, pfn, &mut |va| found.push(va))?;
/// assert_eq!(found.len(), 2); // the direct mapping's, and its own
/// assert!(found.contains(&va));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn writable_mappings<M: FrameAccess>(
    guest: &Guest<'_, M>,
    trees: &[Tree],
    pfn: Pfn,
    found: &mut impl FnMut(GuestVa),
) -> Result<(), WalkError> {
    let mfn = guest.mfn(pfn)?;
    // The kernel half is the same in all trees.
    let own = trees.iter().map(|tree| Part::user_half(tree.kernel));
    core::iter::once(Part::whole(guest.kernel_root())).chain(own).try_for_each(|tree| {
        tree.entries(guest, &mut |place| {
            if place.level == Level::L1 && place.pte.mfn() == mfn && place.pte.is_writable() {
                found(place.va);
            }
            Ok(place.into_known(guest))
        })
    })
}
