//! Making a machine: its RAM, its domains, and what their builders leave behind.

mod mapping;
mod plan;
mod start_info;

pub(crate) use plan::Plan;
pub(crate) use start_info::write;

use core::fmt;

use hypercall::{MemoryRegion, Mfn, PAGE_SHIFT};

use crate::domain::{Domain, Vcpu};
use crate::heap::Heap;
use crate::log::{Log, Verbosity};
use crate::model::Model;
use crate::page::{Frames, POISON, Region};
use crate::random::Random;
use crate::release::{Flavour, Release, Role};
use crate::scatter::Scatter;
use crate::state::{Current, Preemption, SelfSnoop, State, Statistics};
use crate::types::{CountFlags, CountInfo, PageType, TypeInfo};
use mapping::{Mapping, TableOrder};
use plan::Pieces;

/// Frames of the first megabyte.
const IO_END: u64 = 0x100;
/// Frames for Xen's own heap: shared pages, grant tables.
const XEN_END: u64 = 0x1000;
/// Where RAM stops below 4 GiB, and where it goes on.
const HOLE_START: u64 = 0xf_0000;
const HOLE_END: u64 = 0x10_0000;
/// The first frame of Xen's heap that is handed out.
const XEN_HEAP_START: u64 = 0x200;
/// Regions begin at multiples of so many frames.
const REGION_ALIGNMENT: u64 = 512;
/// Slack that xl grants a domU above its memory, in pages (1 MiB).
const SLACK_PAGES: u64 = 256;
/// The builders keep so many pages mapped behind the last piece.
const TAIL_PAGES: u64 = 128;
/// Builders end the boot mapping at multiples of 4 MiB.
const END_ALIGNMENT: u64 = 0x40_0000;
/// Most pages a domain can have here: 4 TiB.
const PAGES_MAX: u64 = 1 << 30;

/// How far the mapping reaches that a domain starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootMapping {
    /// As far as the builders map: the kernel, what follows it, and some slack, up to 4 MiB boundaries.
    AsBuilt,
    /// All pages: the state of a guest that has extended its mapping already.
    AllPages,
}

/// How a domain's frames lie in the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Anywhere, by seed; pages are no neighbours in the machine.
    Scattered,
    /// In one run, as a release build of Xen places dom0.
    Contiguous,
}

/// What a domain is made like.
#[derive(Clone, Debug)]
pub struct DomainConfig {
    /// Its kind.
    pub role: Role,
    /// Pages of RAM.
    pub pages: u64,
    /// vCPUs; only the first one runs.
    pub vcpus: usize,
    /// Where the kernel says its page 0 is mapped (ELF note `VIRT_BASE`).
    pub virt_base: u64,
    /// Pages of the kernel image.
    pub kernel_pages: u64,
    /// What is mapped at the start.
    pub boot_mapping: BootMapping,
    /// Where the kernel wants the P2M list, if not behind itself (ELF note `INIT_P2M`).
    pub init_p2m: Option<u64>,
    /// Where its frames lie.
    pub placement: Placement,
    /// Its command line.
    pub command_line: String,
}

impl DomainConfig {
    /// A domain of `pages` pages with the usual rest.
    #[must_use]
    pub const fn new(role: Role, pages: u64) -> Self {
        Self {
            role,
            pages,
            vcpus: 1,
            virt_base: 0xffff_ffff_8000_0000,
            kernel_pages: 64,
            boot_mapping: BootMapping::AsBuilt,
            init_p2m: None,
            placement: Placement::Scattered,
            command_line: String::new(),
        }
    }
}

/// Why a machine cannot be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildError {
    /// The domain has fewer pages than its builder needs.
    TooSmall {
        /// Pages it has.
        pages: u64,
        /// Pages it needs.
        needed: u64,
    },
    /// More pages than the model can number.
    TooLarge(u64),
    /// `VIRT_BASE` is not a page of the guest's, or the mapping from it leaves the address space.
    VirtBase(u64),
    /// `INIT_P2M` is not a page below `VIRT_BASE` in an L4 slot of its own, or the domain is dom0.
    InitP2m(u64),
    /// A domain has no vCPU, or more than 64.
    Vcpus(usize),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall { pages, needed } => write!(
                f,
                "a domain of {pages} pages cannot be built: {needed} are needed \
                 (or BootMapping::AllPages, which ends where memory ends)"
            ),
            Self::TooLarge(pages) => write!(f, "{pages} pages are more than the model can number"),
            Self::VirtBase(va) => {
                write!(f, "VIRT_BASE {va:#x} leaves no room for the boot mapping")
            }
            Self::InitP2m(va) => write!(f, "INIT_P2M {va:#x} cannot be honoured"),
            Self::Vcpus(count) => write!(f, "{count} vCPUs: there must be 1 to 64"),
        }
    }
}

impl core::error::Error for BuildError {}

/// Settings for a machine. The domain it is about is a domU of 2048 pages unless told otherwise.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it builds"]
pub struct Builder {
    release: Release,
    flavour: Flavour,
    verbosity: Verbosity,
    self_snoop: SelfSnoop,
    seed: u64,
    spare_pages: Option<u64>,
    guest: DomainConfig,
    others: Vec<DomainConfig>,
}

impl Builder {
    pub(crate) const fn new() -> Self {
        Self {
            release: Release::V4_17,
            flavour: Flavour::Debug,
            verbosity: Verbosity::Default,
            self_snoop: SelfSnoop::Present,
            seed: 0,
            spare_pages: None,
            guest: DomainConfig::new(Role::DomU, 2048),
            others: Vec::new(),
        }
    }

    /// Pages of RAM the guest has.
    pub const fn pages(mut self, pages: u64) -> Self {
        self.guest.pages = pages;
        self
    }

    /// Decides which frames the guest has, now and later.
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Which Xen.
    pub const fn release(mut self, release: Release) -> Self {
        self.release = release;
        self
    }

    /// Which build of it.
    pub const fn flavour(mut self, flavour: Flavour) -> Self {
        self.flavour = flavour;
        self
    }

    /// Which of the guests' log lines a release build prints (`guest_loglvl`).
    pub const fn verbosity(mut self, verbosity: Verbosity) -> Self {
        self.verbosity = verbosity;
        self
    }

    /// What the CPU does about caches and write-combining mappings.
    pub const fn self_snoop(mut self, self_snoop: SelfSnoop) -> Self {
        self.self_snoop = self_snoop;
        self
    }

    /// What kind of domain the guest is.
    pub const fn role(mut self, role: Role) -> Self {
        self.guest.role = role;
        self
    }

    /// The guest's vCPUs.
    pub const fn vcpus(mut self, vcpus: usize) -> Self {
        self.guest.vcpus = vcpus;
        self
    }

    /// Where the guest's kernel is linked to find its page 0.
    pub const fn virt_base(mut self, virt_base: u64) -> Self {
        self.guest.virt_base = virt_base;
        self
    }

    /// How far the guest's boot mapping reaches.
    pub const fn boot_mapping(mut self, boot_mapping: BootMapping) -> Self {
        self.guest.boot_mapping = boot_mapping;
        self
    }

    /// Everything about the guest at once.
    pub fn guest(mut self, config: DomainConfig) -> Self {
        self.guest = config;
        self
    }

    /// Adds another domain.
    pub fn other(mut self, config: DomainConfig) -> Self {
        self.others.push(config);
        self
    }

    /// Free frames that the machine has besides; as many as the guest has unless told otherwise.
    pub const fn spare_pages(mut self, pages: u64) -> Self {
        self.spare_pages = Some(pages);
        self
    }

    /// Makes the machine, with every domain as its builder leaves it.
    ///
    /// # Errors
    /// [`BuildError`] with the setting that makes no sense.
    pub fn build(self) -> Result<Model, BuildError> {
        let mut random = Random::new(self.seed);
        let mut land = Land::default();
        let mut plans = Vec::new();
        let mut domu = 0;
        let configs: Vec<&DomainConfig> = [&self.guest].into_iter().chain(&self.others).collect();
        for (k, config) in configs.iter().enumerate() {
            let id = match config.role {
                Role::Dom0 => 0,
                Role::DomU => {
                    domu += 1;
                    domu
                }
            };
            check(config)?;
            let start = land.take(config.pages, Region::Domain(k));
            let frames = match config.placement {
                Placement::Scattered => Scatter::random(start, config.pages, &mut random),
                Placement::Contiguous => Scatter::contiguous(start, config.pages),
            };
            plans.push(plan(config, id, frames)?);
        }
        let spare = self.spare_pages.unwrap_or(self.guest.pages.max(2048));
        let spare_start = land.take(spare, Region::Spare);
        let m2p_pages = (land.next >> 18) + 8;
        let m2p = land.take(m2p_pages * 512, Region::Xen);
        let spare_fill = if self.flavour == Flavour::Debug { POISON } else { 0 };
        let frames = Frames::new(land.regions, land.next, plans, spare_fill);
        let mut state = State {
            release: self.release,
            flavour: self.flavour,
            self_snoop: self.self_snoop,
            frames,
            heap: Heap::new(spare_start, spare, random),
            m2p_frames: Mfn::new(m2p),
            domains: Vec::new(),
            current: Current { domain: 0, vcpu: 0 },
            log: Log::new(self.release, self.flavour, self.verbosity),
            preemption: Preemption::default(),
            statistics: Statistics::default(),
            violations: Vec::new(),
            in_multicall: false,
            console: Vec::new(),
        };
        for (k, config) in configs.iter().enumerate() {
            let domain = found(&mut state, config, k);
            state.domains.push(domain);
            start_info::fill(&mut state, k, config);
        }
        Ok(Model::new(state))
    }
}

/// RAM being handed out.
#[derive(Debug)]
struct Land {
    regions: Vec<(u64, Option<Region>)>,
    next: u64,
}

impl Default for Land {
    fn default() -> Self {
        let regions = vec![(0, Some(Region::Io)), (IO_END, Some(Region::Xen))];
        Self { regions, next: XEN_END }
    }
}

impl Land {
    /// Takes a run of frames, on one side of the hole below 4 GiB.
    fn take(&mut self, pages: u64, region: Region) -> u64 {
        let length = pages.next_multiple_of(REGION_ALIGNMENT);
        if self.next < HOLE_START && self.next + length > HOLE_START {
            self.regions.push((self.next, None));
            self.next = HOLE_END;
        }
        let start = self.next;
        self.regions.push((start, Some(region)));
        if length > pages {
            // The rest of the last stretch belongs to nobody.
            self.regions.push((start + pages, Some(Region::Spare)));
        }
        self.next = start + length;
        start
    }
}

fn check(config: &DomainConfig) -> Result<(), BuildError> {
    if config.pages > PAGES_MAX {
        return Err(BuildError::TooLarge(config.pages));
    }
    if !(1..=64).contains(&config.vcpus) {
        return Err(BuildError::Vcpus(config.vcpus));
    }
    let base = config.virt_base;
    let aligned = base.is_multiple_of(hypercall::PAGE_SIZE as u64);
    if !aligned || hypercall::GuestVa::new(base).is_err() {
        return Err(BuildError::VirtBase(base));
    }
    Ok(())
}

/// Lays a domain out (`xc_dom_build_image`; `dom0_construct_pv`).
fn plan(config: &DomainConfig, owner: u16, frames: Scatter) -> Result<Plan, BuildError> {
    let pages = config.pages;
    let list_pages = (pages * 8).div_ceil(hypercall::PAGE_SIZE as u64);
    let start = config.virt_base & 0xffff_ffff_ffff;
    let (rings, order) = match config.role {
        Role::DomU => (2, TableOrder::TopDown),
        Role::Dom0 => (0, TableOrder::AsNeeded),
    };
    let list_inside = if config.init_p2m.is_some() { 0 } else { list_pages };
    let start_info = config.kernel_pages + list_inside;
    let tables = start_info + 1 + rings;
    let mut boot = Mapping { start, first: 0, pages: tables, tables, roots: 1, order };
    if config.boot_mapping == BootMapping::AllPages {
        boot.pages = pages;
    } else {
        loop {
            let end = (start >> PAGE_SHIFT) + tables + boot.table_count() + 1;
            let wanted = boot_end(config.role, end << PAGE_SHIFT) - start;
            if boot.pages == wanted >> PAGE_SHIFT {
                break;
            }
            boot.pages = wanted >> PAGE_SHIFT;
        }
    }
    let stack = tables + boot.table_count();
    let needed = boot.pages.max(stack + 1);
    if start + (needed << PAGE_SHIFT) > 1 << 48 {
        return Err(BuildError::VirtBase(config.virt_base));
    }
    let (p2m, list, needed) = match config.init_p2m {
        None => (None, config.kernel_pages, needed),
        Some(va) => {
            let first = needed;
            let mapping = outside_list(config, (va, first, list_pages))?;
            (Some(mapping), first, first + list_pages + mapping.table_count())
        }
    };
    if needed > pages {
        return Err(BuildError::TooSmall { pages, needed });
    }
    let rings = (rings > 0).then_some(start_info + 1);
    let pieces = Pieces { p2m_list: list, p2m_pages: list_pages, start_info, rings, stack };
    Ok(Plan { owner, frames, pages, virt_base: config.virt_base, boot, p2m, pieces })
}

/// Where the boot mapping ends, given the end of its last piece.
const fn boot_end(role: Role, end: u64) -> u64 {
    match role {
        Role::DomU => ((end + (TAIL_PAGES << PAGE_SHIFT)) | (END_ALIGNMENT - 1)) + 1,
        Role::Dom0 => {
            let rounded = end.next_multiple_of(END_ALIGNMENT);
            if rounded - end < TAIL_PAGES << PAGE_SHIFT { rounded + END_ALIGNMENT } else { rounded }
        }
    }
}

/// The mapping of a P2M list outside the kernel's: pages `first..first + pages` at `va`.
fn outside_list(
    config: &DomainConfig,
    (va, first, pages): (u64, u64, u64),
) -> Result<Mapping, BuildError> {
    let start = va & 0xffff_ffff_ffff;
    let end = start + (pages << PAGE_SHIFT);
    let kernel = (config.virt_base & 0xffff_ffff_ffff) >> 39;
    let sensible = va.is_multiple_of(hypercall::PAGE_SIZE as u64)
        && va < config.virt_base
        && hypercall::GuestVa::new(va).is_ok()
        && (end - 1) >> 39 < kernel
        && config.role == Role::DomU;
    if !sensible {
        return Err(BuildError::InitP2m(va));
    }
    let order = TableOrder::TopDown;
    Ok(Mapping { start, first, pages, tables: first + pages, roots: 0, order })
}

/// Makes the domain itself.
fn found(state: &mut State, config: &DomainConfig, k: usize) -> Domain {
    let plan = &state.frames.plans()[k];
    let (id, root, mapped_frames) = (plan.owner, plan.root(), plan.boot.pages);
    let max_pages = match config.role {
        Role::DomU => config.pages + SLACK_PAGES,
        Role::Dom0 => config.pages,
    };
    let mut vcpus: Vec<Vcpu> = (0..config.vcpus).map(|_| Vcpu::default()).collect();
    vcpus[0].kernel_root = Some(root);
    let memory_map = (config.role == Role::DomU).then(|| {
        let len_bytes = max_pages << PAGE_SHIFT;
        vec![MemoryRegion { start: 0, len_bytes, kind: MemoryRegion::RAM }]
    });
    let shared_info = share(state, XEN_HEAP_START + 64 * k as u64, id);
    Domain {
        id,
        role: config.role,
        max_pages,
        tot_pages: config.pages,
        assists: 0,
        shared_info,
        memory_map,
        vcpus,
        grant_frames: Vec::new(),
        mapped_grants: Vec::new(),
        shutdown: None,
        crashed: false,
        plan: k,
        start_info: None,
        direct_map: config.virt_base,
        mapped_frames,
    }
}

/// Makes a frame of Xen's heap known to a domain (`share_xen_page_with_guest`).
pub(crate) fn share(state: &mut State, mfn: u64, owner: u16) -> Mfn {
    let mfn = Mfn::new(mfn);
    let page = state.frames.page(mfn);
    page.owner = owner;
    page.count = CountInfo { flags: CountFlags::XEN_HEAP | CountFlags::ALLOCATED, refs: 1 };
    page.kind = TypeInfo::validated(PageType::Writable, 1);
    mfn
}
