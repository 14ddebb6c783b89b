//! The direct mapping of table frames: read-only while they are tables, writable before and after.
#![expect(
    unsafe_code,
    reason = "submits changes of the direct mapping; the frames belong to the tree (I-4)"
)]

use hypercall::{Batch, Entry, Level, Machine, Mfn, MmuUpdate, Pfn, Pte};

use crate::error::PinFailure;
use crate::marks::{held, may_be_held};
use crate::pgd::Roots;
use crate::tables::Parts;
use p2m::{DirectMap, Guest};

/// How the direct mapping maps a table's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    ReadOnly,
    Writable,
}

impl Access {
    pub(crate) const fn apply(self, pte: Pte) -> Pte {
        match self {
            Self::ReadOnly => pte.read_only(),
            Self::Writable => pte.writable(),
        }
    }

    const fn opposite(self) -> Self {
        match self {
            Self::ReadOnly => Self::Writable,
            Self::Writable => Self::ReadOnly,
        }
    }
}

/// A change that stopped in the middle.
#[derive(Debug)]
pub(crate) struct Stopped {
    /// Tables that were changed.
    pub(crate) done: u64,
    pub(crate) failure: PinFailure,
}

/// Which tables of a tree change, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tables {
    /// The access wanted.
    pub(crate) access: Access,
    /// Tables below this level that are marked as pinned by themselves stay as they are.
    pub(crate) lowest: Level,
}

/// Maps the first `limit` tables of a tree as `tables` says, lower ones first, the roots last.
/// Returns how many there were. Makes one hypercall for each full batch, and one for the rest.
pub(crate) fn set_access<M: Machine>(
    guest: &Guest<'_, M>,
    roots: Roots,
    tables: Tables,
    limit: u64,
    batch: &mut Batch<'_>,
) -> Result<u64, Stopped> {
    batch.clear();
    let direct_map = DirectMap::default();
    let mut pass = Pass { guest, tables, left: limit, done: 0, batch, direct_map };
    match pass.roots(roots) {
        Ok(()) => Ok(pass.done),
        Err(failure) => {
            pass.batch.clear();
            Err(Stopped { done: pass.done, failure })
        }
    }
}

/// Entries that are read together.
const PART: usize = 64;

/// A change of the direct mapping of a tree's tables. It is most of a pin's cost to the guest, so
/// it visits each table once, in a loop without calls.
struct Pass<'a, 'b, 'c, M> {
    guest: &'a Guest<'c, M>,
    tables: Tables,
    /// Tables that may still change.
    left: u64,
    /// Tables that Xen has changed.
    done: u64,
    batch: &'a mut Batch<'b>,
    direct_map: DirectMap,
}

impl<M: Machine> Pass<'_, '_, '_, M> {
    fn roots(&mut self, roots: Roots) -> Result<(), PinFailure> {
        self.below(Level::L4, roots.kernel)?;
        for root in [Some(roots.kernel), roots.user].into_iter().flatten() {
            let mfn = self.guest.mfn(root)?;
            self.one(mfn)?;
        }
        submit(self.guest, self.batch, &mut self.done)
    }

    /// Visits all tables below `table`, lower ones first.
    fn below(&mut self, level: Level, table: Pfn) -> Result<(), PinFailure> {
        let Some(below) = level.below() else { return Ok(()) };
        let mut part = [Pte::ABSENT; PART];
        let mut parts = Parts::of(level, table);
        while parts.next(self.guest, &mut part)?.is_some() {
            for pte in &part {
                let Entry::Table(mfn) = pte.decode(level) else { continue };
                if below > Level::L1 {
                    let pfn = self.guest.p2m().pfn(self.guest.machine(), mfn)?;
                    self.below(below, pfn)?;
                }
                if !may_be_held(*pte) || !self.stays(*pte) {
                    self.one(mfn)?;
                }
            }
        }
        Ok(())
    }

    /// Returns whether the table behind `pte` is pinned by itself and stays so.
    fn stays(&self, pte: Pte) -> bool {
        held(pte).is_some_and(|held| held.level() < self.tables.lowest)
    }

    /// Visits one table, if any may still change.
    #[expect(clippy::inline_always, reason = "20 instructions of 130 are the call, else")]
    #[inline(always)]
    fn one(&mut self, table: Mfn) -> Result<(), PinFailure> {
        if self.left == 0 {
            return Ok(());
        }
        if self.batch.room() == 0 && !self.batch.is_empty() {
            submit(self.guest, self.batch, &mut self.done)?;
        }
        let (slot, pte) = self.direct_map.entry_of(self.guest, table)?;
        self.batch.update(MmuUpdate::set(slot, self.tables.access.apply(pte)), pte.raw())?;
        self.left -= 1;
        Ok(())
    }
}

/// Restores the access that the first `count` tables had before `set_access`.
pub(crate) fn undo<M: Machine>(
    guest: &Guest<'_, M>,
    roots: Roots,
    tables: Tables,
    count: u64,
    batch: &mut Batch<'_>,
) -> Result<(), PinFailure> {
    if count == 0 {
        return Ok(());
    }
    let before = Tables { access: tables.access.opposite(), ..tables };
    set_access(guest, roots, before, count, batch).map(drop).map_err(|stopped| stopped.failure)
}

fn submit<M: Machine>(
    guest: &Guest<'_, M>,
    batch: &mut Batch<'_>,
    done: &mut u64,
) -> Result<(), PinFailure> {
    let full = batch.updates();
    // SAFETY: the frames whose direct mapping changes are tables of this tree, and nobody else's
    // (I-4). No Rust reference leads into them.
    match unsafe { batch.submit(guest.machine()) } {
        Ok(()) => {
            *done += full as u64;
            Ok(())
        }
        Err(refused) => {
            *done += batch.applied().count() as u64;
            let error = refused.error;
            match batch.refused_update() {
                Some(update) => {
                    let mfn = Pte::from_raw(update.value()).mfn();
                    let table = guest.pfn(mfn)?;
                    Err(PinFailure::Protect { table, error })
                }
                None => Err(PinFailure::Call(error)),
            }
        }
    }
}
