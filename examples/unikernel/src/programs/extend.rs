//! The direct mapping grows: tables for pfns behind its end, all entries of which are absent until
//! the pfns get memory.
#![expect(unsafe_code, reason = "links tables in the direct mapping, which is the kernel's own")]

use alloc::format;
use alloc::string::String;

use hypercall::{
    BatchStorage, Cpu, FrameAccess as _, FrameSource as _, GuestVa, Level, Machine, MmuUpdate, Pfn,
    Pte, PteFlags,
};
use p2m::{DirectEntries, Pfns, walk};

use super::OrSay as _;
use crate::program::Kernel;

/// Pfns that an L1 table of the direct mapping maps.
pub(super) const TABLE_PFNS: u64 = 512;
/// Makes empty tables for `new` in the direct mapping, from frames of the pool. How many.
///
/// # Errors
/// A sentence; the tables made before stay, empty.
pub(super) fn extend_direct_map<M: Machine + Cpu>(
    kernel: &mut Kernel<'_, M>,
    new: Pfns,
) -> Result<u64, String> {
    let base = kernel.guest.machine().direct_map(Pfn::new(0)).or_say("the direct mapping")?;
    let mut made = 0;
    let mut pfn = new.start.raw();
    while pfn < new.end() {
        let va = base.checked_add_pages(pfn).or_say("the direct mapping")?;
        while link_next(kernel, va)? {
            made += 1;
        }
        pfn = (pfn / TABLE_PFNS + 1) * TABLE_PFNS;
    }
    // SAFETY: there is an entry for each of them now, and each is absent until it has memory (I-3).
    unsafe { kernel.platform.direct_map_reaches(new.end()) };
    Ok(made)
}

/// Links an empty table in the uppermost level that has none for `va`. False if all levels have.
fn link_next<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>, va: GuestVa) -> Result<bool, String> {
    let found = walk(&kernel.guest, kernel.guest.kernel_root(), va).or_say("walk")?;
    let above = found.last().ok_or("the root is missing")?;
    if above.level == Level::L1 {
        return Ok(false);
    }
    let table = kernel.pool.take().ok_or("no frame for a table of the direct mapping")?;
    // SAFETY: the frame has just left the pool (I-1).
    unsafe { kernel.guest.machine().clear_frame(table.pfn()) }.or_say("clear")?;
    let (slot, pte) = DirectEntries::new(kernel.guest).find(table.pfn()).or_say("find")?;
    let mfn = kernel.guest.p2m().mfn(table.pfn()).or_say("the table")?;
    let link = MmuUpdate::set(above.slot, Pte::new(mfn, PteFlags::TABLE));
    let mut storage = BatchStorage::<2, 1>::new();
    let mut batch = storage.batch();
    batch.update(MmuUpdate::set(slot, pte.read_only()), pte.raw()).or_say("batch")?;
    batch.update(link, above.pte.raw()).or_say("batch")?;
    // SAFETY: the frame is the program's, empty, and becomes a table where there was none; Xen
    // stops if it cannot be made read-only.
    let Err(refused) = (unsafe { batch.submit(kernel.guest.machine()) }) else { return Ok(true) };
    batch.invert();
    // SAFETY: the entries become what they were.
    let undone = unsafe { batch.submit(kernel.guest.machine()) };
    let lost = match undone {
        Ok(()) => {
            kernel.pool.give(table);
            ""
        }
        Err(_) => ", and its frame is lost: it is still read-only",
    };
    Err(format!("linking a table of the direct mapping: {refused}{lost}"))
}
