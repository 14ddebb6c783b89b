//! What Xen shares with the guest besides memory: mapped when a program asks for it.

use core::ptr::NonNull;
use core::sync::atomic::AtomicU64;

use alloc::boxed::Box;
use alloc::string::String;

use hypercall::shared_info::{ArchSharedInfo, SharedInfo};
use hypercall::xen::Xen;
use hypercall::{FrameAccess as _, Frames, GuestVa, Pfn};
use spin::Once;

use super::boot::{self, Early};
use super::life::RealLife;
use super::ports::RealPorts;
use super::{heap, shared_page, traps};
use crate::life::Life;
use crate::program::{Platform, Ports};

/// The page, which is atomic.
struct Mapped(NonNull<SharedInfo>);

/// The platform of the running guest.
pub(super) struct RealPlatform<'a> {
    early: &'a Early,
    xen: &'a Xen,
    /// Where it is mapped, or why it is not.
    shared_info: Once<Result<Mapped, String>>,
}

impl<'a> RealPlatform<'a> {
    /// Nothing is mapped yet.
    pub(super) const fn new(early: &'a Early, xen: &'a Xen) -> Self {
        Self { early, xen, shared_info: Once::new() }
    }
}

impl Platform for RealPlatform<'_> {
    fn shared_info(&self) -> Result<&ArchSharedInfo, String> {
        let mfn = self.early.boot.shared_info;
        let mapped = self.shared_info.call_once(|| shared_page::map(self.xen, mfn).map(Mapped));
        // SAFETY: the page stays mapped: only a life unmaps it, and there is none.
        mapped.as_ref().map(|Mapped(page)| unsafe { &page.as_ref().arch }).map_err(String::clone)
    }

    fn words(&self, va: GuestVa) -> Option<NonNull<AtomicU64>> {
        NonNull::new(va.addr().as_mut_ptr())
    }

    fn privileged(&self, work: &mut dyn FnMut()) -> Option<u64> {
        let before = traps::skipped();
        work();
        Some(traps::skipped() - before)
    }

    fn wait(&self) {
        Xen::yield_now();
    }

    fn entered(&self) -> u64 {
        self.early.entered
    }

    fn pfn_at(&self, address: usize) -> Option<Pfn> {
        boot::image_pfn(GuestVa::new(address as u64).ok()?)
    }

    fn ports(&self) -> Result<&dyn Ports, String> {
        Xen::allow_ports().map_err(|error| alloc::format!("I/O ports: {error}"))?;
        Ok(&RealPorts)
    }

    fn life(&self) -> Result<Box<dyn Life + '_>, String> {
        if self.shared_info.get().is_some() {
            return Err("shared_info is in use already".into());
        }
        self.shared_info.call_once(|| Err("ask the guest's life for shared_info".into()));
        Ok(Box::new(RealLife::begin(self.early, self.xen)?))
    }

    unsafe fn execute(&self, va: GuestVa) -> Option<bool> {
        // SAFETY: the caller's promise is handed on.
        Some(unsafe { traps::try_execute(va) })
    }

    fn extend_heap(&self, frames: Frames) -> Result<(), Frames> {
        let Ok(start) = self.xen.direct_map(frames.start()) else { return Err(frames) };
        // SAFETY: the direct mapping maps frames that are nobody's writable, in the order of their
        // pfns (I-3), and nobody changes that as long as the heap has their token (I-1).
        unsafe { heap::extend(frames, start) }
    }

    fn shrink_heap(&self) -> Option<Frames> {
        heap::shrink()
    }

    unsafe fn direct_map_reaches(&self, frames: u64) {
        // SAFETY: the caller's promise is handed on.
        unsafe { self.xen.set_mapped_frames(frames) };
    }
}
