//! Whole address spaces: made, pinned, unpinned, destroyed.

use alloc::format;
use alloc::string::String;

use alloc::vec::Vec;

use hypercall::{
    Batch, Call, Cpu, DomId, Domains, Frame, FrameAccess as _, GuestVa, Level, Machine, MmuExtOp,
    MmuUpdate, Pte, PteFlags, Request, Slot,
};
use pvmmu::{Context, Loose, Pages, Pgd, Pinned, Presence, Reach, TablePool, Tools, walk};

use super::super::OrSay;
use super::Storage;
use super::floor::send;
use super::memory::Memory;
use super::table::{Cost, Table, Target, measure};
use crate::guest::Guest;

/// Linux 6.1 on Xen 4.17: pin and unpin of 512 L1 tables with one entry each.
const LINUX_SPARSE: u64 = 6_257_897 + 5_691_304;
/// Linux 6.1 on Xen 4.17: pin and unpin of 128 L1 tables with 512 entries each, which fork has made
/// read-only.
const LINUX_FULL: u64 = 10_569_931 + 7_296_198;

/// Page `page` of L1 table `table` of the bench's address spaces.
pub(super) fn va(table: u64, page: u64) -> Result<GuestVa, String> {
    GuestVa::new((table << 21) + (page << 12)).or_say("the bench's address")
}

/// What operations on a live address space work with.
pub(super) fn tools<'a, 'b, 't, M, F>(
    context: Context<'a, M>,
    batch: &'a mut Batch<'b>,
    tables: &'a mut TablePool<'t>,
    frames: &'a mut F,
) -> Tools<'a, 'b, 't, M, F> {
    let (reach, presence) = (Reach::Everywhere, Presence::MayVanish);
    Tools { context, batch, tables, frames, reach, presence }
}

/// An address space of `tables` L1 tables with `pages` pages each.
pub(super) fn build<M: Machine>(
    context: &Context<'_, M>,
    (tables, pages, flags): (u64, u64, PteFlags),
    memory: &mut Memory,
) -> Result<Pgd<Loose>, String> {
    let mut pgd = Pgd::new(context, memory).or_say("new")?;
    for table in 0..tables {
        let pages = Pages { start: va(table, 0)?, count: pages };
        pgd.map_pages(context, (pages, flags), memory).or_say("map")?;
    }
    Ok(pgd)
}

pub(super) fn destroy<M: Machine>(
    context: &Context<'_, M>,
    pgd: Pgd<Loose>,
    memory: &mut Memory,
) -> Result<(), String> {
    pgd.destroy(context, memory).map_err(|(_, error)| format!("destroy: {error}"))
}

/// The rows of this file.
pub(super) fn run<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    table: &mut Table,
    memory: &mut Memory,
    storage: &mut Storage,
) -> Result<(), String> {
    // Xen's first look at a frame costs more than the later ones; every frame has had it before
    // anything is measured.
    let (context, _) = guest.parts();
    let pgd = build(&context, (128, 512, PteFlags::USER_RW), memory)?;
    let pgd = pgd.pin(&context, &mut storage.batch()).or_say("pin")?;
    let pgd = pgd.unpin(&context, &mut storage.batch()).or_say("unpin")?;
    destroy(&context, pgd, memory)?;

    let read_only = PteFlags::USER_RW & !PteFlags::WRITABLE;
    for tables in [1, 16, 512] {
        let linux = if tables == 512 { Some((LINUX_SPARSE, 90)) } else { None };
        let shape = (tables, 1, PteFlags::USER_RW);
        let name = "loose tables, one page each";
        pin_and_unpin(guest, table, (name, shape, linux), (memory, storage))?;
    }
    let shape = (128, 512, read_only);
    let linux = Some((LINUX_FULL, 90));
    pin_and_unpin(guest, table, ("full tables, read-only", shape, linux), (memory, storage))?;
    let shape = (128, 512, PteFlags::USER_RW);
    pin_and_unpin(guest, table, ("full tables, writable", shape, None), (memory, storage))?;
    pooled(guest, table, (memory, storage))
}

/// What is to be pinned: tables, pages in each, their flags.
type Shape = (u64, u64, PteFlags);

/// Pin and unpin, and the same without the changes of the direct mapping: what Xen charges for the
/// validation alone.
fn pin_and_unpin<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    table: &mut Table,
    (name, shape, linux): (&str, Shape, Option<(u64, u64)>),
    (memory, storage): (&mut Memory, &mut Storage),
) -> Result<(), String> {
    let tables = shape.0;
    let (pgd, filled) = measure(guest, |guest| build(&guest.parts().0, shape, memory))?;
    let mut batch = storage.batch();
    let (pgd, pin) = measure(guest, |guest| pgd.pin(&guest.parts().0, &mut batch).or_say("pin"))?;
    let floor = bare(guest, &pgd, &mut batch)?;
    let converted = bare_converted(guest, &pgd)?;
    let (pgd, unpin) =
        measure(guest, |guest| pgd.unpin(&guest.parts().0, &mut batch).or_say("unpin"))?;
    let (_, taken) = measure(guest, |guest| destroy(&guest.parts().0, pgd, memory))?;
    table.row(guest, (&format!("build {name}"), tables), filled, &[])?;
    table.row(guest, (&format!("pin {name}"), tables), pin, &[])?;
    table.row(guest, (&format!("unpin {name}"), tables), unpin, &[])?;
    let floor_target = Target { of: "the floor", figure: floor.ticks, hundredths: 110 };
    let both = pin.and(unpin);
    let name = format!("both: {name}");
    match linux {
        Some((figure, hundredths)) => {
            let linux = Target { of: "Linux", figure, hundredths };
            table.row(guest, (&name, tables), both, &[floor_target, linux])?;
        }
        None if tables >= 128 => table.row(guest, (&name, tables), both, &[floor_target])?,
        None => table.row(guest, (&name, tables), both, &[])?,
    }
    table.row(guest, ("  floor: bare unpin and pin of the same", tables), floor, &[])?;
    let name = "  floor: with the changes of the direct map";
    table.row(guest, (name, tables), converted, &[])?;
    table.row(guest, ("  take apart", tables), taken, &[])
}

/// Unpins the root and pins it again while all tables stay read-only.
fn bare<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    pgd: &Pgd<Pinned>,
    batch: &mut Batch<'_>,
) -> Result<Cost, String> {
    let (context, _) = guest.parts();
    let root = context.p2m.mfn(pgd.root()).or_say("P2M")?;
    let mut one = |op| {
        batch.op(op).or_say("batch")?;
        measure(guest, |guest| send(&guest.parts().0, batch)).map(|(_, cost)| cost)
    };
    Ok(one(MmuExtOp::unpin(root))?.and(one(MmuExtOp::pin(Level::L4, root))?))
}

/// Unpins the root, makes all tables writable, then read-only again, and pins it: from requests
/// that are ready before the clock starts. What no guest can do without, if its tables become plain
/// memory in between.
fn bare_converted<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    pgd: &Pgd<Pinned>,
) -> Result<Cost, String> {
    let (context, _) = guest.parts();
    let mut all = Vec::new();
    for index in 0..context.p2m.len().min(1 << 14) {
        let Ok(va) = context.machine.direct_map(hypercall::Pfn::new(index)) else { break };
        let path = walk(&context, context.kernel_root, va).or_say("walk")?;
        let (slot, pte) = path.leaf().ok_or("no direct mapping")?;
        all.push((slot, pte));
    }
    // The tree's tables are those that its own walk meets.
    let mut writable = Vec::new();
    let mut read_only = Vec::new();
    for (slot, pte) in tables_of(&context, pgd, &all)? {
        writable.push(MmuUpdate::set(slot, pte.writable()));
        read_only.push(MmuUpdate::set(slot, pte.read_only()));
    }
    let root = context.p2m.mfn(pgd.root()).or_say("P2M")?;
    let (unpin, pin) = ([MmuExtOp::unpin(root)], [MmuExtOp::pin(Level::L4, root)]);
    let requests = [
        Request::MmuExt(&unpin, DomId::SELF),
        Request::MmuUpdate(&writable, Domains::SELF),
        Request::MmuUpdate(&read_only, Domains::SELF),
        Request::MmuExt(&pin, DomId::SELF),
    ];
    let (_, cost) = measure(guest, |guest| {
        let (context, _) = guest.parts();
        for request in requests {
            let mut calls = [Call::new(request)];
            issue(&context, &mut calls)?;
        }
        Ok(())
    })?;
    Ok(cost)
}

#[expect(unsafe_code, reason = "bare requests on an address space of the bench's own")]
fn issue<M: Machine>(context: &Context<'_, M>, calls: &mut [Call<'_>; 1]) -> Result<(), String> {
    // SAFETY: the tables belong to the address space, which no Rust object lives in.
    unsafe { context.machine.issue(calls) }.or_say("a bare request")?;
    calls[0].result().or_say("a bare request")
}

/// The entries of the direct mapping for the tables of the tree.
fn tables_of<M: Machine>(
    context: &Context<'_, M>,
    pgd: &Pgd<Pinned>,
    direct_map: &[(Slot, Pte)],
) -> Result<Vec<(Slot, Pte)>, String> {
    let mut tables = alloc::vec![pgd.root()];
    for number in 0..512 {
        let path = walk(context, pgd.root(), va(number, 0)?).or_say("walk")?;
        tables.extend(path.steps().map(|step| step.table));
    }
    tables.sort_unstable();
    tables.dedup();
    let entry = |pfn: &hypercall::Pfn| {
        usize::try_from(pfn.raw()).ok().and_then(|at| direct_map.get(at)).copied()
    };
    tables.iter().map(|pfn| entry(pfn).ok_or_else(|| "a table is out of reach".into())).collect()
}

/// The same work with tables from a pool.
fn pooled<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    table: &mut Table,
    (memory, storage): (&mut Memory, &mut Storage),
) -> Result<(), String> {
    let mut places = [const { None::<Frame> }; 520];
    let (l1, rest) = places.split_at_mut(512);
    let (l2, l3) = rest.split_at_mut(4);
    let mut pool = TablePool::new([l1, l2, l3]);
    let mut batch = storage.batch();
    for (level, count) in [(Level::L1, 512), (Level::L2, 4), (Level::L3, 4)] {
        let (_, cost) = measure(guest, |guest| {
            let (context, _) = guest.parts();
            pool.fill(&context, (level, count), memory, &mut batch).or_say("fill the pool")
        })?;
        table.row(
            guest,
            (&format!("fill the pool with {level} tables"), count as u64),
            cost,
            &[],
        )?;
    }
    for tables in [1u64, 16, 512] {
        let (pgd, made) = measure(guest, |guest| {
            let (context, _) = guest.parts();
            make(context, tables, &mut pool, (&mut *memory, &mut batch))
        })?;
        let (_, ended) = measure(guest, |guest| {
            let mut tools = tools(guest.parts().0, &mut batch, &mut pool, memory);
            pgd.destroy(&mut tools).or_say("destroy")
        })?;
        let cost = made.and(ended);
        table.row(guest, ("  make and fill", tables), made, &[])?;
        table.row(guest, ("  destroy", tables), ended, &[])?;
        let linux = Target { of: "Linux", figure: LINUX_SPARSE, hundredths: 25 };
        let targets = if tables == 512 { &[linux][..] } else { &[] };
        let name = "make, fill and destroy, tables from the pool";
        table.row(guest, (name, tables), cost, targets)?;
    }
    let before = pool.counts();
    let (_, cost) = measure(guest, |guest| {
        let (context, _) = guest.parts();
        for (level, count) in [(Level::L1, 512), (Level::L2, 4), (Level::L3, 4)] {
            pool.drain(&context, (level, count), memory).or_say("drain the pool")?;
        }
        Ok(())
    })?;
    table.row(guest, ("drain the pool", 520), cost, &[])?;
    if before.taken != before.returned + before.not_returned || before.lost != 0 || !pool.is_empty()
    {
        return Err(format!("the pool does not add up: {before:?}"));
    }
    Ok(())
}

/// An address space of sparse tables, made live and then filled.
fn make<M: Machine>(
    context: Context<'_, M>,
    tables: u64,
    pool: &mut TablePool<'_>,
    (memory, batch): (&mut Memory, &mut Batch<'_>),
) -> Result<Pgd<Pinned>, String> {
    let pgd = Pgd::new(&context, memory).or_say("new")?;
    let mut pgd = pgd.pin(&context, batch).or_say("pin")?;
    let mut tools = tools(context, batch, pool, memory);
    let filled = pgd.edit(&mut tools, |edit| {
        (0..tables).try_for_each(|table| {
            let va = GuestVa::new(table << 21).map_err(|_| pvmmu::MapError::OutOfFrames)?;
            edit.map_pages(Pages::one(va), PteFlags::USER_RW)
        })
    });
    filled.or_say("map")?;
    Ok(pgd)
}
