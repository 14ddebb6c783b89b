//! Frames of pages and tables: where they come from and go to, and who shares them.

use core::fmt;
use core::num::NonZeroUsize;

use hypercall::{DomId, Frame, FrameSource, Mfn, Pfn, Uncertain};

/// Pages of address spaces that are not the guest's own memory: another domain's, or a device's.
pub trait ForeignFrames {
    /// Learns that `mfn` is no longer mapped. The frame is not the guest's own, or P2M does not
    /// confirm it. A refused mapping is not reported.
    fn give_foreign(&mut self, mfn: Mfn);

    /// Returns the domain that has `mfn`, which is mapped and not the guest's own. Only in the name
    /// of that domain does Xen let the entry's flags change, and take the entry back in an undo.
    fn domain_of(&self, mfn: Mfn) -> DomId;
}

/// The frames of address spaces: their source, and others who have a part in them.
pub struct SpaceFrames<'a, F> {
    /// Where frames come from and go to.
    pub source: &'a mut F,
    /// Where the frames of tables come from and go to, if not `source`.
    tables: Option<&'a mut dyn FrameSource>,
    /// The counts of shared frames, if they count the present address space's pages.
    shares: Option<Shares<'a>>,
    /// The same, if they do not.
    others: Option<Shares<'a>>,
    /// Where the present address space's pages are counted, if any was ever shared.
    counted: Option<CountedAt>,
    /// The owners of frames that are not the guest's own.
    foreign: Option<&'a mut dyn ForeignFrames>,
}

impl<F: fmt::Debug> fmt::Debug for SpaceFrames<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut frames = f.debug_struct("SpaceFrames");
        frames.field("source", &self.source).field("shares", &self.shares);
        frames.finish_non_exhaustive()
    }
}

impl<'a, F> SpaceFrames<'a, F> {
    /// Takes all frames from `source`. No frame is shared, and nobody knows foreign ones.
    pub(crate) const fn new(source: &'a mut F) -> Self {
        let (tables, foreign) = (None, None);
        Self { source, tables, shares: None, others: None, counted: None, foreign }
    }

    pub(crate) fn take_tables_from(&mut self, tables: &'a mut dyn FrameSource) {
        self.tables = Some(tables);
    }

    pub(crate) fn count_in(&mut self, shares: Shares<'a>) {
        (self.shares, self.others, self.counted) = (Some(shares), None, None);
    }

    /// Returns where these frames are counted when they are shared.
    pub(crate) fn counts(&self) -> Option<CountedAt> {
        self.shares.as_ref().or(self.others.as_ref()).map(Shares::counted_at)
    }

    /// Begins work on an address space whose pages are counted at `counted`. Other counts are not
    /// touched meanwhile.
    #[inline]
    pub(crate) fn begin(&mut self, counted: Option<CountedAt>) {
        if self.counted != counted {
            self.change_counts(counted);
        }
    }

    #[cold]
    fn change_counts(&mut self, counted: Option<CountedAt>) {
        self.counted = counted;
        let shares = self.shares.take().or(self.others.take());
        let is_other =
            |shares: &Shares<'a>| counted.is_some_and(|place| place != shares.counted_at());
        match shares {
            Some(shares) if is_other(&shares) => self.others = Some(shares),
            shares => self.shares = shares,
        }
    }

    /// Returns whether the present address space's shares are counted elsewhere.
    #[inline]
    pub(crate) const fn is_counted_elsewhere(&self) -> bool {
        self.counted.is_some() && self.shares.is_none()
    }

    pub(crate) fn tell_foreign(&mut self, foreign: &'a mut dyn ForeignFrames) {
        self.foreign = Some(foreign);
    }

    /// Returns the counts of shared frames.
    #[inline]
    pub(crate) const fn shares(&mut self) -> Option<&mut Shares<'a>> {
        self.shares.as_mut()
    }

    /// Returns the same frames, for one operation.
    pub(crate) fn lend(&mut self) -> SpaceFrames<'_, F> {
        SpaceFrames {
            source: self.source,
            tables: match &mut self.tables {
                Some(tables) => Some(*tables),
                None => None,
            },
            shares: self.shares.as_mut().map(Shares::reborrow),
            others: self.others.as_mut().map(Shares::reborrow),
            counted: self.counted,
            foreign: match &mut self.foreign {
                Some(foreign) => Some(*foreign),
                None => None,
            },
        }
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn give_foreign(&mut self, mfn: Mfn) {
        if let Some(foreign) = &mut self.foreign {
            foreign.give_foreign(mfn);
        }
    }

    /// Returns the domain that has `mfn`: the guest's own, if nobody knows.
    pub(crate) fn domain_of(&self, mfn: Mfn) -> DomId {
        self.foreign.as_ref().map_or(DomId::SELF, |foreign| foreign.domain_of(mfn))
    }
}

impl<'a, F: FrameSource> SpaceFrames<'a, F> {
    /// Returns where the frames of tables come from and go to.
    #[inline]
    pub(crate) fn of_tables(&mut self) -> &mut dyn FrameSource {
        match &mut self.tables {
            Some(tables) => *tables,
            None => self.source,
        }
    }

    /// Returns the same frames, with `source` for pages.
    pub(crate) fn with_source<G>(self, source: &'a mut G) -> SpaceFrames<'a, G> {
        let tables: &'a mut dyn FrameSource = match self.tables {
            Some(tables) => tables,
            None => self.source,
        };
        let Self { shares, others, counted, foreign, .. } = self;
        SpaceFrames { source, tables: Some(tables), shares, others, counted, foreign }
    }
}

impl<F: FrameSource> FrameSource for SpaceFrames<'_, F> {
    #[inline]
    fn take(&mut self) -> Option<Frame> {
        self.source.take()
    }

    #[inline]
    fn give(&mut self, frame: Frame) {
        self.source.give(frame);
    }

    fn give_uncertain(&mut self, frames: Uncertain) {
        self.source.give_uncertain(frames);
    }
}

/// Takes back one share. The last one gives the frame to `frames`. A share that nobody counts is
/// lost, with its frame.
#[expect(clippy::inline_always, reason = "a call is a part of what ending a shared page costs")]
#[inline(always)]
pub(crate) fn give_shared(frames: &mut SpaceFrames<'_, impl FrameSource>, share: SharedFrame) {
    let released = match frames.shares() {
        Some(shares) => shares.release_sure(share),
        None => Err(share),
    };
    match released {
        Ok(None) => {}
        Ok(Some(frame)) => frames.give(frame),
        Err(share) => give_odd_share(frames, share),
    }
}

/// Takes back a share whose frame is in doubt, or which nobody counts.
#[cold]
#[inline(never)]
fn give_odd_share(frames: &mut SpaceFrames<'_, impl FrameSource>, share: SharedFrame) {
    let pfn = share.0;
    match frames.shares().map(|shares| shares.release(share)) {
        Some(Released::Frame(frame)) => frames.give(frame),
        Some(Released::Uncertain(frame)) => frames.give_uncertain(frame),
        Some(Released::Shared) => {}
        None => log::error!("nobody counts who shares pfn {pfn}: it is lost"),
    }
}

/// Takes back a share whose frame is in doubt. The last one gives it as an uncertain frame.
#[cold]
pub(crate) fn give_uncertain_share(
    frames: &mut SpaceFrames<'_, impl FrameSource>,
    share: SharedFrame,
) {
    let released = frames.shares().map(|shares| shares.release_in_doubt(share));
    match released {
        Some(Released::Frame(frame)) => frames.give_uncertain(frame.into()),
        Some(Released::Uncertain(frame)) => frames.give_uncertain(frame),
        Some(Released::Shared) | None => {}
    }
}

/// Whether the entry of a page is marked as shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marked {
    /// It is: the frame is counted already.
    Shared,
    /// It is not: its address space is the only one.
    Own,
}

/// One share of a frame that several address spaces map.
#[must_use = "a share that is dropped is never given back, and neither is its frame"]
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SharedFrame(Pfn);

impl SharedFrame {
    /// Returns the share that a marked entry stood for, which is gone.
    pub(crate) const fn released(pfn: Pfn) -> Self {
        Self(pfn)
    }
}

/// The place of counts, which identifies them. Later counts at the same place begin with zeroes,
/// and count nothing that was shared before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CountedAt(NonZeroUsize);

/// Nobody counts the frame, its count does not agree with the entry, or the count is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CannotShare(pub(crate) Pfn);

/// What becomes of a frame when one of its sharers lets go.
#[must_use = "a token that is dropped is lost"]
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Released {
    /// Others still share it.
    Shared,
    /// That was the last.
    Frame(Frame),
    /// That was the last, but a TLB may still know the frame from this or an earlier sharer.
    Uncertain(Uncertain),
}

/// Set in a count if a TLB may still know the frame from someone who has let go of it.
const DOUBT: u16 = 1 << 15;
/// The highest count.
const FULL: u16 = DOUBT - 1;

/// How many address spaces share each frame, in the caller's memory: one place for each pfn. Only
/// this crate changes the counts, because the last share of a frame becomes its token. The `Shares`
/// with which an address space was first forked counts its frames. With any other, an operation
/// that would end a share is refused ([`MapError::OtherShares`](crate::MapError::OtherShares)).
#[derive(Debug)]
pub struct Shares<'s> {
    counts: &'s mut [u16],
}

impl<'s> Shares<'s> {
    /// Creates counts with nothing shared.
    ///
    /// ```
    /// use hypercall::Pfn;
    /// use pvmmu::Shares;
    ///
    /// let mut counts = [0; 64]; // a guest of 64 pages
    /// let shares = Shares::new(&mut counts);
    /// assert_eq!(shares.count(Pfn::new(7)), 0); // one owner, who is not counted
    /// ```
    pub fn new(counts: &'s mut [u16]) -> Self {
        counts.fill(0);
        Self { counts }
    }

    /// Returns how many address spaces share the frame: 0 if it is not shared.
    #[must_use]
    pub fn count(&self, pfn: Pfn) -> u16 {
        usize::try_from(pfn.raw())
            .ok()
            .and_then(|at| self.counts.get(at))
            .map_or(0, |count| count & !DOUBT)
    }

    /// Returns whether one sharer is left, and no TLB may know the frame from another.
    pub(crate) fn is_last(&self, pfn: Pfn) -> bool {
        let at = usize::try_from(pfn.raw()).ok();
        at.and_then(|at| self.counts.get(at)).is_some_and(|count| *count == 1)
    }

    fn place(&mut self, pfn: Pfn) -> Option<&mut u16> {
        self.counts.get_mut(usize::try_from(pfn.raw()).ok()?)
    }

    /// Counts one more sharer: the first time there are two. A marked entry stands for a count, and
    /// any other for none. If that is not so, the frame is counted elsewhere, or an undo was
    /// refused; then nothing changes.
    ///
    /// # Errors
    /// [`CannotShare`].
    pub(crate) fn share(&mut self, pfn: Pfn, marked: Marked) -> Result<(), CannotShare> {
        let place = self.place(pfn).ok_or(CannotShare(pfn))?;
        let sharers = *place & !DOUBT;
        match marked {
            Marked::Own if sharers == 0 => *place = 2,
            // From 1 on, and not yet full.
            Marked::Shared if sharers.wrapping_sub(1) < FULL - 1 => *place += 1,
            Marked::Own | Marked::Shared => return Err(CannotShare(pfn)),
        }
        Ok(())
    }

    pub(crate) fn counted_at(&self) -> CountedAt {
        CountedAt(NonZeroUsize::MIN.saturating_add(self.counts.as_ptr().addr()))
    }

    /// Returns the same counts, for one call.
    pub(crate) fn reborrow(&mut self) -> Shares<'_> {
        Shares { counts: self.counts }
    }

    /// Ends the count: the frame has one owner.
    pub(crate) fn unshare(&mut self, pfn: Pfn) {
        if let Some(place) = self.place(pfn) {
            *place = 0;
        }
    }

    /// Counts one sharer less. Returns what becomes of the frame.
    pub(crate) fn release(&mut self, share: SharedFrame) -> Released {
        match self.release_sure(share) {
            Ok(None) => Released::Shared,
            Ok(Some(frame)) => Released::Frame(frame),
            Err(share) => self.release_odd(share),
        }
    }

    /// Counts one sharer less. Returns the frame if that was the last, or gives the share back if
    /// the frame is in doubt or not counted.
    #[expect(unsafe_code, reason = "the last share of a frame becomes its token")]
    #[expect(clippy::inline_always, reason = "a call is a part of what ending a shared page costs")]
    #[inline(always)]
    fn release_sure(&mut self, share: SharedFrame) -> Result<Option<Frame>, SharedFrame> {
        match self.place(share.0) {
            Some(place @ 2..DOUBT) => {
                *place -= 1;
                Ok(None)
            }
            Some(place @ 1) => {
                *place = 0;
                // SAFETY: I-4: a share stands for one marked entry that is gone, and this was the
                // last of them.
                Ok(Some(unsafe { Frame::claim(share.0) }))
            }
            _ => Err(share),
        }
    }

    /// Does what [`release`](Self::release) does for a frame in doubt, or one that nobody counts.
    #[cold]
    #[expect(unsafe_code, reason = "the last share of a frame becomes its token")]
    fn release_odd(&mut self, frame: SharedFrame) -> Released {
        const LAST_IN_DOUBT: u16 = DOUBT | 1;
        match self.place(frame.0) {
            Some(place) if *place > LAST_IN_DOUBT => *place -= 1,
            Some(place) if *place == LAST_IN_DOUBT => {
                *place = 0;
                // SAFETY: I-4, as for the last share of any frame. The token tells of the others,
                // too.
                return Released::Uncertain(Uncertain::from(unsafe { Frame::claim(frame.0) }));
            }
            _ => log::error!("pfn {} was given back more often than it was shared", frame.0),
        }
        Released::Shared
    }

    /// Does the same for a share whose entry a TLB may still know.
    pub(crate) fn release_in_doubt(&mut self, frame: SharedFrame) -> Released {
        if let Some(place) = self.place(frame.0).filter(|place| **place > 0) {
            *place |= DOUBT;
        }
        self.release(frame)
    }
}

/// The one frame to map, which comes back here.
#[derive(Debug, Default)]
pub(crate) struct OnePage {
    frame: Option<Frame>,
    uncertain: Option<Uncertain>,
}

impl OnePage {
    pub(crate) const fn new(frame: Frame) -> Self {
        Self { frame: Some(frame), uncertain: None }
    }

    /// Ends the mapping of the frame. What is in doubt goes to `frames`.
    pub(crate) fn end(self, frames: &mut impl FrameSource) -> Option<Frame> {
        self.uncertain.into_iter().for_each(|frame| frames.give_uncertain(frame));
        self.frame
    }
}

impl FrameSource for OnePage {
    fn take(&mut self) -> Option<Frame> {
        self.frame.take()
    }

    fn give(&mut self, frame: Frame) {
        debug_assert!(self.frame.is_none() && self.uncertain.is_none(), "one page, one place");
        self.frame = Some(frame);
    }

    fn give_uncertain(&mut self, frame: Uncertain) {
        debug_assert!(self.frame.is_none() && self.uncertain.is_none(), "one page, one place");
        self.uncertain = Some(frame);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_all_sharers_gets_the_frame() {
        let mut counts = [9; 4];
        let mut shares = Shares::new(&mut counts);
        let pfn = Pfn::new(2);
        assert_eq!(shares.share(pfn, Marked::Own), Ok(()));
        assert_eq!(shares.share(pfn, Marked::Shared), Ok(()));
        assert_eq!(shares.count(pfn), 3);
        assert_eq!(shares.release(SharedFrame(pfn)), Released::Shared);
        assert_eq!(shares.release(SharedFrame(pfn)), Released::Shared);
        let Released::Frame(frame) = shares.release(SharedFrame(pfn)) else { panic!("the last") };
        assert_eq!((frame.pfn(), shares.count(pfn)), (pfn, 0));
        assert_eq!(
            shares.release(SharedFrame(pfn)),
            Released::Shared,
            "a share too many makes no second frame"
        );
    }

    #[test]
    fn a_frame_of_which_one_share_is_in_doubt_comes_back_as_an_uncertain_one() {
        let mut counts = [0; 4];
        let mut shares = Shares::new(&mut counts);
        let pfn = Pfn::new(3);
        let shared = [Marked::Own, Marked::Shared].map(|marked| shares.share(pfn, marked));
        assert_eq!(shared, [Ok(()); 2]);
        assert_eq!(shares.release_in_doubt(SharedFrame(pfn)), Released::Shared);
        assert_eq!((shares.count(pfn), shares.share(pfn, Marked::Shared)), (2, Ok(())));
        assert_eq!(shares.release(SharedFrame(pfn)), Released::Shared);
        assert_eq!(shares.release(SharedFrame(pfn)), Released::Shared);
        let Released::Uncertain(frame) = shares.release(SharedFrame(pfn)) else {
            panic!("the last, in doubt")
        };
        assert_eq!((frame.start(), frame.count(), shares.count(pfn)), (pfn, 1, 0));
    }

    #[test]
    fn a_frame_beyond_the_counts_cannot_be_shared() {
        let mut counts = [0; 4];
        let mut shares = Shares::new(&mut counts);
        let refused = |pfn| Err(CannotShare(Pfn::new(pfn)));
        assert_eq!(shares.share(Pfn::new(4), Marked::Own), refused(4));
        assert_eq!(shares.count(Pfn::new(4)), 0);
        shares.counts[1] = FULL;
        assert_eq!(shares.share(Pfn::new(1), Marked::Shared), refused(1));
    }

    #[test]
    fn a_frame_that_is_counted_elsewhere_cannot_be_shared() {
        let mut counts = [0; 4];
        let mut shares = Shares::new(&mut counts);
        let pfn = Pfn::new(2);
        assert_eq!(shares.share(pfn, Marked::Shared), Err(CannotShare(pfn)), "another's count");
        assert_eq!(shares.share(pfn, Marked::Own), Ok(()));
        assert_eq!(shares.share(pfn, Marked::Own), Err(CannotShare(pfn)), "it has sharers");
        assert_eq!(shares.count(pfn), 2);
    }
}
