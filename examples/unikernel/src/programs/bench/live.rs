//! Live pages: mapped, protected, unmapped.

use alloc::format;
use alloc::string::String;

use hypercall::{Cpu, GuestVa, Machine, PteFlags};
use pvmmu::{Edit, MapError, Pages, Pgd, Pinned, Presence, Tools};

use super::super::OrSay;
use super::PAGES;
use super::bare::Bare;
use super::memory::Stack;
use super::row::{Bench, Cost};
use super::spaces::{Shape, build, destroy, tools, va};

/// Pages that a row works on, side by side.
const SIZES: [u64; 9] = [1, 4, 16, 64, 256, 1024, 4096, 16_384, PAGES];
/// Tables of which a part is unmapped.
const TABLES: u64 = PAGES / 512;

const READ_ONLY: PteFlags = PteFlags::USER_RW.difference(PteFlags::WRITABLE);

/// The rows of this file.
pub(super) fn run<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    bare: &Bare,
) -> Result<(), String> {
    for pages in SIZES {
        one_life(bench, bare, pages)?;
    }
    for pages in SIZES.into_iter().filter(|pages| *pages <= 256) {
        in_a_table(bench, bare, pages)?;
    }
    for part in [512, 511, 256, 32, 1] {
        unmap_part(bench, bare, part)?;
    }
    Ok(())
}

/// An operation on a live address space, measured.
pub(super) fn with_tools<M: Machine + Cpu, T>(
    bench: &mut Bench<'_, '_, M>,
    presence: Presence,
    work: impl for<'a> FnOnce(
        &mut Tools<'a, '_, hypercall::middleware::Counting<&'a M>, Stack>,
    ) -> Result<T, String>,
) -> Result<(T, Cost), String> {
    let start = bench.begin();
    let (guest, batch) = (bench.kernel.guest, bench.storage.batch());
    let mut tools = tools(guest, batch, &mut bench.memory);
    tools.presence = presence;
    let value = work(&mut tools)?;
    Ok((value, bench.end(start)))
}

/// Pages of an address space that has nothing else: mapped, protected in both ways, unmapped.
fn one_life<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    bare: &Bare,
    count: u64,
) -> Result<(), String> {
    let mut pgd = empty(bench)?;
    let pages = Pages { start: va(0, 0)?, count };
    let steady = Presence::Steady;
    let (_, cost) = with_tools(bench, steady, |tools| {
        pgd.map_pages(tools, pages, PteFlags::USER_RW).or_say("map")
    })?;
    bench.row("map, with their tables", "pages", count, cost, Some(bare.map(count)))?;
    let protected = [
        (READ_ONLY, "read-only", bare.read_only_in_place(count), bare.read_only_whole(count)),
        (PteFlags::USER_RW, "writable", bare.writable_in_place(count), bare.writable_whole(count)),
    ];
    for (presence, word) in [(steady, "in place"), (Presence::MayVanish, "whole tables")] {
        for (flags, access, in_place, whole) in protected {
            let (_, cost) = with_tools(bench, presence, |tools| {
                pgd.protect(tools, pages, flags).or_say("protect")
            })?;
            // The flush rides in the same trap.
            let in_place = in_place + bare.flush - bare.null;
            let floor = if presence == steady { in_place } else { whole };
            let operation = format!("protect to {access}, {word}");
            bench.row(&operation, "pages", count, cost, Some(floor))?;
        }
    }
    let (_, cost) = with_tools(bench, steady, |tools| pgd.unmap(tools, pages).or_say("unmap"))?;
    bench.row("unmap", "pages", count, cost, Some(bare.unmap(count)))?;
    end(bench, pgd)
}

/// An address space with nothing in it, live.
fn empty<M: Machine + Cpu>(bench: &mut Bench<'_, '_, M>) -> Result<Pgd<Pinned>, String> {
    let guest = bench.kernel.guest;
    let pgd = Pgd::new(&mut bench.memory.tools(guest)).or_say("new")?;
    pgd.pin(&guest, &mut bench.storage.batch()).or_say("pin")
}

fn end<M: Machine + Cpu>(bench: &mut Bench<'_, '_, M>, pgd: Pgd<Pinned>) -> Result<(), String> {
    let guest = bench.kernel.guest;
    let pgd = pgd.unpin(&guest, &mut bench.storage.batch()).or_say("unpin")?;
    destroy(&mut bench.memory.tools(guest), pgd)
}

/// Pages in a table that another page keeps there.
fn in_a_table<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    bare: &Bare,
    count: u64,
) -> Result<(), String> {
    let mut pgd = empty(bench)?;
    let steady = Presence::Steady;
    with_tools(bench, steady, |tools| {
        pgd.map_pages(tools, Pages::one(va(0, 511)?), PteFlags::USER_RW).or_say("map")
    })?;
    let pages = Pages { start: va(0, 0)?, count };
    let (_, cost) = with_tools(bench, steady, |tools| {
        pgd.map_pages(tools, pages, PteFlags::USER_RW).or_say("map")
    })?;
    bench.row("map, tables there", "pages", count, cost, Some(bare.fill(count)))?;
    let (_, cost) = with_tools(bench, steady, |tools| pgd.unmap(tools, pages).or_say("unmap"))?;
    let floor = bare.clear(count) + bare.flush - bare.null;
    bench.row("unmap, tables stay", "pages", count, cost, Some(floor))?;
    end(bench, pgd)
}

/// Unmaps the first `part` pages of every table.
fn unmap_part<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    bare: &Bare,
    part: u64,
) -> Result<(), String> {
    let guest = bench.kernel.guest;
    let pgd = build(
        &mut bench.memory.tools(guest),
        Shape { tables: TABLES, pages: 512, flags: PteFlags::USER_RW },
    )?;
    let mut pgd = pgd.pin(&guest, &mut bench.storage.batch()).or_say("pin")?;
    let (_, cost) = with_tools(bench, Presence::Steady, |tools| {
        pgd.edit(tools, |edit| (0..TABLES).try_for_each(|table| unmap_in(edit, table, part)))
            .or_say("unmap")
    })?;
    let operation = format!("unmap {part} of 512 in each table");
    let pages = TABLES * part;
    let floor = if part == 512 { bare.unmap(pages) } else { bare.clear(pages) + bare.flush };
    bench.row(&operation, "pages", pages, cost, Some(floor))?;
    end(bench, pgd)
}

fn unmap_in<M: Machine>(
    edit: &mut Edit<'_, '_, '_, M, Stack>,
    table: u64,
    part: u64,
) -> Result<(), MapError> {
    let start = GuestVa::new(table << 21).map_err(|_| MapError::OutOfFrames)?;
    edit.unmap(Pages { start, count: part })
}
