//! Every pair of refusals of what this crate asks Xen for: in the end each frame is accounted for
//! once, free, in a region or in quarantine, and what is not in quarantine is as good as before.
//! A second vCPU has all frames in its TLB, and touches them all the time.
#![cfg(not(loom))]

mod common;

use common::{ARENA, Guest, gather_with, reinstate_on, scatter_on};
use hypercall::middleware::Refusals;
use hypercall::{FrameAccess as _, Frames, Pfn, Quarantine};
use p2m::DirectEntries;
use pv_tests::account::Account;
use pv_tests::pairs;
use swiotlb::direction::Bidirectional;
use swiotlb::region::{Region, RegionError, Stranded};
use swiotlb::{Bounce, Device, Dma, DmaMask, Pool, Segment};
use xen_model::Mode;

/// What an operation leaves, whichever way it went.
#[derive(Default)]
struct Left {
    free: Vec<Frames>,
    regions: Vec<Region>,
    stranded: Vec<Stranded>,
}

impl Left {
    fn refused(&mut self, error: RegionError) {
        let RegionError { made, stranded, rest, .. } = error;
        self.regions.extend(made);
        self.stranded.extend(stranded);
        self.free.extend(rest);
    }
}

/// A guest of which `FRAMES` frames are exchanged.
struct Scene<const FRAMES: u64> {
    guest: Guest,
    left: Left,
}

impl<const FRAMES: u64> Scene<FRAMES> {
    fn new() -> Self {
        let guest = Guest::with_vcpus(2);
        let root = guest.p2m.mfn(guest.root).expect("memory");
        guest.second().initialise(root, None).expect("it is down");
        let scene = Self { guest, left: Left::default() };
        scene.touch();
        scene
    }

    /// The second vCPU uses every page that somebody has. Of a stranded one it may still have the
    /// translation that it was taken out of: nobody knows, so nobody may use it.
    fn touch(&self) {
        let pages = |start: Pfn, count| start.raw()..start.raw() + count;
        let is_stranded = |pfn: &Pfn| {
            let mut stranded = self.left.stranded.iter();
            stranded.any(|run| pages(run.start(), run.count()).contains(&pfn.raw()))
        };
        for pfn in (ARENA..ARENA + FRAMES).map(Pfn::new).filter(|pfn| !is_stranded(pfn)) {
            let va = self.guest.model.direct_map(pfn).expect("an address").raw();
            self.guest.second().load(va, &mut [0; 8], Mode::Kernel).expect("mapped");
            self.guest.second().store(va, &[0x5e; 8], Mode::Kernel).expect("mapped, writable");
        }
    }

    /// Gathers all frames in runs of 2^`order`, with scratch memory for `N` at once.
    fn gather<const N: usize>(&mut self, plan: &Refusals<'_>, order: u32) {
        let machine = pairs::around(&self.guest.model, plan);
        let frames = self.guest.frames(0, FRAMES);
        match gather_with::<_, N>(&self.guest, &machine, frames, order, DmaMask::ALL) {
            Ok(region) => self.left.regions.push(region),
            Err(error) => self.left.refused(error),
        }
        self.touch();
    }

    /// Scatters all that lies together.
    fn scatter(&mut self, plan: &Refusals<'_>) {
        let machine = pairs::around(&self.guest.model, plan);
        for region in std::mem::take(&mut self.left.regions) {
            match scatter_on(&self.guest, &machine, region) {
                Ok(frames) => self.left.free.push(frames),
                Err(error) => self.left.refused(error),
            }
            self.touch();
        }
    }

    /// Maps again what is stranded.
    fn reinstate(&mut self, plan: &Refusals<'_>) {
        let machine = pairs::around(&self.guest.model, plan);
        for stranded in std::mem::take(&mut self.left.stranded) {
            match reinstate_on(&self.guest, &machine, stranded) {
                Ok(frames) => self.left.free.push(frames),
                Err(refused) => self.left.stranded.push(refused.value),
            }
            self.touch();
        }
    }

    /// Takes everything apart and finds every frame once.
    fn end(self) {
        let Self { guest, left } = self;
        let guest = &guest;
        let mut account = Account::of((ARENA..ARENA + FRAMES).map(Pfn::new));
        let mut usable = Vec::new();
        for frames in &left.free {
            account.found_run("free", frames.start(), frames.count());
            usable.extend((0..frames.count()).map(|at| frames.start().raw() + at));
        }
        for region in &left.regions {
            account.found_run("region", region.start(), region.frames());
            usable.extend((0..region.frames()).map(|at| region.start().raw() + at));
            for run in 0..region.runs() {
                let first = region.mfn(guest.p2m, run).expect("memory").raw();
                assert!(first.is_multiple_of(1 << region.order()), "run {run} of {region:?}");
            }
        }
        let mut places = [const { None }; 8];
        let mut quarantine = Quarantine::new(&mut places);
        for stranded in left.stranded {
            quarantine.put(stranded.into());
        }
        account.found_quarantined(&quarantine);
        account.assert_balanced();

        for pfn in usable.into_iter().map(Pfn::new) {
            let mfn = guest.p2m.mfn(pfn).expect("memory");
            assert_eq!(guest.p2m.pfn(&guest.model, mfn), Ok(pfn));
            let (_, pte) = DirectEntries::new(guest.on(&guest.model)).find(pfn).expect("an entry");
            assert!(pte.is_writable() && pte.mfn() == mfn, "pfn {pfn} is {mfn}, mapped as {pte}");
        }
        let stale = guest.model.take_violations();
        assert_eq!(stale, Vec::<String>::new(), "the second vCPU");
        guest.model.audit().expect("every reference has its holder");
    }
}

#[test]
fn frames_that_are_gathered() {
    pairs::run("swiotlb", "gather", |plan| {
        let mut scene = Scene::<16>::new();
        scene.gather::<64>(plan, 2);
        scene.end();
    });
}

#[test]
fn frames_that_are_gathered_in_parts_and_then_scattered_and_reinstated() {
    pairs::run("swiotlb", "gather_in_parts_scatter_reinstate", |plan| {
        let mut scene = Scene::<16>::new();
        scene.gather::<8>(plan, 2);
        scene.scatter(plan);
        scene.reinstate(plan);
        scene.end();
    });
}

#[test]
fn stranded_frames_that_are_reinstated_while_that_is_refused_too() {
    pairs::run("swiotlb", "gather_reinstate_twice", |plan| {
        let mut scene = Scene::<8>::new();
        scene.gather::<64>(plan, 3);
        scene.reinstate(plan);
        scene.reinstate(plan);
        scene.end();
    });
}

/// A mapping through slots, copied both ways, and coherent pages; whatever access fails, no slot
/// stays taken.
fn bounce(guest: &Guest, pool: &Pool<'_>, plan: &Refusals<'_>) {
    let machine = pairs::around(&guest.model, plan);
    let dma = Dma { guest: guest.on(&machine), pool, vcpu: 0 };
    let device = Device { bounce: Bounce::Always, ..Device::new(DmaMask::ALL) };
    let before = plan.refused();
    if let Ok(mut mapping) =
        dma.map::<Bidirectional>(&device, guest.buffer(1 << Segment::ORDER, 0, 5000))
    {
        while let Err(refused) = dma.unmap(mapping) {
            assert!(before < plan.refused(), "{refused}");
            mapping = refused.value;
        }
    } else {
        assert!(before < plan.refused(), "an access has failed");
    }
    let before = plan.refused();
    match dma.coherent(3, DmaMask::ALL) {
        Ok(pages) => {
            dma.free_coherent(pages).expect("they are the pool's");
        }
        Err(error) => assert!(before < plan.refused(), "{error}"),
    }
}

#[test]
fn a_pool_that_grows_and_shrinks_and_whose_memory_is_scattered() {
    pairs::run("swiotlb", "gather_grow_shrink_scatter", |plan| {
        let mut scene = Scene::<{ 1 << Segment::ORDER }>::new();
        scene.gather::<64>(plan, Segment::ORDER);
        let places = common::Places::new(1, 1);
        let pool = places.pool();
        for region in std::mem::take(&mut scene.left.regions) {
            pool.grow(scene.guest.p2m, region).expect("there is a place");
            bounce(&scene.guest, &pool, plan);
        }
        pool.close(&mut |region| scene.left.regions.push(region)).expect("nothing is taken");
        scene.scatter(plan);
        scene.end();
    });
}
