//! What a guest does for its frame map when it is back from a suspend: the rest of a save and a
//! restore is the toolstack's.

use alloc::string::String;

use hypercall::FrameSource as _;
use hypercall::{Cpu, Machine};
use p2m::FrameList;

use super::super::OrSay as _;
use super::super::publish::{builder_list, places};
use super::row::Bench;

/// The row of this file. The pages of the list stay.
pub(super) fn run<M: Machine + Cpu>(bench: &mut Bench<'_, '_, M>) -> Result<(), String> {
    let p2m = bench.kernel.guest.p2m();
    let list = builder_list(bench.kernel)?;
    let mut places = places(p2m.len());
    let top = bench.memory.near.take().ok_or("no frame for the list")?;
    let mut frame_list = FrameList::new(top, &mut places);
    let guest = bench.kernel.guest;
    frame_list.build(&guest, &list, &mut bench.memory).or_say("frame list")?;
    let start = bench.begin();
    frame_list.build(&guest, &list, &mut bench.memory).or_say("frame list again")?;
    let cost = bench.end(start);
    bench.row("frame list written after a restore", "pfns", p2m.len(), cost, None)
}
