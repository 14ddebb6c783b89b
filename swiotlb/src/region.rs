//! Regions: memory that is contiguous in the machine, where a device reaches it.
//!
//! A guest's frames are scattered. Xen exchanges them for as many others in runs of 2^order, if it
//! has such runs (`XENMEM_exchange`). The pfns stay and get other frames, filled with zeroes. The
//! old contents are lost.
//!
//! # What a failure leaves
//! The error has every frame, in up to three pieces:
//! * runs that were made before it, and stay made;
//! * frames that were neither exchanged nor mapped again ([`Stranded`]), because a second request
//!   was refused on the way back;
//! * the rest, in the direct mapping as before, each with its old frame and contents, or with
//!   another frame and zeroes.
//!
//! No allocator and no table takes stranded frames until [`reinstate`] has mapped them and filled
//! them with zeroes: some may come from Xen, with their last owner's contents.

#![expect(unsafe_code, reason = "makes frames again of those that it saw mapped (I-1, I-16)")]

use core::fmt;

use hypercall::{Frames, Machine, Mfn, PAGE_SIZE, Pfn, Refused, Uncertain};
use p2m::{DirectEntries, Guest, P2m, Pfns};

use crate::address::DmaMask;
use crate::contiguous::GuestBytes;
use crate::exchange::{self, Orders, Part};

pub use crate::exchange::Scratch;
pub use crate::exchange_error::ExchangeError;

/// Frames in runs of 2^`order`, each contiguous and aligned in the machine.
///
/// # Invariants
/// I-10: what the type says, until the guest is restored. The owner of the frames decides what
/// backs them, except for a toolstack, which gives every pfn another frame. So a region does not
/// survive a suspend, but its frames do ([`into_frames`](Self::into_frames)). A region has at least
/// one run, and only whole ones.
#[must_use = "a region that is dropped is lost to the guest"]
#[derive(Debug, PartialEq, Eq)]
pub struct Region {
    frames: Frames,
    order: u32,
}

/// An exchange that failed, or only part of which worked.
#[must_use = "the frames are in here"]
#[derive(Debug)]
pub struct RegionError {
    /// The reason.
    pub error: ExchangeError,
    /// Runs that had been exchanged before, and stay so. Their order is 0 if they were scattered.
    pub made: Option<Region>,
    /// Frames that have memory, but perhaps no entry in the direct mapping.
    pub stranded: Option<Stranded>,
    /// Frames that are usable as they are.
    pub rest: Option<Frames>,
}

/// Frames with memory that Xen would neither exchange nor map again, or that could not be filled
/// with zeroes. The direct mapping may not have them. [`reinstate`] makes them usable again;
/// otherwise put them in a [`Quarantine`](hypercall::Quarantine).
///
/// ```compile_fail,E0308
/// # use hypercall::Frames;
/// # use swiotlb::region::RegionError;
/// fn as_if_nothing_had_happened(error: RegionError) -> Option<Frames> {
///     error.stranded
/// }
/// ```
#[must_use = "reinstate them, or put them in a quarantine"]
#[derive(Debug, PartialEq, Eq)]
pub struct Stranded(Uncertain);

impl Stranded {
    /// Returns the pfn of the first frame.
    #[must_use]
    pub const fn start(&self) -> Pfn {
        self.0.start()
    }

    /// Returns the number of frames.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.0.count()
    }
}

impl From<Stranded> for Uncertain {
    fn from(stranded: Stranded) -> Self {
        stranded.0
    }
}

impl fmt::Display for RegionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rest = self.rest.as_ref().map_or(0, Frames::count);
        let made = self.made.as_ref().map_or(0, Region::frames);
        write!(f, "{} ({made} frames were exchanged before", self.error)?;
        match self.stranded.as_ref().map_or(0, Stranded::count) {
            0 => write!(f, ", {rest} are as they were)"),
            lost => write!(f, ", {lost} are not mapped: reinstate them)"),
        }
    }
}

impl core::error::Error for RegionError {}

impl Region {
    /// Adopts frames that are in place already, as those of a dom0 often are.
    ///
    /// # Errors
    /// The frames, with [`ExchangeError::Scattered`] or [`ExchangeError::WrongFrame`] if they are
    /// not, or as for [`gather`] if they are not whole runs.
    ///
    /// ```
    /// # use core::sync::atomic::AtomicU64;
    /// use hypercall::{Frames, Pfn};
    /// use p2m::P2m;
    /// use swiotlb::DmaMask;
    /// use swiotlb::region::Region;
    ///
    /// let list: Vec<AtomicU64> = (0x1000..0x1040).map(AtomicU64::new).collect();
    /// let p2m = unsafe { P2m::adopt(&list) }?;
    /// let frames = unsafe { Frames::claim(Pfn::new(0), 64) }; // a dom0's are often contiguous
    /// let region = Region::adopt(&p2m, frames, 6, DmaMask::ALL)?;
    /// assert_eq!((region.runs(), region.frames()), (1, 64));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn adopt(
        p2m: &P2m<'_>,
        frames: Frames,
        order: u32,
        mask: DmaMask,
    ) -> Result<Self, Refused<Frames, ExchangeError>> {
        let lies = check_whole(&frames, order).and_then(|()| {
            let mut starts = (0..frames.count() >> order).map(|run| run << order);
            starts
                .try_for_each(|at| check_run(p2m, Pfn::new(frames.start().raw() + at), order, mask))
        });
        match lies {
            // INVARIANT: I-10: just checked.
            Ok(()) => Ok(Self { frames, order }),
            Err(error) => Err(Refused { value: frames, error }),
        }
    }

    /// The largest order that Xen exchanges for anyone (`MAX_ORDER`). A domU may have 9, a domain
    /// with a device 12 (`memop-max-order`).
    pub const ORDER_MAX: u32 = 18;

    /// Returns log2 of the frames in a run.
    #[must_use]
    pub const fn order(&self) -> u32 {
        self.order
    }

    /// Returns the number of frames in all runs.
    #[must_use]
    pub const fn frames(&self) -> u64 {
        self.frames.count()
    }

    /// Returns the number of runs.
    #[must_use]
    pub const fn runs(&self) -> u64 {
        self.frames.count() >> self.order
    }

    /// Returns the pfn of the first frame.
    #[must_use]
    pub const fn start(&self) -> Pfn {
        self.frames.start()
    }

    /// Returns the first frame of run `run`.
    ///
    /// # Errors
    /// [`ExchangeError::NoSuchRun`]; [`ExchangeError::P2m`] if `p2m` does not have the frame.
    pub fn mfn(&self, p2m: &P2m<'_>, run: u64) -> Result<Mfn, ExchangeError> {
        let runs = self.runs();
        if run >= runs {
            return Err(ExchangeError::NoSuchRun { run, runs });
        }
        Ok(p2m.mfn(Pfn::new(self.frames.start().raw() + (run << self.order)))?)
    }

    /// Returns the same memory in smaller runs. A larger order changes nothing.
    pub fn with_order(self, order: u32) -> Self {
        // INVARIANT: I-10: the parts of an aligned run are runs, and aligned.
        Self { order: order.min(self.order), ..self }
    }

    /// Splits the region after the first `runs` runs.
    ///
    /// # Errors
    /// The region itself, if either part would have no run.
    pub fn split(self, runs: u64) -> Result<(Self, Self), Self> {
        let order = self.order;
        if runs == 0 || runs >= self.runs() {
            return Err(self);
        }
        match self.frames.split(runs << order) {
            Ok((head, rest)) => {
                // INVARIANT: I-10: cut between two runs, with one on either side.
                Ok((Self { frames: head, order }, Self { frames: rest, order }))
            }
            Err(frames) => Err(Self { frames, order }),
        }
    }

    /// # Invariants
    /// I-10 holds for these frames.
    pub(crate) const fn of(frames: Frames, order: u32) -> Self {
        Self { frames, order }
    }

    /// Returns the frames as ordinary memory. To give the contiguous frames back to Xen,
    /// [`scatter`] the region instead.
    pub fn into_frames(self) -> Frames {
        self.frames
    }
}

/// Exchanges `frames` for runs of 2^`order` that `mask` reaches. They are filled with zeroes, and
/// the direct mapping has them at the places of their pfns.
///
/// # Errors
/// [`RegionError`], with every frame. The limits are [`ExchangeError::OrderLimit`] (Xen does not
/// allow this domain the order), [`ExchangeError::NoRun`] (Xen has no such run, or `mask` is too
/// narrow for any), [`ExchangeError::InUse`] (something else maps a frame),
/// [`ExchangeError::NoFrames`], [`ExchangeError::NotWhole`] and [`ExchangeError::Scratch`].
///
/// # Hypercalls
/// Three for each scratch-full: `ceil(count / frames)` times, where `frames` is the largest
/// multiple of 2^`order` that fits the scratch. A refusal costs one more, to undo the first or to
/// map.
///
/// ```
/// # use pv_tests::examples::*;
/// # use hypercall::memory::Extent;
/// use swiotlb::region::{Scratch, gather, scatter};
/// use swiotlb::{DmaMask, Segment};
///
/// let mut test = TestGuest::new();
/// let frames = test.frames.take_run(64); // pages in a row, scattered in the machine
/// let (mut storage, mut extents) = (BatchStorage::<64, 1>::new(), [Extent::default(); 128]);
/// let mut scratch = Scratch { batch: &mut storage.batch(), extents: &mut extents };
/// let region = gather(&test.guest, frames, Segment::ORDER, DmaMask::bits(32), &mut scratch)?;
/// let (first, last) = (region.start(), region.frames() - 1);
/// let last = first.checked_add(last).ok_or("too many")?;
/// let machine_frames = test.p2m.mfn(last)?.offset_from(test.p2m.mfn(first)?);
/// assert_eq!(machine_frames, Some(63)); // one piece for a device, too
/// let frames = scatter(&test.guest, region, &mut scratch)?;
/// assert_eq!(frames.count(), 64);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn gather<M: Machine>(
    guest: &Guest<'_, M>,
    frames: Frames,
    order: u32,
    mask: DmaMask,
    scratch: &mut Scratch<'_, '_>,
) -> Result<Region, RegionError> {
    go(guest, frames, Orders { given: 0, taken: order, mask }, scratch)
}

/// Exchanges the runs of a region back for single frames from anywhere.
///
/// # Errors
/// As for [`gather`]; [`ExchangeError::Scattered`] if a run is no longer contiguous, as after a
/// restore.
///
/// # Hypercalls
/// As for [`gather`].
///
/// ```
/// # use hypercall::memory::Extent;
/// # use pv_tests::dma;
/// use swiotlb::region::{Scratch, scatter};
///
/// let (guest, pool, _) = dma::a_guest_and_its_pool();
/// let mut extents = [Extent::default(); 128];
/// let mut scratch = Scratch { batch: guest.batch(), extents: &mut extents };
/// let region = pool.shrink().ok_or("a buffer is in it")?;
/// let frames = scatter(&guest.guest, region, &mut scratch)?; // Xen has the good ones again
/// assert_eq!(frames.count(), 64);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn scatter<M: Machine>(
    guest: &Guest<'_, M>,
    region: Region,
    scratch: &mut Scratch<'_, '_>,
) -> Result<Frames, RegionError> {
    let orders = Orders { given: region.order, taken: 0, mask: DmaMask::ALL };
    go(guest, region.frames, orders, scratch).map(Region::into_frames)
}

/// Maps stranded frames again and fills them with zeroes. `scratch` must be as large as when they
/// were stranded.
///
/// # Errors
/// The frames, still stranded.
///
/// # Hypercalls
/// One `mmu_update`.
///
/// ```
/// # use hypercall::memory::Extent;
/// # use hypercall::middleware::{FailNth, Refusal};
/// # use hypercall::{BatchStorage, Errno};
/// # use pv_tests::guest::TestGuest;
/// use swiotlb::DmaMask;
/// use swiotlb::region::{Scratch, gather, reinstate};
///
/// let mut test = TestGuest::new();
/// let frames = test.frames.take_run(8);
/// let (mut storage, mut extents) = (BatchStorage::<8, 1>::new(), [Extent::default(); 16]);
/// let mut scratch = Scratch { batch: &mut storage.batch(), extents: &mut extents };
/// // Xen exchanges them, and then refuses twice to map them.
/// let refused = Refusal { request: 3, errno: Errno::EBUSY, done: 0 };
/// let machine = &FailNth::new(FailNth::new(test.model, refused), refused);
/// let refusing = test.guest.with_machine(machine);
/// let error = gather(&refusing, frames, 0, DmaMask::ALL, &mut scratch).expect_err("refused");
/// let stranded = error.stranded.ok_or("none")?;
///
/// let frames = reinstate(&test.guest, stranded, &mut scratch)?; // in the direct mapping, zeroed
/// assert_eq!(frames.count(), 8);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn reinstate<M: Machine>(
    guest: &Guest<'_, M>,
    stranded: Stranded,
    scratch: &mut Scratch<'_, '_>,
) -> Result<Frames, Refused<Stranded, ExchangeError>> {
    let direct = &mut DirectEntries::new(*guest);
    let pfns = Pfns::new(stranded.start(), stranded.count());
    let mapped = exchange::map(direct, pfns, scratch.batch);
    match mapped.and_then(|()| exchange::wipe(direct, pfns)) {
        // SAFETY: the frames were a token's that this crate made `Stranded` of, and nothing else
        // got them; only the direct mapping may have lacked some. Each is mapped there now, as P2M
        // says, and was written (I-1, I-16).
        Ok(()) => Ok(unsafe { stranded.0.vouch() }),
        Err(error) => Err(Refused { value: stranded, error }),
    }
}

fn go<M: Machine>(
    guest: &Guest<'_, M>,
    frames: Frames,
    orders: Orders,
    scratch: &mut Scratch<'_, '_>,
) -> Result<Region, RegionError> {
    let total = frames.count();
    let refuse = |error, frames| {
        let (rest, _) = cut(frames, total);
        Err(RegionError { error, made: None, stranded: None, rest })
    };
    let order = orders.larger();
    if let Err(error) = check_whole(&frames, order) {
        return refuse(error, frames);
    }
    if let Some(error) = orders.impossible() {
        return refuse(error, frames);
    }
    let at_once = scratch.frames_max() >> order << order;
    if at_once == 0 || scratch.batch.ops_max() == 0 {
        return refuse(ExchangeError::Scratch { frames: 1 << order }, frames);
    }
    let start = frames.start();
    let direct = &mut DirectEntries::new(*guest);
    let mut done = 0;
    while done < total {
        let count = at_once.min(total - done);
        let part = Pfns::new(Pfn::new(start.raw() + done), count);
        let Part { made, is_usable, result } = exchange::exchange(direct, part, orders, scratch);
        if let Err(error) = result {
            let (head, tail) = cut(frames, done + made);
            let (stranded, rest) = match is_usable {
                true => (None, tail),
                false => tail.map_or((None, None), |tail| cut(tail, count - made)),
            };
            let made = head.map(|frames| Region { frames, order: orders.taken });
            let stranded = stranded.map(|frames| Stranded(frames.into()));
            return Err(RegionError { error, made, stranded, rest });
        }
        done += count;
    }
    // INVARIANT: I-10: there are frames, and Xen's answer was checked, run by run.
    Ok(Region { frames, order: orders.taken })
}

/// Checks that frames are whole runs, and at least one.
fn check_whole(frames: &Frames, order: u32) -> Result<(), ExchangeError> {
    let total = frames.count();
    if order > Region::ORDER_MAX {
        return Err(ExchangeError::OrderLimit { order });
    }
    if total == 0 {
        return Err(ExchangeError::NoFrames);
    }
    if !total.is_multiple_of(1 << order) {
        return Err(ExchangeError::NotWhole { frames: total, order });
    }
    Ok(())
}

/// Checks that a run is contiguous, aligned to its size, and reached by `mask`.
fn check_run(p2m: &P2m<'_>, pfn: Pfn, order: u32, mask: DmaMask) -> Result<(), ExchangeError> {
    let len_bytes = PAGE_SIZE << order;
    let (start, together) = GuestBytes { pfn, offset: 0, len_bytes }.contiguous(p2m)?;
    if together < len_bytes || !start.is_aligned(order) {
        return Err(ExchangeError::Scattered { pfn });
    }
    if !mask.reaches(start, len_bytes as u64) {
        return Err(ExchangeError::WrongFrame { pfn, mfn: start.mfn(), order, mask });
    }
    Ok(())
}

/// Splits frames after the first `count`. A part without frames is `None`.
fn cut(frames: Frames, count: u64) -> (Option<Frames>, Option<Frames>) {
    let some = |frames: Frames| (frames.count() > 0).then_some(frames);
    match frames.split(count) {
        Ok((head, tail)) => (some(head), some(tail)),
        Err(frames) => (some(frames), None),
    }
}
