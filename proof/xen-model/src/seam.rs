//! The seam: the model as a machine that the guest-side crates run on.
//!
//! Requests come as slices and are answered by the same functions that serve the raw hypercalls of
//! [`Vcpu::hypercall`]; no pointer is ever followed. Frames are reached as on a real machine,
//! through the kernel's direct mapping, whatever it maps at that moment.
#![expect(unsafe_code, reason = "the seam's methods are declared unsafe; nothing here is")]

use core::ops::Range;

use hypercall::memory::{Extent, MemoryOp, Reservation};
use hypercall::middleware::Asked;
use hypercall::{
    AccessError, Assist, CALLS_MAX, Call, ENTRIES, Errno, Error, FrameAccess, GuestVa, Hypercall,
    Hypercalls, Mfn, Outcome, PAGE_SIZE, Pfn, Pte, PteFlags, Request,
};
use x86_64::structures::paging::PageTableIndex;

use crate::access::Access;
use crate::exchange::Swap;
use crate::memory_info::About;
use crate::memory_op::{Extents, Move, Shape};
use crate::mmu_update::BatchAnswer;
use crate::model::{Model, Vcpu};
use crate::state::{Answer, State};
use crate::tlb::Mode;
use crate::va_mapping::VaChange;

/// A list in the caller's memory.
struct List<'l>(&'l mut [Extent]);

impl Extents for List<'_> {
    fn get(&mut self, _: &mut State, index: u64) -> Answer<u64> {
        let index = usize::try_from(index).map_err(|_| Errno::EFAULT)?;
        self.0.get(index).map(|extent| extent.raw()).ok_or(Errno::EFAULT)
    }

    fn set(&mut self, _: &mut State, index: u64, word: u64) -> Answer {
        let index = usize::try_from(index).map_err(|_| Errno::EFAULT)?;
        let extent = self.0.get_mut(index).ok_or(Errno::EFAULT)?;
        *extent = Extent::from_mfn(Mfn::new(word));
        Ok(())
    }
}

/// There is no memory that a mask could be read from.
fn no_mask(_: &mut State, _: u64) -> Answer<u64> {
    Err(Errno::EFAULT)
}

fn outcome(answer: BatchAnswer) -> Outcome {
    match answer.result {
        Ok(()) => Outcome::Done,
        Err(errno) => Outcome::Refused { errno, done: answer.done.unwrap_or(0) },
    }
}

fn shape(list: &Reservation<'_>) -> Shape {
    Shape {
        extents: list.extents.len() as u64,
        start: 0,
        order: list.order,
        flags: list.flags,
        domain: list.domain.0,
    }
}

impl State {
    /// Keeps a request in mind for a sweep of failures.
    pub(crate) fn note(&mut self, hypercall: Hypercall, elements: usize) {
        if let Some(requests) = &mut self.requests {
            requests.push(Asked { hypercall, elements });
        }
    }

    fn answer(&mut self, request: &Request<'_>) -> Outcome {
        match *request {
            Request::MmuUpdate(updates, domain) => {
                let read = |_: &mut Self, at: usize| Ok(updates[at]);
                outcome(self.mmu_update(updates.len(), domain.0.into(), read))
            }
            Request::MmuExt(ops, domain) => {
                let read = |_: &mut Self, at: usize| Ok(ops[at]);
                outcome(self.mmuext_op(ops.len(), domain.0, read, &mut no_mask))
            }
            Request::VaMapping(mapping) => {
                let va = mapping.va.as_u64();
                let (entry, flush) = (mapping.pte.raw(), mapping.flush.raw());
                let change = VaChange { va, entry, flush };
                let caller = self.caller();
                match self.update_va_mapping(change, caller, &mut no_mask) {
                    Ok(()) => Outcome::Done,
                    Err(errno) => Outcome::Refused { errno, done: 0 },
                }
            }
        }
    }

    fn memory(&mut self, op: &mut MemoryOp<'_>, done: &mut u64) -> Answer<u64> {
        let (what, list) = match op {
            MemoryOp::Increase(list) => (Move::Increase, list),
            MemoryOp::Decrease(list) => (Move::Decrease, list),
            MemoryOp::Populate(list) => (Move::Populate, list),
            MemoryOp::Exchange(exchange) => {
                let mut swap = Swap {
                    give: shape(&exchange.give),
                    take: shape(&exchange.take),
                    given: &mut List(exchange.give.extents),
                    taken: &mut List(exchange.take.extents),
                };
                return self.exchange(&mut swap, done).map(|()| *done);
            }
            MemoryOp::MaximumRamPage => return Ok(self.frames.end()),
            MemoryOp::CurrentReservation(domain) => {
                return self.about_domain(About::Current, domain.0);
            }
            MemoryOp::MaximumReservation(domain) => {
                return self.about_domain(About::Maximum, domain.0);
            }
            MemoryOp::MaximumGpfn(domain) => return self.about_domain(About::LastPfn, domain.0),
            MemoryOp::MachphysMapping(mapping) => {
                **mapping = self.machphys_mapping();
                return Ok(0);
            }
            MemoryOp::MachphysMfnList(list) => {
                let frames = self.machphys_frames().map(Extent::from_mfn);
                return Ok(copy(frames, list));
            }
            MemoryOp::MemoryMap(map) => return Ok(copy(self.memory_map()?.into_iter(), map)),
            MemoryOp::MachineMemoryMap(map) => {
                let regions = self.machine_memory_map(map.len())?;
                return Ok(copy(regions.into_iter(), map));
            }
        };
        Ok(self.move_memory(what, shape(list), &mut List(list.extents)))
    }
}

/// Copies as many items as fit and answers how many.
fn copy<T>(items: impl Iterator<Item = T>, into: &mut [T]) -> u64 {
    let mut count = 0;
    for (place, item) in into.iter_mut().zip(items) {
        *place = item;
        count += 1;
    }
    count
}

/// A `memory_op` of a guest.
pub(crate) fn memory_op(guest: &Vcpu<'_>, op: &mut MemoryOp<'_>) -> Result<u64, Error> {
    let mut done = 0;
    let hypercall = Hypercall::MemoryOp(op.name());
    let mut state = guest.run();
    state.note(hypercall, op.extents());
    state.memory(op, &mut done).map_err(|errno| {
        let done = u32::try_from(done).unwrap_or(u32::MAX);
        Error { hypercall, errno, done }
    })
}

// SAFETY: the model answers for its own memory alone, as Xen would.
unsafe impl Hypercalls for Vcpu<'_> {
    unsafe fn issue(&self, calls: &mut [Call<'_>]) -> Result<(), Error> {
        if calls.len() > CALLS_MAX {
            let hypercall = Hypercall::Multicall;
            return Err(Error { hypercall, errno: Errno::E2BIG, done: 0 });
        }
        let mut state = self.run();
        for (k, call) in calls.iter_mut().enumerate() {
            if k > 0 && state.preempt_check() {
                state.interrupted();
            }
            state.note(call.request.hypercall(), call.request.len());
            call.outcome = state.answer(&call.request);
        }
        Ok(())
    }

    unsafe fn memory_op(&self, op: &mut MemoryOp<'_>) -> Result<u64, Error> {
        memory_op(self, op)
    }

    fn enable_assist(&self, assist: Assist) -> Result<(), Error> {
        let hypercall = Hypercall::VmAssist;
        let mut state = self.run();
        state.note(hypercall, 1);
        let enabled = state.vm_assist(0, assist as u64);
        enabled.map_err(|errno| Error { hypercall, errno, done: 0 })
    }
}

impl Vcpu<'_> {
    fn inside(pfn: Pfn, offset: usize, len_bytes: usize) -> Result<(), AccessError> {
        match offset.checked_add(len_bytes) {
            Some(end) if end <= PAGE_SIZE => Ok(()),
            _ => Err(AccessError::OutsideFrame { pfn, offset, len_bytes }),
        }
    }

    fn read(&self, pfn: Pfn, offset: usize, into: &mut [u8]) -> Result<(), AccessError> {
        Self::inside(pfn, offset, into.len())?;
        let va = self.direct_address(pfn).ok_or(AccessError::Unmapped(pfn))?;
        let mut state = self.run();
        let target = state.translate(va.wrapping_add(offset as u64), Access::Read, Mode::Kernel);
        state.read_target(target.map_err(|_| AccessError::Unmapped(pfn))?, into);
        Ok(())
    }

    fn write(&self, pfn: Pfn, offset: usize, from: &[u8]) -> Result<(), AccessError> {
        Self::inside(pfn, offset, from.len())?;
        let va = self.direct_address(pfn).ok_or(AccessError::Unmapped(pfn))?;
        let mut state = self.run();
        match state.translate(va.wrapping_add(offset as u64), Access::Write, Mode::Kernel) {
            Ok(target) => {
                state.write_target(target, from);
                Ok(())
            }
            Err(fault) if fault.code & 1 == 0 => Err(AccessError::Unmapped(pfn)),
            Err(_) => {
                state.violation(format!("store to pfn {pfn}, which is mapped read-only"));
                Err(AccessError::ReadOnly(pfn))
            }
        }
    }
}

// SAFETY: the model answers for its own memory alone, as Xen would.
unsafe impl FrameAccess for Vcpu<'_> {
    fn read_entry(&self, table: Pfn, index: PageTableIndex) -> Result<Pte, AccessError> {
        let mut bytes = [0; 8];
        self.read(table, usize::from(index) * 8, &mut bytes)?;
        Ok(Pte::from_raw(u64::from_le_bytes(bytes)))
    }

    fn next_present(
        &self,
        table: Pfn,
        slots: Range<u16>,
    ) -> Result<Option<(PageTableIndex, Pte)>, AccessError> {
        if slots.start >= slots.end.min(ENTRIES) {
            return Ok(None);
        }
        let va = self.direct_address(table).ok_or(AccessError::Unmapped(table))?;
        let mut state = self.run();
        // One page has one translation.
        let target = state.translate(va, Access::Read, Mode::Kernel);
        let target = target.map_err(|_| AccessError::Unmapped(table))?;
        let mut entries = (slots.start..slots.end.min(ENTRIES)).map(|index| {
            let pte = Pte::from_raw(state.target_word(target, usize::from(index)));
            (PageTableIndex::new_truncate(index), pte)
        });
        Ok(entries.find(|(_, pte)| pte.is_present()))
    }

    unsafe fn write_entry(
        &self,
        table: Pfn,
        index: PageTableIndex,
        pte: Pte,
    ) -> Result<(), AccessError> {
        self.write(table, usize::from(index) * 8, &pte.raw().to_le_bytes())
    }

    fn read_bytes(&self, pfn: Pfn, offset: usize, into: &mut [u8]) -> Result<(), AccessError> {
        self.read(pfn, offset, into)
    }

    unsafe fn write_bytes(&self, pfn: Pfn, offset: usize, from: &[u8]) -> Result<(), AccessError> {
        self.write(pfn, offset, from)
    }

    fn missing_flags(&self) -> PteFlags {
        PteFlags::from_bits_retain(self.run().no_execute.refused())
    }

    fn machine_to_phys(&self, mfn: Mfn) -> Option<Pfn> {
        self.m2p(mfn)
    }

    fn direct_map(&self, pfn: Pfn) -> Result<GuestVa, AccessError> {
        let va = self.direct_address(pfn).ok_or(AccessError::Unmapped(pfn))?;
        GuestVa::new(va).map_err(|_| AccessError::Unmapped(pfn))
    }
}

// SAFETY: the model answers for its own memory alone, as Xen would.
unsafe impl Hypercalls for Model {
    unsafe fn issue(&self, calls: &mut [Call<'_>]) -> Result<(), Error> {
        // SAFETY: the promise is handed on, to a method that needs none.
        unsafe { self.guest().issue(calls) }
    }

    unsafe fn memory_op(&self, op: &mut MemoryOp<'_>) -> Result<u64, Error> {
        // SAFETY: as above.
        unsafe { self.guest().memory_op(op) }
    }

    fn enable_assist(&self, assist: Assist) -> Result<(), Error> {
        self.guest().enable_assist(assist)
    }
}

// SAFETY: the model answers for its own memory alone, as Xen would.
unsafe impl FrameAccess for Model {
    fn read_entry(&self, table: Pfn, index: PageTableIndex) -> Result<Pte, AccessError> {
        self.guest().read_entry(table, index)
    }

    fn next_present(
        &self,
        table: Pfn,
        slots: Range<u16>,
    ) -> Result<Option<(PageTableIndex, Pte)>, AccessError> {
        self.guest().next_present(table, slots)
    }

    unsafe fn write_entry(
        &self,
        table: Pfn,
        index: PageTableIndex,
        pte: Pte,
    ) -> Result<(), AccessError> {
        // SAFETY: as above.
        unsafe { self.guest().write_entry(table, index, pte) }
    }

    fn read_bytes(&self, pfn: Pfn, offset: usize, into: &mut [u8]) -> Result<(), AccessError> {
        self.guest().read_bytes(pfn, offset, into)
    }

    unsafe fn write_bytes(&self, pfn: Pfn, offset: usize, from: &[u8]) -> Result<(), AccessError> {
        // SAFETY: as above.
        unsafe { self.guest().write_bytes(pfn, offset, from) }
    }

    fn missing_flags(&self) -> PteFlags {
        self.guest().missing_flags()
    }

    fn machine_to_phys(&self, mfn: Mfn) -> Option<Pfn> {
        self.guest().machine_to_phys(mfn)
    }

    fn direct_map(&self, pfn: Pfn) -> Result<GuestVa, AccessError> {
        self.guest().direct_map(pfn)
    }
}
