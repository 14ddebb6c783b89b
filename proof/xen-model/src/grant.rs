//! Grants: frames that one domain lets another map (`grant_table_op`, 20).
//!
//! Section 4.8 of the specification: version 1 tables, host and device mappings by PV guests
//! (common/grant_table.c, arch/x86/pv/grant_table.c).

use hypercall::{Errno, Mfn, PAGE_SHIFT};

use crate::domain::Mapped;
use crate::page::WORDS;

use crate::l1e::{ACCESSED, DIRTY, GRANT, PRESENT, RW, USER, flags24, frame_of};
use crate::log::{File, HashX};
use crate::state::{Answer, State};
use crate::types::PageType;

/// Flags of a mapping (`GNTMAP_*`).
pub(crate) mod flag {
    pub(crate) const DEVICE: u32 = 1;
    pub(crate) const HOST: u32 = 2;
    pub(crate) const READ_ONLY: u32 = 4;
    pub(crate) const APPLICATION: u32 = 8;
    pub(crate) const CONTAINS_PTE: u32 = 16;
}

/// What an operation on one grant answers (`GNTST_*`).
pub(crate) mod status {
    pub(crate) const GENERAL_ERROR: i16 = -1;
    pub(crate) const BAD_DOMAIN: i16 = -2;
    pub(crate) const BAD_REF: i16 = -3;
    pub(crate) const BAD_HANDLE: i16 = -4;
    pub(crate) const BAD_PAGE: i16 = -9;
}

type Status<T = ()> = Result<T, i16>;

/// Flags of an entry (`GTF_*`).
const PERMIT_ACCESS: u64 = 1;
const TYPE_MASK: u64 = 3;
const ENTRY_READ_ONLY: u64 = 4;
const READING: u64 = 8;
const WRITING: u64 = 16;

/// Most frames of a grant table.
const FRAMES_MAX: usize = 32;
const NO_EXECUTE: u64 = 1 << 63;

impl Mapped {
    const fn is_writable(&self) -> bool {
        is_writable(self.flags)
    }

    const fn is_open(&self) -> bool {
        self.flags & (flag::HOST | flag::DEVICE) != 0
    }
}

const fn is_writable(flags: u32) -> bool {
    flags & flag::READ_ONLY == 0
}

/// A request to map.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MapGrant {
    pub(crate) host_address: u64,
    pub(crate) flags: u32,
    pub(crate) reference: u32,
    pub(crate) granter: u16,
}

/// The place of a grant entry: its frame, word, and value.
#[derive(Debug, Clone, Copy)]
struct Granted {
    table: Mfn,
    index: usize,
    word: u64,
}

impl State {
    /// Every mapping by grant that holds a frame without a table entry.
    pub(crate) fn device_grants(&self) -> impl Iterator<Item = (Mfn, bool)> + '_ {
        let mapped = self.domains.iter().flat_map(|domain| &domain.mapped_grants);
        let devices = mapped.filter(|mapped| mapped.flags & flag::DEVICE != 0);
        devices.map(|mapped| (mapped.frame, mapped.is_writable()))
    }

    fn granted(&self, granter: u16, reference: u32) -> Option<Granted> {
        let domain = self.find(granter)?;
        let (frame, index) = (reference as usize / WORDS, reference as usize % WORDS);
        let table = *domain.grant_frames.get(frame)?;
        Some(Granted { table, index, word: self.frames.word(table, index) })
    }

    /// `GNTTABOP_map_grant_ref` for one grant. Answers the handle and the frame.
    pub(crate) fn map_grant(&mut self, map: MapGrant) -> Status<(u32, Mfn)> {
        let MapGrant { flags, reference, granter, .. } = map;
        if flags & (flag::DEVICE | flag::HOST) == 0 {
            self.say_in(File::GrantTable, format_args!("Bad flags in grant map op: {flags:x}"));
            return Err(status::BAD_REF);
        }
        if self.find(granter).is_none() {
            self.say_in(File::GrantTable, format_args!("Could not find domain {granter}"));
            return Err(status::BAD_DOMAIN);
        }
        let Some(granted) = self.granted(granter, reference) else {
            let reference = HashX(u64::from(reference));
            self.say_in(File::GrantTable, format_args!("Bad ref {reference} for d{granter}"));
            return Err(status::BAD_REF);
        };
        let frame = self.check_entry(granted, map)?;
        self.take_granted(frame, granter, flags)?;
        let placed = flags & flag::HOST == 0 || self.place_grant(map, frame).is_ok();
        if !placed {
            self.drop_granted(frame, flags);
            return Err(status::GENERAL_ERROR);
        }
        if flags & flag::HOST != 0 && flags & flag::DEVICE != 0 {
            // Each of the two holds the frame.
            self.take_granted(frame, granter, flags)?;
        }
        let in_use = if is_writable(flags) { READING | WRITING } else { READING };
        self.frames.words(granted.table)[granted.index] |= in_use;
        let domain = self.current.domain;
        let mapped = &mut self.domains[domain].mapped_grants;
        let handle = u32::try_from(mapped.len()).unwrap_or(u32::MAX);
        mapped.push(Mapped { granter, reference, flags, frame });
        Ok((handle, frame))
    }

    /// Whether an entry grants what is asked for, and the frame it grants.
    fn check_entry(&mut self, granted: Granted, map: MapGrant) -> Status<Mfn> {
        let [low, high, domain0, domain1, frame @ ..] = granted.word.to_le_bytes();
        let (entry, domain) =
            (u16::from_le_bytes([low, high]), u16::from_le_bytes([domain0, domain1]));
        let caller = self.caller();
        if u64::from(entry) & TYPE_MASK != PERMIT_ACCESS || domain != caller {
            let text = format_args!("Bad flags ({entry:x}) or dom ({domain}); expected d{caller}");
            self.say_in(File::GrantTable, text);
            return Err(status::GENERAL_ERROR);
        }
        let read_only = u64::from(entry) & ENTRY_READ_ONLY != 0;
        if read_only && map.flags & flag::READ_ONLY == 0 {
            let text = format_args!("Attempt to write-pin a r/o grant entry");
            self.say_in(File::GrantTable, text);
            return Err(status::GENERAL_ERROR);
        }
        let frame = Mfn::new(u64::from(u32::from_le_bytes(frame)));
        let owned = self.frames.is_ram(frame) && {
            let page = self.frames.page(frame);
            page.count.refs > 0 && page.owner == map.granter
        };
        if owned { Ok(frame) } else { Err(status::BAD_PAGE) }
    }

    /// Takes what a mapping holds of a granted frame.
    fn take_granted(&mut self, frame: Mfn, granter: u16, flags: u32) -> Status {
        if !self.get_page(frame, granter) {
            return Err(status::BAD_PAGE);
        }
        if is_writable(flags) && self.get_page_type(frame, PageType::Writable).is_err() {
            self.put_page(frame);
            let number = frame.raw();
            let text = format_args!("Could not pin grant frame {number:#05x}");
            self.say_in(File::GrantTable, text);
            return Err(status::GENERAL_ERROR);
        }
        Ok(())
    }

    fn drop_granted(&mut self, frame: Mfn, flags: u32) {
        if is_writable(flags) { self.put_plain_page_and_type(frame) } else { self.put_page(frame) }
    }

    /// The L1 entry that a grant is, or is to be, mapped by; its table is locked.
    fn lock_grant_entry(&mut self, address: u64, flags: u32) -> Status<(Mfn, usize)> {
        let caller = self.caller();
        if flags & flag::CONTAINS_PTE == 0 {
            return self.lock_l1_of(address, caller).ok_or_else(|| {
                let text = format_args!("Could not find L1 PTE for linear address {address:x}");
                self.say_in(File::PvGrantTable, text);
                status::GENERAL_ERROR
            });
        }
        if !address.is_multiple_of(8) {
            self.say_in(File::PvGrantTable, format_args!("Misaligned PTE address {address:x}"));
            return Err(status::GENERAL_ERROR);
        }
        let table = Mfn::new(address >> PAGE_SHIFT);
        if self.lock_l1(table, caller) {
            Ok((table, (address & 0xfff) as usize / 8))
        } else {
            Err(status::GENERAL_ERROR)
        }
    }

    /// The entry that maps a granted frame.
    fn grant_entry(&mut self, frame: Mfn, flags: u32) -> u64 {
        let no_execute = NO_EXECUTE & !self.no_execute.refused();
        let mut entry = frame.raw() << PAGE_SHIFT | PRESENT | ACCESSED | DIRTY | no_execute;
        if flags & flag::READ_ONLY == 0 {
            entry |= RW;
        }
        if flags & flag::APPLICATION != 0 {
            entry |= USER;
        }
        if self.is_debug() {
            entry |= GRANT;
        }
        entry |= u64::from(flags >> 16 & 7) << 9;
        self.adjust_l1e(entry)
    }

    /// Puts the entry where the guest wants it (`create_grant_pv_mapping`).
    fn place_grant(&mut self, map: MapGrant, frame: Mfn) -> Status {
        let (table, index) = self.lock_grant_entry(map.host_address, map.flags)?;
        let entry = self.grant_entry(frame, map.flags);
        let old = core::mem::replace(&mut self.frames.words(table)[index], entry);
        self.unlock_l1(table);
        let caller = self.caller();
        self.put_page_from_l1e(old, caller);
        Ok(())
    }

    /// `GNTTABOP_unmap_grant_ref` and `GNTTABOP_unmap_and_replace` for one grant.
    pub(crate) fn unmap_grant(
        &mut self,
        host_address: u64,
        handle: u32,
        replace: Option<u64>,
    ) -> Status {
        let domain = self.current.domain;
        let mapped = self.domains[domain].mapped_grants.get(handle as usize).copied();
        let Some(mapped) = mapped.filter(Mapped::is_open) else {
            if mapped.is_some() {
                let (id, handle) = (self.caller(), HashX(u64::from(handle)));
                let text = format_args!("Zero flags for d{id} handle {handle}");
                self.say_in(File::GrantTable, text);
            }
            return Err(status::BAD_HANDLE);
        };
        if host_address == 0 || mapped.flags & flag::HOST == 0 {
            return Ok(());
        }
        self.replace_grant(host_address, mapped, replace)?;
        self.close_grant(handle, flag::HOST);
        Ok(())
    }

    /// The device part of `GNTTABOP_unmap_grant_ref`.
    pub(crate) fn unmap_device_grant(&mut self, handle: u32) {
        let domain = self.current.domain;
        let mapped = self.domains[domain].mapped_grants.get(handle as usize).copied();
        if mapped.is_some_and(|mapped| mapped.flags & flag::DEVICE != 0) {
            self.close_grant(handle, flag::DEVICE);
        }
    }

    fn close_grant(&mut self, handle: u32, part: u32) {
        let domain = self.current.domain;
        let mapped = &mut self.domains[domain].mapped_grants[handle as usize];
        mapped.flags &= !part;
        let mapped = *mapped;
        self.drop_granted(mapped.frame, mapped.flags);
        if mapped.is_open() {
            return;
        }
        let others = self.domains.iter().flat_map(|domain| &domain.mapped_grants);
        let same = others.filter(|other| {
            other.is_open()
                && other.granter == mapped.granter
                && other.reference == mapped.reference
        });
        let still = same.fold(0, |bits, other| {
            bits | if other.is_writable() { READING | WRITING } else { READING }
        });
        if let Some(granted) = self.granted(mapped.granter, mapped.reference) {
            self.frames.words(granted.table)[granted.index] &= !(READING | WRITING) | still;
        }
    }

    /// Takes the entry out again, if it is still what it was (`replace_grant_pv_mapping`).
    fn replace_grant(&mut self, address: u64, mapped: Mapped, replace: Option<u64>) -> Status {
        let instead = match replace {
            Some(_) if mapped.flags & flag::CONTAINS_PTE != 0 => return Err(status::GENERAL_ERROR),
            Some(new_address) => {
                let (table, index) = self.lock_grant_entry(new_address, 0)?;
                self.unlock_l1(table);
                Some((table, index))
            }
            None => None,
        };
        let (table, index) = self.lock_grant_entry(address, mapped.flags)?;
        let entry = self.frames.word(table, index);
        let expected = self.grant_entry(mapped.frame, mapped.flags);
        let same =
            frame_of(entry) == frame_of(expected) && (entry ^ expected) & (PRESENT | RW) == 0;
        if !same {
            self.unlock_l1(table);
            let text = format_args!(
                "PTE {entry:016x} for {address:x} doesn't match grant ({expected:016x})"
            );
            self.say_in(File::PvGrantTable, text);
            return Err(status::GENERAL_ERROR);
        }
        if (entry ^ expected) & !(ACCESSED | DIRTY) != 0 {
            let (have, want) = (flags24(entry), flags24(expected));
            let text =
                format_args!("PTE flags {have:x} for {address:x} don't match grant ({want:x})");
            self.say_in(File::PvGrantTable, text);
        }
        let new = match instead {
            Some((table, index)) => core::mem::take(&mut self.frames.words(table)[index]),
            None => 0,
        };
        self.frames.words(table)[index] = new;
        self.unlock_l1(table);
        Ok(())
    }

    /// `GNTTABOP_setup_table`: the frames of a domain's table, more of them if asked for.
    pub(crate) fn setup_grants(&mut self, id: u16, frames: u32) -> Status<Vec<Mfn>> {
        let id = self.any_domain(id).map_err(|_| status::BAD_DOMAIN)?;
        if !self.may_act_for(id) {
            return Err(-8);
        }
        let frames = frames as usize;
        if frames > FRAMES_MAX {
            return Err(status::GENERAL_ERROR);
        }
        self.grow_grants(id, frames);
        let domain = self.find(id).ok_or(status::BAD_DOMAIN)?;
        Ok(domain.grant_frames[..frames].to_vec())
    }

    /// Gives a domain's grant table at least so many frames.
    pub(crate) fn grow_grants(&mut self, id: u16, frames: usize) {
        let Some(domain) = self.find(id) else { return };
        let first = domain.shared_info.raw() + 1;
        for k in domain.grant_frames.len()..frames.min(FRAMES_MAX) {
            let mfn = self.share_heap_frame(first + k as u64, id);
            if let Some(domain) = self.find_mut(id) {
                domain.grant_frames.push(mfn);
            }
        }
    }

    /// Writes an entry of a domain's grant table, as the domain does through its own mapping of it.
    pub(crate) fn write_grant(&mut self, id: u16, reference: u32, word: u64) -> Answer {
        let granted = self.granted(id, reference).ok_or(Errno::EINVAL)?;
        self.frames.words(granted.table)[granted.index] = word;
        Ok(())
    }

    /// An entry of a domain's grant table.
    pub(crate) fn read_grant(&self, id: u16, reference: u32) -> Answer<u64> {
        self.granted(id, reference).map(|granted| granted.word).ok_or(Errno::EINVAL)
    }
}
