//! `alias`: what happens when a table's frame is still mapped writable somewhere when its tree is
//! pinned. Xen refuses; the error must name the frame, and the guest must go on as if nothing had
//! been tried.
#![expect(unsafe_code, reason = "makes the alias on purpose, on a page of its own")]

use alloc::format;
use alloc::string::String;

use hypercall::{
    BatchStorage, Call, Cpu, Frame, Level, Machine, Pfn, Pte, PteFlags, Request, VaFlush, VaMapping,
};
use pvmmu::audit::writable_mappings;
use pvmmu::{Context, FrameSource as _, PinFailure, walk};

use super::OrSay;
use super::life::{build, destroy, pages};
use crate::guest::Guest;
use crate::report::Verdict;

/// Runs the program.
pub(super) fn run<M: Machine + Cpu>(guest: &mut Guest<'_, M>) -> Verdict {
    let free = guest.pool.len();
    let (context, pool) = guest.parts();
    let all = pages(4)?;
    let pgd = build(&context, all, pool)?;
    let path = walk(&context, pgd.root(), all.start).or_say("walk")?;
    let table = path.at(Level::L1).ok_or("the tree has no L1 table")?.table;

    // A page of the direct mapping now shows the table's frame too, writable.
    let window = pool.take().ok_or("the pool is empty")?;
    remap(&context, &window, table)?;

    let mut storage = BatchStorage::<16, 4>::new();
    let error = match pgd.pin(&context, &mut storage.batch()) {
        Err(error) => error,
        Ok(_) => return Err(format!("Xen took pfn {table} as a table despite a writable alias")),
    };
    let mut told = format!("{error}");
    // The table's own place in the direct mapping is writable again, the other one stands in the
    // way.
    writable_mappings(&context, &[error.pgd.tree()], table, &mut |va| {
        told.push_str(&format!("\npfn {table} is mapped writable at {va}"));
    })
    .or_say("audit")?;
    let (failure, undo) = (error.failure, error.undo);

    remap(&context, &window, window.pfn())?;
    pool.give(window);
    let mut batch = storage.batch();
    let pgd = error.pgd.pin(&context, &mut batch).or_say("pin without the alias")?;
    let pgd = pgd.unpin(&context, &mut batch).or_say("unpin")?;
    destroy(&context, pgd, pool)?;
    let lost = free - pool.len();
    writeln!(guest.console, "{told}").or_say("console")?;
    match failure {
        _ if undo.is_err() || lost != 0 => Err(format!("{lost} frames lost: {told}")),
        PinFailure::Table { level: Level::L1, pfn, error, .. } if pfn == table => {
            Ok(format!("the pin error names pfn {pfn} and {}", error.errno))
        }
        _ => Err(format!("the error does not name pfn {table}: {told}")),
    }
}

/// Lets the direct mapping of `window` show `pfn`, writable.
fn remap<M: Machine>(context: &Context<'_, M>, window: &Frame, pfn: Pfn) -> Result<(), String> {
    let va = context.machine.direct_map(window.pfn()).or_say("direct mapping")?;
    let mfn = context.p2m.mfn(pfn).or_say("P2M")?;
    let pte = Pte::new(mfn, PteFlags::KERNEL_RW);
    let mapping = VaMapping { va: va.addr(), pte, flush: VaFlush::PageAll };
    let mut calls = [Call::new(Request::VaMapping(mapping))];
    // SAFETY: the page belongs to this program, which does not touch it.
    unsafe { context.machine.issue(&mut calls) }.or_say("alias")?;
    calls[0].result().or_say("alias")
}
