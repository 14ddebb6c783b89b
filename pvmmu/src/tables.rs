//! Which tables a tree has.

use hypercall::{ENTRIES, Entry, FrameAccess, Level, Pfn, Pte};
use x86_64::structures::paging::PageTableIndex;

use crate::context::Context;
use crate::error::WalkError;

/// Slots of a root that are an address space's own.
pub(crate) const USER_SLOTS: core::ops::Range<u16> = 0..256;

/// Slots of a table of `level` that an address space may own.
pub(crate) const fn own_slots(level: Level) -> core::ops::Range<u16> {
    match level {
        Level::L4 => USER_SLOTS,
        _ => 0..ENTRIES,
    }
}

/// Entries read at a time.
const CHUNK: u16 = 64;

/// The present entries of a table from index `next` on: reads a chunk at a time.
pub(crate) struct Present {
    table: Pfn,
    chunk: [Pte; CHUNK as usize],
    /// First index of the chunk, and how many entries it holds.
    held: (u16, u16),
    next: u16,
    end: u16,
}

impl Present {
    /// All present entries among the own slots of a table of `level`.
    pub(crate) fn of(level: Level, table: Pfn) -> Self {
        let slots = own_slots(level);
        Self {
            table,
            chunk: [Pte::ABSENT; CHUNK as usize],
            held: (0, 0),
            next: slots.start,
            end: slots.end,
        }
    }

    /// The next one. What a chunk holds is what stood there when it was read.
    pub(crate) fn next<M: FrameAccess>(
        &mut self,
        context: &Context<'_, M>,
    ) -> Result<Option<(PageTableIndex, Pte)>, WalkError> {
        while self.next < self.end {
            let (first, count) = self.held;
            if self.next >= first + count {
                let count = (self.end - self.next).min(CHUNK);
                let into = &mut self.chunk[..usize::from(count)];
                let index = PageTableIndex::new_truncate(self.next);
                context.machine.read_entries(self.table, index, into)?;
                self.held = (self.next, count);
            }
            let rest = &self.chunk[usize::from(self.next - self.held.0)..usize::from(self.held.1)];
            match rest.iter().position(|pte| pte.is_present()) {
                Some(gap) => {
                    let at = self.next + u16::try_from(gap).unwrap_or(ENTRIES);
                    self.next = at + 1;
                    return Ok(Some((PageTableIndex::new_truncate(at), rest[gap])));
                }
                None => self.next = self.held.0 + self.held.1,
            }
        }
        Ok(None)
    }
}

/// A table of a tree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    pub(crate) level: Level,
    pub(crate) pfn: Pfn,
}

/// Calls `f` for every table of the tree under `root`, lower ones first, the root last, until `f` answers false.
/// Tables of the kernel half belong to others and are left out.
pub(crate) fn visit<M: FrameAccess, E: From<WalkError>>(
    context: &Context<'_, M>,
    root: Pfn,
    f: &mut impl FnMut(Table) -> Result<bool, E>,
) -> Result<bool, E> {
    visit_below(context, Table { level: Level::L4, pfn: root }, f)
}

fn visit_below<M: FrameAccess, E: From<WalkError>>(
    context: &Context<'_, M>,
    table: Table,
    f: &mut impl FnMut(Table) -> Result<bool, E>,
) -> Result<bool, E> {
    if let Some(level) = table.level.below() {
        let mut present = Present::of(table.level, table.pfn);
        while let Some((_, pte)) = present.next(context)? {
            let Entry::Table(mfn) = pte.decode(table.level) else { continue };
            let pfn = context.p2m.pfn(context.machine, mfn).map_err(WalkError::from)?;
            if !visit_below(context, Table { level, pfn }, f)? {
                return Ok(false);
            }
        }
    }
    f(table)
}
