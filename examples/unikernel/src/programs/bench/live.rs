//! Live pages: protected and unmapped.

use alloc::format;
use alloc::string::String;

use hypercall::{Cpu, Machine, PteFlags};
use pvmmu::{Counted, Pages, Pgd, Pinned, Presence, Shares, TablePool};

use super::super::OrSay;
use super::memory::Memory;
use super::spaces::{build, destroy, tools, va};
use super::table::{Table, Target, measure};
use super::{PAGES, Storage};
use crate::guest::Guest;

/// Linux 6.1 on Xen 4.17, 65,536 live pages: mprotect to read-only.
const LINUX_TO_READ_ONLY: u64 = 60_451_132;
/// mprotect to writable.
const LINUX_TO_WRITABLE: u64 = 68_880_415;
/// fork, exit and wait, with Linux's own book-keeping.
const LINUX_FORK: u64 = 229_956_688;
/// munmap.
const LINUX_UNMAP: u64 = 206_850_342;

const READ_ONLY: PteFlags = PteFlags::USER_RW.difference(PteFlags::WRITABLE);

/// The rows of this file.
pub(super) fn run<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    table: &mut Table,
    memory: &mut Memory,
    storage: &mut Storage,
) -> Result<(), String> {
    for presence in [Presence::MayVanish, Presence::Steady] {
        protect(guest, table, presence, (memory, storage))?;
    }
    for part in [512, 511, 256, 32, 1] {
        unmap(guest, table, part, (memory, storage))?;
    }
    map(guest, table, (memory, storage))?;
    fork(guest, table, (memory, storage))
}

/// A second address space over all pages, and its end; then the same for a parent that is
/// write-protected already.
fn fork<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    table: &mut Table,
    (memory, storage): (&mut Memory, &mut Storage),
) -> Result<(), String> {
    let mut parent = full(guest, (&mut *memory, &mut *storage))?;
    let mut counts = alloc::vec![0u16; usize::try_from(guest.boot.pages).or_say("pages")?];
    let mut shares = Shares::new(&mut counts);
    let mut frames = Counted { source: memory, shares: &mut shares };
    let mut pool = TablePool::new([&mut [], &mut [], &mut []]);
    let mut batch = storage.batch();
    for name in ["fork and destroy, writable pages", "fork and destroy again"] {
        let (child, forked) = measure(guest, |guest| {
            let mut tools = tools(guest.parts().0, &mut batch, &mut pool, &mut frames);
            parent.fork(&mut tools).or_say("fork")
        })?;
        let (_, ended) = measure(guest, |guest| {
            let mut tools = tools(guest.parts().0, &mut batch, &mut pool, &mut frames);
            child.destroy(&mut tools).or_say("destroy the child")
        })?;
        table.row(guest, ("  fork", PAGES), forked, &[])?;
        table.row(guest, ("  destroy the child", PAGES), ended, &[])?;
        table.row(guest, (name, PAGES), forked.and(ended), &[linux(LINUX_FORK, 30)])?;
    }
    let (_, cost) = measure(guest, |guest| {
        let mut tools = tools(guest.parts().0, &mut batch, &mut pool, &mut frames);
        parent.destroy(&mut tools).or_say("destroy the parent")
    })?;
    table.row(guest, ("destroy the parent", PAGES), cost, &[])
}

fn linux(figure: u64, hundredths: u64) -> Target {
    Target { of: "Linux", figure, hundredths }
}

fn full<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    (memory, storage): (&mut Memory, &mut Storage),
) -> Result<Pgd<Pinned>, String> {
    let (context, _) = guest.parts();
    let pgd = build(&context, (PAGES / 512, 512, PteFlags::USER_RW), memory)?;
    pgd.pin(&context, &mut storage.batch()).or_say("pin")
}

fn end<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    pgd: Pgd<Pinned>,
    (memory, storage): (&mut Memory, &mut Storage),
) -> Result<(), String> {
    let (context, _) = guest.parts();
    let pgd = pgd.unpin(&context, &mut storage.batch()).or_say("unpin")?;
    destroy(&context, pgd, memory)
}

fn protect<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    table: &mut Table,
    presence: Presence,
    (memory, storage): (&mut Memory, &mut Storage),
) -> Result<(), String> {
    let mut pgd = full(guest, (&mut *memory, &mut *storage))?;
    let mut pool = TablePool::new([&mut [], &mut [], &mut []]);
    let (word, share) = match presence {
        Presence::MayVanish => ("whole tables", 50),
        Presence::Steady => ("in place", 75),
    };
    for (flags, name, figure) in [
        (READ_ONLY, "to read-only", LINUX_TO_READ_ONLY),
        (PteFlags::USER_RW, "to writable", LINUX_TO_WRITABLE),
    ] {
        let mut batch = storage.batch();
        let (_, cost) = measure(guest, |guest| {
            let mut tools = tools(guest.parts().0, &mut batch, &mut pool, memory);
            tools.presence = presence;
            let pages = Pages { start: va(0, 0)?, count: PAGES };
            pgd.protect(&mut tools, pages, flags).or_say("protect")
        })?;
        let name = format!("protect {name}, {word}");
        table.row(guest, (&name, PAGES), cost, &[linux(figure, share)])?;
    }
    end(guest, pgd, (memory, storage))
}

/// Unmaps the first `part` pages of every table.
fn unmap<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    table: &mut Table,
    part: u64,
    (memory, storage): (&mut Memory, &mut Storage),
) -> Result<(), String> {
    let mut pgd = full(guest, (&mut *memory, &mut *storage))?;
    let mut pool = TablePool::new([&mut [], &mut [], &mut []]);
    let mut batch = storage.batch();
    let tables = PAGES / 512;
    let (_, cost) = measure(guest, |guest| {
        let mut tools = tools(guest.parts().0, &mut batch, &mut pool, memory);
        tools.presence = Presence::Steady;
        if part == 512 {
            let pages = Pages { start: va(0, 0)?, count: PAGES };
            return pgd.unmap(&mut tools, pages).or_say("unmap");
        }
        let unmapped = pgd.edit(&mut tools, |edit| {
            (0..tables).try_for_each(|table| {
                let start = hypercall::GuestVa::new(table << 21);
                let start = start.map_err(|_| pvmmu::MapError::OutOfFrames)?;
                edit.unmap(Pages { start, count: part })
            })
        });
        unmapped.or_say("unmap")
    })?;
    let pages = tables * part;
    let figure = LINUX_UNMAP * part / 512;
    let name = format!("unmap {part} pages of each table");
    let targets = match part {
        512 => &[linux(figure, 8)][..],
        // Linux's figure is for pages side by side.
        1 => &[],
        _ => &[linux(figure, 20)],
    };
    table.row(guest, (&name, pages), cost, targets)?;
    end(guest, pgd, (memory, storage))
}

fn map<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    table: &mut Table,
    (memory, storage): (&mut Memory, &mut Storage),
) -> Result<(), String> {
    let (context, _) = guest.parts();
    let pgd = Pgd::new(&context, memory).or_say("new")?;
    let mut pgd = pgd.pin(&context, &mut storage.batch()).or_say("pin")?;
    let mut pool = TablePool::new([&mut [], &mut [], &mut []]);
    let mut batch = storage.batch();
    let (_, cost) = measure(guest, |guest| {
        let mut tools = tools(guest.parts().0, &mut batch, &mut pool, memory);
        let pages = Pages { start: va(0, 0)?, count: PAGES };
        pgd.map_pages(&mut tools, pages, PteFlags::USER_RW).or_say("map")
    })?;
    table.row(guest, ("map pages of a live space", PAGES), cost, &[])?;
    let (_, cost) = measure(guest, |guest| {
        let mut tools = tools(guest.parts().0, &mut batch, &mut pool, memory);
        pgd.destroy(&mut tools).or_say("destroy")
    })?;
    table.row(guest, ("destroy them", PAGES), cost, &[])
}
