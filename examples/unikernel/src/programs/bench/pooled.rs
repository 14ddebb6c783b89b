//! Whole address spaces with tables from a pool, which stay validated between two uses.
#![expect(unsafe_code, reason = "wipes frames that are to be tables of the bench's own")]

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use hypercall::{
    Batch, Cpu, FrameAccess as _, GuestVa, Level, Machine, MmuExtOp, MmuUpdate, Pte, PteFlags,
};
use p2m::{Guest, walk};
use pvmmu::{Pages, Pgd, Pinned, PooledTable, TablePool};

use super::super::OrSay;
use super::bare::Bare;
use super::early::{all, set_direct};
use super::memory::Memory;
use super::row::{Bench, Cost};
use super::spaces::{self, TABLES, tools, va};

/// What the pool holds: as many L1 tables as the largest address space has.
const LEVELS: [(Level, usize); 3] = [(Level::L1, 512), (Level::L2, 4), (Level::L3, 4)];

/// The rows of this file.
pub(super) fn run<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    bare: &Bare,
) -> Result<(), String> {
    let mut places = [const { None::<PooledTable> }; 520];
    let (l1, rest) = places.split_at_mut(512);
    let (l2, l3) = rest.split_at_mut(4);
    let mut pool = TablePool::new([l1, l2, l3]);
    let mut drained = 0;
    for (level, count) in LEVELS {
        let [filled, emptied] = pin_and_unpin(bench, level, count)?;
        drained += emptied.ticks;
        let start = bench.begin();
        let (guest, mut batch) = (bench.kernel.guest, bench.storage.batch());
        let pool_filled = pool.fill(&guest, level, count, &mut bench.memory.near, &mut batch);
        pool_filled.or_say("fill the pool")?;
        let cost = bench.end(start);
        let operation = format!("fill the pool with {level} tables");
        bench.row(&operation, "tables", count as u64, cost, Some(filled.ticks))?;
    }
    for tables in TABLES.into_iter().filter(|tables| *tables <= 512) {
        one_life(bench, bare, &mut pool, tables)?;
    }
    let before = pool.counts();
    let start = bench.begin();
    for (level, count) in LEVELS {
        let guest = bench.kernel.guest;
        pool.drain(&guest, level, count, &mut bench.memory.near).or_say("drain the pool")?;
    }
    let cost = bench.end(start);
    bench.row("drain the pool", "tables", 520, cost, Some(drained))?;
    if before.taken != before.returned + before.not_returned || before.lost != 0 || !pool.is_empty()
    {
        return Err(format!("the pool does not add up: {before:?}"));
    }
    Ok(())
}

/// Makes tables with nothing in them read-only and pins them, and back, by bare requests.
fn pin_and_unpin<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    level: Level,
    count: usize,
) -> Result<[Cost; 2], String> {
    bench.memory.tidy();
    let run = bench.memory.take_run(count).ok_or("no run of frames")?;
    let (p2m, machine) = (bench.kernel.guest.p2m(), bench.kernel.guest.machine());
    for pfn in all(&run) {
        // SAFETY: a frame of this row's own.
        unsafe { machine.clear_frame(pfn) }.or_say("wipe")?;
    }
    let mfns: Vec<_> = all(&run).map(|pfn| p2m.mfn(pfn)).collect::<Result<_, _>>().or_say("P2M")?;
    let pins: Vec<_> = mfns.iter().map(|mfn| MmuExtOp::pin(level, *mfn)).collect();
    let pinned = set_direct(bench, all(&run), |pte, _| pte.read_only(), &pins)?;
    let mut unpins = mfns.iter().map(|mfn| MmuExtOp::unpin(*mfn));
    let unpinned = bench.send(|batch| unpins.try_for_each(|op| batch.op(op)))?;
    let writable = set_direct(bench, all(&run), |pte, _| pte.writable(), &[])?;
    bench.memory.give_run(run);
    Ok([pinned, unpinned.and(writable)])
}

/// An address space made and filled, and destroyed.
fn one_life<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    bare: &Bare,
    pool: &mut TablePool<'_>,
    tables: u64,
) -> Result<(), String> {
    let start = bench.begin();
    let (guest, mut batch) = (bench.kernel.guest, bench.storage.batch());
    let pgd = make(guest, tables, pool, &mut bench.memory, &mut batch)?;
    let made = bench.end(start);
    let [make_floor, end_floor] = floors(bench, bare, &pgd, tables)?;
    let start = bench.begin();
    let (guest, batch) = (bench.kernel.guest, bench.storage.batch());
    let mut tools = tools(guest, batch, &mut bench.memory).with_pool(pool);
    pgd.destroy(&mut tools).or_say("destroy")?;
    let ended = bench.end(start);
    let both = (made.and(ended), make_floor + end_floor);
    for (operation, (cost, floor)) in [
        ("make and fill, pooled tables", (made, make_floor)),
        ("destroy, pooled tables", (ended, end_floor)),
        ("make, fill and destroy, pooled tables", both),
    ] {
        bench.row(operation, "tables", tables, cost, Some(floor))?;
    }
    Ok(())
}

/// What Xen takes to make the address space, and to end it: its root validated; a page in each of
/// the tables, which are validated already, and the tables linked, in the cheaper of two ways: one
/// by one, or all with the table above, which is validated for that.
fn floors<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    bare: &Bare,
    pgd: &Pgd<Pinned>,
    tables: u64,
) -> Result<[u64; 2], String> {
    let [unpin, pin] = spaces::bare(bench, pgd)?;
    let guest = bench.kernel.guest;
    let path = walk(&guest, pgd.root(), va(0, 0)?).or_say("walk")?;
    let l3 = path.at(Level::L3).ok_or("no L3 table")?;
    let l2 = path.at(Level::L2).ok_or("no L2 table")?.slot.table;
    let (slot, pte) = (l3.slot, l3.pte);
    // By itself it would stay validated.
    bench.send(|batch| batch.op(MmuExtOp::unpin(l2)))?;
    let unlink = bench.send(|batch| batch.update(MmuUpdate::set(slot, Pte::ABSENT), pte.raw()))?;
    let link = bench.send(|batch| batch.update(MmuUpdate::set(slot, pte), 0))?;
    bench.send(|batch| batch.op(MmuExtOp::pin(Level::L2, l2)))?;
    Ok([
        pin.ticks + bare.protect(1) + bare.fill_linked(tables, link.ticks),
        unpin.ticks + bare.protect(1) + bare.clear_linked(tables, unlink.ticks),
    ])
}

/// An address space of sparse tables, made live and then filled.
fn make<M: Machine>(
    guest: Guest<'_, M>,
    tables: u64,
    pool: &mut TablePool<'_>,
    memory: &mut Memory,
    batch: &mut Batch<'_>,
) -> Result<Pgd<Pinned>, String> {
    let pgd = Pgd::new(&mut memory.tools(guest)).or_say("new")?;
    let mut pgd = pgd.pin(&guest, batch).or_say("pin")?;
    let mut tools = tools(guest, batch.lend(), memory).with_pool(pool);
    let filled = pgd.edit(&mut tools, |edit| {
        (0..tables).try_for_each(|table| {
            let va = GuestVa::new(table << 21).map_err(|_| pvmmu::MapError::OutOfFrames)?;
            edit.map_pages(Pages::one(va), PteFlags::USER_RW)
        })
    });
    filled.or_say("map")?;
    Ok(pgd)
}
