//! The frames that operations play with.

use alloc::vec::Vec;

use hypercall::{GuestVa, Mfn, PAGE_SHIFT, Pfn, Pte, PteFlags, Slot};
use x86_64::structures::paging::PageTableIndex;

use crate::op::{Value, Which};

/// The words of a frame that operations touch and observe. As slots of a root they lie on both
/// sides of Xen's own, of which three can be named (and are refused); those are never observed.
pub const SLOTS: [u16; 12] = [1, 2, 3, 7, 85, 255, 272, 300, 511, 256, 258, 271];

/// How many of [`SLOTS`] are observed.
pub(crate) const OBSERVED: usize = 9;

/// A frame number that no machine has: within the 40 bits of an entry, beyond every physical
/// address width.
const OUT_OF_RANGE: u64 = 0xff_0000_0000;

/// The all-ones frame of an entry.
const INVALID: u64 = 0xff_ffff_ffff;

/// A frame of the arena.
#[derive(Clone, Copy, Debug)]
pub struct ArenaFrame {
    /// The guest's name for it.
    pub pfn: Pfn,
    /// Its machine frame, which an exchange replaces.
    pub mfn: Mfn,
    /// The entry that maps it in the direct mapping.
    pub direct: Slot,
    /// Where that is.
    pub va: GuestVa,
}

/// Frames outside the arena that operations may point to.
#[derive(Clone, Copy, Debug)]
pub struct Landmarks {
    /// The guest's `shared_info`.
    pub shared_info: Mfn,
    /// The running root.
    pub running_root: Mfn,
    /// An L1 table under it.
    pub running_l1: Mfn,
}

/// The frames, and where they are.
#[derive(Clone, Debug)]
pub struct Arena {
    pub(crate) frames: Vec<ArenaFrame>,
    pub(crate) landmarks: Landmarks,
}

impl Arena {
    /// Creates an arena of up to 256 frames, each mapped writable in the direct mapping and nowhere
    /// else, and used by nobody.
    #[must_use]
    pub fn new(mut frames: Vec<ArenaFrame>, landmarks: Landmarks) -> Self {
        frames.truncate(256);
        Self { frames, landmarks }
    }

    /// Returns how many frames there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.frames.len()
    }

    /// Returns whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Returns the frames, with the machine frames that they have now.
    #[must_use]
    pub fn frames(&self) -> &[ArenaFrame] {
        &self.frames
    }

    /// Returns the frame that a number names; numbers wrap, so that any step fits any arena.
    pub(crate) fn frame(&self, number: u8) -> &ArenaFrame {
        &self.frames[usize::from(number) % self.frames.len()]
    }

    pub(crate) fn frame_mut(&mut self, number: u8) -> &mut ArenaFrame {
        let len = self.frames.len();
        &mut self.frames[usize::from(number) % len]
    }

    /// Returns the machine frame that `which` names.
    pub(crate) fn mfn(&self, which: Which) -> Mfn {
        match which {
            Which::Zero => Mfn::new(0),
            Which::Arena(number) => self.frame(number).mfn,
            Which::Invalid => Mfn::new(INVALID),
            Which::OutOfRange => Mfn::new(OUT_OF_RANGE),
            Which::SharedInfo => self.landmarks.shared_info,
            Which::RunningRoot => self.landmarks.running_root,
            Which::RunningL1 => self.landmarks.running_l1,
        }
    }

    /// Returns the entry that `value` stands for.
    pub(crate) fn pte(&self, value: Value) -> Pte {
        Pte::new(self.mfn(value.which), PteFlags::from_bits_retain(value.flags))
    }

    /// Returns the place of a word of the arena.
    pub(crate) fn slot(&self, frame: u8, slot: u8) -> Slot {
        Slot { table: self.frame(frame).mfn, index: index(slot) }
    }

    /// Returns the address of a word of the arena in the direct mapping.
    pub(crate) fn va(&self, frame: u8, slot: u8) -> GuestVa {
        let page = self.frame(frame).va.raw();
        // Inside a page that is the guest's.
        GuestVa::new(page + u64::from(index(slot)) * 8).unwrap_or(self.frame(frame).va)
    }

    /// Returns an entry in terms that do not depend on which machine frames the guest has.
    pub(crate) fn normal(&self, pte: Pte) -> u64 {
        let mfn = pte.mfn();
        let known =
            [self.landmarks.shared_info, self.landmarks.running_root, self.landmarks.running_l1];
        let frame = if let Some(at) = self.frames.iter().position(|frame| frame.mfn == mfn) {
            0x1000 + at as u64
        } else if let Some(at) = known.iter().position(|landmark| *landmark == mfn) {
            0x2000 + at as u64
        } else {
            mfn.raw()
        };
        pte.flags().bits() | frame << PAGE_SHIFT
    }
}

/// Returns the word that a slot number names; numbers wrap.
pub(crate) fn index(slot: u8) -> PageTableIndex {
    PageTableIndex::new_truncate(SLOTS[usize::from(slot) % SLOTS.len()])
}
