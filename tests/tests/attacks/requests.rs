//! What only shows when it runs: safe code asks for what would break an invariant, and is refused.

use p2m::Pfns;
use pv_tests::guest::Guest;
use swiotlb::{DmaMask, Region};

/// I-10.
#[test]
fn frames_that_do_not_lie_together_are_no_region() {
    let mut guest = Guest::new();
    let frames = guest.frames.take_run(64);
    let pfns = Pfns::new(frames.start(), 64);
    let mut mfns = pfns.iter().map(|pfn| guest.p2m.mfn(pfn).expect("it has memory").raw());
    let first = mfns.next().expect("some");
    assert!(mfns.zip(first + 1..).any(|(mfn, next)| mfn != next), "they lie in no order");
    let refused = Region::adopt(guest.p2m, frames, 6, DmaMask::ALL);
    assert!(refused.is_err_and(|frames| frames.count() == 64), "they come back");
}
