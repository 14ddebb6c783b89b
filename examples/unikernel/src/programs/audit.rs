//! `audit`: is everything true that the frame map says, and what the toolstack reads of it?
#![expect(unsafe_code, reason = "asks Xen for a number")]

use alloc::format;
use alloc::string::String;

use hypercall::memory::MemoryOp;
use hypercall::{Cpu, DomId, GuestVa, Hypercalls as _, Machine};
use p2m::audit::{Audit, Progress};
use p2m::kexec::KexecState;
use p2m::{FrameList, Leaves, Toolstack};

use super::OrSay;
use super::publish::{builder_list, places, publish};
use crate::program::Kernel;
use crate::report::Verdict;

/// Words of the map that are looked at in one go.
const STEP_WORDS: u64 = 4096;

/// What is audited beside the map itself.
pub(super) struct Published<'p, L> {
    pub(super) toolstack: &'p Toolstack<'p>,
    /// Where the linear list is, if it is published.
    pub(super) list: Option<GuestVa>,
    /// The frame list, unless the map is too long for one.
    pub(super) frame_list: Option<&'p FrameList<'p>>,
    pub(super) leaves: &'p L,
}

/// Runs the program.
pub(super) fn run<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Verdict {
    let mut places = places(kernel.guest.p2m().len());
    let (toolstack, frame_list) = publish(kernel, &mut places)?;
    let published = Published {
        toolstack: &toolstack,
        list: None,
        frame_list: Some(&frame_list),
        leaves: &builder_list(kernel)?,
    };
    let verdict = audit(kernel, &published)?;
    let p2m = kernel.guest.p2m();
    let ram = [p2m.all()];
    let state = KexecState { p2m, ram: &ram, granted: None, maps: None };
    match state.kexec_is_safe() {
        Ok(_) => writeln!(kernel.console, "kexec is safe"),
        Err(hazards) => writeln!(kernel.console, "{hazards}"),
    }
    .or_say("console")?;
    Ok(verdict)
}

/// Audits the map and what is published of it, and prints the report in both forms.
pub(super) fn audit<M: Machine + Cpu>(
    kernel: &mut Kernel<'_, M>,
    published: &Published<'_, impl Leaves>,
) -> Result<String, String> {
    let (machine, p2m) = (kernel.guest.machine(), kernel.guest.p2m());
    let mut findings = [None; 32];
    let mut audit = Audit::begin(&mut findings);
    let begun = kernel.cpu.ticks();
    let mut steps = 1;
    while audit.step(&kernel.guest, STEP_WORDS) != Progress::Done {
        steps += 1;
    }
    let ticks = kernel.cpu.ticks().wrapping_sub(begun) / p2m.len();
    let root = p2m.mfn(kernel.guest.kernel_root()).or_say("the root")?;
    audit.check_toolstack(published.toolstack, p2m, published.list.map(|list| (list, root)));
    if let Some(frame_list) = published.frame_list {
        audit.check_frame_list(&kernel.guest, frame_list, published.leaves);
    }
    // SAFETY: only reports.
    let frames = unsafe { machine.memory_op(&mut MemoryOp::CurrentReservation(DomId::SELF)) };
    audit.compare_reservation(frames.or_say("current reservation")?);
    let report = audit.report();
    writeln!(kernel.console, "{report}").or_say("console")?;
    writeln!(kernel.console, "{}", report.records()).or_say("console")?;
    match report.is_clean() {
        true => Ok(format!("{} in {steps} steps, {ticks} ticks a pfn", report.census)),
        false => Err(format!("{report}").replace('\n', ";")),
    }
}
