//! `primitives`: every way to change an entry of a live table, on the address space that runs, and
//! what it does to the accessed and dirty bits that the CPU sets.
//!
//! It settles a claim about Xen: that an entry cleared with `MMU_PT_UPDATE_PRESERVE_AD` keeps both
//! bits, so that pages can be unmapped in one batch without losing what the CPU noted last.
#![expect(unsafe_code, reason = "loads roots, writes to pages of its own; no Rust object is there")]

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use hypercall::{
    BatchStorage, Cpu, FrameAccess as _, FrameSource, GuestVa, Machine, Pte, PteFlags,
};
use p2m::{Guest, walk};
use pvmmu::primitive::{Changed, Primitive, Runs, WriteMode, cheapest};
use pvmmu::{MapError, Pages, Pgd, Pinned, TablePool, Tools, load_root};

use super::life::tools;
use super::{OrSay, all_are_back};
use crate::program::Kernel;
use crate::report::Verdict;

/// A page that the CPU has not marked yet.
const FRESH: PteFlags = PteFlags::USER_RW.difference(PteFlags::ACCESSED.union(PteFlags::DIRTY));
const READ_ONLY: PteFlags = FRESH.difference(PteFlags::WRITABLE);
const AD: PteFlags = PteFlags::ACCESSED.union(PteFlags::DIRTY);

const ALL: [Primitive; 5] = [
    Primitive::MmuUpdate,
    Primitive::PreserveAd,
    Primitive::VaMapping,
    Primitive::EmulatedStore,
    Primitive::EmulatedCompareExchange,
];

/// Runs the program.
pub(super) fn run<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Verdict {
    let free = kernel.pool.len();
    copies(kernel)?;
    let guest = kernel.guest.with_machine(kernel.cpu);
    let mut storage = BatchStorage::<64, 16>::new();
    let mut batch = storage.batch();
    let pages = Pages { start: GuestVa::new(1 << 33).or_say("address")?, count: 8 };
    let mut pgd = Pgd::new(&mut Tools::new(guest, &mut kernel.pool)).or_say("new")?;
    pgd.map_pages(&mut Tools::new(guest, &mut kernel.pool), pages, FRESH).or_say("map")?;
    let mut pgd = pgd.pin(&guest, &mut batch).or_say("pin")?;
    // SAFETY: the kernel half is a copy of the running one, and no Rust object lives in a user
    // half.
    unsafe { pgd.load(&guest) }.or_say("load")?;

    let mut lines = Vec::new();
    let tried = one_by_one(&guest, &mut pgd, pages.start, &mut lines);
    let mut pool = TablePool::new([&mut [], &mut [], &mut []]);
    let mut with = tools(&guest, &mut batch, &mut pool, &mut kernel.pool);
    let settled = tried.and_then(|()| {
        let bits = unmap_reading(guest.machine(), &mut pgd, pages, |pgd, told| {
            pgd.edit(&mut with, |edit| edit.unmap_reading_ad(pages, told)).or_say("unmap")
        })?;
        lines.push(bits);
        Ok(())
    });

    // SAFETY: the tree the kernel booted on.
    unsafe { load_root(&guest, guest.kernel_root()) }.or_say("leave")?;
    let pgd = pgd.unpin(&guest, &mut batch).or_say("unpin")?;
    pgd.destroy(&mut Tools::new(guest, &mut kernel.pool))
        .map_err(|error| format!("destroy: {error}"))?;
    for line in &lines {
        writeln!(kernel.console, "{line}").or_say("console")?;
    }
    settled?;
    all_are_back(kernel, free)?;
    Ok("every primitive works; an entry cleared with PRESERVE_AD keeps both bits".into())
}

/// Bytes copied into a frame and out of it, from every offset in a word and of every length around
/// two: what was there beside them stays.
fn copies<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Result<(), String> {
    let frame = FrameSource::take(&mut kernel.pool).ok_or("the pool is empty")?;
    let machine = kernel.guest.machine();
    let pattern: [u8; 24] = core::array::from_fn(|at| u8::try_from(at + 1).unwrap_or(0));
    for (offset, len) in (0..9).flat_map(|offset| (0..=20).map(move |len| (offset, len))) {
        // SAFETY: the frame has just left the pool.
        unsafe { machine.write_bytes(frame.pfn(), 0, &[0; 40]) }.or_say("clear")?;
        // SAFETY: as above.
        unsafe { machine.write_bytes(frame.pfn(), offset, &pattern[..len]) }.or_say("write")?;
        let mut expected = [0; 40];
        expected[offset..offset + len].copy_from_slice(&pattern[..len]);
        let (mut all, mut part) = ([0; 40], [0; 20]);
        machine.read_bytes(frame.pfn(), 0, &mut all).or_say("read")?;
        machine.read_bytes(frame.pfn(), offset, &mut part[..len]).or_say("read")?;
        if all != expected || part[..len] != pattern[..len] {
            return Err(format!("{len} bytes at offset {offset}: {all:?}, {part:?}"));
        }
    }
    FrameSource::give(&mut kernel.pool, frame);
    Ok(())
}

fn entry<M: Machine>(guest: &Guest<'_, M>, pgd: &Pgd<Pinned>, va: GuestVa) -> Pte {
    let leaf = walk(guest, pgd.root(), va).ok().and_then(|walk| walk.leaf());
    leaf.map_or(Pte::ABSENT, |(_, pte)| pte)
}

/// Takes write access away and gives it back, by each primitive, and looks whether it is so.
fn one_by_one<M: Machine + Cpu>(
    guest: &Guest<'_, M>,
    pgd: &mut Pgd<Pinned>,
    va: GuestVa,
    lines: &mut Vec<String>,
) -> Result<(), String> {
    // SAFETY: the page is the program's own.
    let write = |value| unsafe { guest.machine().store(va, value) }.is_ok();
    for by in ALL {
        let keeps = by.is_right(WriteMode::KeepAccessedDirty, Runs::Here);
        let need = if keeps { WriteMode::KeepAccessedDirty } else { WriteMode::Set };
        if !write(1) {
            return Err(format!("{by:?}: the page is not writable before"));
        }
        let frame = entry(guest, pgd, va).mfn();
        let start = guest.machine().ticks();
        // SAFETY: the program runs on the address space.
        let set = unsafe { pgd.set_flags_here(guest, va, READ_ONLY, need, Some(by)) };
        set.or_say("to read-only")?;
        let ticks = guest.machine().ticks().wrapping_sub(start);
        let now = entry(guest, pgd, va);
        if now.is_writable() || now.mfn() != frame || write(2) {
            return Err(format!("{by:?}: the page is still writable: {now}"));
        }
        let kept = now.flags().contains(AD);
        if keeps != kept {
            return Err(format!(
                "{by:?}: accessed and dirty are {}kept",
                if kept { "" } else { "not " }
            ));
        }
        // SAFETY: as above.
        let set = unsafe { pgd.set_flags_here(guest, va, FRESH, need, Some(by)) };
        set.or_say("to writable")?;
        lines.push(format!(
            "{by:?}: {ticks} ticks, A and D {}",
            if kept { "kept" } else { "as set" }
        ));
    }
    let now = entry(guest, pgd, va);
    let stale = WriteMode::IfStill(now.read_only());
    let not = pgd.set_flags(guest, va, READ_ONLY, stale, None).or_say("compare")?;
    if not != Changed::Not(now) || entry(guest, pgd, va) != now {
        return Err(format!("an exchange with another value expected went through: {not:?}"));
    }
    let unfit = pgd.set_flags(
        guest,
        va,
        READ_ONLY,
        WriteMode::KeepAccessedDirty,
        Some(Primitive::EmulatedStore),
    );
    match unfit {
        Err(MapError::Unfit(_)) => {}
        other => return Err(format!("a store was taken to keep A and D: {other:?}")),
    }
    lines.push(format!(
        "the cheapest for one page that runs here: {:?}",
        cheapest(WriteMode::Set, Runs::Here)
    ));
    Ok(())
}

/// Writes to some pages, reads others, leaves the rest, unmaps all, and compares what was told.
fn unmap_reading<M: Machine + Cpu>(
    machine: &M,
    pgd: &mut Pgd<Pinned>,
    pages: Pages,
    unmap: impl FnOnce(&mut Pgd<Pinned>, &mut dyn FnMut(GuestVa, PteFlags)) -> Result<(), String>,
) -> Result<String, String> {
    let mut expected = Vec::new();
    for index in 0..pages.count {
        let va = pages.at(index).or_say("address")?;
        expected.push(match index % 3 {
            // The first page has been written to before.
            0 => {
                // SAFETY: the page is the program's own.
                unsafe { machine.store(va, 1) }.or_say("write")?;
                AD
            }
            1 => {
                machine.load(va).or_say("read")?;
                PteFlags::ACCESSED
            }
            _ => PteFlags::empty(),
        });
    }
    let mut told = Vec::new();
    unmap(pgd, &mut |_, bits| told.push(bits))?;
    if told != expected {
        return Err(format!("the bits of cleared entries are {told:?}, not {expected:?}"));
    }
    if machine.load(pages.start).is_ok() {
        return Err("a page can still be read".into());
    }
    Ok(format!(
        "cleared with PRESERVE_AD, {} entries kept the bits that the CPU had set",
        told.len()
    ))
}
