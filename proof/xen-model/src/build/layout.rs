//! Laying a domain out: which piece lies where, and how far the boot mapping reaches.

use hypercall::PAGE_SHIFT;

use super::Start;
use super::config::{BootMapping, BuildError, DomainConfig};
use super::mapping::{Mapping, TableOrder};
use super::plan::{Pieces, Plan};
use crate::cpu_features::NoExecute;
use crate::release::Role;
use crate::scatter::Scatter;

/// The builders keep so many pages mapped behind the last piece.
const TAIL_PAGES: u64 = 128;
/// Builders end the boot mapping at multiples of 4 MiB.
const END_ALIGNMENT: u64 = 0x40_0000;

/// Lays a domain out (`xc_dom_build_image`; `dom0_construct_pv`).
pub(crate) fn plan(config: &DomainConfig, owner: u16, frames: Scatter) -> Result<Plan, BuildError> {
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
            let mapping = outside_list(config, va, first, list_pages)?;
            (Some(mapping), first, first + list_pages + mapping.table_count())
        }
    };
    if needed > pages {
        return Err(BuildError::TooSmall { pages, needed });
    }
    let rings = (rings > 0).then_some(start_info + 1);
    let pieces = Pieces { p2m_list: list, p2m_pages: list_pages, start_info, rings, stack };
    let (virt_base, start) = (config.virt_base, Start::Built);
    let no_execute = NoExecute::Offered;
    Ok(Plan { owner, no_execute, frames, pages, virt_base, boot, p2m, pieces, start })
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
    va: u64,
    first: u64,
    pages: u64,
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
