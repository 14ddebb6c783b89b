//! What Xen charges for its primitives: bare requests, with nothing around them. The floors of all
//! operations, and the constants of `pvmmu::cost`, come from here.
#![expect(unsafe_code, reason = "submits bare requests on an address space of its own")]

use alloc::string::String;
use alloc::vec::Vec;

use hypercall::{
    Call, Cpu, DomId, FrameAccess as _, Hypercalls as _, Level, Machine, MmuExtOp, MmuUpdate, Pfn,
    Pte, PteFlags, Request, Slot,
};
use p2m::{Guest, walk};
use pvmmu::{Pages, Pgd, Pinned};
use x86_64::structures::paging::PageTableIndex;

use super::super::OrSay;
use super::row::{Bench, Cost};
use super::spaces::{self, destroy, va};

const READ_ONLY: PteFlags = PteFlags::USER_RW.difference(PteFlags::WRITABLE);

/// Entries that a measured run changes.
const RUN: u64 = 512;

/// Tables above the L1 tables of an address space of the bench's, its root aside.
const UPPER: u64 = 2;

/// What Xen charges, in ticks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bare {
    /// For a hypercall that asks for nothing.
    pub(super) null: u64,
    /// For all TLBs, with the trap.
    pub(super) flush: u64,
    /// For 512 entries of a table to read-only, in one trap.
    to_read_only: u64,
    /// To writable.
    to_writable: u64,
    /// To clear 512 entries that map pages writable.
    clear: u64,
    /// To fill them.
    fill: u64,
    /// To pin the root of an address space that has nothing in its own half.
    pin_root: u64,
    /// To unpin it.
    unpin_root: u64,
    /// To unlink a table with nothing in it.
    unlink_empty: u64,
    /// To link it.
    link_empty: u64,
    /// To unlink a table of 512 writable pages.
    unlink_writable: u64,
    /// To link it.
    link_writable: u64,
    /// To unlink a table of 512 read-only pages.
    unlink_read_only: u64,
    /// To link it.
    link_read_only: u64,
    /// To unlink a table that is pinned by itself: what an entry takes that leads to a table.
    unlink_pinned: u64,
    /// To link it.
    link_pinned: u64,
}

impl Bare {
    /// One element of a run, without its share of the trap.
    const fn each(&self, run: u64) -> u64 {
        (run - self.null) / RUN
    }

    /// A table with `pages` pages, from the figures for none and for 512; without the trap.
    const fn table(&self, empty: u64, full: u64, pages: u64) -> u64 {
        empty - self.null + (full - empty) * pages / RUN
    }

    /// `pages` pages side by side: so many full tables, and so many pages in one more.
    fn tables(&self, empty: u64, full: u64, pages: u64) -> u64 {
        let rest = pages % RUN;
        let rest = if rest == 0 { 0 } else { self.table(empty, full, rest) };
        self.table(empty, full, RUN) * (pages / RUN) + rest
    }

    /// A table's frame to read-only in the direct mapping; the other way costs the same within 5 %.
    const fn access(&self) -> u64 {
        self.each(self.to_read_only)
    }

    /// `elements` entries to read-only, one by one.
    pub(super) const fn read_only_in_place(&self, elements: u64) -> u64 {
        self.null + elements * self.each(self.to_read_only)
    }

    /// `elements` entries to writable, one by one.
    pub(super) const fn writable_in_place(&self, elements: u64) -> u64 {
        self.null + elements * self.each(self.to_writable)
    }

    /// `elements` pages mapped in tables that are there.
    pub(super) const fn fill(&self, elements: u64) -> u64 {
        self.null + elements * self.each(self.fill)
    }

    /// `elements` pages unmapped, one by one.
    pub(super) const fn clear(&self, elements: u64) -> u64 {
        self.null + elements * self.each(self.clear)
    }

    /// Maps `pages` pages side by side in tables that are not there yet: each filled by plain
    /// stores and validated once, or linked empty and filled by requests. The two tables above are
    /// not there either.
    pub(super) fn map(&self, pages: u64) -> u64 {
        let tables = pages.div_ceil(RUN);
        let upper = UPPER * (self.access() + self.link_empty - self.null);
        let stored = self.tables(self.link_empty, self.link_writable, pages);
        let requested = tables * (self.link_empty - self.null) + self.fill(pages) - self.null;
        self.null + upper + tables * self.access() + stored.min(requested)
    }

    /// Unmaps them: with their tables and those above, or one by one, which leaves all tables.
    pub(super) fn unmap(&self, pages: u64) -> u64 {
        let tables = (pages.div_ceil(RUN) + UPPER) * self.access();
        let upper = UPPER * (self.unlink_empty - self.null);
        let out = self.tables(self.unlink_empty, self.unlink_writable, pages);
        self.flush + (tables + upper + out).min(self.clear(pages) - self.null)
    }

    /// Makes `pages` pages read-only, as whole tables or one by one.
    pub(super) fn read_only_whole(&self, pages: u64) -> u64 {
        let tables = pages.div_ceil(RUN) * 2 * self.access();
        let out = self.tables(self.unlink_empty, self.unlink_writable, pages);
        let back = self.tables(self.link_empty, self.link_read_only, pages);
        self.flush + (tables + out + back).min(self.read_only_in_place(pages) - self.null)
    }

    /// Makes them writable again.
    pub(super) fn writable_whole(&self, pages: u64) -> u64 {
        let tables = pages.div_ceil(RUN) * 2 * self.access();
        let out = self.tables(self.unlink_empty, self.unlink_read_only, pages);
        let back = self.tables(self.link_empty, self.link_writable, pages);
        self.flush + (tables + out + back).min(self.writable_in_place(pages) - self.null)
    }

    /// Makes an address space of `tables` full read-only tables, as a child's: all its tables
    /// read-only themselves, and validated with the root.
    pub(super) const fn take_tables(&self, tables: u64) -> u64 {
        let upper = UPPER * (self.link_empty - self.null) + self.protect(UPPER + 1);
        let each = self.access() + self.link_read_only - self.link_pinned;
        self.pin_root + upper + tables * each
    }

    /// Lets go of it.
    pub(super) const fn drop_tables(&self, tables: u64) -> u64 {
        let upper = UPPER * (self.unlink_empty - self.null) + self.protect(UPPER + 1);
        let each = self.access() + self.unlink_read_only - self.unlink_pinned;
        self.unpin_root + upper + tables * each
    }

    /// Makes frames read-only that are to be tables, or writable again.
    pub(super) const fn protect(&self, frames: u64) -> u64 {
        frames * self.access()
    }

    /// Links `tables` tables that are validated already, one by one or as `link` does all of them,
    /// and maps a page in each.
    pub(super) fn fill_linked(&self, tables: u64, link: u64) -> u64 {
        (tables * (self.link_pinned - self.null)).min(link - self.null) + self.fill(tables)
    }

    /// Unmaps the pages, and unlinks the tables one by one or as `unlink` does all of them.
    pub(super) fn clear_linked(&self, tables: u64, unlink: u64) -> u64 {
        (tables * (self.unlink_pinned - self.null)).min(unlink - self.null) + self.clear(tables)
    }

    /// Links a full table with so many writable pages in it; the others are read-only.
    pub(super) const fn link_full(&self, writable: u64) -> u64 {
        let more = self.link_writable - self.link_read_only;
        self.protect(1) + self.link_read_only + more * writable / RUN
    }

    /// Links a table that is validated already.
    pub(super) const fn link(&self) -> u64 {
        self.link_pinned
    }
}

/// The rows of this file.
pub(super) fn run<M: Machine + Cpu>(bench: &mut Bench<'_, '_, M>) -> Result<Bare, String> {
    let null = null(bench)?;
    let mut bare = Bare { null, ..Bare::default() };
    root(bench, &mut bare)?;
    let guest = bench.kernel.guest;
    let mut pgd = Pgd::new(&mut bench.memory.tools(guest)).or_say("new")?;
    let pages = Pages { start: va(1, 0)?, count: RUN };
    pgd.map_pages(&mut bench.memory.tools(guest), pages, PteFlags::USER_RW).or_say("map")?;
    // An L1 table beside it keeps the L2 table in use.
    let beside = Pages::one(va(2, 0)?);
    pgd.map_pages(&mut bench.memory.tools(guest), beside, PteFlags::USER_RW).or_say("map")?;
    let pgd = pgd.pin(&guest, &mut bench.storage.batch()).or_say("pin")?;
    entries(bench, &pgd, &mut bare)?;
    tables(bench, &pgd, &mut bare)?;
    end(bench, pgd)?;
    Ok(bare)
}

fn end<M: Machine + Cpu>(bench: &mut Bench<'_, '_, M>, pgd: Pgd<Pinned>) -> Result<(), String> {
    let guest = bench.kernel.guest;
    let pgd = pgd.unpin(&guest, &mut bench.storage.batch()).or_say("unpin")?;
    destroy(&mut bench.memory.tools(guest), pgd)
}

/// Pin and unpin of a root alone.
fn root<M: Machine + Cpu>(bench: &mut Bench<'_, '_, M>, bare: &mut Bare) -> Result<(), String> {
    let guest = bench.kernel.guest;
    let pgd = Pgd::new(&mut bench.memory.tools(guest)).or_say("new")?;
    let pgd = pgd.pin(&guest, &mut bench.storage.batch()).or_say("pin")?;
    let [unpin, pin] = spaces::bare(bench, &pgd)?;
    bench.row("bare: unpin a root", "roots", 1, unpin, None)?;
    bench.row("bare: pin a root", "roots", 1, pin, None)?;
    (bare.unpin_root, bare.pin_root) = (unpin.ticks, pin.ticks);
    end(bench, pgd)
}

/// What one hypercall takes that asks for nothing.
fn null<M: Machine + Cpu>(bench: &mut Bench<'_, '_, M>) -> Result<u64, String> {
    let start = bench.begin();
    for _ in 0..1000 {
        let mut calls = [Call::new(Request::MmuUpdate(&[], DomId::SELF))];
        // SAFETY: asks for nothing.
        unsafe { bench.kernel.guest.machine().issue(&mut calls) }.or_say("null")?;
    }
    let cost = bench.end(start);
    bench.row("null hypercall", "hypercalls", 1000, cost, None)?;
    Ok(cost.ticks / 1000)
}

/// The L1 table for the full run, its mfn, and the place of the entry that leads to it.
fn full_table<M: Machine>(
    guest: &Guest<'_, M>,
    pgd: &Pgd<Pinned>,
) -> Result<(Pfn, Slot, Slot), String> {
    let path = walk(guest, pgd.root(), va(1, 0)?).or_say("walk")?;
    let l2 = path.at(Level::L2).ok_or("no L2 table")?;
    let l1 = path.at(Level::L1).ok_or("no L1 table")?;
    Ok((l1.table, l1.slot, l2.slot))
}

/// What all entries of the table are.
fn all_entries<M: Machine + Cpu>(
    bench: &Bench<'_, '_, M>,
    pgd: &Pgd<Pinned>,
) -> Result<Vec<Pte>, String> {
    let (l1, ..) = full_table(&bench.kernel.guest, pgd)?;
    let entry = |index| bench.kernel.guest.machine().read_entry(l1, PageTableIndex::new(index));
    (0..512u16).map(|index| entry(index).or_say("read")).collect()
}

/// Changes all 512 entries of the table in one `mmu_update`.
fn change_all<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    pgd: &Pgd<Pinned>,
    change: impl Fn(usize, Pte) -> Pte,
) -> Result<Cost, String> {
    let (_, slot, _) = full_table(&bench.kernel.guest, pgd)?;
    let entries = all_entries(bench, pgd)?;
    bench.send(|batch| {
        entries.into_iter().enumerate().zip(0..).try_for_each(|((at, pte), index)| {
            let slot = Slot { index: PageTableIndex::new(index), ..slot };
            batch.update(MmuUpdate::set(slot, change(at, pte)), pte.raw())
        })
    })
}

fn entries<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    pgd: &Pgd<Pinned>,
    bare: &mut Bare,
) -> Result<(), String> {
    let row = |bench: &mut Bench<'_, '_, M>, name: &str, cost: Cost| {
        bench.row(name, "entries", RUN, cost, None).map(|()| cost.ticks)
    };
    let cost = change_all(bench, pgd, |_, pte| pte.read_only())?;
    bare.to_read_only = row(bench, "bare: entry to read-only", cost)?;
    let cost = change_all(bench, pgd, |_, pte| pte.writable())?;
    bare.to_writable = row(bench, "bare: entry to writable", cost)?;
    let accessed = |_, pte: Pte| Pte::from_raw(pte.raw() ^ PteFlags::ACCESSED.bits());
    let cost = change_all(bench, pgd, accessed)?;
    row(bench, "bare: entry, accessed bit only", cost)?;
    let kept = all_entries(bench, pgd)?;
    let cost = change_all(bench, pgd, |_, _| Pte::ABSENT)?;
    bare.clear = row(bench, "bare: clear entry, writable", cost)?;
    let [read_only, writable] =
        [READ_ONLY, PteFlags::USER_RW].map(|flags| bench.kernel.guest.machine().offered(flags));
    let cost = change_all(bench, pgd, |at, _| kept[at].with_flags(read_only))?;
    row(bench, "bare: fill entry, read-only", cost)?;
    let cost = change_all(bench, pgd, |_, _| Pte::ABSENT)?;
    row(bench, "bare: clear entry, read-only", cost)?;
    let cost = change_all(bench, pgd, |at, _| kept[at].with_flags(writable))?;
    bare.fill = row(bench, "bare: fill entry, writable", cost)?;
    Ok(())
}

/// Linking and unlinking of a table with 512 entries, and of one with none.
fn tables<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    pgd: &Pgd<Pinned>,
    bare: &mut Bare,
) -> Result<(), String> {
    let names = ["bare: unlink table, 512 writable", "bare: link table, 512 writable"];
    [bare.unlink_writable, bare.link_writable] = relink(bench, pgd, names)?;
    change_all(bench, pgd, |_, pte| pte.read_only())?;
    let names = ["bare: unlink table, 512 read-only", "bare: link table, 512 read-only"];
    [bare.unlink_read_only, bare.link_read_only] = relink(bench, pgd, names)?;
    let kept = all_entries(bench, pgd)?;
    change_all(bench, pgd, |_, _| Pte::ABSENT)?;
    let names = ["bare: unlink table, empty", "bare: link table, empty"];
    [bare.unlink_empty, bare.link_empty] = relink(bench, pgd, names)?;
    held(bench, pgd, bare)?;
    change_all(bench, pgd, |at, _| kept[at].writable())?;
    Ok(())
}

fn relink<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    pgd: &Pgd<Pinned>,
    names: [&str; 2],
) -> Result<[u64; 2], String> {
    let (_, l1, slot) = full_table(&bench.kernel.guest, pgd)?;
    let link = Pte::new(l1.table, PteFlags::TABLE);
    let mut ticks = [0; 2];
    let changes = [(Pte::ABSENT, link), (link, Pte::ABSENT)];
    for ((name, (new, old)), ticks) in names.into_iter().zip(changes).zip(&mut ticks) {
        let cost = bench.send(|batch| batch.update(MmuUpdate::set(slot, new), old.raw()))?;
        bench.row(name, "tables", 1, cost, None)?;
        *ticks = cost.ticks;
    }
    Ok(ticks)
}

/// A table that is pinned by itself: to pin it while it is linked, to unlink and link it, to unpin
/// it.
fn held<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    pgd: &Pgd<Pinned>,
    bare: &mut Bare,
) -> Result<(), String> {
    let (_, l1, _) = full_table(&bench.kernel.guest, pgd)?;
    let cost = bench.send(|batch| batch.op(MmuExtOp::pin(Level::L1, l1.table)))?;
    bench.row("bare: pin a table that is linked", "tables", 1, cost, None)?;
    let cost = bench.send(|batch| batch.op(MmuExtOp::tlb_flush_all()))?;
    bench.row("bare: flush of all TLBs", "flushes", 1, cost, None)?;
    bare.flush = cost.ticks;
    let names = ["bare: unlink table, pinned", "bare: link table, pinned"];
    [bare.unlink_pinned, bare.link_pinned] = relink(bench, pgd, names)?;
    let cost = bench.send(|batch| batch.op(MmuExtOp::unpin(l1.table)))?;
    bench.row("bare: unpin a table that is linked", "tables", 1, cost, None)
}
