//! The hypervisor's state, and the small steps that all hypercalls are made of.

use core::fmt;

use hypercall::middleware::Asked;
use hypercall::{Errno, Mfn};

use crate::build::config::Builder;
use crate::cpu_features::{NoExecute, SelfSnoop};
use crate::domain::{Domain, Parked, VcpuState};
use crate::frames::Frames;
use crate::heap::Heap;
use crate::log::{File, Log, Number, Speaker};
use crate::release::{Flavour, Release};
use crate::types::{CountFlags, CountInfo, PageType, TypeInfo};

/// What a step of Xen's answers.
pub(crate) type Answer<T = ()> = Result<T, Errno>;

/// Whose hypercall is running (`current`): indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Current {
    pub(crate) domain: usize,
    pub(crate) vcpu: usize,
}

/// Counted events that a guest cannot see but a test wants to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Flushes because a frame changed its type.
    pub type_flushes: u64,
    /// Flushes because upper tables changed (`mmu_update` of L2 to L4 entries).
    pub table_flushes: u64,
    /// Flushes that the guest asked for.
    pub asked_flushes: u64,
    /// How often a hypercall was interrupted and continued.
    pub continuations: u64,
    /// How often a frame without uses was taken into use: row by the type it had last, column by
    /// the type it was to have, both in the order of [`PageType::ALL`](crate::PageType::ALL).
    pub transitions: [[u64; 7]; 7],
    /// Frames written that were not RAM of the guest's, mapped read-only, or stale: see
    /// `Model::violations`.
    pub violations: u64,
}

/// When hypercalls are interrupted (`hypercall_preempt_check`).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Preemption {
    pub(crate) every: u64,
    pub(crate) checks: u64,
}

/// Everything.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) release: Release,
    pub(crate) flavour: Flavour,
    /// Whether the CPU keeps its caches coherent with write-combining mappings.
    pub(crate) self_snoop: SelfSnoop,
    pub(crate) no_execute: NoExecute,
    pub(crate) frames: Frames,
    pub(crate) heap: Heap,
    /// Frames that domains outside the model have.
    pub(crate) hoard: Vec<u64>,
    /// Where M2P is.
    pub(crate) m2p_frames: Mfn,
    pub(crate) domains: Vec<Domain>,
    pub(crate) current: Current,
    pub(crate) log: Log,
    pub(crate) preemption: Preemption,
    pub(crate) statistics: Statistics,
    pub(crate) violations: Vec<String>,
    /// What was asked through the seam, if that is to be kept.
    pub(crate) requests: Option<Vec<Asked>>,
    /// What it was built from.
    pub(crate) builder: Builder,
    /// Whether a multicall is running.
    pub(crate) in_multicall: bool,
    /// What domains have written by `console_io`.
    pub(crate) console: Vec<String>,
}

/// Violations kept.
const VIOLATIONS_MAX: usize = 1000;

impl State {
    /// Stores bytes in a frame of RAM.
    pub(crate) fn store_bytes(&mut self, mfn: Mfn, offset: usize, bytes: &[u8]) {
        let words = self.frames.words(mfn);
        for (k, byte) in bytes.iter().enumerate() {
            let at = offset + k;
            let Some(word) = words.get_mut(at / 8) else { return };
            let shift = at % 8 * 8;
            *word = *word & !(0xff << shift) | u64::from(*byte) << shift;
        }
    }

    /// Makes a frame of Xen's heap known to a domain (`share_xen_page_with_guest`).
    pub(crate) fn share_heap_frame(&mut self, mfn: u64, owner: u16) -> Mfn {
        let mfn = Mfn::new(mfn);
        let page = self.frames.page(mfn);
        page.owner = owner;
        page.count = CountInfo { flags: CountFlags::XEN_HEAP | CountFlags::ALLOCATED, refs: 1 };
        page.kind = TypeInfo::validated(PageType::Writable, 1);
        mfn
    }

    pub(crate) fn is_debug(&self) -> bool {
        self.flavour == Flavour::Debug
    }

    /// The running domain.
    pub(crate) fn domain(&self) -> &Domain {
        &self.domains[self.current.domain]
    }

    /// The running vCPU.
    pub(crate) fn vcpu(&mut self) -> &mut VcpuState {
        let Current { domain, vcpu } = self.current;
        &mut self.domains[domain].vcpus[vcpu]
    }

    /// The running domain's number.
    pub(crate) fn caller(&self) -> u16 {
        self.domain().id
    }

    /// The domain with this number.
    pub(crate) fn find(&self, id: u16) -> Option<&Domain> {
        self.domains.iter().find(|domain| domain.id == id)
    }

    /// The domain with this number, to change.
    pub(crate) fn find_mut(&mut self, id: u16) -> Option<&mut Domain> {
        self.domains.iter_mut().find(|domain| domain.id == id)
    }

    pub(crate) fn speaker(&self) -> Speaker {
        Speaker { domain: self.caller(), vcpu: self.current.vcpu }
    }

    /// A debug line of mm.c.
    #[cold]
    pub(crate) fn say(&mut self, text: fmt::Arguments<'_>) {
        self.say_in(File::Mm, text);
    }

    /// A debug line of any file.
    #[cold]
    pub(crate) fn say_in(&mut self, file: File, text: fmt::Arguments<'_>) {
        let speaker = self.speaker();
        self.log.debug(file, speaker, text);
    }

    /// A line of every build.
    #[cold]
    pub(crate) fn say_always(&mut self, text: fmt::Arguments<'_>) {
        let speaker = self.speaker();
        self.log.guest(speaker, text);
    }

    /// A frame number as this release prints it.
    pub(crate) const fn number(&self, mfn: Mfn) -> Number {
        Number(mfn.raw(), self.release)
    }

    /// What M2P says of a frame of RAM, as this release prints it.
    pub(crate) fn m2p_number(&mut self, mfn: Mfn) -> Number {
        let m2p = if self.frames.is_ram(mfn) {
            self.frames.page(mfn).m2p
        } else {
            crate::page::INVALID_M2P
        };
        Number(m2p, self.release)
    }

    /// Notes something that no guest may do and that hardware would not report.
    #[cold]
    pub(crate) fn violation(&mut self, text: String) {
        self.statistics.violations += 1;
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(text);
        }
    }

    /// Whether the hypercall is to be interrupted here (`hypercall_preempt_check`).
    pub(crate) fn preempt_check(&mut self) -> bool {
        if self.preemption.every == 0 {
            return false;
        }
        self.preemption.checks += 1;
        self.preemption.checks.is_multiple_of(self.preemption.every)
    }

    /// The hypercall leaves to the guest and comes back.
    pub(crate) fn interrupted(&mut self) {
        self.statistics.continuations += 1;
    }

    /// Sets a table aside for teardown (`old_guest_table`).
    pub(crate) fn park(&mut self, parked: Parked) {
        self.vcpu().parked.push(parked);
    }

    /// Finishes every teardown that is due, however often it is interrupted
    /// (`put_old_guest_table`).
    pub(crate) fn finish_teardown(&mut self) {
        while let Some(parked) = self.vcpu().parked.pop() {
            if self.tear_down(parked).is_err() {
                self.vcpu().parked.push(parked);
                self.interrupted();
            }
        }
    }

    /// Runs the entries of a batch until one is refused, going on after interruptions. Answers how
    /// many were done.
    pub(crate) fn batch(
        &mut self,
        count: usize,
        mut entry: impl FnMut(&mut Self, usize) -> Answer,
    ) -> (u32, Answer) {
        self.finish_teardown();
        let mut at = 0;
        let result = loop {
            if at == count {
                break Ok(());
            }
            if at > 0 && (!self.vcpu().parked.is_empty() || self.preempt_check()) {
                self.interrupted();
                self.finish_teardown();
            }
            match entry(self, at) {
                Ok(()) => at += 1,
                Err(Errno::ERESTART) => {
                    self.interrupted();
                    self.finish_teardown();
                }
                Err(errno) => break Err(errno),
            }
        };
        self.finish_teardown();
        (u32::try_from(at).unwrap_or(u32::MAX), result)
    }

    /// Flushes what every vCPU of every domain knows of a frame that changes its use.
    pub(crate) fn flush_frame(&mut self, mfn: Mfn) {
        for domain in &mut self.domains {
            for vcpu in &mut domain.vcpus {
                vcpu.tlb.flush_frame(mfn);
            }
        }
    }
}
