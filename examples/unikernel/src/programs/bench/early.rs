//! The boot mapping, which was made before any program ran, and what Xen alone takes for it: full
//! tables of pages that have no type yet.
//!
//! A page that Xen has just given to the guest has no type; the first writable entry for it makes
//! it a writable page, and that takes Xen longer than one more entry for a page that was writable
//! before. Every page is new at boot, so that is its floor, and not what linking a table again
//! takes.
#![expect(unsafe_code, reason = "gives frames up that it has taken, and gets others for them")]

use alloc::string::String;
use alloc::vec::Vec;

use hypercall::memory::{Extent, MemoryOp, Reservation};
use hypercall::{
    Cpu, DomId, FrameAccess as _, Frames, Hypercalls as _, Level, Machine, MmuExtOp, MmuUpdate,
    Pfn, Pte, PteFlags, Slot,
};
use p2m::{Pfns, walk};
use x86_64::structures::paging::PageTableIndex;

use super::super::OrSay;
use super::bare::Bare;
use super::row::{Bench, Cost};

/// What a change of entries that were used ends with.
pub(super) const FLUSH: &[MmuExtOp] = &[MmuExtOp::tlb_flush_all()];

/// Pages that a table maps, and what the tables above span of them.
const TABLE: u64 = 512;
const L2: u64 = TABLE * TABLE;
const L3: u64 = L2 * TABLE;

/// The rows of the boot mapping, given what [`new_pages`] takes.
pub(super) fn run<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    bare: &Bare,
    new: u64,
) -> Result<(), String> {
    let made = &bench.kernel.made;
    let ([ticks, in_xen], [counts, own]) = (made.ticks, made.counts);
    let pages = bench.kernel.guest.p2m().len();
    let tables = made.tables.iter().rev().skip(1).map(|run| run.count).sum::<u64>();
    let upper = pages.div_ceil(L2) + pages.div_ceil(L3);
    let floor = bare.read_only_in_place(tables) + (tables - upper) * (new - bare.null);
    let cost = Cost { ticks, in_xen, counts };
    bench.row("boot mapping", "pages", pages, cost, Some(floor))?;
    let [ticks, in_xen] = made_own(bench);
    let own = Cost { ticks, in_xen, counts: own };
    bench.row("boot mapping, the kernel's own tables", "tables", own_tables(bench), own, None)
}

fn made_own<M: Machine + Cpu>(bench: &Bench<'_, '_, M>) -> [u64; 2] {
    bench.kernel.made.own_ticks
}

/// The last run of tables is that of the kernel's own.
fn own_tables<M: Machine + Cpu>(bench: &Bench<'_, '_, M>) -> u64 {
    bench.kernel.made.tables.last().map_or(0, |run| run.count)
}

/// Validates a table of pages that are new from Xen, and the same again; what the first took.
pub(super) fn new_pages<M: Machine + Cpu>(bench: &mut Bench<'_, '_, M>) -> Result<u64, String> {
    let count = usize::try_from(TABLE).or_say("frames")?;
    let run = bench.memory.take_run(count).ok_or("no run of frames")?;
    let table = bench.memory.take_near_run(1).ok_or("no frame for a table")?;
    renew(bench, &run)?;
    let entries = all(&run).map(|pfn| bench.kernel.guest.p2m().mfn(pfn));
    let flags = bench.kernel.guest.machine().offered(PteFlags::KERNEL_RW);
    let entry = |mfn| Pte::new(mfn, flags);
    let entries = entries.map(|mfn| mfn.map(entry)).collect::<Result<Vec<_>, _>>();
    let entries = entries.or_say("P2M")?;
    let first = PageTableIndex::new(0);
    // SAFETY: the table is in a frame of this row's own, and not live.
    unsafe { bench.kernel.guest.machine().write_entries(table.start(), first, &entries) }
        .or_say("a table")?;
    set_direct(bench, [table.start()].into_iter(), |pte, _| pte.read_only(), FLUSH)?;
    let mfn = bench.kernel.guest.p2m().mfn(table.start()).or_say("P2M")?;
    let pin =
        |bench: &mut Bench<'_, '_, M>| bench.send(|batch| batch.op(MmuExtOp::pin(Level::L1, mfn)));
    let new = pin(bench)?;
    bench.row("bare: validate a table, pages new from Xen", "pages", TABLE, new, None)?;
    bench.send(|batch| batch.op(MmuExtOp::unpin(mfn)))?;
    let again = pin(bench)?;
    bench.row("bare: validate a table, pages writable before", "pages", TABLE, again, None)?;
    bench.send(|batch| batch.op(MmuExtOp::unpin(mfn)))?;
    set_direct(bench, [table.start()].into_iter(), |pte, _| pte.writable(), FLUSH)?;
    let entries = &entries[..];
    set_direct(bench, all(&run), |_, at| entries[at], FLUSH)?;
    bench.memory.give_near_run(table);
    bench.memory.give_run(run);
    Ok(new.ticks)
}

/// The pfns of a run.
pub(super) fn all(run: &Frames) -> impl Iterator<Item = Pfn> + use<> {
    Pfns::new(run.start(), run.count()).iter()
}

/// Changes the entries of the direct mapping for `pfns`, and asks for `ops` behind that: what it
/// takes when the requests are ready.
pub(super) fn set_direct<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    pfns: impl Iterator<Item = Pfn>,
    change: impl Fn(Pte, usize) -> Pte,
    ops: &[MmuExtOp],
) -> Result<Cost, String> {
    let slots: Vec<(Slot, Pte)> = {
        let guest = bench.kernel.guest;
        let slot = |pfn| {
            let va = guest.machine().direct_map(pfn).or_say("direct map")?;
            let path = walk(&guest, guest.kernel_root(), va).or_say("walk")?;
            let step = path.at(Level::L1).ok_or("the direct map has no L1")?;
            Ok((step.slot, step.pte))
        };
        pfns.map(slot).collect::<Result<_, String>>()?
    };
    bench.send(|batch| {
        for (at, (slot, pte)) in slots.into_iter().enumerate() {
            batch.update(MmuUpdate::set(slot, change(pte, at)), pte.raw())?;
        }
        ops.iter().try_for_each(|op| batch.op(*op))
    })
}

/// Gives the frames up and gets as many for the same pfns, which the direct mapping does not show.
fn renew<M: Machine + Cpu>(bench: &mut Bench<'_, '_, M>, run: &Frames) -> Result<(), String> {
    set_direct(bench, all(run), |_, _| Pte::ABSENT, FLUSH)?;
    let p2m = bench.kernel.guest.p2m();
    // SAFETY: the frames are this row's own, and mapped nowhere any more.
    let depopulated = all(run).map(|pfn| unsafe { p2m.depopulate(pfn) }.map(Extent::from_mfn));
    let mut extents = depopulated.collect::<Result<Vec<_>, _>>().or_say("P2M")?;
    let reservation = |extents| Reservation { extents, order: 0, flags: 0, domain: DomId::SELF };
    let mut out = MemoryOp::Decrease(reservation(&mut extents));
    // SAFETY: the frames are this row's own, and mapped nowhere any more.
    let gone = unsafe { bench.kernel.guest.machine().memory_op(&mut out) }.or_say("decrease")?;
    let mut extents: Vec<Extent> = all(run).map(Extent::from_pfn).collect();
    let mut back = MemoryOp::Populate(reservation(&mut extents));
    // SAFETY: nothing has the pfns.
    let came = unsafe { bench.kernel.guest.machine().memory_op(&mut back) }.or_say("populate")?;
    if (gone, came) != (TABLE, TABLE) {
        return Err(alloc::format!("{gone} frames went, {came} came"));
    }
    for (pfn, extent) in all(run).zip(&extents) {
        // SAFETY: Xen has just put the frame behind the pfn, which is this row's own.
        unsafe { p2m.populate(pfn, extent.mfn()) }.or_say("P2M")?;
    }
    Ok(())
}
