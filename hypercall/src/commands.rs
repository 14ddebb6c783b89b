//! The numbers of the commands, as Xen's public headers name them.

/// Commands of `mmu_update`: the low three bits of its target (`MMU_*`).
pub mod mmu {
    /// `MMU_NORMAL_PT_UPDATE`.
    pub const NORMAL: u64 = 0;
    /// `MMU_MACHPHYS_UPDATE`.
    pub const MACHPHYS: u64 = 1;
    /// `MMU_PT_UPDATE_PRESERVE_AD`.
    pub const PRESERVE_AD: u64 = 2;
    /// `MMU_PT_UPDATE_NO_TRANSLATE`.
    pub const NO_TRANSLATE: u64 = 3;
    /// The bits a command may take.
    pub const MASK: u64 = 7;
}

/// Commands of `mmuext_op` (`MMUEXT_*`).
pub mod ext {
    /// `MMUEXT_PIN_L1_TABLE`; levels 2 to 4 follow as 1 to 3.
    pub const PIN_L1_TABLE: u32 = 0;
    /// `MMUEXT_PIN_L4_TABLE`.
    pub const PIN_L4_TABLE: u32 = 3;
    /// `MMUEXT_UNPIN_TABLE`.
    pub const UNPIN_TABLE: u32 = 4;
    /// `MMUEXT_NEW_BASEPTR`.
    pub const NEW_BASEPTR: u32 = 5;
    /// `MMUEXT_TLB_FLUSH_LOCAL`.
    pub const TLB_FLUSH_LOCAL: u32 = 6;
    /// `MMUEXT_INVLPG_LOCAL`.
    pub const INVLPG_LOCAL: u32 = 7;
    /// `MMUEXT_TLB_FLUSH_MULTI`.
    pub const TLB_FLUSH_MULTI: u32 = 8;
    /// `MMUEXT_INVLPG_MULTI`.
    pub const INVLPG_MULTI: u32 = 9;
    /// `MMUEXT_TLB_FLUSH_ALL`.
    pub const TLB_FLUSH_ALL: u32 = 10;
    /// `MMUEXT_INVLPG_ALL`.
    pub const INVLPG_ALL: u32 = 11;
    /// `MMUEXT_FLUSH_CACHE`.
    pub const FLUSH_CACHE: u32 = 12;
    /// `MMUEXT_SET_LDT`.
    pub const SET_LDT: u32 = 13;
    /// `MMUEXT_NEW_USER_BASEPTR`.
    pub const NEW_USER_BASEPTR: u32 = 15;
    /// `MMUEXT_CLEAR_PAGE`.
    pub const CLEAR_PAGE: u32 = 16;
    /// `MMUEXT_COPY_PAGE`.
    pub const COPY_PAGE: u32 = 17;
    /// `MMUEXT_FLUSH_CACHE_GLOBAL`.
    pub const FLUSH_CACHE_GLOBAL: u32 = 18;
    /// `MMUEXT_MARK_SUPER`, gone since Xen 4.11.
    pub const MARK_SUPER: u32 = 19;
    /// `MMUEXT_UNMARK_SUPER`, gone since Xen 4.11.
    pub const UNMARK_SUPER: u32 = 20;
}
