//! `demo`: everything a guest does with its page tables, once, on the machine it runs on, with what
//! each step costs.

use alloc::format;
use alloc::string::String;
use core::fmt::Write as _;

use hypercall::{BatchStorage, Cpu, FrameAccess as _, GuestVa, Machine, PAGE_SIZE, Pfn, PteFlags};
use pvmmu::{FrameSource as _, Loose, Pages, Pgd, Pinned, TablePool, walk};

use super::OrSay;
use super::life::{PAGES, build, destroy, load, load_kernel, page, pages, refuse_each, tools};
use crate::guest::Guest;
use crate::report::{Steps, Verdict};

/// Runs the demo.
pub(super) fn run<M: Machine + Cpu>(guest: &mut Guest<'_, M>) -> Verdict {
    introduce(guest)?;
    let mut steps = Steps::begin(guest).or_say("console")?;
    let free = guest.pool.len();

    let pfns = compare_maps(guest)?;
    steps.done(guest, &format!("compare P2M with M2P, {pfns} pfns")).or_say("console")?;

    let pgd = construct(guest, &mut steps)?;
    let pgd = work(guest, &mut steps, pgd)?;
    take_apart(guest, &mut steps, pgd)?;
    if guest.pool.len() != free {
        return Err(format!("{} frames were lost", free - guest.pool.len()));
    }

    let refused = refuse_each(guest)?;
    steps.done(guest, &format!("refuse each of {refused} requests, twice")).or_say("console")?;
    steps.end(guest).or_say("console")?;
    Ok(steps.summary())
}

/// Says where we are, and shows how the kernel sees its own root table.
fn introduce<M: Machine + Cpu>(guest: &mut Guest<'_, M>) -> Result<(), String> {
    let boot = guest.boot;
    let role = if boot.is_dom0 { "dom0" } else { "domU" };
    let mib = boot.pages / 256;
    let (context, _) = guest.parts();
    let root = context.machine().direct_map(context.kernel_root()).or_say("the root")?;
    let path = walk(&context, context.kernel_root(), root).or_say("walk")?;
    let console = &mut guest.console;
    writeln!(
        console,
        "pvmmu demo: {role}, {mib} MiB, {} tables from the builder",
        boot.table_frames
    )
    .and_then(|()| writeln!(console, "the running root, {root}, is mapped by"))
    .and_then(|()| writeln!(console, "{path}"))
    .or_say("console")
}

/// Checks that P2M and M2P agree on every pfn.
fn compare_maps<M: Machine + Cpu>(guest: &mut Guest<'_, M>) -> Result<u64, String> {
    let (context, _) = guest.parts();
    for pfn in (0..context.p2m().len()).map(Pfn::new) {
        let mfn = context.p2m().mfn(pfn).or_say("P2M")?;
        let back = context.p2m().pfn(context.machine(), mfn).or_say("M2P")?;
        if back != pfn {
            return Err(format!("pfn {pfn} is mfn {mfn}, which is pfn {back}"));
        }
    }
    Ok(context.p2m().len())
}

/// From frames to a running address space.
fn construct<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    steps: &mut Steps,
) -> Result<Pgd<Pinned>, String> {
    let (context, pool) = guest.parts();
    let pgd = build(&context, pages(PAGES)?, pool)?;
    let tables = pgd.tables(&context).or_say("tables")?;
    steps.done(guest, &format!("build {tables} tables, map {PAGES} pages")).or_say("console")?;

    let mut storage = BatchStorage::<128, 8>::new();
    let (context, _) = guest.parts();
    let pgd = pgd.pin(&context, &mut storage.batch()).or_say("pin")?;
    steps
        .done(guest, &format!("make {tables} tables read-only, pin the root"))
        .or_say("console")?;

    let (context, _) = guest.parts();
    load(&context, &pgd)?;
    steps.done(guest, "load the root").or_say("console")?;
    Ok(pgd)
}

/// Uses and changes the running address space.
fn work<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    steps: &mut Steps,
    mut pgd: Pgd<Pinned>,
) -> Result<Pgd<Pinned>, String> {
    let all = pages(PAGES)?;
    let read_only = PteFlags::USER_RW & !PteFlags::WRITABLE;
    let mut storage = BatchStorage::<128, 8>::new();
    let mut batch = storage.batch();

    for index in 0..PAGES {
        let va = page(all, index)?;
        if !guest.store(va, mark(va)) {
            return Err(at(va, "cannot be written"));
        }
    }
    check_marks(guest)?;
    steps.done(guest, &format!("write and read {PAGES} pages")).or_say("console")?;

    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let (context, pool) = guest.parts();
    let mut with = tools(&context, &mut batch, &mut tables, pool);
    pgd.protect(&mut with, all, read_only).or_say("protect")?;
    steps.done(guest, &format!("make {PAGES} live pages read-only")).or_say("console")?;
    for index in 0..PAGES {
        let va = page(all, index)?;
        if guest.store(va, 0) {
            return Err(at(va, "is read-only and was written"));
        }
    }
    check_marks(guest)?;
    steps.done(guest, &format!("fault {PAGES} times writing them")).or_say("console")?;

    let (context, pool) = guest.parts();
    let mut with = tools(&context, &mut batch, &mut tables, pool);
    pgd.protect(&mut with, all, PteFlags::USER_RW).or_say("protect")?;
    steps.done(guest, &format!("make {PAGES} live pages writable")).or_say("console")?;

    let (context, pool) = guest.parts();
    let mut with = tools(&context, &mut batch, &mut tables, pool);
    pgd.unmap(&mut with, Pages::one(all.start)).or_say("unmap")?;
    if guest.cpu.load(all.start).is_ok() {
        return Err(at(all.start, "is unmapped and was read"));
    }
    let (context, pool) = guest.parts();
    let frame = pool.take().ok_or("the unmapped frame is missing")?;
    let mut with = tools(&context, &mut batch, &mut tables, pool);
    pgd.map(&mut with, (all.start, PteFlags::USER_RW), frame).or_say("map")?;
    check_marks(guest)?;
    steps.done(guest, "unmap a live page, map it again").or_say("console")?;
    Ok(pgd)
}

/// From the running address space back to frames.
fn take_apart<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    steps: &mut Steps,
    pgd: Pgd<Pinned>,
) -> Result<(), String> {
    let (context, _) = guest.parts();
    load_kernel(&context)?;
    steps.done(guest, "load the kernel's root again").or_say("console")?;

    let mut storage = BatchStorage::<128, 8>::new();
    let (context, _) = guest.parts();
    let pgd = pgd.unpin(&context, &mut storage.batch()).or_say("unpin")?;
    steps.done(guest, "unpin, make the tables writable").or_say("console")?;

    check_frames(guest, &pgd)?;
    let (context, pool) = guest.parts();
    destroy(&context, pgd, pool)?;
    steps.done(guest, "check the contents, take it apart").or_say("console")
}

/// What the demo writes to a page.
const fn mark(va: GuestVa) -> u64 {
    va.raw() ^ 0x5a5a_0000_0000_5a5a
}

/// Every page holds its mark, read through the running address space.
fn check_marks<M: Machine + Cpu>(guest: &Guest<'_, M>) -> Result<(), String> {
    let all = pages(PAGES)?;
    for index in 0..PAGES {
        let va = page(all, index)?;
        if guest.cpu.load(va) != Ok(mark(va)) {
            return Err(at(va, "does not hold what was written"));
        }
    }
    Ok(())
}

/// Every page holds its mark, read through the frame that the tables name.
fn check_frames<M: Machine + Cpu>(
    guest: &mut Guest<'_, M>,
    pgd: &Pgd<Loose>,
) -> Result<(), String> {
    let all = pages(PAGES)?;
    let (context, _) = guest.parts();
    for index in 0..PAGES {
        let va = page(all, index)?;
        let path = walk(&context, pgd.root(), va).or_say("walk")?;
        let (_, pte) = path.leaf().ok_or("a table is missing")?;
        let pfn = context.p2m().pfn(context.machine(), pte.mfn()).or_say("M2P")?;
        let mut bytes = [0; 8];
        context.machine().read_bytes(pfn, 0, &mut bytes).or_say("read")?;
        if u64::from_le_bytes(bytes) != mark(va) {
            return Err(at(va, "has another frame than it had"));
        }
    }
    Ok(())
}

/// The sentence of a page that is not as it should be.
fn at(va: GuestVa, is: &str) -> String {
    format!("{va} {is}")
}

const _: () = assert!(PAGES * (PAGE_SIZE as u64) < 1 << 30);
