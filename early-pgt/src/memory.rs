//! What a guest knows of its memory before it changes anything: where RAM is, what is in use, and
//! how far the builder's mapping goes.
//!
//! Numbers only. What is wrong with them is found here, while an error can still be printed and
//! nothing has been touched.

use hypercall::{BootInfo, GuestVa, Level, Module, PAGE_SHIFT, Pfn, Pte, XEN_HOLE_START};
use p2m::Pfns;

use crate::error::EarlyError;
use crate::spans::{CHUNK_PFNS, LIST_WORD_BYTES, PAGE_BYTES, overlap, pages_of};

/// What a run of pfns stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RegionKind {
    /// Memory of the guest's.
    Ram,
    /// No memory: the machine's own at frames of the same numbers (the ISA area, holes of the e820
    /// map), which dom0 may map. The frame map says so too, or ends before. Where the builder
    /// mapped memory there, that mapping has been taken away.
    Identity,
}

/// A run of pfns that the direct map is to show. What no region covers is a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Region {
    /// Which.
    pub pfns: Pfns,
    /// What is there.
    pub kind: RegionKind,
}

/// What frames are used for before anybody allocates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UseKind {
    /// Code of the kernel: all that is ever executed.
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
    /// What the kernel wants left alone.
    Reserved,
}

/// How the direct map shows a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Writable: Xen counts it as a writable page, which can be no table.
    Writable,
    /// Read-only.
    ReadOnly,
}

impl UseKind {
    /// How early mappings may show such frames.
    ///
    /// Tables and whatever will become one are read-only, or Xen refuses to take them as tables
    /// (`get_page_type`, mm.c, 4.14 to 4.20). The list that INIT_P2M placed is in one run with the
    /// tables that map it, and `start_info` does not say where one ends and the other begins: so
    /// all of the run is read-only, and the list is written where the builder mapped it. Code and
    /// constants are read-only because nothing has business writing them.
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
}

/// A run of pfns that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Use {
    /// Which.
    pub pfns: Pfns,
    /// What for.
    pub kind: UseKind,
}

/// The early mapping's rule: the entry for `pfn` as it may be made, given what is in use
/// (`mask_rw_pte`, Linux 2.6.39).
///
/// An entry that is not present, or read-only already, stays as it is; one that is writable loses
/// that if any use of its frame says so.
///
/// ```
/// use early_pgt::{Use, UseKind, mask_rw};
/// use hypercall::{Mfn, Pfn, Pte, PteFlags};
/// use p2m::Pfns;
///
/// let tables = Use { pfns: Pfns::new(Pfn::new(0x300), 5), kind: UseKind::BuilderTables };
/// let pte = Pte::new(Mfn::new(0x203), PteFlags::KERNEL_RW);
/// assert!(!mask_rw(pte, Pfn::new(0x301), &[tables]).is_writable());
/// assert_eq!(mask_rw(pte, Pfn::new(0x305), &[tables]), pte);
/// ```
#[must_use]
pub fn mask_rw(pte: Pte, pfn: Pfn, uses: &[Use]) -> Pte {
    match access_of(pfn, uses) {
        Access::ReadOnly if pte.is_writable() => pte.read_only(),
        _ => pte,
    }
}

/// How the direct map shows `pfn`.
#[must_use]
pub fn access_of(pfn: Pfn, uses: &[Use]) -> Access {
    let protects = |used: &Use| {
        used.kind.access() == Access::ReadOnly && overlap(used.pfns, Pfns::new(pfn, 1)).is_some()
    };
    if uses.iter().any(protects) { Access::ReadOnly } else { Access::Writable }
}

/// How `entries`, which map the pfns of `chunk`, are left writable where no use forbids it.
pub(crate) fn mask_chunk(entries: &mut [Pte], chunk: Pfns, uses: &[Use]) {
    for used in uses.iter().filter(|used| used.kind.access() == Access::ReadOnly) {
        for place in places(entries, chunk, used.pfns) {
            *place = place.read_only();
        }
    }
}

/// Those of `entries`, which map the pfns of `chunk`, that map `pfns`.
pub(crate) fn places(
    entries: &mut [Pte],
    chunk: Pfns,
    pfns: Pfns,
) -> impl Iterator<Item = &mut Pte> {
    let range = overlap(pfns, chunk).map_or(0..0, |pfns| {
        let first = pfns.start.raw() - chunk.start.raw();
        index(first)..index(first + pfns.count)
    });
    entries.get_mut(range).unwrap_or_default().iter_mut()
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// The memory of a guest at boot, checked.
#[derive(Clone, Copy, Debug)]
pub struct BootMemory<'a> {
    pub(crate) regions: &'a [Region],
    pub(crate) uses: &'a [Use],
    pub(crate) place: MapPlace,
}

/// Where things are mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapPlace {
    /// Where the builder mapped pfn 0 (ELF note `VIRT_BASE`).
    pub kernel: GuestVa,
    /// How many pfns it mapped from there, with those whose mapping was taken away since.
    pub kernel_pages: u64,
    /// The first address of the direct map: the first of a root slot.
    pub direct_map: GuestVa,
}

impl<'a> BootMemory<'a> {
    /// Checks what is known: `regions` in ascending order, `uses` in any.
    ///
    /// # Errors
    /// [`EarlyError`] with the numbers that cannot be.
    ///
    /// # Hypercalls
    /// None; nothing is read or changed.
    ///
    /// ```
    /// use early_pgt::{BootMemory, EarlyError, MapPlace, Region, RegionKind, Use, UseKind};
    /// use hypercall::{GuestVa, Pfn};
    /// use p2m::Pfns;
    ///
    /// let pfns = |start, count| Pfns::new(Pfn::new(start), count);
    /// let place = MapPlace {
    ///     kernel: GuestVa::new(0xffff_ffff_8000_0000)?,
    ///     kernel_pages: 0x400,
    ///     direct_map: GuestVa::new(0xffff_8800_0000_0000)?,
    /// };
    /// let regions = [Region { pfns: pfns(0, 0x1_0000), kind: RegionKind::Ram }];
    /// let kernel = Use { pfns: pfns(0x100, 0x200), kind: UseKind::KernelData };
    /// let tables = Use { pfns: pfns(0x2ff, 5), kind: UseKind::BuilderTables };
    /// // A page cannot be both; whoever says so learns it before anything is touched.
    /// let both = [kernel, tables];
    /// let refused = BootMemory::new(&regions, &both, place);
    /// assert!(matches!(refused, Err(EarlyError::UseOverlap { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(
        regions: &'a [Region],
        uses: &'a [Use],
        place: MapPlace,
    ) -> Result<Self, EarlyError> {
        let memory = Self { regions, uses, place };
        memory.check_regions()?;
        memory.check_uses()?;
        memory.check_place()?;
        Ok(memory)
    }

    /// The number behind the last pfn that the direct map shows.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.regions.last().map_or(0, |region| region.pfns.end())
    }

    /// Frames of RAM.
    #[must_use]
    pub fn ram(&self) -> u64 {
        let ram = self.regions.iter().filter(|region| region.kind == RegionKind::Ram);
        ram.map(|region| region.pfns.count).sum()
    }

    /// The frames that nobody uses, in runs, lowest first.
    ///
    /// ```
    /// # use pv_tests::booting::Booting;
    /// # use xen_model::Role;
    /// let booting = Booting::new(Role::DomU, 1 << 14); // 64 MiB, as its builder leaves it
    /// let free: u64 = booting.memory().free().map(|run| run.count).sum();
    /// let used: u64 = booting.uses.iter().map(|used| used.pfns.count).sum();
    /// assert_eq!(free + used, 1 << 14);
    /// ```
    pub fn free(&self) -> impl Iterator<Item = Pfns> + 'a {
        FreeRuns { regions: self.regions, uses: self.uses, taken: &[], next: 0 }
    }

    /// The frames that nobody uses and that are not in `taken` either.
    pub(crate) const fn free_but<'t>(&self, taken: &'t [Pfns]) -> FreeRuns<'t>
    where
        'a: 't,
    {
        FreeRuns { regions: self.regions, uses: self.uses, taken, next: 0 }
    }

    fn check_regions(&self) -> Result<(), EarlyError> {
        let mut end = 0;
        for region in self.regions {
            let pfns = region.pfns;
            if pfns.start.raw() < end {
                return Err(EarlyError::RegionOverlap { pfns, before: Pfn::new(end) });
            }
            if pfns.count == 0 || pfns.start.checked_add(pfns.count).is_none() {
                return Err(EarlyError::RegionSize(pfns));
            }
            end = pfns.end();
        }
        if self.ram() == 0 { Err(EarlyError::NoMemory) } else { Ok(()) }
    }

    fn check_uses(&self) -> Result<(), EarlyError> {
        for used in self.uses {
            let inside = |region: &Region| {
                region.kind == RegionKind::Ram
                    && region.pfns.start <= used.pfns.start
                    && used.pfns.end() <= region.pfns.end()
            };
            let named = used.pfns.start.checked_add(used.pfns.count).is_some();
            if !named || !self.regions.iter().any(inside) {
                return Err(EarlyError::OutsideRam(*used));
            }
        }
        // What goes to an allocator later is in one use only, of this kind or any other.
        for (at, used) in self.uses.iter().enumerate().filter(|(_, used)| used.kind.is_given()) {
            let others = self.uses.iter().enumerate().filter(|(other, _)| *other != at);
            for (_, other) in others {
                if overlap(used.pfns, other.pfns).is_some() {
                    return Err(EarlyError::UseOverlap { used: *used, other: *other });
                }
            }
        }
        Ok(())
    }

    fn check_place(&self) -> Result<(), EarlyError> {
        let MapPlace { kernel, kernel_pages, direct_map } = self.place;
        if !direct_map.raw().is_multiple_of(1 << Level::L4.shift()) || !in_kernel_half(direct_map) {
            return Err(EarlyError::DirectMapPlace(direct_map));
        }
        if !kernel.raw().is_multiple_of(CHUNK_PFNS << PAGE_SHIFT) {
            return Err(EarlyError::KernelPlace(kernel));
        }
        let last_slot = Level::L4.index_of(direct_map.checked_add_pages(self.end() - 1)?);
        let kernel_slot = Level::L4.index_of(kernel);
        if (Level::L4.index_of(direct_map)..=last_slot).contains(&kernel_slot) {
            return Err(EarlyError::DirectMapPlace(direct_map));
        }
        let begins =
            |region: &Region| region.kind == RegionKind::Ram && region.pfns.start.raw() == 0;
        let covered = self.regions.iter().fold(0, |end, region| match region.pfns.start.raw() {
            start if start == end => region.pfns.end(),
            _ => end,
        });
        let is_covered = self.regions.first().is_some_and(begins) && kernel_pages <= covered;
        if kernel_pages == 0 || !is_covered {
            return Err(EarlyError::KernelMapping { pages: kernel_pages });
        }
        let last = kernel.checked_add_pages(kernel_pages - 1)?;
        if Level::L4.index_of(last) != kernel_slot {
            return Err(EarlyError::KernelMapping { pages: kernel_pages });
        }
        Ok(())
    }
}

const fn in_kernel_half(va: GuestVa) -> bool {
    va.raw() >= XEN_HOLE_START
}

/// What `start_info` says of frames in use: the list, the builder's tables and the pages around
/// them. Each takes all the pages that a byte of it is in. Addresses are those of the mapping of
/// pfn 0 at `place.kernel`.
///
/// # Errors
/// [`EarlyError::NotInKernelMapping`] with the first address outside of that mapping.
///
/// ```
/// use early_pgt::{UseKind, builder_uses};
/// # use pv_tests::booting::Booting;
/// # use xen_model::Role;
/// let booting = Booting::new(Role::DomU, 1 << 14); // as its builder leaves it
/// let [tables, list, _] = builder_uses(&booting.boot, booting.place)?;
/// assert_eq!(list.map(|used| used.kind), Some(UseKind::List));
/// assert_eq!(tables.map(|used| used.pfns.start), Some(booting.root));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn builder_uses(boot: &BootInfo, place: MapPlace) -> Result<[Option<Use>; 3], EarlyError> {
    let tables = place.pages(boot.root, boot.table_frames.saturating_mul(PAGE_BYTES))?;
    let list = match boot.p2m_frames {
        Some((first, count)) => Use { pfns: Pfns::new(first, count), kind: UseKind::ListAndTables },
        None => {
            let pfns = place.pages(boot.p2m_list, boot.pages.saturating_mul(LIST_WORD_BYTES))?;
            Use { pfns, kind: UseKind::List }
        }
    };
    let module = match boot.module {
        Module::None => None,
        Module::Mapped { start, len_bytes } => Some(place.pages(start, len_bytes)?),
        Module::Unmapped { start, len_bytes } => {
            Some(Pfns::new(start, len_bytes.div_ceil(PAGE_BYTES)))
        }
    };
    Ok([
        Some(Use { pfns: tables, kind: UseKind::BuilderTables }),
        Some(list),
        module.map(|pfns| Use { pfns, kind: UseKind::Module }),
    ])
}

impl MapPlace {
    /// The pages that `len_bytes` bytes from an address of the kernel's mapping lie in, wherever in
    /// a page they begin and end.
    fn pages(self, start: GuestVa, len_bytes: u64) -> Result<Pfns, EarlyError> {
        let pfns = pages_of(start.raw().wrapping_sub(self.kernel.raw()), len_bytes);
        if start < self.kernel || pfns.start.raw() >= self.kernel_pages {
            return Err(EarlyError::NotInKernelMapping(start));
        }
        if pfns.end() > self.kernel_pages {
            // The first address behind the mapping.
            let behind = self.kernel.checked_add_pages(self.kernel_pages)?;
            return Err(EarlyError::NotInKernelMapping(behind));
        }
        Ok(pfns)
    }
}

/// Runs of RAM that are in no use, in order.
#[derive(Clone, Debug)]
pub(crate) struct FreeRuns<'a> {
    regions: &'a [Region],
    uses: &'a [Use],
    taken: &'a [Pfns],
    next: u64,
}

impl Iterator for FreeRuns<'_> {
    type Item = Pfns;

    fn next(&mut self) -> Option<Pfns> {
        loop {
            let region = self.regions.first()?;
            let at = self.next.max(region.pfns.start.raw());
            if region.kind != RegionKind::Ram || at >= region.pfns.end() {
                self.regions = &self.regions[1..];
                continue;
            }
            let used = || self.uses.iter().map(|used| used.pfns).chain(self.taken.iter().copied());
            let used = || used().filter(|pfns| pfns.count > 0);
            if let Some(over) = used().find(|pfns| pfns.start.raw() <= at && at < pfns.end()) {
                self.next = over.end();
                continue;
            }
            let next_use = used().map(|pfns| pfns.start.raw()).filter(|start| *start > at).min();
            let end = next_use.map_or(region.pfns.end(), |next| next.min(region.pfns.end()));
            self.next = end;
            return Some(Pfns::new(Pfn::new(at), end - at));
        }
    }
}
