//! Frames that come from Xen and go to it.

use alloc::format;
use alloc::vec::Vec;

use super::{Env, Page, SELF, number};
use crate::Target;
use crate::check::Check;

/// Sub-operations (`XENMEM_*`).
pub(crate) mod op {
    pub(crate) const INCREASE: u64 = 0;
    pub(crate) const DECREASE: u64 = 1;
    pub(crate) const MAXIMUM_RAM_PAGE: u64 = 2;
    pub(crate) const CURRENT_RESERVATION: u64 = 3;
    pub(crate) const MAXIMUM_RESERVATION: u64 = 4;
    pub(crate) const POPULATE: u64 = 6;
    pub(crate) const EXCHANGE: u64 = 11;
}

/// Where structures lie.
const STRUCT_PAGE: usize = 2;
const STRUCT_OFFSET: usize = 256;

/// A list of extents.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extents<'a> {
    /// First frame of each.
    pub(crate) list: &'a [u64],
    /// log2 of the frames in each.
    pub(crate) order: u64,
}

impl<'a> Extents<'a> {
    /// Single frames.
    pub(crate) const fn single(list: &'a [u64]) -> Self {
        Self { list, order: 0 }
    }
}

impl<M: Target> Env<'_, M> {
    /// Issues `memory_op` with a structure.
    pub(crate) fn memory_op(&self, op: u64, words: &[u64]) -> i64 {
        let at = self.put(STRUCT_PAGE, STRUCT_OFFSET, words);
        self.call(number::MEMORY_OP, [op, at, 0, 0, 0])
    }

    /// Words of the structure of the last [`memory_op`](Self::memory_op).
    pub(crate) fn structure(&self, words: usize) -> Vec<u64> {
        self.got(STRUCT_PAGE, STRUCT_OFFSET, words)
    }

    /// Returns an operation on extents: the answer, and the list as Xen leaves it.
    pub(crate) fn extents(&self, op: u64, extents: Extents<'_>) -> (i64, Vec<u64>) {
        let count = extents.list.len();
        let list = self.put(0, 0, extents.list);
        let rax = self.memory_op(op, &[list, count as u64, extents.order, SELF]);
        (rax, self.got(0, 0, count))
    }

    /// Gives frames back to Xen.
    pub(crate) fn decrease(&self, mfns: &[u64]) -> i64 {
        self.extents(op::DECREASE, Extents::single(mfns)).0
    }

    /// Returns a new frame for a page that has none.
    pub(crate) fn populate(&mut self, page: Page) -> Check<u64> {
        let (rax, list) = self.extents(op::POPULATE, Extents::single(&[self.pfn(page)]));
        if rax != 1 {
            return Err(format!("populate answered {rax}"));
        }
        self.adopt(page, list[0]);
        Ok(list[0])
    }

    /// Exchange: the answer, how many were exchanged, and the new frames.
    pub(crate) fn exchanges(&self, give: Extents<'_>, take: Extents<'_>) -> (i64, u64, Vec<u64>) {
        let given = self.put(0, 0, give.list);
        let taken = self.put(1, 0, take.list);
        let words = [
            given,
            give.list.len() as u64,
            give.order,
            SELF,
            taken,
            take.list.len() as u64,
            take.order,
            SELF,
            0,
        ];
        let rax = self.memory_op(op::EXCHANGE, &words);
        let exchanged = self.structure(9)[8];
        (rax, exchanged, self.got(1, 0, take.list.len()))
    }

    /// Exchanges the frame of a page that nothing maps, and adopts the new one. Xen refuses if
    /// anything holds it.
    pub(crate) fn exchange(&mut self, page: Page) -> Check<i64> {
        let (mfn, pfn) = (self.mfn(page), self.pfn(page));
        let (rax, exchanged, new) =
            self.exchanges(Extents::single(&[mfn]), Extents::single(&[pfn]));
        want!(exchanged, u64::from(rax == 0));
        if rax == 0 {
            self.adopt(page, new[0]);
        }
        Ok(rax)
    }

    /// Returns how many frames a domain has.
    pub(crate) fn current_reservation(&self, domain: u64) -> i64 {
        self.memory_op(op::CURRENT_RESERVATION, &[domain])
    }

    /// Returns the guest's own number: the one that it may ask about.
    pub(super) fn find_own_domain(&self) -> Check<u64> {
        if self.facts.boot.is_dom0 {
            return Ok(0);
        }
        let mut candidates = 1..0x400;
        candidates
            .find(|domain| self.current_reservation(*domain) > 0)
            .ok_or_else(|| "the guest's number is not to be found".into())
    }

    /// Returns a frame of another domain, by M2P: one that is known there by a pfn that is another
    /// frame's here.
    pub(super) fn find_foreign(&self) -> Option<u64> {
        let end = u64::try_from(self.memory_op(op::MAXIMUM_RAM_PAGE, &[])).ok()?;
        (0x100..end).find(|mfn| {
            let pfn = self.m2p(*mfn);
            pfn.is_some_and(|pfn| self.p2m(pfn) != Some(*mfn) && !self.is_arena(pfn))
        })
    }
}
