//! Contiguous regions on the model: what comes, what a refusal leaves, and what it costs.
#![expect(unsafe_code, reason = "claims frames of a guest that exists only in the model")]

mod common;

use common::odd::Odd;
use common::{ARENA, Guest, gather_on, scatter_on};
use hypercall::memory::Extent;
use hypercall::middleware::{Counting, FailNth, Refusal};
use hypercall::{BatchStorage, Errno, FrameAccess, Frames, PAGE_SIZE, Pfn, Refused};
use swiotlb::region::{ExchangeError, Region, RegionError, Scratch, Stranded, gather};
use swiotlb::{DmaMask, GuestBytes};
use xen_model::{Role, for_each_failure};

fn place(frame: u64) -> GuestBytes {
    GuestBytes { pfn: Pfn::new(ARENA + frame), offset: 0, len_bytes: PAGE_SIZE }
}

fn is_run(guest: &Guest, first: u64, order: u32) -> bool {
    let mfn = |frame| guest.p2m.mfn(Pfn::new(ARENA + frame)).expect("memory").raw();
    mfn(first).is_multiple_of(1 << order)
        && (0..1 << order).all(|step| mfn(first + step) == mfn(first) + step)
}

#[test]
fn order_9_takes_three_traps_and_so_does_order_6() {
    for (order, frames) in [(9, 512), (6, 64), (6, 512), (0, 1)] {
        let guest = Guest::new();
        let counting = Counting::new(&guest.model);
        guest.write(place(3), &[7; PAGE_SIZE]);
        let region = gather_on(&guest, &counting, guest.frames(0, frames), order, DmaMask::ALL)
            .expect("made");
        assert_eq!(counting.counts().hypercalls, 3, "order {order}");
        for run in 0..region.runs() {
            assert!(is_run(&guest, run << order, order), "run {run} of order {order}");
        }
        assert_eq!(guest.read(place(0)), [0; PAGE_SIZE], "zeroes come");
        guest.check();

        let before = counting.counts();
        let back = scatter_on(&guest, &counting, region).expect("scattered");
        assert_eq!((counting.counts() - before).hypercalls, 3);
        assert_eq!((back.start(), back.count()), (Pfn::new(ARENA), frames));
        assert!(order == 0 || !is_run(&guest, 0, order), "scattered again");
        guest.check();
    }
}

#[test]
fn each_2_mib_takes_three_traps_whatever_the_order_of_its_runs() {
    let guest = Guest::new();
    let counting = Counting::new(&guest.model);
    let region = gather_on(&guest, &counting, guest.frames(0, 768), 6, DmaMask::ALL).expect("made");
    assert_eq!((region.runs(), counting.counts().hypercalls), (12, 6));
    guest.check();
}

#[test]
fn a_mask_is_kept() {
    let guest = Guest::new();
    // The guest was built from high memory; what is below this is Xen's.
    let bits = u8::try_from(guest.model.ram_end().raw().ilog2() + 12).expect("small");
    let mask = DmaMask::bits(bits);
    let region = gather_on(&guest, &guest.model, guest.frames(0, 128), 6, mask).expect("made");
    for run in 0..2 {
        let mfn = region.mfn(guest.p2m, run).expect("it has it");
        assert!(mask.reaches(swiotlb::BusAddr::new(mfn, 0), 64 << 12), "{mfn}");
    }
    guest.check();
}

#[test]
fn each_limit_has_its_error() {
    let guest = Guest::new();
    let try_it = |frames, order, mask| {
        let error = gather_on(&guest, &guest.model, frames, order, mask).expect_err("refused");
        assert!(error.made.is_none() && error.stranded.is_none(), "{error}");
        (error.error, error.rest.expect("all frames come back"))
    };
    let frames = guest.frames(0, 512);
    let mask = DmaMask::bits(21); // the first run of memory alone, which Xen has for nobody
    let (error, frames) = try_it(frames, 9, mask);
    assert_eq!(error, ExchangeError::NoRun { order: 9, mask });
    guest.check();
    let (error, frames) = try_it(frames, 19, DmaMask::ALL);
    assert_eq!(error, ExchangeError::OrderLimit { order: 19 });
    let (error, frames) = try_it(frames, 10, DmaMask::ALL);
    assert_eq!(error, ExchangeError::NotWhole { frames: 512, order: 10 });
    assert_eq!(frames.count(), 512);
    let (error, frames) = try_it(guest.frames(512, 1024), 10, DmaMask::ALL);
    assert_eq!(error, ExchangeError::Scratch { frames: 1024 });
    assert_eq!(frames.count(), 1024);
    guest.check();
}

#[test]
fn xen_limits_the_order_of_a_dom_u() {
    let guest = Guest::new();
    let mut storage = BatchStorage::<1024, 1>::new();
    let mut extents = [Extent::default(); 2048];
    let mut scratch = Scratch { batch: &mut storage.batch(), extents: &mut extents };
    let frames = guest.frames(0, 1024);
    let error = gather(&guest.on(&guest.model), frames, 10, DmaMask::ALL, &mut scratch)
        .expect_err("refused");
    assert_eq!(error.error, ExchangeError::OrderLimit { order: 10 });
    assert_eq!(error.rest.map(|rest| rest.count()), Some(1024));
    guest.check();
}

#[test]
fn when_xen_runs_out_in_the_middle_what_was_made_stays_and_the_rest_is_as_it_was() {
    // Xen has room for a few runs only; each gives its frames back, but scattered ones.
    let guest = Guest::with_spare(Role::DomU, 600);
    guest.write(place(1535), &[9; PAGE_SIZE]);
    let before = guest.p2m.mfn(Pfn::new(ARENA + 1535));
    let error = gather_on(&guest, &guest.model, guest.frames(0, 1536), 8, DmaMask::ALL)
        .expect_err("too few");
    assert!(matches!(error.error, ExchangeError::NoRun { order: 8, .. }), "{error}");
    let made = error.made.expect("some were made");
    let rest = error.rest.expect("some were not");
    assert!(made.runs() >= 1 && error.stranded.is_none());
    assert_eq!(made.frames() + rest.count(), 1536);
    assert_eq!(rest.start().raw(), made.start().raw() + made.frames());
    for run in 0..made.runs() {
        assert!(is_run(&guest, run << 8, 8), "run {run}");
    }
    assert_eq!(guest.p2m.mfn(Pfn::new(ARENA + 1535)), before);
    assert_eq!(
        guest.read(place(1535)),
        [9; PAGE_SIZE],
        "what was not exchanged keeps its contents"
    );
    guest.check();
}

/// All frames of an outcome, whatever it is.
fn count(outcome: &Result<Region, RegionError>) -> (u64, u64) {
    let frames = |frames: &Option<Frames>| frames.as_ref().map_or(0, Frames::count);
    match outcome {
        Ok(region) => (region.frames(), 0),
        Err(error) => {
            let made = error.made.as_ref().map_or(0, Region::frames);
            (made + frames(&error.rest), error.stranded.as_ref().map_or(0, Stranded::count))
        }
    }
}

/// What a sweep refuses requests of.
#[derive(Clone, Copy, Debug)]
enum Scenario {
    Gather,
    /// And the way back.
    Scatter,
    /// In two parts of 64 frames.
    GatherInParts,
}

impl Scenario {
    fn run(self, guest: &Guest, machine: &xen_model::Failing<'_>) -> Result<Region, RegionError> {
        let frames = guest.frames(0, 128);
        match self {
            Self::Gather => gather_on(guest, machine, frames, 6, DmaMask::ALL),
            Self::Scatter => {
                let region = gather_on(guest, machine, frames, 6, DmaMask::ALL)?;
                let frames = scatter_on(guest, machine, region)?;
                Ok(Region::adopt(guest.p2m, frames, 0, DmaMask::ALL).expect("single frames"))
            }
            Self::GatherInParts => {
                common::gather_with::<_, 64>(guest, machine, frames, 6, DmaMask::ALL)
            }
        }
    }

    const fn requests(self) -> usize {
        // Take out, flush, exchange, map.
        match self {
            Self::Gather => 4,
            Self::Scatter | Self::GatherInParts => 8,
        }
    }
}

#[test]
fn one_refusal_anywhere_loses_nothing() {
    for scenario in [Scenario::Gather, Scenario::Scatter, Scenario::GatherInParts] {
        // The guest lives outside the scenario, so that its map can be looked at afterwards.
        let guests = std::cell::RefCell::new(Vec::<Guest>::new());
        let sweep = for_each_failure(
            || {
                let mut guest = Guest::new();
                let spare = xen_model::Model::builder().pages(2048).build().expect("small");
                let model = std::mem::replace(&mut guest.model, spare);
                guests.borrow_mut().push(guest);
                model
            },
            |machine| scenario.run(guests.borrow().last().expect("built"), machine),
            |model, failure, outcome| {
                let guests = guests.borrow();
                let whole = count(&outcome);
                if whole != (128, 0) {
                    return Err(format!("{whole:?} frames are there and stranded"));
                }
                if outcome.is_ok() != failure.is_none() {
                    return Err(format!("{failure:?} and {outcome:?}"));
                }
                common::agree(guests.last().expect("built"), model)
            },
        )
        .unwrap_or_else(|error| panic!("{scenario:?}: {error}"));
        assert_eq!(sweep.requests, scenario.requests(), "{scenario:?}");
        assert!(sweep.runs >= 20, "{sweep:?}");
    }
}

#[test]
fn a_frame_that_something_else_maps_is_named_by_its_run() {
    let guest = Guest::new();
    // Another page of the direct mapping shows frame 70, read-only.
    let mfn = guest.p2m.mfn(Pfn::new(ARENA + 70)).expect("memory");
    common::alias(&guest, Pfn::new(ARENA + 1000), mfn);
    let error =
        gather_on(&guest, &guest.model, guest.frames(0, 192), 6, DmaMask::ALL).expect_err("mapped");
    assert_eq!(error.error, ExchangeError::InUse { pfn: Pfn::new(ARENA + 64) });
    let parts = (error.made.map(|made| made.frames()), error.rest.map(|rest| rest.count()));
    assert_eq!(parts, (Some(64), Some(128)));
    let own = guest.p2m.mfn(Pfn::new(ARENA + 1000)).expect("memory");
    common::alias(&guest, Pfn::new(ARENA + 1000), own);
    guest.check();
}

#[test]
fn memory_that_lies_right_is_taken_as_it_is() {
    let guest = Guest::new();
    let frames = guest.frames(0, 128);
    let frames = Region::adopt(guest.p2m, frames, 6, DmaMask::ALL).expect_err("scattered").value;
    let region = gather_on(&guest, &guest.model, frames, 6, DmaMask::ALL).expect("made");
    let frames = region.into_frames();
    let region = Region::adopt(guest.p2m, frames, 6, DmaMask::ALL).expect("it lies right");
    let far = Region::adopt(guest.p2m, region.into_frames(), 6, DmaMask::bits(13));
    let Refused { value: frames, error } = far.expect_err("far");
    assert!(matches!(error, ExchangeError::WrongFrame { .. }), "{error}");
    assert_eq!(frames.count(), 128);
    guest.check();
}

#[test]
fn a_pool_of_64_mib_takes_96_traps() {
    let guest = Guest::of(xen_model::DomainConfig::new(Role::DomU, 20_480), 1 << 14, 16_384);
    let counting = Counting::new(&guest.model);
    // SAFETY: the frames exist only in the model, and are claimed once.
    let frames = unsafe { Frames::claim(Pfn::new(ARENA), 16_384) };
    let region = gather_on(&guest, &counting, frames, 6, DmaMask::ALL).expect("made");
    let places = common::Places::new(256, 2);
    let pool = places.pool();
    pool.grow(guest.p2m, region).expect("there are places");
    let bytes = pool.free() * swiotlb::Segment::SLOT_BYTES;
    assert_eq!((bytes, counting.counts().hypercalls), (64 << 20, 96), "Linux takes about 1,350");
    guest.check();
}

/// A machine that refuses two requests: the second one after the first was refused.
fn twice(
    model: &xen_model::Model,
    first: Refusal,
    then: Refusal,
) -> FailNth<FailNth<&xen_model::Model>> {
    FailNth::new(FailNth::new(model, then), first)
}

#[test]
fn frames_whose_undo_is_refused_too_are_stranded_and_can_be_reinstated() {
    let refusal = |request, done| Refusal { request, errno: Errno::EBUSY, done };
    // The requests are: take out 0, flush 1, exchange 2, map 3. The inner machine does not see what
    // the outer one refuses, but its first elements.
    let cases = [
        ("taking out, then putting back", refusal(0, 7), refusal(2, 0)),
        ("taking out, then putting back in part", refusal(0, 7), refusal(2, 5)),
        ("mapping, twice", refusal(3, 0), refusal(3, 0)),
        ("mapping, twice, in part", refusal(3, 9), refusal(4, 20)),
    ];
    for (what, first, then) in cases {
        let guest = Guest::new();
        let machine = twice(&guest.model, first, then);
        let error =
            gather_on(&guest, &machine, guest.frames(0, 128), 6, DmaMask::ALL).expect_err(what);
        assert!(matches!(error.error, ExchangeError::Refused { .. }), "{what}: {error}");
        assert!(error.made.is_none() && error.rest.is_none(), "{what}: {error}");
        let stranded = error.stranded.expect(what);
        assert_eq!(stranded.count(), 128, "{what}");
        assert!(common::agree(&guest, &guest.model).is_err(), "{what}: they are not all mapped");
        // What a last owner may have left in a frame that Xen gave.
        let pfns = || (ARENA..ARENA + 128).map(Pfn::new);
        for pfn in pfns() {
            guest.model.poke(guest.p2m.mfn(pfn).expect("memory"), 3, 0x5ec2e7);
        }
        let frames = common::reinstate_on(&guest, &guest.model, stranded).expect("mapped again");
        assert_eq!((frames.start(), frames.count()), (Pfn::new(ARENA), 128), "{what}");
        for pfn in pfns() {
            let mut word = [1; 8];
            guest.model.read_bytes(pfn, 24, &mut word).expect("mapped");
            assert_eq!(word, [0; 8], "{what}: {pfn:?}");
        }
        guest.check();
    }
}

#[test]
fn an_m2p_that_disagrees_is_an_error_that_names_it_and_loses_nothing() {
    let guest = Guest::new();
    let machine = Odd { forgets: Some(Pfn::new(ARENA + 5)), ..Odd::new(&guest.model) };
    let error =
        gather_on(&guest, &machine, guest.frames(0, 64), 6, DmaMask::ALL).expect_err("checked");
    let ExchangeError::M2p { pfn, found: None, .. } = error.error else { panic!("{error}") };
    assert_eq!(pfn, Pfn::new(ARENA + 5));
    assert_eq!(error.rest.map(|rest| rest.count()), Some(64));
    guest.check();
}

#[test]
fn frames_that_cannot_be_filled_with_zeroes_are_stranded_with_what_was_left_in_them() {
    let guest = Guest::new();
    let machine = Odd { spares: Some(Pfn::new(ARENA + 5)), ..Odd::new(&guest.model) };
    let error =
        gather_on(&guest, &machine, guest.frames(0, 64), 6, DmaMask::ALL).expect_err("unwritable");
    assert!(error.made.is_none() && error.rest.is_none(), "nobody has them: {error}");
    let stranded = error.stranded.expect("all");
    let again = common::reinstate_on(&guest, &machine, stranded).expect_err("unwritable");
    let stranded = again.value;
    assert_eq!((stranded.start(), stranded.count()), (Pfn::new(ARENA), 64));
    let frames = common::reinstate_on(&guest, &guest.model, stranded).expect("written");
    assert_eq!(guest.read(place(5)), [0; PAGE_SIZE]);
    assert_eq!(frames.count(), 64);
    guest.check();
}
