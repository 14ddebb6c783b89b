//! Whole address spaces: made, pinned, unpinned, destroyed.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use hypercall::middleware::Counting;
use hypercall::{
    Batch, Call, Cpu, DomId, FrameAccess as _, FrameSource, GuestVa, Level, Machine, MmuExtOp,
    MmuUpdate, Pfn, Pte, PteFlags, Request, Slot,
};
use p2m::{Guest, walk};
use pvmmu::{Loose, Pages, Pgd, Pinned, Presence, Tools};

use super::super::OrSay;
use super::memory::{Again, Memory, Stack};
use super::row::{Bench, Cost};

/// Sizes of the address spaces that are pinned, in L1 tables.
pub(super) const TABLES: [u64; 12] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048];
/// Pages of a table that is full.
const FULL: u64 = 512;
/// As many full tables as there are frames for pages of their own.
const OWN_TABLES_MAX: u64 = 128;

/// Page `page` of L1 table `table` of the bench's address spaces.
pub(super) fn va(table: u64, page: u64) -> Result<GuestVa, String> {
    GuestVa::new((table << 21) + (page << 12)).or_say("the bench's address")
}

/// What operations on a live address space work with.
pub(super) fn tools<'a, 't, M>(
    guest: Guest<'a, M>,
    batch: Batch<'a>,
    memory: &'a mut Memory,
) -> Tools<'a, 't, M, Stack> {
    let mut tools = memory.tools(guest).with_batch(batch);
    tools.presence = Presence::MayVanish;
    tools
}

/// An address space to be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// L1 tables.
    pub(super) tables: u64,
    /// Pages in each.
    pub(super) pages: u64,
    /// Their flags.
    pub(super) flags: PteFlags,
}

/// Makes an address space.
pub(super) fn build<M: Machine>(
    tools: &mut Tools<'_, '_, M, impl FrameSource>,
    shape: Shape,
) -> Result<Pgd<Loose>, String> {
    let Shape { tables, pages, flags } = shape;
    let mut pgd = Pgd::new(tools).or_say("new")?;
    for table in 0..tables {
        let pages = Pages { start: va(table, 0)?, count: pages };
        pgd.map_pages(tools, pages, flags).or_say("map")?;
    }
    Ok(pgd)
}

pub(super) fn destroy<M: Machine>(
    tools: &mut Tools<'_, '_, M, impl FrameSource>,
    pgd: Pgd<Loose>,
) -> Result<(), String> {
    pgd.destroy(tools).map_err(|error| format!("destroy: {error}"))
}

/// The rows of this file.
pub(super) fn run<M: Machine + Cpu>(bench: &mut Bench<'_, '_, M>) -> Result<(), String> {
    // Xen's first look at a frame costs more than the later ones; every frame has had it before
    // anything is measured.
    let guest = bench.kernel.guest;
    let mut batch = bench.storage.batch();
    let flags = PteFlags::USER_RW;
    for (tables, pages) in [(2048, 1), (OWN_TABLES_MAX, FULL)] {
        let pgd = build(&mut bench.memory.tools(guest), Shape { tables, pages, flags })?;
        let pgd = pgd.pin(&guest, &mut batch).or_say("pin")?;
        let pgd = pgd.unpin(&guest, &mut batch).or_say("unpin")?;
        destroy(&mut bench.memory.tools(guest), pgd)?;
    }
    for tables in TABLES {
        pin_and_unpin(bench, "sparse tables", Shape { tables, pages: 1, flags })?;
    }
    let (pages, read_only) = (FULL, PteFlags::USER_RW & !PteFlags::WRITABLE);
    for tables in TABLES {
        pin_and_unpin(bench, "full read-only tables", Shape { tables, pages, flags: read_only })?;
    }
    for tables in TABLES.into_iter().filter(|tables| *tables <= OWN_TABLES_MAX) {
        pin_and_unpin(bench, "full writable tables", Shape { tables, pages, flags })?;
    }
    Ok(())
}

/// Pin and unpin, and the same without the changes of the direct mapping: what Xen charges for the
/// validation alone.
fn pin_and_unpin<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    name: &str,
    shape: Shape,
) -> Result<(), String> {
    let mut memory = core::mem::take(&mut bench.memory);
    let guest = bench.kernel.guest;
    let done = if shape.flags.contains(PteFlags::WRITABLE) {
        pin_and_unpin_with(bench, name, shape, &mut memory.tools(guest))
    } else {
        let run = memory.take_run(512).ok_or("no run of frames")?;
        let mut again = Again::new(&run);
        let mut tools = Tools::new(guest, &mut again).with_table_frames(&mut memory.near);
        let done = pin_and_unpin_with(bench, name, shape, &mut tools);
        memory.give_run(run);
        done
    };
    bench.memory = memory;
    done
}

fn pin_and_unpin_with<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    name: &str,
    shape: Shape,
    tools: &mut Tools<'_, '_, Counting<&M>, impl FrameSource>,
) -> Result<(), String> {
    let tables = shape.tables;
    let start = bench.begin();
    let pgd = build(tools, shape)?;
    let built = bench.end(start);
    let start = bench.begin();
    let pgd = pgd.pin(&bench.kernel.guest, &mut bench.storage.batch()).or_say("pin")?;
    let pin = bench.end(start);
    let [bare_unpin, bare_pin] = bare(bench, &pgd)?;
    let converted = bare_converted(bench, &pgd, tables)?;
    let start = bench.begin();
    let pgd = pgd.unpin(&bench.kernel.guest, &mut bench.storage.batch()).or_say("unpin")?;
    let unpin = bench.end(start);
    let start = bench.begin();
    destroy(tools, pgd)?;
    let taken = bench.end(start);
    let mut row = |operation: &str, cost: Cost, floor: Option<Cost>| {
        let operation = format!("{operation}, {name}");
        bench.row(&operation, "tables", tables, cost, floor.map(|floor| floor.ticks))
    };
    row("build", built, None)?;
    row("pin", pin, Some(bare_pin))?;
    row("unpin", unpin, Some(bare_unpin))?;
    row("pin and unpin", pin.and(unpin), Some(bare_pin.and(bare_unpin)))?;
    row("bare: pin and unpin with the direct mapping", converted, None)?;
    row("take apart", taken, None)
}

/// Unpins the root and pins it again while all tables stay read-only.
pub(super) fn bare<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    pgd: &Pgd<Pinned>,
) -> Result<[Cost; 2], String> {
    let root = bench.kernel.guest.p2m().mfn(pgd.root()).or_say("P2M")?;
    let mut costs = [Cost::default(); 2];
    let ops = [MmuExtOp::unpin(root), MmuExtOp::pin(Level::L4, root)];
    for (op, cost) in ops.into_iter().zip(&mut costs) {
        *cost = bench.send(|batch| batch.op(op))?;
    }
    Ok(costs)
}

/// Unpins the root, makes all tables writable, then read-only again, and pins it: from requests
/// that are ready before the clock starts. What no guest can do without, if its tables become plain
/// memory in between.
fn bare_converted<M: Machine + Cpu>(
    bench: &Bench<'_, '_, M>,
    pgd: &Pgd<Pinned>,
    tables: u64,
) -> Result<Cost, String> {
    let guest = bench.kernel.guest;
    let mut writable = Vec::new();
    let mut read_only = Vec::new();
    for pfn in tables_of(&guest, pgd, tables)? {
        let va = guest.machine().direct_map(pfn).or_say("the direct mapping")?;
        let path = walk(&guest, guest.kernel_root(), va).or_say("walk")?;
        let (slot, pte): (Slot, Pte) = path.leaf().ok_or("no direct mapping")?;
        writable.push(MmuUpdate::set(slot, pte.writable()));
        read_only.push(MmuUpdate::set(slot, pte.read_only()));
    }
    let root = guest.p2m().mfn(pgd.root()).or_say("P2M")?;
    let (unpin, pin) = ([MmuExtOp::unpin(root)], [MmuExtOp::pin(Level::L4, root)]);
    let requests = [
        Request::MmuExt(&unpin, DomId::SELF),
        Request::MmuUpdate(&writable, DomId::SELF),
        Request::MmuUpdate(&read_only, DomId::SELF),
        Request::MmuExt(&pin, DomId::SELF),
    ];
    let start = bench.begin();
    for request in requests {
        issue(&guest, &mut [Call::new(request)])?;
    }
    Ok(bench.end(start))
}

#[expect(unsafe_code, reason = "bare requests on an address space of the bench's own")]
fn issue<M: Machine>(guest: &Guest<'_, M>, calls: &mut [Call<'_>; 1]) -> Result<(), String> {
    // SAFETY: the tables belong to the address space, which no Rust object lives in.
    unsafe { guest.machine().issue(calls) }.or_say("a bare request")?;
    calls[0].result().or_say("a bare request")
}

/// The tables of a tree with so many L1 tables side by side.
fn tables_of<M: Machine>(
    guest: &Guest<'_, M>,
    pgd: &Pgd<Pinned>,
    tables: u64,
) -> Result<Vec<Pfn>, String> {
    let mut all = alloc::vec![pgd.root()];
    for number in 0..tables {
        let path = walk(guest, pgd.root(), va(number, 0)?).or_say("walk")?;
        all.extend(path.steps().map(|step| step.table));
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}
