//! Operations after which a frame is another one: exchanges and balloon steps, and what they need
//! done first.

use hypercall::{
    DomId, Domains, Errno, Exchange, Extent, MemoryOp, Mfn, MmuExtOp, MmuUpdate, PAGE_SIZE, Pfn,
    Pte, PteFlags, Request, Reservation,
};

use crate::apply::{ABSENT, ask};
use crate::coverage::Answer;
use crate::generate::{Prover, SLOTS_USED};
use crate::op::{Kind, Op};
use crate::record::Record;
use crate::trusted::Trusted;

impl Prover<'_> {
    /// Takes everything apart that involves a frame: nothing refers to it any more, and it is not
    /// mapped.
    pub(crate) fn retire(&self, machine: &Trusted<'_>, place: u8, seen: &mut Record) {
        let frame = self.arena.frame(place);
        let ops = [MmuExtOp::new_user_baseptr(None), MmuExtOp::unpin(frame.mfn)];
        for op in &ops {
            let request = Request::MmuExt(core::slice::from_ref(op), DomId::SELF);
            let answer = ask(machine, request, seen);
            seen.add(answer.code());
        }
        for holder in 0..self.arena.frames.len() {
            let holder = u8::try_from(holder).unwrap_or(0);
            let mapping = self.arena.direct(machine, holder);
            if mapping.is_none() {
                // To see what is in it, it must be mapped.
                let op = Op {
                    kind: Kind::DirectVa,
                    a: holder,
                    b: 0,
                    index: 0,
                    flags: PteFlags::KERNEL_RO.bits(),
                };
                let answer = self.direct(machine, op, seen);
                seen.add(answer.code());
            }
            for index in SLOTS_USED {
                let Some(entry) = self.read(machine, holder, index) else { continue };
                if entry.mfn() != frame.mfn {
                    continue;
                }
                let update = [MmuUpdate::set(self.slot(holder, index), Pte::ABSENT)];
                let request = Request::MmuUpdate(&update, Domains::SELF);
                let answer = ask(machine, request, seen);
                seen.add(answer.code());
            }
        }
    }

    /// Maps a frame writable, if it may be, and fills it with zeroes.
    pub(crate) fn adopt(&self, machine: &Trusted<'_>, place: u8, seen: &mut Record) -> Answer {
        let flags = PteFlags::KERNEL_RW.bits();
        let op = Op { kind: Kind::DirectVa, a: place, b: 0, index: 0, flags };
        let answer = self.direct(machine, op, seen);
        let pfn = self.arena.frame(place).pfn;
        if answer == Answer::Done {
            let zeroed = { machine.write_bytes(pfn, 0, &[0; PAGE_SIZE]) };
            seen.add(u64::from(zeroed.is_ok()));
        }
        answer
    }

    pub(crate) fn reset(&self, machine: &Trusted<'_>, place: u8, seen: &mut Record) -> Answer {
        {
            self.retire(machine, place, seen);
            self.adopt(machine, place, seen)
        }
    }

    /// Unmaps a frame; whether nothing refers to it any more cannot be seen, but follows from
    /// `retire`.
    pub(crate) fn unmap(&self, machine: &Trusted<'_>, place: u8, seen: &mut Record) {
        let op = Op { kind: Kind::DirectVa, a: place, b: 0, index: 0, flags: 0 };
        let answer = self.direct(machine, op, seen);
        seen.add(answer.code());
    }

    /// One extent for another.
    pub(crate) fn exchange_one(machine: &Trusted<'_>, given: Mfn, pfn: Pfn) -> Result<Mfn, Errno> {
        let (mut give, mut take) = ([Extent::from_mfn(given)], [Extent::from_pfn(pfn)]);
        let list = |extents| Reservation { extents, order: 0, flags: 0, domain: DomId::SELF };
        let exchange = Exchange { give: list(&mut give), take: list(&mut take) };
        match machine.memory_op(&mut MemoryOp::Exchange(exchange)) {
            Ok(_) => Ok(take[0].mfn()),
            Err(error) => Err(error.errno),
        }
    }

    pub(crate) fn exchange(&mut self, machine: &Trusted<'_>, op: Op, seen: &mut Record) -> Answer {
        let frame = self.arena.frame(op.a);
        let taken = {
            self.retire(machine, op.a, seen);
            self.unmap(machine, op.a, seen);
            Self::exchange_one(machine, frame.mfn, frame.pfn)
        };
        let answer = match taken {
            Ok(mfn) => {
                self.replace(op.a, mfn);
                Answer::Done
            }
            Err(errno) => Answer::Refused(errno),
        };
        let adopted = self.adopt(machine, op.a, seen);
        seen.add(adopted.code());
        answer
    }

    pub(crate) fn exchange_used(
        &mut self,
        machine: &Trusted<'_>,
        op: Op,
        _: &mut Record,
    ) -> Answer {
        let frame = self.arena.frame(op.a);
        if self.arena.direct(machine, op.a).is_none() {
            return Answer::Skipped;
        }
        match Self::exchange_one(machine, frame.mfn, frame.pfn) {
            Ok(mfn) => {
                self.replace(op.a, mfn);
                Answer::Done
            }
            Err(errno) => Answer::Refused(errno),
        }
    }

    pub(crate) fn balloon(&mut self, machine: &Trusted<'_>, op: Op, seen: &mut Record) -> Answer {
        let frame = self.arena.frame(op.a);
        let list = |extents| Reservation { extents, order: 0, flags: 0, domain: DomId::SELF };
        let mut given = [Extent::from_mfn(frame.mfn)];
        let mut wanted = [Extent::from_pfn(frame.pfn)];
        {
            self.retire(machine, op.a, seen);
            if op.kind == Kind::Balloon {
                self.unmap(machine, op.a, seen);
            }
            let done = machine.memory_op(&mut MemoryOp::Decrease(list(&mut given)));
            seen.add(done.unwrap_or(ABSENT));
            seen.add(u64::from(machine.machine_to_phys(frame.mfn) == Some(frame.pfn)));
            if op.kind == Kind::BalloonUsed {
                self.unmap(machine, op.a, seen);
                seen.add(u64::from(machine.machine_to_phys(frame.mfn) == Some(frame.pfn)));
            }
            let done = machine.memory_op(&mut MemoryOp::Populate(list(&mut wanted)));
            seen.add(done.unwrap_or(ABSENT));
            if done != Ok(1) {
                return Answer::Refused(Errno::ENOMEM);
            }
        }
        self.replace(op.a, wanted[0].mfn());
        self.adopt(machine, op.a, seen)
    }

    pub(crate) fn replace(&mut self, place: u8, mfn: Mfn) {
        let at = usize::from(place) % self.arena.frames.len();
        self.arena.frames[at].mfn = mfn;
    }
}
