//! What Xen charges for its primitives: bare requests, with nothing around them. The constants of
//! `pvmmu::cost` come from here.
#![expect(unsafe_code, reason = "submits bare requests on an address space of its own")]

use alloc::string::String;
use alloc::vec::Vec;

use hypercall::{
    Batch, Call, Cpu, Domains, FrameAccess as _, Hypercalls as _, Level, Machine, MmuExtOp,
    MmuUpdate, Pfn, Pte, PteFlags, Request, Slot,
};
use pvmmu::{Context, Loose, Pages, Pgd, Pinned, walk};
use x86_64::structures::paging::PageTableIndex;

use super::super::OrSay;
use super::Storage;
use super::memory::Memory;
use super::spaces::va;
use super::table::{Cost, Table, measure};
use crate::guest::Guest;

const READ_ONLY: PteFlags = PteFlags::USER_RW.difference(PteFlags::WRITABLE);

/// Sends what is in the batch.
pub(super) fn send<M: Machine>(
    context: &Context<'_, M>,
    batch: &mut Batch<'_>,
) -> Result<(), String> {
    // SAFETY: the callers change tables of address spaces that this program made, which no Rust
    // object lives in.
    unsafe { batch.submit(context.machine) }.or_say("a bare request")
}

/// The rows of this file.
pub(super) fn run<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    table: &mut Table,
    memory: &mut Memory,
    storage: &mut Storage,
) -> Result<(), String> {
    null(guest, table)?;
    let (context, _) = guest.parts();
    let mut pgd = Pgd::new(&context, memory).or_say("new")?;
    let pages = Pages { start: va(1, 0)?, count: 512 };
    pgd.map_pages(&context, (pages, PteFlags::USER_RW), memory).or_say("map")?;
    // An L1 table beside it keeps the L2 table in use.
    pgd.map_pages(&context, (Pages::one(va(2, 0)?), PteFlags::USER_RW), memory).or_say("map")?;
    let pgd = pgd.pin(&context, &mut storage.batch()).or_say("pin")?;
    entries(guest, table, &pgd, storage)?;
    tables(guest, table, &pgd, storage)?;
    let (context, _) = guest.parts();
    let pgd: Pgd<Loose> = pgd.unpin(&context, &mut storage.batch()).or_say("unpin")?;
    pgd.destroy(&context, memory).map_err(|(_, error)| alloc::format!("destroy: {error}"))
}

fn null<M: Machine + Cpu>(guest: &mut Guest<'_, M>, table: &mut Table) -> Result<(), String> {
    let (_, cost) = measure(guest, |guest| {
        let (context, _) = guest.parts();
        for _ in 0..1000 {
            let mut calls = [Call::new(Request::MmuUpdate(&[], Domains::SELF))];
            // SAFETY: asks for nothing.
            unsafe { context.machine.issue(&mut calls) }.or_say("null")?;
        }
        Ok(())
    })?;
    table.row(guest, ("mmu_update of nothing", 1000), cost, &[])
}

/// The L1 table for the full run, its mfn, and the place of the entry that leads to it.
fn full_table<M: Machine>(
    context: &Context<'_, M>,
    pgd: &Pgd<Pinned>,
) -> Result<(Pfn, Slot, Slot), String> {
    let path = walk(context, pgd.root(), va(1, 0)?).or_say("walk")?;
    let l2 = path.at(Level::L2).ok_or("no L2 table")?;
    let l1 = path.at(Level::L1).ok_or("no L1 table")?;
    Ok((l1.table, l1.slot, l2.slot))
}

/// Changes all 512 entries of the table in one `mmu_update`.
fn change_all<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    pgd: &Pgd<Pinned>,
    storage: &mut Storage,
    change: impl Fn(usize, Pte) -> Pte,
) -> Result<Cost, String> {
    let (context, _) = guest.parts();
    let (l1, slot, _) = full_table(&context, pgd)?;
    let mut batch = storage.batch();
    for index in 0..512u16 {
        let index = PageTableIndex::new(index);
        let pte = context.machine.read_entry(l1, index).or_say("read")?;
        let slot = Slot { index, ..slot };
        let new = change(usize::from(u16::from(index)), pte);
        batch.update(MmuUpdate::set(slot, new), pte.raw()).or_say("batch")?;
    }
    let (_, cost) = measure(guest, |guest| send(&guest.parts().0, &mut batch))?;
    Ok(cost)
}

fn entries<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    table: &mut Table,
    pgd: &Pgd<Pinned>,
    storage: &mut Storage,
) -> Result<(), String> {
    let cost = change_all(guest, pgd, storage, |_, pte| pte.read_only())?;
    table.row(guest, ("floor: entry to read-only", 512), cost, &[])?;
    let cost = change_all(guest, pgd, storage, |_, pte| pte.writable())?;
    table.row(guest, ("floor: entry to writable", 512), cost, &[])?;
    let accessed = |_, pte: Pte| Pte::from_raw(pte.raw() ^ PteFlags::ACCESSED.bits());
    let cost = change_all(guest, pgd, storage, accessed)?;
    table.row(guest, ("floor: entry, accessed bit only", 512), cost, &[])?;
    let mut kept = Vec::with_capacity(512);
    let (context, _) = guest.parts();
    let (l1, ..) = full_table(&context, pgd)?;
    for index in 0..512u16 {
        let pte = context.machine.read_entry(l1, PageTableIndex::new(index)).or_say("read")?;
        kept.push(pte);
    }
    for flags in [READ_ONLY, PteFlags::USER_RW] {
        let (clear, fill) = if flags == READ_ONLY {
            ("floor: clear entry, writable", "floor: fill entry, read-only")
        } else {
            ("floor: clear entry, read-only", "floor: fill entry, writable")
        };
        let cost = change_all(guest, pgd, storage, |_, _| Pte::ABSENT)?;
        table.row(guest, (clear, 512), cost, &[])?;
        let cost = change_all(guest, pgd, storage, |at, _| kept[at].with_flags(flags))?;
        table.row(guest, (fill, 512), cost, &[])?;
    }
    Ok(())
}

/// Linking and unlinking of a table with 512 entries, and of one with none.
fn tables<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    table: &mut Table,
    pgd: &Pgd<Pinned>,
    storage: &mut Storage,
) -> Result<(), String> {
    relink(guest, table, pgd, storage, ["floor: unlink 512 writable", "floor: link 512 writable"])?;
    change_all(guest, pgd, storage, |_, pte| pte.read_only())?;
    let names = ["floor: unlink 512 read-only", "floor: link 512 read-only"];
    relink(guest, table, pgd, storage, names)?;
    let mut kept = Vec::with_capacity(512);
    let (context, _) = guest.parts();
    let (l1, ..) = full_table(&context, pgd)?;
    for index in 0..512u16 {
        let pte = context.machine.read_entry(l1, PageTableIndex::new(index)).or_say("read")?;
        kept.push(pte);
    }
    change_all(guest, pgd, storage, |_, _| Pte::ABSENT)?;
    relink(
        guest,
        table,
        pgd,
        storage,
        ["floor: unlink an empty table", "floor: link an empty one"],
    )?;
    held(guest, table, pgd, storage)?;
    change_all(guest, pgd, storage, |at, _| kept[at].writable())?;
    Ok(())
}

fn set<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    (slot, new, old): (Slot, Pte, Pte),
    storage: &mut Storage,
) -> Result<Cost, String> {
    let mut batch = storage.batch();
    batch.update(MmuUpdate::set(slot, new), old.raw()).or_say("batch")?;
    measure(guest, |guest| send(&guest.parts().0, &mut batch)).map(|(_, cost)| cost)
}

fn relink<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    table: &mut Table,
    pgd: &Pgd<Pinned>,
    storage: &mut Storage,
    names: [&str; 2],
) -> Result<(), String> {
    let (context, _) = guest.parts();
    let (_, l1, slot) = full_table(&context, pgd)?;
    let link = Pte::new(l1.table, PteFlags::TABLE);
    let unlink = set(guest, (slot, Pte::ABSENT, link), storage)?;
    table.row(guest, (names[0], 1), unlink, &[])?;
    let link = set(guest, (slot, link, Pte::ABSENT), storage)?;
    table.row(guest, (names[1], 1), link, &[])
}

/// A table that is pinned by itself: to pin it while it is linked, to unlink and link it, to unpin
/// it.
fn held<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    table: &mut Table,
    pgd: &Pgd<Pinned>,
    storage: &mut Storage,
) -> Result<(), String> {
    let (context, _) = guest.parts();
    let (_, l1, _) = full_table(&context, pgd)?;
    let mut op = |guest: &mut Guest<'_, M>, op| {
        let mut batch = storage.batch();
        batch.op(op).or_say("batch")?;
        measure(guest, |guest| send(&guest.parts().0, &mut batch)).map(|(_, cost)| cost)
    };
    let cost = op(guest, MmuExtOp::pin(Level::L1, l1.table))?;
    table.row(guest, ("floor: pin a table that is linked", 1), cost, &[])?;
    let cost = op(guest, MmuExtOp::tlb_flush_all())?;
    table.row(guest, ("floor: flush all", 1), cost, &[])?;
    relink(
        guest,
        table,
        pgd,
        storage,
        ["floor: unlink a pinned table", "floor: link a pinned one"],
    )?;
    let (context, _) = guest.parts();
    let (_, l1, _) = full_table(&context, pgd)?;
    let mut batch = storage.batch();
    batch.op(MmuExtOp::unpin(l1.table)).or_say("batch")?;
    let (_, cost) = measure(guest, |guest| send(&guest.parts().0, &mut batch))?;
    table.row(guest, ("floor: unpin a table that is linked", 1), cost, &[])
}
