//! The kernel's own tables in place of the builder's, which then are free memory.
//!
//! The builder's tables map the kernel writable and executable throughout, its code too, and they
//! are in use as long as the guest runs on them. Here they are copied: a root, the tables that lead
//! to the kernel's mapping, and each L1 table of it, which stays shared with the direct map. The
//! copies say what the originals cannot: only code can be executed, and code cannot be written.
//! Changing the originals in place would take Xen longer, entry by entry, than validating the
//! copies.
//!
//! ```text
//!   builder's root ─► L3 ─► L2 ─► L1 …      own root ─► L3 ─► L2 ─► L1 …   NX but for code
//!          └──► direct map ─► L2 ──┘    =>      └──► direct map ─► L2 ──┘
//! ```
//!
//! Three requests: the copies become read-only and take the originals' places in the direct map;
//! the own root is pinned and loaded, the builder's unpinned; what were tables becomes writable.
#![expect(
    unsafe_code,
    reason = "fills and links tables in frames that the caller gave (I-1, I-14)"
)]

use hypercall::{
    Batch, Frames, GuestVa, Level, Machine, Mfn, MmuExtOp, MmuUpdate, PAGE_SHIFT, Pfn, Pte,
    PteFlags, Slot, XEN_SLOTS,
};
use p2m::{Guest, Pfns};
use x86_64::structures::paging::PageTableIndex;

use crate::buffer::{
    Change, Direction, apply, l1_table, link, protections, set_protected, step_down, table_above,
    unlink,
};
use crate::build::{index, leads_to, leads_to_mfn};
use crate::error::{EarlyError, ReplaceError};
use crate::memory::{Access, BootMemory, Use, UseKind, mask_chunk, places};
use crate::plan::shared_chunks;
use crate::spans::{CHUNK_PFNS, CHUNK_SHIFT, LIST_WORD_BYTES, PAGE_BYTES, pages_of};

/// Where the frame map's list is when the builder's tables go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuilderList {
    /// Where the builder put it.
    Stays,
    /// In frames of the kernel's; nobody reads the builder's any more, which was at this address.
    Moved(GuestVa),
}

/// What took the place of the builder's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the kernel runs on this root now"]
pub struct Replaced {
    /// The root that the kernel runs on.
    pub root: Pfn,
    /// All tables: this root and those that were copied.
    pub tables: Pfns,
}

impl BootMemory<'_> {
    /// How many tables [`replace_tables`] makes: a root, an L3, an L2 for each GiB of addresses
    /// that the kernel's mapping touches, an L1 for each 2 MiB.
    ///
    /// ```
    /// # use pv_tests::booting::Booting;
    /// # use xen_model::Role;
    /// let booting = Booting::new(Role::DomU, 1 << 14);
    /// let needed = booting.memory().own_tables(); // frames for `replace_tables`
    /// assert!(needed <= booting.boot.table_frames + 1);
    /// ```
    #[must_use]
    pub fn own_tables(&self) -> u64 {
        2 + self.kernel_l2s() + shared_chunks(self)
    }

    fn kernel_l2s(&self) -> u64 {
        let shift = Level::L3.shift();
        let start = self.place.kernel.raw();
        let last = start + ((shared_chunks(self) << CHUNK_SHIFT << PAGE_SHIFT) - 1);
        (last >> shift) - (start >> shift) + 1
    }

    /// The uses that end when the builder's tables are replaced.
    pub fn replaced_uses(&self, list: BuilderList) -> impl Iterator<Item = Use> + '_ {
        self.uses.iter().copied().filter(move |used| used.kind.ends(list))
    }

    /// The uses that do not.
    pub fn kept_uses(&self, list: BuilderList) -> impl Iterator<Item = Use> + '_ {
        self.uses.iter().copied().filter(move |used| !used.kind.ends(list))
    }
}

impl UseKind {
    /// Whether an allocator gets such frames, at the latest when the builder's list has moved.
    pub(crate) const fn is_given(self) -> bool {
        matches!(self, Self::BuilderTables | Self::List | Self::ListAndTables)
    }

    fn ends(self, list: BuilderList) -> bool {
        match self {
            Self::BuilderTables => true,
            Self::List | Self::ListAndTables => list != BuilderList::Stays,
            _ => false,
        }
    }
}

/// Puts the kernel on tables of its own, in the first of `frames`, and gives the builder's to
/// `owner`, writable in the direct map; also the builder's list, if it has moved, and what is left
/// of `frames`.
///
/// In the kernel's mapping, as in the direct map, code is read-only then, constants are, and
/// nothing but code can be executed there. The builder's mapping of a list outside of it, which
/// [`BuilderList::Moved`] says is not needed, is gone; what else the root mapped is mapped still.
///
/// # Errors
/// [`ReplaceError`], with the frames: the kernel runs on the builder's tables, as before. If not
/// even the undo worked, the frames for the tables are in it as uncertain ones; what is left of
/// `frames` goes to `owner`, and the builder's stay in use.
///
/// # Hypercalls
/// Three, if the batch has room for [`BootMemory::own_tables`] and as many changes again: an
/// `mmu_update`, an `mmuext_op` of three operations, an `mmu_update`.
///
/// # Safety
/// * The direct map is built, `context.root` is the root that the only vCPU runs on, and the uses
///   of `memory` are what they were.
/// * No Rust object is in `frames`, in constants or code that anybody writes, or in memory that is
///   executed without being code of the kernel.
/// * If the list has moved, nobody uses the builder's.
///
/// ```
/// # use hypercall::BatchStorage;
/// # use pv_tests::booting::Booting;
/// # use xen_model::Role;
/// use early_pgt::{BuilderList, replace_tables};
///
/// let booting = Booting::new(Role::DomU, 1 << 14);
/// let mut free = booting.build(); // all memory is mapped
/// let (memory, p2m) = (booting.memory(), booting.p2m());
/// let frames = free.pop().ok_or("no memory")?;
/// let (own, rest) = frames.split(memory.own_tables()).map_err(|_| "too little memory")?;
/// free.push(rest);
/// let guest = booting.guest(&booting.model, &p2m);
/// let mut storage = BatchStorage::<1024, 3>::new();
/// let mut given_back = 0;
/// let owner = |frames: hypercall::Frames| given_back += frames.count();
/// let list = BuilderList::Stays;
/// unsafe { replace_tables(guest, (&memory, list), own, &mut storage.batch(), owner) }?;
/// assert_eq!(given_back, booting.boot.table_frames);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub unsafe fn replace_tables<M: Machine>(
    guest: Guest<'_, M>,
    (memory, list): (&BootMemory<'_>, BuilderList),
    frames: Frames,
    batch: &mut Batch<'_>,
    mut owner: impl FnMut(Frames),
) -> Result<Replaced, ReplaceError> {
    let (given, needed) = (frames.count(), memory.own_tables());
    let (tables, spare) = match frames.split(needed) {
        Ok(parts) => parts,
        Err(frames) => {
            let failure = EarlyError::TooFewFrames { given, needed };
            return Err(ReplaceError { failure, undo: Ok(()), frames: Ok(frames) });
        }
    };
    let tables = Pfns::new(tables.start(), needed);
    let work = Work { guest, memory, list, tables };
    if let Err((failure, undo)) = work.replace(batch) {
        if undo.is_ok() {
            // SAFETY: these are the frames that came in, and no other token of them is left (I-1).
            let frames = Ok(unsafe { Frames::claim(tables.start, given) });
            return Err(ReplaceError { failure, undo, frames });
        }
        if spare.count() > 0 {
            owner(spare);
        }
        // SAFETY: as above, but for the spare ones; nobody gets these (I-16).
        let doubtful = unsafe { Frames::claim(tables.start, tables.count) };
        return Err(ReplaceError { failure, undo, frames: Err(doubtful.into()) });
    }
    for used in memory.replaced_uses(list) {
        // SAFETY: the tables have no type any more, the list no reader; both are writable, and
        // nobody else ever had a token of them (I-1).
        owner(unsafe { Frames::claim(used.pfns.start, used.pfns.count) });
    }
    if spare.count() > 0 {
        owner(spare);
    }
    Ok(Replaced { root: work.root(), tables })
}

/// Why, and what came of the undo.
type Failed = (EarlyError, Result<(), EarlyError>);

struct Work<'a, M> {
    guest: Guest<'a, M>,
    memory: &'a BootMemory<'a>,
    list: BuilderList,
    /// Root, L3, the L2s, the L1s.
    tables: Pfns,
}

impl<M: Machine> Work<'_, M> {
    fn table(&self, at: u64) -> Pfn {
        Pfn::new(self.tables.start.raw() + at)
    }

    fn root(&self) -> Pfn {
        self.table(0)
    }

    /// The copy of L1 table `chunk`.
    fn l1(&self, chunk: u64) -> Pfn {
        self.table(2 + self.memory.kernel_l2s() + chunk)
    }

    fn replace(&self, batch: &mut Batch<'_>) -> Result<(), Failed> {
        let untouched = |failure| (failure, Ok(()));
        let roots = self.fill().map_err(untouched)?;
        if batch.ops_max() < 3 {
            return Err((EarlyError::NoStorage, Ok(())));
        }
        let changes = |direction| self.swaps(direction);
        link(self.guest, self.tables, &changes, batch).map_err(|(done, failure)| {
            (failure, unlink(self.guest, (self.tables, done), &changes, batch))
        })?;
        let unlink_all =
            |batch: &mut _| unlink(self.guest, (self.tables, u64::MAX), &changes, batch);
        self.switch(roots, batch).map_err(|(done, failure)| {
            let back = self.switch_back(roots, done, batch);
            (failure, back.and_then(|()| unlink_all(batch)))
        })?;
        // SAFETY: the kernel has just been switched to it (I-18).
        let own = unsafe { self.guest.with_kernel_root(self.root()) };
        let released = protections(own, self.released(), Access::Writable);
        apply(own, released, None, batch).map_err(|(done, stop)| {
            let done = usize::try_from(done).unwrap_or(usize::MAX);
            let back = (self.released().take(done), Access::ReadOnly);
            let back = set_protected(own, back, batch);
            let back = back.and_then(|()| self.switch_back(roots, 3, batch));
            (stop.linking(), back.and_then(|()| unlink_all(batch)))
        })
    }

    /// The frames that become writable.
    fn released(&self) -> impl Iterator<Item = Pfn> {
        let uses = self.memory.replaced_uses(self.list);
        let read_only = uses.filter(|used| used.kind.access() == Access::ReadOnly);
        read_only.flat_map(|used| used.pfns.iter())
    }

    /// Fills all tables; the frames of both roots, the builder's first.
    fn fill(&self) -> Result<[Mfn; 2], EarlyError> {
        let (machine, p2m) = (self.guest.machine(), self.guest.p2m());
        let root = self.guest.kernel_root();
        let kernel = self.memory.place.kernel;
        let first = PageTableIndex::new(0);
        let kernel_slot = Level::L4.index_of(kernel);
        let mut entries = [Pte::ABSENT; 512];
        machine.read_entries(root, first, &mut entries)?;
        entries[usize::from(*XEN_SLOTS.start())..=usize::from(*XEN_SLOTS.end())].fill(Pte::ABSENT);
        let old_l3 = step_down((machine, p2m), root, (kernel, Level::L4))?;
        if let Some(slots) = self.list_slots() {
            entries[slots].fill(Pte::ABSENT);
        }
        entries[usize::from(kernel_slot)] = self.leads_to(self.table(1))?;
        self.write(self.root(), &entries)?;
        machine.read_entries(old_l3, first, &mut entries)?;
        if self.list_slots().is_some_and(|slots| slots.contains(&kernel_slot.into())) {
            entries.fill(Pte::ABSENT);
        }
        let slot = u64::from(u16::from(Level::L3.index_of(kernel)));
        for at in 0..self.memory.kernel_l2s() {
            entries[usize::from(index(slot + at))] = self.leads_to(self.table(2 + at))?;
        }
        self.write(self.table(1), &entries)?;
        // The chunks fill the places of the L2s from the first one's on, one after the other.
        let skipped = u64::from(u16::from(Level::L2.index_of(kernel)));
        for at in 0..self.memory.kernel_l2s() {
            for (place, number) in entries.iter_mut().zip(at * 512..) {
                let chunk = number.checked_sub(skipped);
                let chunk = chunk.filter(|chunk| *chunk < shared_chunks(self.memory));
                *place = chunk.map_or(Ok(Pte::ABSENT), |chunk| self.leads_to(self.l1(chunk)))?;
            }
            self.write(self.table(2 + at), &entries)?;
        }
        for chunk in 0..shared_chunks(self.memory) {
            self.copy_l1(chunk, &mut entries)?;
            self.write(self.l1(chunk), &entries)?;
        }
        Ok([p2m.mfn(root)?, p2m.mfn(self.root())?])
    }

    /// Root slots that only the builder's mapping of a list that has moved is in.
    fn list_slots(&self) -> Option<core::ops::RangeInclusive<usize>> {
        let BuilderList::Moved(va) = self.list else { return None };
        let outside = |used: &Use| used.kind == UseKind::ListAndTables;
        self.memory.replaced_uses(self.list).find(outside)?;
        // One word for each page; the use has the frames of the tables above, too.
        let words = self.guest.p2m().len().saturating_mul(LIST_WORD_BYTES);
        let pages = pages_of(va.raw() % PAGE_BYTES, words).count;
        let last = va.checked_add_pages(pages.saturating_sub(1)).ok()?;
        Some(usize::from(Level::L4.index_of(va))..=usize::from(Level::L4.index_of(last)))
    }

    /// The builder's L1 table `chunk`, as it is to be.
    fn copy_l1(&self, chunk: u64, entries: &mut [Pte; 512]) -> Result<(), EarlyError> {
        let (machine, p2m) = (self.guest.machine(), self.guest.p2m());
        let root = self.guest.kernel_root();
        let va = self.memory.place.kernel.checked_add_pages(chunk << CHUNK_SHIFT)?;
        let (table, _) = l1_table((machine, p2m), root, va)?;
        machine.read_entries(table, PageTableIndex::new(0), entries)?;
        let by_xen = PteFlags::USER.union(PteFlags::GLOBAL).union(PteFlags::GUEST_KERNEL);
        for entry in entries.iter_mut().filter(|entry| entry.is_present()) {
            let flags = entry.flags().difference(by_xen);
            *entry = entry.with_flags(machine.offered(flags.union(PteFlags::NO_EXECUTE)));
        }
        let pfns = Pfns::new(Pfn::new(chunk << CHUNK_SHIFT), CHUNK_PFNS);
        mask_chunk(entries, pfns, self.memory.uses);
        let code = self.memory.uses.iter().filter(|used| used.kind == UseKind::KernelText);
        for code in code {
            for place in places(entries, pfns, code.pfns) {
                *place = place.with_flags(place.flags().difference(PteFlags::NO_EXECUTE));
            }
        }
        for place in places(entries, pfns, self.tables) {
            *place = place.read_only();
        }
        Ok(())
    }

    /// An entry of the kernel's own that leads to `table`.
    fn leads_to(&self, table: Pfn) -> Result<Pte, EarlyError> {
        Ok(Pte::new(self.guest.p2m().mfn(table)?, PteFlags::TABLE))
    }

    fn write(&self, table: Pfn, entries: &[Pte; 512]) -> Result<(), EarlyError> {
        // SAFETY: the table is one of the frames that the caller gave, and not live yet.
        unsafe { self.guest.machine().write_entries(table, PageTableIndex::new(0), entries) }?;
        Ok(())
    }

    /// The entries of the direct map that lead to the builder's L1 tables, changed to lead to the
    /// copies; or back.
    fn swaps(&self, direction: Direction) -> impl Iterator<Item = Change> {
        let (machine, p2m) = (self.guest.machine(), self.guest.p2m());
        let root = self.guest.kernel_root();
        let l1_of = move |start: GuestVa, chunk: u64| {
            let va = start.checked_add_pages(chunk << CHUNK_SHIFT)?;
            Ok::<_, EarlyError>((l1_table((machine, p2m), root, va)?.1, va))
        };
        (0..shared_chunks(self.memory)).map(move |chunk| {
            let (old, _) = l1_of(self.memory.place.kernel, chunk)?;
            let va = self.memory.place.direct_map.checked_add_pages(chunk << CHUNK_SHIFT)?;
            let l2 = table_above((machine, p2m), root, (va, Level::L1))?;
            let slot = Slot { table: p2m.mfn(l2)?, index: index(chunk) };
            let new = leads_to(&self.guest, self.l1(chunk))?;
            let old = leads_to_mfn(&self.guest, old);
            Ok(match direction {
                Direction::Forth => (MmuUpdate::set(slot, new), old),
                Direction::Back => (MmuUpdate::set(slot, old), new),
            })
        })
    }

    /// From one root to the other. How many of the three operations worked, if not all.
    fn switch(
        &self,
        [from, to]: [Mfn; 2],
        batch: &mut Batch<'_>,
    ) -> Result<(), (usize, EarlyError)> {
        let forth =
            [MmuExtOp::pin(Level::L4, to), MmuExtOp::new_baseptr(to), MmuExtOp::unpin(from)];
        self.operate(forth.into_iter(), batch)
    }

    /// Undoes the first `done` operations of a switch.
    fn switch_back(
        &self,
        [from, to]: [Mfn; 2],
        done: usize,
        batch: &mut Batch<'_>,
    ) -> Result<(), EarlyError> {
        let back =
            [MmuExtOp::pin(Level::L4, from), MmuExtOp::new_baseptr(from), MmuExtOp::unpin(to)];
        let back = back.into_iter().skip(3 - done.min(3));
        self.operate(back, batch).map_err(|(_, failure)| failure)
    }

    fn operate(
        &self,
        ops: impl Iterator<Item = MmuExtOp>,
        batch: &mut Batch<'_>,
    ) -> Result<(), (usize, EarlyError)> {
        batch.clear();
        for op in ops {
            batch.op(op).map_err(|full| (0, full.into()))?;
        }
        // SAFETY: both roots map the same at every address that anybody uses: the kernel's mapping,
        // the direct map, and whatever the builder's root has besides.
        unsafe { batch.submit(self.guest.machine()) }.map_err(|error| {
            let done = batch.applied().count();
            batch.clear();
            (done, EarlyError::Switch { root: self.root(), error })
        })
    }
}
