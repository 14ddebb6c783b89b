//! Address spaces under construction: plain stores into frames that nobody else sees.
#![expect(
    unsafe_code,
    reason = "stores into loose tables; I-4 and I-5 say that nobody else uses them"
)]

use core::marker::PhantomData;

use hypercall::{
    ENTRIES, Entry, Frame, FrameAccess, GuestVa, Level, Machine, PAGE_SIZE, Pfn, Pte, PteFlags,
    XEN_SLOTS,
};
use x86_64::structures::paging::PageTableIndex;

use crate::context::Context;
use crate::error::{MapError, MapFailed, WalkError};
use crate::pgd::{Loose, Pgd};
use crate::tables::{TableSource, USER_SLOTS};
use crate::walk::walk;

impl Pgd<Loose> {
    /// An address space whose user half is empty and whose kernel half is that of the running root.
    ///
    /// # Errors
    /// [`MapError::OutOfTables`], or [`MapError::Walk`] if a table cannot be read or written; the
    /// frame taken is given back.
    ///
    /// # Hypercalls
    /// None.
    pub fn new<M: Machine>(
        context: &Context<'_, M>,
        tables: &mut impl TableSource,
    ) -> Result<Self, MapError> {
        let root = tables.take().ok_or(MapError::OutOfTables)?;
        match fill_root(context, &root) {
            // INVARIANT: I-4 and I-5 hold for a root whose user half is empty.
            Ok(()) => Ok(Self { root, state: PhantomData }),
            Err(error) => {
                tables.give(root);
                Err(error.into())
            }
        }
    }

    /// Maps `frame` at `va` in the user half, taking the tables that are missing from `tables`.
    ///
    /// # Errors
    /// [`MapFailed`] with the frame and the reason: [`MapError::KernelHalf`],
    /// [`MapError::Unaligned`], [`MapError::Flags`] without PRESENT, [`MapError::Occupied`],
    /// [`MapError::OutOfTables`], [`MapError::Walk`]. Nothing has changed then.
    ///
    /// # Hypercalls
    /// None.
    pub fn map<M: Machine>(
        &mut self,
        context: &Context<'_, M>,
        (va, flags): (GuestVa, PteFlags),
        frame: Frame,
        tables: &mut impl TableSource,
    ) -> Result<(), MapFailed> {
        match self.try_map(context, (va, flags), frame.pfn(), tables) {
            Ok(()) => Ok(()),
            Err(error) => Err(MapFailed { frame, error }),
        }
    }

    fn try_map<M: Machine>(
        &mut self,
        context: &Context<'_, M>,
        (va, flags): (GuestVa, PteFlags),
        pfn: Pfn,
        tables: &mut impl TableSource,
    ) -> Result<(), MapError> {
        check_page(va)?;
        check_flags(flags)?;
        let leaf = Pte::new(context.p2m.mfn(pfn)?, flags);
        let path = walk(context, self.root(), va)?;
        let last = path.last().ok_or(MapError::NotMapped(va))?;
        if last.pte.is_present() {
            return Err(MapError::Occupied { va, pte: last.pte });
        }
        let fresh = Fresh::take(context, last.level, tables)?;
        match fresh.link(context, va, leaf) {
            // The one store that makes the change visible to the tree comes last.
            Ok(top) => match store(context, last.table, last.level.index_of(va), top) {
                Ok(()) => Ok(()),
                Err(error) => Err(fresh.give_back(tables, error)),
            },
            Err(error) => Err(fresh.give_back(tables, error)),
        }
    }

    /// Takes the address space apart: hands every frame that it maps as the guest's own to
    /// `mapped`, and every table to `tables`.
    ///
    /// # Errors
    /// If a table cannot be read, the address space comes back with what is still in it.
    ///
    /// # Hypercalls
    /// None.
    pub fn destroy<M: Machine>(
        self,
        context: &Context<'_, M>,
        tables: &mut impl TableSource,
        mapped: &mut impl FnMut(Frame),
    ) -> Result<(), (Self, WalkError)> {
        match empty(context, Level::L4, self.root(), (tables, mapped)) {
            Ok(()) => {
                tables.give(self.root);
                Ok(())
            }
            Err(error) => Err((self, error)),
        }
    }
}

/// New tables for one mapping, not yet linked: at most one for each of the levels 1 to 3.
#[derive(Default)]
struct Fresh {
    frames: [Option<Frame>; 3],
}

impl Fresh {
    /// Takes an empty table for each level below `level`, or none at all.
    fn take<M: Machine>(
        context: &Context<'_, M>,
        level: Level,
        tables: &mut impl TableSource,
    ) -> Result<Self, MapError> {
        let mut fresh = Self::default();
        for place in &mut fresh.frames[..level as usize - 1] {
            *place = tables.take();
            let cleared = match place {
                Some(frame) => clear(context, frame).map_err(MapError::from),
                None => Err(MapError::OutOfTables),
            };
            if let Err(error) = cleared {
                return Err(fresh.give_back(tables, error));
            }
        }
        Ok(fresh)
    }

    /// Chains the tables down to `leaf`; the entry for the first of them, or `leaf` itself if there
    /// is none.
    fn link<M: Machine>(
        &self,
        context: &Context<'_, M>,
        va: GuestVa,
        leaf: Pte,
    ) -> Result<Pte, MapError> {
        let mut entry = leaf;
        for (frame, level) in self.frames.iter().flatten().zip([Level::L1, Level::L2, Level::L3]) {
            store(context, frame.pfn(), level.index_of(va), entry)?;
            entry = Pte::new(context.p2m.mfn(frame.pfn())?, PteFlags::TABLE);
        }
        Ok(entry)
    }

    fn give_back(self, tables: &mut impl TableSource, error: impl Into<MapError>) -> MapError {
        self.frames.into_iter().flatten().for_each(|frame| tables.give(frame));
        error.into()
    }
}

/// Checks that `va` is the first address of a page in the user half.
pub(crate) fn check_page(va: GuestVa) -> Result<(), MapError> {
    if !USER_SLOTS.contains(&u16::from(Level::L4.index_of(va))) {
        Err(MapError::KernelHalf(va))
    } else if !va.is_page_aligned() {
        Err(MapError::Unaligned(va))
    } else {
        Ok(())
    }
}

/// Checks that `flags` make an entry that maps something.
pub(crate) fn check_flags(flags: PteFlags) -> Result<(), MapError> {
    if flags.contains(PteFlags::PRESENT) { Ok(()) } else { Err(MapError::Flags(flags.bits())) }
}

fn store<M: FrameAccess>(
    context: &Context<'_, M>,
    table: Pfn,
    index: PageTableIndex,
    pte: Pte,
) -> Result<(), WalkError> {
    // SAFETY: the table is part of a loose tree, or not yet part of one: I-4 and I-5.
    Ok(unsafe { context.machine.write_entry(table, index, pte) }?)
}

fn clear<M: FrameAccess>(context: &Context<'_, M>, frame: &Frame) -> Result<(), WalkError> {
    // SAFETY: the token says that nobody else uses the frame (I-1).
    Ok(unsafe { context.machine.write_bytes(frame.pfn(), 0, &[0; PAGE_SIZE]) }?)
}

fn fill_root<M: Machine>(context: &Context<'_, M>, root: &Frame) -> Result<(), WalkError> {
    clear(context, root)?;
    let kernel_slots = XEN_SLOTS.end() + 1..ENTRIES;
    for index in kernel_slots.map(PageTableIndex::new_truncate) {
        let pte = context.machine.read_entry(context.kernel_root, index)?;
        if pte.is_present() {
            store(context, root.pfn(), index, pte)?;
        }
    }
    Ok(())
}

/// Empties the table in frame `table`, clearing each entry before what it led to is handed on.
fn empty<M: Machine, T: TableSource, F: FnMut(Frame)>(
    context: &Context<'_, M>,
    level: Level,
    table: Pfn,
    (tables, mapped): (&mut T, &mut F),
) -> Result<(), WalkError> {
    let slots = if level == Level::L4 { USER_SLOTS } else { 0..ENTRIES };
    for index in slots.map(PageTableIndex::new_truncate) {
        let entry = context.machine.read_entry(table, index)?.decode(level);
        let (Entry::Table(mfn) | Entry::Leaf(mfn)) = entry else { continue };
        let pfn = context.p2m.pfn(context.machine, mfn)?;
        if let (Entry::Table(_), Some(below)) = (entry, level.below()) {
            empty(context, below, pfn, (&mut *tables, &mut *mapped))?;
        }
        store(context, table, index, Pte::ABSENT)?;
        // SAFETY: I-4: the entry that has just been cleared was the only owner.
        let frame = unsafe { Frame::claim(pfn) };
        match entry {
            Entry::Table(_) => tables.give(frame),
            _ => mapped(frame),
        }
    }
    Ok(())
}
