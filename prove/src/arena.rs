//! The frames that operations work on, and what they are called in the record.

use hypercall::{Entry, Level, Mfn, Pfn, Pte, PteFlags, Slot};

use crate::trusted::Trusted;

/// Most frames of an arena: places beyond stand for frames that are not in it.
pub const FRAMES_MAX: usize = 240;

/// A frame, and the entry that maps it at its own address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaFrame {
    /// The page.
    pub pfn: Pfn,
    /// The frame that is behind it now.
    pub mfn: Mfn,
    /// The entry of the direct mapping.
    pub slot: Slot,
    /// The page that the slot's table is.
    pub table: Pfn,
}

/// What entries that are not present may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Garbage {
    /// Anything.
    Any,
    /// No address: on some CPUs Xen takes a domU with addresses in absent entries for an attacker
    /// (L1TF).
    NoAddress,
}

/// What to work on.
#[derive(Debug)]
pub struct Arena<'a> {
    /// The frames, at most [`FRAMES_MAX`], each mapped writable.
    pub frames: &'a mut [ArenaFrame],
    /// A frame of somebody else's: one of M2P serves (`XENMEM_machphys_mfn_list`).
    pub foreign: Mfn,
    /// What absent entries may hold.
    pub garbage: Garbage,
}

/// A device's memory on every PC: the VGA text buffer.
const DEVICE: Mfn = Mfn::new(0xb8);
/// The frame number of all ones.
const NO_FRAME: Mfn = Mfn::new(0xff_ffff_ffff);

/// Targets beyond the arena.
const FOREIGN_PLACE: usize = 255;
const DEVICE_PLACE: usize = 254;

/// Bits that the CPU sets in entries it walks.
const CPU_BITS: PteFlags = PteFlags::ACCESSED.union(PteFlags::DIRTY);

/// What Xen sets and nobody can foretell in its part of an L4.
pub(crate) const XEN_SLOTS: core::ops::RangeInclusive<u16> = 256..=271;

impl Arena<'_> {
    /// The frame that a place stands for. Places wrap around, but for the last few.
    pub(crate) fn target(&self, place: u8) -> Mfn {
        let place = usize::from(place);
        match place {
            FOREIGN_PLACE => self.foreign,
            DEVICE_PLACE => DEVICE,
            FRAMES_MAX.. => NO_FRAME,
            _ => self.frames[place % self.frames.len()].mfn,
        }
    }

    /// The arena frame of a place.
    pub(crate) fn frame(&self, place: u8) -> ArenaFrame {
        self.frames[usize::from(place) % self.frames.len()]
    }

    /// An entry for a place.
    pub(crate) fn entry(&self, place: u8, flags: u64) -> Pte {
        let flags = PteFlags::from_bits_retain(flags & !hypercall::ADDRESS_MASK);
        let absent = !flags.contains(PteFlags::PRESENT);
        if absent && self.garbage == Garbage::NoAddress {
            return Pte::from_raw(flags.bits());
        }
        Pte::new(self.target(place), flags)
    }

    /// An entry in the arena's terms: its flags, and the place of its frame.
    pub(crate) fn name(&self, entry: Pte) -> u64 {
        let mfn = entry.mfn();
        let place = if mfn == self.foreign {
            FOREIGN_PLACE as u64
        } else {
            let known = self.frames.iter().position(|frame| frame.mfn == mfn);
            // Whatever is no frame of the arena is a number that the generator chose.
            known.map_or(0x1_0000 + mfn.raw(), |place| place as u64)
        };
        entry.flags().bits() ^ place << 12
    }

    /// The entry that maps a frame at its own address, in the arena's terms.
    pub(crate) fn direct_name(&self, place: u8, entry: Pte) -> u64 {
        let own = entry.mfn() == self.frame(place).mfn;
        let flags = entry.flags().difference(CPU_BITS).bits();
        flags | u64::from(own) << 12
    }

    /// How a frame is mapped at its own address.
    pub(crate) fn direct(&self, machine: &Trusted<'_>, place: u8) -> Option<Pte> {
        let frame = self.frame(place);
        let entry = machine.read_entry(frame.table, frame.slot.index).ok()?;
        match entry.decode(Level::L1) {
            Entry::Leaf(mfn) if mfn == frame.mfn => Some(entry),
            Entry::Leaf(_) | Entry::Table(_) | Entry::Absent => None,
        }
    }
}
