//! Flushes while the other vCPU runs on the same address space, and changes that need one.
#![expect(unsafe_code, reason = "runs on an address space whose kernel half is the running one")]

use alloc::format;
use alloc::string::{String, ToString as _};

use hypercall::middleware::Timed;
use hypercall::{Cpu, FrameAccess as _, GuestVa, Machine, MmuExtOp, MmuUpdate, PteFlags, VcpuSet};
use pvmmu::flush::{Flush, Reach};
use pvmmu::{Pages, Pgd, Pinned, Presence, Running, Vcpus};

use super::super::OrSay;
use super::super::vcpus::{Scene, THE_SECOND};
use super::live::with_tools;
use super::primitives::{Place, places};
use super::row::{Bench, Cost};
use super::spaces::{Shape, build, destroy, va};
use crate::program::Second;

/// Flushes in a row.
const TIMES: u64 = 100;
/// Pages that are protected.
const PAGES: [u64; 2] = [1, 512];

const BOTH: VcpuSet = VcpuSet::one(0).union(THE_SECOND);
const READ_ONLY: PteFlags = PteFlags::USER_RW.difference(PteFlags::WRITABLE);

/// The rows of this file.
pub(super) fn run<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, Timed<'_, M>>,
    second: &dyn Second<M>,
) -> Result<(), String> {
    second.start()?;
    let guest = bench.kernel.guest;
    let pgd = build(
        &mut bench.memory.tools(guest),
        Shape { tables: 1, pages: 512, flags: PteFlags::USER_RW },
    )?;
    let mut pgd = pgd.pin(&guest, &mut bench.storage.batch()).or_say("pin")?;
    let places = [const { Running::nowhere() }; 2];
    let scene = Scene {
        guest: bench.kernel.guest.with_machine(&()),
        // SAFETY: the bench loads its address space through these places alone.
        vcpus: unsafe { Vcpus::new(&places) },
        second,
        platform: bench.kernel.platform,
        pages: Pages { start: va(0, 0)?, count: 512 },
    };
    // SAFETY: the kernel half is a copy of the running one, and no Rust object lives in a user
    // half; this runs on the first vCPU.
    unsafe { scene.vcpus.load(&bench.kernel.guest, 0, &pgd) }.or_say("load")?;
    scene.enter(&pgd)?;
    let done = beside(bench, &scene, |bench| {
        flushes(bench, scene.pages.start)?;
        protects(bench, &mut pgd)
    });
    // SAFETY: the tree the kernel booted on; this runs on the first vCPU.
    unsafe { scene.vcpus.leave(&bench.kernel.guest, 0) }.or_say("leave")?;
    scene.leave()?;
    second.stop()?;
    let pgd = pgd.unpin(&guest, &mut bench.storage.batch()).or_say("unpin")?;
    destroy(&mut bench.memory.tools(guest), pgd)?;
    done
}

/// Measures while the second vCPU reads a page of the address space again and again.
fn beside<M: Machine + Cpu, B>(
    bench: &mut B,
    scene: &Scene<'_, M>,
    work: impl FnOnce(&mut B) -> Result<(), String>,
) -> Result<(), String> {
    let (mut work, mut done) = (Some(work), Err("the second vCPU did nothing".to_string()));
    let mut faults = 0u64;
    let page = scene.pages.start;
    scene.second.beside(
        &mut |machine| {
            faults += u64::from(machine.load(page).is_err());
            // The emulator lets the other processor run at each such instruction.
            core::hint::spin_loop();
        },
        &mut || {
            if let Some(work) = work.take() {
                done = work(bench);
            }
        },
    );
    match faults {
        0 => done,
        _ => Err(format!("{faults} reads of the second vCPU faulted")),
    }
}

/// Each kind of flush, for each set of vCPUs; beside the bare request for the same.
fn flushes<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, Timed<'_, M>>,
    page: GuestVa,
) -> Result<(), String> {
    let reaches = [
        (Reach::Local, "this vCPU"),
        (Reach::Vcpus(THE_SECOND), "the other vCPU"),
        (Reach::Vcpus(BOTH), "both vCPUs"),
        (Reach::Everywhere, "every vCPU"),
    ];
    for (flush, what) in [(Flush::page(page), "a page"), (Flush::ALL, "everything")] {
        for (reach, whom) in reaches {
            let start = bench.begin();
            for _ in 0..TIMES {
                let mut batch = bench.storage.batch();
                flush.push(&mut batch, reach).or_say("flush")?;
                // SAFETY: a flush changes no entry.
                unsafe { batch.submit(bench.kernel.guest.machine()) }.or_say("flush")?;
            }
            let cost = bench.end(start);
            let mut floor = Cost::default();
            for _ in 0..TIMES {
                floor = floor.and(bench.send(|batch| flush.push(batch, reach))?);
            }
            let operation = format!("flush {what} on {whom}, both loaded");
            bench.row(&operation, "flushes", TIMES, cost, Some(floor.ticks))?;
        }
    }
    Ok(())
}

/// Pages of the address space that both run on, to read-only and back.
fn protects<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, Timed<'_, M>>,
    pgd: &mut Pgd<Pinned>,
) -> Result<(), String> {
    for count in PAGES {
        let pages = Pages { start: va(0, 0)?, count };
        for (flags, access) in [(READ_ONLY, "read-only"), (PteFlags::USER_RW, "writable")] {
            // And back, so that the library finds the entries as they were.
            let back = if flags == READ_ONLY { PteFlags::USER_RW } else { READ_ONLY };
            let floor = bare_protect(bench, pgd, count, flags)?;
            bare_protect(bench, pgd, count, back)?;
            let (_, cost) = with_tools(bench, Presence::Steady, |tools| {
                pgd.protect(tools, pages, flags).or_say("protect")
            })?;
            let operation = format!("protect to {access}, in place, both loaded");
            bench.row(&operation, "pages", count, cost, Some(floor.ticks))?;
        }
    }
    Ok(())
}

/// The same by one bare request.
fn bare_protect<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, Timed<'_, M>>,
    pgd: &Pgd<Pinned>,
    count: u64,
    flags: PteFlags,
) -> Result<Cost, String> {
    let places = places(bench, pgd, 0, count)?;
    let flags = bench.kernel.guest.machine().offered(flags);
    bench.send(|batch| {
        for Place { slot, pte, .. } in places {
            batch.update(MmuUpdate::set(slot, pte.with_flags(flags)), pte.raw())?;
        }
        batch.op(MmuExtOp::tlb_flush_all())
    })
}
