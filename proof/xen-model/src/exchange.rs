//! `XENMEM_exchange`: frames against as many others (`memory_exchange`, common/memory.c).
//!
//! Section 4.5 of the specification. Frames go in chunks of the larger of the two orders; a chunk
//! is exchanged whole or not at all.

use hypercall::{Errno, Mfn};

use crate::log::Pd;
use crate::memory_op::{Extents, Limit, Shape};
use crate::page::NOBODY;
use crate::state::{Answer, State};
use crate::types::{CountFlags, CountInfo, TypeInfo};

/// `XENMEMF_node` bits and the flag for an exact node.
const NODE_FLAGS: u32 = 0xff << 8 | 1 << 17;

/// What to exchange.
pub(crate) struct Swap<'l> {
    pub(crate) give: Shape,
    pub(crate) take: Shape,
    pub(crate) given: &'l mut dyn Extents,
    pub(crate) taken: &'l mut dyn Extents,
}

/// The sizes that follow from the two orders.
#[derive(Debug, Clone, Copy)]
struct Chunks {
    /// log2 of the given extents of a chunk.
    give: u32,
    /// log2 of the taken extents of a chunk.
    take: u32,
    count: u64,
}

impl State {
    /// Carries out `memory_exchange`. `done` counts given extents, also on failure.
    pub(crate) fn exchange(&mut self, swap: &mut Swap<'_>, done: &mut u64) -> Answer {
        let (give, take) = (swap.give, swap.take);
        if give.order.max(take.order) > self.order_max() {
            return Err(Errno::EPERM);
        }
        let total = |shape: Shape| shape.extents.checked_mul(1 << shape.order);
        let fits = *done <= give.extents && give.domain == take.domain;
        if !fits || total(give).is_none() || total(give) != total(take) {
            return Err(Errno::EINVAL);
        }
        if *done == give.extents {
            return Ok(());
        }
        if (give.flags | take.flags) & NODE_FLAGS != 0 {
            return Err(Errno::EINVAL);
        }
        let domain = self.any_domain(give.domain)?;
        if !self.may_act_for(domain) {
            return Err(Errno::EPERM);
        }
        let limit = Limit::of(take.flags).ok_or(Errno::ENOMEM)?;
        let give_chunk = take.order.saturating_sub(give.order);
        let take_chunk = give.order.saturating_sub(take.order);
        let chunks =
            Chunks { give: give_chunk, take: take_chunk, count: give.extents >> give_chunk };
        let mut chunk = *done >> give_chunk;
        while chunk < chunks.count {
            if self.preempt_check() {
                self.interrupted();
            }
            let answer = self.exchange_chunk(swap, chunks, chunk, domain, limit);
            if answer.is_err() {
                *done = chunk << give_chunk;
                return answer;
            }
            chunk += 1;
        }
        *done = give.extents;
        Ok(())
    }

    fn exchange_chunk(
        &mut self,
        swap: &mut Swap<'_>,
        chunks: Chunks,
        chunk: u64,
        domain: u16,
        limit: Limit,
    ) -> Answer {
        let mut stolen = Vec::new();
        let mut fresh = Vec::new();
        let answer = self
            .steal_chunk(swap, chunks, chunk, domain, &mut stolen)
            .and_then(|()| self.allocate_chunk(swap.take.order, chunks, limit, &mut fresh));
        if let Err(errno) = answer {
            for first in fresh {
                self.release_untouched(first, swap.take.order);
            }
            for mfn in stolen {
                let page = self.frames.page(mfn);
                page.owner = domain;
                page.count = CountInfo { flags: CountFlags::ALLOCATED, refs: 1 };
                page.kind = TypeInfo::default();
            }
            return Err(errno);
        }
        for mfn in stolen {
            // It belongs to nobody by now, so the domain's total stays.
            self.free_page(mfn);
        }
        let mut answer = Ok(());
        for (k, first) in fresh.into_iter().enumerate() {
            self.assign(first, swap.take.order, domain);
            let at = (chunk << chunks.take) + k as u64;
            match swap.taken.get(self, at) {
                Ok(pfn) => {
                    self.set_m2p(first, swap.take.order, pfn);
                    if swap.taken.set(self, at, first.raw()).is_err() {
                        answer = Err(Errno::EFAULT);
                    }
                }
                Err(_) => answer = Err(Errno::EFAULT),
            }
        }
        answer
    }

    fn steal_chunk(
        &mut self,
        swap: &mut Swap<'_>,
        chunks: Chunks,
        chunk: u64,
        domain: u16,
        stolen: &mut Vec<Mfn>,
    ) -> Answer {
        for extent in 0..1u64 << chunks.give {
            let at = (chunk << chunks.give) + extent;
            let first = swap.given.get(self, at).map_err(|_| Errno::EFAULT)?;
            for k in 0..1u64 << swap.give.order {
                let mfn = Mfn::new(first.wrapping_add(k));
                if !self.frames.is_ram(mfn) || !self.steal(mfn, domain) {
                    return Err(Errno::EINVAL);
                }
                stolen.push(mfn);
            }
        }
        Ok(())
    }

    fn allocate_chunk(
        &mut self,
        order: u32,
        chunks: Chunks,
        limit: Limit,
        fresh: &mut Vec<Mfn>,
    ) -> Answer {
        for _ in 0..1u64 << chunks.take {
            fresh.push(self.allocate(order, limit).ok_or(Errno::ENOMEM)?);
        }
        Ok(())
    }

    /// Takes a frame away from its domain if nobody else holds it (`steal_page`).
    fn steal(&mut self, mfn: Mfn, domain: u16) -> bool {
        let page = self.frames.page(mfn);
        if page.owner == domain && page.count == CountInfo::allocated(1) {
            page.owner = NOBODY;
            page.count = CountInfo { flags: CountFlags::empty(), refs: 0 };
            page.kind = TypeInfo::default();
            return true;
        }
        let (release, layout) = (self.release, self.release.layout());
        let page = self.frames.page(mfn);
        let (caf, taf) = (page.count.word(release), page.kind.word(layout));
        let (owner, from) = (Pd(page.owner), Pd(domain));
        let number = self.number(mfn);
        self.say(format_args!(
            "Bad steal mfn {number} from {from} (owner {owner}) caf={caf:08x} taf={taf:016x}"
        ));
        false
    }
}
