//! The balloon: so many pages go out to Xen, and come back.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec;

use balloon::{Balloon, Next, Retarget, StepStorage, Wipe};
use hypercall::{Cpu, Machine};

use super::super::OrSay as _;
use super::super::balloon::floor::{self, Floors};
use super::row::{Bench, Cost};
use crate::pool::Pool;

/// Pages that go and come back, as Linux's in `examples/linux`; a quarter of a GiB at last.
const SIZES: [u64; 9] = [1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536];
/// Frames that a step moves.
const STEP_FRAMES: usize = 512;
/// The same of a step that has no room for an extent of 2 MiB.
const SINGLE_FRAMES: usize = STEP_FRAMES - 1;

/// The rows of this file. What goes out are whole blocks, as long as all frames are there.
pub(super) fn run<M: Machine + Cpu>(bench: &mut Bench<'_, '_, M>) -> Result<(), String> {
    bench.memory.tidy();
    let floors = floors(bench)?;
    let p2m = bench.kernel.guest.p2m();
    let mut words = vec![0; usize::try_from(Balloon::words_needed(p2m.len())).or_say("words")?];
    let guest = bench.kernel.guest;
    let (mut balloon, accounts) =
        Balloon::new(&guest, &mut words, 0, Wipe::Always).or_say("balloon")?;
    let all = accounts.populated;
    let mut blocks = Box::new(StepStorage::<STEP_FRAMES>::new());
    let mut singles = Box::new(StepStorage::<SINGLE_FRAMES>::new());
    let mut longest = [Cost::default(); 3];
    for size in SIZES {
        bench.memory.tidy();
        let out = floors.out() * size;
        let back = Some(floors.back() * size);
        let (cost, out_step) = reach(bench, &mut balloon, &mut blocks, all - size)?;
        bench.row("balloon out", "pages", size, cost, Some(out))?;
        let (cost, in_step) = reach(bench, &mut balloon, &mut blocks, all)?;
        bench.row("balloon in", "pages", size, cost, back)?;
        reach(bench, &mut balloon, &mut blocks, all - size)?;
        let (cost, single_step) = reach(bench, &mut balloon, &mut singles, all)?;
        bench.row("balloon in, single frames", "pages", size, cost, back)?;
        longest = [out_step, in_step, single_step];
    }
    let names = ["balloon out", "balloon in", "balloon in, single frames"];
    for (name, step) in names.into_iter().zip(longest) {
        bench.row(&format!("{name}, longest step"), "steps", 1, step, None)?;
    }
    Ok(())
}

/// What bare requests take for a page, measured on frames that the bench lends the guest's pool.
fn floors<M: Machine + Cpu>(bench: &mut Bench<'_, '_, M>) -> Result<Floors, String> {
    let frames = bench.memory.take_run(floor::PAGES).ok_or("no run of frames")?;
    let mut pool = Pool::of_pages(bench.kernel.guest.p2m().len());
    pool.give_run(frames);
    let empty = core::mem::replace(&mut bench.kernel.pool, pool);
    let floors = floor::measure(bench.kernel);
    let mut pool = core::mem::replace(&mut bench.kernel.pool, empty);
    let frames = pool.take_run(floor::PAGES as u64).ok_or("a frame of the floor's is lost")?;
    bench.memory.give_run(frames);
    floors
}

/// Goes to `target` pages; what that took, and the longest step of it.
fn reach<M: Machine + Cpu, const FRAMES: usize>(
    bench: &mut Bench<'_, '_, M>,
    balloon: &mut Balloon<'_>,
    storage: &mut StepStorage<FRAMES>,
    target: u64,
) -> Result<(Cost, Cost), String> {
    let mut longest = Cost::default();
    let start = bench.begin();
    if balloon.set_target(target) != Retarget::Step {
        return Err(format!("there is nothing to do for {target} pages"));
    }
    loop {
        let step_start = bench.begin();
        let Bench { kernel, memory, .. } = &mut *bench;
        let step = storage.with(|work| balloon.step(&kernel.guest, memory, work));
        let took = bench.end(step_start);
        if took.ticks > longest.ticks {
            longest = took;
        }
        match step.next {
            Next::Again => {}
            Next::Idle if step.accounts.is_balanced() => return Ok((bench.end(start), longest)),
            other => return Err(format!("{other:?}: {}", step.accounts)),
        }
    }
}
