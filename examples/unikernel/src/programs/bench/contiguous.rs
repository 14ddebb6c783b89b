//! Memory for devices: frames against machine-contiguous runs, and back.
#![expect(unsafe_code, reason = "exchanges frames that it has taken by bare requests")]

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use hypercall::memory::{Exchange, Extent, MemoryOp, Reservation};
use hypercall::{
    Cpu, DomId, Frame, FrameAccess as _, FrameSource, Frames, Hypercalls as _, Machine, Mfn, Pte,
    PteFlags,
};
use swiotlb::DmaMask;
use swiotlb::region::{Region, Scratch, gather, scatter};

use super::super::OrSay as _;
use super::early::{FLUSH, all, set_direct};
use super::row::{Bench, Cost};

/// Names, orders of the runs, and how many frames are exchanged in all.
const SHAPES: [(&str, &str, u32, u64); 3] = [
    ("gather one run", "scatter one run", 6, 64),
    ("gather one run", "scatter one run", 9, 512),
    ("gather runs of 64", "scatter runs of 64", 6, 512),
];

/// Measures them, on frames that are a run as long as nothing else has used the memory.
pub(super) fn run<M: Machine + Cpu>(bench: &mut Bench<'_, '_, M>) -> Result<(), String> {
    let mut extents = vec![Extent::default(); 1024];
    for (gathering, scattering, order, count) in SHAPES {
        let frames = usize::try_from(count).or_say("frames")?;
        let frames = bench.memory.take_run(frames).ok_or("no run of frames")?;
        let gathered = bare(bench, &frames, 0, order)?;
        let scattered = bare(bench, &frames, order, 0)?;
        let (region, cost) = exchange(bench, &mut extents, Way::Gather(frames, order))?;
        bench.row(gathering, "frames", count, cost, Some(gathered.ticks))?;
        let (region, cost) = exchange(bench, &mut extents, Way::Scatter(region))?;
        bench.row(scattering, "frames", count, cost, Some(scattered.ticks))?;
        let mut frames = region.into_frames();
        let all: Vec<Frame> = core::iter::from_fn(|| frames.take()).collect();
        all.into_iter().rev().for_each(|frame| FrameSource::give(&mut bench.memory, frame));
    }
    Ok(())
}

/// The same by bare requests, from lists that are ready before the clock starts: the entries of the
/// direct mapping cleared, runs of one order given for runs of another, the entries filled.
fn bare<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    run: &Frames,
    give: u32,
    take: u32,
) -> Result<Cost, String> {
    let p2m = bench.kernel.guest.p2m();
    let firsts = |order: u32| all(run).step_by(1 << order);
    let given = firsts(give).map(|pfn| p2m.mfn(pfn).map(Extent::from_mfn));
    let mut given = given.collect::<Result<Vec<_>, _>>().or_say("P2M")?;
    let mut taken: Vec<Extent> = firsts(take).map(Extent::from_pfn).collect();
    let cleared = set_direct(bench, all(run), |_, _| Pte::ABSENT, FLUSH)?;
    let start = bench.begin();
    let side = |extents, order| Reservation { extents, order, flags: 0, domain: DomId::SELF };
    let lists = Exchange { give: side(&mut given, give), take: side(&mut taken, take) };
    let mut exchange = MemoryOp::Exchange(lists);
    // SAFETY: the frames are this row's own, and mapped nowhere any more.
    unsafe { bench.kernel.guest.machine().memory_op(&mut exchange) }.or_say("exchange")?;
    let exchanged = bench.end(start);
    let came =
        |at: usize| Mfn::new(taken[at >> take].mfn().raw() + (at & ((1 << take) - 1)) as u64);
    for (at, pfn) in all(run).enumerate() {
        // SAFETY: Xen has just exchanged the frames, which are this row's own.
        unsafe { p2m.replace(pfn, came(at)) }.or_say("P2M")?;
    }
    let flags = bench.kernel.guest.machine().offered(PteFlags::KERNEL_RW);
    let filled = set_direct(bench, all(run), |_, at| Pte::new(came(at), flags), &[])?;
    Ok(cleared.and(exchanged).and(filled))
}

/// What is exchanged for what.
enum Way {
    Gather(Frames, u32),
    Scatter(Region),
}

fn exchange<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    extents: &mut [Extent],
    way: Way,
) -> Result<(Region, Cost), String> {
    let start = bench.begin();
    let guest = bench.kernel.guest;
    let batch = &mut bench.storage.batch();
    let mut scratch = Scratch { batch, extents };
    let region = match way {
        Way::Gather(frames, order) => {
            gather(&guest, frames, order, DmaMask::ALL, &mut scratch).or_say("gather")
        }
        Way::Scatter(region) => {
            let frames = scatter(&guest, region, &mut scratch).or_say("scatter")?;
            // Single frames are runs of order 0.
            Region::adopt(guest.p2m(), frames, 0, DmaMask::ALL)
                .map_err(|_| "a frame is lost".into())
        }
    };
    let region = region?;
    Ok((region, bench.end(start)))
}
