//! The meaning of pfns, the uses of frames, and the access that a use allows.

use hypercall::{GuestVa, Pfn, Pte};
use p2m::Pfns;

use crate::spans::overlap;

/// The meaning of a run of pfns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RegionKind {
    /// The guest's memory.
    Ram,
    /// The machine's frames of the same numbers (the ISA area, holes of the e820 map), which dom0
    /// may map. The frame map says so too, or ends before them. What the builder mapped there has
    /// been unmapped.
    Identity,
}

/// A run of pfns that the direct map shows. Pfns in no region are a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BootRegion {
    /// Its pfns.
    pub pfns: Pfns,
    /// Their meaning.
    pub kind: RegionKind,
}

/// The use of frames before anyone allocates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UseKind {
    /// Code of the kernel: the only memory that is ever executed.
    KernelText,
    /// Constants of the kernel.
    KernelConstants,
    /// The rest of the kernel's image.
    KernelData,
    /// Page tables that the builder made for the kernel's mapping.
    BuilderTables,
    /// The builder's P2M list.
    List,
    /// The P2M list with the tables that map it, placed by the ELF note INIT_P2M.
    ListAndTables,
    /// Tables made by an earlier round.
    EarlyTables,
    /// A table buffer `[start, top)` of a round that is not over.
    TableBuffer,
    /// `start_info`.
    StartInfo,
    /// A page shared with another domain: the console's ring, the store's.
    Ring,
    /// The boot module.
    Module,
    /// Frames that the kernel wants left alone.
    Reserved,
}

impl UseKind {
    /// Returns the access that early mappings may give such frames.
    ///
    /// Tables, and frames that will become tables, are read-only, or Xen refuses them as tables
    /// (`get_page_type`, mm.c, 4.14 to 4.20). The list that INIT_P2M placed shares a run with the
    /// tables that map it, and `start_info` does not say where one ends and the other begins. So
    /// all of the run is read-only, and the list is written where the builder mapped it. Code and
    /// constants are read-only because nothing should write them.
    #[must_use]
    pub const fn access(self) -> Access {
        match self {
            Self::KernelText
            | Self::KernelConstants
            | Self::BuilderTables
            | Self::ListAndTables
            | Self::EarlyTables
            | Self::TableBuffer => Access::ReadOnly,
            Self::KernelData
            | Self::List
            | Self::StartInfo
            | Self::Ring
            | Self::Module
            | Self::Reserved => Access::Writable,
        }
    }

    /// Returns whether an allocator gets such frames in the end.
    pub(crate) const fn is_given(self) -> bool {
        matches!(self, Self::BuilderTables | Self::List | Self::ListAndTables)
    }

    /// Returns whether the use ends when the builder's tables are replaced.
    pub(crate) fn ends(self, list: OldList) -> bool {
        match self {
            Self::BuilderTables => true,
            other => other.is_given() && list != OldList::InUse,
        }
    }
}

/// A run of pfns that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameUse {
    /// Its pfns.
    pub pfns: Pfns,
    /// Their use.
    pub kind: UseKind,
}

/// The state of the builder's P2M list when the builder's tables are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldList {
    /// The frame map still uses it.
    InUse,
    /// The frame map has moved to frames of the kernel's. Nobody reads the builder's list any more,
    /// which was at this address.
    LeftAt(GuestVa),
}

/// The access that a mapping gives to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Writable: Xen counts the frame as a writable page, which cannot be a table.
    Writable,
    /// Read-only.
    ReadOnly,
}

impl Access {
    /// Returns the access that the direct map gives to `pfn`.
    ///
    /// ```
    /// use early_pgt::{Access, FrameUse, UseKind};
    /// use hypercall::Pfn;
    /// use p2m::Pfns;
    ///
    /// let code = FrameUse { pfns: Pfns::new(Pfn::new(0x100), 5), kind: UseKind::KernelText };
    /// assert_eq!(Access::of(Pfn::new(0x104), &[code]), Access::ReadOnly);
    /// assert_eq!(Access::of(Pfn::new(0x105), &[code]), Access::Writable);
    /// ```
    #[must_use]
    pub fn of(pfn: Pfn, uses: &[FrameUse]) -> Self {
        let page = Pfns::new(pfn, 1);
        let protects = |used: &FrameUse| {
            used.kind.access() == Self::ReadOnly && overlap(used.pfns, page).is_some()
        };
        if uses.iter().any(protects) { Self::ReadOnly } else { Self::Writable }
    }

    /// Returns the same entry with this access.
    pub(crate) const fn on(self, pte: Pte) -> Pte {
        match self {
            Self::Writable => pte.writable(),
            Self::ReadOnly => pte.read_only(),
        }
    }
}

/// Returns the entry that an early mapping may have for `pfn` (`mask_rw_pte`, Linux 2.6.39).
///
/// A writable entry becomes read-only if any use of its frame demands that. Any other entry stays.
///
/// ```
/// use early_pgt::{FrameUse, UseKind, mask_rw};
/// use hypercall::{Mfn, Pfn, Pte, PteFlags};
/// use p2m::Pfns;
///
/// let tables = FrameUse { pfns: Pfns::new(Pfn::new(0x300), 5), kind: UseKind::BuilderTables };
/// let pte = Pte::new(Mfn::new(0x203), PteFlags::KERNEL_RW);
/// assert!(!mask_rw(pte, Pfn::new(0x301), &[tables]).is_writable());
/// assert_eq!(mask_rw(pte, Pfn::new(0x305), &[tables]), pte);
/// ```
#[must_use]
pub fn mask_rw(pte: Pte, pfn: Pfn, uses: &[FrameUse]) -> Pte {
    match Access::of(pfn, uses) {
        Access::ReadOnly if pte.is_writable() => pte.read_only(),
        _ => pte,
    }
}

/// Makes those of `entries` read-only whose use demands it. They map the pfns of `chunk`.
pub(crate) fn mask_chunk(entries: &mut [Pte], chunk: Pfns, uses: &[FrameUse]) {
    for used in uses.iter().filter(|used| used.kind.access() == Access::ReadOnly) {
        for place in places(entries, chunk, used.pfns) {
            *place = place.read_only();
        }
    }
}

/// Returns those of `entries` that map `pfns`. They map the pfns of `chunk`.
pub(crate) fn places(
    entries: &mut [Pte],
    chunk: Pfns,
    pfns: Pfns,
) -> impl Iterator<Item = &mut Pte> {
    let index = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let range = overlap(pfns, chunk).map_or(0..0, |pfns| {
        let first = pfns.start.raw() - chunk.start.raw();
        index(first)..index(first + pfns.count)
    });
    entries.get_mut(range).unwrap_or_default().iter_mut()
}
