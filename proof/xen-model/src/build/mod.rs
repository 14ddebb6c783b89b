//! Making a machine: its RAM, its domains, and what their builders leave behind.

pub(crate) mod config;
mod layout;
mod mapping;
pub(crate) mod plan;
mod start_info;

pub(crate) use config::Start;
pub use config::{BootMapping, BuildError, Builder, DomainConfig, Placement};

use hypercall::memory::MemoryRegion;
use hypercall::{Mfn, PAGE_SHIFT};

use crate::cpu_features::{NoExecute, SelfSnoop};
use crate::domain::{Domain, VcpuState};
use crate::frames::{Frames, Region};
use crate::heap::Heap;
use crate::log::{Log, Verbosity};
use crate::model::Model;
use crate::page::POISON;
use crate::random::Random;
use crate::release::{Flavour, Release, Role};
use crate::scatter::Scatter;
use crate::state::{Current, Preemption, State, Statistics};
use layout::plan;

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
/// Most pages a domain can have here: 4 TiB.
const PAGES_MAX: u64 = 1 << 30;

impl Model {
    /// Starts with the usual settings: a domU of 2048 pages on a debug build of Xen 4.17.
    ///
    /// ```
    /// use xen_model::{Model, Release};
    ///
    /// let model = Model::builder().release(Release::V4_14).pages(2048).build()?;
    /// assert_eq!(model.guest().total_pages(), 2048);
    /// # Ok::<(), xen_model::BuildError>(())
    /// ```
    pub const fn builder() -> Builder {
        Builder::new()
    }
}

impl Builder {
    pub(crate) const fn new() -> Self {
        Self {
            release: Release::V4_17,
            flavour: Flavour::Debug,
            verbosity: Verbosity::Default,
            self_snoop: SelfSnoop::Present,
            no_execute: NoExecute::Offered,
            seed: 0,
            spare_pages: None,
            guest: DomainConfig::new(Role::DomU, 2048),
            others: Vec::new(),
            start: Start::Built,
        }
    }

    /// A guest of `pages` empty pages, to be filled from an image.
    pub(crate) const fn blank(mut self, pages: u64) -> Self {
        self.guest.pages = pages;
        self.guest.boot_mapping = BootMapping::AllPages;
        self.start = Start::Blank;
        self
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

    /// A CPU without NX: Xen refuses NO_EXECUTE in every present entry.
    ///
    /// ```
    /// use hypercall::{FrameAccess as _, PteFlags};
    /// use xen_model::Model;
    ///
    /// let model = Model::builder().no_nx().build()?;
    /// assert_eq!(model.missing_flags(), PteFlags::NO_EXECUTE);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub const fn no_nx(mut self) -> Self {
        self.no_execute = NoExecute::Missing;
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
            let mut plan = plan(config, id, frames)?;
            plan.no_execute = self.no_execute;
            if k == 0 {
                plan.start = self.start;
            }
            plans.push(plan);
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
            no_execute: self.no_execute,
            frames,
            heap: Heap::new(spare_start, spare, random),
            hoard: Vec::new(),
            m2p_frames: Mfn::new(m2p),
            domains: Vec::new(),
            current: Current { domain: 0, vcpu: 0 },
            log: Log::new(self.release, self.flavour, self.verbosity),
            preemption: Preemption::default(),
            statistics: Statistics::default(),
            violations: Vec::new(),
            requests: None,
            builder: self.clone(),
            in_multicall: false,
            console: Vec::new(),
        };
        for (k, config) in configs.iter().enumerate() {
            let domain = found(&mut state, config, k);
            state.domains.push(domain);
            if k > 0 || self.start == Start::Built {
                start_info::fill(&mut state, k, config);
            } else {
                state.domains[0].vcpus[0].kernel_root = None;
                let shared_info = state.domains[0].shared_info;
                start_info::mask_events(&mut state, shared_info);
            }
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

/// Makes the domain itself.
fn found(state: &mut State, config: &DomainConfig, k: usize) -> Domain {
    let plan = &state.frames.plans()[k];
    let (id, root, mapped_frames) = (plan.owner, plan.root(), plan.boot.pages);
    let max_pages = match config.role {
        Role::DomU => config.pages + SLACK_PAGES,
        Role::Dom0 => config.pages,
    };
    let mut vcpus: Vec<VcpuState> = (0..config.vcpus).map(|_| VcpuState::default()).collect();
    vcpus[0].kernel_root = Some(root);
    let memory_map = (config.role == Role::DomU).then(|| {
        let len_bytes = max_pages << PAGE_SHIFT;
        vec![MemoryRegion { start: 0, len_bytes, kind: MemoryRegion::RAM }]
    });
    let shared_info = state.share_heap_frame(XEN_HEAP_START + 64 * k as u64, id);
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
