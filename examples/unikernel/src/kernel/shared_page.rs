//! A page of the image that makes place for `shared_info`, and gets its own frame back before a
//! suspend: a table that still maps a frame of Xen's then is lost by the toolstack, without a word
//! (spec 7.2).

use alloc::format;
use alloc::string::String;
use core::cell::UnsafeCell;
use core::ptr::NonNull;

use hypercall::shared_info::SharedInfo;
use hypercall::xen::Xen;
use hypercall::{
    Call, FrameAccess as _, GuestVa, Hypercalls, Mfn, PAGE_SIZE, Pte, PteFlags, Request, VaFlush,
    VaMapping,
};
use p2m::P2m;

use super::boot;

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; PAGE_SIZE]>);

// SAFETY: nothing but the address of the page is ever used here.
unsafe impl Sync for Page {}

static PAGE: Page = Page(UnsafeCell::new([0; PAGE_SIZE]));

fn address() -> Result<GuestVa, String> {
    GuestVa::new(PAGE.0.get() as u64).map_err(|error| format!("the image's page: {error}"))
}

/// Maps `shared_info`, which has this layout (public/xen.h), until [`unmap`].
///
/// # Errors
/// A sentence.
pub(super) fn map(xen: &Xen, shared_info: Mfn) -> Result<NonNull<SharedInfo>, String> {
    let va = address()?;
    point(xen, va, shared_info)?;
    NonNull::new(va.addr().as_mut_ptr()).ok_or_else(|| "the image's page is at 0".into())
}

/// Gives the page of the image its own frame back.
///
/// # Errors
/// A sentence; then `shared_info` is still mapped.
///
/// # Safety
/// Nobody has a reference from [`map`].
pub(super) unsafe fn unmap(xen: &Xen, p2m: &P2m<'_>) -> Result<(), String> {
    let va = address()?;
    let pfn = boot::image_pfn(va).ok_or_else(|| format!("{va} is outside the image"))?;
    point(xen, va, p2m.mfn(pfn).map_err(|error| format!("the image's page: {error}"))?)
}

/// Makes the page at `va` show `mfn`.
fn point(xen: &Xen, va: GuestVa, mfn: Mfn) -> Result<(), String> {
    let pte = Pte::new(mfn, xen.offered(PteFlags::KERNEL_RW));
    let mapping = VaMapping { va: va.addr(), pte, flush: VaFlush::PageAll };
    let mut calls = [Call::new(Request::VaMapping(mapping))];
    // SAFETY: the page is this module's, and nothing but its address is used (I-2).
    let issued = unsafe { xen.issue(&mut calls) };
    issued.and_then(|()| calls[0].result()).map_err(|error| format!("mapping {mfn}: {error}"))
}
