//! Page tables as frames: where they come from and go to, and which ones a tree has.

use hypercall::{ENTRIES, Entry, Frame, FrameAccess, Level, Pfn};
use x86_64::structures::paging::PageTableIndex;

use crate::context::Context;
use crate::error::WalkError;

/// Hands out frames for page tables and takes them back. A frame handed out must be in the direct
/// mapping, mapped there writable; what is in it does not matter.
pub trait TableSource {
    /// A frame, if there is one.
    fn take(&mut self) -> Option<Frame>;

    /// Takes a frame back. It is writable again, and holds what was last in the table.
    fn give(&mut self, frame: Frame);
}

/// A stack of frames in the caller's memory.
#[derive(Debug)]
pub struct FrameStack<'s> {
    slots: &'s mut [Option<Frame>],
    used: usize,
}

impl<'s> FrameStack<'s> {
    /// An empty stack for as many frames as `slots` has places. What is in them already is dropped.
    pub fn new(slots: &'s mut [Option<Frame>]) -> Self {
        slots.fill_with(|| None);
        Self { slots, used: 0 }
    }

    /// Frames on the stack.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.used
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Puts a frame on the stack.
    ///
    /// # Errors
    /// The frame, if there is no place for it.
    pub fn push(&mut self, frame: Frame) -> Result<(), Frame> {
        match self.slots.get_mut(self.used) {
            Some(slot) => {
                *slot = Some(frame);
                self.used += 1;
                Ok(())
            }
            None => Err(frame),
        }
    }
}

impl TableSource for FrameStack<'_> {
    fn take(&mut self) -> Option<Frame> {
        self.used = self.used.checked_sub(1)?;
        self.slots[self.used].take()
    }

    /// A frame too many is dropped, and so lost to the guest: give a stack back only what it handed
    /// out.
    fn give(&mut self, frame: Frame) {
        if let Err(lost) = self.push(frame) {
            log::error!("no place for {lost:?} on the stack of table frames: it is lost");
        }
    }
}

/// Slots of a root that are an address space's own.
pub(crate) const USER_SLOTS: core::ops::Range<u16> = 0..256;

const ALL_SLOTS: core::ops::Range<u16> = 0..ENTRIES;

/// Calls `f` for every table of the tree under `root`, lower ones first, the root last, until `f`
/// answers false. Tables of the kernel half belong to others and are left out.
pub(crate) fn visit<M: FrameAccess, E: From<WalkError>>(
    context: &Context<'_, M>,
    root: Pfn,
    f: &mut impl FnMut(Level, Pfn) -> Result<bool, E>,
) -> Result<bool, E> {
    visit_below(context, Level::L4, root, f)
}

fn visit_below<M: FrameAccess, E: From<WalkError>>(
    context: &Context<'_, M>,
    level: Level,
    table: Pfn,
    f: &mut impl FnMut(Level, Pfn) -> Result<bool, E>,
) -> Result<bool, E> {
    if let Some(below) = level.below() {
        let slots = if level == Level::L4 { USER_SLOTS } else { ALL_SLOTS };
        for index in slots.map(PageTableIndex::new_truncate) {
            let pte = context.machine.read_entry(table, index).map_err(WalkError::from)?;
            let Entry::Table(mfn) = pte.decode(level) else { continue };
            let pfn = context.p2m.pfn(context.machine, mfn).map_err(WalkError::from)?;
            if !visit_below(context, below, pfn, f)? {
                return Ok(false);
            }
        }
    }
    f(level, table)
}
