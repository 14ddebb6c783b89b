//! What a domain is made like, and why it may not be.

use core::fmt;

use crate::cpu_features::{NoExecute, SelfSnoop};
use crate::log::Verbosity;
use crate::release::{Flavour, Release, Role};

/// Settings for a machine. The domain it is about is a domU of 2048 pages unless told otherwise.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it builds"]
pub struct Builder {
    pub(super) release: Release,
    pub(super) flavour: Flavour,
    pub(super) verbosity: Verbosity,
    pub(super) self_snoop: SelfSnoop,
    pub(super) no_execute: NoExecute,
    pub(super) seed: u64,
    pub(super) spare_pages: Option<u64>,
    pub(super) guest: DomainConfig,
    pub(super) others: Vec<DomainConfig>,
    pub(super) start: Start,
}

/// How the guest's frames begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// As its builder leaves them.
    Built,
    /// Empty, unmapped, and without a running root: to be filled from an image.
    Blank,
}

/// How far the mapping reaches that a domain starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootMapping {
    /// As far as the builders map: the kernel, what follows it, and some slack, up to 4 MiB
    /// boundaries.
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
