//! One entry, by any of the ways that Xen offers.
//!
//! Batches use `mmu_update`. A change of a single page has more ways, which differ in what they
//! cost and in what they keep: this file has them all, and chooses the cheapest that is right
//! unless it is told which to take. [`Pgd::set_flags`](crate::Pgd::set_flags) takes them.

use hypercall::Pte;

/// A way to change an entry of a live L1 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Primitive {
    /// `mmu_update`, and the flush in the same multicall.
    MmuUpdate,
    /// `mmu_update` with `MMU_PT_UPDATE_PRESERVE_AD`: accessed and dirty bits that the CPU sets
    /// meanwhile are kept.
    PreserveAd,
    /// `update_va_mapping`, with its own flush. Reaches the running address space only.
    VaMapping,
    /// A plain store to the table, which Xen emulates; then the flush.
    EmulatedStore,
    /// A `lock cmpxchg` on the table, which Xen emulates; then the flush.
    EmulatedCompareExchange,
}

/// What a change must not lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing: the flags are as given.
    Set,
    /// The accessed and dirty bits, as the CPU has set them last.
    KeepAccessedDirty,
    /// Anything: the change happens only if the entry is still this one.
    IfStill(Pte),
}

/// Which vCPU runs on the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs {
    /// The one that runs this.
    Here,
    /// Another one, or none.
    Elsewhere,
}

/// The cheapest primitive that is right.
///
/// ```
/// use pvmmu::primitive::{Need, Primitive, Runs, cheapest};
///
/// assert_eq!(cheapest(Need::Set, Runs::Elsewhere), Primitive::MmuUpdate);
/// assert_eq!(cheapest(Need::KeepAccessedDirty, Runs::Elsewhere), Primitive::PreserveAd);
/// ```
#[must_use]
pub const fn cheapest(need: Need, runs: Runs) -> Primitive {
    match (need, runs) {
        (Need::Set, Runs::Here) => Primitive::VaMapping,
        (Need::Set, Runs::Elsewhere) => Primitive::MmuUpdate,
        (Need::KeepAccessedDirty, _) => Primitive::PreserveAd,
        (Need::IfStill(_), _) => Primitive::EmulatedCompareExchange,
    }
}

impl Primitive {
    /// Whether it fulfils a need.
    #[must_use]
    pub const fn is_right(self, need: Need, runs: Runs) -> bool {
        match (self, need) {
            (Self::VaMapping, Need::Set) => matches!(runs, Runs::Here),
            (Self::EmulatedCompareExchange, _)
            | (Self::PreserveAd, Need::KeepAccessedDirty)
            | (Self::MmuUpdate | Self::EmulatedStore, Need::Set) => true,
            _ => false,
        }
    }
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It was made; this stood there before, as far as could be seen.
    From(Pte),
    /// The entry was another one by then: this. Nothing has changed.
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
        for need in [Need::Set, Need::KeepAccessedDirty, Need::IfStill(Pte::ABSENT)] {
            for runs in [Runs::Here, Runs::Elsewhere] {
                assert!(cheapest(need, runs).is_right(need, runs), "{need:?} {runs:?}");
            }
        }
    }

    #[test]
    fn only_two_primitives_keep_what_the_cpu_sets_and_one_compares() {
        let right = |need| ALL.map(|by| by.is_right(need, Runs::Here)).map(u8::from);
        assert_eq!(right(Need::Set), [1, 0, 1, 1, 1]);
        assert_eq!(right(Need::KeepAccessedDirty), [0, 1, 0, 0, 1]);
        assert_eq!(right(Need::IfStill(Pte::ABSENT)), [0, 0, 0, 0, 1]);
        assert!(!Primitive::VaMapping.is_right(Need::Set, Runs::Elsewhere));
    }
}
