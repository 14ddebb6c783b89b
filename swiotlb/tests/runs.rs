//! The runs of a region: that there is at least one, and that those it has are all that anything
//! takes from it.
#![expect(unsafe_code, reason = "claims frames of a guest that exists only in the model")]

mod common;

use common::{ARENA, Guest, Places, gather_on, scatter_on};
use hypercall::middleware::Counting;
use hypercall::{Frames, Pfn};
use swiotlb::DmaMask;
use swiotlb::region::{ExchangeError, Region};

/// The first `runs` runs of 64 frames.
fn region(guest: &Guest, runs: u64) -> Region {
    let frames = guest.frames(0, runs * 64);
    gather_on(guest, &guest.model, frames, 6, DmaMask::ALL).expect("made")
}

#[test]
fn a_region_is_not_cut_so_that_a_part_has_no_run() {
    let guest = Guest::new();
    let whole = region(&guest, 3);
    let whole = whole.split(0).expect_err("nothing before");
    let whole = whole.split(3).expect_err("nothing behind");
    let whole = whole.split(4).expect_err("nothing behind");
    let whole = whole.split(u64::MAX).expect_err("nothing behind");
    assert_eq!((whole.start(), whole.runs()), (Pfn::new(ARENA), 3), "it comes back whole");
    let (head, rest) = whole.split(1).expect("there is one on either side");
    assert_eq!((head.start(), head.frames()), (Pfn::new(ARENA), 64));
    assert_eq!((rest.start(), rest.frames()), (Pfn::new(ARENA + 64), 128));
    let one = head.split(0).expect_err("nothing before").split(1).expect_err("nothing behind");
    assert_eq!(one.runs(), 1);
    guest.check();
}

#[test]
fn no_frames_make_no_region() {
    let guest = Guest::new();
    let counting = Counting::new(&guest.model);
    let mut mine = region(&guest, 1).into_frames(); // they lie right
    for order in [0, 6, 18, 64, u32::MAX] {
        let (none, rest) = mine.split(0).expect("nothing, and the rest");
        let none = Region::adopt(guest.p2m, none, order, DmaMask::ALL).expect_err("of no frames");
        assert_eq!(none.value.count(), 0, "order {order}");
        mine = rest;
    }
    for order in [0, 6, 18] {
        let (none, rest) = mine.split(0).expect("nothing, and the rest");
        let refused = gather_on(&guest, &counting, none, order, DmaMask::ALL);
        let refused = refused.expect_err("of no frames");
        assert_eq!(refused.error, ExchangeError::NoFrames, "order {order}");
        assert_eq!((refused.made, refused.stranded, refused.rest), (None, None, None));
        mine = rest;
    }
    assert_eq!(counting.counts().hypercalls, 0, "Xen was not asked");
    let said = ExchangeError::NoFrames.to_string();
    assert!(said.contains("no frames") && said.contains("at least one run"), "{said}");
    assert_eq!(mine.count(), 64);
    guest.check();
}

#[test]
fn a_pool_takes_in_the_frames_of_the_region_and_no_others() {
    for runs in 1..=3 {
        let (guest, places) = (Guest::new(), Places::new(4, 1));
        let pool = places.pool();
        let (ours, theirs) = match region(&guest, 3).split(runs) {
            Ok((ours, theirs)) => (ours, Some(theirs)),
            Err(all) => (all, None),
        };
        pool.grow(guest.p2m, ours).expect("there are places");
        let mut taken = [false; 3 * 64];
        let mut take = |region: Region| {
            for pfn in region.start().raw()..region.start().raw() + region.frames() {
                let seen = &mut taken[usize::try_from(pfn - ARENA).expect("small")];
                assert!(!*seen, "two tokens for pfn {pfn:#x}");
                *seen = true;
            }
        };
        theirs.into_iter().for_each(&mut take);
        let mut segments = 0;
        while let Some(region) = pool.shrink() {
            take(region);
            segments += 1;
        }
        assert_eq!((segments, taken), (runs, [true; 3 * 64]), "{runs} runs");
        guest.check();
    }
}

#[test]
fn there_is_no_run_behind_the_last() {
    let guest = Guest::new();
    let region = region(&guest, 2);
    assert_eq!(region.mfn(guest.p2m, 1), Ok(guest.p2m.mfn(Pfn::new(ARENA + 64)).expect("memory")));
    // In frames, 2^58 and 2^60 wrap to those of run 0, and the last has no pfn.
    for run in [2, 3, 1 << 58, 1 << 60, u64::MAX] {
        assert_eq!(region.mfn(guest.p2m, run), Err(ExchangeError::NoSuchRun { run, runs: 2 }));
    }
    let single = region.with_order(0);
    assert!(single.mfn(guest.p2m, 127).is_ok());
    for run in [128, u64::MAX] {
        assert_eq!(single.mfn(guest.p2m, run), Err(ExchangeError::NoSuchRun { run, runs: 128 }));
    }
    guest.check();
}

#[test]
fn a_mask_that_reaches_no_run_at_all_is_refused_before_anything_changes() {
    let guest = Guest::new();
    let counting = Counting::new(&guest.model);
    let before = |pfn| guest.p2m.mfn(Pfn::new(pfn)).expect("memory");
    let first = before(ARENA);
    let mut frames = guest.frames(0, 64);
    for (order, bits) in [(0, 0), (6, 0), (0, 1), (0, 11), (6, 17)] {
        let (order, mask) = (order, DmaMask::bits(bits));
        let refused = gather_on(&guest, &counting, frames, order, mask).expect_err("too narrow");
        assert_eq!(refused.error, ExchangeError::NoRun { order, mask });
        assert!(refused.made.is_none() && refused.stranded.is_none(), "{refused}");
        frames = refused.rest.expect("all of them");
        assert_eq!((frames.start(), frames.count()), (Pfn::new(ARENA), 64));
    }
    assert_eq!((counting.counts().hypercalls, before(ARENA)), (0, first));
    // One bit more, and it is Xen who has none.
    let mask = DmaMask::bits(18);
    let refused = gather_on(&guest, &counting, frames, 6, mask).expect_err("Xen has none");
    assert_eq!(refused.error, ExchangeError::NoRun { order: 6, mask });
    assert!(counting.counts().hypercalls > 0, "Xen was asked");
    guest.check();
}

#[test]
fn a_region_that_does_not_lie_together_any_more_is_not_given_to_xen() {
    let guest = Guest::new();
    let region = region(&guest, 2);
    // As after a restore, a pfn has another frame. Xen would take the one that it had.
    // SAFETY: as a toolstack does, which asks for no token.
    let frame = unsafe { Frames::claim(Pfn::new(ARENA + 67), 1) };
    let _ = gather_on(&guest, &guest.model, frame, 0, DmaMask::ALL).expect("another one");
    let counting = Counting::new(&guest.model);
    let refused = scatter_on(&guest, &counting, region).expect_err("it is scattered");
    assert_eq!(refused.error, ExchangeError::Scattered { pfn: Pfn::new(ARENA + 64) });
    assert_eq!(refused.rest.map(|rest| rest.count()), Some(128), "as it was");
    assert_eq!(counting.counts().hypercalls, 0, "nothing was taken out, nor given");
    guest.check();
}
