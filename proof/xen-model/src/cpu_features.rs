//! What the CPU has, as far as Xen's memory management asks for it.

/// Whether the CPU has the bit of an entry that forbids execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoExecute {
    /// As nearly all have.
    Offered,
    /// It has not, or the firmware has turned it off: Xen refuses entries that have it.
    Missing,
}

impl NoExecute {
    /// The bit, if an entry must not have it.
    pub(crate) const fn refused(self) -> u64 {
        match self {
            Self::Offered => 0,
            Self::Missing => hypercall::PteFlags::NO_EXECUTE.bits(),
        }
    }
}

/// A property of the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SelfSnoop {
    /// The CPU snoops its own caches, as all recent ones do.
    Present,
    /// It does not: Xen notes frames mapped write-combining.
    Absent,
}
