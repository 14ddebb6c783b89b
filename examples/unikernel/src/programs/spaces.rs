//! `spaces`: address spaces at work on the CPU: tables from a pool and tables filled first, whole
//! tables changed under running pages, two roots, fork and copy on write, and an audit of all
//! tables.
#![expect(unsafe_code, reason = "loads roots, writes to pages of its own; no Rust object is there")]

use alloc::format;
use alloc::string::String;
use alloc::vec;

use hypercall::{BatchStorage, Cpu, GuestVa, Level, Machine, PteFlags, VcpuSet};
use p2m::Guest;
use pvmmu::audit::{Tree, audit, audit_words};
use pvmmu::flush::Reach;
use pvmmu::{
    Edit, Pages, Pgd, Pinned, PooledTable, Presence, RangeError, Shares, TablePool, Tools,
    load_root,
};

use super::{OrSay, all_are_back};
use crate::pool::Pool;
use crate::program::Kernel;
use crate::report::Verdict;

const READ_ONLY: PteFlags = PteFlags::USER_RW.difference(PteFlags::WRITABLE);
/// A whole table and a little of its neighbours.
const PAGES: u64 = 3 + 512 + 5;

type Work<'a, 't, M> = Tools<'a, 't, M, Pool>;

/// Runs the program.
pub(super) fn run<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Verdict {
    let free = kernel.pool.len();
    let guest = kernel.guest.with_machine(kernel.cpu);
    let mut storage = BatchStorage::<700, 32>::new();
    let mut batch = storage.batch();
    let pfns = usize::try_from(guest.p2m().len()).or_say("pfns")?;
    let mut counts = vec![0; pfns];
    let mut shares = Shares::new(&mut counts);
    let mut places = [const { None::<PooledTable> }; 12];
    let (l1, rest) = places.split_at_mut(8);
    let (l2, l3) = rest.split_at_mut(2);
    let mut tables = TablePool::new([l1, l2, l3]);
    for (level, count) in [(Level::L1, 4), (Level::L2, 2), (Level::L3, 2)] {
        tables.fill(&guest, level, count, &mut kernel.pool, &mut batch).or_say("fill the pool")?;
    }
    let pgd = Pgd::with_user_root(&mut Tools::new(guest, &mut kernel.pool)).or_say("new")?;
    let mut pgd = pgd.pin(&guest, &mut batch).or_say("pin")?;
    // One vCPU runs, and flushes by its number reach it.
    let with = Tools::new(guest, &mut kernel.pool).with_batch(batch.lend());
    let mut with = with.with_pool(&mut tables).with_shares(&mut shares);
    with.presence = Presence::MayVanish;
    // SAFETY: no other vCPU runs.
    unsafe { with.set_reach(Reach::Vcpus(VcpuSet::one(0))) };
    let lived = live(&mut pgd, &mut with);
    leave(&guest)?;
    pgd.destroy(&mut with).or_say("destroy")?;
    for level in [Level::L1, Level::L2, Level::L3] {
        tables.drain(&guest, level, 99, &mut kernel.pool).or_say("drain the pool")?;
    }
    let read = lived?;
    if counts.iter().any(|count| *count != 0) {
        return Err("a share was lost".into());
    }
    all_are_back(kernel, free)?;
    Ok(format!("{PAGES} pages, {read} tables audited, nothing wrong"))
}

fn pages() -> Result<Pages, String> {
    let start = GuestVa::new((1 << 30) - 3 * 4096).or_say("address")?;
    Ok(Pages { start, count: PAGES })
}

/// Runs on an address space.
fn enter<M: Machine>(guest: &Guest<'_, M>, pgd: &Pgd<Pinned>) -> Result<(), String> {
    // SAFETY: the kernel half is a copy of the running one, and no Rust object lives in a user
    // half.
    unsafe { pgd.load(guest) }.or_say("load")
}

/// Runs on the kernel's own root again.
fn leave<M: Machine>(guest: &Guest<'_, M>) -> Result<(), String> {
    // SAFETY: the tree the kernel booted on; no Rust object lives in a user half.
    unsafe { load_root(guest, guest.kernel_root()) }.or_say("leave")
}

/// Writes a page's own mark, changed by `salt`, to each page; how many could be written.
fn write<M: Cpu>(machine: &M, pages: Pages, salt: u64) -> Result<u64, String> {
    let mut written = 0;
    for index in 0..pages.count {
        let va = pages.at(index).or_say("address")?;
        // SAFETY: the pages are the program's own.
        written += u64::from(unsafe { machine.store(va, va.raw() ^ salt) }.is_ok());
    }
    Ok(written)
}

/// How many pages hold their mark, changed by `salt`.
fn marked<M: Cpu>(machine: &M, pages: Pages, salt: u64) -> Result<u64, String> {
    let mut found = 0;
    for index in 0..pages.count {
        let va = pages.at(index).or_say("address")?;
        found += u64::from(machine.load(va) == Ok(va.raw() ^ salt));
    }
    Ok(found)
}

fn expect(what: &str, found: u64, wanted: u64) -> Result<(), String> {
    if found == wanted {
        return Ok(());
    }
    Err(format!("{what}: {found} pages, not {wanted}"))
}

fn live<M: Machine + Cpu>(
    pgd: &mut Pgd<Pinned>,
    with: &mut Work<'_, '_, M>,
) -> Result<u64, String> {
    let (guest, machine, all) = (with.guest, with.guest.machine(), pages()?);
    enter(&guest, pgd)?;
    pgd.map_pages(with, all, PteFlags::USER_RW).or_say("map while it runs")?;
    expect("written", write(machine, all, 0)?, PAGES)?;
    expect("read", marked(machine, all, 0)?, PAGES)?;
    pgd.protect(with, all, READ_ONLY).or_say("protect")?;
    expect("written although read-only", write(machine, all, 1)?, 0)?;
    pgd.protect(with, all, PteFlags::USER_RW).or_say("protect back")?;
    expect("kept through both", marked(machine, all, 0)?, PAGES)?;
    moved(pgd, with)?;
    expect("kept through all moves", marked(machine, all, 0)?, PAGES)?;
    let read = fork(pgd, with, all)?;
    pgd.unmap(with, all).or_say("unmap")?;
    expect("read although unmapped", marked(machine, all, 2)?, 0)?;
    Ok(read)
}

/// Moves the whole table to the other end of the user half and back, held by the tree alone, and
/// once more while it is pinned by itself: its pages follow it.
fn moved<M: Machine + Cpu>(
    pgd: &mut Pgd<Pinned>,
    with: &mut Work<'_, '_, M>,
) -> Result<(), String> {
    /// What the addresses of both places differ in.
    const AWAY: u64 = 200 << 39;
    let (guest, machine) = (with.guest, with.guest.machine());
    let here = pages()?.at(3).or_say("address")?;
    let there = GuestVa::new(here.raw() ^ AWAY).or_say("address")?;
    let (from, to) = (Pages { start: here, count: 512 }, Pages { start: there, count: 512 });
    for is_last in [false, true] {
        pgd.edit(with, |edit| edit.move_table(here, there)).or_say("move")?;
        expect("read where the table was", marked(machine, from, 0)?, 0)?;
        expect("read where the table is", marked(machine, to, AWAY)?, 512)?;
        expect("written where the table is", write(machine, to, AWAY)?, 512)?;
        check_tables(&guest, &[pgd.tree()])?;
        pgd.edit(with, |edit| edit.move_table(there, here)).or_say("move back")?;
        expect("read where the table is not", marked(machine, to, AWAY)?, 0)?;
        if !is_last {
            let held = pgd.hold_l1_tables(&guest, &mut with.batch);
            held.map_err(|error| format!("hold: {error}"))?;
        }
    }
    Ok(())
}

/// A child that keeps what the parent overwrites.
fn fork<M: Machine + Cpu>(
    pgd: &mut Pgd<Pinned>,
    with: &mut Work<'_, '_, M>,
    all: Pages,
) -> Result<u64, String> {
    let (guest, machine) = (with.guest, with.guest.machine());
    let child = pgd.fork(with).or_say("fork")?;
    let read = check_tables(&guest, &[pgd.tree(), child.tree()])?;
    expect("written although shared", write(machine, all, 2)?, 0)?;
    own(pgd, with, all).or_say("copy")?;
    expect("written to the copies", write(machine, all, 2)?, PAGES)?;
    enter(&guest, &child)?;
    expect("kept in the child", marked(machine, all, 0)?, PAGES)?;
    enter(&guest, pgd)?;
    child.destroy(with).or_say("destroy the child")?;

    // Now the child is the one that goes first, and the parent takes the frames over.
    let child = pgd.fork(with).or_say("fork again")?;
    child.destroy(with).or_say("destroy the second child")?;
    own(pgd, with, all).or_say("take over")?;
    expect("kept through the second fork", marked(machine, all, 2)?, PAGES)?;
    expect("written as before", write(machine, all, 2)?, PAGES)?;
    Ok(read)
}

/// Makes every page the address space's own, as a page-fault handler would, one by one.
fn own<M: Machine>(
    pgd: &mut Pgd<Pinned>,
    with: &mut Work<'_, '_, M>,
    all: Pages,
) -> Result<(), RangeError> {
    pgd.edit(with, |edit: &mut Edit<'_, '_, '_, M, _>| {
        (0..all.count).try_for_each(|index| edit.make_own(all.at(index)?))
    })
}

fn check_tables<M: Machine>(guest: &Guest<'_, M>, trees: &[Tree]) -> Result<u64, String> {
    let words = usize::try_from(audit_words(guest.p2m().len())).or_say("audit")?;
    let mut memory = vec![0; words];
    let mut first = None;
    let read = audit(guest, trees, &mut memory, &mut |finding| {
        first.get_or_insert(finding);
    });
    match first {
        None => read.or_say("audit"),
        Some(finding) => Err(format!("{finding}")),
    }
}
