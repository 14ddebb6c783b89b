//! `alias`: what happens when a table's frame is still mapped writable somewhere when its tree is
//! pinned. Xen refuses; the error must name the frame, and the guest must go on as if nothing had
//! been tried.
#![expect(unsafe_code, reason = "makes the alias on purpose, on a page of its own")]

use alloc::format;
use alloc::string::String;

use hypercall::{
    BatchStorage, Call, Cpu, Frame, FrameAccess as _, FrameSource as _, Level, Machine, Pfn, Pte,
    PteFlags, Request, VaFlush, VaMapping,
};
use p2m::{Guest, walk};
use pvmmu::PinFailure;
use pvmmu::obstacles::Obstacle;

use super::OrSay;
use super::life::{build, destroy, pages};
use crate::program::Kernel;
use crate::report::Verdict;

/// Runs the program.
pub(super) fn run<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Verdict {
    let free = kernel.pool.len();
    let (guest, pool) = (kernel.guest, &mut kernel.pool);
    let all = pages(4)?;
    let pgd = build(&guest, all, pool)?;
    let path = walk(&guest, pgd.root(), all.start).or_say("walk")?;
    let table = path.at(Level::L1).ok_or("the tree has no L1 table")?.table;

    // A page of the direct mapping now shows the table's frame too, writable.
    let window = pool.take().ok_or("the pool is empty")?;
    remap(&guest, &window, table)?;

    let mut storage = BatchStorage::<16, 4>::new();
    let error = match pgd.pin(&guest, &mut storage.batch()) {
        Err(error) => error,
        Ok(_) => return Err(format!("Xen took pfn {table} as a table despite a writable alias")),
    };
    // A release Xen gives an errno; the rest is read from the tables.
    let told = format!("{error}\n{}", error.why());
    let (failure, undo) = (error.failure, error.undo);
    let window_va = guest.machine().direct_map(window.pfn()).or_say("direct mapping")?;
    let is_named = match error.obstacles.first().next() {
        Some(Obstacle::Writable(place)) => place.va == window_va,
        _ => false,
    };

    remap(&guest, &window, window.pfn())?;
    pool.give(window);
    let mut batch = storage.batch();
    let pgd = error.pgd.pin(&guest, &mut batch).or_say("pin without the alias")?;
    let pgd = pgd.unpin(&guest, &mut batch).or_say("unpin")?;
    destroy(&guest, pgd, pool)?;
    let lost = free - pool.len();
    writeln!(kernel.console, "{told}").or_say("console")?;
    match failure {
        _ if undo.is_err() || lost != 0 => Err(format!("{lost} frames lost: {told}")),
        _ if !is_named => {
            Err(format!("the error does not name the mapping at {window_va}: {told}"))
        }
        PinFailure::Table { level: Level::L1, pfn, error, .. } if pfn == table => Ok(format!(
            "the pin error names pfn {pfn}, {} and its mapping at {window_va}",
            error.errno
        )),
        _ => Err(format!("the error does not name pfn {table}: {told}")),
    }
}

/// Lets the direct mapping of `window` show `pfn`, writable.
fn remap<M: Machine>(guest: &Guest<'_, M>, window: &Frame, pfn: Pfn) -> Result<(), String> {
    let va = guest.machine().direct_map(window.pfn()).or_say("direct mapping")?;
    let mfn = guest.p2m().mfn(pfn).or_say("P2M")?;
    let pte = Pte::new(mfn, guest.machine().offered(PteFlags::KERNEL_RW));
    let mapping = VaMapping { va: va.addr(), pte, flush: VaFlush::PageAll };
    let mut calls = [Call::new(Request::VaMapping(mapping))];
    // SAFETY: the page belongs to this program, which does not touch it.
    unsafe { guest.machine().issue(&mut calls) }.or_say("alias")?;
    calls[0].result().or_say("alias")
}
