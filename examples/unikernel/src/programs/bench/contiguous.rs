//! Memory for devices: frames against machine-contiguous runs, and back.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use hypercall::{Cpu, Extent, Frame, Frames, Machine};
use pvmmu::{DirectEntries, FrameSource};
use swiotlb::{Around, DmaMask, Region, Scratch, gather, scatter};

use super::super::OrSay as _;
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
        let (region, cost) = exchange(bench, &mut extents, Way::Gather(frames, order))?;
        bench.row((gathering, "frames"), count, cost, None)?;
        let (region, cost) = exchange(bench, &mut extents, Way::Scatter(region))?;
        bench.row((scattering, "frames"), count, cost, None)?;
        let mut frames = region.into_frames();
        let all: Vec<Frame> = core::iter::from_fn(|| frames.take()).collect();
        all.into_iter().rev().for_each(|frame| FrameSource::give(&mut bench.memory, frame));
    }
    Ok(())
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
    let mut direct = DirectEntries::new(bench.guest.context());
    let (machine, p2m) = (&bench.guest.machine, bench.guest.p2m);
    let mut around = Around { machine, p2m, direct: &mut direct };
    let batch = &mut bench.storage.batch();
    let mut scratch = Scratch { batch, extents };
    let region = match way {
        Way::Gather(frames, order) => {
            gather(&mut around, frames, (order, DmaMask::ALL), &mut scratch).or_say("gather")
        }
        Way::Scatter(region) => {
            let frames = scatter(&mut around, region, &mut scratch).or_say("scatter")?;
            // Single frames are runs of order 0.
            Region::adopt(p2m, frames, 0, DmaMask::ALL).map_err(|_| "a frame is lost".into())
        }
    };
    let region = region?;
    Ok((region, bench.end(start)))
}
