//! What operations on a pinned address space work with.

use hypercall::{Batch, Pfn};

use crate::flush::Reach;
use crate::pool::TablePool;
use crate::vcpus::Vcpus;
use p2m::Guest;

/// Whether pages that an operation keeps mapped may be missing while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// They stay mapped throughout: other vCPUs, or interrupts, may use them. What the CPU notes of
    /// them meanwhile (dirty bits, and accessed bits where an entry keeps its place) is kept. Pages
    /// that can be written and are clean lose write access for a moment where their dirty bits go
    /// elsewhere, in [`Edit::remap`](crate::Edit::remap) and
    /// [`Edit::clear_reading_ad`](crate::Edit::clear_reading_ad): whoever writes one then
    /// faults, finds it mapped, and tries again. Pages that must be written without a fault, by a
    /// handler that cannot wait, are mapped with the dirty bit set.
    Steady,
    /// Nobody uses the address space meanwhile: whole tables may be taken out, changed and put
    /// back.
    MayVanish,
}

/// What operations on a pinned address space work with.
///
/// # Invariants
/// I-19: the flushes of an operation reach every vCPU whose TLB may know the address space.
#[derive(Debug)]
pub struct Tools<'a, 'b, 't, M, F> {
    /// The guest.
    pub guest: Guest<'a, M>,
    /// Where changes are collected. It bounds how much goes to Xen in one trap.
    pub batch: &'a mut Batch<'b>,
    /// Empty validated tables.
    pub tables: &'a mut TablePool<'t>,
    /// Frames, for pages and for tables.
    pub frames: &'a mut F,
    /// Whether pages may be missing meanwhile.
    pub presence: Presence,
    /// Whose TLBs may know of the address space.
    pub(crate) reach: Reach,
    /// Where the vCPUs run, if that is tracked: `reach` then follows from it.
    pub(crate) vcpus: Option<Vcpus<'a>>,
}

impl<'a, 'b, 't, M, F> Tools<'a, 'b, 't, M, F> {
    /// Makes tools that keep pages present throughout and flush every vCPU: right for any address
    /// space.
    ///
    /// ```
    /// # use pv_tests::guest::TestGuest;
    /// use pvmmu::{Presence, TablePool, Tools};
    ///
    /// # let mut test = TestGuest::new();
    /// # let (guest, batch) = (test.guest, test.batch());
    /// let mut pool = TablePool::new([&mut [], &mut [], &mut []]); // no tables wait in it
    /// let mut tools = Tools::new(guest, batch, &mut pool, &mut test.frames);
    /// tools.presence = Presence::MayVanish; // nobody runs on what is changed
    /// ```
    pub fn new(
        guest: Guest<'a, M>,
        batch: &'a mut Batch<'b>,
        tables: &'a mut TablePool<'t>,
        frames: &'a mut F,
    ) -> Self {
        let (presence, reach) = (Presence::Steady, Reach::Everywhere);
        Self { guest, batch, tables, frames, presence, reach, vcpus: None }
    }

    /// Has operations flush only the vCPUs that, as `vcpus` knows, run on the address space they
    /// change.
    ///
    /// ```
    /// # use hypercall::GuestVa;
    /// # use pv_tests::guest::TestGuest;
    /// use pvmmu::{Pages, Running, Vcpus};
    ///
    /// static RUNNING: [Running; 2] = [Running::nowhere(), Running::nowhere()];
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// let (mut pgd, tools) = TestGuest::with_pinned(pages);
    /// // The kernel loads roots through these alone.
    /// let vcpus = unsafe { Vcpus::new(&RUNNING) };
    /// pgd.unmap(&mut tools.tracked(vcpus), pages)?; // nobody runs on it: nothing is flushed
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn tracked(mut self, vcpus: Vcpus<'a>) -> Self {
        self.vcpus = Some(vcpus);
        self
    }

    /// Has operations flush `reach`, whatever they change.
    ///
    /// # Safety
    /// No TLB of any other vCPU knows anything of the address spaces that are changed with these
    /// tools: an unmapped frame is handed out as soon as the vCPUs of `reach` have flushed (I-19).
    #[expect(unsafe_code, reason = "believes what the caller says of TLBs (I-19)")]
    pub unsafe fn set_reach(&mut self, reach: Reach) {
        (self.reach, self.vcpus) = (reach, None);
    }

    /// Notes whose TLBs know of the address space under `root`, which is about to be changed.
    pub(crate) fn begin(&mut self, root: Pfn) {
        if let Some(vcpus) = self.vcpus {
            self.reach = Reach::Vcpus(vcpus.on_root(root));
        }
    }
}
