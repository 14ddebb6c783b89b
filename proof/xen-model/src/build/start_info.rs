//! The page that tells a guest what it was given, and what lies in `shared_info`.

use hypercall::start_info::StartInfo;
use hypercall::{Level, Mfn, PAGE_SHIFT};

use super::DomainConfig;
use crate::release::{Release, Role};
use crate::state::State;

/// `SIF_PRIVILEGED | SIF_INITDOMAIN`.
const DOM0_FLAGS: u32 = 3;
/// Event channels that the toolstack makes.
const STORE_PORT: u32 = 1;
const CONSOLE_PORT: u32 = 2;
/// Offsets in `start_info` (public/xen.h).
const OFFSETS: [usize; 14] = [32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120, 1152, 1160];
/// Bytes of a `vcpu_info`, and the offset of its upcall mask.
const VCPU_INFO: usize = 64;
const UPCALL_MASK: usize = 1;
const VCPUS: usize = 32;

/// What the builder says to domain `k`.
fn describe(state: &State, k: usize, config: &DomainConfig) -> StartInfo {
    let plan = &state.frames.plans()[k];
    let mut magic = [0; 32];
    let text: &[u8] = match (config.role, state.release) {
        (Role::Dom0, Release::V4_14 | Release::V4_17) => b"xen-3.0-x86_64p",
        _ => b"xen-3.0-x86_64",
    };
    magic[..text.len()].copy_from_slice(text);
    let mut cmd_line = [0; 1024];
    let line = config.command_line.as_bytes();
    let length = line.len().min(cmd_line.len() - 1);
    cmd_line[..length].copy_from_slice(&line[..length]);
    let rings = plan.pieces.rings;
    let ring = |place: u64| rings.map_or(0, |first| plan.mfn(first + place).raw());
    let port = |port: u32| if rings.is_some() { port } else { 0 };
    let list = match &plan.p2m {
        // The list begins where its mapping does; sign extension restores the upper half.
        Some(mapping) => sign_extend(mapping.start),
        None => plan.address(plan.pieces.p2m_list),
    };
    StartInfo {
        magic,
        nr_pages: plan.pages,
        shared_info: state.domains[k].shared_info.raw() << PAGE_SHIFT,
        flags: if config.role == Role::Dom0 { DOM0_FLAGS } else { 0 },
        store_mfn: ring(0),
        store_evtchn: port(STORE_PORT),
        console_mfn: ring(1),
        console_evtchn: port(CONSOLE_PORT),
        pt_base: plan.address(plan.boot.table_page(Level::L4, 0)),
        nr_pt_frames: plan.boot.table_count(),
        mfn_list: list,
        mod_start: 0,
        mod_len: 0,
        cmd_line,
        first_p2m_pfn: plan.p2m.map_or(0, |mapping| mapping.first),
        nr_p2m_frames: plan.p2m.map_or(0, |mapping| mapping.pages + mapping.table_count()),
    }
}

const fn sign_extend(va: u64) -> u64 {
    if va >> 47 == 0 { va } else { va | 0xffff << 48 }
}

/// The bytes of the structure as a guest finds them.
fn bytes_of(info: &StartInfo) -> Vec<u8> {
    let mut bytes = vec![0; 1168];
    bytes[..32].copy_from_slice(&info.magic);
    bytes[128..1152].copy_from_slice(&info.cmd_line);
    let long = [
        info.nr_pages,
        info.shared_info,
        u64::from(info.flags),
        info.store_mfn,
        u64::from(info.store_evtchn),
        info.console_mfn,
        u64::from(info.console_evtchn),
        info.pt_base,
        info.nr_pt_frames,
        info.mfn_list,
        info.mod_start,
        info.mod_len,
        info.first_p2m_pfn,
        info.nr_p2m_frames,
    ];
    for (offset, value) in OFFSETS.into_iter().zip(long) {
        bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// Writes `start_info` and `shared_info` of domain `k`.
pub(crate) fn fill(state: &mut State, k: usize, config: &DomainConfig) {
    let info = describe(state, k, config);
    let plan = &state.frames.plans()[k];
    let (page, rings) = (plan.mfn(plan.pieces.start_info), plan.pieces.rings);
    state.store_bytes(page, 0, &bytes_of(&info));
    state.domains[k].start_info = Some(info);
    mask_events(state, state.domains[k].shared_info);
    let id = state.domains[k].id;
    state.grow_grants(id, 1);
    if let (Some(table), Some(first)) = (state.domains[k].grant_frames.first().copied(), rings) {
        // References 0 and 1 are the rings, granted to dom0.
        for (reference, page) in [first + 1, first].into_iter().enumerate() {
            let frame = state.frames.plans()[k].mfn(page).raw();
            state.store_bytes(table, reference * 8, &(frame << 32 | 1).to_le_bytes());
        }
    }
}

/// No vCPU wants event upcalls yet.
pub(crate) fn mask_events(state: &mut State, shared_info: Mfn) {
    for vcpu in 0..VCPUS {
        state.store_bytes(shared_info, vcpu * VCPU_INFO + UPCALL_MASK, &[1]);
    }
}
