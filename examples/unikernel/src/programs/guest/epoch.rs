//! A turn of the guest's work, and what it may work with.

use alloc::string::String;

use hypercall::memory::MemoryOp;
use hypercall::middleware::Counting;
use hypercall::{Cpu, DomId, ENTRIES, Hypercalls as _, Machine, PAGE_SHIFT};
use p2m::runs::Census;
use p2m::{FrameList, Guest, Leaves, P2m, Toolstack, Window};
use pvmmu::audit::{Finding, audit as audit_tables, audit_words};

use super::super::OrSay as _;
use super::super::audit::{Published, audit};
use super::super::publish::builder_list;
use super::POOL_RESERVE;
use super::hoard::Hoard;
use super::workload::Workload;
use crate::life::{Life, Survives};
use crate::pool::Pool;
use crate::program::{Kernel, Platform};

/// The heap may have one page of so many.
const HEAP_SHARE: u64 = 8;

/// The time between two suspends. All that frame numbers come from is lent by it.
pub(super) struct Epoch<'e, 'g, M> {
    kernel: &'e mut Kernel<'g, M>,
    life: &'e dyn Life,
}

impl<'e, 'g, M: Machine + Cpu> Epoch<'e, 'g, M> {
    /// Lends the guest out until a suspend wants `life` for itself.
    pub(super) fn new(kernel: &'e mut Kernel<'g, M>, life: &'e dyn Life) -> Self {
        Self { kernel, life }
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

    /// What the machine gives besides memory and hypercalls.
    pub(super) fn platform(&self) -> &'g dyn Platform {
        self.kernel.platform
    }

    /// The machine.
    pub(super) fn machine(&self) -> &Counting<&'g M> {
        self.kernel.guest.machine()
    }

    /// The frame map.
    pub(super) fn p2m(&self) -> &P2m<'_> {
        self.kernel.guest.p2m()
    }

    /// Lets the heap have its share of the memory, and the workload up to `pages` more pages, but
    /// for what stays in the pool.
    pub(super) fn fill(
        &mut self,
        workload: &mut Workload,
        hoard: &mut Hoard,
        pages: u64,
    ) -> Result<(), String> {
        let heap = self.kernel.guest.p2m().len() / HEAP_SHARE;
        let Kernel { guest, pool, platform, .. } = &mut *self.kernel;
        hoard.grow(*platform, pool, heap, POOL_RESERVE)?;
        let spare = (pool.len() as u64).saturating_sub(POOL_RESERVE);
        let pages = workload.len() + spare.min(pages);
        workload.grow(guest.machine(), pool, pages)
    }

    /// Looks at `count` pages of the workload and writes them anew, on both vCPUs if there are two.
    /// The second one is up meanwhile and at no other time, so that none but the first has anything
    /// to lose in a suspend.
    pub(super) fn work(&self, workload: &mut Workload, count: u64) -> Result<(), String> {
        let Some(second) = self.kernel.second else {
            return workload.work(self.machine(), count);
        };
        let before = workload.beside;
        second.start()?;
        let worked = workload.work_beside(self.machine(), second, count);
        second.stop()?;
        worked?;
        match workload.beside > before || workload.len() < 2 {
            true => Ok(()),
            false => Err("the second vCPU did nothing".into()),
        }
    }

    /// The guest itself, and the toolstack's side beside it.
    pub(super) fn kernel(&mut self) -> (&mut Kernel<'g, M>, &dyn Life) {
        (self.kernel, self.life)
    }

    /// Frames that nobody uses.
    pub(super) const fn free(&self) -> u64 {
        self.kernel.pool.len() as u64
    }

    /// The frames that nobody uses.
    pub(super) const fn pool(&mut self) -> &mut Pool {
        &mut self.kernel.pool
    }

    /// The guest as operations take it, and the pool beside it.
    pub(super) const fn parts(&mut self) -> (Guest<'_, Counting<&'g M>>, &mut Pool) {
        (self.kernel.guest, &mut self.kernel.pool)
    }

    /// Prints a line.
    pub(super) fn say(&mut self, line: &str) -> Result<(), String> {
        writeln!(self.kernel.console, "{line}").or_say("console")
    }

    /// Prints the frame map.
    pub(super) fn dump(&mut self) -> Result<(), String> {
        self.kernel.guest.p2m().dump(self.kernel.console).or_say("console")
    }

    /// Writes the frame list and tells the toolstack where it is.
    pub(super) fn publish(
        &mut self,
        frame_list: &mut FrameList<'_>,
        window: Option<&Window>,
    ) -> Result<(), String> {
        let (list, p2m) = (builder_list(self.kernel)?, self.kernel.guest.p2m());
        let Kernel { guest, pool, .. } = &mut *self.kernel;
        match window {
            None => frame_list.build(guest, &list, pool),
            Some(window) => {
                // After a restore its shared pages hold what the toolstack wrote.
                window.refill_holes(guest.machine()).or_say("the window")?;
                frame_list.build(guest, window, pool)
            }
        }
        .or_say("frame list")?;
        let top = frame_list.top(p2m).or_say("frame list")?;
        let toolstack = Toolstack::new(self.life.shared_info());
        // SAFETY: it was built of the list's pages, and is built again when they change.
        unsafe { toolstack.publish_frame_list(p2m, Some(top)) };
        Ok(())
    }

    /// Audits the frame map and what is published of it.
    pub(super) fn audit(
        &mut self,
        frame_list: &FrameList<'_>,
        window: Option<&Window>,
    ) -> Result<String, String> {
        match window {
            None => self.audit_with(frame_list, &builder_list(self.kernel)?),
            Some(window) => self.audit_with(frame_list, window),
        }
    }

    fn audit_with(
        &mut self,
        frame_list: &FrameList<'_>,
        leaves: &impl Leaves,
    ) -> Result<String, String> {
        let toolstack = &Toolstack::new(self.life.shared_info());
        let (list, frame_list) = (None, Some(frame_list));
        audit(self.kernel, &Published { toolstack, list, frame_list, leaves })
    }

    /// Audits the tables that the guest runs on. The one frame in them that P2M does not know is
    /// Xen's page, at its place.
    pub(super) fn audit_tables(&self) -> Result<u64, String> {
        let kernel = &*self.kernel;
        // The tables of the image serve the direct mapping, too: the address says the entry alone.
        let entry = |va: u64| va >> PAGE_SHIFT & (ENTRIES as u64 - 1);
        let xens = core::ptr::from_ref(self.life.shared_info()).addr() as u64;
        let words = usize::try_from(audit_words(kernel.guest.p2m().len())).or_say("audit")?;
        let (mut memory, mut first, mut unknown) = (alloc::vec![0; words], None, 0);
        let read = audit_tables(&kernel.guest, &[], &mut memory, &mut |finding| match finding {
            Finding::UnknownFrame(place)
                if unknown == 0 && entry(place.va.raw()) == entry(xens) =>
            {
                unknown += 1;
            }
            finding => first = first.or(Some(finding)),
        });
        match first {
            None => read.or_say("audit of the tables"),
            Some(finding) => Err(alloc::format!("the tables: {finding}")),
        }
    }

    /// Frames that are neither free nor in the workload or on the heap: those of the kernel, its
    /// tables and lists.
    pub(super) fn apart(&self, workload: &Workload, hoard: &Hoard) -> u64 {
        let p2m = self.p2m();
        let populated = Census::of(p2m, p2m.all()).ram;
        let held = workload.len() + hoard.frames();
        populated.wrapping_sub(held + self.free())
    }

    /// Pages that Xen says the guest has.
    pub(super) fn reservation(&self) -> Result<u64, String> {
        // SAFETY: only reports.
        let pages = unsafe {
            self.kernel.guest.machine().memory_op(&mut MemoryOp::CurrentReservation(DomId::SELF))
        };
        pages.or_say("current reservation")
    }
}
