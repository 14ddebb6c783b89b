//! A guest on the model as its builder leaves it, whose memory nobody has claimed yet.
#![expect(unsafe_code, reason = "claims frames of a guest that exists only in the model")]
#![expect(clippy::missing_panics_doc, reason = "for tests: what cannot be is a panic")]

use std::sync::atomic::AtomicU64;

use early_pgt::{
    BootMemory, BootRegion, Build, FrameUse, MapPlace, Plan, RegionKind, RoundError, UseKind,
};
use hypercall::start_info::BootInfo;
use hypercall::{
    Batch, BatchStorage, Frames, GuestVa, Machine, MmuExtOp, MmuUpdate, PAGE_SHIFT, Pfn, Pte, Slot,
};
use p2m::{Guest, P2m, Pfns};
use xen_model::{Builder, DomainConfig, Model, Role};

/// Where tests want the direct map.
pub const DIRECT_MAP: u64 = 0xffff_8800_0000_0000;

/// The code in the image of [`Booting::with_code`].
pub const TEXT: Pfns = Pfns::new(Pfn::new(0x101), 9);
/// The constants in it.
pub const CONSTANTS: Pfns = Pfns::new(Pfn::new(0x10a), 3);

/// A guest on a machine of its own.
#[derive(Debug)]
pub struct Booting {
    /// The machine.
    pub model: Model,
    /// What the builder left.
    pub boot: BootInfo,
    /// Its frame list.
    pub list: Vec<AtomicU64>,
    /// The builder's root table.
    pub root: Pfn,
    /// What there is.
    pub regions: Vec<BootRegion>,
    /// What of it is in use.
    pub uses: Vec<FrameUse>,
    /// Where it is mapped, and is to be.
    pub place: MapPlace,
}

impl Booting {
    /// Creates a guest of `pages` pages on Xen 4.17.
    #[must_use]
    pub fn new(role: Role, pages: u64) -> Self {
        Self::of(DomainConfig::new(role, pages))
    }

    /// Returns a guest made like `config`.
    #[must_use]
    pub fn of(config: DomainConfig) -> Self {
        Self::on(Model::builder(), config)
    }

    /// Returns the same on the machine that `builder` describes.
    #[must_use]
    pub fn on(builder: Builder, config: DomainConfig) -> Self {
        let (virt_base, image) = (config.virt_base, config.kernel_pages);
        let model = builder.seed(7).guest(config).build().expect("a guest");
        let boot = BootInfo::parse(&model.guest().start_info().expect("built")).expect("valid");
        let pfn = |va: u64| Pfn::new((va - virt_base) >> PAGE_SHIFT);
        let list = model.guest().built_list();
        let root = pfn(boot.root.raw());
        let mapped = |pages: u64| {
            let va = virt_base + (pages << PAGE_SHIFT);
            pages < boot.pages && model.guest().l1_slot(va).is_some_and(|(_, pte)| pte.is_present())
        };
        let place = MapPlace {
            kernel: GuestVa::new(virt_base).expect("kernel half"),
            kernel_pages: (0..).find(|pages| !mapped(*pages)).expect("an end"),
            direct_map: GuestVa::new(DIRECT_MAP).expect("above Xen's range"),
        };
        let ram = Pfns::new(Pfn::new(0), boot.pages);
        let image = FrameUse { pfns: Pfns::new(Pfn::new(0), image), kind: UseKind::KernelData };
        // The rings of a domU follow it.
        let pages = if boot.is_dom0 { 1 } else { 3 };
        let start_info = Pfns::new(pfn(model.guest().start_info_address()), pages);
        let start_info = FrameUse { pfns: start_info, kind: UseKind::StartInfo };
        let builder = place.builder_uses(&boot).expect("where the builder put things");
        let uses = [image, start_info].into_iter().chain(builder.into_iter().flatten()).collect();
        let regions = vec![BootRegion { pfns: ram, kind: RegionKind::Ram }];
        Self { model, boot, list, root, regions, uses, place }
    }

    /// Returns the same with code and constants in an image of 2 MiB.
    #[must_use]
    pub fn with_code(builder: Builder, mut config: DomainConfig) -> Self {
        config.kernel_pages = 0x200;
        let mut booting = Self::on(builder, config);
        booting.uses.retain(|used| used.kind != UseKind::KernelData);
        let data = Pfns::new(Pfn::new(0x10d), 0xf3);
        booting.uses.extend([
            FrameUse { pfns: TEXT, kind: UseKind::KernelText },
            FrameUse { pfns: CONSTANTS, kind: UseKind::KernelConstants },
            FrameUse { pfns: data, kind: UseKind::KernelData },
        ]);
        booting
    }

    /// Returns a guest made like `config` that wants the machine's own frames at `identity`, below
    /// its image: [`give_up`](Self::give_up) takes what it has there.
    #[must_use]
    pub fn with_identity(config: DomainConfig, identity: Pfns) -> Self {
        let mut booting = Self::of(config);
        let image = booting.uses.iter_mut().find(|used| used.kind == UseKind::KernelData);
        image.expect("there is one").pfns = Pfns::new(Pfn::new(0x100), 1);
        let below = Pfns::new(Pfn::new(0), identity.start.raw());
        let above = Pfns::new(Pfn::new(identity.end()), booting.boot.pages - identity.end());
        booting.regions = vec![
            BootRegion { pfns: below, kind: RegionKind::Ram },
            BootRegion { pfns: identity, kind: RegionKind::Identity },
            BootRegion { pfns: above, kind: RegionKind::Ram },
        ];
        booting
    }

    /// Takes the memory at `pfns` out of the builder's mapping and out of the frame map.
    pub fn give_up(&self, p2m: &P2m<'_>, pfns: Pfns) {
        let mut storage = BatchStorage::<200, 1>::new();
        let mut batch = storage.batch();
        for pfn in pfns.iter() {
            let (slot, pte) = self.entry(self.place.kernel.raw(), pfn).expect("mapped");
            batch.update(MmuUpdate::set(slot, Pte::ABSENT), pte.raw()).expect("room");
            // SAFETY: the guest exists only in the model.
            unsafe { p2m.depopulate(pfn) }.expect("memory");
        }
        batch.op(MmuExtOp::tlb_flush_all()).expect("room");
        // SAFETY: nothing of this host is in the model's frames.
        unsafe { batch.submit(&self.model) }.expect("not refused");
        // SAFETY: the guest exists only in the model.
        unsafe { p2m.set_identity(pfns) }.expect("absent");
    }

    /// Reserves what the builder mapped and nobody uses, but for six frames, so that the direct map
    /// takes two rounds.
    #[must_use]
    pub fn in_two_rounds(mut self) -> Self {
        let mapped = self.place.kernel_pages;
        let end = |run: Pfns| run.end().min(mapped);
        let free = self.memory().free().filter(|run| run.start.raw() < mapped);
        let free: Vec<Pfns> =
            free.map(|run| Pfns::new(run.start, end(run) - run.start.raw())).collect();
        let largest = free.iter().copied().max_by_key(|run| run.count).expect("some are free");
        self.uses.extend(free.into_iter().map(|run| {
            let count = if run == largest { run.count - 6 } else { run.count };
            FrameUse { pfns: Pfns::new(run.start, count), kind: UseKind::Reserved }
        }));
        assert_eq!(Plan::new(&self.memory()).expect("a plan").rounds().len(), 2);
        self
    }

    /// Returns its frame map.
    #[must_use]
    pub fn p2m(&self) -> P2m<'_> {
        // SAFETY: the guest exists only in the model.
        unsafe { P2m::adopt(&self.list) }.expect("the guest has pages")
    }

    /// Returns what is known of its memory.
    #[must_use]
    pub fn memory(&self) -> BootMemory<'_> {
        BootMemory::new(&self.regions, &self.uses, self.place).expect("a good guest")
    }

    /// Returns how many pages are in use.
    #[must_use]
    pub fn used_pages(&self) -> u64 {
        self.uses.iter().map(|used| used.pfns.count).sum()
    }

    /// Returns what a build on `machine` works on.
    #[must_use]
    pub const fn guest<'a, M>(&self, machine: &'a M, p2m: &'a P2m<'a>) -> Guest<'a, M> {
        // SAFETY: the guest's frame map, and the root that its kernel runs on.
        unsafe { Guest::new(machine, p2m, self.root) }
    }

    /// Builds its direct map, and gives its free frames.
    #[must_use]
    pub fn build(&self) -> Vec<Frames> {
        let mut storage = Box::new(BatchStorage::<6000, 1>::new());
        let p2m = self.p2m();
        let built = self.build_on(&self.guest(&self.model, &p2m), &mut storage.batch());
        built.expect("nothing is refused")
    }

    /// Builds it on the machine of `guest`, and gives its free frames.
    ///
    /// # Errors
    /// [`RoundError`]; a build that comes after is the first again.
    pub fn build_on<M: Machine>(
        &self,
        guest: &Guest<'_, M>,
        batch: &mut Batch<'_>,
    ) -> Result<Vec<Frames>, RoundError> {
        let memory = self.memory();
        let plan = Plan::new(&memory).expect("a plan");
        // SAFETY: the frames exist only in the model; nobody else claims any.
        let mut build = unsafe { Build::begin(&memory, plan) };
        while let Some(mapped) = build.round(guest, batch)? {
            self.model.guest().set_direct_map(mapped.start, mapped.end);
        }
        let mut free = Vec::new();
        assert_eq!(build.finish(|frames| free.push(frames)), None, "nothing was refused");
        Ok(free)
    }

    /// Returns the entry for `pfn` in a mapping that begins at `start`, if there is a table.
    #[must_use]
    pub fn entry(&self, start: u64, pfn: Pfn) -> Option<(Slot, Pte)> {
        self.model.guest().l1_slot(start + (pfn.raw() << PAGE_SHIFT))
    }

    /// Returns whether Xen has the frame as a table.
    #[must_use]
    pub fn is_table(&self, pfn: Pfn) -> bool {
        let mfn = self.model.guest().built_mfn(pfn).expect("RAM");
        let kind = self.model.frame(mfn).expect("a frame").kind.kind;
        format!("{kind:?}").starts_with('L')
    }

    /// Checks that Xen's counts add up, and that the guest did nothing that a real one could not
    /// do.
    pub fn check(&self) {
        self.model.audit().expect("every reference has its holder");
        assert_eq!(self.model.take_violations(), Vec::<String>::new());
    }
}
