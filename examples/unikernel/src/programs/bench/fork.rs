//! Whole address spaces again: a second one over the same pages, its end, and running on one.
#![expect(unsafe_code, reason = "runs on address spaces whose kernel half is the running one")]

use alloc::string::String;

use hypercall::{Cpu, Machine, MmuExtOp, PteFlags};
use pvmmu::{Pgd, Pinned, Shares, load_root};

use super::super::OrSay;
use super::bare::Bare;
use super::row::{Bench, Cost};
use super::spaces::{Shape, build, tools};

/// Sizes of the parents, in full L1 tables.
const TABLES: [u64; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// The rows of this file.
pub(super) fn run<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    bare: &Bare,
) -> Result<(), String> {
    for tables in TABLES {
        fork(bench, bare, tables)?;
    }
    load(bench)
}

/// A second address space over all pages, and its end; then the same for a parent that is
/// write-protected already.
fn fork<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    bare: &Bare,
    tables: u64,
) -> Result<(), String> {
    let pages = tables * 512;
    let guest = bench.kernel.guest;
    let parent = build(
        &mut bench.memory.tools(guest),
        Shape { tables, pages: 512, flags: PteFlags::USER_RW },
    )?;
    let mut parent = parent.pin(&guest, &mut bench.storage.batch()).or_say("pin")?;
    let mut counts = alloc::vec![0u16; usize::try_from(bench.kernel.boot.pages).or_say("pages")?];
    let mut shares = Shares::new(&mut counts);
    let child = bare.take_tables(tables);
    for (operation, ending, floor) in [
        ("fork", "destroy the child", child + bare.read_only_whole(pages)),
        ("fork again", "destroy the child again", child),
    ] {
        let (forked, cost) = fork_once(bench, &mut parent, &mut shares)?;
        bench.row(operation, "pages", pages, cost, Some(floor))?;
        let ended = destroy(bench, forked, &mut shares)?;
        let gone = bare.drop_tables(tables);
        bench.row(ending, "pages", pages, ended, Some(gone))?;
        let both = if operation == "fork" { "fork and destroy" } else { "fork and destroy again" };
        bench.row(both, "pages", pages, cost.and(ended), Some(floor + gone))?;
    }
    let cost = destroy(bench, parent, &mut shares)?;
    bench.row("destroy the parent", "pages", pages, cost, Some(bare.drop_tables(tables)))
}

fn fork_once<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    parent: &mut Pgd<Pinned>,
    shares: &mut Shares<'_>,
) -> Result<(Pgd<Pinned>, Cost), String> {
    let start = bench.begin();
    let tools = tools(bench.kernel.guest, bench.storage.batch(), &mut bench.memory);
    let child = parent.fork(&mut tools.with_shares(shares));
    let child = child.or_say("fork")?;
    Ok((child, bench.end(start)))
}

fn destroy<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    pgd: Pgd<Pinned>,
    shares: &mut Shares<'_>,
) -> Result<Cost, String> {
    let start = bench.begin();
    let tools = tools(bench.kernel.guest, bench.storage.batch(), &mut bench.memory);
    pgd.destroy(&mut tools.with_shares(shares)).or_say("destroy")?;
    Ok(bench.end(start))
}

/// Running on an address space, and on the kernel's own root again.
fn load<M: Machine + Cpu>(bench: &mut Bench<'_, '_, M>) -> Result<(), String> {
    let guest = bench.kernel.guest;
    let pgd = build(
        &mut bench.memory.tools(guest),
        Shape { tables: 1, pages: 1, flags: PteFlags::USER_RW },
    )?;
    let pgd = pgd.pin(&guest, &mut bench.storage.batch()).or_say("pin")?;
    let root = guest.p2m().mfn(guest.kernel_root()).or_say("P2M")?;
    let floor = bench.send(|batch| batch.op(MmuExtOp::new_baseptr(root)))?;
    let start = bench.begin();
    // SAFETY: the kernel half is a copy of the running one, and no Rust object lives in a user
    // half.
    unsafe { pgd.load(&guest) }.or_say("load")?;
    let cost = bench.end(start);
    // SAFETY: the tree the kernel booted on.
    unsafe { load_root(&guest, guest.kernel_root()) }.or_say("leave")?;
    bench.row("load", "roots", 1, cost, Some(floor.ticks))?;
    let pgd = pgd.unpin(&guest, &mut bench.storage.batch()).or_say("unpin")?;
    super::spaces::destroy(&mut bench.memory.tools(guest), pgd)
}
