//! Where the entries of the direct mapping are: what whoever changes frames in bulk has to be told,
//! as nothing here walks page tables.

use core::fmt;

use hypercall::{Pfn, Pte, Slot};

/// Finds the entry that maps a frame in the kernel's direct mapping.
///
/// With the place of an entry any number of them change in one `mmu_update`; by address it would be
/// one request for each. `pvmmu::DirectEntries` walks the kernel's tables for it.
///
/// # Safety
/// The place that `find` answers is that of the direct mapping's own entry for that pfn, in a table
/// of the running kernel: whoever asks changes the entry there, unseen, and relies on nothing else
/// changing its meaning (I-2, I-3).
#[expect(unsafe_code, reason = "a wrong answer would change the mapping of somebody else's page")]
pub unsafe trait FindDirect {
    /// The place of the entry that maps `pfn`, or would if there were memory, and what stands there
    /// now.
    ///
    /// # Errors
    /// [`NoDirectEntry`].
    ///
    /// # Hypercalls
    /// None.
    fn find(&mut self, pfn: Pfn) -> Result<(Slot, Pte), NoDirectEntry>;
}

/// The direct mapping has no table for this pfn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoDirectEntry(pub Pfn);

impl fmt::Display for NoDirectEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the direct mapping has no table for pfn {}: extend it first", self.0)
    }
}

impl core::error::Error for NoDirectEntry {}
