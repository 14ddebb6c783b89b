//! A guest on the model as its builder leaves it, whose memory nobody has claimed yet.
#![expect(unsafe_code, reason = "claims frames of a guest that exists only in the model")]
#![expect(clippy::missing_panics_doc, reason = "for tests: what cannot be is a panic")]

use std::sync::atomic::AtomicU64;

use early_pgt::{
    BootMemory, Build, MapPlace, Plan, Region, RegionKind, Use, UseKind, builder_uses,
};
use hypercall::{BatchStorage, BootInfo, Frames, GuestVa, PAGE_SHIFT, Pfn};
use p2m::{Guest, P2m, Pfns};
use xen_model::{Builder, DomainConfig, Model, Role};

/// Where tests want the direct map.
pub const DIRECT_MAP: u64 = 0xffff_8800_0000_0000;

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
    pub regions: Vec<Region>,
    /// What of it is in use.
    pub uses: Vec<Use>,
    /// Where it is mapped, and is to be.
    pub place: MapPlace,
}

impl Booting {
    /// A guest of `pages` pages on Xen 4.17.
    #[must_use]
    pub fn new(role: Role, pages: u64) -> Self {
        Self::of(DomainConfig::new(role, pages))
    }

    /// A guest made like `config`.
    #[must_use]
    pub fn of(config: DomainConfig) -> Self {
        Self::on(Model::builder(), config)
    }

    /// The same on the machine that `builder` describes.
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
        let image = Use { pfns: Pfns::new(Pfn::new(0), image), kind: UseKind::KernelData };
        // The rings of a domU follow it.
        let pages = if boot.is_dom0 { 1 } else { 3 };
        let start_info = Pfns::new(pfn(model.guest().start_info_address()), pages);
        let start_info = Use { pfns: start_info, kind: UseKind::StartInfo };
        let builder = builder_uses(&boot, place).expect("where the builder put things");
        let uses = [image, start_info].into_iter().chain(builder.into_iter().flatten()).collect();
        let regions = vec![Region { pfns: ram, kind: RegionKind::Ram }];
        Self { model, boot, list, root, regions, uses, place }
    }

    /// Its frame map.
    #[must_use]
    pub fn p2m(&self) -> P2m<'_> {
        // SAFETY: the guest exists only in the model.
        unsafe { P2m::adopt(&self.list) }.expect("the guest has pages")
    }

    /// What is known of its memory.
    #[must_use]
    pub fn memory(&self) -> BootMemory<'_> {
        BootMemory::new(&self.regions, &self.uses, self.place).expect("a good guest")
    }

    /// What a build on `machine` works on.
    #[must_use]
    pub const fn guest<'a, M>(&self, machine: &'a M, p2m: &'a P2m<'a>) -> Guest<'a, M> {
        // SAFETY: the guest's frame map, and the root that its kernel runs on.
        unsafe { Guest::new(machine, p2m, self.root) }
    }

    /// Builds its direct map, and gives its free frames.
    #[must_use]
    pub fn build(&self) -> Vec<Frames> {
        let (memory, p2m) = (self.memory(), self.p2m());
        let plan = Plan::new(&memory).expect("a plan");
        let mut storage = Box::new(BatchStorage::<6000, 1>::new());
        // SAFETY: the frames exist only in the model; nobody else claims any.
        let mut build = unsafe { Build::begin(&memory, plan) };
        let guest = self.guest(&self.model, &p2m);
        while let Some(mapped) = build.round(guest, &mut storage.batch()).expect("a round") {
            self.model.guest().set_direct_map(mapped.start, mapped.end);
        }
        let mut free = Vec::new();
        assert_eq!(build.finish(|frames| free.push(frames)), None, "nothing was refused");
        free
    }

    /// Checks that Xen's counts add up, and that the guest did nothing that a real one could not
    /// do.
    pub fn check(&self) {
        self.model.audit().expect("every reference has its holder");
        assert_eq!(self.model.take_violations(), Vec::<String>::new());
    }
}
