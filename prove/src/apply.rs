//! Carrying operations out, and looking at what came of them.

use hypercall::{
    Assist, Call, DomId, Domains, Level, Mfn, MmuExtOp, MmuUpdate, Outcome, Pfn, Pte, PteFlags,
    Request, Slot, VaFlush, VaMapping, Width, mmu_command,
};

use crate::arena::XEN_SLOTS;
use crate::coverage::Answer;
use crate::generate::Prover;
use crate::op::{Kind, Op};
use crate::record::Record;
use crate::trusted::Trusted;

/// What is not there, in the record.
pub(crate) const ABSENT: u64 = u64::MAX - 1;
/// A domain that does not exist.
const NO_DOMAIN: DomId = DomId(0x7000);

fn answer(outcome: Outcome, seen: &mut Record) -> Answer {
    match outcome {
        Outcome::Done => Answer::Done,
        Outcome::NotIssued => Answer::Skipped,
        Outcome::Refused { errno, done } => {
            seen.add(u64::from(done));
            Answer::Refused(errno)
        }
    }
}

pub(crate) fn ask(machine: &Trusted<'_>, request: Request<'_>, seen: &mut Record) -> Answer {
    let mut calls = [Call::new(request)];
    match machine.issue(&mut calls) {
        Ok(()) => answer(calls[0].outcome, seen),
        Err(error) => Answer::Refused(error.errno),
    }
}

const fn level_of(index: u16) -> Level {
    match index {
        2 => Level::L2,
        3 => Level::L3,
        4 => Level::L4,
        _ => Level::L1,
    }
}

impl Prover<'_> {
    pub(crate) fn apply(&mut self, machine: &Trusted<'_>, op: Op, seen: &mut Record) -> Answer {
        let answer = {
            match op.kind {
                Kind::Direct | Kind::DirectVa => self.direct(machine, op, seen),
                Kind::Write => self.write(machine, op),
                Kind::Set | Kind::SetKeep | Kind::SetOdd => self.set(machine, op, seen),
                Kind::Batch => {
                    let batch = self.batch(op);
                    ask(machine, Request::MmuUpdate(&batch, Domains::SELF), seen)
                }
                Kind::Calls => self.calls(machine, op, seen),
                Kind::Exchange => self.exchange(machine, op, seen),
                Kind::ExchangeUsed => self.exchange_used(machine, op, seen),
                Kind::Balloon | Kind::BalloonUsed => self.balloon(machine, op, seen),
                Kind::Store | Kind::CompareExchange => self.store(machine, op, seen),
                Kind::MachPhys => self.mach_phys(machine, op, seen),
                Kind::Reset => self.reset(machine, op.a, seen),
                Kind::Assist => match machine.enable_assist(Assist::WritablePageTables) {
                    Ok(()) => Answer::Done,
                    Err(error) => Answer::Refused(error.errno),
                },
                _ => self.extended(machine, op, seen),
            }
        };
        self.look(machine, op, seen);
        answer
    }

    /// Puts into the record what can be seen of the frame that the operation was about.
    fn look(&self, machine: &Trusted<'_>, op: Op, seen: &mut Record) {
        let frame = self.arena.frame(op.a);
        let mapping = machine.read_entry(frame.table, frame.slot.index);
        seen.add(mapping.map_or(ABSENT, |entry| self.arena.direct_name(op.a, entry)));
        let m2p = machine.machine_to_phys(frame.mfn);
        seen.add(u64::from(m2p == Some(frame.pfn)));
        let first = op.index & 0x1ff;
        for index in [first, first.wrapping_add(1) & 0x1ff, 1, 511] {
            if index != 0 && !XEN_SLOTS.contains(&index) {
                seen.add(self.read(machine, op.a, index).map_or(ABSENT, |e| self.arena.name(e)));
            }
        }
    }

    /// Reads an entry of a frame that is mapped.
    pub(crate) fn read(&self, machine: &Trusted<'_>, place: u8, index: u16) -> Option<Pte> {
        self.arena.direct(machine, place)?;
        let slot = self.slot(place, index);
        machine.read_entry(self.arena.frame(place).pfn, slot.index).ok()
    }

    pub(crate) fn slot(&self, place: u8, index: u16) -> Slot {
        let index = x86_64_index(index);
        Slot { table: self.arena.frame(place).mfn, index }
    }

    pub(crate) fn direct(&self, machine: &Trusted<'_>, op: Op, seen: &mut Record) -> Answer {
        let frame = self.arena.frame(op.a);
        let flags = PteFlags::from_bits_retain(op.flags & !hypercall::ADDRESS_MASK);
        let pte = if flags.contains(PteFlags::PRESENT) {
            Pte::new(frame.mfn, flags)
        } else {
            Pte::ABSENT
        };
        let Ok(va) = machine.direct_map(frame.pfn) else { return Answer::Skipped };
        if op.kind == Kind::DirectVa {
            let mapping = VaMapping { va: va.addr(), pte, flush: VaFlush::PageLocal };
            return ask(machine, Request::VaMapping(mapping), seen);
        }
        let update = [MmuUpdate::set(frame.slot, pte)];
        let answer = ask(machine, Request::MmuUpdate(&update, Domains::SELF), seen);
        flush(machine, va.addr());
        answer
    }

    fn write(&self, machine: &Trusted<'_>, op: Op) -> Answer {
        match self.arena.direct(machine, op.a) {
            Some(mapping) if mapping.is_writable() => {}
            _ => return Answer::Skipped,
        }
        let (pfn, slot) = (self.arena.frame(op.a).pfn, self.slot(op.a, op.index));
        let entry = self.arena.entry(op.b, op.flags);
        match machine.write_entry(pfn, slot.index, entry) {
            Ok(()) => Answer::Done,
            Err(_) => Answer::Faulted,
        }
    }

    fn set(&self, machine: &Trusted<'_>, op: Op, seen: &mut Record) -> Answer {
        let entry = self.arena.entry(op.b, op.flags);
        let slot = self.slot(op.a, op.index.max(1));
        let mut domains = Domains::SELF;
        let update = match op.kind {
            Kind::SetKeep => MmuUpdate::set_preserving_ad(slot, entry),
            Kind::SetOdd => {
                let slot = self.slot(op.a, 7);
                match op.index % 4 {
                    0 => domains.frames = DomId::IO,
                    1 => domains.frames = NO_DOMAIN,
                    2 => domains.tables = Some(NO_DOMAIN),
                    _ => {}
                }
                // Commands 4 to 7 do not exist; 3 is the normal one once more.
                let command = if op.index % 4 == 3 { 3 + u64::from(op.index / 4 % 5) } else { 0 };
                MmuUpdate::from_raw(
                    slot.machine_address() | command & mmu_command::MASK,
                    entry.raw(),
                )
            }
            _ => MmuUpdate::set(slot, entry),
        };
        ask(machine, Request::MmuUpdate(&[update], domains), seen)
    }

    fn batch(&self, op: Op) -> [MmuUpdate; 3] {
        core::array::from_fn(|k| {
            let step = u16::try_from(k).unwrap_or(0);
            let index = ((op.index + step) & 0x1ff).max(1);
            let place = op.b.saturating_add(u8::try_from(k).unwrap_or(0));
            // The one in the middle is sometimes refused.
            let spoilt = k == 1 && op.flags & 0x20 != 0 && op.index & 4 != 0;
            let flags = if spoilt { op.flags ^ 0x10 } else { op.flags };
            MmuUpdate::set(self.slot(op.a, index), self.arena.entry(place, flags))
        })
    }

    fn calls(&self, machine: &Trusted<'_>, op: Op, seen: &mut Record) -> Answer {
        let batch = self.batch(op);
        let target = self.arena.target(op.b);
        let (pin, unpin) = ([MmuExtOp::pin(Level::L1, target)], [MmuExtOp::unpin(target)]);
        let frame = self.arena.frame(op.a);
        let Ok(va) = machine.direct_map(frame.pfn) else { return Answer::Skipped };
        let pte = Pte::new(frame.mfn, PteFlags::KERNEL_RO);
        let mapping = VaMapping { va: va.addr(), pte, flush: VaFlush::PageLocal };
        let mut calls = [
            Call::new(Request::MmuExt(&pin, DomId::SELF)),
            Call::new(Request::MmuUpdate(&batch, Domains::SELF)),
            Call::new(Request::VaMapping(mapping)),
            Call::new(Request::MmuExt(&unpin, DomId::SELF)),
        ];
        if let Err(error) = machine.issue(&mut calls) {
            return Answer::Refused(error.errno);
        }
        let mut first = Answer::Done;
        for call in calls {
            let answer = answer(call.outcome, seen);
            seen.add(answer.code());
            if first == Answer::Done {
                first = answer;
            }
        }
        first
    }

    fn extended(&self, machine: &Trusted<'_>, op: Op, seen: &mut Record) -> Answer {
        let (a, b) = (self.arena.frame(op.a).mfn, self.arena.target(op.b));
        let ops = |op: MmuExtOp| ([op, MmuExtOp::EMPTY, MmuExtOp::EMPTY], 1);
        let (list, count) = match op.kind {
            Kind::Pin => ops(MmuExtOp::pin(level_of(op.index), a)),
            Kind::Unpin => ops(MmuExtOp::unpin(a)),
            Kind::UserRoot => ops(MmuExtOp::new_user_baseptr((op.index != 0).then_some(a))),
            // A frame of nobody is no root whatever is in it.
            Kind::BadRoot => ops(MmuExtOp::new_baseptr(self.arena.target(255 - op.a % 3))),
            Kind::Clear => ops(MmuExtOp::clear_page(a)),
            Kind::Copy => ops(MmuExtOp::copy_page(a, b)),
            Kind::PinBatch => {
                let next = self.arena.target(op.b.saturating_add(1));
                let pin = MmuExtOp::pin(level_of(op.index), b);
                ([MmuExtOp::unpin(a), pin, MmuExtOp::unpin(next)], 3)
            }
            _ => ops(odd(op, b)),
        };
        let answer = ask(machine, Request::MmuExt(&list[..count], DomId::SELF), seen);
        if matches!(op.kind, Kind::Clear | Kind::Copy) && answer == Answer::Done {
            // Slot 0 is to stay empty, and so it does: the source's is.
            seen.add(self.read(machine, op.a, 0).map_or(ABSENT, |entry| entry.raw()));
        }
        answer
    }

    fn mach_phys(&self, machine: &Trusted<'_>, op: Op, seen: &mut Record) -> Answer {
        let frame = self.arena.frame(op.a);
        let wrong = Pfn::new(op.flags & 0xffff_ffff);
        for pfn in [wrong, frame.pfn] {
            let update = [MmuUpdate::machphys(frame.mfn, pfn)];
            let answer = ask(machine, Request::MmuUpdate(&update, Domains::SELF), seen);
            seen.add(answer.code());
            seen.add(u64::from(machine.machine_to_phys(frame.mfn) == Some(pfn)));
        }
        let update = [MmuUpdate::machphys(self.arena.target(op.b), wrong)];
        if self.arena.frames.iter().any(|frame| frame.mfn == self.arena.target(op.b)) {
            return Answer::Done;
        }
        ask(machine, Request::MmuUpdate(&update, Domains::SELF), seen)
    }

    fn store(&self, machine: &Trusted<'_>, op: Op, seen: &mut Record) -> Answer {
        let index = (op.index & 0x1ff).max(1);
        let frame = self.arena.frame(op.a);
        let Ok(start) = machine.direct_map(frame.pfn) else { return Answer::Skipped };
        let mapped = self.arena.direct(machine, op.a).is_some();
        let Some(at) = hypercall::GuestVa::new(start.raw() + u64::from(index) * 8).ok() else {
            return Answer::Skipped;
        };
        if !mapped {
            return Answer::Skipped;
        }
        let value = self.arena.entry(op.b, op.flags).raw();
        if op.kind == Kind::CompareExchange {
            let now = self.read(machine, op.a, index).map_or(0, Pte::raw);
            // One in two expects what is there.
            let expected = if op.flags & 2 == 0 { now } else { now ^ 0x200 };
            return match machine.compare_exchange(at, expected, value) {
                Ok(found) => {
                    seen.add(self.arena.name(Pte::from_raw(found)));
                    Answer::Done
                }
                Err(_) => Answer::Faulted,
            };
        }
        // Short stores leave the address alone, so that they mean the same everywhere.
        let (width, value) = match op.index >> 9 {
            0 => (Width::Byte, op.flags & 0xff),
            1 => {
                let now = self.read(machine, op.a, index).map_or(0, Pte::raw);
                (Width::Word, op.flags & 0xfff | now & 0xf000)
            }
            _ => (Width::Quad, value),
        };
        match machine.store(at, value, width) {
            Ok(()) => Answer::Done,
            Err(_) => Answer::Faulted,
        }
    }
}

/// Operations that have no effect that can be seen, or none at all.
fn odd(op: Op, target: Mfn) -> MmuExtOp {
    use hypercall::ext_command::{
        FLUSH_CACHE, FLUSH_CACHE_GLOBAL, INVLPG_LOCAL, MARK_SUPER, SET_LDT, TLB_FLUSH_ALL,
        TLB_FLUSH_LOCAL, UNMARK_SUPER,
    };
    match op.index % 10 {
        0 => MmuExtOp::from_raw(14, 0, 0),
        1 => MmuExtOp::from_raw(21, target.raw(), 0),
        2 => MmuExtOp::from_raw(MARK_SUPER, target.raw(), 0),
        3 => MmuExtOp::from_raw(UNMARK_SUPER, target.raw(), 0),
        4 => MmuExtOp::from_raw(SET_LDT, 0x1008, 1),
        5 => MmuExtOp::from_raw(SET_LDT, 0x1000, 8193),
        6 => MmuExtOp::from_raw(INVLPG_LOCAL, 0xffff_8000_0000_0000, 0),
        7 => MmuExtOp::from_raw(FLUSH_CACHE, 0, 0),
        8 => MmuExtOp::from_raw(FLUSH_CACHE_GLOBAL, 0, 0),
        _ if op.flags & 1 == 0 => MmuExtOp::from_raw(TLB_FLUSH_LOCAL, 0, 0),
        _ => MmuExtOp::from_raw(TLB_FLUSH_ALL, 0, 0),
    }
}

fn flush(machine: &Trusted<'_>, va: hypercall::VirtAddr) {
    let ops = [MmuExtOp::invlpg_local(va)];
    let mut unseen = Record::new();
    let _ = ask(machine, Request::MmuExt(&ops, DomId::SELF), &mut unseen);
}

fn x86_64_index(index: u16) -> hypercall::PageTableIndex {
    hypercall::PageTableIndex::new_truncate(index)
}
