//! A vCPU that has translations of the frames that are exchanged, and goes on using them: whatever
//! it sees of a frame that is Xen's again, or another domain's, is a violation on the model.

mod common;

use common::odd::Odd;
use common::{ARENA, Guest, gather_on, scatter_on};
use hypercall::{FrameAccess as _, Pfn};
use swiotlb::DmaMask;
use swiotlb::region::Region;
use xen_model::Mode;

/// How many frames are exchanged.
const FRAMES: u64 = 64;

/// A guest whose second vCPU runs in its kernel.
struct TwoVcpus(Guest);

impl TwoVcpus {
    fn new() -> Self {
        let guest = Guest::with_vcpus(2);
        let root = guest.p2m.mfn(guest.root).expect("memory");
        guest.second().initialise(root, None).expect("it is down");
        Self(guest)
    }

    /// The second vCPU reads and writes every page that is exchanged, where the direct mapping has
    /// it; how many it found there.
    fn touch(&self) -> u64 {
        let second = self.0.second();
        let touch = |pfn: Pfn| {
            let va = self.0.model.direct_map(pfn).expect("an address").raw();
            let read = second.load(va + 8, &mut [0; 8], Mode::Kernel).is_ok();
            let written = second.store(va, &[0x5e; 8], Mode::Kernel).is_ok();
            assert_eq!(read, written, "{pfn:?}");
            u64::from(read)
        };
        (ARENA..ARENA + FRAMES).map(Pfn::new).map(touch).sum()
    }

    fn assert_it_saw_nothing_stale(&self, when: &str) {
        let seen = self.0.model.take_violations();
        assert!(seen.is_empty(), "a stale translation {when}: {}, {:?}", seen.len(), seen[0]);
    }
}

/// The machine on which the second vCPU touches all pages before and after each request.
fn beside<R>(both: &TwoVcpus, work: impl FnOnce(&Odd<'_>) -> R) -> R {
    work(&Odd { beside: &|| _ = both.touch(), ..Odd::new(&both.0.model) })
}

fn gathered(both: &TwoVcpus, order: u32) -> Region {
    let frames = both.0.frames(0, FRAMES);
    let gather = |odd: &Odd<'_>| gather_on(&both.0, odd, frames, order, DmaMask::ALL);
    beside(both, gather).expect("made")
}

#[test]
fn a_vcpu_that_has_the_frames_in_its_tlb_never_sees_one_that_gather_gave_away() {
    for order in [0, 3, 6] {
        let both = TwoVcpus::new();
        assert_eq!(both.touch(), FRAMES);
        both.assert_it_saw_nothing_stale("before");
        let region = gathered(&both, order);
        assert_eq!(both.touch(), FRAMES, "all are mapped again");
        both.assert_it_saw_nothing_stale("of what was gathered");
        assert_eq!(region.frames(), FRAMES);
        both.0.check();
    }
}

#[test]
fn a_vcpu_that_has_the_frames_in_its_tlb_never_sees_one_that_scatter_gave_away() {
    let both = TwoVcpus::new();
    let region = gathered(&both, 6);
    assert_eq!(both.touch(), FRAMES);
    both.assert_it_saw_nothing_stale("before");
    let scatter = |odd: &Odd<'_>| scatter_on(&both.0, odd, region);
    let frames = beside(&both, scatter).expect("scattered");
    assert_eq!((both.touch(), frames.count()), (FRAMES, FRAMES));
    both.assert_it_saw_nothing_stale("of what was scattered");
    both.0.check();
}
