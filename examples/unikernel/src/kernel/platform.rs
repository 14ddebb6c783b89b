//! What Xen shares with the guest besides memory: mapped when a program asks for it.

use core::ptr::NonNull;
use core::sync::atomic::AtomicU64;

use alloc::string::String;

use hypercall::xen::Xen;
use hypercall::{
    ArchSharedInfo, Call, GuestVa, Hypercalls, Mfn, Pfn, Pte, PteFlags, Request, VaFlush, VaMapping,
};
use spin::Once;

use super::boot::Early;
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

    /// Maps a frame of Xen's in the place of the last page of the direct mapping, which is then one
    /// page shorter. The builder maps some pages behind its last piece, which nobody uses.
    fn map(&self, mfn: Mfn) -> Result<GuestVa, String> {
        let last = self.xen.mapped_frames() - 1;
        if last <= self.early.root().raw() + self.early.boot.table_frames {
            return Err("no page of the builder's mapping is left".into());
        }
        let va = self.early.direct_map.checked_add_pages(last);
        let va = va.map_err(|error| alloc::format!("pfn {}: {error}", Pfn::new(last)))?;
        // SAFETY: I-3: from now on the page is no part of the direct mapping.
        unsafe { self.xen.set_mapped_frames(last) };
        let pte = Pte::new(mfn, PteFlags::KERNEL_RW);
        let mapping = VaMapping { va: va.addr(), pte, flush: VaFlush::PageAll };
        let mut calls = [Call::new(Request::VaMapping(mapping))];
        // SAFETY: the page lies behind everything that the builder made, and no token names it.
        let issued = unsafe { self.xen.issue(&mut calls) };
        issued
            .and_then(|()| calls[0].result())
            .map_err(|error| alloc::format!("{mfn}: {error}"))?;
        Ok(va)
    }
}

impl Platform for RealPlatform<'_> {
    fn pfn_at(&self, address: usize) -> Option<Pfn> {
        self.xen.pfn_at(GuestVa::new(address as u64).ok()?)
    }

    fn ports(&self) -> Result<&dyn crate::guest::Ports, String> {
        Xen::allow_ports().map_err(|error| alloc::format!("I/O ports: {error}"))?;
        Ok(&super::ports::RealPorts)
    }

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
}
