//! The map: look-ups, and changes of the meaning of a pfn.
//!
//! Words are read and exchanged without an order ([`Ordering::Relaxed`]): a look-up needs nothing
//! but the word, and reads nothing else because of it. The contents of the frame concern the owner
//! of the pfn, and a pfn passes from one vCPU to another in an order of its own.
#![expect(unsafe_code, reason = "whoever says what a pfn means vouches that Xen has it so (I-15)")]

use hypercall::{DomId, Frame, FrameAccess, Mfn, Pfn, Refused};

use crate::entry::{self, P2mEntry};
use crate::error::P2mError;
use crate::list::List;
use crate::sync::{AtomicU64, Ordering};

/// The frame map, over a list in the guest's memory with one word for each pfn from 0.
///
/// A look-up is a bounds check and a load. Any number of vCPUs can look up at once, while one of
/// them changes entries or the list grows. A change is one 8-byte store, which takes effect only if
/// the entry is still what the change expects. If two collide, one is an error.
///
/// # Invariants
/// I-15: the map says what Xen has. Each pfn that it calls RAM has that frame, the frame is the
/// guest's, and no other pfn has it. The owner of a pfn relies on this, so every change of the
/// meaning of a pfn is unsafe, and its caller vouches for it.
#[derive(Debug)]
pub struct P2m<'a> {
    pub(crate) list: List<'a>,
}

/// A run of pfns: `start..start + count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pfns {
    /// The first.
    pub start: Pfn,
    /// How many.
    pub count: u64,
}

impl Pfns {
    /// Returns `count` pfns from `start` on.
    ///
    /// ```
    /// use hypercall::Pfn;
    /// use p2m::Pfns;
    ///
    /// let pfns = Pfns::new(Pfn::new(0x100), 16);
    /// assert_eq!((pfns.end(), pfns.iter().count()), (0x110, 16));
    /// ```
    #[must_use]
    pub const fn new(start: Pfn, count: u64) -> Self {
        Self { start, count }
    }

    /// Returns the number behind the last pfn, at most `u64::MAX`.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.start.raw().saturating_add(self.count)
    }

    /// Returns the pfns one by one.
    pub fn iter(self) -> impl Iterator<Item = Pfn> + Clone {
        (self.start.raw()..self.end()).map(Pfn::new)
    }
}

impl<'a> P2m<'a> {
    /// Adopts the domain builder's list (`start_info.mfn_list`, `nr_pages` words) in place. Reads
    /// and copies no word.
    ///
    /// # Errors
    /// [`P2mError::Empty`].
    ///
    /// # Safety
    /// The list says what Xen has (I-15): it is the domain builder's, or a true copy, for the
    /// machine that the map is used with. Only maps over it write it, and toolstacks that restore
    /// the guest.
    ///
    /// ```
    /// # use core::sync::atomic::AtomicU64;
    /// use p2m::P2m;
    ///
    /// // The builder's list: a word for each pfn, all ones where there is no memory.
    /// let list = [AtomicU64::new(0x203), AtomicU64::new(u64::MAX)];
    /// let p2m = unsafe { P2m::adopt(&list) }?;
    /// assert_eq!(p2m.len(), 2);
    /// # Ok::<(), p2m::P2mError>(())
    /// ```
    pub unsafe fn adopt(list: &'a [AtomicU64]) -> Result<Self, P2mError> {
        if list.is_empty() { Err(P2mError::Empty) } else { Ok(Self { list: List::of(list) }) }
    }

    /// Returns the number of pfns in the map: `0..len`. It only grows.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.list.len()
    }

    /// Returns whether the map has no pfn. [`adopt`](Self::adopt) refuses such a list.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns how many pfns the map can have without another list.
    #[must_use]
    pub const fn capacity(&self) -> u64 {
        self.list.capacity()
    }

    /// Returns all present pfns of the map.
    #[must_use]
    pub fn all(&self) -> Pfns {
        Pfns::new(Pfn::new(0), self.len())
    }

    /// Returns the entry of `pfn`.
    ///
    /// # Errors
    /// [`P2mError::OutOfRange`].
    ///
    /// ```
    /// # use core::sync::atomic::AtomicU64;
    /// use hypercall::{Mfn, Pfn};
    /// use p2m::{P2m, P2mEntry};
    ///
    /// let list = [AtomicU64::new(0x203), AtomicU64::new(u64::MAX)];
    /// let p2m = unsafe { P2m::adopt(&list) }?;
    /// assert_eq!(p2m.entry(Pfn::new(0))?, P2mEntry::Ram(Mfn::new(0x203)));
    /// assert_eq!(p2m.entry(Pfn::new(1))?, P2mEntry::Absent);
    /// # Ok::<(), p2m::P2mError>(())
    /// ```
    pub fn entry(&self, pfn: Pfn) -> Result<P2mEntry, P2mError> {
        self.word(pfn).map(P2mEntry::decode)
    }

    /// Returns the machine frame of `pfn`, which must be the guest's own.
    ///
    /// # Errors
    /// [`P2mError::OutOfRange`], [`P2mError::Absent`], [`P2mError::NotRam`].
    ///
    /// ```
    /// # use core::sync::atomic::AtomicU64;
    /// use hypercall::{Mfn, Pfn};
    /// use p2m::{P2m, P2mError};
    ///
    /// let list = [AtomicU64::new(0x203), AtomicU64::new(u64::MAX)];
    /// let p2m = unsafe { P2m::adopt(&list) }?;
    /// assert_eq!(p2m.mfn(Pfn::new(0)), Ok(Mfn::new(0x203)));
    /// assert_eq!(p2m.mfn(Pfn::new(1)), Err(P2mError::Absent(Pfn::new(1))));
    /// # Ok::<(), P2mError>(())
    /// ```
    #[inline]
    pub fn mfn(&self, pfn: Pfn) -> Result<Mfn, P2mError> {
        if let Some(word) = self.list.get(pfn.raw()) {
            let word = word.load(Ordering::Relaxed);
            if self.list.is_ram(word) {
                return Ok(Mfn::new(word));
            }
            return Err(not_ram(pfn, word));
        }
        Err(self.out_of_range(pfn))
    }

    /// Returns the machine frame of `pfn`, whoever owns it: the frame for a page table entry.
    ///
    /// # Errors
    /// [`P2mError::OutOfRange`], [`P2mError::Absent`].
    ///
    /// ```
    /// # use core::sync::atomic::AtomicU64;
    /// use hypercall::{DomId, Mfn, Pfn};
    /// use p2m::P2m;
    ///
    /// // A frame of another domain is no memory of the guest's, but it has a frame to map.
    /// let list = [AtomicU64::new(u64::MAX)];
    /// let p2m = unsafe { P2m::adopt(&list) }?;
    /// unsafe { p2m.set_foreign(Pfn::new(0), DomId(1), Mfn::new(0x777)) }?;
    /// assert!(p2m.mfn(Pfn::new(0)).is_err());
    /// assert_eq!(p2m.machine_frame(Pfn::new(0)), Ok(Mfn::new(0x777)));
    /// # Ok::<(), p2m::P2mError>(())
    /// ```
    pub fn machine_frame(&self, pfn: Pfn) -> Result<Mfn, P2mError> {
        self.entry(pfn)?.machine_frame(pfn).ok_or(P2mError::Absent(pfn))
    }

    /// Returns the pfn of `mfn`: M2P's answer, if P2M agrees that it is the guest's memory.
    ///
    /// # Errors
    /// [`P2mError::NotInM2p`], [`P2mError::Disagreement`].
    ///
    /// ```
    /// use hypercall::Pfn;
    /// use p2m::P2m;
    ///
    /// let model = xen_model::Model::builder().pages(2048).build()?;
    /// let list = model.guest().built_list();
    /// let p2m = unsafe { P2m::adopt(&list) }?;
    /// let mfn = p2m.mfn(Pfn::new(7))?;
    /// assert_eq!(p2m.pfn(&model, mfn), Ok(Pfn::new(7)));
    /// // Xen believes M2P, this map does not: the frame has been given back meanwhile.
    /// unsafe { p2m.depopulate(Pfn::new(7)) }?;
    /// assert!(p2m.pfn(&model, mfn).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn pfn<M: FrameAccess + ?Sized>(&self, machine: &M, mfn: Mfn) -> Result<Pfn, P2mError> {
        let Some(m2p) = machine.machine_to_phys(mfn) else { return Err(P2mError::NotInM2p(mfn)) };
        match self.list.get(m2p.raw()).map(|word| word.load(Ordering::Relaxed)) {
            Some(word) if word == mfn.raw() && mfn.raw() < entry::NOT_RAM => Ok(m2p),
            _ => Err(self.disagreement(mfn, m2p)),
        }
    }

    #[cold]
    #[inline(never)]
    fn disagreement(&self, mfn: Mfn, m2p: Pfn) -> P2mError {
        P2mError::Disagreement { mfn, m2p, p2m: self.entry(m2p).ok() }
    }

    /// Returns `frame` if it is the guest's own memory: a check for every allocator of frames.
    ///
    /// # Errors
    /// The frame, and the reason: it is foreign, absent or an identity frame.
    ///
    /// ```
    /// # use core::sync::atomic::AtomicU64;
    /// use hypercall::{Frame, Pfn};
    /// use p2m::P2m;
    ///
    /// let list = [AtomicU64::new(0x203), AtomicU64::new(u64::MAX)];
    /// let p2m = unsafe { P2m::adopt(&list) }?;
    /// let [memory, hole] = [0, 1].map(|pfn| unsafe { Frame::claim(Pfn::new(pfn)) });
    /// assert!(p2m.own(memory).is_ok() && p2m.own(hole).is_err());
    /// # Ok::<(), p2m::P2mError>(())
    /// ```
    pub fn own(&self, frame: Frame) -> Result<Frame, Refused<Frame, P2mError>> {
        match self.mfn(frame.pfn()) {
            Ok(_) => Ok(frame),
            Err(error) => Err(Refused { value: frame, error }),
        }
    }

    /// Records that Xen put `mfn` behind `pfn`, which had no memory.
    ///
    /// # Errors
    /// [`P2mError::Occupied`], [`P2mError::NotReserved`], [`P2mError::NoFrame`],
    /// [`P2mError::OutOfRange`].
    ///
    /// # Safety
    /// Xen has this frame behind the pfn, and only the owner of the pfn uses it (I-15).
    ///
    /// ```
    /// # use core::sync::atomic::AtomicU64;
    /// use hypercall::{Mfn, Pfn};
    /// use p2m::P2m;
    ///
    /// let list = [AtomicU64::new(0x203), AtomicU64::new(u64::MAX)];
    /// let p2m = unsafe { P2m::adopt(&list) }?;
    /// unsafe { p2m.populate(Pfn::new(1), Mfn::new(0x777)) }?;
    /// assert!(unsafe { p2m.populate(Pfn::new(0), Mfn::new(0x778)) }.is_err()); // it has memory
    /// # Ok::<(), p2m::P2mError>(())
    /// ```
    pub unsafe fn populate(&self, pfn: Pfn, mfn: Mfn) -> Result<(), P2mError> {
        self.fill(pfn, P2mEntry::Ram(mfn))
    }

    /// Records that the memory behind `pfn` is given back to Xen, and returns the frame.
    ///
    /// # Errors
    /// [`P2mError::NotRam`] for a foreign or identity frame, [`P2mError::Absent`],
    /// [`P2mError::OutOfRange`].
    ///
    /// # Safety
    /// The caller owns the pfn. Nothing maps its memory any more, or Xen has it already.
    ///
    /// ```
    /// # use core::sync::atomic::AtomicU64;
    /// use hypercall::{Mfn, Pfn};
    /// use p2m::P2m;
    ///
    /// let list = [AtomicU64::new(0x203)];
    /// let p2m = unsafe { P2m::adopt(&list) }?;
    /// assert_eq!(unsafe { p2m.depopulate(Pfn::new(0)) }, Ok(Mfn::new(0x203)));
    /// # Ok::<(), p2m::P2mError>(())
    /// ```
    pub unsafe fn depopulate(&self, pfn: Pfn) -> Result<Mfn, P2mError> {
        let mfn = self.mfn(pfn)?;
        self.change(pfn, mfn.raw(), P2mEntry::Absent)?;
        Ok(mfn)
    }

    /// Records that Xen exchanged the frame behind `pfn` for `mfn`, and returns the old one.
    ///
    /// # Errors
    /// As for [`depopulate`](Self::depopulate), and [`P2mError::NoFrame`].
    ///
    /// # Safety
    /// The caller owns the pfn. Xen has this frame behind it now, and nobody else uses the frame.
    ///
    /// ```
    /// # use core::sync::atomic::AtomicU64;
    /// use hypercall::{Mfn, Pfn};
    /// use p2m::P2m;
    ///
    /// let list = [AtomicU64::new(0x203)];
    /// let p2m = unsafe { P2m::adopt(&list) }?;
    /// assert_eq!(unsafe { p2m.replace(Pfn::new(0), Mfn::new(0x777)) }, Ok(Mfn::new(0x203)));
    /// # Ok::<(), p2m::P2mError>(())
    /// ```
    pub unsafe fn replace(&self, pfn: Pfn, mfn: Mfn) -> Result<Mfn, P2mError> {
        let old = self.mfn(pfn)?;
        self.change(pfn, old.raw(), P2mEntry::Ram(mfn))?;
        Ok(old)
    }

    /// Marks `pfn`, which is empty, as a frame of `owner`.
    ///
    /// # Errors
    /// [`P2mError::Occupied`] if it is not empty, and as for [`populate`](Self::populate).
    ///
    /// # Safety
    /// The pfn is the caller's. The frame is that domain's, and this guest may map it.
    ///
    /// ```
    /// # use core::sync::atomic::AtomicU64;
    /// use hypercall::{DomId, Mfn, Pfn};
    /// use p2m::P2m;
    ///
    /// let list = [AtomicU64::new(u64::MAX)];
    /// let p2m = unsafe { P2m::adopt(&list) }?;
    /// unsafe { p2m.set_foreign(Pfn::new(0), DomId(1), Mfn::new(0x777)) }?;
    /// assert_eq!(unsafe { p2m.clear_foreign(Pfn::new(0)) }?, (DomId(1), Mfn::new(0x777)));
    /// # Ok::<(), p2m::P2mError>(())
    /// ```
    pub unsafe fn set_foreign(&self, pfn: Pfn, owner: DomId, mfn: Mfn) -> Result<(), P2mError> {
        self.fill(pfn, P2mEntry::Foreign { owner, mfn })
    }

    /// Removes the mark again, and returns it.
    ///
    /// # Errors
    /// [`P2mError::NotForeign`], [`P2mError::OutOfRange`].
    ///
    /// # Safety
    /// The pfn is the caller's, and nothing maps the frame for it any more.
    pub unsafe fn clear_foreign(&self, pfn: Pfn) -> Result<(DomId, Mfn), P2mError> {
        let word = self.word(pfn)?;
        match P2mEntry::decode(word) {
            P2mEntry::Foreign { owner, mfn } => {
                self.change(pfn, word, P2mEntry::Absent)?;
                Ok((owner, mfn))
            }
            entry => Err(P2mError::NotForeign { pfn, entry }),
        }
    }

    /// Marks `pfns`, which are empty, as identity frames: holes of the e820 map, the ISA area,
    /// devices. Marks all of them or none. For large holes, `Window::reserve_identity` needs no
    /// memory.
    ///
    /// # Errors
    /// As for [`populate`](Self::populate).
    ///
    /// # Safety
    /// The pfns are the caller's. The machine's frames of these numbers are not the guest's RAM.
    ///
    /// ```
    /// # use core::sync::atomic::AtomicU64;
    /// use hypercall::{Mfn, Pfn};
    /// use p2m::{P2m, Pfns};
    ///
    /// let list = [const { AtomicU64::new(u64::MAX) }; 8];
    /// let p2m = unsafe { P2m::adopt(&list) }?;
    /// unsafe { p2m.set_identity(Pfns::new(Pfn::new(2), 4)) }?; // a device's registers
    /// assert_eq!(p2m.machine_frame(Pfn::new(3)), Ok(Mfn::new(3)));
    /// # Ok::<(), p2m::P2mError>(())
    /// ```
    pub unsafe fn set_identity(&self, pfns: Pfns) -> Result<(), P2mError> {
        self.for_all(
            pfns,
            |pfn| self.fill(pfn, P2mEntry::Identity),
            |pfn| self.change(pfn, entry::IDENTITY, P2mEntry::Absent),
        )
    }

    /// Makes identity frames absent, all of them or none.
    ///
    /// # Errors
    /// [`P2mError::NotIdentity`], [`P2mError::NotReserved`], [`P2mError::OutOfRange`].
    ///
    /// # Safety
    /// The pfns are the caller's, and nothing maps the machine's frames for them any more.
    ///
    /// ```
    /// # use core::sync::atomic::AtomicU64;
    /// # use hypercall::Pfn;
    /// # use p2m::{P2m, P2mEntry, Pfns};
    /// let list = [const { AtomicU64::new(u64::MAX) }; 8];
    /// let p2m = unsafe { P2m::adopt(&list) }?;
    /// let device = Pfns::new(Pfn::new(2), 4);
    /// unsafe { p2m.set_identity(device) }?;
    /// unsafe { p2m.clear_identity(device) }?;
    /// assert_eq!(p2m.entry(Pfn::new(3)), Ok(P2mEntry::Absent));
    /// # Ok::<(), p2m::P2mError>(())
    /// ```
    pub unsafe fn clear_identity(&self, pfns: Pfns) -> Result<(), P2mError> {
        let clear = |pfn| {
            let word = self.word(pfn)?;
            match P2mEntry::decode(word) {
                P2mEntry::Identity if entry::is_shared(word) => Err(P2mError::NotReserved(pfn)),
                P2mEntry::Identity => self.change(pfn, word, P2mEntry::Absent),
                entry => Err(P2mError::NotIdentity { pfn, entry }),
            }
        };
        self.for_all(pfns, clear, |pfn| self.fill(pfn, P2mEntry::Identity))
    }

    /// Records that Xen put the frames from `mfn` on behind `pfns`, for all of them or none.
    ///
    /// # Errors
    /// As for [`populate`](Self::populate).
    ///
    /// # Safety
    /// As for [`populate`](Self::populate), for each of them.
    ///
    /// ```
    /// # use core::sync::atomic::AtomicU64;
    /// use hypercall::{Mfn, Pfn};
    /// use p2m::{P2m, Pfns};
    ///
    /// let list = [const { AtomicU64::new(u64::MAX) }; 8];
    /// let p2m = unsafe { P2m::adopt(&list) }?;
    /// unsafe { p2m.populate_run(Pfns::new(Pfn::new(2), 4), Mfn::new(0x100)) }?;
    /// assert_eq!(p2m.mfn(Pfn::new(5)), Ok(Mfn::new(0x103)));
    /// # Ok::<(), p2m::P2mError>(())
    /// ```
    pub unsafe fn populate_run(&self, pfns: Pfns, mfn: Mfn) -> Result<(), P2mError> {
        let frame = |pfn: Pfn| {
            let offset = pfn.offset_from(pfns.start).unwrap_or_default();
            mfn.checked_add(offset).ok_or(P2mError::NoFrame(mfn))
        };
        self.for_all(
            pfns,
            // SAFETY: the caller's promise, one by one.
            |pfn| unsafe { self.populate(pfn, frame(pfn)?) },
            // SAFETY: nobody has learnt yet that the pfn has memory.
            |pfn| unsafe { self.depopulate(pfn) }.map(drop),
        )
    }

    /// Returns the word of `pfn`.
    pub(crate) fn word(&self, pfn: Pfn) -> Result<u64, P2mError> {
        match self.list.get(pfn.raw()) {
            Some(word) => Ok(word.load(Ordering::Relaxed)),
            None => Err(self.out_of_range(pfn)),
        }
    }

    /// Checks that a pfn is empty and can be filled now.
    ///
    /// # Errors
    /// [`P2mError::Occupied`], [`P2mError::NotReserved`], [`P2mError::OutOfRange`].
    pub fn check_can_fill(&self, pfn: Pfn) -> Result<(), P2mError> {
        let word = self.word(pfn)?;
        match P2mEntry::decode(word) {
            P2mEntry::Absent if entry::is_shared(word) => Err(P2mError::NotReserved(pfn)),
            P2mEntry::Absent => Ok(()),
            entry => Err(P2mError::Occupied { pfn, entry }),
        }
    }

    /// Fills an absent pfn.
    fn fill(&self, pfn: Pfn, to: P2mEntry) -> Result<(), P2mError> {
        self.check_can_fill(pfn)?;
        self.change(pfn, entry::ABSENT, to)
    }

    /// Stores `to` if the word of `pfn` is `from`.
    fn change(&self, pfn: Pfn, from: u64, to: P2mEntry) -> Result<(), P2mError> {
        let Some(new) = to.encode() else {
            return Err(P2mError::NoFrame(to.machine_frame(pfn).unwrap_or(Mfn::new(u64::MAX))));
        };
        let word = self.list.get(pfn.raw()).ok_or_else(|| self.out_of_range(pfn))?;
        // If two change a word at once, one finds what the other has stored.
        match word.compare_exchange(from, new, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(found) => Err(P2mError::Occupied { pfn, entry: P2mEntry::decode(found) }),
        }
    }

    /// Does something to each pfn, and undoes it in reverse if one refuses.
    fn for_all(
        &self,
        pfns: Pfns,
        apply: impl Fn(Pfn) -> Result<(), P2mError>,
        undo: impl Fn(Pfn) -> Result<(), P2mError>,
    ) -> Result<(), P2mError> {
        if pfns.end() > self.len() {
            return Err(self.out_of_range(Pfn::new(pfns.end().saturating_sub(1))));
        }
        for pfn in pfns.iter() {
            let Err(error) = apply(pfn) else { continue };
            for done in (pfns.start.raw()..pfn.raw()).rev().map(Pfn::new) {
                // It was applied a moment ago. If another vCPU has taken the pfn since, it keeps
                // it.
                let _ = undo(done);
            }
            return Err(error);
        }
        Ok(())
    }

    #[cold]
    fn out_of_range(&self, pfn: Pfn) -> P2mError {
        P2mError::OutOfRange { pfn, len: self.len() }
    }
}

#[cold]
const fn not_ram(pfn: Pfn, word: u64) -> P2mError {
    match P2mEntry::decode(word) {
        P2mEntry::Absent => P2mError::Absent(pfn),
        entry => P2mError::NotRam { pfn, entry },
    }
}

#[cfg(all(test, not(loom)))]
#[path = "map/tests.rs"]
pub(crate) mod tests;
