//! `balloon`: most of the guest's memory goes out to Xen and comes back, in bounded steps, while
//! the contents of what stays are verified and every step's accounts are held against Xen's count;
//! in whole blocks, by half, and in single frames. With `grow` the guest grows beyond its size at
//! boot instead. With `--icount` the last lines say what a page
//! costs, beside the least that Xen takes for it.

pub(super) mod floor;
mod grow;
mod kept;
mod way;

use alloc::format;
use alloc::string::String;

use balloon::{Balloon, Wipe};
use hypercall::{AccessError, Cpu, Frame, FrameAccess as _, FrameSource, Machine, Pte};
use p2m::Pfns;
use p2m::audit::Audit;
use p2m::kexec::KexecState;
use x86_64::structures::paging::PageTableIndex;

use super::OrSay;
use crate::pool::Pool;
use crate::program::{Kernel, number};
use crate::report::Verdict;
use kept::Kept;
use way::Ways;

/// Frames that stay in the pool, for tables and the like.
const SPARE: u64 = 64;

/// The pool, as the balloon sees it.
struct Spare<'p>(&'p mut Pool);

impl FrameSource for Spare<'_> {
    fn take(&mut self) -> Option<Frame> {
        if self.0.len() as u64 <= SPARE { None } else { self.0.take() }
    }

    fn give(&mut self, frame: Frame) {
        self.0.give(frame);
    }
}

/// Runs the program.
pub(super) fn run<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Verdict {
    let wipe = match number(kernel.arguments, "wipe", 1)? {
        0 => Wipe::Never,
        _ => Wipe::Always,
    };
    if kernel.arguments.split_whitespace().any(|word| word == "grow") {
        return grow::run(kernel);
    }
    let floors = floor::measure(kernel)?;
    let free = kernel.pool.len() as u64;
    let kept = Kept::spread(kernel)?;
    let words = usize::try_from(Balloon::words_needed(kernel.guest.p2m().len())).or_say("words")?;
    let mut words = alloc::vec![0; words];
    let begun = Balloon::new(&kernel.guest, &mut words, SPARE, wipe);
    let (mut balloon, accounts) = begun.or_say("the balloon")?;
    if !accounts.is_balanced() {
        return Err(format!("before the first step: {accounts}"));
    }
    let mut ways = Ways::new();
    let most = kernel.pool.len() as u64 - SPARE;
    out_and_in(kernel, &mut balloon, &mut ways, "blocks", most, &kept)?;
    out_and_in(kernel, &mut balloon, &mut ways, "half", most / 2, &kept)?;
    let second = Kept::every_second(kernel)?;
    let most = kernel.pool.len() as u64 - SPARE;
    out_and_in(kernel, &mut balloon, &mut ways, "singles", most, &kept)?;
    second.verify(kernel)?;
    second.give_back(kernel);
    kept.give_back(kernel);
    if kernel.pool.len() as u64 != free {
        return Err(format!("{} of {free} frames are free at the end", kernel.pool.len()));
    }
    ways.judge(kernel, &floors)
}

/// `frames` frames go out and come back; what is kept must not change.
fn out_and_in<M: Machine + Cpu>(
    kernel: &mut Kernel<'_, M>,
    balloon: &mut Balloon<'_>,
    ways: &mut Ways,
    name: &str,
    frames: u64,
    kept: &Kept,
) -> Result<(), String> {
    let all = balloon.goal().frames;
    for (way, target, out) in [("out", all - frames, frames), ("in", all, 0)] {
        let mut pool = core::mem::replace(&mut kernel.pool, Pool::empty());
        let name = format!("{name} {way}");
        let gone = ways.go(kernel, balloon, &mut Spare(&mut pool), &name, target);
        kernel.pool = pool;
        gone?;
        kept.verify(kernel)?;
        if out > 0 {
            read_what_is_out(kernel)?;
        }
        audit(kernel, out)?;
    }
    Ok(())
}

/// Reads of a page that is out, which is nowhere: each says so, and nothing faults.
fn read_what_is_out<M: Machine>(kernel: &Kernel<'_, M>) -> Result<(), String> {
    let (machine, p2m) = (kernel.guest.machine(), kernel.guest.p2m());
    let gone = p2m.all().iter().find(|pfn| p2m.mfn(*pfn).is_err()).ok_or("no page is out")?;
    let last = PageTableIndex::new(511);
    let reads = [
        machine.read_entry(gone, last).map(drop),
        machine.read_entries(gone, PageTableIndex::new(5), &mut [Pte::ABSENT; 20]),
        machine.read_entries(gone, last, &mut [Pte::ABSENT]),
        machine.next_present(gone, 0..512).map(drop),
        machine.next_present(gone, 3..4).map(drop),
        machine.read_bytes(gone, 1, &mut [0; 77]),
        machine.read_bytes(gone, 8, &mut [0; 8]),
    ];
    match reads.iter().position(|read| *read != Err(AccessError::Unmapped(gone))) {
        None => Ok(()),
        Some(at) => Err(format!("read {at} of pfn {gone}, which is out, gave {:?}", reads[at])),
    }
}

/// Whether the map says what is true, and a kexec would meet just the pages that are out.
fn audit<M: Machine + Cpu>(kernel: &Kernel<'_, M>, out: u64) -> Result<(), String> {
    let p2m = kernel.guest.p2m();
    let mut findings = [None; 8];
    let mut audit = Audit::begin(&mut findings);
    audit.run(&kernel.guest);
    let report = audit.report();
    if !report.is_clean() {
        return Err(format!("{report}").replace('\n', ";"));
    }
    let ram = [Pfns::new(hypercall::Pfn::new(0), p2m.len())];
    let state = KexecState { p2m, ram: &ram, granted: None, maps: None };
    let ballooned = state.kexec_is_safe().map_or_else(|hazards| hazards.ballooned, |_| 0);
    match ballooned == out {
        true => Ok(()),
        false => Err(format!("{out} pages are out, and kexec says {ballooned}")),
    }
}
