//! Pfns that never have memory: places to map grants and other domains' frames.
//!
//! A guest that maps a grant needs a pfn for it, with a word in the map and an entry in the direct
//! mapping. With a pfn from RAM, the guest would give a page back to Xen for each grant, without
//! limit (XSA-300), and the balloon's accounts would depend on backends. So a fixed number of pfns
//! behind the memory is set apart once.

use hypercall::{Frame, Frames, Pfn, Refused};
use p2m::{P2m, P2mError};

use crate::balloon::{Balloon, BalloonError, check_all_empty};
use crate::set::PfnSet;

/// A pfn without memory that nobody else uses.
#[must_use = "a pfn that is dropped is lost to the reserve"]
#[derive(Debug, PartialEq, Eq)]
pub struct EmptyPfn(Frame);

impl EmptyPfn {
    /// Returns its number.
    #[must_use]
    pub const fn pfn(&self) -> Pfn {
        self.0.pfn()
    }
}

/// Pfns for grants and foreign frames. Dropping it loses them.
///
/// # Invariants
/// I-12 for each pfn in `free`, and none of them has memory. The others of the run are out as
/// [`EmptyPfn`]s.
#[derive(Debug)]
pub struct Reserve<'s> {
    start: Pfn,
    count: u64,
    /// By their distance from `start`.
    free: PfnSet<'s>,
}

impl<'s> Reserve<'s> {
    /// Returns how many words [`new`](Self::new) needs for `pfns` pfns.
    #[must_use]
    pub const fn words_needed(pfns: u64) -> u64 {
        PfnSet::words_needed(pfns)
    }

    /// Creates a reserve of the empty pfns `frames`, as far as `words` has bits for them. The
    /// balloon counts them. The rest of the run comes back.
    ///
    /// # Errors
    /// All the pfns, with [`BalloonError::NotEmpty`].
    ///
    /// ```
    /// # use core::sync::atomic::AtomicU64;
    /// # use hypercall::{Frames, Pfn};
    /// # use p2m::{Guest, P2m};
    /// use balloon::{Balloon, Reserve, Wipe};
    ///
    /// let model = xen_model::Model::builder().pages(2048).build()?;
    /// let mut list = model.guest().built_list();
    /// list.resize_with(2112, || AtomicU64::new(u64::MAX)); // 64 pfns behind the memory
    /// let p2m = unsafe { P2m::adopt(&list) }?;
    /// let kernel_root = Pfn::new(0); // not used here
    /// let guest = unsafe { Guest::new(&model, &p2m, kernel_root) };
    /// let (mut words, mut bits) = ([0; 33], [0; 1]);
    /// let (mut balloon, _) = Balloon::new(&guest, &mut words, 0, Wipe::Always)?;
    /// let empty = unsafe { Frames::claim(Pfn::new(2048), 64) }; // nobody else has them
    /// let (mut reserve, _) = Reserve::new(&mut balloon, &p2m, empty, &mut bits)?;
    /// let pfn = reserve.take().ok_or("none is free")?; // for a grant
    /// reserve.give(&p2m, pfn)?;
    /// assert_eq!((reserve.free(), reserve.count()), (64, 64));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(
        balloon: &mut Balloon<'_>,
        p2m: &P2m<'_>,
        frames: Frames,
        words: &'s mut [u64],
    ) -> Result<(Self, Frames), Refused<Frames, BalloonError>> {
        let refused = |value, error| Refused { value, error: BalloonError::NotEmpty(error) };
        if let Err(error) = check_all_empty(p2m, &frames) {
            return Err(refused(frames, error));
        }
        let mut free = PfnSet::empty(words);
        let (start, count) = (frames.start(), frames.count().min(free.end()));
        let (mut reserved, rest) = match frames.split(count) {
            Ok(parts) => parts,
            // There are at least so many.
            Err(frames) => {
                let error = P2mError::OutOfRange { pfn: start, len: count };
                return Err(refused(frames, error));
            }
        };
        while let Some(frame) = reserved.take() {
            // INVARIANT: I-12: the token is consumed.
            free.insert(Pfn::new(frame.pfn().raw() - start.raw()));
        }
        balloon.leave_out(count);
        Ok((Self { start, count, free }, rest))
    }

    /// Takes a free pfn, if there is one.
    #[expect(unsafe_code, reason = "makes the token again that `new` or `give` consumed")]
    pub fn take(&mut self) -> Option<EmptyPfn> {
        let offset = self.free.lowest().next()?;
        self.free.remove(offset);
        let pfn = Pfn::new(self.start.raw() + offset.raw());
        // SAFETY: I-12: it was the reserve's until a moment ago (I-1).
        Some(EmptyPfn(unsafe { Frame::claim(pfn) }))
    }

    /// Takes a pfn back. The map must call it empty again.
    ///
    /// # Errors
    /// The pfn, with [`BalloonError::NotEmpty`] if it is still foreign or has something else, or
    /// [`BalloonError::OtherReserve`].
    pub fn give(
        &mut self,
        p2m: &P2m<'_>,
        empty: EmptyPfn,
    ) -> Result<(), Refused<EmptyPfn, BalloonError>> {
        let pfn = empty.pfn();
        let offset = pfn.offset_from(self.start).filter(|offset| *offset < self.count);
        let Some(offset) = offset else {
            return Err(Refused { value: empty, error: BalloonError::OtherReserve(pfn) });
        };
        if let Err(error) = p2m.check_can_fill(pfn) {
            return Err(Refused { value: empty, error: BalloonError::NotEmpty(error) });
        }
        // INVARIANT: I-12: the token is consumed.
        match self.free.insert(Pfn::new(offset)) {
            true => Ok(()),
            false => Err(Refused { value: empty, error: BalloonError::OtherReserve(pfn) }),
        }
    }

    /// Returns how many pfns are free.
    #[must_use]
    pub const fn free(&self) -> u64 {
        self.free.count()
    }

    /// Returns how many pfns there are in all.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }
}
