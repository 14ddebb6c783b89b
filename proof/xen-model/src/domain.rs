//! Domains and their virtual CPUs.

use hypercall::Mfn;
use hypercall::memory::MemoryRegion;
use hypercall::start_info::StartInfo;

use crate::release::Role;
use crate::tlb::Tlb;

/// Bit of the writable-pagetables assist.
pub(crate) const ASSIST_WRITABLE_TABLES: u64 = 1 << 2;
/// Bit of the pae-extended-cr3 assist.
pub(crate) const ASSIST_EXTENDED_CR3: u64 = 1 << 3;
/// Bit of the m2p-strict assist.
pub(crate) const ASSIST_M2P_STRICT: u64 = 1 << 32;

/// A domain (`struct domain`).
#[derive(Debug)]
pub(crate) struct Domain {
    pub(crate) id: u16,
    pub(crate) role: Role,
    pub(crate) max_pages: u64,
    pub(crate) tot_pages: u64,
    pub(crate) assists: u64,
    pub(crate) shared_info: Mfn,
    pub(crate) memory_map: Option<Vec<MemoryRegion>>,
    pub(crate) vcpus: Vec<VcpuState>,
    /// Frames of its grant table.
    pub(crate) grant_frames: Vec<Mfn>,
    /// Grants of others that it has mapped, by handle.
    pub(crate) mapped_grants: Vec<Mapped>,
    /// Why it has ended, if it has (`SHUTDOWN_*`).
    pub(crate) shutdown: Option<u8>,
    /// Whether Xen has ended it.
    pub(crate) crashed: bool,
    /// Which plan it was built by.
    pub(crate) plan: usize,
    /// What its builder told it.
    pub(crate) start_info: Option<StartInfo>,
    /// Where its kernel sees page 0, for the seam.
    pub(crate) direct_map: u64,
    /// Pages that the kernel reaches from there.
    pub(crate) mapped_frames: u64,
}

impl Domain {
    pub(crate) const fn is_privileged(&self) -> bool {
        matches!(self.role, Role::Dom0)
    }

    pub(crate) const fn has_assist(&self, assist: u64) -> bool {
        self.assists & assist != 0
    }
}

/// A table on its way out, to be torn down before the hypercall ends (`old_guest_table`).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parked {
    pub(crate) table: Mfn,
    /// The table whose entry led to it.
    pub(crate) container: Option<Mfn>,
    pub(crate) holds: Holds,
}

/// Which references go with a parked table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holds {
    /// One general reference and one of its type.
    Both,
    /// Only what belongs to its partial bit.
    Partial,
}

/// A virtual CPU (`struct vcpu`).
#[derive(Debug, Default)]
pub(crate) struct VcpuState {
    /// Root of the kernel; none before the vCPU is initialised.
    pub(crate) kernel_root: Option<Mfn>,
    /// Root of user mode.
    pub(crate) user_root: Option<Mfn>,
    pub(crate) parked: Vec<Parked>,
    pub(crate) tlb: Tlb,
    pub(crate) gdt: Vec<Mfn>,
    pub(crate) gdt_entries: u64,
    pub(crate) ldt_base: u64,
    pub(crate) ldt_entries: u64,
    /// LDT pages in use, by page of the LDT.
    pub(crate) ldt: Vec<(u64, Mfn)>,
    /// What was in rdx when the guest suspended.
    pub(crate) suspend_argument: u64,
    /// Whether Xen has raised #GP that the guest has not taken yet.
    pub(crate) general_protection: bool,
}

/// A mapping that a domain has made (`struct grant_mapping`).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mapped {
    pub(crate) granter: u16,
    pub(crate) reference: u32,
    /// Flags of what is left of it: none if it is closed.
    pub(crate) flags: u32,
    pub(crate) frame: Mfn,
}
