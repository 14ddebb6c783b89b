//! Groups of MMU requests: from steps to elements, and from outcomes back to steps.

use alloc::vec::Vec;

use hypercall::commands::{ext, mmu};
use hypercall::{
    Call, Cpu, DomId, Machine, MmuExtOp, MmuUpdate, Outcome, PAGE_SHIFT, Pfn, Pte, PteFlags,
    Request, Slot, VaMapping,
};
use x86_64::VirtAddr;
use x86_64::structures::paging::PageTableIndex;

use super::{Answer, Executor, issue_one};
use crate::op::{Link, Op, Step, UpdatePlace, VaPlace, Value, Which};

/// Bits that an entry of the direct mapping may have: all that leave it mapping its frame, cached.
const DIRECT_FLAGS: PteFlags = PteFlags::KERNEL_RW
    .union(PteFlags::USER)
    .union(PteFlags::GLOBAL)
    .union(PteFlags::AVAILABLE)
    .union(PteFlags::GUEST_KERNEL);

/// An address in Xen's range, and one without tables.
const HOLE: u64 = 0xffff_8000_0000_1000;
const NOWHERE: u64 = 0x5000_0000_0000;

/// An element of a request.
#[derive(Clone, Copy)]
enum Element {
    Update(MmuUpdate),
    Op(MmuExtOp),
    Va(VaMapping),
}

/// A request under construction: where its elements begin and end among all of their kind.
#[derive(Clone, Copy)]
enum Run {
    Updates(usize, usize),
    Ops(usize, usize),
    Va(VaMapping),
}

impl Executor {
    /// Issues a group of MMU steps, as one hypercall or one multicall.
    pub(super) fn issue<M: Machine>(&mut self, machine: &M, group: &[Step]) -> Vec<Answer> {
        if group.iter().any(|step| step.op.frames().into_iter().flatten().any(|f| self.is_dead(f)))
        {
            return alloc::vec![Answer::Skipped; group.len()];
        }
        let (mut updates, mut ops, mut runs) = (Vec::new(), Vec::new(), Vec::<Run>::new());
        for step in group {
            let same = step.link == Link::SameRequest;
            match (self.element(step.op), runs.last_mut()) {
                (Element::Update(update), last) => {
                    updates.push(update);
                    match last {
                        Some(Run::Updates(_, end)) if same => *end = updates.len(),
                        _ => runs.push(Run::Updates(updates.len() - 1, updates.len())),
                    }
                }
                (Element::Op(op), last) => {
                    ops.push(op);
                    match last {
                        Some(Run::Ops(_, end)) if same => *end = ops.len(),
                        _ => runs.push(Run::Ops(ops.len() - 1, ops.len())),
                    }
                }
                (Element::Va(mapping), _) => runs.push(Run::Va(mapping)),
            }
        }
        let request = |run: &Run| match *run {
            Run::Updates(start, end) => Request::MmuUpdate(&updates[start..end], DomId::SELF),
            Run::Ops(start, end) => Request::MmuExt(&ops[start..end], DomId::SELF),
            Run::Va(mapping) => Request::VaMapping(mapping),
        };
        let mut calls: Vec<Call<'_>> = runs.iter().map(|run| Call::new(request(run))).collect();
        // SAFETY: `element` lets through only requests about frames of the arena, or that Xen
        // refuses.
        let whole = unsafe { machine.issue(&mut calls) };
        if calls.len() > 1 {
            self.coverage.count("multicall", whole.err().map_or(0, |error| error.errno.raw()));
        }
        self.stale = true;
        calls.iter().flat_map(answers).collect()
    }

    /// Returns the element that a step stands for, made harmless where it could cost the guest its
    /// life.
    fn element(&self, op: Op) -> Element {
        match op {
            Op::Update { command, place, value } => {
                Element::Update(self.update(command, place, value))
            }
            Op::Ext { command, first, second } => Element::Op(self.ext(command, first, second)),
            Op::VaMapping { place, flags, flush } => {
                let (va, pte) = match place {
                    VaPlace::Direct(number) => {
                        (self.arena.frame(number).va.raw(), self.direct_entry(number, flags))
                    }
                    VaPlace::Hole => (HOLE, Pte::from_raw(flags)),
                    VaPlace::Nowhere => (NOWHERE, Pte::from_raw(flags)),
                };
                Element::Va(VaMapping { va: VirtAddr::new_truncate(va), pte, flush })
            }
            // Not an MMU step: `group_len` lets none through.
            _ => Element::Op(MmuExtOp::tlb_flush_local()),
        }
    }

    fn update(&self, command: u8, place: UpdatePlace, value: Value) -> MmuUpdate {
        let command = u64::from(command) & mmu::MASK;
        let is_machphys = command == mmu::MACHPHYS;
        // M2P is changed for frames of the arena only.
        let command_elsewhere = if is_machphys { mmu::NORMAL } else { command };
        match place {
            UpdatePlace::Slot(frame, _) if is_machphys => {
                let pfn = match value.which {
                    Which::Arena(number) => self.arena.frame(number).pfn,
                    _ => Pfn::new(0x777),
                };
                MmuUpdate::machphys(self.arena.frame(frame).mfn, pfn)
            }
            UpdatePlace::Slot(frame, slot) => {
                let target = self.arena.slot(frame, slot).machine_address() | command;
                MmuUpdate::from_raw(target, self.arena.pte(value).raw())
            }
            UpdatePlace::Direct(number) => {
                let target = self.arena.frame(number).direct.machine_address() | command_elsewhere;
                MmuUpdate::from_raw(target, self.direct_entry(number, value.flags).raw())
            }
            UpdatePlace::OutOfRange => {
                let target = self.arena.mfn(Which::OutOfRange).raw() << PAGE_SHIFT | command;
                MmuUpdate::from_raw(target, self.arena.pte(value).raw())
            }
            UpdatePlace::XenSlot => {
                let table = self.arena.landmarks.running_root;
                let slot = Slot { table, index: PageTableIndex::new_truncate(256) };
                let target = slot.machine_address() | command_elsewhere;
                MmuUpdate::from_raw(target, self.arena.pte(value).raw())
            }
        }
    }

    fn ext(&self, command: u8, first: Which, second: Which) -> MmuExtOp {
        let mut command = u32::from(command);
        let is_running = matches!(first, Which::RunningRoot | Which::RunningL1);
        let first = match command {
            // Pinning the running root is refused; anything else that runs stays as it is.
            ext::PIN_L1_TABLE..=ext::PIN_L4_TABLE if first == Which::RunningL1 => Which::SharedInfo,
            ext::UNPIN_TABLE if is_running => Which::SharedInfo,
            // No root of the arena could run the kernel.
            ext::NEW_BASEPTR if matches!(first, Which::Arena(_)) => Which::Invalid,
            ext::CLEAR_PAGE | ext::COPY_PAGE if first == Which::SharedInfo => Which::Invalid,
            _ => first,
        };
        if matches!(command, ext::TLB_FLUSH_MULTI | ext::INVLPG_MULTI | ext::SET_LDT) {
            // They take an address that the record could not show.
            command = 14;
        }
        let argument = match (command, second) {
            (ext::COPY_PAGE, Which::Arena(_)) => self.arena.mfn(second),
            (ext::COPY_PAGE, _) => self.arena.mfn(Which::Invalid),
            _ => self.arena.mfn(Which::Zero),
        };
        MmuExtOp::from_raw(command, self.arena.mfn(first).raw(), argument.raw())
    }

    /// Returns an entry that maps a frame of the arena at its place in the direct mapping.
    fn direct_entry(&self, number: u8, flags: u64) -> Pte {
        let flags = PteFlags::from_bits_retain(flags & DIRECT_FLAGS.bits());
        Pte::new(self.arena.frame(number).mfn, flags | PteFlags::PRESENT)
    }

    /// Returns the entry that maps a frame in the direct mapping, by a walk that the arena has done
    /// before.
    pub(super) fn read_direct<M: Machine>(&self, machine: &M, number: u8) -> Pte {
        let slot = self.arena.frame(number).direct;
        let table = machine.machine_to_phys(slot.table);
        table.and_then(|table| machine.read_entry(table, slot.index).ok()).unwrap_or(Pte::ABSENT)
    }

    /// Sets the direct mapping of a frame.
    pub(super) fn set_direct<M: Machine>(
        &mut self,
        machine: &M,
        number: u8,
        flags: PteFlags,
    ) -> Answer {
        let pte = match flags.is_empty() {
            true => Pte::ABSENT,
            false => self.direct_entry(number, machine.offered(flags).bits()),
        };
        let updates = [MmuUpdate::set(self.arena.frame(number).direct, pte)];
        self.stale = true;
        issue_one(machine, Request::MmuUpdate(&updates, DomId::SELF))
    }

    /// Sets M2P.
    pub(super) fn machphys<M: Machine>(
        &self,
        machine: &M,
        mfn: hypercall::Mfn,
        pfn: Pfn,
    ) -> Answer {
        issue_one(machine, Request::MmuUpdate(&[MmuUpdate::machphys(mfn, pfn)], DomId::SELF))
    }

    /// Clears every word that is ever used of a frame, by stores.
    pub(super) fn zero<M: Cpu>(&self, machine: &M, number: u8) -> Answer {
        let page = self.arena.frame(number).va.raw();
        let used = crate::SLOTS.into_iter().chain(hypercall::XEN_SLOTS);
        for (done, index) in used.enumerate() {
            let Ok(va) = hypercall::GuestVa::new(page + u64::from(index) * 8) else { continue };
            // SAFETY: a word of a frame of the arena; if it is a live table, Xen validates what is
            // stored.
            if unsafe { machine.store(va, 0) }.is_err() {
                return if done == 0 {
                    Answer::Refused(super::FAULT)
                } else {
                    Answer::Done(done as u64)
                };
            }
        }
        Answer::Done(u64::MAX >> 32)
    }
}

/// Returns what became of each element of a call.
fn answers(call: &Call<'_>) -> Vec<Answer> {
    let done = call.done();
    let refused = match call.outcome {
        Outcome::Refused { errno, .. } => Answer::Refused(errno.raw()),
        Outcome::Done | Outcome::NotIssued => Answer::NotReached,
    };
    (0..call.request.len())
        .map(|at| match at.cmp(&done) {
            core::cmp::Ordering::Less => Answer::Done(0),
            core::cmp::Ordering::Equal => refused,
            core::cmp::Ordering::Greater => Answer::NotReached,
        })
        .collect()
}
