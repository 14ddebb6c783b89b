//! `memory_op` (12), its part that moves memory in and out of domains: increase, decrease,
//! populate.
//!
//! Section 4.5 of the specification. These three never answer an errno: they answer how many
//! extents were done, 0 for nonsense (common/memory.c).

use hypercall::{Errno, Mfn};

use crate::log::{File, HashX};
use crate::page::{Contents, INVALID_M2P, NOBODY, POISON};
use crate::release::Flavour;
use crate::state::{Answer, State};
use crate::types::{CountFlags, CountInfo, TypeInfo};

/// `XENMEMF_populate_on_demand`.
const ON_DEMAND: u32 = 1 << 16;
/// `XENMEMF_exact_node_request`.
const EXACT_NODE: u32 = 1 << 17;
/// Most extents of a list: what a continuation can still count.
const EXTENTS_MAX: u64 = u32::MAX as u64 >> 6;
/// Largest extent of a domU, and of dom0 (`memop-max-order`).
const ORDER_DOMU: u32 = 9;
const ORDER_DOM0: u32 = 18;

const DOMID_SELF: u16 = 0x7ff0;

/// A guest's list of extents.
pub(crate) trait Extents {
    /// Reads a word.
    fn get(&mut self, state: &mut State, index: u64) -> Answer<u64>;
    /// Writes a word.
    fn set(&mut self, state: &mut State, index: u64, word: u64) -> Answer;
    /// Returns whether there is a list at all.
    fn exists(&self) -> bool {
        true
    }
}

/// `struct xen_memory_reservation` without its list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) extents: u64,
    /// The extent to begin with.
    pub(crate) start: u64,
    pub(crate) order: u32,
    pub(crate) flags: u32,
    pub(crate) domain: u16,
}

/// Which of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Move {
    Increase,
    Decrease,
    Populate,
}

/// Where new frames may lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    /// One past the last frame.
    frames_end: u64,
    /// As Xen prints it.
    shown: u64,
}

impl Limit {
    /// From `XENMEMF_address_bits`; `None` for a width that no page fits in.
    pub(crate) const fn of(flags: u32) -> Option<Self> {
        match flags & 0xff {
            0 | 64.. => Some(Self { frames_end: u64::MAX, shown: 0 }),
            1..=12 => None,
            bits => Some(Self { frames_end: 1 << (bits - 12), shown: (bits as u64) << 24 }),
        }
    }
}

impl State {
    /// Returns the domain that a `memory_op` names (`rcu_lock_domain_by_any_id`): a caller may give
    /// its own number.
    pub(crate) fn any_domain(&self, id: u16) -> Answer<u16> {
        if id == DOMID_SELF {
            return Ok(self.caller());
        }
        self.find(id).map(|domain| domain.id).ok_or(Errno::ESRCH)
    }

    /// The largest extent the caller may ask for (`max_order`).
    pub(crate) fn order_max(&self) -> u32 {
        if self.domain().is_privileged() { ORDER_DOM0 } else { ORDER_DOMU }
    }

    /// Carries out `XENMEM_increase_reservation`, `_decrease_` and `XENMEM_populate_physmap`.
    /// Answers extents done.
    pub(crate) fn move_memory(&mut self, what: Move, shape: Shape, list: &mut dyn Extents) -> u64 {
        let Some(limit) = Limit::of(shape.flags) else { return shape.start };
        let Ok(domain) = self.any_domain(shape.domain) else { return shape.start };
        let exact = shape.flags & EXACT_NODE != 0 && !self.domain().is_privileged();
        let on_demand = what == Move::Populate && shape.flags & ON_DEMAND != 0;
        if shape.extents > EXTENTS_MAX
            || exact
            || on_demand
            || !self.may_act_for(domain)
            || shape.order > self.order_max()
        {
            return shape.start;
        }
        for done in shape.start..shape.extents {
            if done > shape.start && self.preempt_check() {
                self.interrupted();
            }
            let answer = match what {
                Move::Increase => self.increase(done, &Grow { shape, domain, limit }, list),
                Move::Populate => self.populate(done, &Grow { shape, domain, limit }, list),
                Move::Decrease => self.decrease(done, shape.order, domain, list),
            };
            if answer.is_err() {
                return done;
            }
        }
        shape.extents
    }

    fn increase(&mut self, at: u64, grow: &Grow, list: &mut dyn Extents) -> Answer {
        let first = self.grow(at, grow)?;
        if list.exists() { list.set(self, at, first.raw()) } else { Ok(()) }
    }

    fn populate(&mut self, at: u64, grow: &Grow, list: &mut dyn Extents) -> Answer {
        let pfn = list.get(self, at)?;
        let first = self.grow(at, grow)?;
        self.set_m2p(first, grow.shape.order, pfn);
        list.set(self, at, first.raw())
    }

    /// Makes `first` and its followers known as `pfn` and its followers.
    pub(crate) fn set_m2p(&mut self, first: Mfn, order: u32, pfn: u64) {
        for k in 0..1u64 << order {
            self.frames.page(Mfn::new(first.raw() + k)).m2p = pfn.wrapping_add(k);
        }
    }

    /// Allocates an extent for a domain, with lines if that fails.
    fn grow(&mut self, at: u64, grow: &Grow) -> Answer<Mfn> {
        let Grow { shape, domain, limit } = *grow;
        let first = self.allocate_for(domain, shape.order, limit);
        if first.is_none() {
            let (memflags, wanted, order) = (HashX(limit.shown), shape.extents, shape.order);
            self.say_in(
                File::Memory,
                format_args!(
                    "Could not allocate order={order} extent: id={domain} memflags={memflags} \
                     ({at} of {wanted})"
                ),
            );
        }
        first.ok_or(Errno::ENOMEM)
    }

    /// Allocates frames and gives them to a domain (`alloc_domheap_pages`, `assign_pages`).
    fn allocate_for(&mut self, id: u16, order: u32, limit: Limit) -> Option<Mfn> {
        let first = self.allocate(order, limit)?;
        let (total, most) = self
            .find(id)
            .map_or((u64::MAX, 0), |domain| (domain.tot_pages + (1 << order), domain.max_pages));
        if total > most {
            self.say_always(format_args!("Over-allocation for d{id}: {total} > {most}"));
            self.release_untouched(first, order);
            return None;
        }
        self.assign(first, order, id);
        if let Some(domain) = self.find_mut(id) {
            domain.tot_pages = total;
        }
        Some(first)
    }

    /// Takes frames off the heap. They belong to nobody yet.
    pub(crate) fn allocate(&mut self, order: u32, limit: Limit) -> Option<Mfn> {
        let first = self.heap.allocate(order, limit.frames_end)?;
        for mfn in (first..first + (1 << order)).map(Mfn::new) {
            self.flush_frame(mfn);
            let scrubbed = self.flavour == Flavour::Debug;
            let page = self.frames.page(mfn);
            if scrubbed {
                page.contents = Contents::Filled(POISON);
            }
        }
        Some(Mfn::new(first))
    }

    /// Gives frames to a domain (`assign_pages`).
    pub(crate) fn assign(&mut self, first: Mfn, order: u32, owner: u16) {
        for k in 0..1u64 << order {
            let page = self.frames.page(Mfn::new(first.raw() + k));
            page.owner = owner;
            page.count = CountInfo { flags: CountFlags::ALLOCATED, refs: 1 };
            page.kind = TypeInfo::default();
            page.linear = 0;
            page.m2p = INVALID_M2P;
        }
    }

    /// Puts frames that nobody got back on the heap.
    pub(crate) fn release_untouched(&mut self, first: Mfn, order: u32) {
        for k in 0..1u64 << order {
            let mfn = first.raw() + k;
            let page = self.frames.page(Mfn::new(mfn));
            page.owner = NOBODY;
            page.count = CountInfo { flags: CountFlags::FREE, refs: 0 };
            page.m2p = INVALID_M2P;
            self.heap.free(mfn);
        }
    }

    fn decrease(&mut self, at: u64, order: u32, domain: u16, list: &mut dyn Extents) -> Answer {
        let first = list.get(self, at)?;
        for k in 0..1u64 << order {
            self.remove_page(Mfn::new(first.wrapping_add(k)), domain)?;
        }
        Ok(())
    }

    /// Drops the reference that a domain holds by having a frame (`guest_remove_page`).
    fn remove_page(&mut self, mfn: Mfn, domain: u16) -> Answer {
        let number = mfn.raw();
        if !self.frames.is_ram(mfn) {
            let text = format_args!("Domain {domain} page number {number:x} invalid");
            self.say_in(File::Memory, text);
            return Err(Errno::EINVAL);
        }
        if !self.get_page(mfn, domain) {
            let text = format_args!("Bad page free for Dom{domain} GFN {number:x}");
            self.say_in(File::Memory, text);
            return Err(Errno::ENXIO);
        }
        let page = self.frames.page(mfn);
        if page.count.flags.contains(CountFlags::ALLOCATED) {
            page.count.flags -= CountFlags::ALLOCATED;
            self.put_page(mfn);
        }
        self.put_page(mfn);
        Ok(())
    }
}

/// What is asked for, looked up.
#[derive(Debug, Clone, Copy)]
struct Grow {
    shape: Shape,
    domain: u16,
    limit: Limit,
}
