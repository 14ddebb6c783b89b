//! The words of `shared_info` by which a guest tells a toolstack where its frame map is.
//!
//! The page belongs to Xen and is shared with the toolstack; both read and write it at any time. So
//! it is never more to Rust than atomic words.

use core::sync::atomic::AtomicU64;

/// `struct arch_shared_info` of a 64-bit guest (public/arch-x86/xen.h): the part of `shared_info`
/// from [`ArchSharedInfo::OFFSET_BYTES`] on.
#[derive(Debug, Default)]
#[repr(C)]
pub struct ArchSharedInfo {
    /// How many pfns the frame map has for the toolstack.
    pub max_pfn: AtomicU64,
    /// mfn of the top of the three-level frame list (`pfn_to_mfn_frame_list_list`); 0 or all ones
    /// if there is none.
    pub frame_list_list: AtomicU64,
    /// Xen's.
    pub nmi_reason: AtomicU64,
    /// A root, as cr3, under which `p2m_vaddr` is mapped; 0 if the linear list is not to be used.
    pub p2m_cr3: AtomicU64,
    /// Address of the linear list.
    pub p2m_vaddr: AtomicU64,
    /// Odd while the *mapping* of the linear list changes.
    pub p2m_generation: AtomicU64,
}

impl ArchSharedInfo {
    /// Where in the `shared_info` page it begins.
    pub const OFFSET_BYTES: usize = 3088;
}
