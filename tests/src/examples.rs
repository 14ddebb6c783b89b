//! What most examples in the documentation of `pvmmu` use, for one hidden line at their beginning.

pub use hypercall::{
    BatchStorage, DomId, FrameSource, GuestVa, Level, Machine, Mfn, Pfn, PteFlags, VcpuSet,
};
pub use pvmmu::{Mapped, Pages, Pgd, Pinned, RangeError, Running, TablePool, Tools, Vcpus};

pub use crate::guest::TestGuest;
