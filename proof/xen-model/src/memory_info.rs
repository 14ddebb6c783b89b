//! The operations of `memory_op` that only report.
//!
//! Section 4.5 of the specification, its table.

use hypercall::memory::{MachphysMapping, MemoryRegion};
use hypercall::{Errno, Mfn, PAGE_SHIFT};

use crate::release::Role;
use crate::state::{Answer, State};
use crate::xen_slots::{M2P_END, M2P_START};

/// The last frame number a PV guest may meet, where memory may be added to the machine.
const MFN_MAX: u64 = 0x7_ffff_ffff;
/// Frames that 2 MiB of M2P describe: log2.
const M2P_CHUNK: u32 = 18;
/// Word of `shared_info` that holds `arch.max_pfn` (byte 3088).
const MAX_PFN_WORD: usize = 3088 / 8;

/// What to report about a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum About {
    /// `XENMEM_current_reservation`.
    Current,
    /// `XENMEM_maximum_reservation`.
    Maximum,
    /// `XENMEM_maximum_gpfn`.
    LastPfn,
}

impl State {
    /// Carries out `XENMEM_current_reservation`, `_maximum_reservation`, `_maximum_gpfn`.
    pub(crate) fn about_domain(&self, what: About, id: u16) -> Answer<u64> {
        let id = self.any_domain(id)?;
        if !self.may_act_for(id) {
            return Err(Errno::EPERM);
        }
        let domain = self.find(id).ok_or(Errno::ESRCH)?;
        Ok(match what {
            About::Current => domain.tot_pages,
            About::Maximum => domain.max_pages,
            About::LastPfn => self.frames.word(domain.shared_info, MAX_PFN_WORD).saturating_sub(1),
        })
    }

    /// Carries out `XENMEM_machphys_mapping`.
    pub(crate) fn machphys_mapping(&self) -> MachphysMapping {
        let max_mfn = match self.domain().role {
            Role::DomU => MFN_MAX,
            Role::Dom0 => self.frames.end() - 1,
        };
        MachphysMapping { start: M2P_START, end: M2P_END, max_mfn }
    }

    /// Carries out `XENMEM_machphys_mfn_list`: the frames of M2P, one for each 2 MiB of it.
    pub(crate) fn machphys_frames(&self) -> impl Iterator<Item = Mfn> + use<> {
        let first = self.m2p_frames;
        let pieces = self.frames.end().div_ceil(1 << M2P_CHUNK);
        (0..pieces).map(move |k| Mfn::new(first.raw() + k * 512))
    }

    /// Carries out `XENMEM_memory_map`: the map that the toolstack gave the domain.
    pub(crate) fn memory_map(&self) -> Answer<Vec<MemoryRegion>> {
        self.domain().memory_map.clone().ok_or(Errno::ENOSYS)
    }

    /// Carries out `XENMEM_machine_memory_map`, for dom0: all of it, or `EINVAL` if there is no
    /// room for that.
    pub(crate) fn machine_memory_map(&self, room: usize) -> Answer<Vec<MemoryRegion>> {
        if !self.domain().is_privileged() {
            return Err(Errno::EPERM);
        }
        let ranges = self.frames.ram_ranges();
        if room < ranges.len() {
            return Err(Errno::EINVAL);
        }
        let ranges = ranges.into_iter().map(|(start, end)| MemoryRegion {
            start: start << PAGE_SHIFT,
            len_bytes: (end - start) << PAGE_SHIFT,
            kind: MemoryRegion::RAM,
        });
        Ok(ranges.collect())
    }
}
