//! Checks our types against Xen's at compile time.
//!
//! Every structure that crosses into Xen is defined in this crate and checked here against the
//! bindings of `xen-sys`. What `xen-sys` lacks (`XENMEM_*`, the structures of memory.h) is checked
//! against the offsets of Xen's public headers, as docs/abi.md lists them. Nothing here exists at
//! run time. The files of `xen/` check their private structures themselves.

use core::mem::{align_of, offset_of, size_of};

use crate::commands::{ext, mmu};
use crate::grants::{GrantMap, GrantUnmap, flags};
use crate::memory::{MachphysMapping, MemoryRegion};
use crate::op::{MmuExtOp, MmuUpdate};
use crate::shared_info::{ArchSharedInfo, MapWords, SharedInfo, TimeInfo, VcpuInfo};
use crate::start_info::StartInfo;

macro_rules! same_layout {
    ($ours:ty, $theirs:ty) => {
        const _: () = assert!(size_of::<$ours>() == size_of::<$theirs>());
        const _: () = assert!(align_of::<$ours>() == align_of::<$theirs>());
    };
}

macro_rules! same_numbers {
    ($($ours:expr => $theirs:ident),* $(,)?) => {
        $(const _: () = assert!($ours as u64 == xen_sys::$theirs as u64);)*
    };
}

same_layout!(MmuUpdate, xen_sys::mmu_update);
same_layout!(MmuExtOp, xen_sys::mmuext_op);
same_layout!(StartInfo, xen_sys::start_info);
const _: () = assert!(size_of::<MmuUpdate>() == 16);
const _: () = assert!(size_of::<MmuExtOp>() == 24);

macro_rules! same_offsets {
    ($($ours:ident => $theirs:ident),* $(,)?) => {
        $(const _: () = assert!(
            offset_of!(StartInfo, $ours) == offset_of!(xen_sys::start_info, $theirs)
        );)*
    };
}

same_offsets! {
    magic => magic, nr_pages => nr_pages, shared_info => shared_info, flags => flags,
    store_mfn => store_mfn, store_evtchn => store_evtchn, console_mfn => console,
    pt_base => pt_base, nr_pt_frames => nr_pt_frames, mfn_list => mfn_list,
    mod_start => mod_start, mod_len => mod_len, cmd_line => cmd_line,
    first_p2m_pfn => first_p2m_pfn, nr_p2m_frames => nr_p2m_frames,
}
const _: () = assert!(offset_of!(StartInfo, console_evtchn) == 80);

same_numbers! {
    mmu::NORMAL => MMU_NORMAL_PT_UPDATE,
    mmu::MACHPHYS => MMU_MACHPHYS_UPDATE,
    mmu::PRESERVE_AD => MMU_PT_UPDATE_PRESERVE_AD,
    mmu::NO_TRANSLATE => MMU_PT_UPDATE_NO_TRANSLATE,
    ext::PIN_L1_TABLE => MMUEXT_PIN_L1_TABLE,
    ext::PIN_L4_TABLE => MMUEXT_PIN_L4_TABLE,
    ext::UNPIN_TABLE => MMUEXT_UNPIN_TABLE,
    ext::NEW_BASEPTR => MMUEXT_NEW_BASEPTR,
    ext::TLB_FLUSH_LOCAL => MMUEXT_TLB_FLUSH_LOCAL,
    ext::INVLPG_LOCAL => MMUEXT_INVLPG_LOCAL,
    ext::TLB_FLUSH_MULTI => MMUEXT_TLB_FLUSH_MULTI,
    ext::INVLPG_MULTI => MMUEXT_INVLPG_MULTI,
    ext::TLB_FLUSH_ALL => MMUEXT_TLB_FLUSH_ALL,
    ext::INVLPG_ALL => MMUEXT_INVLPG_ALL,
    ext::FLUSH_CACHE => MMUEXT_FLUSH_CACHE,
    ext::SET_LDT => MMUEXT_SET_LDT,
    ext::NEW_USER_BASEPTR => MMUEXT_NEW_USER_BASEPTR,
    ext::CLEAR_PAGE => MMUEXT_CLEAR_PAGE,
    ext::COPY_PAGE => MMUEXT_COPY_PAGE,
    ext::FLUSH_CACHE_GLOBAL => MMUEXT_FLUSH_CACHE_GLOBAL,
    ext::MARK_SUPER => MMUEXT_MARK_SUPER,
    ext::UNMARK_SUPER => MMUEXT_UNMARK_SUPER,
}

// memory.h is not in the bindings: sizes and offsets are from the header itself.
const _: () = assert!(size_of::<MemoryRegion>() == 20);
const _: () = assert!(offset_of!(MemoryRegion, kind) == 16);
const _: () = assert!(size_of::<MachphysMapping>() == 24);

// grant_table.h is not in the bindings either.
const _: () = assert!(size_of::<GrantMap>() == 32);
const _: () = assert!(offset_of!(GrantMap, host_addr) == 0);
const _: () = assert!(offset_of!(GrantMap, flags) == 8);
const _: () = assert!(offset_of!(GrantMap, reference) == 12);
const _: () = assert!(offset_of!(GrantMap, domain) == 16);
const _: () = assert!(offset_of!(GrantMap, status) == 18);
const _: () = assert!(offset_of!(GrantMap, handle) == 20);
const _: () = assert!(offset_of!(GrantMap, dev_bus_addr) == 24);
const _: () = assert!(size_of::<GrantUnmap>() == 24);
const _: () = assert!(offset_of!(GrantUnmap, dev_bus_addr) == 8);
const _: () = assert!(offset_of!(GrantUnmap, handle) == 16);
const _: () = assert!(offset_of!(GrantUnmap, status) == 20);
const _: () = assert!(
    flags::DEVICE_MAP | flags::HOST_MAP | flags::READONLY == 0x7
        && flags::APPLICATION_MAP == 8
        && flags::CONTAINS_PTE == 16
);

// shared_info is in the bindings.
same_layout!(SharedInfo, xen_sys::shared_info);
same_layout!(VcpuInfo, xen_sys::vcpu_info);
same_layout!(TimeInfo, xen_sys::vcpu_time_info);
same_layout!(ArchSharedInfo, xen_sys::arch_shared_info);
const _: () = assert!(offset_of!(SharedInfo, pending) == 2048);
const _: () = assert!(offset_of!(SharedInfo, mask) == 2560);
const _: () = assert!(offset_of!(SharedInfo, arch) == ArchSharedInfo::OFFSET_BYTES);
const _: () = assert!(offset_of!(VcpuInfo, pending_words) == 8);
const _: () = assert!(offset_of!(VcpuInfo, time) == 32);
const _: () = assert!(offset_of!(xen_sys::shared_info, arch) == ArchSharedInfo::OFFSET_BYTES);
macro_rules! same_shared_offsets {
    ($($ours:ident => $theirs:ident),* $(,)?) => {
        $(const _: () = assert!(
            offset_of!(MapWords, $ours) == offset_of!(xen_sys::arch_shared_info, $theirs)
        );)*
    };
}
same_shared_offsets! {
    max_pfn => max_pfn, frame_list_list => pfn_to_mfn_frame_list_list, nmi_reason => nmi_reason,
    p2m_cr3 => p2m_cr3, p2m_vaddr => p2m_vaddr, p2m_generation => p2m_generation,
}
