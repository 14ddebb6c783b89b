//! Flags for which Xen refuses an entry, whatever else it says.

use core::fmt;

use crate::pte::{Level, Pte, PteFlags};

/// A flag for which Xen refuses a present entry (`L1_DISALLOW_MASK`, `BASE_DISALLOW_MASK`). Its
/// `Display` names the flag and says who may not have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefusableFlag {
    /// Bit 63, on a CPU that lacks NX.
    NoExecute,
    /// Bit 3: above L1, and in L1 entries of guests without devices.
    Pwt,
    /// Bit 4, likewise.
    Pcd,
    /// Bit 7, likewise.
    PatOrPse,
    /// Bit 8, above L1.
    Global,
    /// Bit 62 in an L1 entry, by debug builds of Xen alone.
    Grant,
}

impl RefusableFlag {
    /// All of them, those that are refused most often first.
    pub const ALL: [Self; 6] =
        [Self::NoExecute, Self::PatOrPse, Self::Pwt, Self::Pcd, Self::Global, Self::Grant];

    /// Returns the bit.
    ///
    /// ```
    /// use hypercall::{PteFlags, RefusableFlag};
    ///
    /// assert_eq!(RefusableFlag::Pcd.flag(), PteFlags::PCD);
    /// ```
    #[must_use]
    pub const fn flag(self) -> PteFlags {
        match self {
            Self::NoExecute => PteFlags::NO_EXECUTE,
            Self::Pwt => PteFlags::PWT,
            Self::Pcd => PteFlags::PCD,
            Self::PatOrPse => PteFlags::PAT_OR_PSE,
            Self::Global => PteFlags::GLOBAL,
            Self::Grant => PteFlags::GRANT,
        }
    }

    /// Returns the first of these flags that `pte` has, as an entry of `level` if that is known, on
    /// a machine whose entries may not have `missing`
    /// ([`missing_flags`](crate::FrameAccess::missing_flags)).
    ///
    /// ```
    /// use hypercall::{Level, Mfn, Pte, PteFlags, RefusableFlag};
    ///
    /// let pte = Pte::new(Mfn::new(0x203), PteFlags::KERNEL_RW | PteFlags::GLOBAL);
    /// let in_level = |level| RefusableFlag::find(pte, Some(level), PteFlags::empty());
    /// assert_eq!(in_level(Level::L1), None);
    /// assert_eq!(in_level(Level::L2), Some(RefusableFlag::Global));
    /// let without_nx = RefusableFlag::find(pte, None, PteFlags::NO_EXECUTE);
    /// assert_eq!(without_nx, Some(RefusableFlag::NoExecute));
    /// ```
    #[must_use]
    pub fn find(pte: Pte, level: Option<Level>, missing: PteFlags) -> Option<Self> {
        let may_be_refused = |flag: &Self| match flag {
            Self::NoExecute => missing.contains(PteFlags::NO_EXECUTE),
            Self::Pwt | Self::Pcd | Self::PatOrPse => true,
            Self::Global => level.is_some_and(|level| level > Level::L1),
            Self::Grant => level.is_none_or(|level| level == Level::L1),
        };
        let has = |flag: &Self| pte.is_present() && pte.flags().contains(flag.flag());
        Self::ALL.into_iter().find(|flag| has(flag) && may_be_refused(flag))
    }

    /// Returns whether every Xen refuses the flag, which [`find`](Self::find) found, in entries of
    /// `level`, whoever asks.
    ///
    /// ```
    /// use hypercall::{Level, RefusableFlag};
    ///
    /// // A guest with devices may switch the cache off for a page, nobody for a table.
    /// assert!(!RefusableFlag::Pcd.is_refused_to_all(Level::L1));
    /// assert!(RefusableFlag::Pcd.is_refused_to_all(Level::L2));
    /// ```
    #[must_use]
    pub fn is_refused_to_all(self, level: Level) -> bool {
        match self {
            Self::NoExecute => true,
            Self::Pwt | Self::Pcd | Self::PatOrPse | Self::Global => level > Level::L1,
            Self::Grant => false,
        }
    }
}

impl fmt::Display for RefusableFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoExecute => "NO_EXECUTE, which this CPU does not have",
            Self::Pwt => "PWT, which only L1 entries of guests with devices may have",
            Self::Pcd => "PCD, which only L1 entries of guests with devices may have",
            Self::PatOrPse => {
                "PAT (above L1 PSE), which only L1 entries of guests with devices may have"
            }
            Self::Global => "GLOBAL, which only L1 entries may have",
            Self::Grant => "bit 62, which debug builds of Xen keep for grants",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Mfn;

    #[test]
    fn each_flag_is_found_where_xen_may_refuse_it_and_nowhere_else() {
        let levels = Level::TOP_DOWN.map(Some).into_iter().chain([None]);
        for (flag, level) in
            RefusableFlag::ALL.into_iter().flat_map(|flag| levels.clone().map(move |it| (flag, it)))
        {
            let pte = Pte::new(Mfn::new(7), PteFlags::TABLE | flag.flag());
            let found = RefusableFlag::find(pte, level, PteFlags::NO_EXECUTE);
            let is_fine = match flag {
                RefusableFlag::Global => matches!(level, None | Some(Level::L1)),
                RefusableFlag::Grant => level.is_some_and(|level| level != Level::L1),
                _ => false,
            };
            assert_eq!(found, if is_fine { None } else { Some(flag) }, "{flag} at {level:?}");
            let absent = Pte::from_raw(pte.raw() & !PteFlags::PRESENT.bits());
            assert_eq!(RefusableFlag::find(absent, level, PteFlags::NO_EXECUTE), None);
        }
        let usual = Pte::new(Mfn::new(7), PteFlags::USER_RW);
        assert_eq!(RefusableFlag::find(usual, None, PteFlags::empty()), None);
    }

    #[test]
    fn what_all_guests_are_refused_is_told_from_what_a_guest_with_devices_may_have() {
        let to_all = |level| RefusableFlag::ALL.map(|flag| flag.is_refused_to_all(level));
        assert_eq!(to_all(Level::L1), [true, false, false, false, false, false]);
        for level in [Level::L2, Level::L3, Level::L4] {
            assert_eq!(to_all(level), [true, true, true, true, true, false]);
        }
    }
}
