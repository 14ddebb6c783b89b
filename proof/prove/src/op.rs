//! Operations as values.

use hypercall::VaFlush;

/// A step of a sequence: an operation, and whether it travels with the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// How it travels.
    pub link: Link,
    /// What it does.
    pub op: Op,
}

/// How an operation reaches Xen. Operations that are no MMU requests always go alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// In a hypercall of its own.
    Alone,
    /// As a further element of the request before it, if that is of the same kind.
    SameRequest,
    /// As a further request of the same multicall.
    SameMulticall,
}

/// An operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// An element of `mmu_update` with one of the eight commands.
    Update {
        /// The low three bits of the target.
        command: u8,
        /// Where.
        place: UpdatePlace,
        /// The new entry, or for M2P the new value.
        value: Value,
    },
    /// An element of `mmuext_op`.
    Ext {
        /// `MMUEXT_*`, known or not.
        command: u8,
        /// First argument.
        first: Which,
        /// Second argument.
        second: Which,
    },
    /// `update_va_mapping`.
    VaMapping {
        /// Which address.
        place: VaPlace,
        /// Flags of the entry; the frame is the one that belongs there.
        flags: u64,
        /// The flush asked for.
        flush: VaFlush,
    },
    /// A store by the CPU into a frame of the arena.
    Store {
        /// The frame.
        frame: u8,
        /// The word of it, an index into [`SLOTS`](crate::SLOTS).
        slot: u8,
        /// What is stored.
        value: Value,
    },
    /// A compare-and-exchange by the CPU.
    CompareExchange {
        /// The frame.
        frame: u8,
        /// The word of it, an index into [`SLOTS`](crate::SLOTS).
        slot: u8,
        /// What it is compared with.
        expected: Cas,
        /// What is stored.
        value: Value,
    },
    /// Stores of zero to every word that is ever used of a frame.
    Zero {
        /// The frame.
        frame: u8,
    },
    /// `XENMEM_exchange` of a frame against a new one.
    Exchange {
        /// The frame.
        frame: u8,
        /// Whether it is still mapped.
        hold: Hold,
    },
    /// Puts everything back: no pins, no user root, no entries, every frame writable, M2P right.
    CleanUp,
    /// `XENMEM_decrease_reservation` of a frame and `XENMEM_populate_physmap` in its place.
    Balloon {
        /// The frame.
        frame: u8,
        /// Whether it is still mapped when it is given back.
        hold: Hold,
    },
}

/// A word that an update can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdatePlace {
    /// A word of a frame of the arena: the frame, and an index into [`SLOTS`](crate::SLOTS).
    Slot(u8, u8),
    /// The entry that maps a frame of the arena in the direct mapping. Its new value always maps
    /// that frame.
    Direct(u8),
    /// A frame that no machine has.
    OutOfRange,
    /// A slot of the running root that is Xen's.
    XenSlot,
}

/// What is written to a word: a frame and the other bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    /// The frame.
    pub which: Which,
    /// The bits outside the frame number.
    pub flags: u64,
}

/// A frame as an operation names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// None: zero.
    Zero,
    /// A frame of the arena.
    Arena(u8),
    /// All ones.
    Invalid,
    /// A frame that no machine has.
    OutOfRange,
    /// The guest's `shared_info`, Xen's own memory.
    SharedInfo,
    /// The root that is running.
    RunningRoot,
    /// An L1 table that is running.
    RunningL1,
}

/// An address that `update_va_mapping` can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VaPlace {
    /// The direct mapping of a frame of the arena.
    Direct(u8),
    /// In Xen's range.
    Hole,
    /// Where the guest has no tables.
    Nowhere,
}

/// What a compare-and-exchange expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cas {
    /// What is there.
    Current,
    /// Something else.
    Other,
}

/// Whether a frame is still mapped when it is given to Xen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Nothing maps it, as far as the direct mapping goes.
    Released,
    /// The direct mapping maps it.
    Mapped,
}
