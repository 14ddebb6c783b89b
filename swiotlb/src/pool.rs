//! The pool: segments of slots, in areas.
//!
//! Every vCPU has an area, in which it searches first; the words that it changes there are in cache
//! lines of their own. It takes slots of another area only when its own has none.
#![expect(unsafe_code, reason = "claims the frames back of a region that it took apart")]

use core::num::NonZeroU32;
use core::sync::atomic::AtomicU32 as Number;

use hypercall::{Frames, Pfn};
use p2m::P2m;

use crate::address::{BusAddr, DmaMask};
use crate::contiguous::Place;
use crate::counters::{Area, Counters, Failure};
use crate::direct;
use crate::error::Error;
use crate::region::Region;
use crate::segment::{
    Purpose, SEGMENT_BYTES, SEGMENT_ORDER, SLOT_BYTES, SLOTS, Segment, State, Use,
};
use crate::sync::Ordering;

/// Memory that a device reaches, in slots of 2 KiB: in places of the caller's, who says by their
/// number how far it can grow.
#[derive(Debug)]
pub struct Pool<'m> {
    segments: &'m [Segment],
    areas: &'m [Area],
    number: PoolNumber,
}

/// Which pool something is of.
pub(crate) type PoolNumber = NonZeroU32;

/// The next pool's number: a run of one pool is never taken for one of another.
static POOLS: Number = Number::new(1);

/// A run of slots that is taken: two words, which stay in registers.
#[must_use = "slots that are dropped are lost to the pool"]
#[derive(Debug)]
pub(crate) struct Held {
    pool: PoolNumber,
    segment: u16,
    slot: u16,
    state: State,
}

impl Held {
    /// As what it is taken.
    #[inline]
    pub(crate) const fn what(&self) -> Use {
        match self.state.what() {
            Some(what) => what,
            None => Use { purpose: Purpose::Coherent, head_bytes: 0, len_bytes: 0 },
        }
    }

    #[inline]
    const fn slot(&self) -> usize {
        self.slot as usize
    }
}

/// What to take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    pub(crate) what: Use,
    /// The first slot is a multiple of this many.
    pub(crate) stride: usize,
    pub(crate) mask: DmaMask,
}

impl<'m> Pool<'m> {
    /// A pool without memory, with places for `segments.len()` times 256 KiB. Its areas are as many
    /// as vCPUs should rarely meet.
    ///
    /// # Errors
    /// [`Error::AtLimit`] if there is no place or no area, or more than 65,535 places (16 GiB).
    ///
    /// # Hypercalls
    /// None.
    ///
    /// ```
    /// use swiotlb::{Area, Pool, Segment};
    ///
    /// let (segments, areas) = ([Segment::new()], [Area::new(), Area::new()]);
    /// let pool = Pool::new(&segments, &areas)?; // room for 256 KiB, and none yet
    /// assert_eq!((pool.segments(), pool.free()), (0, 0));
    /// # Ok::<(), swiotlb::Error>(())
    /// ```
    pub fn new(segments: &'m [Segment], areas: &'m [Area]) -> Result<Self, Error> {
        if segments.is_empty() || areas.is_empty() {
            return Err(Error::AtLimit { segments: 0 });
        }
        if segments.len() > usize::from(u16::MAX) {
            return Err(Error::AtLimit { segments: usize::from(u16::MAX) });
        }
        // After 2^32 pools numbers come again; none is 0.
        let number = NonZeroU32::new(POOLS.fetch_add(1, Ordering::Relaxed));
        let number = number.unwrap_or(NonZeroU32::MAX);
        Ok(Self { segments, areas, number })
    }

    /// Adds memory: one segment for each 64 frames.
    ///
    /// # Errors
    /// What did not find a place, with [`Error::AtLimit`], or with [`Error::RunTooShort`] all of
    /// it.
    ///
    /// # Hypercalls
    /// None.
    ///
    /// ```
    /// # use pv_tests::dma;
    /// let (_, pool, _) = dma::a_guest_and_its_pool(); // `Pool::grow`, once
    /// assert_eq!((pool.segments(), pool.free()), (1, 128));
    /// ```
    pub fn grow(&self, p2m: &P2m<'_>, region: Region) -> Result<(), (Error, Region)> {
        if region.order() < SEGMENT_ORDER {
            return Err((Error::RunTooShort { order: region.order() }, region));
        }
        let mut rest = region.with_order(SEGMENT_ORDER);
        loop {
            let mfn = match rest.mfn(p2m, 0) {
                Ok(mfn) => mfn,
                Err(error) => return Err((error, rest)),
            };
            let Some(place) = self.segments.iter().find(|segment| segment.reserve()) else {
                return Err((Error::AtLimit { segments: self.segments.len() }, rest));
            };
            place.fill(rest.start(), mfn);
            match rest.split(1) {
                Ok((_, after)) => rest = after,
                Err(_) => return Ok(()),
            }
        }
    }

    /// Takes a segment out of which no slot is taken, if there is one.
    ///
    /// # Hypercalls
    /// None; `scatter` gives it back to Xen.
    ///
    /// ```
    /// # use pv_tests::dma;
    /// let (_, pool, _) = dma::a_guest_and_its_pool();
    /// let region = pool.shrink().ok_or("a buffer is in each segment")?;
    /// assert_eq!((region.frames(), pool.segments()), (64, 0));
    /// # Ok::<(), &str>(())
    /// ```
    pub fn shrink(&self) -> Option<Region> {
        let pfn = self.segments.iter().rev().find_map(Segment::empty)?;
        // SAFETY: the frames came in a region that `grow` took apart, and no slot of them is taken;
        // they have just left the pool (I-1).
        let frames = unsafe { Frames::claim(pfn, 1 << SEGMENT_ORDER) };
        Some(Region::of(frames, SEGMENT_ORDER))
    }

    /// Ends the pool: every segment goes to `give`.
    ///
    /// # Errors
    /// [`Error::StillTaken`] with the pool if anything is taken: a leak. Segments without a taken
    /// slot have left all the same.
    ///
    /// ```
    /// # use pv_tests::dma;
    /// let (_, pool, _) = dma::a_guest_and_its_pool();
    /// let mut regions = Vec::new();
    /// pool.close(&mut |region| regions.push(region)).map_err(|(error, _)| error)?;
    /// assert_eq!(regions.len(), 1);
    /// # Ok::<(), swiotlb::Error>(())
    /// ```
    pub fn close(self, give: &mut impl FnMut(Region)) -> Result<(), (Error, Self)> {
        while let Some(region) = self.shrink() {
            give(region);
        }
        let slots = self.segments.iter().filter(|segment| segment.start().is_some());
        let slots = slots.map(|segment| SLOTS - segment.free()).sum();
        let direct = self.counters().direct_now();
        match (slots, direct) {
            (0, 0) => Ok(()),
            _ => Err((Error::StillTaken { slots, direct }, self)),
        }
    }

    /// Segments that have memory.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.segments.iter().filter(|segment| segment.start().is_some()).count()
    }

    /// Slots that are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.segments.iter().map(Segment::free).sum()
    }

    /// What happened so far, summed over the areas.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.areas.iter().map(Area::counters).fold(Counters::default(), |sum, area| sum + area)
    }

    /// What tells this pool from others.
    #[inline]
    pub(crate) const fn number(&self) -> PoolNumber {
        self.number
    }

    /// Remembers that a device has bytes as they are, for [`forget`](Self::forget). False if there
    /// is no place for it.
    pub(crate) fn remember(&self, vcpu: usize, address: BusAddr, what: (Purpose, usize)) -> bool {
        self.area(vcpu).direct.add(address, what)
    }

    /// Ends what [`remember`](Self::remember) began, on whichever vCPU.
    ///
    /// # Errors
    /// As for [`direct::end`].
    pub(crate) fn forget(
        &self,
        vcpu: usize,
        address: BusAddr,
        what: (Purpose, usize),
    ) -> Result<(), Error> {
        let areas = self.areas.len();
        let from_home = (0..areas).map(|step| &self.area(vcpu % areas + step).direct);
        let ended = direct::end(from_home, address, what);
        if ended.is_err() {
            self.area(vcpu).failed(Failure::Misuse);
        }
        ended
    }

    /// The area of a vCPU.
    #[inline]
    pub(crate) fn area(&self, vcpu: usize) -> &'m Area {
        &self.areas[vcpu % self.areas.len()]
    }

    /// Takes slots, from the area of `vcpu` if it has some.
    #[inline]
    pub(crate) fn take(&self, vcpu: usize, need: Need) -> Result<Held, Error> {
        let slots = need.what.slots();
        if need.what.len_bytes == 0 {
            return Err(Error::Empty);
        }
        if need.what.len_bytes > SEGMENT_BYTES || slots > SLOTS || need.stride > SLOTS {
            return Err(self.never(vcpu, need));
        }
        let home = vcpu % self.areas.len();
        if let Some(held) = self.take_in(home, need, slots) {
            return Ok(held);
        }
        self.take_elsewhere(home, need, slots)
    }

    #[cold]
    fn take_elsewhere(&self, home: usize, need: Need, slots: usize) -> Result<Held, Error> {
        let areas = self.areas.len();
        let elsewhere = (1..areas).map(|step| (home + step) % areas);
        elsewhere.into_iter().find_map(|area| self.take_in(area, need, slots)).ok_or_else(|| {
            let reached = |segment: &Segment| {
                segment.start().is_some_and(|at| need.mask.reaches(at, SEGMENT_BYTES as u64))
            };
            if self.segments.iter().any(reached) {
                self.areas[home].failed(Failure::Full);
                return Error::PoolFull { slots, free: self.free() };
            }
            self.areas[home].failed(Failure::OutOfReach);
            Error::OutOfReach { mask: need.mask }
        })
    }

    #[cold]
    fn never(&self, vcpu: usize, need: Need) -> Error {
        self.area(vcpu).failed(Failure::TooLarge);
        let Use { len_bytes, head_bytes, .. } = need.what;
        Error::TooLarge { len_bytes, head_bytes, max_bytes: SEGMENT_BYTES }
    }

    /// Takes slots of one area, from where it last found some.
    #[inline]
    fn take_in(&self, area: usize, need: Need, slots: usize) -> Option<Held> {
        let areas = self.areas.len();
        let hint = &self.areas[area].hint;
        let last = usize::try_from(hint.load(Ordering::Relaxed)).unwrap_or(0);
        let first = if last < self.segments.len() { last } else { area };
        let mut at = first;
        loop {
            if let Some(held) = self.take_of(at, need, slots) {
                if at != last {
                    hint.store(at as u64, Ordering::Relaxed);
                }
                self.areas[area].took(slots as u64);
                return Some(held);
            }
            at += areas;
            if at >= self.segments.len() {
                at = area;
            }
            if at == first {
                return None;
            }
        }
    }

    /// Takes slots of one segment.
    #[inline]
    fn take_of(&self, at: usize, need: Need, slots: usize) -> Option<Held> {
        let segment = self.segments.get(at)?;
        let slot = segment.take(slots, need.stride)?;
        // The memory of a segment does not change while a slot is taken.
        let start = segment.start()?;
        if !need.mask.reaches(start, SEGMENT_BYTES as u64) {
            segment.give(slot, slots);
            return None;
        }
        let state = segment.open(slot, need.what);
        self.held((at, slot), state)
    }

    /// The name of a run; both numbers are small.
    #[inline]
    fn held(&self, (segment, slot): (usize, usize), state: State) -> Option<Held> {
        let (segment, slot) = (u16::try_from(segment).ok()?, u16::try_from(slot).ok()?);
        Some(Held { pool: self.number, segment, slot, state })
    }

    /// The segment of a run of this pool's.
    #[inline]
    fn segment_of(&self, held: &Held) -> Option<&'m Segment> {
        self.segments.get(usize::from(held.segment)).filter(|_| held.pool == self.number)
    }

    /// Where the device sees the first byte used.
    #[inline]
    pub(crate) fn bus(&self, held: &Held) -> BusAddr {
        let start = self.segment_of(held).and_then(Segment::start).map_or(0, BusAddr::raw);
        BusAddr::from_raw(start + (held.slot() * SLOT_BYTES + held.what().head_bytes) as u64)
    }

    /// Byte `at` of the run's slots on, for `len_bytes` bytes.
    #[inline]
    pub(crate) fn place(&self, held: &Held, at: usize, len_bytes: usize) -> Place {
        let pfn = self.segment_of(held).map_or(Pfn::new(u64::MAX), Segment::pfn);
        Place { pfn, offset: held.slot() * SLOT_BYTES + at, len_bytes }
    }

    /// Marks a run busy: for as long as it is, nobody else can give it back or copy it.
    ///
    /// # Errors
    /// What is wrong with the run; `address` is where it was.
    #[inline]
    pub(crate) fn enter(&self, held: &Held, address: BusAddr) -> Result<(), Error> {
        let Some(segment) = self.segment_of(held) else {
            return Err(self.stranger(address));
        };
        match segment.enter(held.slot(), held.state) {
            Ok(()) => Ok(()),
            Err(found) => Err(self.misuse(held, found, address)),
        }
    }

    /// The refusal of what is not of this pool.
    #[cold]
    pub(crate) fn stranger(&self, address: BusAddr) -> Error {
        self.areas[0].failed(Failure::Misuse);
        Error::NotOfThisPool { address }
    }

    #[cold]
    fn misuse(&self, held: &Held, found: State, address: BusAddr) -> Error {
        self.areas[usize::from(held.segment) % self.areas.len()].failed(Failure::Misuse);
        match (found.what(), held.state.what()) {
            (None, _) => Error::NotTaken { address },
            _ if !found.same_taking(held.state) => Error::Stale { address },
            _ if found.is_busy() => Error::Busy { address },
            (Some(taken), Some(given)) => Error::TakenOtherwise { address, taken, given },
            _ => Error::NotTaken { address },
        }
    }

    /// The run is no longer busy.
    #[inline]
    pub(crate) fn leave(&self, held: &Held) {
        if let Some(segment) = self.segment_of(held) {
            segment.leave(held.slot(), held.state);
        }
    }

    /// Gives a run back that is busy.
    #[inline]
    #[expect(clippy::needless_pass_by_value, reason = "the run ends here")]
    pub(crate) fn close_run(&self, held: Held, slots: usize) {
        if let Some(segment) = self.segment_of(&held) {
            segment.close(held.slot(), held.state, slots);
            self.areas[usize::from(held.segment) % self.areas.len()].gave(slots as u64);
        }
    }

    /// The run that is taken at an address, as `what`.
    ///
    /// # Errors
    /// What is wrong with the address or with `what`.
    pub(crate) fn find(&self, address: BusAddr, what: (Purpose, usize)) -> Result<Held, Error> {
        let inside = |segment: &Segment| {
            let offset = usize::try_from(address.offset_from(segment.start()?)?).ok()?;
            (offset < SEGMENT_BYTES).then_some(offset)
        };
        let found = self.segments.iter().enumerate();
        let found = found.filter_map(|(at, segment)| Some((at, segment, inside(segment)?))).next();
        let Some((at, segment, offset)) = found else {
            return Err(self.stranger(address));
        };
        // The first slot lies up to a head before the address.
        let last = offset / SLOT_BYTES;
        let taken = (last.saturating_sub(1)..=last).rev().find_map(|slot| {
            let state = segment.state(slot);
            let what = state.what()?;
            (slot * SLOT_BYTES + what.head_bytes == offset).then_some((slot, state, what))
        });
        let area = &self.areas[at % self.areas.len()];
        let Some((slot, state, taken)) = taken else {
            area.failed(Failure::Misuse);
            return Err(Error::NotTaken { address });
        };
        if (taken.purpose, taken.len_bytes) != what {
            area.failed(Failure::Misuse);
            let given = Use { purpose: what.0, len_bytes: what.1, ..taken };
            return Err(Error::TakenOtherwise { address, taken, given });
        }
        if state.is_busy() {
            area.failed(Failure::Misuse);
            return Err(Error::Busy { address });
        }
        self.held((at, slot), state).ok_or(Error::NotTaken { address })
    }

    /// Whether the address is in one of the segments.
    pub(crate) fn contains(&self, address: BusAddr) -> bool {
        self.segments.iter().any(|segment| {
            let offset = segment.start().and_then(|start| address.offset_from(start));
            offset.is_some_and(|offset| offset < SEGMENT_BYTES as u64)
        })
    }
}
