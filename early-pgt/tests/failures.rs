//! Whatever is refused, nothing has happened; and what cannot be is said before anything does.
#![expect(unsafe_code, reason = "claims frames of a guest that exists only in the model")]

use early_pgt::{
    BootMemory, BootRegion, Build, EarlyError, FrameUse, MapPlace, Plan, RegionKind, UseKind,
};
use hypercall::middleware::{FailNth, Refusal};
use hypercall::start_info::{BootInfo, Module};
use hypercall::{BatchStorage, Errno, FrameAccess as _, GuestVa, Pfn};
use p2m::Pfns;
use pv_tests::booting::{Booting, DIRECT_MAP};
use xen_model::Role;

/// Every entry that maps a page in the kernel's mapping, but for what the CPU sets.
fn entries(booting: &Booting) -> Vec<u64> {
    let va = |pfn| booting.place.kernel.raw() + pfn * 4096;
    (0..booting.place.kernel_pages)
        .map(|pfn| booting.model.guest().l1_slot(va(pfn)).map_or(0, |(_, pte)| pte.raw() & !0x60))
        .collect()
}

#[test]
fn each_update_of_a_round_can_be_refused_and_the_round_done_again() {
    let booting = Booting::new(Role::DomU, 0x1_0000);
    let (memory, p2m) = (booting.memory(), booting.p2m());
    let plan = Plan::new(&memory).expect("a plan");
    let before = entries(&booting);
    // Room for some of a round's updates only, so that it takes several requests.
    let mut storage = BatchStorage::<50, 1>::new();
    let mut refused = 0;
    for request in 0.. {
        for done in [0, 1, 49] {
            let machine = FailNth::new(&booting.model, refusal_of(request, done));
            // SAFETY: the frames exist only in the model, and the build before gave up.
            let mut build = unsafe { Build::begin(&memory, plan) };
            let round = build.round(&booting.guest(&machine, &p2m), &mut storage.batch());
            let Err(error) = round else {
                assert!(refused > 6, "{refused} requests were refused");
                booting.check();
                return;
            };
            refused += 1;
            assert_eq!(error.undo, Ok(()), "{error}");
            assert!(
                matches!(error.failure, EarlyError::Protect { .. } | EarlyError::Link { .. }),
                "{error}"
            );
            assert!(error.to_string().contains("ENOMEM"), "{error}");
            assert!(entries(&booting) == before, "after request {request} with {done} done");
            let slot = booting.model.read_entry(booting.root, memory_slot()).expect("the root");
            assert!(!slot.is_present(), "nothing is linked");
            booting.check();
        }
    }
}

fn refusal_of(request: u64, done: usize) -> Refusal {
    Refusal { request, errno: Errno::ENOMEM, done }
}

fn memory_slot() -> x86_64::structures::paging::PageTableIndex {
    hypercall::Level::L4.index_of(GuestVa::new(DIRECT_MAP).expect("the guest's"))
}

#[test]
fn a_second_round_that_is_refused_leaves_the_first() {
    let booting = Booting::new(Role::DomU, 0x8_0000);
    let (memory, p2m) = (booting.memory(), booting.p2m());
    let plan = Plan::new(&memory).expect("a plan");
    assert_eq!(plan.rounds().len(), 2);
    let mut storage = Box::new(BatchStorage::<2000, 1>::new());
    // SAFETY: the frames exist only in the model; nobody else claims any.
    let mut build = unsafe { Build::begin(&memory, plan) };
    let guest = booting.guest(&booting.model, &p2m);
    let first = build.round(&guest, &mut storage.batch()).expect("a round").expect("one of two");
    booting.model.guest().set_direct_map(first.start, first.end);
    let machine = FailNth::new(&booting.model, refusal_of(0, 700));
    let refused = build.round(&booting.guest(&machine, &p2m), &mut storage.batch());
    assert_eq!(refused.map_err(|error| error.undo), Err(Ok(())));
    booting.check();
    // A guest that gives up here has what the first round mapped.
    let mut free = 0;
    let doubtful = build.finish(|frames| {
        free += frames.count();
        assert!(frames.start().raw() + frames.count() <= first.end);
    });
    assert_eq!(doubtful, None, "the round was undone");
    assert_eq!(free + booting.used_pages() + plan.rounds()[0].tables, first.end);
}

#[test]
fn a_round_whose_undo_is_refused_gives_its_frames_to_nobody() {
    let booting = Booting::new(Role::DomU, 0x1_0000);
    let (memory, p2m) = (booting.memory(), booting.p2m());
    let plan = Plan::new(&memory).expect("a plan");
    let round = plan.rounds()[0].used();
    // Two frames have become read-only, and stay so.
    let undo = FailNth::new(&booting.model, refusal_of(1, 0));
    let machine = FailNth::new(&undo, refusal_of(0, 2));
    let mut storage = BatchStorage::<500, 1>::new();
    // SAFETY: the frames exist only in the model; nobody else claims any.
    let mut build = unsafe { Build::begin(&memory, plan) };
    let refused = build.round(&booting.guest(&machine, &p2m), &mut storage.batch());
    let error = refused.expect_err("refused twice");
    assert!(matches!(error.undo, Err(EarlyError::Protect { .. })), "{error}");
    let again = build.round(&booting.guest(&booting.model, &p2m), &mut storage.batch());
    let shut = EarlyError::RoundUnfinished { buffer: round };
    assert_eq!(again.map_err(|error| error.failure), Err(shut));
    let given = |pfn: Pfn| round.start <= pfn && pfn.raw() < round.end();
    let doubtful = build.finish(|frames| {
        let frames = Pfns::new(frames.start(), frames.count());
        assert!(!frames.iter().any(given), "{frames:?} are in doubt and given away");
    });
    let doubtful = doubtful.expect("the round's frames");
    assert_eq!((doubtful.start(), doubtful.count()), (round.start, round.count));
    booting.check();
}

#[test]
fn a_batch_without_room_for_the_flush_of_an_undo_is_refused_before_anything_is_changed() {
    let booting = Booting::new(Role::DomU, 0x2000);
    let (memory, p2m) = (booting.memory(), booting.p2m());
    let plan = Plan::new(&memory).expect("a plan");
    let before = entries(&booting);
    // SAFETY: the frames exist only in the model; nobody else claims any.
    let mut build = unsafe { Build::begin(&memory, plan) };
    let guest = booting.guest(&booting.model, &p2m);
    let mut storage = BatchStorage::<500, 0>::new();
    let refused = build.round(&guest, &mut storage.batch());
    assert_eq!(refused, Err(EarlyError::NoStorage.into()));
    assert!(entries(&booting) == before);
    let mut storage = BatchStorage::<500, 1>::new();
    assert!(build.round(&guest, &mut storage.batch()).is_ok(), "it can be tried again");
    booting.check();
}

/// A good guest's memory, changed into what cannot be.
fn refusal(change: impl Fn(&mut Vec<BootRegion>, &mut Vec<FrameUse>, &mut MapPlace)) -> EarlyError {
    let booting = Booting::new(Role::DomU, 0x2000);
    let (mut regions, mut uses, mut place) = (booting.regions, booting.uses, booting.place);
    change(&mut regions, &mut uses, &mut place);
    let planned = BootMemory::new(&regions, &uses, place).and_then(|memory| Plan::new(&memory));
    planned.expect_err("must be refused")
}

fn ram(start: u64, count: u64) -> BootRegion {
    BootRegion { pfns: Pfns::new(Pfn::new(start), count), kind: RegionKind::Ram }
}

#[test]
fn a_memory_map_that_cannot_be_is_refused() {
    assert_eq!(refusal(|regions, _, _| regions.clear()), EarlyError::NoMemory);
    let overlap = refusal(|regions, _, _| regions.push(ram(0x1fff, 0x1000)));
    assert!(matches!(overlap, EarlyError::RegionOverlap { .. }), "{overlap}");
    let disorder = refusal(|regions, _, _| regions.insert(0, ram(0x3000, 1)));
    assert!(matches!(disorder, EarlyError::RegionOverlap { .. }), "{disorder}");
    let endless = refusal(|regions, _, _| regions.push(ram(u64::MAX - 1, 9)));
    assert!(matches!(endless, EarlyError::RegionSize(_)), "{endless}");
    let empty = refusal(|regions, _, _| regions.push(ram(0x4000, 0)));
    assert!(matches!(empty, EarlyError::RegionSize(_)), "{empty}");
    let huge = refusal(|regions, _, _| regions.push(ram(0x4000, 1 << 36)));
    assert!(matches!(huge, EarlyError::Address(_)), "{huge}");
}

#[test]
fn tables_outside_ram_or_in_something_else_are_refused() {
    let outside = refusal(|_, uses, _| {
        let tables = uses.iter_mut().find(|used| used.kind == UseKind::BuilderTables);
        tables.expect("there are some").pfns.start = Pfn::new(0x1fff);
    });
    assert!(matches!(outside, EarlyError::OutsideRam(_)), "{outside}");
    let overlap = refusal(|_, uses, _| {
        let tables = uses.iter().find(|used| used.kind == UseKind::BuilderTables).copied();
        uses.push(FrameUse { kind: UseKind::Module, ..tables.expect("there are some") });
    });
    assert!(matches!(overlap, EarlyError::UseOverlap { .. }), "{overlap}");
}

#[test]
fn a_builder_that_mapped_too_little_is_refused() {
    let none = refusal(|_, _, place| place.kernel_pages = 0);
    assert_eq!(none, EarlyError::KernelMapping { pages: 0 });
    let full = refusal(|_, uses, place| {
        let pfns = Pfns::new(Pfn::new(0), place.kernel_pages - 1);
        *uses = vec![FrameUse { pfns, kind: UseKind::Reserved }];
    });
    assert_eq!(full, EarlyError::MappedTooLittle { free: 1, needed: 2 });
    assert!(full.to_string().contains("mapped too little"), "{full}");
}

#[test]
fn a_place_that_cannot_be_is_refused() {
    let va = |va| GuestVa::new(va).expect("the guest's");
    let unaligned = refusal(|_, _, place| place.direct_map = va(DIRECT_MAP + 4096));
    assert!(matches!(unaligned, EarlyError::DirectMapPlace(_)), "{unaligned}");
    let user = refusal(|_, _, place| place.direct_map = va(0));
    assert!(matches!(user, EarlyError::DirectMapPlace(_)), "{user}");
    let kernels = refusal(|_, _, place| place.direct_map = va(0xffff_ff80_0000_0000));
    assert!(matches!(kernels, EarlyError::DirectMapPlace(_)), "{kernels}");
    let between = refusal(|_, _, place| place.kernel = va(0xffff_ffff_8010_0000));
    assert!(matches!(between, EarlyError::KernelPlace(_)), "{between}");
}

#[test]
fn a_kernel_may_be_mapped_up_to_the_last_page_of_its_slot_and_no_further() {
    let booting = Booting::new(Role::DomU, 0x2000);
    let slot = GuestVa::new(0xffff_ff00_0000_0000).expect("the guest's");
    let slot_pages = 1 << 27;
    let regions = [ram(0, slot_pages + 1)];
    let of = |kernel_pages| {
        let place = MapPlace { kernel: slot, kernel_pages, ..booting.place };
        BootMemory::new(&regions, &booting.uses, place).map(drop)
    };
    assert_eq!(of(slot_pages), Ok(()));
    let pages = slot_pages + 1;
    assert_eq!(of(pages), Err(EarlyError::KernelMapping { pages }));
}

#[test]
fn a_module_takes_all_the_pages_that_it_lies_in() {
    let booting = Booting::new(Role::DomU, 0x2000);
    let start = booting.place.kernel.checked_add_pages(7).expect("the guest's");
    for (len_bytes, count) in [(1, 1), (4096, 1), (4097, 2), (10 << 12, 10)] {
        let mapped = Module::Mapped { start, len_bytes };
        let unmapped = Module::Unmapped { start: Pfn::new(7), len_bytes };
        for module in [mapped, unmapped] {
            let uses = booting.place.builder_uses(&BootInfo { module, ..booting.boot });
            let module = FrameUse { pfns: Pfns::new(Pfn::new(7), count), kind: UseKind::Module };
            assert_eq!(uses.map(|[.., last]| last), Ok(Some(module)), "{len_bytes} bytes");
        }
    }
}

#[test]
fn start_info_that_cannot_be_is_refused_before_anything_is_changed() {
    let booting = Booting::new(Role::DomU, 0x2000);
    let good = booting.model.guest().start_info().expect("built");
    let mut bad = good.clone();
    bad.magic[0] = b'y';
    assert!(BootInfo::parse(&bad).is_err());
    let mut bad = good.clone();
    bad.nr_pages = 0;
    assert!(BootInfo::parse(&bad).is_err());
    let boot = BootInfo { root: GuestVa::new(DIRECT_MAP).expect("the guest's"), ..booting.boot };
    let refused = booting.place.builder_uses(&boot);
    assert_eq!(refused, Err(EarlyError::NotInKernelMapping(boot.root)));
    booting.check();
}

#[test]
fn a_root_slot_in_use_is_refused() {
    let mut booting = Booting::new(Role::DomU, 0x2000);
    // The slot below Xen's range and the kernel's own are taken; this one is made to look so.
    booting.place.direct_map = GuestVa::new(DIRECT_MAP).expect("the guest's");
    let (memory, p2m) = (booting.memory(), booting.p2m());
    let plan = Plan::new(&memory).expect("a plan");
    let mut storage = BatchStorage::<200, 1>::new();
    // SAFETY: the frames exist only in the model; nobody else claims any.
    let mut build = unsafe { Build::begin(&memory, plan) };
    let guest = booting.guest(&booting.model, &p2m);
    let mapped = build.round(&guest, &mut storage.batch()).expect("a round");
    assert!(mapped.is_some());
    // SAFETY: nothing is done with what this claims a second time.
    let mut again = unsafe { Build::begin(&memory, plan) };
    let refused = again.round(&guest, &mut storage.batch()).map_err(|error| error.failure);
    let Err(EarlyError::RootSlotInUse { va, pte }) = refused else { panic!("{refused:?}") };
    assert_eq!((va, pte.is_present()), (booting.place.direct_map, true));
    booting.check();
}
