//! The operations of `memory_op`, which ask how much memory the guest has and change its frames.

use core::fmt;

use crate::frame::{Mfn, Pfn};
use crate::op::DomId;

/// One word of an extent list. Into Xen it is a pfn (`populate_physmap`, the new side of an
/// exchange) or an mfn; out of Xen it is an mfn.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Extent(u64);

impl Extent {
    /// Makes an extent that begins at `pfn`.
    ///
    /// ```
    /// use hypercall::memory::{Extent, MemoryOp, Reservation};
    /// use hypercall::{DomId, Hypercalls, Pfn};
    ///
    /// // A page of memory from Xen, to be found behind pfn 2048, which had none.
    /// let model = xen_model::Model::builder().pages(2048).spare_pages(64).build()?;
    /// model.guest().set_maximum(2049);
    /// let mut extents = [Extent::from_pfn(Pfn::new(2048))];
    /// let wanted = Reservation { extents: &mut extents, order: 0, flags: 0, domain: DomId::SELF };
    /// assert_eq!(unsafe { model.memory_op(&mut MemoryOp::Populate(wanted)) }, Ok(1));
    /// println!("it is mfn {}", extents[0].mfn());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn from_pfn(pfn: Pfn) -> Self {
        Self(pfn.raw())
    }

    /// Makes an extent that begins at `mfn`.
    #[must_use]
    pub const fn from_mfn(mfn: Mfn) -> Self {
        Self(mfn.raw())
    }

    /// Returns the frame that Xen stored there.
    #[must_use]
    pub const fn mfn(self) -> Mfn {
        Mfn::new(self.0)
    }

    /// Returns the word itself.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A list of extents of 2^`order` frames (`struct xen_memory_reservation`).
#[derive(Debug, PartialEq, Eq)]
pub struct Reservation<'a> {
    /// One word for each extent.
    pub extents: &'a mut [Extent],
    /// log2 of the frames in an extent; Xen allows a domU at most 9.
    pub order: u32,
    /// `XENMEMF_*`: the low eight bits limit the address width of new frames; 0 is no limit.
    pub flags: u32,
    /// Whose memory.
    pub domain: DomId,
}

/// An exchange of frames for as many others (`struct xen_memory_exchange`).
#[derive(Debug, PartialEq, Eq)]
pub struct Exchange<'a> {
    /// The frames to give: mfns that nothing maps any more.
    pub give: Reservation<'a>,
    /// The frames to take: pfns going in, mfns coming out.
    pub take: Reservation<'a>,
}

/// An entry of a memory map (`e820entry`, 20 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C, packed(4))]
pub struct MemoryRegion {
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub len_bytes: u64,
    /// E820 type: 1 is RAM.
    pub kind: u32,
}

impl MemoryRegion {
    /// E820 type of usable RAM.
    pub const RAM: u32 = 1;
}

/// Where the guest can read M2P (`struct xen_machphys_mapping`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct MachphysMapping {
    /// First address of the table, 8 bytes for each mfn.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// The highest mfn it may describe.
    pub max_mfn: u64,
}

/// A `memory_op`. Each variant says what it answers on success.
#[derive(Debug, PartialEq, Eq)]
pub enum MemoryOp<'a> {
    /// `XENMEM_increase_reservation`: new frames, M2P not set. Answers the extents completed.
    Increase(Reservation<'a>),
    /// `XENMEM_decrease_reservation`: gives back the listed mfns. Answers the extents completed; a
    /// frame that is still mapped counts, but stays.
    Decrease(Reservation<'a>),
    /// `XENMEM_populate_physmap`: new frames for the listed pfns, M2P set. Answers the extents
    /// completed.
    Populate(Reservation<'a>),
    /// `XENMEM_exchange`. Answers the given extents that were exchanged.
    Exchange(Exchange<'a>),
    /// `XENMEM_maximum_ram_page`: one more than the highest mfn of RAM.
    MaximumRamPage,
    /// `XENMEM_current_reservation`: frames the domain has.
    CurrentReservation(DomId),
    /// `XENMEM_maximum_reservation`: frames the domain may have.
    MaximumReservation(DomId),
    /// `XENMEM_maximum_gpfn`: the last pfn that the domain has published.
    MaximumGpfn(DomId),
    /// `XENMEM_machphys_mapping`: fills in the mapping. Answers 0.
    MachphysMapping(&'a mut MachphysMapping),
    /// `XENMEM_machphys_mfn_list`: one mfn for each 2 MiB of M2P; a hole repeats the one before it.
    /// Answers the entries filled.
    MachphysMfnList(&'a mut [Extent]),
    /// `XENMEM_memory_map`: the guest's own map. Answers the entries filled.
    MemoryMap(&'a mut [MemoryRegion]),
    /// `XENMEM_machine_memory_map`: the machine's map, for dom0. Answers the entries filled.
    MachineMemoryMap(&'a mut [MemoryRegion]),
}

impl MemoryOp<'_> {
    /// Returns the name in Xen's header, without its prefix.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Increase(_) => "increase_reservation",
            Self::Decrease(_) => "decrease_reservation",
            Self::Populate(_) => "populate_physmap",
            Self::Exchange(_) => "exchange",
            Self::MaximumRamPage => "maximum_ram_page",
            Self::CurrentReservation(_) => "current_reservation",
            Self::MaximumReservation(_) => "maximum_reservation",
            Self::MaximumGpfn(_) => "maximum_gpfn",
            Self::MachphysMapping(_) => "machphys_mapping",
            Self::MachphysMfnList(_) => "machphys_mfn_list",
            Self::MemoryMap(_) => "memory_map",
            Self::MachineMemoryMap(_) => "machine_memory_map",
        }
    }

    /// Returns the number in Xen's header (`XENMEM_*`, public/memory.h).
    #[must_use]
    pub const fn number(&self) -> u32 {
        match self {
            Self::Increase(_) => 0,
            Self::Decrease(_) => 1,
            Self::MaximumRamPage => 2,
            Self::CurrentReservation(_) => 3,
            Self::MaximumReservation(_) => 4,
            Self::MachphysMfnList(_) => 5,
            Self::Populate(_) => 6,
            Self::MemoryMap(_) => 9,
            Self::MachineMemoryMap(_) => 10,
            Self::Exchange(_) => 11,
            Self::MachphysMapping(_) => 12,
            Self::MaximumGpfn(_) => 14,
        }
    }

    /// Returns how many extents it lists.
    #[must_use]
    pub const fn extents(&self) -> usize {
        match self {
            Self::Increase(list) | Self::Decrease(list) | Self::Populate(list) => {
                list.extents.len()
            }
            Self::Exchange(exchange) => exchange.give.extents.len(),
            _ => 0,
        }
    }
}
