//! What several vCPUs may do at once with one pool, in every order that the memory model allows.
#![expect(unsafe_code, reason = "frames that are numbers only, and memory of whoever has a run")]

use std::sync::Arc;

use super::*;

const FIRST_MFN: u64 = 0x1000;
const WHAT: SlotUse = SlotUse::whole(Purpose::Bidirectional, 2048);
const REQUEST: SlotRequest = SlotRequest { what: WHAT, stride: 1, mask: DmaMask::ALL };

/// A pool, and a map of 128 pfns that lie together.
#[derive(Clone)]
struct Guest {
    pool: Arc<Pool<'static>>,
    p2m: Arc<P2m<'static>>,
}

impl Guest {
    fn new(segments: usize, areas: usize) -> Self {
        use crate::sync::AtomicU64;

        let list: Vec<_> = (FIRST_MFN..FIRST_MFN + 128).map(AtomicU64::new).collect();
        // SAFETY: the map is of numbers only.
        let p2m = Arc::new(unsafe { P2m::adopt(list.leak()) }.expect("a list"));
        let segments: Vec<_> = (0..segments).map(|_| Segment::new()).collect();
        let areas: Vec<_> = (0..areas).map(|_| Area::new()).collect();
        let pool = Arc::new(Pool::new(segments.leak(), areas.leak()).expect("it has places"));
        Self { pool, p2m }
    }

    /// Grows the pool by 64 pfns from `pfn` on.
    fn grow(&self, pfn: u64) -> bool {
        // SAFETY: the frames are numbers only, claimed once at a time.
        let frames = unsafe { Frames::claim(Pfn::new(pfn), 64) };
        self.pool.grow(&self.p2m, Region::of(frames, Segment::ORDER)).is_ok()
    }

    fn take(&self, vcpu: usize) -> Option<(Held, BusAddr)> {
        self.pool.take(&self.p2m, vcpu, REQUEST).ok()
    }

    /// Ends what is taken at an address, as whoever knows nothing else.
    fn end_at(&self, address: BusAddr) -> Result<(), DmaError> {
        let pfn = Pfn::new(address.mfn().raw() - FIRST_MFN);
        let held = self.pool.find(pfn, address, WHAT)?;
        self.pool.enter(&held, address)?;
        self.pool.close_run(held, 1);
        Ok(())
    }

    fn beside<T: 'static>(
        &self,
        work: impl FnOnce(&Self) -> T + 'static,
    ) -> loom::thread::JoinHandle<T> {
        let guest = self.clone();
        loom::thread::spawn(move || work(&guest))
    }
}

#[test]
fn each_of_two_finds_its_own_run_by_its_address() {
    loom::model(|| {
        let guest = Guest::new(1, 2);
        assert!(guest.grow(0));
        let (_, mine) = guest.take(0).expect("free");
        let other = guest.beside(|guest| {
            let (_, address) = guest.take(1).expect("there is room for both");
            guest.end_at(address)
        });
        assert_eq!(guest.end_at(mine), Ok(()));
        assert_eq!(other.join().expect("no panic"), Ok(()));
        assert_eq!(guest.pool.free(), Segment::SLOTS);
    });
}

#[test]
fn of_two_that_find_one_run_by_its_address_one_ends_it() {
    loom::model(|| {
        let guest = Guest::new(1, 1);
        assert!(guest.grow(0));
        let (_, address) = guest.take(0).expect("free");
        let other = guest.beside(move |guest| guest.end_at(address).is_ok());
        let mine = guest.end_at(address).is_ok();
        assert!(mine ^ other.join().expect("no panic"));
        assert_eq!(guest.pool.free(), Segment::SLOTS);
    });
}

#[test]
fn each_of_two_forgets_its_own_buffer_wherever_it_is_remembered() {
    loom::model(|| {
        let guest = Guest::new(1, 2);
        // Each ends on one vCPU what it began on another.
        let work = |guest: &Guest, vcpu: usize| {
            let address = BusAddr::from_raw(0x1000 << vcpu);
            assert!(guest.pool.remember(vcpu, address, WHAT));
            guest.pool.forget(vcpu + 1, address, WHAT)
        };
        let other = guest.beside(move |guest| work(guest, 1));
        assert_eq!(work(&guest, 0), Ok(()));
        assert_eq!(other.join().expect("no panic"), Ok(()));
    });
}

#[test]
fn of_two_that_forget_one_buffer_one_fails() {
    loom::model(|| {
        let guest = Guest::new(1, 2);
        let address = BusAddr::from_raw(0x1000);
        assert!(guest.pool.remember(0, address, WHAT));
        let other = guest.beside(move |guest| guest.pool.forget(1, address, WHAT).is_ok());
        let mine = guest.pool.forget(0, address, WHAT).is_ok();
        assert!(mine ^ other.join().expect("no panic"));
    });
}

#[test]
fn two_that_grow_a_pool_at_once_fill_two_places() {
    loom::model(|| {
        let guest = Guest::new(2, 1);
        let other = guest.beside(|guest| guest.grow(64));
        assert!(guest.grow(0));
        assert!(other.join().expect("no panic"));
        assert_eq!((guest.pool.segments(), guest.pool.free()), (2, 2 * Segment::SLOTS));
        assert!(guest.pool.contains(Pfn::new(63)) && guest.pool.contains(Pfn::new(64)));
    });
}

#[test]
fn of_two_that_shrink_a_pool_one_gets_its_only_segment() {
    loom::model(|| {
        let guest = Guest::new(1, 1);
        assert!(guest.grow(0));
        let other = guest.beside(|guest| guest.pool.shrink());
        let regions = [guest.pool.shrink(), other.join().expect("no panic")];
        let regions = regions.iter().flatten().count();
        // Both may fail, when each sees the other one at work; both never succeed.
        assert!(regions <= 1, "one segment left twice");
        assert_eq!(guest.pool.free(), if regions == 1 { 0 } else { Segment::SLOTS });
    });
}

#[test]
fn a_run_lies_in_the_memory_of_its_pool_while_that_shrinks_and_grows() {
    loom::model(|| {
        let guest = Guest::new(1, 1);
        assert!(guest.grow(0));
        let other = guest.beside(|guest| {
            let left = guest.pool.shrink();
            left.is_some() && guest.grow(64)
        });
        if let Some((held, address)) = guest.take(0) {
            let (pfn, offset) = guest.pool.place(&held, 0, 1).byte(0);
            let mfn = guest.p2m.mfn(pfn).expect("memory");
            assert_eq!(address, BusAddr::new(mfn, offset));
            assert!(guest.pool.contains(pfn), "{pfn:?}");
            guest.pool.enter(&held, address).expect("it is taken");
            guest.pool.close_run(held, 1);
        }
        let grown = other.join().expect("no panic");
        assert!(guest.pool.contains(Pfn::new(if grown { 64 } else { 0 })));
        assert_eq!(guest.pool.free(), Segment::SLOTS);
    });
}
