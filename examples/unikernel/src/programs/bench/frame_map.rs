//! The frame map: adopted, looked up in both directions, grown.
#![expect(unsafe_code, reason = "opens the window in a root slot that nobody else uses")]

use alloc::string::String;
use core::hint::black_box;

use hypercall::{Cpu, Frames, GuestVa, Level, Machine, MmuUpdate, Pfn, Pte};
use p2m::window::WindowPlace;
use p2m::{Guest, Pfns, Window, walk};

use super::super::OrSay;
use super::super::publish::builder_list;
use super::bare::Bare;
use super::row::{Bench, Cost};

/// Where the window is: the first address of a root slot that no builder uses.
const WINDOW: u64 = 0xffff_9000_0000_0000;
/// Pfns in a GiB.
const GIB: u64 = 1 << 18;
/// How far the map can grow: 2 TiB.
const CAPACITY: u64 = 2048 * GIB;
/// Pfns in a page of the list.
const PFNS_PER_LEAF: u64 = 512;
/// Look-ups in a row.
const LOOK_UPS: u64 = 10_000;
/// Pfns that are given memory for their words.
const RESERVED: [u64; 4] = [512, 4096, 32_768, GIB];

/// Frames for the window, taken while the bench's frames still follow one another.
pub(super) fn window_frames<M: Machine + Cpu>(bench: &mut Bench<'_, '_, M>) -> Option<Frames> {
    let needed = Window::frames_needed(bench.kernel.guest.p2m().len(), CAPACITY);
    bench.memory.take_near_run(usize::try_from(needed).ok()?)
}

/// The rows of this file. The window stays, and the frames that the map has grown by.
pub(super) fn run<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    bare: &Bare,
    window: Option<Frames>,
) -> Result<(), String> {
    look_up(bench)?;
    let va = GuestVa::new(WINDOW).or_say("the window")?;
    // On the model no program runs on the tables it changes.
    let Some(words) = bench.kernel.platform.words(va) else { return Ok(()) };
    let frames = window.ok_or("no run of frames for the window")?;
    let place = WindowPlace { va, words, capacity: CAPACITY };
    let list = builder_list(bench.kernel)?;
    let start = bench.begin();
    let guest = bench.kernel.guest;
    let mut batch = bench.storage.batch();
    // SAFETY: the builder leaves this slot free, nothing else here uses it, and no address space
    // but the kernel's exists; the builder's list is followed by nothing in its last page.
    let opened = unsafe { Window::open(&guest, list, place, frames, &mut batch) };
    let (p2m, mut window) = opened.or_say("open")?;
    let cost = bench.end(start);
    let tables = Window::frames_needed(p2m.len(), CAPACITY);
    let floor = bare.protect(tables) + bare.link_full(0) + relink(bench, va)?.ticks;
    bench.row("P2M adopt, into its window", "pfns", p2m.len(), cost, Some(floor))?;
    // SAFETY: it is the same map, in the window.
    let guest = unsafe { Guest::new(guest.machine(), &p2m, guest.kernel_root()) };
    for pfns in RESERVED {
        grow(bench, bare, &guest, &mut window, pfns)?;
    }
    Ok(())
}

/// Takes the window out of the root and puts it back: what Xen takes to validate its tables, but
/// for the one that is pinned by itself.
fn relink<M: Machine + Cpu>(bench: &mut Bench<'_, '_, M>, va: GuestVa) -> Result<Cost, String> {
    let guest = bench.kernel.guest;
    let path = walk(&guest, guest.kernel_root(), va).or_say("walk")?;
    let root = path.at(Level::L4).ok_or("no root")?;
    let (slot, pte) = (root.slot, root.pte);
    bench.send(|batch| batch.update(MmuUpdate::set(slot, Pte::ABSENT), pte.raw()))?;
    bench.send(|batch| batch.update(MmuUpdate::set(slot, pte), 0))
}

/// By so many pfns, in GiB that the map has not begun, and memory for all their words.
fn grow<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    bare: &Bare,
    guest: &Guest<'_, impl Machine>,
    window: &mut Window,
    pfns: u64,
) -> Result<(), String> {
    let first = guest.p2m().len().next_multiple_of(GIB);
    let start = bench.begin();
    window.grow(guest, None, first + pfns, &mut bench.storage.batch()).or_say("grow")?;
    let grown = bench.end(start);
    bench.row("P2M growth", "pfns", pfns, grown, Some(bare.link()))?;
    let new = Pfns::new(Pfn::new(first), pfns);
    let start = bench.begin();
    let (frames, batch) = (&mut bench.memory.near, &mut bench.storage.batch());
    window.reserve(guest, None, new, frames, batch).or_say("reserve")?;
    let reserved = bench.end(start);
    // A table for the GiB, full from the start: pages of words, and the page of absent ones.
    let floor = bare.link_full(pfns / PFNS_PER_LEAF);
    bench.row("P2M reserve", "pfns", pfns, reserved, Some(floor))
}

/// Both ways, over all pfns in an order that no cache foresees.
fn look_up<M: Machine + Cpu>(bench: &mut Bench<'_, '_, M>) -> Result<(), String> {
    let guest = bench.kernel.guest;
    let p2m = guest.p2m();
    let pfn_of = |step: u64| Pfn::new(step.wrapping_mul(0x9e37_79b9_7f4a_7c15) % p2m.len());
    let start = bench.begin();
    for step in 0..LOOK_UPS {
        black_box(pfn_of(black_box(step)));
    }
    let nothing = bench.end(start).ticks;
    let start = bench.begin();
    for step in 0..LOOK_UPS {
        black_box(p2m.mfn(pfn_of(black_box(step))).or_say("P2M")?);
    }
    let forth = bench.end(start);
    bench.row("P2M look-up, pfn to mfn", "look-ups", LOOK_UPS, forth, Some(nothing))?;
    let start = bench.begin();
    for step in 0..LOOK_UPS {
        let mfn = p2m.mfn(pfn_of(black_box(step))).or_say("P2M")?;
        black_box(guest.pfn(mfn).or_say("M2P")?);
    }
    let both = bench.end(start);
    let operation = "P2M look-up, pfn to mfn to pfn";
    bench.row(operation, "look-ups", LOOK_UPS, both, Some(nothing))
}
