//! Changes of one entry, by any of the ways that Xen offers.
//!
//! Batches use `mmu_update`. A change of a single page has more ways, which differ in cost and in
//! what they preserve. [`Pgd::set_flags`](crate::Pgd::set_flags) uses all of them, and by default
//! the cheapest that is right.

use core::fmt;

use hypercall::Pte;

/// A way to change an entry of a live L1 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Primitive {
    /// `mmu_update`, and the flush in the same multicall.
    MmuUpdate,
    /// `mmu_update` with `MMU_PT_UPDATE_PRESERVE_AD`, which keeps the accessed and dirty bits that
    /// the CPU sets meanwhile.
    PreserveAd,
    /// `update_va_mapping`, with its own flush. It reaches only the running address space.
    VaMapping,
    /// A plain store to the table, which Xen emulates, and then the flush.
    EmulatedStore,
    /// A `lock cmpxchg` on the table, which Xen emulates, and then the flush.
    EmulatedCompareExchange,
}

impl fmt::Display for Primitive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MmuUpdate => "mmu_update",
            Self::PreserveAd => "mmu_update with MMU_PT_UPDATE_PRESERVE_AD",
            Self::VaMapping => "update_va_mapping",
            Self::EmulatedStore => "a store that Xen emulates",
            Self::EmulatedCompareExchange => "a lock cmpxchg that Xen emulates",
        })
    }
}

/// What writing an entry must preserve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// Nothing. The flags become those given.
    Set,
    /// The accessed and dirty bits, as the CPU last set them.
    KeepAccessedDirty,
    /// Any change: the entry is written only if it is still this one.
    IfStill(Pte),
}

/// The vCPU that runs on the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs {
    /// The one that runs this code.
    Here,
    /// Another one, or none.
    Elsewhere,
}

/// Returns the cheapest primitive that is right.
///
/// ```
/// use pvmmu::primitive::{WriteMode, Primitive, Runs, cheapest};
///
/// assert_eq!(cheapest(WriteMode::Set, Runs::Elsewhere), Primitive::MmuUpdate);
/// assert_eq!(cheapest(WriteMode::KeepAccessedDirty, Runs::Elsewhere), Primitive::PreserveAd);
/// ```
#[must_use]
pub const fn cheapest(mode: WriteMode, runs: Runs) -> Primitive {
    match (mode, runs) {
        (WriteMode::Set, Runs::Here) => Primitive::VaMapping,
        (WriteMode::Set, Runs::Elsewhere) => Primitive::MmuUpdate,
        (WriteMode::KeepAccessedDirty, _) => Primitive::PreserveAd,
        (WriteMode::IfStill(_), _) => Primitive::EmulatedCompareExchange,
    }
}

impl Primitive {
    /// Returns whether it writes as `mode` asks.
    #[must_use]
    pub const fn is_right(self, mode: WriteMode, runs: Runs) -> bool {
        match (self, mode) {
            (Self::VaMapping, WriteMode::Set) => matches!(runs, Runs::Here),
            (Self::EmulatedCompareExchange, _)
            | (Self::PreserveAd, WriteMode::KeepAccessedDirty)
            | (Self::MmuUpdate | Self::EmulatedStore, WriteMode::Set) => true,
            _ => false,
        }
    }
}

/// The result of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It was made. The old entry was this, as far as could be seen.
    From(Pte),
    /// The entry had become this one. Nothing has changed.
    Not(Pte),
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Primitive; 5] = [
        Primitive::MmuUpdate,
        Primitive::PreserveAd,
        Primitive::VaMapping,
        Primitive::EmulatedStore,
        Primitive::EmulatedCompareExchange,
    ];

    #[test]
    fn the_cheapest_primitive_is_always_a_right_one() {
        for mode in [WriteMode::Set, WriteMode::KeepAccessedDirty, WriteMode::IfStill(Pte::ABSENT)]
        {
            for runs in [Runs::Here, Runs::Elsewhere] {
                assert!(cheapest(mode, runs).is_right(mode, runs), "{mode:?} {runs:?}");
            }
        }
    }

    #[test]
    fn only_two_primitives_keep_what_the_cpu_sets_and_one_compares() {
        let right = |mode| ALL.map(|by| by.is_right(mode, Runs::Here)).map(u8::from);
        assert_eq!(right(WriteMode::Set), [1, 0, 1, 1, 1]);
        assert_eq!(right(WriteMode::KeepAccessedDirty), [0, 1, 0, 0, 1]);
        assert_eq!(right(WriteMode::IfStill(Pte::ABSENT)), [0, 0, 0, 0, 1]);
        assert!(!Primitive::VaMapping.is_right(WriteMode::Set, Runs::Elsewhere));
    }
}
