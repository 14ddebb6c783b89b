//! Pfns that stand for the machine's own frames of the same numbers: dom0's ISA area, and the
//! firmware below 4 GiB. Where there was memory, it is given back first.
#![expect(unsafe_code, reason = "takes the mapping of frames away that nothing uses")]

use alloc::string::String;
use alloc::vec::Vec;

use early_pgt::{BootRegion, RegionKind};
use hypercall::memory::{Extent, MemoryOp, Reservation};
use hypercall::{Batch, DomId, GuestVa, Level, Machine, MmuExtOp, MmuUpdate, Pfn, Pte};
use p2m::{Guest, P2m, Pfns, walk};

/// The PC's 640 KiB to 1 MiB: video memory and firmware.
pub(crate) const ISA: Pfns = Pfns::new(Pfn::new(0xa0), 0x60);
/// Where a PC's firmware is as well: the last 256 KiB below 4 GiB.
pub(crate) const FIRMWARE: Pfns = Pfns::new(Pfn::new(0xf_ffc0), 0x40);

/// All memory, but for the ISA area, which is the machine's; and the firmware, if the memory ends
/// before it.
pub(crate) fn regions(p2m: &P2m<'_>) -> Vec<BootRegion> {
    let ram = |start, end| BootRegion {
        pfns: Pfns::new(Pfn::new(start), end - start),
        kind: RegionKind::Ram,
    };
    let mut regions = alloc::vec![
        ram(0, ISA.start.raw()),
        BootRegion { pfns: ISA, kind: RegionKind::Identity },
        ram(ISA.end(), p2m.len()),
    ];
    if p2m.len() <= FIRMWARE.start.raw() {
        regions.push(BootRegion { pfns: FIRMWARE, kind: RegionKind::Identity });
    }
    regions
}

/// Gives the memory of the ISA area back to Xen: out of the builder's mapping at `kernel`, out of
/// the domain, out of the frame map.
///
/// # Errors
/// A sentence; a guest that has come so far and not further is of no use.
pub(crate) fn give_up<M: Machine>(
    guest: &Guest<'_, M>,
    kernel: GuestVa,
    batch: &mut Batch<'_>,
) -> Result<(), String> {
    let say = |error: &dyn core::fmt::Display| alloc::format!("the ISA area: {error}");
    let (machine, p2m) = (guest.machine(), guest.p2m());
    batch.clear();
    for pfn in ISA.iter() {
        let va = kernel.checked_add_pages(pfn.raw()).map_err(|error| say(&error))?;
        let path = walk(guest, guest.kernel_root(), va).map_err(|error| say(&error))?;
        let step = path.at(Level::L1).ok_or("the ISA area is not mapped")?;
        let update = MmuUpdate::set(step.slot, Pte::ABSENT);
        batch.update(update, step.pte.raw()).map_err(|error| say(&error))?;
    }
    batch.op(MmuExtOp::tlb_flush_local()).map_err(|error| say(&error))?;
    // SAFETY: nothing is in the area: the builder put the kernel and all else behind it (I-1, I-2).
    unsafe { batch.submit(machine) }.map_err(|error| say(&error))?;
    let mut extents = Vec::new();
    for pfn in ISA.iter() {
        // SAFETY: nothing maps the frames any more, and nobody has a token for them (I-1).
        extents
            .push(Extent::from_mfn(unsafe { p2m.depopulate(pfn) }.map_err(|error| say(&error))?));
    }
    let mut gone = MemoryOp::Decrease(Reservation {
        extents: &mut extents,
        order: 0,
        flags: 0,
        domain: DomId::SELF,
    });
    // SAFETY: the frames are mapped nowhere, and no map has them any more (I-1).
    let done = unsafe { machine.memory_op(&mut gone) }.map_err(|error| say(&error))?;
    if done != ISA.count {
        return Err(alloc::format!("Xen took {done} of {} pages of the ISA area", ISA.count));
    }
    // SAFETY: dom0's machine has devices and firmware there, and no RAM of the guest's.
    unsafe { p2m.set_identity(ISA) }.map_err(|error| say(&error))
}
