//! `update_va_mapping` (14) and `update_va_mapping_otherdomain` (22): the entry that maps an
//! address, found through the running tables (`__do_update_va_mapping`).
//!
//! Section 4.3 of the specification.

use hypercall::{Errno, Level, Mfn};

use crate::l1e::{Owners, PRESENT, Place, frame_of};
use crate::state::{Answer, State};
use crate::types::PageType;
use crate::xen_slots;

const LOCAL: u64 = 0;
const ALL: u64 = 4;

/// A change asked for by address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VaChange {
    pub(crate) va: u64,
    pub(crate) entry: u64,
    /// `UVMF_*`: what to flush in bits 1:0, and where.
    pub(crate) flush: u64,
}

impl State {
    /// Returns the index in a table of `level` that an address goes through.
    pub(crate) const fn index_of(level: Level, va: u64) -> usize {
        ((va >> level.shift()) & 0x1ff) as usize
    }

    /// Follows the tables from `root` to the L1 table that maps an address.
    pub(crate) fn find_l1(&self, root: Mfn, va: u64) -> Option<Mfn> {
        let mut table = root;
        for level in [Level::L4, Level::L3, Level::L2] {
            let entry = self.frames.word(table, Self::index_of(level, va));
            if entry & PRESENT == 0 || entry & 0x80 != 0 {
                return None;
            }
            table = frame_of(entry);
            if !self.frames.is_ram(table) {
                return None;
            }
        }
        Some(table)
    }

    /// Returns the L1 entry of the running kernel tables that maps an address, if its table can be
    /// edited (`map_guest_l1e`). The table is referenced and locked.
    pub(crate) fn lock_l1_of(&mut self, va: u64, owner: u16) -> Option<(Mfn, usize)> {
        if !xen_slots::address_ok(va) {
            return None;
        }
        let root = self.vcpu().kernel_root?;
        let table = self.find_l1(root, va)?;
        self.lock_l1(table, owner).then(|| (table, Self::index_of(Level::L1, va)))
    }

    /// References and locks a frame that is a live L1 table.
    pub(crate) fn lock_l1(&mut self, table: Mfn, owner: u16) -> bool {
        if !self.get_page_from_gfn(table, owner) {
            return false;
        }
        if self.page_lock(table) {
            if self.frames.page(table).kind.kind == PageType::L1 {
                return true;
            }
            self.page_unlock(table);
        }
        self.put_page(table);
        false
    }

    /// Undoes [`lock_l1`](Self::lock_l1).
    pub(crate) fn unlock_l1(&mut self, table: Mfn) {
        self.page_unlock(table);
        self.put_page(table);
    }

    /// Carries out `do_update_va_mapping_otherdomain`.
    pub(crate) fn update_va_mapping_of(
        &mut self,
        change: VaChange,
        domain: u16,
        mask: &mut dyn FnMut(&mut Self, u64) -> Answer<u64>,
    ) -> Answer {
        let owner = self.page_owner(domain)?;
        self.update_va_mapping(change, owner, mask)
    }

    /// Carries out `do_update_va_mapping`. `mask` reads the vCPU mask at an address, which may
    /// fault.
    pub(crate) fn update_va_mapping(
        &mut self,
        change: VaChange,
        frames_of: u16,
        mask: &mut dyn FnMut(&mut Self, u64) -> Answer<u64>,
    ) -> Answer {
        if !self.may_act_for(frames_of) {
            return Err(Errno::EPERM);
        }
        let caller = self.caller();
        let (table, index) = self.lock_l1_of(change.va, caller).ok_or(Errno::EINVAL)?;
        let place = Place { table, index, keeps_accessed: false };
        let owners = Owners { table: caller, frame: frames_of };
        let answer = self.mod_l1_entry(place, change.entry, owners);
        self.unlock_l1(table);
        answer?;
        let page = match change.flush & 3 {
            1 => None,
            2 => Some(change.va),
            _ => return Ok(()),
        };
        let everyone = u64::MAX;
        let which = match change.flush & !3 {
            LOCAL => 1 << self.current.vcpu.min(63),
            ALL => everyone,
            address => mask(self, address).map_err(|_| Errno::EFAULT)?,
        };
        self.statistics.asked_flushes += 1;
        for vcpu in 0..self.domain().vcpus.len().min(64) {
            if which & 1 << vcpu != 0 {
                self.flush_vcpu(vcpu, page);
            }
        }
        Ok(())
    }
}
