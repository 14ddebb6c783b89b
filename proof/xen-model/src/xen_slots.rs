//! The part of every address space that is Xen's: L4 slots 256 to 271.
//!
//! 0xffff800000000000..0xffff880000000000. Xen writes these entries into every L4 it validates
//! (`init_xen_l4_slots`); a guest sees them when it reads its table, and can use one of them: slot
//! 256 leads to the read-only M2P.

use hypercall::{Mfn, PAGE_SHIFT};

use crate::cpu_features::NoExecute;

/// First slot of Xen's range.
pub(crate) const FIRST: usize = 256;
/// Last slot of Xen's range.
pub(crate) const LAST: usize = 271;
/// The slot of the read-only M2P.
pub(crate) const M2P_SLOT: usize = 256;

/// Where guests read M2P.
pub(crate) const M2P_START: u64 = 0xffff_8000_0000_0000;
/// One past the last address of the read-only M2P.
pub(crate) const M2P_END: u64 = 0xffff_8040_0000_0000;

/// Frames that stand for Xen's own tables, in the region that is Xen's.
const XEN_TABLES: u64 = 0x110;

/// Whether a slot of an L4 is Xen's.
pub(crate) const fn is_xens(index: usize) -> bool {
    index >= FIRST && index <= LAST
}

/// Whether an address may be the guest's (`__addr_ok`).
pub(crate) const fn address_ok(va: u64) -> bool {
    va < 1 << 47 || va >= hypercall::XEN_HOLE_END
}

/// Whether an address is canonical.
pub(crate) const fn is_canonical(va: u64) -> bool {
    let top = va >> 47;
    top == 0 || top == 0x1_ffff
}

/// The entry for the read-only M2P.
pub(crate) const fn m2p_entry() -> u64 {
    (XEN_TABLES << PAGE_SHIFT) | 0x25
}

/// What Xen keeps in slot `index` of the L4 in `table` while it is loaded; `None` if the slot is
/// the guest's.
#[expect(clippy::cast_possible_truncation, reason = "an index of a table")]
pub(crate) const fn xen_slot(index: u64, table: Mfn, no_execute: NoExecute) -> Option<u64> {
    if !is_xens(index as usize) {
        return None;
    }
    let flags = 0x8000_0000_0000_0063 & !no_execute.refused();
    Some(match index {
        256 => m2p_entry(),
        257 | 259 => 0,
        258 => (table.raw() << PAGE_SHIFT) | flags,
        _ => ((XEN_TABLES + index - 256) << PAGE_SHIFT) | flags,
    })
}
