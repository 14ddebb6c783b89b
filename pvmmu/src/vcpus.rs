//! The vCPUs that run on each address space.
#![expect(unsafe_code, reason = "believes the caller that every load goes through here (I-19)")]

use hypercall::{Pfn, VcpuSet};

use crate::pgd::Pgd;
use crate::running::Running;

/// The vCPUs of each address space: a place for each vCPU, up to 32, in the caller's memory.
///
/// A vCPU counts from before it asks for a load until another one has been answered. So an answer
/// may name one too many, but never one too few.
#[derive(Clone, Copy, Debug)]
pub struct Vcpus<'a> {
    places: &'a [Running],
}

impl<'a> Vcpus<'a> {
    /// Uses one place for each vCPU. Those beyond 32 cannot be counted and are refused.
    ///
    /// # Safety
    /// Every load of an address space goes through these places, from now until the last one
    /// loaded is gone. Operations with tools that are [`tracked`](crate::Tools::tracked) by them
    /// flush only the vCPUs that they name (I-19).
    ///
    /// ```
    /// use pvmmu::{Running, Vcpus};
    ///
    /// static RUNNING: [Running; 4] = [const { Running::nowhere() }; 4];
    /// // The kernel loads roots through these alone.
    /// let vcpus = unsafe { Vcpus::new(&RUNNING) };
    /// # let _ = vcpus;
    /// ```
    #[must_use]
    pub const unsafe fn new(places: &'a [Running]) -> Self {
        Self { places }
    }

    /// Returns the vCPUs that run on `pgd`, or are about to, or have not yet left it.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let (pgd, tools) = TestGuest::with_pinned(Pages::one(GuestVa::new(0x40_0000)?));
    /// let running = [Running::nowhere(), Running::nowhere()];
    /// let vcpus = unsafe { Vcpus::new(&running) };
    /// assert!(vcpus.on(&pgd).is_empty());
    /// unsafe { vcpus.load(&tools.guest, 0, &pgd) }?;
    /// assert_eq!(vcpus.on(&pgd), VcpuSet::one(0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn on<S>(self, pgd: &Pgd<S>) -> VcpuSet {
        self.on_root(pgd.root())
    }

    pub(crate) fn on_root(self, root: Pfn) -> VcpuSet {
        let places = (0u32..32).zip(self.places);
        let running = places.filter(|(_, place)| place.on(root));
        running.fold(VcpuSet::NONE, |set, (number, _)| set.union(VcpuSet::one(number)))
    }

    /// Returns the place of a vCPU that [`on`](Self::on) counts.
    pub(crate) fn place(self, vcpu: usize) -> Option<&'a Running> {
        self.places.iter().take(32).nth(vcpu)
    }
}
