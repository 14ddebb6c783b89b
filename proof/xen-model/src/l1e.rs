//! Entries of L1 tables: the rules by which a guest may map a page.
//!
//! Sections 3.1 to 3.3, 3.6 and 3.7 of the specification. The same rules serve promotion,
//! `mmu_update`, `update_va_mapping`, grants and emulated writes.

use hypercall::{Errno, Level, Mfn, PAGE_SHIFT, Pte, PteFlags};

use crate::cpu_features::SelfSnoop;
use crate::log::File;
use crate::page::{DOM_IO, NOBODY};
use crate::release::{Flavour, Release};
use crate::state::{Answer, State};
use crate::types::{CountFlags, PageType, TypeFlags};

pub(crate) const PRESENT: u64 = PteFlags::PRESENT.bits();
pub(crate) const RW: u64 = PteFlags::WRITABLE.bits();
pub(crate) const USER: u64 = PteFlags::USER.bits();
pub(crate) const ACCESSED: u64 = PteFlags::ACCESSED.bits();
pub(crate) const DIRTY: u64 = PteFlags::DIRTY.bits();
pub(crate) const GLOBAL: u64 = PteFlags::GLOBAL.bits();
pub(crate) const KERNEL: u64 = PteFlags::GUEST_KERNEL.bits();
pub(crate) const GRANT: u64 = PteFlags::GRANT.bits();
const PWT: u64 = PteFlags::PWT.bits();
const PCD: u64 = PteFlags::PCD.bits();
const PAT: u64 = PteFlags::PAT_OR_PSE.bits();
const CACHE: u64 = PWT | PCD | PAT;

/// The bits in which a live entry may change without its frame being looked at
/// (`FASTPATH_FLAG_WHITELIST`): USER, A, D, GLOBAL, the available bits and NX.
const HARMLESS: u64 = 0xfff0_0000_0000_0f64;

/// The widest frame number that dom0 may map: a CPU with 46 address bits.
const IO_FRAMES_END: u64 = 1 << (46 - 12);

/// The local APIC, which Xen keeps even from dom0 (`dom0_setup_permissions`).
const LOCAL_APIC: u64 = 0xfee00;
/// The window for messages of interrupts, which it keeps too, up to 4.17.
const MESSAGES: core::ops::RangeInclusive<u64> = LOCAL_APIC..=0xfeeff;
/// The IO-APIC, which dom0 may map, and gets read-only whatever it asks for (`mmio_ro_ranges`).
const READ_ONLY: u64 = 0xfec00;

/// The frame of an entry.
pub(crate) const fn frame_of(entry: u64) -> Mfn {
    Pte::from_raw(entry).mfn()
}

/// The flags of an entry in Xen's 24-bit form: bits 11:0, and 63:52 above them.
pub(crate) const fn flags24(entry: u64) -> u64 {
    (entry & 0xfff) | (entry >> 52) << 12
}

/// Whether an update changes nothing that references depend on.
pub(crate) const fn is_harmless(old: u64, new: u64) -> bool {
    old & new & PRESENT != 0 && (old ^ new) & !HARMLESS == 0
}

/// Whose table an entry is in, and whose frame it may map (`l1e_owner`, `pg_owner`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owners {
    pub(crate) table: u16,
    pub(crate) frame: u16,
}

impl Owners {
    /// Own frames in own tables.
    pub(crate) const fn own(domain: u16) -> Self {
        Self { table: domain, frame: domain }
    }
}

impl State {
    /// The flags that an L1 entry of `domain` may not have (`l1_disallow_mask`), of those in
    /// `entry`.
    fn bad_l1_flags(&self, entry: u64, domain: u16) -> u64 {
        let privileged = self.find(domain).is_some_and(crate::domain::Domain::is_privileged);
        let cache = if privileged { 0 } else { CACHE };
        let mut refused = cache | self.no_execute.refused();
        if self.flavour == Flavour::Debug {
            refused |= GRANT;
        }
        flags24(entry & refused)
    }

    /// Refuses flags, with a line that names them.
    pub(crate) fn refuse_flags(&mut self, level: Level, flags: u64) -> Answer {
        if flags == 0 {
            return Ok(());
        }
        if self.release == Release::V4_20 {
            self.say(format_args!("Bad {level} flags {flags:#x}"));
        } else {
            self.say(format_args!("Bad {level} flags {flags:x}"));
        }
        Err(Errno::EINVAL)
    }

    /// What Xen makes of a present L1 entry before it stores it (`adjust_guest_l1e`).
    pub(crate) fn adjust_l1e(&mut self, entry: u64) -> u64 {
        if entry & PRESENT == 0 {
            return entry;
        }
        if entry & KERNEL != 0 && entry & USER != 0 {
            if entry & GLOBAL != 0 {
                let frame = frame_of(entry).raw();
                let text = format_args!("Global bit is set in kernel page {frame:x}");
                self.say_in(File::PvMmHeader, text);
            }
            return entry;
        }
        if entry & USER == 0 { entry | USER | KERNEL } else { entry | GLOBAL }
    }

    /// Takes what a present entry holds of its frame, and answers the entry's bits that Xen inverts
    /// (`get_page_from_l1e`).
    pub(crate) fn get_page_from_l1e(&mut self, entry: u64, owners: Owners) -> Answer<u64> {
        self.refuse_flags(Level::L1, self.bad_l1_flags(entry, owners.table))?;
        let mfn = frame_of(entry);
        if !self.frames.is_ram(mfn) {
            return self.map_io(entry, owners);
        }
        let writable = entry & RW != 0;
        let page = self.frames.page(mfn);
        if page.owner == DOM_IO {
            return self.map_io(entry, owners);
        }
        let real_owner = if page.count.refs == 0 { NOBODY } else { page.owner };
        if real_owner != owners.frame && !self.acts_for(owners, real_owner) {
            self.explain_owners(owners, real_owner);
            return self.refuse_mapping(entry, owners);
        }
        let page = self.frames.page(mfn);
        page.count.refs += 1;
        if writable {
            // The common case first: the frame is writable already.
            let kind = &mut page.kind;
            if kind.kind == PageType::Writable && kind.is_validated() {
                kind.count += 1;
            } else if self.get_page_type(mfn, PageType::Writable).is_err() {
                self.say(format_args!("Could not get page type PGT_writable_page"));
                let refused = self.refuse_mapping(entry, owners);
                self.put_page(mfn);
                return refused;
            }
        }
        if entry & CACHE != 0 {
            self.map_uncached(entry, owners)?;
        }
        Ok(0)
    }

    /// Whether `owners.frame`, named by the caller for frames, may map those of `real_owner`.
    fn acts_for(&self, owners: Owners, real_owner: u16) -> bool {
        real_owner != NOBODY
            && owners.frame != owners.table
            && self.find(owners.frame).is_some_and(crate::domain::Domain::is_privileged)
    }

    #[cold]
    fn explain_owners(&mut self, owners: Owners, real_owner: u16) {
        let real_owner = if real_owner == NOBODY { -1 } else { i32::from(real_owner) };
        self.say(format_args!(
            "pg_owner d{} l1e_owner d{}, but real_pg_owner d{real_owner}",
            owners.frame, owners.table
        ));
    }

    #[cold]
    fn refuse_mapping(&mut self, entry: u64, owners: Owners) -> Answer<u64> {
        let mfn = frame_of(entry);
        let (number, pfn) = (self.number(mfn), self.m2p_number(mfn));
        self.say(format_args!(
            "Error getting mfn {number} (pfn {pfn}) from L1 entry {entry:016x} \
             for l1e_owner d{}, pg_owner d{}",
            owners.table, owners.frame
        ));
        Err(Errno::EBUSY)
    }

    /// A mapping of something that is no guest's RAM.
    #[cold]
    fn map_io(&mut self, entry: u64, owners: Owners) -> Answer<u64> {
        let frame = frame_of(entry).raw();
        let permitted = |state: &Self, id: u16| {
            state.find(id).is_some_and(crate::domain::Domain::is_privileged)
                && frame < IO_FRAMES_END
                && frame != LOCAL_APIC
                && !(state.release.before(Release::V4_20) && MESSAGES.contains(&frame))
        };
        let who = if owners.frame == DOM_IO { self.caller() } else { owners.frame };
        if !permitted(self, who) {
            if frame == Pte::ADDRESS_MASK >> PAGE_SHIFT {
                return Err(Errno::EINVAL);
            }
            self.say(format_args!("d{who} non-privileged attempt to map MMIO space {frame:05x}"));
            return Err(Errno::EPERM);
        }
        if owners.frame != owners.table && !permitted(self, owners.table) {
            let caller = self.caller();
            self.say(format_args!(
                "d{caller} attempted to map MMIO space {frame:05x} in d{} to d{who}",
                owners.table
            ));
            return Err(Errno::EPERM);
        }
        let cache = entry & CACHE;
        let write = if frame == READ_ONLY { entry & RW } else { 0 };
        Ok(write
            | match (self.release, cache) {
                (Release::V4_20, 0) => PWT | PCD,
                // Uncached, uncached minus and write-combining stay as they are.
                (Release::V4_20, _) if cache & PCD != 0 || cache == PAT => 0,
                (Release::V4_20, _) => cache ^ (PWT | PCD),
                (_, 0) => PWT | PCD,
                (_, PWT) => PCD,
                (_, other) if other == PWT | PAT => PCD | PAT,
                _ => 0,
            })
    }

    /// The rest for a mapping of RAM that is not write-back.
    #[cold]
    fn map_uncached(&mut self, entry: u64, owners: Owners) -> Answer {
        let mfn = frame_of(entry);
        let page = self.frames.page(mfn);
        if page.count.flags.contains(CountFlags::XEN_HEAP) {
            self.put_page_from_l1e(entry, owners.table);
            self.say(format_args!("Attempt to change cache attributes of Xen heap page"));
            return Err(Errno::EACCES);
        }
        let write_combining = entry & CACHE == PAT && entry & RW != 0;
        if write_combining && self.self_snoop == SelfSnoop::Absent {
            self.frames.page(mfn).kind.flags |= TypeFlags::NON_COHERENT;
        }
        Ok(())
    }

    /// Drops what an entry holds of its frame (`put_page_from_l1e`).
    pub(crate) fn put_page_from_l1e(&mut self, entry: u64, table_owner: u16) {
        if entry & PRESENT == 0 {
            return;
        }
        let mfn = frame_of(entry);
        if !self.frames.is_ram(mfn) {
            return;
        }
        let page = self.frames.page(mfn);
        if page.owner == DOM_IO {
            return;
        }
        let descriptors = page.kind.kind == PageType::SegDesc && page.kind.count > 0;
        if entry & GRANT != 0 && self.is_debug() {
            self.lost_grant(entry, table_owner);
        }
        if entry & RW != 0 {
            self.put_plain_page_and_type(mfn);
        } else {
            if descriptors && table_owner == self.caller() {
                self.forget_ldt_pages();
            }
            self.put_page(mfn);
        }
    }

    /// A grant entry goes that was not unmapped as one.
    #[cold]
    fn lost_grant(&mut self, entry: u64, table_owner: u16) {
        let owner = crate::log::Pd(self.frames.page(frame_of(entry)).owner);
        if self.release.before(Release::V4_17) {
            self.say_always(format_args!("Attempt to implicitly unmap a granted PTE {entry:016x}"));
            self.crash_domain(table_owner);
        } else {
            self.say_always(format_args!(
                "Attempt to implicitly unmap {owner}'s grant PTE {entry:016x}"
            ));
            if table_owner == self.caller() {
                self.inject_general_protection();
            }
        }
    }

    /// Changes an entry of a live L1 table (`mod_l1_entry`).
    pub(crate) fn mod_l1_entry(&mut self, place: Place, new: u64, owners: Owners) -> Answer {
        let old = self.frames.word(place.table, place.index);
        let keep = if place.keeps_accessed { old & (ACCESSED | DIRTY) } else { 0 };
        if new & PRESENT == 0 {
            self.frames.words(place.table)[place.index] = new | keep;
            self.put_page_from_l1e(old, owners.table);
            return Ok(());
        }
        self.refuse_flags(Level::L1, self.bad_l1_flags(new, owners.table))?;
        if is_harmless(old, new) {
            let new = self.adjust_l1e(new);
            self.frames.words(place.table)[place.index] = new | keep;
            return Ok(());
        }
        let mut new = new;
        if !self.release.before(Release::V4_17) {
            new = self.adjust_l1e(new);
        }
        new ^= self.get_page_from_l1e(new, owners)?;
        if self.release.before(Release::V4_17) {
            new = self.adjust_l1e(new);
        }
        self.frames.words(place.table)[place.index] = new | keep;
        self.put_page_from_l1e(old, owners.table);
        Ok(())
    }
}

/// An entry to be changed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) table: Mfn,
    pub(crate) index: usize,
    /// Whether accessed and dirty bits of the old entry stay (`MMU_PT_UPDATE_PRESERVE_AD`).
    pub(crate) keeps_accessed: bool,
}
