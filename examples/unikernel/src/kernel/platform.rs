//! What Xen shares with the guest besides memory: mapped when a program asks for it.

use core::ptr::NonNull;
use core::sync::atomic::AtomicU64;

use alloc::string::String;

use hypercall::xen::Xen;
use hypercall::{
    ArchSharedInfo, Call, GuestVa, Hypercalls, Mfn, Pte, PteFlags, Request, VaFlush, VaMapping,
};
use spin::Once;

use super::boot::Early;
use super::heap;
use crate::guest::Platform;

/// The platform of the running guest.
pub(super) struct RealPlatform<'a> {
    early: &'a Early,
    xen: &'a Xen,
    shared_info: Once<Result<GuestVa, String>>,
}

impl<'a> RealPlatform<'a> {
    /// Nothing is mapped yet.
    pub(super) const fn new(early: &'a Early, xen: &'a Xen) -> Self {
        Self { early, xen, shared_info: Once::new() }
    }

    /// Maps a frame of Xen's in the place of a page of the image that exists for this.
    fn map(&self, mfn: Mfn) -> Result<GuestVa, String> {
        let va = heap::spare_page().ok_or("the image has no address of the guest's")?;
        let pte = Pte::new(mfn, PteFlags::KERNEL_RW);
        let mapping = VaMapping { va: va.addr(), pte, flush: VaFlush::PageAll };
        let mut calls = [Call::new(Request::VaMapping(mapping))];
        // SAFETY: nothing but the address of the page is ever used.
        let issued = unsafe { self.xen.issue(&mut calls) };
        issued
            .and_then(|()| calls[0].result())
            .map_err(|error| alloc::format!("{mfn}: {error}"))?;
        Ok(va)
    }
}

impl Platform for RealPlatform<'_> {
    fn shared_info(&self) -> Result<&ArchSharedInfo, String> {
        let va = self.shared_info.call_once(|| self.map(self.early.boot.shared_info)).clone()?;
        let arch: *const ArchSharedInfo = va.addr().as_ptr();
        let arch = arch.wrapping_byte_add(ArchSharedInfo::OFFSET_BYTES);
        // SAFETY: the page is mapped for as long as the guest runs, and has this layout there
        // (public/xen.h); the words are atomic.
        Ok(unsafe { &*arch })
    }

    fn words(&self, va: GuestVa) -> Option<NonNull<AtomicU64>> {
        NonNull::new(va.addr().as_mut_ptr())
    }

    fn wait(&self) {
        Xen::yield_now();
    }

    unsafe fn direct_map_reaches(&self, frames: u64) {
        // SAFETY: the caller's promise is handed on.
        unsafe { self.xen.set_mapped_frames(frames) };
    }
}
