//! Replaces the builder's tables with the kernel's own, and frees them.
//!
//! The builder's tables map all of the kernel writable and executable, its code too, and stay in
//! use while the guest runs on them. So they are copied: a root, the tables that lead to the
//! kernel's mapping, and each L1 table of it, which stays shared with the direct map. In the copies
//! only code is executable, and no code is writable. Changing the originals entry by entry would
//! take Xen longer than validating the copies.
//!
//! ```text
//!   builder's root ─► L3 ─► L2 ─► L1 …      own root ─► L3 ─► L2 ─► L1 …   NX but for code
//!          └──► direct map ─► L2 ──┘    =>      └──► direct map ─► L2 ──┘
//! ```
//!
//! It takes three requests. The copies become read-only and take the originals' places in the
//! direct map. The new root is pinned and loaded, and the builder's unpinned. The old tables become
//! writable.
#![expect(
    unsafe_code,
    reason = "fills and links tables in frames that the caller gave (I-1, I-14)"
)]

use hypercall::{Batch, Frames, Level, Machine, Mfn, MmuExtOp, Pfn, Pte, PteFlags, XEN_SLOTS};
use p2m::{Guest, Pfns};
use x86_64::structures::paging::PageTableIndex;

use crate::changes::{Change, Stopped, count, entry, index, leads_to, link, protect, unlink};
use crate::error::{EarlyError, ReplaceError, RoundError};
use crate::memory::BootMemory;
use crate::spans::{CHUNK_SHIFT, LIST_WORD_BYTES, PAGE_BYTES, chunk_pfns, pages_of};
use crate::uses::{Access, FrameUse, OldList, UseKind, mask_chunk, places};

/// The tables that replaced the builder's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the kernel runs on this root now"]
pub struct Replaced {
    /// The root that the kernel runs on.
    pub root: Pfn,
    /// All tables: this root and the copies.
    pub tables: Pfns,
}

/// Moves the kernel to tables of its own, made of the first of `frames`. Gives `owner` the
/// builder's tables, the builder's list if it has moved, and the rest of `frames`, all writable in
/// the direct map.
///
/// Code and constants are then read-only in the kernel's mapping and in the direct map, and only
/// code is executable. If the list has moved ([`OldList::LeftAt`]) and the builder had mapped it
/// elsewhere, that mapping is gone. Everything else stays mapped.
///
/// # Errors
/// [`ReplaceError`], with the frames: the kernel runs on the builder's tables as before. If the
/// undo failed too, the error has the frames for the tables as uncertain ones, `owner` gets the
/// rest of `frames`, and the builder's tables stay in use.
///
/// # Hypercalls
/// Three, if the batch has room for [`BootMemory::own_tables`] and as many changes again: an
/// `mmu_update`, an `mmuext_op` of three operations, an `mmu_update`.
///
/// # Safety
/// * The direct map is complete, the only vCPU runs on the root of `guest`, and the uses of
///   `memory` are still what they were.
/// * No Rust object is in `frames`. Nobody writes code or constants of the kernel, or executes
///   anything else.
/// * If the list has moved, nobody uses the builder's.
///
/// ```
/// # use hypercall::BatchStorage;
/// # use pv_tests::booting::Booting;
/// # use xen_model::Role;
/// use early_pgt::{OldList, replace_tables};
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
/// let list = OldList::InUse;
/// unsafe { replace_tables(&guest, &memory, list, own, &mut storage.batch(), owner) }?;
/// assert_eq!(given_back, booting.boot.table_frames);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub unsafe fn replace_tables<M: Machine>(
    guest: &Guest<'_, M>,
    memory: &BootMemory<'_>,
    list: OldList,
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
    if let Err(RoundError { failure, undo }) = work.replace(batch) {
        if undo.is_ok() {
            // SAFETY: these are the frames that came in, and no other token of them is left (I-1).
            let frames = Ok(unsafe { Frames::claim(tables.start, given) });
            return Err(ReplaceError { failure, undo, frames });
        }
        if spare.count() > 0 {
            owner(spare);
        }
        // SAFETY: as above, without the spare ones. Nobody gets these (I-16).
        let doubtful = unsafe { Frames::claim(tables.start, tables.count) };
        return Err(ReplaceError { failure, undo, frames: Err(doubtful.into()) });
    }
    for used in memory.replaced_uses(list) {
        // SAFETY: the tables have no type any more, and the list has no reader. Both are writable,
        // and nobody else ever had a token of them (I-1).
        owner(unsafe { Frames::claim(used.pfns.start, used.pfns.count) });
    }
    if spare.count() > 0 {
        owner(spare);
    }
    Ok(Replaced { root: work.root(), tables })
}

struct Work<'a, M> {
    guest: &'a Guest<'a, M>,
    memory: &'a BootMemory<'a>,
    list: OldList,
    /// Root, L3, the L2s, the L1s.
    tables: Pfns,
}

/// The frames of the two roots.
#[derive(Clone, Copy, Debug)]
struct Roots {
    builders: Mfn,
    own: Mfn,
}

/// Returns the operations that switch from the root `from` to the root `to`.
const fn switch(from: Mfn, to: Mfn) -> [MmuExtOp; 3] {
    [MmuExtOp::pin(Level::L4, to), MmuExtOp::new_baseptr(to), MmuExtOp::unpin(from)]
}

impl<M: Machine> Work<'_, M> {
    fn table(&self, at: u64) -> Pfn {
        Pfn::new(self.tables.start.raw() + at)
    }

    fn root(&self) -> Pfn {
        self.table(0)
    }

    /// Returns the copy of L1 table `chunk`.
    fn l1(&self, chunk: u64) -> Pfn {
        self.table(2 + self.memory.kernel_l2s() + chunk)
    }

    fn replace(&self, batch: &mut Batch<'_>) -> Result<(), RoundError> {
        let roots = self.fill()?;
        if batch.ops_max() < 3 {
            return Err(EarlyError::NoStorage.into());
        }
        let swaps = || self.swaps();
        let unlink = |done, batch: &mut _| unlink(self.guest, self.tables, done, &swaps, batch);
        link(self.guest, self.tables, &swaps, batch).map_err(|Stopped { done, failure }| {
            RoundError { failure, undo: unlink(done, batch) }
        })?;
        self.operate(&switch(roots.builders, roots.own), batch).map_err(
            |Stopped { done, failure }| {
                let back = self.switch_back(roots, done, batch);
                RoundError { failure, undo: back.and_then(|()| unlink(u64::MAX, batch)) }
            },
        )?;
        // SAFETY: the kernel has just been switched to it (I-18).
        let own = unsafe { self.guest.with_kernel_root(self.root()) };
        protect(&own, self.released(), Access::Writable, batch).map_err(
            |Stopped { done, failure }| {
                let released = self.released().take(count(done));
                let back = protect(&own, released, Access::ReadOnly, batch);
                let back = back.map_err(|stopped| stopped.failure);
                let back = back.and_then(|()| self.switch_back(roots, 3, batch));
                RoundError { failure, undo: back.and_then(|()| unlink(u64::MAX, batch)) }
            },
        )
    }

    /// Returns the frames that become writable.
    fn released(&self) -> impl Iterator<Item = Pfn> + Clone {
        let uses = self.memory.replaced_uses(self.list);
        let read_only = uses.filter(|used| used.kind.access() == Access::ReadOnly);
        read_only.flat_map(|used| used.pfns.iter())
    }

    /// Fills all tables.
    fn fill(&self) -> Result<Roots, EarlyError> {
        let machine = self.guest.machine();
        let root = self.guest.kernel_root();
        let kernel = self.memory.place.kernel;
        let (first, kernel_slot) = (PageTableIndex::new(0), Level::L4.index_of(kernel));
        let mut entries = [Pte::ABSENT; 512];
        machine.read_entries(root, first, &mut entries)?;
        entries[usize::from(*XEN_SLOTS.start())..=usize::from(*XEN_SLOTS.end())].fill(Pte::ABSENT);
        let list_slots = self.list_slots();
        if let Some(slots) = list_slots.clone() {
            entries[slots].fill(Pte::ABSENT);
        }
        entries[usize::from(kernel_slot)] = self.leads_to(self.table(1))?;
        self.write(self.root(), &entries)?;
        if list_slots.is_some_and(|slots| slots.contains(&kernel_slot.into())) {
            entries.fill(Pte::ABSENT);
        } else {
            let old_l3 = entry(self.guest, kernel, Level::L3)?.table;
            machine.read_entries(old_l3, first, &mut entries)?;
        }
        let slot = u64::from(u16::from(Level::L3.index_of(kernel)));
        for at in 0..self.memory.kernel_l2s() {
            entries[usize::from(index(slot + at))] = self.leads_to(self.table(2 + at))?;
        }
        self.write(self.table(1), &entries)?;
        // The chunks fill the L2s' entries from the first one's on, in order.
        let skipped = u64::from(u16::from(Level::L2.index_of(kernel)));
        for at in 0..self.memory.kernel_l2s() {
            for (place, number) in entries.iter_mut().zip(at * 512..) {
                let chunk = number.checked_sub(skipped);
                let chunk = chunk.filter(|chunk| *chunk < self.memory.shared_chunks());
                *place = chunk.map_or(Ok(Pte::ABSENT), |chunk| self.leads_to(self.l1(chunk)))?;
            }
            self.write(self.table(2 + at), &entries)?;
        }
        for chunk in 0..self.memory.shared_chunks() {
            self.copy_l1(chunk, &mut entries)?;
            self.write(self.l1(chunk), &entries)?;
        }
        Ok(Roots { builders: self.guest.mfn(root)?, own: self.guest.mfn(self.root())? })
    }

    /// Returns the root slots that have only the builder's mapping of a list that has moved.
    fn list_slots(&self) -> Option<core::ops::RangeInclusive<usize>> {
        let OldList::LeftAt(va) = self.list else { return None };
        let outside = |used: &FrameUse| used.kind == UseKind::ListAndTables;
        self.memory.replaced_uses(self.list).find(outside)?;
        // One word for each page. The use includes the frames of the tables above.
        let words = self.guest.p2m().len().saturating_mul(LIST_WORD_BYTES);
        let pages = pages_of(va.raw() % PAGE_BYTES, words).count;
        let last = va.checked_add_pages(pages.saturating_sub(1)).ok()?;
        Some(usize::from(Level::L4.index_of(va))..=usize::from(Level::L4.index_of(last)))
    }

    /// Returns the new entries of the builder's L1 table `chunk`.
    fn copy_l1(&self, chunk: u64, entries: &mut [Pte; 512]) -> Result<(), EarlyError> {
        let machine = self.guest.machine();
        let va = self.memory.place.kernel.checked_add_pages(chunk << CHUNK_SHIFT)?;
        let table = entry(self.guest, va, Level::L1)?.table;
        machine.read_entries(table, PageTableIndex::new(0), entries)?;
        let by_xen = PteFlags::USER.union(PteFlags::GLOBAL).union(PteFlags::GUEST_KERNEL);
        for entry in entries.iter_mut().filter(|entry| entry.is_present()) {
            let flags = entry.flags().difference(by_xen);
            *entry = entry.with_flags(machine.offered(flags.union(PteFlags::NO_EXECUTE)));
        }
        let pfns = chunk_pfns(chunk);
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

    /// Returns an entry of the kernel's mapping that leads to `table`.
    fn leads_to(&self, table: Pfn) -> Result<Pte, EarlyError> {
        Ok(Pte::new(self.guest.mfn(table)?, PteFlags::TABLE))
    }

    fn write(&self, table: Pfn, entries: &[Pte; 512]) -> Result<(), EarlyError> {
        // SAFETY: the table is one of the frames that the caller gave, and not live yet.
        unsafe { self.guest.machine().write_entries(table, PageTableIndex::new(0), entries) }?;
        Ok(())
    }

    /// Returns the changes that make the direct map lead to the copies instead of the builder's L1
    /// tables.
    fn swaps(&self) -> impl Iterator<Item = Result<Change, EarlyError>> {
        let place = self.memory.place;
        (0..self.memory.shared_chunks()).map(move |chunk| {
            let pages = chunk << CHUNK_SHIFT;
            let old = entry(self.guest, place.kernel.checked_add_pages(pages)?, Level::L1)?;
            let above = entry(self.guest, place.direct_map.checked_add_pages(pages)?, Level::L2)?;
            let new = self.guest.mfn(self.l1(chunk))?;
            let [old, new] = [old.slot.table, new].map(|mfn| leads_to(self.guest, mfn));
            Ok(Change { slot: above.slot, old, new })
        })
    }

    /// Undoes the first `done` operations of the switch to the kernel's own root.
    fn switch_back(
        &self,
        roots: Roots,
        done: u64,
        batch: &mut Batch<'_>,
    ) -> Result<(), EarlyError> {
        let back = switch(roots.own, roots.builders);
        let undone = back.len() - count(done).min(back.len());
        self.operate(&back[undone..], batch).map_err(|stopped| stopped.failure)
    }

    fn operate(&self, ops: &[MmuExtOp], batch: &mut Batch<'_>) -> Result<(), Stopped> {
        batch.clear();
        for op in ops {
            batch.op(*op).map_err(|full| Stopped { done: 0, failure: full.into() })?;
        }
        // SAFETY: both roots map the same at every address that anyone uses: the kernel's mapping,
        // the direct map, and whatever else the builder's root has.
        unsafe { batch.submit(self.guest.machine()) }.map_err(|error| {
            let done = batch.applied().count() as u64;
            batch.clear();
            Stopped { done, failure: EarlyError::Switch { root: self.root(), error } }
        })
    }
}
