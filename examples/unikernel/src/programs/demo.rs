//! `demo`: everything a guest does with its page tables, once, on the machine it runs on, with what
//! each step costs.

use alloc::format;
use alloc::string::String;
use core::fmt::Write as _;

use hypercall::{
    BatchStorage, Cpu, FrameAccess as _, FrameSource as _, GuestVa, Machine, PAGE_SIZE, Pfn,
    PteFlags,
};
use p2m::walk;
use pvmmu::{Loose, Pages, Pgd, Pinned, TablePool};

use super::life::{PAGES, build, destroy, load, load_kernel, page, pages, refuse_each, tools};
use super::{OrSay, all_are_back};
use crate::program::Kernel;
use crate::report::{Steps, Verdict};

/// Runs the demo.
pub(super) fn run<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Verdict {
    introduce(kernel)?;
    let mut steps = Steps::begin(kernel).or_say("console")?;
    let free = kernel.pool.len();

    let pfns = compare_maps(kernel)?;
    steps.done(kernel, &format!("compare P2M with M2P, {pfns} pfns")).or_say("console")?;

    let pgd = construct(kernel, &mut steps)?;
    let pgd = work(kernel, &mut steps, pgd)?;
    take_apart(kernel, &mut steps, pgd)?;
    all_are_back(kernel, free)?;

    let refused = refuse_each(kernel)?;
    steps.done(kernel, &format!("refuse each of {refused} requests, twice")).or_say("console")?;
    steps.end(kernel).or_say("console")?;
    Ok(steps.summary())
}

/// Says where we are, and shows how the kernel sees its own root table.
fn introduce<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Result<(), String> {
    let boot = kernel.boot;
    let role = if boot.is_dom0 { "dom0" } else { "domU" };
    let mib = boot.pages / 256;
    let (guest, _) = (kernel.guest, &mut kernel.pool);
    let root = guest.machine().direct_map(guest.kernel_root()).or_say("the root")?;
    let path = walk(&guest, guest.kernel_root(), root).or_say("walk")?;
    let console = &mut kernel.console;
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
fn compare_maps<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Result<u64, String> {
    let (guest, _) = (kernel.guest, &mut kernel.pool);
    for pfn in (0..guest.p2m().len()).map(Pfn::new) {
        let mfn = guest.p2m().mfn(pfn).or_say("P2M")?;
        let back = guest.p2m().pfn(guest.machine(), mfn).or_say("M2P")?;
        if back != pfn {
            return Err(format!("pfn {pfn} is mfn {mfn}, which is pfn {back}"));
        }
    }
    Ok(guest.p2m().len())
}

/// From frames to a running address space.
fn construct<M: Machine + Cpu>(
    kernel: &mut Kernel<'_, M>,
    steps: &mut Steps,
) -> Result<Pgd<Pinned>, String> {
    let (guest, pool) = (kernel.guest, &mut kernel.pool);
    let pgd = build(&guest, pages(PAGES)?, pool)?;
    let tables = pgd.tables(&guest).or_say("tables")?;
    steps.done(kernel, &format!("build {tables} tables, map {PAGES} pages")).or_say("console")?;

    let mut storage = BatchStorage::<128, 8>::new();
    let (guest, _) = (kernel.guest, &mut kernel.pool);
    let pgd = pgd.pin(&guest, &mut storage.batch()).or_say("pin")?;
    steps
        .done(kernel, &format!("make {tables} tables read-only, pin the root"))
        .or_say("console")?;

    let (guest, _) = (kernel.guest, &mut kernel.pool);
    load(&guest, &pgd)?;
    steps.done(kernel, "load the root").or_say("console")?;
    Ok(pgd)
}

/// Uses and changes the running address space.
fn work<M: Machine + Cpu>(
    kernel: &mut Kernel<'_, M>,
    steps: &mut Steps,
    mut pgd: Pgd<Pinned>,
) -> Result<Pgd<Pinned>, String> {
    let all = pages(PAGES)?;
    let read_only = PteFlags::USER_RW & !PteFlags::WRITABLE;
    let mut storage = BatchStorage::<128, 8>::new();
    let mut batch = storage.batch();

    for index in 0..PAGES {
        let va = page(all, index)?;
        if !kernel.store(va, mark(va)) {
            return Err(at(va, "cannot be written"));
        }
    }
    check_marks(kernel)?;
    steps.done(kernel, &format!("write and read {PAGES} pages")).or_say("console")?;

    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let (guest, pool) = (kernel.guest, &mut kernel.pool);
    let mut with = tools(&guest, &mut batch, &mut tables, pool);
    pgd.protect(&mut with, all, read_only).or_say("protect")?;
    steps.done(kernel, &format!("make {PAGES} live pages read-only")).or_say("console")?;
    for index in 0..PAGES {
        let va = page(all, index)?;
        if kernel.store(va, 0) {
            return Err(at(va, "is read-only and was written"));
        }
    }
    check_marks(kernel)?;
    steps.done(kernel, &format!("fault {PAGES} times writing them")).or_say("console")?;

    let (guest, pool) = (kernel.guest, &mut kernel.pool);
    let mut with = tools(&guest, &mut batch, &mut tables, pool);
    pgd.protect(&mut with, all, PteFlags::USER_RW).or_say("protect")?;
    steps.done(kernel, &format!("make {PAGES} live pages writable")).or_say("console")?;

    let (guest, pool) = (kernel.guest, &mut kernel.pool);
    let mut with = tools(&guest, &mut batch, &mut tables, pool);
    pgd.unmap(&mut with, Pages::one(all.start)).or_say("unmap")?;
    if kernel.cpu.load(all.start).is_ok() {
        return Err(at(all.start, "is unmapped and was read"));
    }
    let (guest, pool) = (kernel.guest, &mut kernel.pool);
    let frame = pool.take().ok_or("the unmapped frame is missing")?;
    let mut with = tools(&guest, &mut batch, &mut tables, pool);
    pgd.map(&mut with, all.start, PteFlags::USER_RW, frame).or_say("map")?;
    check_marks(kernel)?;
    steps.done(kernel, "unmap a live page, map it again").or_say("console")?;
    Ok(pgd)
}

/// From the running address space back to frames.
fn take_apart<M: Machine + Cpu>(
    kernel: &mut Kernel<'_, M>,
    steps: &mut Steps,
    pgd: Pgd<Pinned>,
) -> Result<(), String> {
    let (guest, _) = (kernel.guest, &mut kernel.pool);
    load_kernel(&guest)?;
    steps.done(kernel, "load the kernel's root again").or_say("console")?;

    let mut storage = BatchStorage::<128, 8>::new();
    let (guest, _) = (kernel.guest, &mut kernel.pool);
    let pgd = pgd.unpin(&guest, &mut storage.batch()).or_say("unpin")?;
    steps.done(kernel, "unpin, make the tables writable").or_say("console")?;

    check_frames(kernel, &pgd)?;
    let (guest, pool) = (kernel.guest, &mut kernel.pool);
    destroy(&guest, pgd, pool)?;
    steps.done(kernel, "check the contents, take it apart").or_say("console")
}

/// What the demo writes to a page.
const fn mark(va: GuestVa) -> u64 {
    va.raw() ^ 0x5a5a_0000_0000_5a5a
}

/// Every page holds its mark, read through the running address space.
fn check_marks<M: Machine + Cpu>(kernel: &Kernel<'_, M>) -> Result<(), String> {
    let all = pages(PAGES)?;
    for index in 0..PAGES {
        let va = page(all, index)?;
        if kernel.cpu.load(va) != Ok(mark(va)) {
            return Err(at(va, "does not hold what was written"));
        }
    }
    Ok(())
}

/// Every page holds its mark, read through the frame that the tables name.
fn check_frames<M: Machine + Cpu>(
    kernel: &mut Kernel<'_, M>,
    pgd: &Pgd<Loose>,
) -> Result<(), String> {
    let all = pages(PAGES)?;
    let (guest, _) = (kernel.guest, &mut kernel.pool);
    for index in 0..PAGES {
        let va = page(all, index)?;
        let path = walk(&guest, pgd.root(), va).or_say("walk")?;
        let (_, pte) = path.leaf().ok_or("a table is missing")?;
        let pfn = guest.p2m().pfn(guest.machine(), pte.mfn()).or_say("M2P")?;
        let mut bytes = [0; 8];
        guest.machine().read_bytes(pfn, 0, &mut bytes).or_say("read")?;
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
