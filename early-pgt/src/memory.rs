//! The guest's memory at boot: where RAM is, what is in use, and how far the builder's mapping
//! reaches.
//!
//! It works on numbers only. It finds what is wrong with them while an error can still be printed
//! and nothing has been touched.

use hypercall::start_info::{BootInfo, Module};
use hypercall::{GuestVa, Level, PAGE_SHIFT, Pfn, XEN_HOLE_START};
use p2m::Pfns;

use crate::error::EarlyError;
use crate::spans::{CHUNK_PFNS, CHUNK_SHIFT, LIST_WORD_BYTES, PAGE_BYTES, overlap, pages_of};
use crate::uses::{BootRegion, FrameUse, OldList, RegionKind, UseKind};

/// The memory of a guest at boot, checked.
#[derive(Clone, Copy, Debug)]
pub struct BootMemory<'a> {
    pub(crate) regions: &'a [BootRegion],
    pub(crate) uses: &'a [FrameUse],
    pub(crate) place: MapPlace,
}

/// The addresses of the mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapPlace {
    /// The address at which the builder mapped pfn 0 (ELF note `VIRT_BASE`).
    pub kernel: GuestVa,
    /// How many pfns it mapped from there, including those unmapped since.
    pub kernel_pages: u64,
    /// The first address of the direct map, which begins a root slot.
    pub direct_map: GuestVa,
}

impl<'a> BootMemory<'a> {
    /// Checks what is known at boot: `regions` in ascending order, `uses` in any.
    ///
    /// # Errors
    /// [`EarlyError`], with the impossible numbers.
    ///
    /// ```
    /// use early_pgt::{BootMemory, EarlyError, FrameUse, MapPlace, BootRegion};
    /// use early_pgt::{RegionKind, UseKind};
    /// use hypercall::{GuestVa, Pfn};
    /// use p2m::Pfns;
    ///
    /// let pfns = |start, count| Pfns::new(Pfn::new(start), count);
    /// let place = MapPlace {
    ///     kernel: GuestVa::new(0xffff_ffff_8000_0000)?,
    ///     kernel_pages: 0x400,
    ///     direct_map: GuestVa::new(0xffff_8800_0000_0000)?,
    /// };
    /// let regions = [BootRegion { pfns: pfns(0, 0x1_0000), kind: RegionKind::Ram }];
    /// let kernel = FrameUse { pfns: pfns(0x100, 0x200), kind: UseKind::KernelData };
    /// let tables = FrameUse { pfns: pfns(0x2ff, 5), kind: UseKind::BuilderTables };
    /// // A page cannot be both; whoever says so learns it before anything is touched.
    /// let both = [kernel, tables];
    /// let refused = BootMemory::new(&regions, &both, place);
    /// assert!(matches!(refused, Err(EarlyError::UseOverlap { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(
        regions: &'a [BootRegion],
        uses: &'a [FrameUse],
        place: MapPlace,
    ) -> Result<Self, EarlyError> {
        let memory = Self { regions, uses, place };
        memory.check_regions()?;
        memory.check_uses()?;
        memory.check_place()?;
        Ok(memory)
    }

    /// Returns the end of the pfns that the direct map shows.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.regions.last().map_or(0, |region| region.pfns.end())
    }

    /// Returns the number of frames of RAM.
    #[must_use]
    pub fn ram(&self) -> u64 {
        let ram = self.regions.iter().filter(|region| region.kind == RegionKind::Ram);
        ram.map(|region| region.pfns.count).sum()
    }

    /// Returns the runs of free frames, lowest first.
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

    /// Returns the free frames that are not in `taken` either.
    pub(crate) const fn free_but<'t>(&self, taken: &'t [Pfns]) -> FreeRuns<'t>
    where
        'a: 't,
    {
        FreeRuns { regions: self.regions, uses: self.uses, taken, next: 0 }
    }

    /// Returns how many tables [`replace_tables`](crate::replace_tables) makes: a root, an L3, an
    /// L2 for each GiB of addresses that the kernel's mapping touches, an L1 for each 2 MiB.
    ///
    /// ```
    /// # use pv_tests::booting::Booting;
    /// # use xen_model::Role;
    /// let booting = Booting::new(Role::DomU, 1 << 14);
    /// let needed = booting.memory().own_tables(); // frames for `replace_tables`
    /// assert!(needed <= booting.boot.table_frames + 1);
    /// ```
    #[must_use]
    pub fn own_tables(&self) -> u64 {
        2 + self.kernel_l2s() + self.shared_chunks()
    }

    /// Returns the uses that end when the builder's tables are replaced.
    pub fn replaced_uses(&self, list: OldList) -> impl Iterator<Item = FrameUse> + Clone {
        self.uses.iter().copied().filter(move |used| used.kind.ends(list))
    }

    /// Returns the uses that stay then.
    pub fn kept_uses(&self, list: OldList) -> impl Iterator<Item = FrameUse> + Clone {
        self.uses.iter().copied().filter(move |used| !used.kind.ends(list))
    }

    /// Returns the number of L2 tables for the kernel's mapping.
    pub(crate) fn kernel_l2s(&self) -> u64 {
        let shift = Level::L3.shift();
        let start = self.place.kernel.raw();
        let last = start + ((self.shared_chunks() << CHUNK_SHIFT << PAGE_SHIFT) - 1);
        (last >> shift) - (start >> shift) + 1
    }

    /// Returns the number of L1 tables in the builder's mapping: the first chunks.
    pub(crate) const fn shared_chunks(&self) -> u64 {
        self.place.kernel_pages.div_ceil(CHUNK_PFNS)
    }

    /// Returns how many blocks of 2^`shift` pfns the parts of the regions inside `range` touch.
    pub(crate) fn touched(&self, shift: u32, range: Pfns) -> u64 {
        let mut blocks = 0;
        let mut counted_below = 0;
        for part in self.regions.iter().filter_map(|region| overlap(region.pfns, range)) {
            let first = (part.start.raw() >> shift).max(counted_below);
            let behind = ((part.end() - 1) >> shift) + 1;
            blocks += behind.saturating_sub(first);
            counted_below = counted_below.max(behind);
        }
        blocks
    }

    /// Returns whether block `number` of 2^`shift` pfns has a part of a region in one of `ranges`.
    pub(crate) fn touches(
        &self,
        shift: u32,
        number: u64,
        ranges: impl Iterator<Item = Pfns>,
    ) -> bool {
        let block = Pfns::new(Pfn::new(number << shift), 1 << shift);
        let mut inside = ranges.filter_map(|range| overlap(range, block));
        inside.any(|part| self.regions.iter().any(|region| overlap(region.pfns, part).is_some()))
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
            let inside = |region: &BootRegion| {
                region.kind == RegionKind::Ram
                    && region.pfns.start <= used.pfns.start
                    && used.pfns.end() <= region.pfns.end()
            };
            let named = used.pfns.start.checked_add(used.pfns.count).is_some();
            if !named || !self.regions.iter().any(inside) {
                return Err(EarlyError::OutsideRam(*used));
            }
        }
        // What goes to an allocator later may have no second use, of any kind.
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
            |region: &BootRegion| region.kind == RegionKind::Ram && region.pfns.start.raw() == 0;
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

impl MapPlace {
    /// Returns the uses that `start_info` tells of: the builder's tables, its list, and the boot
    /// module, in whole pages. Addresses in `boot` are in the mapping of pfn 0 at `self.kernel`.
    ///
    /// # Errors
    /// [`EarlyError::NotInKernelMapping`] with the first address outside that mapping.
    ///
    /// ```
    /// use early_pgt::UseKind;
    /// # use pv_tests::booting::Booting;
    /// # use xen_model::Role;
    /// let booting = Booting::new(Role::DomU, 1 << 14); // as its builder leaves it
    /// let [tables, list, _] = booting.place.builder_uses(&booting.boot)?;
    /// assert_eq!(list.map(|used| used.kind), Some(UseKind::List));
    /// assert_eq!(tables.map(|used| used.pfns.start), Some(booting.root));
    /// # Ok::<(), early_pgt::EarlyError>(())
    /// ```
    pub fn builder_uses(self, boot: &BootInfo) -> Result<[Option<FrameUse>; 3], EarlyError> {
        let used = |kind, pfns| Some(FrameUse { pfns, kind });
        let table_bytes = boot.table_frames.saturating_mul(PAGE_BYTES);
        let list_bytes = boot.pages.saturating_mul(LIST_WORD_BYTES);
        Ok([
            used(UseKind::BuilderTables, self.pages(boot.root, table_bytes)?),
            match boot.p2m_frames {
                Some((first, count)) => used(UseKind::ListAndTables, Pfns::new(first, count)),
                None => used(UseKind::List, self.pages(boot.p2m_list, list_bytes)?),
            },
            match boot.module {
                Module::None => None,
                Module::Mapped { start, len_bytes } => {
                    used(UseKind::Module, self.pages(start, len_bytes)?)
                }
                Module::Unmapped { start, len_bytes } => {
                    used(UseKind::Module, Pfns::new(start, len_bytes.div_ceil(PAGE_BYTES)))
                }
            },
        ])
    }

    /// Returns the pages of `len_bytes` bytes from an address of the kernel's mapping on.
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

/// The runs of free RAM, in order.
#[derive(Clone, Debug)]
pub(crate) struct FreeRuns<'a> {
    regions: &'a [BootRegion],
    uses: &'a [FrameUse],
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
