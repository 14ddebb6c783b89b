//! A turn of the guest's work, and what it may work with.

use alloc::string::String;

use hypercall::{Counting, Cpu, DomId, Hypercalls as _, Machine, MemoryOp};
use p2m::{FrameList, P2m, Toolstack};
use pvmmu::Context;

use super::super::OrSay as _;
use super::super::audit::{Published, audit};
use super::super::publish::builder_list;
use super::POOL_RESERVE;
use super::workload::Workload;
use crate::guest::{Guest, Pool};
use crate::life::{Life, Survives};

/// The time between two suspends. All that frame numbers come from is lent by it.
pub(super) struct Epoch<'e, 'g, M> {
    guest: &'e mut Guest<'g, M>,
    life: &'e dyn Life,
}

impl<'e, 'g, M: Machine + Cpu> Epoch<'e, 'g, M> {
    /// Lends the guest out until a suspend wants `life` for itself.
    pub(super) fn new(guest: &'e mut Guest<'g, M>, life: &'e dyn Life) -> Self {
        Self { guest, life }
    }

    /// Takes a turn. See [`Survives`] for why it is a plain function, and what it may return.
    pub(super) fn turn<S: Survives, R: Survives>(
        mut self,
        turn: fn(&mut Epoch<'_, '_, M>, &mut S) -> R,
        state: &mut S,
    ) -> R {
        turn(&mut self, state)
    }

    /// The toolstack's side.
    pub(super) fn life(&self) -> &dyn Life {
        self.life
    }

    /// The machine.
    pub(super) fn machine(&self) -> &Counting<&'g M> {
        &self.guest.machine
    }

    /// The frame map.
    pub(super) fn p2m(&self) -> &P2m<'_> {
        self.guest.p2m
    }

    /// Gives the workload up to `pages` more pages, but for what stays in the pool.
    pub(super) fn fill(&mut self, workload: &mut Workload, pages: u64) -> Result<(), String> {
        let Guest { machine, pool, .. } = &mut *self.guest;
        let spare = (pool.len() as u64).saturating_sub(POOL_RESERVE);
        let pages = workload.len() + spare.min(pages);
        workload.grow(&*machine, pool, pages)
    }

    /// The context of operations on memory, and the pool beside it.
    pub(super) fn parts(&mut self) -> (Context<'_, Counting<&M>>, &mut Pool) {
        self.guest.parts()
    }

    /// Prints a line.
    pub(super) fn say(&mut self, line: &str) -> Result<(), String> {
        writeln!(self.guest.console, "{line}").or_say("console")
    }

    /// Prints the frame map.
    pub(super) fn dump(&mut self) -> Result<(), String> {
        self.guest.p2m.dump(self.guest.console).or_say("console")
    }

    /// Writes the frame list and tells the toolstack where it is.
    pub(super) fn publish(&mut self, frame_list: &mut FrameList<'_>) -> Result<(), String> {
        let (list, p2m) = (builder_list(self.guest)?, self.guest.p2m);
        let Guest { machine, pool, .. } = &mut *self.guest;
        frame_list.build((&*machine, p2m), &list, pool).or_say("frame list")?;
        let top = frame_list.top(p2m).or_say("frame list")?;
        Toolstack::new(self.life.shared_info()).publish_frame_list(p2m, Some(top));
        Ok(())
    }

    /// Audits the frame map and what is published of it.
    pub(super) fn audit(&mut self, frame_list: &FrameList<'_>) -> Result<String, String> {
        let (leaves, p2m) = (builder_list(self.guest)?, self.guest.p2m);
        let published = Published {
            toolstack: &Toolstack::new(self.life.shared_info()),
            list: None,
            frame_list: Some(frame_list),
            leaves: &leaves,
        };
        audit(self.guest, p2m, &published)
    }

    /// Pages that Xen says the guest has.
    pub(super) fn reservation(&self) -> Result<u64, String> {
        // SAFETY: only reports.
        let pages =
            unsafe { self.guest.machine.memory_op(&mut MemoryOp::CurrentReservation(DomId::SELF)) };
        pages.or_say("current reservation")
    }
}
