//! The pool: segments of slots, in areas.
//!
//! Every vCPU has an area, which it searches first. The words that it changes there are in cache
//! lines of their own. It takes slots of another area only when its own has none.
//!
//! A pool keeps no bus address: it looks a run up in P2M whenever it takes one. After a restore,
//! when every pfn has another frame, runs of one page work as before. Longer ones are refused
//! ([`DmaError::Scattered`]) until the memory is gathered again: `close`, `gather`, `grow`.
#![expect(unsafe_code, reason = "claims the frames back of a region that it took apart")]

use core::num::NonZeroU32;
use core::sync::atomic::AtomicU32 as Number;

use hypercall::{Frames, PAGE_SIZE, Pfn, Refused};
use p2m::P2m;

use crate::address::{BusAddr, DmaMask};
use crate::contiguous::GuestBytes;
use crate::counters::{Area, Count, Counters};
use crate::direct;
use crate::error::DmaError;
use crate::region::Region;
use crate::segment::{Purpose, Segment, SlotUse, State};
use crate::sync::Ordering;

/// Memory that a device reaches, in slots of 2 KiB. The caller's number of places limits how far it
/// can grow.
#[derive(Debug)]
pub struct Pool<'m> {
    segments: &'m [Segment],
    areas: &'m [Area],
    number: PoolNumber,
}

/// The number of a pool. No two pools have the same.
pub(crate) type PoolNumber = NonZeroU32;

/// The next pool's number: nothing of one pool passes for something of another.
static POOLS: Number = Number::new(1);

/// A run of slots that is taken. It is two words, which stay in registers.
#[must_use = "slots that are dropped are lost to the pool"]
#[derive(Debug)]
pub(crate) struct Held {
    pool: PoolNumber,
    segment: u16,
    slot: u16,
    state: State,
}

impl Held {
    /// Returns what the run was taken as.
    #[inline]
    pub(crate) const fn what(&self) -> SlotUse {
        match self.state.what() {
            Some(what) => what,
            None => SlotUse::whole(Purpose::Coherent, 0),
        }
    }

    #[inline]
    const fn slot(&self) -> usize {
        self.slot as usize
    }
}

/// What to take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlotRequest {
    pub(crate) what: SlotUse,
    /// The first slot is a multiple of this many.
    pub(crate) stride: usize,
    pub(crate) mask: DmaMask,
}

impl<'m> Pool<'m> {
    /// Creates a pool without memory, with places for `segments.len()` times 256 KiB. Give it as
    /// many areas as there are vCPUs that should rarely meet.
    ///
    /// # Errors
    /// [`DmaError::AtLimit`] if there is no place or no area, or more than 65,535 places (16 GiB);
    /// [`DmaError::NoNumber`] after 2^32 pools.
    ///
    /// ```
    /// use swiotlb::{Area, Pool, Segment};
    ///
    /// let (segments, areas) = ([Segment::new()], [Area::new(), Area::new()]);
    /// let pool = Pool::new(&segments, &areas)?; // room for 256 KiB, and none yet
    /// assert_eq!((pool.segments(), pool.free()), (0, 0));
    /// # Ok::<(), swiotlb::DmaError>(())
    /// ```
    pub fn new(segments: &'m [Segment], areas: &'m [Area]) -> Result<Self, DmaError> {
        if segments.is_empty() || areas.is_empty() {
            return Err(DmaError::AtLimit { segments: 0 });
        }
        if segments.len() > usize::from(u16::MAX) {
            return Err(DmaError::AtLimit { segments: usize::from(u16::MAX) });
        }
        let number = next_number(&POOLS).ok_or(DmaError::NoNumber)?;
        Ok(Self { segments, areas, number })
    }

    /// Adds memory: one segment for each 64 frames.
    ///
    /// # Errors
    /// The part that found no place, with [`DmaError::AtLimit`], or that a restore has scattered,
    /// with [`DmaError::Scattered`]; all of it with [`DmaError::RunTooShort`].
    ///
    /// ```
    /// # use pv_tests::dma;
    /// let (_, pool, _) = dma::a_guest_and_its_pool(); // `Pool::grow`, once
    /// assert_eq!((pool.segments(), pool.free()), (1, 128));
    /// ```
    pub fn grow(&self, p2m: &P2m<'_>, region: Region) -> Result<(), Refused<Region, DmaError>> {
        if region.order() < Segment::ORDER {
            let error = DmaError::RunTooShort { order: region.order() };
            return Err(Refused { value: region, error });
        }
        let mut rest = region.with_order(Segment::ORDER);
        for _ in 0..rest.runs() {
            let pfn = rest.start();
            let lies = match together(p2m, segment_at(pfn)) {
                Ok(Some(_)) => Ok(()),
                Ok(None) => Err(DmaError::Scattered { pfn }),
                Err(error) => Err(error),
            };
            let place = lies.and_then(|()| {
                let place = self.segments.iter().find(|segment| segment.reserve());
                place.ok_or(DmaError::AtLimit { segments: self.segments.len() })
            });
            match place {
                Ok(place) => place.fill(pfn),
                Err(error) => return Err(Refused { value: rest, error }),
            }
            match rest.split(1) {
                Ok((_, after)) => rest = after,
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Removes a segment with no slot taken, if there is one. `scatter` gives it back to Xen.
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
        // SAFETY: the frames came in a region that `grow` took apart, no slot of them is taken, and
        // they have just left the pool (I-1).
        let frames = unsafe { Frames::claim(pfn, 1 << Segment::ORDER) };
        Some(Region::of(frames, Segment::ORDER))
    }

    /// Ends the pool, and passes every segment to `give`.
    ///
    /// # Errors
    /// [`DmaError::StillTaken`] with the pool if anything is taken: a leak. Segments with no slot
    /// taken have left nevertheless.
    ///
    /// ```
    /// # use pv_tests::dma;
    /// let (_, pool, _) = dma::a_guest_and_its_pool();
    /// let mut regions = Vec::new();
    /// pool.close(&mut |region| regions.push(region)).map_err(|refused| refused.error)?;
    /// assert_eq!(regions.len(), 1);
    /// # Ok::<(), swiotlb::DmaError>(())
    /// ```
    pub fn close(self, give: &mut impl FnMut(Region)) -> Result<(), Refused<Self, DmaError>> {
        while let Some(region) = self.shrink() {
            give(region);
        }
        let slots = self.segments.iter().filter(|segment| segment.start().is_some());
        let slots = slots.map(|segment| Segment::SLOTS - segment.free()).sum();
        let direct = self.counters().direct_now();
        match (slots, direct) {
            (0, 0) => Ok(()),
            _ => Err(Refused { value: self, error: DmaError::StillTaken { slots, direct } }),
        }
    }

    /// Returns the number of segments that have memory.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.segments.iter().filter(|segment| segment.start().is_some()).count()
    }

    /// Returns the number of free slots.
    #[must_use]
    pub fn free(&self) -> usize {
        self.segments.iter().map(Segment::free).sum()
    }

    /// Returns the counters, summed over the areas.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters::of(self.areas)
    }

    /// Returns the pool's number.
    #[inline]
    pub(crate) const fn number(&self) -> PoolNumber {
        self.number
    }

    /// Records that a device has a buffer as it is, for [`forget`](Self::forget). Returns false if
    /// there is no room.
    pub(crate) fn remember(&self, vcpu: usize, address: BusAddr, what: SlotUse) -> bool {
        self.area(vcpu).direct.add(address, what)
    }

    /// Ends what [`remember`](Self::remember) began, on any vCPU.
    ///
    /// # Errors
    /// As for [`direct::end`].
    pub(crate) fn forget(
        &self,
        vcpu: usize,
        address: BusAddr,
        what: SlotUse,
    ) -> Result<(), DmaError> {
        let areas = self.areas.len();
        let from_home = (0..areas).map(|step| &self.area(vcpu % areas + step).direct);
        let ended = direct::end(from_home, address, what);
        if ended.is_err() {
            self.area(vcpu).add_one(Count::Misuse);
        }
        ended
    }

    /// Returns the area of a vCPU.
    #[inline]
    pub(crate) fn area(&self, vcpu: usize) -> &'m Area {
        &self.areas[vcpu % self.areas.len()]
    }

    /// Takes slots, from the area of `vcpu` if it has some. Returns them with the device's address
    /// of the first byte used.
    #[inline]
    pub(crate) fn take(
        &self,
        p2m: &P2m<'_>,
        vcpu: usize,
        request: SlotRequest,
    ) -> Result<(Held, BusAddr), DmaError> {
        if request.what.len_bytes == 0 {
            return Err(DmaError::Empty);
        }
        if request.what.len_bytes > Segment::BYTES || request.stride > Segment::SLOTS {
            return Err(self.never(vcpu, request));
        }
        let slots = request.what.slots();
        if slots > Segment::SLOTS {
            return Err(self.never(vcpu, request));
        }
        let home = vcpu % self.areas.len();
        if let Some(taken) = self.take_in(p2m, home, request, slots) {
            return Ok(taken);
        }
        self.take_elsewhere(p2m, home, request, slots)
    }

    #[cold]
    fn take_elsewhere(
        &self,
        p2m: &P2m<'_>,
        home: usize,
        request: SlotRequest,
        slots: usize,
    ) -> Result<(Held, BusAddr), DmaError> {
        let areas = self.areas.len();
        let mut elsewhere = (1..areas).map(|step| (home + step) % areas);
        let taken = elsewhere.find_map(|area| self.take_in(p2m, area, request, slots));
        taken.ok_or_else(|| self.nothing(p2m, home, request, slots))
    }

    /// Returns the reason why there are no slots to take.
    fn nothing(&self, p2m: &P2m<'_>, home: usize, request: SlotRequest, slots: usize) -> DmaError {
        let mut scattered = None;
        for start in self.segments.iter().filter_map(Segment::start) {
            match together(p2m, segment_at(start)) {
                Ok(Some(bus)) if request.mask.reaches(bus, Segment::BYTES as u64) => {
                    self.areas[home].add_one(Count::Full);
                    return DmaError::PoolFull { slots, free: self.free() };
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => scattered = scattered.or(Some(start)),
            }
        }
        self.areas[home].add_one(Count::OutOfReach);
        match scattered {
            Some(pfn) => DmaError::Scattered { pfn },
            None => DmaError::OutOfReach { mask: request.mask },
        }
    }

    #[cold]
    fn never(&self, vcpu: usize, request: SlotRequest) -> DmaError {
        self.area(vcpu).add_one(Count::TooLarge);
        let SlotUse { len_bytes, head_bytes, .. } = request.what;
        DmaError::TooLarge { len_bytes, head_bytes }
    }

    /// Takes slots of one area, from where it last found some.
    #[inline]
    fn take_in(
        &self,
        p2m: &P2m<'_>,
        area: usize,
        request: SlotRequest,
        slots: usize,
    ) -> Option<(Held, BusAddr)> {
        // Each `areas`-th segment is of this area. The hint counts those, whatever pool it is from.
        let areas = self.areas.len();
        let hint = usize::try_from(self.areas[area].hint.load(Ordering::Relaxed)).unwrap_or(0);
        let last = hint * areas + area;
        let first = if last < self.segments.len() { last } else { area };
        let taken = match self.take_of(p2m, first, request, slots) {
            Some(taken) => taken,
            None => self.take_behind(p2m, area, request, first)?,
        };
        self.areas[area].took(slots as u64);
        Some(taken)
    }

    /// Takes slots of one area: first of the segments behind `first`, then of those before it.
    #[cold]
    fn take_behind(
        &self,
        p2m: &P2m<'_>,
        area: usize,
        request: SlotRequest,
        first: usize,
    ) -> Option<(Held, BusAddr)> {
        let areas = self.areas.len();
        let behind = (first..self.segments.len()).step_by(areas).skip(1);
        let mut order = behind.chain((area..first).step_by(areas));
        let take = |at| Some((at, self.take_of(p2m, at, request, request.what.slots())?));
        let (at, taken) = order.find_map(take)?;
        self.areas[area].hint.store((at / areas) as u64, Ordering::Relaxed);
        Some(taken)
    }

    /// Takes slots of one segment.
    #[inline]
    fn take_of(
        &self,
        p2m: &P2m<'_>,
        at: usize,
        request: SlotRequest,
        slots: usize,
    ) -> Option<(Held, BusAddr)> {
        let segment = self.segments.get(at)?;
        let slot = segment.take(slots, request.stride)?;
        // The memory of a segment does not change while a slot is taken.
        let SlotUse { head_bytes, len_bytes, .. } = request.what;
        let place = place_in(segment.pfn(), slot, head_bytes, len_bytes);
        match find_together(p2m, place) {
            Some(bus) if request.mask.reaches(bus, len_bytes as u64) => {
                let state = segment.open(slot, request.what);
                Some((self.held(at, slot, state)?, bus))
            }
            _ => {
                segment.give(slot, slots);
                None
            }
        }
    }

    /// Returns the token of a run; both numbers are small.
    #[inline]
    fn held(&self, segment: usize, slot: usize, state: State) -> Option<Held> {
        let (segment, slot) = (u16::try_from(segment).ok()?, u16::try_from(slot).ok()?);
        Some(Held { pool: self.number, segment, slot, state })
    }

    /// Returns the segment of one of this pool's runs.
    #[inline]
    fn segment_of(&self, held: &Held) -> Option<&'m Segment> {
        self.segments.get(usize::from(held.segment)).filter(|_| held.pool == self.number)
    }

    /// Returns the place of `len_bytes` bytes from byte `at` of the run on.
    #[inline]
    pub(crate) fn place(&self, held: &Held, at: usize, len_bytes: usize) -> GuestBytes {
        let pfn = self.segment_of(held).map_or(Pfn::new(u64::MAX), Segment::pfn);
        place_in(pfn, held.slot(), at, len_bytes)
    }

    /// Marks a run busy. Until [`leave`](Self::leave) nobody else can give it back or copy it.
    ///
    /// # Errors
    /// What is wrong with the run, whose address was `address`.
    #[inline]
    pub(crate) fn enter(&self, held: &Held, address: BusAddr) -> Result<(), DmaError> {
        let Some(segment) = self.segment_of(held) else {
            return Err(self.stranger(address));
        };
        match segment.enter(held.slot(), held.state) {
            Ok(()) => Ok(()),
            Err(found) => Err(self.misuse(held, found, address)),
        }
    }

    /// Returns the refusal of something that is not of this pool.
    #[cold]
    pub(crate) fn stranger(&self, address: BusAddr) -> DmaError {
        self.areas[0].add_one(Count::Misuse);
        DmaError::NotOfThisPool { address }
    }

    #[cold]
    fn misuse(&self, held: &Held, found: State, address: BusAddr) -> DmaError {
        self.areas[usize::from(held.segment) % self.areas.len()].add_one(Count::Misuse);
        match (found.what(), held.state.what()) {
            (None, _) => DmaError::NotTaken { address },
            _ if !found.same_taking(held.state) => DmaError::Stale { address },
            _ if found.is_busy() => DmaError::Busy { address },
            (Some(taken), Some(given)) => DmaError::TakenOtherwise { address, taken, given },
            _ => DmaError::NotTaken { address },
        }
    }

    /// Ends the busy state of a run.
    #[inline]
    pub(crate) fn leave(&self, held: &Held) {
        if let Some(segment) = self.segment_of(held) {
            segment.leave(held.slot(), held.state);
        }
    }

    /// Gives back a run that is busy.
    #[inline]
    #[expect(clippy::needless_pass_by_value, reason = "the run ends here")]
    pub(crate) fn close_run(&self, held: Held, slots: usize) {
        if let Some(segment) = self.segment_of(&held) {
            segment.close(held.slot(), held.state, slots);
            self.areas[usize::from(held.segment) % self.areas.len()].gave(slots as u64);
        }
    }

    /// Returns the run that was taken as `what` at an address in the frame of `pfn`.
    ///
    /// # Errors
    /// What is wrong with the address or with `what`.
    pub(crate) fn find(&self, pfn: Pfn, address: BusAddr, what: SlotUse) -> Result<Held, DmaError> {
        let Some((at, pages)) = self.segment_with(pfn) else {
            return Err(self.stranger(address));
        };
        let (segment, area) = (&self.segments[at], &self.areas[at % self.areas.len()]);
        let offset = pages * PAGE_SIZE + address.offset_in_frame();
        // The address is at most a head beyond the first slot.
        let last = offset / Segment::SLOT_BYTES;
        let taken = (last.saturating_sub(1)..=last).rev().find_map(|slot| {
            let state = segment.state(slot);
            let what = state.what()?;
            (slot * Segment::SLOT_BYTES + what.head_bytes == offset).then_some((slot, state, what))
        });
        let Some((slot, state, taken)) = taken else {
            area.add_one(Count::Misuse);
            return Err(DmaError::NotTaken { address });
        };
        if (taken.purpose, taken.len_bytes) != (what.purpose, what.len_bytes) {
            area.add_one(Count::Misuse);
            return Err(DmaError::TakenOtherwise { address, taken, given: what });
        }
        if state.is_busy() {
            area.add_one(Count::Misuse);
            return Err(DmaError::Busy { address });
        }
        self.held(at, slot, state).ok_or(DmaError::NotTaken { address })
    }

    /// Returns the frame's segment, and its page in that.
    fn segment_with(&self, pfn: Pfn) -> Option<(usize, usize)> {
        self.segments.iter().enumerate().find_map(|(at, segment)| {
            let pages = pfn.raw().checked_sub(segment.start()?.raw())?;
            let pages = usize::try_from(pages).ok().filter(|pages| *pages < 1 << Segment::ORDER)?;
            Some((at, pages))
        })
    }

    /// Returns whether the frame is in one of the segments.
    pub(crate) fn contains(&self, pfn: Pfn) -> bool {
        self.segment_with(pfn).is_some()
    }
}

/// Returns the number for the next pool, unless all are used.
fn next_number(numbers: &Number) -> Option<PoolNumber> {
    let next = |number: u32| number.checked_add(1);
    let number = numbers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()?;
    NonZeroU32::new(number)
}

/// Returns all bytes of the segment that begins at `pfn`.
const fn segment_at(pfn: Pfn) -> GuestBytes {
    GuestBytes { pfn, offset: 0, len_bytes: Segment::BYTES }
}

/// Returns the bytes from `at` on in a slot of the segment that begins at `pfn`.
#[inline]
const fn place_in(pfn: Pfn, slot: usize, at: usize, len_bytes: usize) -> GuestBytes {
    GuestBytes { pfn, offset: slot * Segment::SLOT_BYTES + at, len_bytes }
}

/// Returns the device's address of the first byte, if the bytes are contiguous.
#[inline]
fn find_together(p2m: &P2m<'_>, place: GuestBytes) -> Option<BusAddr> {
    let (pfn, offset) = place.byte(0);
    if offset + place.len_bytes <= PAGE_SIZE {
        return Some(BusAddr::new(p2m.mfn(pfn).ok()?, offset));
    }
    together(p2m, GuestBytes { pfn, offset, ..place }).ok().flatten()
}

/// Returns the same, of any number of pages.
///
/// # Errors
/// A frame is not the guest's own memory.
#[inline(never)]
fn together(p2m: &P2m<'_>, place: GuestBytes) -> Result<Option<BusAddr>, DmaError> {
    let (bus, together) = place.contiguous(p2m)?;
    Ok((together == place.len_bytes).then_some(bus))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_pool_never_comes_again() {
        let numbers = Number::new(u32::MAX - 1);
        assert_eq!(next_number(&numbers), NonZeroU32::new(u32::MAX - 1));
        for _ in 0..3 {
            assert_eq!(next_number(&numbers), None, "there are no more");
        }
    }
}

#[cfg(all(test, loom))]
mod tests;
