//! Frames that go to Xen and come back as others.

use hypercall::memory::{Exchange, Extent, MemoryOp, Reservation};
use hypercall::{DomId, Machine, MmuExtOp, PAGE_SIZE, PteFlags};

use super::{Answer, Executor};
use crate::arena::{SLOTS, index};
use crate::op::Hold;

const NONE: PteFlags = PteFlags::empty();

impl Executor {
    /// Issues `XENMEM_exchange` of one frame.
    pub(super) fn exchange<M: Machine>(&mut self, machine: &M, number: u8, hold: Hold) -> Answer {
        if self.is_named(machine, number) {
            return Answer::Skipped;
        }
        let before = self.read_direct(machine, number).flags();
        if hold == Hold::Released {
            self.release(machine, number);
        }
        let frame = *self.arena.frame(number);
        let mut give = [Extent::from_mfn(frame.mfn)];
        let mut take = [Extent::from_pfn(frame.pfn)];
        let exchange = Exchange { give: one(&mut give), take: one(&mut take) };
        // SAFETY: the frame belongs to the arena; Xen refuses it if anything maps it.
        let answer = match unsafe { machine.memory_op(&mut MemoryOp::Exchange(exchange)) } {
            Ok(count) => Answer::Done(count),
            Err(error) => Answer::Refused(error.errno.raw()),
        };
        if answer == Answer::Done(1) {
            self.arena.frame_mut(number).mfn = take[0].mfn();
            self.adopt(machine, number);
        } else if hold == Hold::Released {
            let _ = self.set_direct(machine, number, before);
        }
        self.count_reservation(machine);
        answer
    }

    /// Issues `XENMEM_decrease_reservation` of one frame, then `XENMEM_populate_physmap` in its
    /// place.
    pub(super) fn balloon<M: Machine>(&mut self, machine: &M, number: u8, hold: Hold) -> Answer {
        if self.is_named(machine, number) || self.is_held(number) {
            return Answer::Skipped;
        }
        if hold == Hold::Released {
            self.release(machine, number);
        }
        let frame = *self.arena.frame(number);
        let mut list = [Extent::from_mfn(frame.mfn)];
        // SAFETY: the frame belongs to the arena; Xen frees it when nothing maps it any more.
        let given = unsafe { machine.memory_op(&mut MemoryOp::Decrease(one(&mut list))) };
        self.count_reservation(machine);
        if hold == Hold::Mapped {
            self.release(machine, number);
            self.count_reservation(machine);
        }
        let mut list = [Extent::from_pfn(frame.pfn)];
        // SAFETY: the pfn has no memory now.
        let taken = unsafe { machine.memory_op(&mut MemoryOp::Populate(one(&mut list))) };
        if taken == Ok(1) {
            self.arena.frame_mut(number).mfn = list[0].mfn();
            self.adopt(machine, number);
        } else {
            let at = usize::from(number) % self.arena.len();
            self.dead[at] = true;
        }
        self.count_reservation(machine);
        let [given, taken] = [given, taken].map(|result| result.unwrap_or(u64::from(u16::MAX)));
        Answer::Done(given << 16 | taken)
    }

    /// Takes a frame out of the direct mapping, and out of the TLB.
    fn release<M: Machine>(&mut self, machine: &M, number: u8) {
        let _ = self.set_direct(machine, number, NONE);
        let _ = self.op(machine, MmuExtOp::tlb_flush_local());
    }

    /// Maps a frame that has just come from Xen, and clears it: what is in it is not defined.
    fn adopt<M: Machine>(&mut self, machine: &M, number: u8) {
        let mapped = self.set_direct(machine, number, PteFlags::KERNEL_RW);
        self.observation.push(mapped.word());
        self.freshen(machine);
        let pfn = self.arena.frame(number).pfn;
        // SAFETY: the frame belongs to the arena, and has just been mapped writable.
        let cleared = unsafe { machine.write_bytes(pfn, 0, &[0; PAGE_SIZE]) };
        self.observation.push(u64::from(cleared.is_ok()));
    }

    /// Returns whether a word of another frame, present or not, names the frame: its number would
    /// change its meaning.
    fn is_named<M: Machine>(&self, machine: &M, number: u8) -> bool {
        let mfn = self.arena.frame(number).mfn;
        let own = self.arena.frame(number).pfn;
        let others = self.arena.frames().iter().zip(&self.dead);
        let others = others.filter(|(frame, dead)| frame.pfn != own && !**dead);
        let mut words = others.flat_map(|(frame, _)| {
            let slots = (0..SLOTS.len()).map(|slot| u8::try_from(slot).unwrap_or(0));
            slots.map(|slot| machine.read_entry(frame.pfn, index(slot)))
        });
        words.any(|word| word.is_ok_and(|pte| pte.mfn() == mfn))
    }

    /// Observes how many frames the guest has, compared with the first time.
    fn count_reservation<M: Machine>(&mut self, machine: &M) {
        // SAFETY: only reports.
        let now = unsafe { machine.memory_op(&mut MemoryOp::CurrentReservation(DomId::SELF)) };
        let now = now.unwrap_or(0);
        let start = *self.start_reservation.get_or_insert(now);
        self.observation.push(now.wrapping_sub(start));
    }
}

/// One frame of the guest's.
fn one(extents: &mut [Extent]) -> Reservation<'_> {
    Reservation { extents, order: 0, flags: 0, domain: DomId::SELF }
}
