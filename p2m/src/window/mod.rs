//! The window: kernel addresses at which the list is and can grow.
//!
//! ```text
//!   root slot ─► L3 ─► L2 (512 GiB of guest memory each)
//!                       ├─► L1: 1 GiB ─► leaf, leaf, leaf …   512 words each, writable
//!                       │                └─► the page of absent words, read-only, wherever needed
//!                       ├─► the L1 of absent pages, for each whole GiB that has nothing
//!                       └─► the L1 of identity pages, for each whole GiB of device space
//! ```
//! The tables are the window's own, so it need not walk anyone else's. New ones are filled by plain
//! stores while they are loose, protected, and linked by one entry. The builder's list is not
//! copied: its pages are mapped here a second time. A hole costs only the entry that leads to
//! shared memory.
//!
//! The words of shared pages decode like any other ([`P2mEntry`](crate::P2mEntry)). So look-ups
//! need not know of all this, and a change of an entry without memory is an error, not a fault.
#![expect(unsafe_code, reason = "changes mappings of the window, which belong to it (I-2, I-9)")]

mod change;
mod error;
mod grow;
mod split;
mod tables;

pub use error::WindowError;

use core::ptr::NonNull;

use hypercall::{
    AccessError, Batch, Element, Entry, FrameAccess, Frames, GuestVa, Level, Machine, Mfn,
    MmuExtOp, MmuUpdate, Pfn, Pte, PteFlags, Refused, Uncertain,
};
use x86_64::structures::paging::PageTableIndex;

use crate::entry::{SHARED_ABSENT, SHARED_IDENTITY};
use crate::error::{ListError, P2mError};
use crate::guest::Guest;
use crate::leaves::{BuilderList, Leaves};
use crate::list::List;
use crate::map::P2m;
use crate::runs::LEAF_WORDS;
use crate::sync::AtomicU64;
use tables::{Access, Stopped, fill_leaf, fill_table, protect, unprotect};

/// Entries in a table.
const TABLE_ENTRIES: u64 = 512;
/// The most pages that change in one hypercall.
const LEAVES_MAX: usize = 512;
const _: () = assert!(LEAVES_MAX as u64 == TABLE_ENTRIES);
/// Pfns whose words one L1 table maps: 1 GiB of guest memory.
pub(crate) const PFNS_PER_L1: u64 = TABLE_ENTRIES * LEAF_WORDS;
/// Pfns whose words one L2 table maps: 512 GiB.
const PFNS_PER_L2: u64 = TABLE_ENTRIES * PFNS_PER_L1;
/// Pfns whose words a root slot maps: 256 TiB.
const PFNS_MAX: u64 = TABLE_ENTRIES * PFNS_PER_L2;

/// The frames of a window of any size: their places in its run.
mod place {
    pub(super) const L3: u64 = 0;
    pub(super) const ABSENT_LEAF: u64 = 1;
    pub(super) const IDENTITY_LEAF: u64 = 2;
    pub(super) const ABSENT_L1: u64 = 3;
    pub(super) const IDENTITY_L1: u64 = 4;
    pub(super) const L2: u64 = 5;
}

/// The place for a window.
#[derive(Clone, Copy, Debug)]
pub struct WindowPlace {
    /// Its first address, which begins a root slot that is free in every address space.
    pub va: GuestVa,
    /// The same address for the program that looks up.
    pub words: NonNull<AtomicU64>,
    /// The most pfns that the map may ever have.
    pub capacity: u64,
}

/// The tables of the list. Dropping it leaks them, and the map can never grow again.
///
/// # Invariants
/// I-9: the tables below the window's root slot belong to the window and are read-only in the
/// direct mapping. So do all leaves except the builder's. Each GiB below the map's length is
/// linked.
#[derive(Debug)]
pub struct Window {
    va: GuestVa,
    /// The program's address of the words.
    words: usize,
    capacity: u64,
    /// L3, shared leaves, shared L1 tables, L2 tables, L1 tables of the builder's list.
    frames: Frames,
    /// Whether some vCPU may still see a page that a change removed from the window: Xen refused to
    /// undo the change, and with that its flush.
    owes_flush: bool,
}

impl Window {
    /// Returns how many frames a new window needs for a map of `len` pfns that may grow to
    /// `capacity`.
    ///
    /// ```
    /// use p2m::Window;
    ///
    /// // A guest of 1 GiB that may grow to 64 GiB.
    /// assert!(Window::frames_needed(1 << 18, 64 << 18) < 16);
    /// ```
    #[must_use]
    pub const fn frames_needed(len: u64, capacity: u64) -> u64 {
        place::L2 + capacity.div_ceil(PFNS_PER_L2) + len.div_ceil(PFNS_PER_L1)
    }

    /// Maps the builder's list in a window, where it can grow, and returns the map there. The
    /// guest's map stays usable: it is the same memory, and never grows.
    ///
    /// # Errors
    /// [`WindowError`] and the frames, which are uncertain if the attempt could not be undone.
    /// Nothing is mapped.
    ///
    /// # Hypercalls
    /// For T tables: ceil(T / 16) multicalls of `update_va_mapping`, then one of an `mmuext_op` and
    /// an `mmu_update`. T is 3, one for each 512 GiB of capacity, and one for each GiB of the
    /// list's length.
    ///
    /// # Safety
    /// * The kernel runs on the guest's kernel root, where the root slot is free. It stays the
    ///   window's, and later address spaces share it.
    /// * Nobody uses the old map's memory beyond its length.
    /// * `place.words` is the program's address of `place.va` while the map is used.
    ///
    /// ```
    /// # use hypercall::{BatchStorage, GuestVa, Pfn};
    /// # use pv_tests::window::{CAPACITY, WindowMachine};
    /// use p2m::Window;
    ///
    /// let machine = WindowMachine::new(1); // 16 MiB, as built
    /// let needed = Window::frames_needed(machine.boot.pages, CAPACITY);
    /// let (frames, _) = machine.frames().split(needed).map_err(|_| "too little memory")?;
    /// // `open` of the machine calls `Window::open` with a free slot of its root.
    /// let mut storage = BatchStorage::<512, 4>::new();
    /// let (p2m, window) = machine.open(&machine, frames, &mut storage.batch())?;
    /// // Nothing was copied, and the map can grow now.
    /// assert_eq!(p2m.mfn(Pfn::new(7)), machine.builder_map().mfn(Pfn::new(7)));
    /// assert_eq!(p2m.capacity(), CAPACITY);
    /// # let _ = window;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn open<'w, M: Machine>(
        guest: &Guest<'_, M>,
        list: BuilderList,
        place: WindowPlace,
        frames: Frames,
        batch: &mut Batch<'_>,
    ) -> Result<(P2m<'w>, Self), Refused<Result<Frames, Uncertain>, WindowError>> {
        let len = guest.p2m().len();
        let capacity = place.capacity.min(PFNS_MAX + 1).next_multiple_of(PFNS_PER_L1);
        let words = place.words.addr().get();
        let window = Self { va: place.va, words, capacity, frames, owes_flush: false };
        let checked = window.check_size(len).map_err(WindowError::from);
        let built = checked.and_then(|()| window.build(guest, list).map_err(WindowError::from));
        if let Err(error) = built.and_then(|()| window.link_root(guest, batch)) {
            let value = match error.undo {
                Ok(()) => Ok(window.frames),
                Err(_) => Err(window.frames.into()),
            };
            return Err(Refused { value, error });
        }
        // SAFETY: the caller says that the words are there. The old ones are mapped in this place.
        let list = unsafe { List::growing(place.words, len, capacity) };
        // SAFETY: the rest of the last page is mapped with it, and the caller gives it.
        unsafe { list.clear_tail(LEAF_WORDS) };
        Ok((P2m { list }, window))
    }

    /// Checks that the window begins at a root slot, has the frames for a map of `len` pfns, and
    /// room for it.
    fn check_size(&self, len: u64) -> Result<(), ListError> {
        let (needed, given) = (Self::frames_needed(len, self.capacity), self.frames.count());
        if given != needed {
            return Err(ListError::Frames { needed, given });
        }
        if !self.va.raw().is_multiple_of(1 << Level::L4.shift()) {
            return Err(ListError::Unaligned(self.va));
        }
        if self.capacity > PFNS_MAX || len > self.capacity {
            let (pfns, capacity) = (len.max(self.capacity), self.capacity.min(PFNS_MAX));
            return Err(ListError::Capacity { pfns, capacity });
        }
        Ok(())
    }

    /// Fills every table and shared page, all of them loose.
    fn build<M: Machine>(&self, guest: &Guest<'_, M>, list: BuilderList) -> Result<(), ListError> {
        let (machine, len) = (guest.machine(), guest.p2m().len());
        self.refill_holes(machine)?;
        let mfn = |at| guest.mfn(self.pfn(at));
        let [read_only, writable] =
            [PteFlags::KERNEL_RO, PteFlags::KERNEL_RW].map(|flags| machine.offered(flags));
        let absent = Pte::new(mfn(place::ABSENT_LEAF)?, read_only);
        let identity = Pte::new(mfn(place::IDENTITY_LEAF)?, read_only);
        fill_table(machine, self.pfn(place::ABSENT_L1), |_| Ok(absent))?;
        fill_table(machine, self.pfn(place::IDENTITY_L1), |_| Ok(identity))?;
        let (leaves, tables) = (len.div_ceil(LEAF_WORDS), len.div_ceil(PFNS_PER_L1));
        for gib in 0..tables {
            fill_table(machine, self.pfn(self.first_l1() + gib), |at| {
                let leaf = gib * TABLE_ENTRIES + at;
                Ok(match leaf < leaves {
                    true => Pte::new(list.leaf(guest, leaf)?, writable),
                    false => absent,
                })
            })?;
        }
        for l2 in 0..self.l2_tables() {
            fill_table(machine, self.pfn(place::L2 + l2), |at| {
                let gib = l2 * TABLE_ENTRIES + at;
                Ok(match gib < tables {
                    true => Pte::new(mfn(self.first_l1() + gib)?, PteFlags::TABLE),
                    false => Pte::ABSENT,
                })
            })?;
        }
        fill_table(machine, self.pfn(place::L3), |at| {
            Ok(match at < self.l2_tables() {
                true => Pte::new(mfn(place::L2 + at)?, PteFlags::TABLE),
                false => Pte::ABSENT,
            })
        })
    }

    /// Protects every table, pins the one that all absent GiB share, and links the L3. The pin
    /// keeps that table validated while no GiB leads to it. Linking it for the next GiB then costs
    /// a fiftieth of validating its 512 entries again.
    fn link_root<M: Machine>(
        &self,
        guest: &Guest<'_, M>,
        batch: &mut Batch<'_>,
    ) -> Result<(), WindowError> {
        protect(guest, self.tables(), Access::ReadOnly, batch)
            .map_err(|stopped| unprotect(guest, self.tables(), stopped, batch))?;
        self.link_l3(guest, batch).map_err(|WindowError { failure, undo }| {
            if undo.is_err() {
                return WindowError { failure, undo };
            }
            let done = self.tables().count() as u64;
            unprotect(guest, self.tables(), Stopped { done, failure, undo }, batch)
        })
    }

    fn link_l3<M: Machine>(
        &self,
        guest: &Guest<'_, M>,
        batch: &mut Batch<'_>,
    ) -> Result<(), WindowError> {
        let slot = guest.slot(guest.kernel_root(), Level::L4.index_of(self.va))?;
        let l3 = Pte::new(guest.mfn(self.pfn(place::L3))?, PteFlags::TABLE);
        let absent = guest.mfn(self.pfn(place::ABSENT_L1))?;
        batch.clear();
        batch.op(MmuExtOp::pin(Level::L1, absent)).map_err(ListError::from)?;
        batch.update(MmuUpdate::set(slot, l3), 0).map_err(ListError::from)?;
        let refused = |error| ListError::Refused { pfn: Pfn::new(0), error };
        // SAFETY: the slot is the window's by the caller's word, and so are the tables (I-9).
        let Err(error) = (unsafe { batch.submit(guest.machine()) }) else { return Ok(()) };
        // Xen goes on behind a refused pin, and a pin stays after a refused link.
        let pinned = batch.applied().any(|element| matches!(element, Element::Op(_)));
        batch.invert();
        let unpin = match pinned {
            true => batch.op(MmuExtOp::unpin(absent)).map_err(ListError::from),
            false => Ok(()),
        };
        // SAFETY: as above.
        let undone = unsafe { batch.submit(guest.machine()) }.map_err(refused);
        Err(WindowError { failure: refused(error), undo: unpin.and(undone) })
    }

    /// Returns the tables of the run.
    fn tables(&self) -> impl Iterator<Item = Pfn> {
        let is_table = |at: &u64| !matches!(*at, place::ABSENT_LEAF | place::IDENTITY_LEAF);
        (0..self.frames.count()).filter(is_table).map(|at| self.pfn(at))
    }

    /// Returns the address of the window.
    #[must_use]
    pub const fn va(&self) -> GuestVa {
        self.va
    }

    /// Fills the shared pages again after a restore, in which the toolstack wrote plain absent
    /// words into them. Identity words in pages of their own are lost as well: set them again
    /// ([`P2m::set_identity`]).
    ///
    /// # Errors
    /// The pages cannot be written.
    pub fn refill_holes<M: FrameAccess>(&self, machine: &M) -> Result<(), AccessError> {
        fill_leaf(machine, self.pfn(place::ABSENT_LEAF), SHARED_ABSENT)?;
        fill_leaf(machine, self.pfn(place::IDENTITY_LEAF), SHARED_IDENTITY)
    }

    /// Returns the frame at this place of the run.
    const fn pfn(&self, at: u64) -> Pfn {
        Pfn::new(self.frames.start().raw() + at)
    }

    const fn l2_tables(&self) -> u64 {
        self.capacity.div_ceil(PFNS_PER_L2)
    }

    /// Returns the place of the builder's first L1 table.
    const fn first_l1(&self) -> u64 {
        place::L2 + self.l2_tables()
    }

    /// Returns the L2 entry for a GiB: table and index.
    fn l2_entry(&self, gib: u64) -> (Pfn, PageTableIndex) {
        (self.pfn(place::L2 + gib / TABLE_ENTRIES), index(gib))
    }

    /// Returns the L1 table of a GiB.
    fn l1<M: FrameAccess>(&self, guest: &Guest<'_, M>, gib: u64) -> Result<L1, ListError> {
        let (table, at) = self.l2_entry(gib);
        let Entry::Table(mfn) = guest.machine().read_entry(table, at)?.decode(Level::L2) else {
            return Ok(L1::Missing);
        };
        let pfn = guest.pfn(mfn)?;
        Ok(match pfn {
            _ if pfn == self.pfn(place::ABSENT_L1) => L1::Shared(Hole::Absent),
            _ if pfn == self.pfn(place::IDENTITY_L1) => L1::Shared(Hole::Identity),
            _ => L1::Own(pfn),
        })
    }

    /// Returns the kind of shared leaf that an L1 entry leads to, if it does.
    fn hole(&self, p2m: &P2m<'_>, pte: Pte) -> Result<Option<Hole>, P2mError> {
        Ok(match pte.mfn() {
            mfn if mfn == p2m.mfn(self.pfn(place::ABSENT_LEAF))? => Some(Hole::Absent),
            mfn if mfn == p2m.mfn(self.pfn(place::IDENTITY_LEAF))? => Some(Hole::Identity),
            _ => None,
        })
    }
}

/// What the L2 entry of a GiB leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum L1 {
    /// Nothing: the map ends before it.
    Missing,
    /// The table that all such holes share.
    Shared(Hole),
    /// A table of its own.
    Own(Pfn),
}

/// The kind of a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hole {
    Absent,
    Identity,
}

fn index(number: u64) -> PageTableIndex {
    PageTableIndex::new_truncate((number % TABLE_ENTRIES) as u16)
}

// SAFETY: the entries are those of the window's own tables (I-9).
unsafe impl Leaves for Window {
    fn leaf<M: FrameAccess>(&self, guest: &Guest<'_, M>, leaf: u64) -> Result<Mfn, P2mError> {
        let len = guest.p2m().len();
        let missing = P2mError::OutOfRange { pfn: Pfn::new(leaf.saturating_mul(LEAF_WORDS)), len };
        let gib = leaf / TABLE_ENTRIES;
        if gib >= self.capacity / PFNS_PER_L1 {
            return Err(missing);
        }
        let table = match self.l1(guest, gib) {
            Ok(L1::Own(table)) => table,
            Ok(L1::Shared(Hole::Absent)) => self.pfn(place::ABSENT_L1),
            Ok(L1::Shared(Hole::Identity)) => self.pfn(place::IDENTITY_L1),
            Ok(L1::Missing) => return Err(missing),
            Err(ListError::P2m(error)) => return Err(error),
            Err(_) => return Err(missing),
        };
        guest.machine().read_entry(table, index(leaf)).map(Pte::mfn).map_err(|_| missing)
    }
}
