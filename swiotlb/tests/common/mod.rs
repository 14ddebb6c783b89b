//! A guest on the model, for the tests of this folder.
#![expect(unsafe_code, reason = "claims frames of a guest that exists only in the model")]
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(unreachable_pub, reason = "a module shared by test programs")]

pub mod odd;

use hypercall::memory::Extent;
use hypercall::start_info::BootInfo;
use hypercall::{
    BatchStorage, Call, DomId, FrameAccess, Frames, Hypercalls, Machine, Mfn, MmuUpdate,
    PAGE_SHIFT, PAGE_SIZE, Pfn, Pte, PteFlags, Refused, Request,
};
use p2m::{DirectEntries, P2m};
use swiotlb::region::{ExchangeError, Region, RegionError, Scratch, Stranded, gather};
use swiotlb::{Area, Buffer, Dma, DmaMask, GuestBytes, Pool, Segment};
use xen_model::{DomainConfig, Model, Role};

/// The first page of the frames that tests use: in the kernel image, which nothing else uses.
pub const ARENA: u64 = 0x40;
/// How many there are.
pub const ARENA_FRAMES: u64 = 1536;

/// A guest on a machine of its own.
pub struct Guest {
    pub model: Model,
    pub p2m: &'static P2m<'static>,
    pub root: Pfn,
    /// Frames of the arena that are looked at.
    pub arena: u64,
}

impl Guest {
    /// A domU of 16 MiB on Xen 4.17, on a machine with enough memory left.
    pub fn new() -> Self {
        Self::with_spare(Role::DomU, 1 << 14)
    }

    /// A guest of 16 MiB, with `spare` frames left to Xen.
    pub fn with_spare(role: Role, spare: u64) -> Self {
        Self::of(DomainConfig::new(role, 4096), spare, ARENA_FRAMES)
    }

    /// A guest with so many vCPUs, of which one runs, and as few frames as will do.
    pub fn with_vcpus(vcpus: usize) -> Self {
        let mut config = DomainConfig::new(Role::DomU, 1024);
        config.vcpus = vcpus;
        Self::of(config, 1024, 128)
    }

    /// The vCPU that does not run yet.
    pub fn second(&self) -> xen_model::Vcpu<'_> {
        self.model.vcpu(self.model.guest().domain(), 1).expect("it has two")
    }

    /// A guest with `frames` frames that tests use, and `spare` left to Xen.
    pub fn of(mut config: DomainConfig, spare: u64, frames: u64) -> Self {
        config.kernel_pages = ARENA + frames;
        let builder = Model::builder().seed(7).spare_pages(spare).guest(config.clone());
        let model = builder.build().expect("a small guest");
        let boot = BootInfo::parse(&model.guest().start_info().expect("built")).expect("valid");
        let root = Pfn::new((boot.root.raw() - config.virt_base) >> PAGE_SHIFT);
        // SAFETY: the guest exists only in the model.
        let p2m = unsafe { P2m::adopt(model.guest().built_list().leak()) }.expect("it has pages");
        Self { model, p2m: Box::leak(Box::new(p2m)), root, arena: frames.min(ARENA_FRAMES) }
    }

    /// The guest on `machine`, which is its model or something around it.
    pub fn on<'g, M>(&'g self, machine: &'g M) -> p2m::Guest<'g, M> {
        // SAFETY: the guest exists only in the model, and the root is the one that it booted on.
        unsafe { p2m::Guest::new(machine, self.p2m, self.root) }
    }

    /// Frames that are free to use, from the arena; each to be claimed once.
    pub fn frames(&self, first: u64, count: u64) -> Frames {
        assert!(first + count <= self.arena);
        // SAFETY: the frames exist only in the model, and each is claimed once.
        unsafe { Frames::claim(Pfn::new(ARENA + first), count) }
    }

    /// A buffer in the arena.
    pub fn buffer(&self, frame: u64, offset: usize, len_bytes: usize) -> Buffer {
        let place = GuestBytes { pfn: Pfn::new(ARENA + frame), offset, len_bytes };
        // SAFETY: as above.
        unsafe { Buffer::claim(place) }
    }

    /// Writes bytes through the direct mapping.
    pub fn write(&self, place: GuestBytes, bytes: &[u8]) {
        for (at, byte) in bytes.iter().enumerate() {
            let offset = place.offset + at;
            let pfn = Pfn::new(place.pfn.raw() + (offset / PAGE_SIZE) as u64);
            // SAFETY: the frames of the tests.
            unsafe { self.model.write_bytes(pfn, offset % PAGE_SIZE, &[*byte]) }.expect("mapped");
        }
    }

    /// Reads bytes through the direct mapping.
    pub fn read(&self, place: GuestBytes) -> Vec<u8> {
        let byte = |at: usize| {
            let offset = place.offset + at;
            let pfn = Pfn::new(place.pfn.raw() + (offset / PAGE_SIZE) as u64);
            let mut byte = [0];
            self.model.read_bytes(pfn, offset % PAGE_SIZE, &mut byte).expect("mapped");
            byte[0]
        };
        (0..place.len_bytes).map(byte).collect()
    }

    /// What the device sees: machine memory.
    pub fn device_reads(&self, bus: swiotlb::BusAddr, len_bytes: usize) -> Vec<u8> {
        let byte = |address: u64| {
            let index = usize::try_from(address & 0xfff).expect("small");
            let mfn = Mfn::new(address >> PAGE_SHIFT);
            let word = self.model.word(mfn, index / 8).expect("memory");
            word.to_le_bytes()[index % 8]
        };
        (bus.raw()..bus.raw() + len_bytes as u64).map(byte).collect()
    }

    /// What the device does: writes machine memory.
    pub fn device_writes(&self, bus: swiotlb::BusAddr, bytes: &[u8]) {
        for (address, byte) in (bus.raw()..).zip(bytes) {
            let index = usize::try_from(address & 0xfff).expect("small");
            let mfn = Mfn::new(address >> PAGE_SHIFT);
            let mut word = self.model.word(mfn, index / 8).expect("memory").to_le_bytes();
            word[index % 8] = *byte;
            self.model.poke(mfn, index / 8, u64::from_le_bytes(word));
        }
    }

    /// Checks that Xen's counts add up, that the guest did nothing that a real one could not do,
    /// and that P2M, M2P and the direct mapping say the same of the arena.
    pub fn check(&self) {
        agree(self, &self.model).unwrap_or_else(|finding| panic!("{finding}"));
        self.model.audit().expect("every reference has its holder");
        assert_eq!(self.model.take_violations(), Vec::<String>::new());
    }
}

/// P2M, M2P and the direct mapping of a guest on `model` say the same of the arena.
pub fn agree(guest: &Guest, model: &Model) -> Result<(), String> {
    let p2m = guest.p2m;
    for pfn in (ARENA..ARENA + guest.arena).map(Pfn::new) {
        let mfn = p2m.mfn(pfn).map_err(|error| error.to_string())?;
        p2m.pfn(model, mfn).map_err(|error| error.to_string())?;
        let direct = DirectEntries::new(guest.on(model)).find(pfn);
        let (_, pte) = direct.map_err(|error| error.to_string())?;
        if !pte.is_writable() || pte.mfn() != mfn {
            return Err(format!("pfn {pfn} is mfn {mfn}, and mapped as {pte}"));
        }
    }
    Ok(())
}

/// Lets the direct mapping of `pfn` show `mfn`: read-only, unless it is its own.
pub fn alias(guest: &Guest, pfn: Pfn, mfn: Mfn) {
    let (slot, _) = DirectEntries::new(guest.on(&guest.model)).find(pfn).expect("an entry");
    let pte = Pte::new(mfn, PteFlags::KERNEL_RW);
    let pte = if guest.p2m.mfn(pfn) == Ok(mfn) { pte } else { pte.read_only() };
    let updates = [MmuUpdate::set(slot, pte)];
    let mut calls = [Call::new(Request::MmuUpdate(&updates, DomId::SELF))];
    // SAFETY: the frames of the tests.
    unsafe { guest.model.issue(&mut calls) }.expect("issued");
    calls[0].result().expect("mapped");
}

/// Gathers `frames` with scratch memory for 512 at once.
pub fn gather_on<M: Machine>(
    guest: &Guest,
    machine: &M,
    frames: Frames,
    order: u32,
    mask: DmaMask,
) -> Result<Region, RegionError> {
    gather_with::<M, 512>(guest, machine, frames, order, mask)
}

/// Gathers `frames` with scratch memory for `N` at once.
pub fn gather_with<M: Machine, const N: usize>(
    guest: &Guest,
    machine: &M,
    frames: Frames,
    order: u32,
    mask: DmaMask,
) -> Result<Region, RegionError> {
    let mut storage = BatchStorage::<N, 1>::new();
    let mut extents = [Extent::default(); 1024];
    let mut scratch = Scratch { batch: &mut storage.batch(), extents: &mut extents };
    gather(&guest.on(machine), frames, order, mask, &mut scratch)
}

/// Scatters a region with scratch memory for 512 at once.
pub fn scatter_on<M: Machine>(
    guest: &Guest,
    machine: &M,
    region: Region,
) -> Result<Frames, RegionError> {
    let mut storage = BatchStorage::<512, 1>::new();
    let mut extents = [Extent::default(); 1024];
    let mut scratch = Scratch { batch: &mut storage.batch(), extents: &mut extents };
    swiotlb::region::scatter(&guest.on(machine), region, &mut scratch)
}

/// Maps stranded frames again.
pub fn reinstate_on<M: Machine>(
    guest: &Guest,
    machine: &M,
    stranded: Stranded,
) -> Result<Frames, Refused<Stranded, ExchangeError>> {
    let mut storage = BatchStorage::<512, 1>::new();
    let mut scratch = Scratch { batch: &mut storage.batch(), extents: &mut [] };
    swiotlb::region::reinstate(&guest.on(machine), stranded, &mut scratch)
}

/// Places for a pool.
pub struct Places {
    pub segments: Vec<Segment>,
    pub areas: Vec<Area>,
}

impl Places {
    pub fn new(segments: usize, areas: usize) -> Self {
        Self {
            segments: (0..segments).map(|_| Segment::new()).collect(),
            areas: (0..areas).map(|_| Area::new()).collect(),
        }
    }

    pub fn pool(&self) -> Pool<'_> {
        Pool::new(&self.segments, &self.areas).expect("it has places")
    }
}

/// Adds `segments` segments to a pool, from the end of the arena.
pub fn grow(guest: &Guest, pool: &Pool<'_>, first: u64, segments: u64) {
    let frames = guest.frames(first, segments * 64);
    let region = gather_on(guest, &guest.model, frames, 6, DmaMask::ALL).expect("made");
    pool.grow(guest.p2m, region).expect("there are places");
}

/// Runs `work` with a pool of two segments in frames 512 to 639.
pub fn with_pool(work: impl FnOnce(&Guest, Dma<'_, '_, Model>)) {
    let (guest, places) = (Guest::new(), Places::new(4, 2));
    let pool = places.pool();
    grow(&guest, &pool, 512, 2);
    work(&guest, Dma { guest: guest.on(&guest.model), pool: &pool, vcpu: 0 });
    let mut segments = 0;
    let counters = pool.counters();
    assert_eq!((counters.slots_used, counters.taken), (0, counters.given), "{counters:?}");
    pool.close(&mut |_| segments += 1).expect("nothing is left in it");
    assert_eq!(segments, 2);
    guest.check();
}
