//! One page, one root, one call of a foreign trait: each with every failure that there can be. What
//! is refused has not happened.
#![expect(
    unsafe_code,
    clippy::disallowed_types,
    reason = "loads roots of a model's test; frames are pseudo-physical in the foreign trait"
)]

mod common;

use std::cell::RefCell;
use std::sync::atomic::AtomicU64;

use common::{Pool, TestGuest, no_pool, page, tools};
use hypercall::{
    Assist, BatchStorage, Error, Frame, FrameSource as _, Hypercalls as _, PAGE_SHIFT, Pfn, Pte,
    PteFlags, VcpuSet,
};
use p2m::{Guest, P2m, walk};
use pvmmu::mapper::LiveMapper;
use pvmmu::primitive::{Changed, Primitive, Runs, WriteMode};
use pvmmu::{LoadError, MapError, Pages, Pgd, Pinned, Running, Tools, Vcpus, load_root};
use x86_64::structures::paging::mapper::{Mapper, MapperFlush, MapperFlushAll};
use x86_64::structures::paging::{FrameAllocator, Page, PageTableFlags, PhysFrame, Size4KiB};
use x86_64::{PhysAddr, VirtAddr};
use xen_model::{Failing, Failure, Model, Sweep, for_each_failure};

const READ_ONLY: PteFlags = PteFlags::USER_RW.difference(PteFlags::WRITABLE);
/// Pages of the tree.
const ALL: u64 = 4;

type Storage = BatchStorage<8, 2>;

/// A test with a pinned tree, without its machine.
struct Scene {
    list: Vec<AtomicU64>,
    root: Pfn,
    pool: Pool,
    pgd: Pgd<Pinned>,
    /// What the tree maps.
    before: Vec<Pte>,
    free: usize,
}

impl Scene {
    fn new() -> (Model, Self) {
        let test = TestGuest::new();
        test.model.enable_assist(Assist::WritablePageTables).expect("Xen has it");
        let mut pool = test.pool();
        let p2m = test.p2m();
        let guest = common::guest(&test, &test.model, &p2m);
        let mut pgd = Pgd::with_user_root(&mut Tools::new(guest, &mut pool)).expect("two roots");
        let pages = Pages { start: page(0), count: ALL };
        pgd.map_pages(&mut Tools::new(guest, &mut pool), pages, PteFlags::USER_RW).expect("mapped");
        let pgd = pgd.pin(&guest, &mut Storage::new().batch()).expect("pinned");
        let before = mapped(&guest, &pgd);
        let TestGuest { model, list, root } = test;
        let free = pool.len();
        (model, Self { list, root, pool, pgd, before, free })
    }
}

/// Every entry of the pages around those that the tree maps.
fn mapped<M: hypercall::Machine>(guest: &Guest<'_, M>, pgd: &Pgd<Pinned>) -> Vec<Pte> {
    let leaf = |at| {
        let walk = walk(guest, pgd.root(), page(at)).expect("readable");
        walk.leaf().map_or(Pte::ABSENT, |(_, pte)| pte)
    };
    // And one far away.
    (0..2 * ALL).chain([5000]).map(leaf).collect()
}

/// Does `work` with every failure; what is refused leaves the tree and the free frames as they
/// were.
fn sweep(
    work: impl Fn(&Guest<'_, Failing<'_>>, &mut Pgd<Pinned>, &mut Pool) -> Result<(), String>,
) -> Sweep {
    let made = RefCell::new(None);
    let build = || {
        let (model, scene) = Scene::new();
        made.replace(Some(scene));
        model
    };
    let scenario = |machine: &Failing<'_>| -> (Scene, Result<(), String>) {
        let mut scene = made.take().expect("made before");
        let Scene { list, root, pool, pgd, .. } = &mut scene;
        // SAFETY: the test exists only in the model.
        let p2m = unsafe { P2m::adopt(list) }.expect("pages");
        // SAFETY: as above.
        let guest = unsafe { Guest::new(machine, &p2m, *root) };
        let done = work(&guest, pgd, pool);
        (scene, done)
    };
    for_each_failure(build, scenario, |model, failure, (scene, done)| {
        check(model, failure, scene, done)
    })
    .unwrap_or_else(|error| panic!("{error}"))
}

/// What is refused has left the tree and the free frames as they were, and the tree can be ended.
fn check(
    model: &Model,
    failure: Option<&Failure>,
    scene: Scene,
    done: Result<(), String>,
) -> Result<(), String> {
    let Scene { list, root, mut pool, pgd, before, free } = scene;
    // SAFETY: the test exists only in the model.
    let p2m = unsafe { P2m::adopt(&list) }.expect("pages");
    // SAFETY: as above.
    let guest = unsafe { Guest::new(model, &p2m, root) };
    if failure.is_none() && done.is_err() {
        return Err(format!("nothing was refused, and yet: {done:?}"));
    }
    if done.is_err() {
        if mapped(&guest, &pgd) != before {
            return Err(format!("something has changed: {done:?}"));
        }
        if pool.len() != free {
            return Err(format!("{} frames, not {free}: {done:?}", pool.len()));
        }
    }
    // SAFETY: the model's test has no Rust objects.
    unsafe { load_root(&guest, root) }.map_err(|error| error.to_string())?;
    let loose = pgd.unpin(&guest, &mut Storage::new().batch());
    common::destroy(&guest, loose.map_err(|error| error.to_string())?, &mut pool);
    Ok(())
}

/// The same on the machine that refuses nothing.
fn plain<'a>(guest: &Guest<'a, Failing<'a>>) -> Guest<'a, Model> {
    guest.with_machine(*guest.machine().inner())
}

fn say<T>(result: Result<T, impl core::fmt::Display>) -> Result<(), String> {
    result.map(drop).map_err(|error| error.to_string())
}

#[test]
fn mapping_one_frame_gives_it_back_whatever_is_refused() {
    for at in [ALL, 5000] {
        let sweep = sweep(|guest, pgd, pool| {
            let frame = pool.take().expect("a frame");
            let pfn = frame.pfn();
            let (mut storage, mut tables) = (Storage::new(), no_pool());
            let mut batch = storage.batch();
            let mut with = tools(guest, &mut batch, &mut tables, pool);
            pgd.map(&mut with, page(at), PteFlags::USER_RW, frame).map_err(|failed| {
                let reason = failed.to_string();
                let frame = failed.value.expect("it is not mapped");
                assert_eq!(frame.pfn(), pfn, "the same frame");
                pool.give(frame);
                reason
            })
        });
        assert!(sweep.runs >= 6, "{sweep:?}");
    }
}

/// With each primitive that serves each need.
#[test]
fn flags_of_one_page_are_as_before_whatever_is_refused() {
    let all = [
        Primitive::MmuUpdate,
        Primitive::PreserveAd,
        Primitive::VaMapping,
        Primitive::EmulatedStore,
        Primitive::EmulatedCompareExchange,
    ];
    for by in all {
        for keeps in [false, true] {
            let need = if keeps { WriteMode::KeepAccessedDirty } else { WriteMode::Set };
            if !by.is_right(need, Runs::Here) {
                continue;
            }
            let sweep = sweep(|guest, pgd, _| {
                // SAFETY: the model's test has no Rust objects. Not what is swept here.
                unsafe { pgd.load(&plain(guest)) }.expect("loaded");
                // SAFETY: the address space has just been loaded.
                let changed =
                    unsafe { pgd.set_flags_here(guest, page(1), READ_ONLY, need, Some(by)) };
                assert!(!matches!(changed, Ok(Changed::Not(_))), "{changed:?}");
                assert!(!matches!(changed, Err(MapError::NotUndone { .. })), "{changed:?}");
                say(changed)
            });
            assert!(sweep.runs >= 2, "{by:?}: {sweep:?}");
        }
    }
}

/// Xen takes both roots, none, or the kernel's alone: then that is taken back.
#[test]
fn a_load_that_is_refused_half_way_leaves_the_vcpu_where_it_was() {
    let halves = RefCell::new(0);
    let sweep = sweep(|guest, pgd, pool| {
        let plain = plain(guest);
        let machine = plain.machine().guest();
        let mut other = Pgd::with_user_root(&mut Tools::new(plain, pool)).expect("two roots");
        let pages = Pages::one(page(0));
        other.map_pages(&mut Tools::new(plain, pool), pages, PteFlags::USER_RW).expect("mapped");
        let other = other.pin(&plain, &mut Storage::new().batch()).expect("pinned");
        let places = [const { Running::nowhere() }; 1];
        // SAFETY: every load of the test goes through these places.
        let vcpus = unsafe { Vcpus::new(&places) };
        // SAFETY: the model's test has no Rust objects.
        unsafe { vcpus.load(&plain, 0, &other) }.expect("loaded");
        let before = (machine.kernel_root(), machine.user_root());
        // SAFETY: as above.
        let loaded = unsafe { vcpus.load(guest, 0, pgd) };
        let now = (machine.kernel_root(), machine.user_root());
        match loaded {
            Ok(()) => assert_eq!(vcpus.on(pgd), VcpuSet::one(0)),
            Err(LoadError::Refused { error: Error { done: 0, .. }, .. }) => {
                *halves.borrow_mut() += u64::from(guest.machine().seen() > 1);
                assert_eq!((now, vcpus.on(pgd)), (before, VcpuSet::NONE));
                assert_eq!(vcpus.on(&other), VcpuSet::one(0));
            }
            Err(error) => panic!("{error}"),
        }
        // SAFETY: as above.
        unsafe { vcpus.leave(&plain, 0) }.expect("left");
        let loose = other.unpin(&plain, &mut Storage::new().batch()).expect("unpinned");
        common::destroy(&plain, loose, pool);
        say(loaded)
    });
    assert!(sweep.runs >= 4 && halves.take() >= 2, "{sweep:?}");
}

/// The frame allocator of the foreign trait.
struct Allocator<'p>(&'p mut Pool, Vec<PhysFrame>);

// SAFETY: the frames are free, and go to the mapper.
unsafe impl FrameAllocator<Size4KiB> for Allocator<'_> {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        let frame = phys(self.0.take()?.pfn());
        self.1.push(frame);
        Some(frame)
    }
}

fn phys(pfn: Pfn) -> PhysFrame {
    PhysFrame::containing_address(PhysAddr::new(pfn.raw() << PAGE_SHIFT))
}

fn foreign(at: u64) -> Page {
    Page::containing_address(VirtAddr::new(page(at).raw()))
}

const RW: PageTableFlags =
    PageTableFlags::PRESENT.union(PageTableFlags::WRITABLE).union(PageTableFlags::USER_ACCESSIBLE);
const RO: PageTableFlags = RW.difference(PageTableFlags::WRITABLE);

type ForeignMapper<'a, 'b, 'm> = LiveMapper<'a, 'b, Failing<'m>>;
/// A call of the trait; whether it did what it was asked for.
type Call = fn(&mut ForeignMapper<'_, '_, '_>, &mut Allocator<'_>) -> bool;

fn map_to(mapper: &mut ForeignMapper<'_, '_, '_>, frames: &mut Allocator<'_>) -> bool {
    let frame = phys(frames.0.take().expect("a frame").pfn());
    // SAFETY: the frame is the test's own.
    let mapped = unsafe { mapper.map_to(foreign(ALL), frame, RW, frames) };
    if mapped.is_err() {
        frames.1.push(frame);
    }
    mapped.is_ok_and(|flush| {
        flush.ignore();
        true
    })
}

fn unmap(mapper: &mut ForeignMapper<'_, '_, '_>, frames: &mut Allocator<'_>) -> bool {
    let unmapped = Mapper::<Size4KiB>::unmap(mapper, foreign(2));
    unmapped.is_ok_and(|(frame, flush)| {
        flush.ignore();
        frames.1.push(frame);
        true
    })
}

fn update_flags(mapper: &mut ForeignMapper<'_, '_, '_>, _: &mut Allocator<'_>) -> bool {
    // SAFETY: the page is the test's own.
    let updated = unsafe { mapper.update_flags(foreign(1), RO) };
    updated.map(MapperFlush::ignore).is_ok()
}

fn set_flags_p2_entry(mapper: &mut ForeignMapper<'_, '_, '_>, _: &mut Allocator<'_>) -> bool {
    // SAFETY: the table is the test's own.
    unsafe { mapper.set_flags_p2_entry(foreign(1), RO) }.map(MapperFlushAll::ignore).is_ok()
}

fn set_flags_p4_entry(mapper: &mut ForeignMapper<'_, '_, '_>, _: &mut Allocator<'_>) -> bool {
    // SAFETY: as above.
    unsafe { mapper.set_flags_p4_entry(foreign(1), RO) }.map(MapperFlushAll::ignore).is_ok()
}

/// Every call of the trait that asks Xen for something. What the trait cannot say is kept beside
/// it.
#[test]
fn a_foreign_mapper_changes_nothing_whatever_is_refused() {
    let calls: [Call; 5] = [map_to, unmap, update_flags, set_flags_p2_entry, set_flags_p4_entry];
    for call in calls {
        let sweep = sweep(|guest, pgd, pool| {
            let mut storage = Storage::new();
            let mut batch = storage.batch();
            let mut frames = Allocator(pool, Vec::new());
            let mut mapper = LiveMapper::new(*guest, pgd, &mut batch);
            let done = call(&mut mapper, &mut frames);
            let refusal = mapper.refusal();
            assert_eq!(done, refusal.is_none(), "{refusal:?}");
            let Allocator(pool, back) = frames;
            for frame in back {
                let pfn = Pfn::new(frame.start_address().as_u64() >> PAGE_SHIFT);
                // SAFETY: it was not mapped, or is no more.
                pool.give(unsafe { Frame::claim(pfn) });
            }
            refusal.map_or(Ok(()), |error| Err(error.to_string()))
        });
        assert!(sweep.runs >= 4, "{sweep:?}");
    }
}
