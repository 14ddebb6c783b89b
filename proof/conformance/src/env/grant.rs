//! Grants of the guest's frames to itself.

use hypercall::PAGE_SHIFT;

use super::{Env, Page, SELF, number};
use crate::Target;
use crate::check::Check;

const MAP: u64 = 0;
const UNMAP: u64 = 1;
const SETUP_TABLE: u64 = 2;

/// `GTF_permit_access`, `GTF_readonly`, `GTF_reading`, `GTF_writing`.
pub(crate) const PERMIT: u64 = 1;
pub(crate) const READ_ONLY: u64 = 4;
pub(crate) const READING: u64 = 8;
pub(crate) const WRITING: u64 = 16;

/// `GNTMAP_host_map`, `GNTMAP_readonly`, `GNTMAP_application_map`, `GNTMAP_contains_pte`.
pub(crate) const HOST: u64 = 2;
pub(crate) const MAP_READ_ONLY: u64 = 4;
pub(crate) const APPLICATION: u64 = 8;
pub(crate) const CONTAINS_PTE: u64 = 16;

/// Where structures lie.
const STRUCT_PAGE: usize = 2;
const STRUCT_OFFSET: usize = 1024;

/// The guest's grant table, and the page of the direct mapping that shows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GrantTable {
    window: Page,
    /// Its first frame.
    pub(crate) mfn: u64,
}

/// What is to be mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapping {
    /// An address, or that of an entry.
    pub(crate) host_addr: u64,
    pub(crate) flags: u64,
    pub(crate) reference: u64,
    pub(crate) domain: u64,
}

impl<M: Target> Env<'_, M> {
    /// Sets the grant table up, with one frame, and shows it.
    pub(crate) fn grant_table(&mut self) -> Check<GrantTable> {
        let window = self.take()?;
        let list = self.put(0, 0, &[0]);
        let at = self.put(STRUCT_PAGE, STRUCT_OFFSET, &[SELF | 1 << 32, 0, list]);
        want!(self.call(number::GRANT_TABLE_OP, [SETUP_TABLE, at, 1, 0, 0]), 0);
        same!(self.got(STRUCT_PAGE, STRUCT_OFFSET, 2)[1] & 0xffff, 0, "the status of setup_table");
        let mfn = self.got(0, 0, 1)[0];
        self.show(window, mfn << PAGE_SHIFT | super::KERNEL_RW)?;
        Ok(GrantTable { window, mfn })
    }

    /// Grants a frame to `domain`.
    pub(crate) fn grant(
        &self,
        table: GrantTable,
        reference: u64,
        flags: u64,
        domain: u64,
        mfn: u64,
    ) -> Check {
        let word = flags | domain << 16 | mfn << 32;
        self.store(self.va(table.window) + reference * 8, word)
    }

    /// Flags of a grant.
    pub(crate) fn grant_flags(&self, table: GrantTable, reference: u64) -> Check<u64> {
        Ok(self.load(self.va(table.window) + reference * 8)? & 0xffff)
    }

    /// Maps a grant: the status, and the handle.
    pub(crate) fn map_grant(&self, mapping: Mapping) -> Check<(i64, u64)> {
        let Mapping { host_addr, flags, reference, domain } = mapping;
        let words = [host_addr, flags | reference << 32, domain, 0];
        let at = self.put(STRUCT_PAGE, STRUCT_OFFSET, &words);
        want!(self.call(number::GRANT_TABLE_OP, [MAP, at, 1, 0, 0]), 0);
        let word = self.got(STRUCT_PAGE, STRUCT_OFFSET, 3)[2];
        Ok((status(word >> 16), word >> 32))
    }

    /// Unmaps a grant: the status.
    pub(crate) fn unmap_grant(&self, host_addr: u64, handle: u64) -> Check<i64> {
        let at = self.put(STRUCT_PAGE, STRUCT_OFFSET, &[host_addr, 0, handle]);
        want!(self.call(number::GRANT_TABLE_OP, [UNMAP, at, 1, 0, 0]), 0);
        Ok(status(self.got(STRUCT_PAGE, STRUCT_OFFSET, 3)[2] >> 32))
    }

    /// Maps `count` grants described anywhere.
    pub(crate) fn map_grants_at(&self, address: u64, count: u64) -> i64 {
        self.call(number::GRANT_TABLE_OP, [MAP, address, count, 0, 0])
    }
}

/// Returns a status in the low 16 bits.
fn status(word: u64) -> i64 {
    let [low, high, ..] = word.to_le_bytes();
    i64::from(i16::from_le_bytes([low, high]))
}
