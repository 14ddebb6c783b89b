//! Frames that are mapped or serve as tables: where they come from and go to, and who shares them.

use hypercall::{DomId, Frame, Mfn, Pfn, Uncertain};

/// Hands out frames, for pages as for tables, and takes them back. What is in them does not matter.
pub trait FrameSource {
    /// A frame for a page, if there is one.
    fn take(&mut self) -> Option<Frame>;

    /// A frame for a table, if there is one: it is in the direct mapping, mapped there writable. By
    /// default any frame is taken to be; a guest whose direct mapping does not reach all its frames
    /// must tell them apart.
    fn take_table(&mut self) -> Option<Frame> {
        self.take()
    }

    /// Takes a frame back. It holds what it last held.
    fn give(&mut self, frame: Frame);

    /// Takes frames of which it is not known whether a table or a TLB still leads to them: Xen
    /// refused a change and then its undo. They are to be handed out to nobody. By default that is
    /// all that is done.
    fn give_uncertain(&mut self, frames: Uncertain) {
        log::error!("kept from everybody, since Xen refused an undo: {frames:?}");
    }

    /// Takes back one share of a frame that is in doubt: the last who shares the frame gets it as
    /// an uncertain one.
    fn give_uncertain_share(&mut self, frame: SharedFrame) {
        log::error!("nobody counts who shares pfn {}: it is lost", frame.0);
    }

    /// Takes back one share of a frame that several address spaces map. By default the share is
    /// lost, and with it the frame: only [`Counted`] can fork.
    fn give_shared(&mut self, frame: SharedFrame) {
        log::error!("nobody counts who shares pfn {}: it is lost", frame.0);
    }

    /// Is told that a frame which is not the guest's own, or which P2M does not confirm, is no
    /// longer mapped. Of one whose mapping was refused nobody is told.
    fn give_foreign(&mut self, _: Mfn) {}

    /// The domain that has `mfn`, which is mapped and not the guest's own. Xen lets the flags of
    /// its entry change, and takes the entry back when an operation is undone, in the name of that
    /// domain only. By default nobody knows, and neither is possible.
    fn domain_of(&self, _: Mfn) -> DomId {
        DomId::SELF
    }

    /// Counts one more address space that maps `pfn`. By default nobody counts, so nothing is
    /// shared.
    ///
    /// # Errors
    /// [`CannotShare`].
    fn share(&mut self, pfn: Pfn) -> Result<(), CannotShare> {
        Err(CannotShare(pfn))
    }

    /// Takes back the first [`share`](Self::share) of a frame: it has one owner again, who does not
    /// count.
    fn unshare(&mut self, _: Pfn) {}

    /// How many share the frame: 0 if it is not shared.
    fn sharers(&self, _: Pfn) -> u16 {
        0
    }
}

/// One share of a frame that several address spaces map.
#[must_use = "a share that is dropped is never given back, and neither is its frame"]
#[derive(Debug, PartialEq, Eq)]
pub struct SharedFrame(Pfn);

impl SharedFrame {
    /// The share that a marked entry stood for, which is gone.
    pub(crate) const fn released(pfn: Pfn) -> Self {
        Self(pfn)
    }

    /// The frame's number.
    #[must_use]
    pub const fn pfn(&self) -> Pfn {
        self.0
    }
}

/// Nobody counts the frame, or it has as many sharers as can be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CannotShare(pub Pfn);

/// What becomes of a frame when one who shares it lets go.
#[must_use = "a token that is dropped is lost"]
#[derive(Debug, PartialEq, Eq)]
pub enum Released {
    /// Others share it still.
    Shared,
    /// That was the last.
    Frame(Frame),
    /// That was the last, but one before it may be known to a TLB still.
    Uncertain(Uncertain),
}

/// Of a count: one of those who shared the frame may be known to a TLB still.
const DOUBT: u16 = 1 << 15;

/// How many address spaces share each frame, in the caller's memory: one place for each pfn.
#[derive(Debug)]
pub struct Shares<'s> {
    counts: &'s mut [u16],
}

impl<'s> Shares<'s> {
    /// Nothing is shared yet.
    ///
    /// ```
    /// use hypercall::Pfn;
    /// use pvmmu::Shares;
    ///
    /// let mut counts = [0; 64]; // a guest of 64 pages
    /// let mut shares = Shares::new(&mut counts);
    /// shares.share(Pfn::new(7)).map_err(|_| "nobody counts it")?;
    /// assert_eq!(shares.count(Pfn::new(7)), 2);
    /// # Ok::<(), &str>(())
    /// ```
    pub fn new(counts: &'s mut [u16]) -> Self {
        counts.fill(0);
        Self { counts }
    }

    /// How many address spaces map the frame as a shared one: 0 if it is not shared.
    #[must_use]
    pub fn count(&self, pfn: Pfn) -> u16 {
        usize::try_from(pfn.raw())
            .ok()
            .and_then(|at| self.counts.get(at))
            .map_or(0, |count| count & !DOUBT)
    }

    fn place(&mut self, pfn: Pfn) -> Option<&mut u16> {
        self.counts.get_mut(usize::try_from(pfn.raw()).ok()?)
    }

    /// One more sharer: the first time there are two.
    ///
    /// # Errors
    /// [`CannotShare`].
    pub fn share(&mut self, pfn: Pfn) -> Result<(), CannotShare> {
        let place = self.place(pfn).ok_or(CannotShare(pfn))?;
        *place = match *place & !DOUBT {
            0 => 2,
            count if count == !DOUBT => return Err(CannotShare(pfn)),
            _ => *place + 1,
        };
        Ok(())
    }

    /// The frame has one owner, who does not count.
    pub fn unshare(&mut self, pfn: Pfn) {
        if let Some(place) = self.place(pfn) {
            *place = 0;
        }
    }

    /// One sharer less, and what becomes of the frame.
    #[expect(unsafe_code, reason = "the last share of a frame becomes its token")]
    pub fn release(&mut self, frame: SharedFrame) -> Released {
        const LAST_IN_DOUBT: u16 = DOUBT | 1;
        match self.place(frame.0) {
            Some(place @ 2..DOUBT) => *place -= 1,
            Some(place @ 1) => {
                *place = 0;
                // SAFETY: I-4: a share stands for one marked entry that is gone, and this was the
                // last of them.
                return Released::Frame(unsafe { Frame::claim(frame.0) });
            }
            Some(place) if *place == LAST_IN_DOUBT => {
                *place = 0;
                // SAFETY: as above, and what the token says of the others, too.
                return Released::Uncertain(Uncertain::from(unsafe { Frame::claim(frame.0) }));
            }
            Some(place) if *place > LAST_IN_DOUBT => *place -= 1,
            _ => log::error!("pfn {} was given back more often than it was shared", frame.0),
        }
        Released::Shared
    }

    /// The same for a share whose entry may be known to a TLB still.
    pub fn release_in_doubt(&mut self, frame: SharedFrame) -> Released {
        if let Some(place) = self.place(frame.0).filter(|place| **place > 0) {
            *place |= DOUBT;
        }
        self.release(frame)
    }
}

/// A source of frames together with the counts of those that are shared.
#[derive(Debug)]
pub struct Counted<'a, 's, F> {
    /// Where the frames come from and go to.
    pub source: &'a mut F,
    /// Who shares what.
    pub shares: &'a mut Shares<'s>,
}

impl<F: FrameSource> FrameSource for Counted<'_, '_, F> {
    fn take(&mut self) -> Option<Frame> {
        self.source.take()
    }

    fn take_table(&mut self) -> Option<Frame> {
        self.source.take_table()
    }

    fn give(&mut self, frame: Frame) {
        self.source.give(frame);
    }

    fn give_uncertain(&mut self, frames: Uncertain) {
        self.source.give_uncertain(frames);
    }

    fn give_shared(&mut self, frame: SharedFrame) {
        match self.shares.release(frame) {
            Released::Frame(frame) => self.source.give(frame),
            Released::Shared => {}
            Released::Uncertain(frame) => self.source.give_uncertain(frame),
        }
    }

    fn give_uncertain_share(&mut self, frame: SharedFrame) {
        match self.shares.release_in_doubt(frame) {
            Released::Uncertain(frame) => self.source.give_uncertain(frame),
            Released::Frame(frame) => self.source.give_uncertain(Uncertain::from(frame)),
            Released::Shared => {}
        }
    }

    fn give_foreign(&mut self, mfn: Mfn) {
        self.source.give_foreign(mfn);
    }

    fn domain_of(&self, mfn: Mfn) -> DomId {
        self.source.domain_of(mfn)
    }

    fn share(&mut self, pfn: Pfn) -> Result<(), CannotShare> {
        self.shares.share(pfn)
    }

    fn unshare(&mut self, pfn: Pfn) {
        self.shares.unshare(pfn);
    }

    fn sharers(&self, pfn: Pfn) -> u16 {
        self.shares.count(pfn)
    }
}

/// A source of frames of which this one is for the page, and comes back here.
#[derive(Debug)]
pub(crate) struct OnePage<'a, F> {
    pfn: Pfn,
    frame: Option<Frame>,
    others: &'a mut F,
}

impl<'a, F> OnePage<'a, F> {
    pub(crate) const fn new(frame: Frame, others: &'a mut F) -> Self {
        Self { pfn: frame.pfn(), frame: Some(frame), others }
    }
}

impl<F: FrameSource> FrameSource for OnePage<'_, F> {
    fn take(&mut self) -> Option<Frame> {
        self.frame.take()
    }

    fn take_table(&mut self) -> Option<Frame> {
        self.others.take_table()
    }

    fn give(&mut self, frame: Frame) {
        if frame.pfn() == self.pfn {
            self.frame = Some(frame);
        } else {
            self.others.give(frame);
        }
    }

    fn give_uncertain(&mut self, frames: Uncertain) {
        self.others.give_uncertain(frames);
    }

    fn give_shared(&mut self, frame: SharedFrame) {
        self.others.give_shared(frame);
    }

    fn give_uncertain_share(&mut self, frame: SharedFrame) {
        self.others.give_uncertain_share(frame);
    }

    fn give_foreign(&mut self, mfn: Mfn) {
        self.others.give_foreign(mfn);
    }

    fn share(&mut self, pfn: Pfn) -> Result<(), CannotShare> {
        self.others.share(pfn)
    }

    fn unshare(&mut self, pfn: Pfn) {
        self.others.unshare(pfn);
    }

    fn sharers(&self, pfn: Pfn) -> u16 {
        self.others.sharers(pfn)
    }
}

/// A stack of frames in the caller's memory.
#[derive(Debug)]
pub struct FrameStack<'s> {
    slots: &'s mut [Option<Frame>],
    used: usize,
    lost: u64,
}

impl<'s> FrameStack<'s> {
    /// An empty stack for as many frames as `slots` has places. What is in them already is dropped.
    ///
    /// ```
    /// use hypercall::{Frames, Pfn};
    /// use pvmmu::{FrameSource, FrameStack};
    ///
    /// let mut slots = [const { None }; 16];
    /// let mut stack = FrameStack::new(&mut slots);
    /// // A kernel claims what its boot code found to be free.
    /// let mut free = unsafe { Frames::claim(Pfn::new(0x400), 16) };
    /// while let Some(frame) = free.take() {
    ///     stack.push(frame).expect("a slot for each");
    /// }
    /// assert_eq!(stack.take().map(|frame| frame.pfn()), Some(Pfn::new(0x40f)));
    /// ```
    pub fn new(slots: &'s mut [Option<Frame>]) -> Self {
        slots.fill_with(|| None);
        Self { slots, used: 0, lost: 0 }
    }

    /// Frames on the stack.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.used
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Places left.
    #[must_use]
    pub const fn room(&self) -> usize {
        self.slots.len() - self.used
    }

    /// Frames that were given back and found no place. Nobody has them any more.
    ///
    /// ```
    /// use hypercall::{Frame, Pfn};
    /// use pvmmu::{FrameSource, FrameStack};
    ///
    /// let mut slots = [const { None }; 1];
    /// let mut stack = FrameStack::new(&mut slots);
    /// // Nobody else has these two.
    /// let frames = [1, 2].map(|pfn| unsafe { Frame::claim(Pfn::new(pfn)) });
    /// frames.into_iter().for_each(|frame| stack.give(frame));
    /// assert_eq!((stack.len(), stack.lost()), (1, 1));
    /// ```
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// Puts a frame on the stack.
    ///
    /// # Errors
    /// The frame, if there is no place for it.
    pub fn push(&mut self, frame: Frame) -> Result<(), Frame> {
        match self.slots.get_mut(self.used) {
            Some(slot) => {
                *slot = Some(frame);
                self.used += 1;
                Ok(())
            }
            None => Err(frame),
        }
    }

    /// The frame `below` places under the top.
    pub(crate) fn peek(&self, below: usize) -> Option<Pfn> {
        self.slots.get(self.used.checked_sub(below + 1)?)?.as_ref().map(Frame::pfn)
    }
}

impl FrameSource for FrameStack<'_> {
    fn take(&mut self) -> Option<Frame> {
        self.used = self.used.checked_sub(1)?;
        self.slots[self.used].take()
    }

    /// A frame too many is lost to the guest, and counted ([`lost`](FrameStack::lost)): a stack that
    /// is given back only what it handed out loses none.
    fn give(&mut self, frame: Frame) {
        if let Err(frame) = self.push(frame) {
            self.lost += 1;
            log::error!("no place for {frame:?} on the stack of frames: it is lost");
        }
    }
}

#[cfg(test)]
#[expect(unsafe_code, reason = "the frames of these tests exist only as numbers")]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_all_sharers_gets_the_frame() {
        let mut counts = [9; 4];
        let mut shares = Shares::new(&mut counts);
        let pfn = Pfn::new(2);
        assert_eq!(shares.share(pfn), Ok(()));
        assert_eq!(shares.share(pfn), Ok(()));
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
        assert_eq!([shares.share(pfn), shares.share(pfn)], [Ok(()); 2]);
        assert_eq!(shares.release_in_doubt(SharedFrame(pfn)), Released::Shared);
        assert_eq!((shares.count(pfn), shares.share(pfn)), (2, Ok(())));
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
        assert_eq!(shares.share(Pfn::new(4)), Err(CannotShare(Pfn::new(4))));
        assert_eq!(shares.count(Pfn::new(4)), 0);
        shares.counts[1] = i16::MAX.unsigned_abs();
        assert_eq!(shares.share(Pfn::new(1)), Err(CannotShare(Pfn::new(1))));
    }

    #[test]
    fn a_stack_gives_back_what_it_was_given_and_no_more() {
        let mut slots = [const { None }; 2];
        let mut stack = FrameStack::new(&mut slots);
        // SAFETY: no frame stands behind the numbers.
        let frames = [1, 2, 3].map(|pfn| unsafe { Frame::claim(Pfn::new(pfn)) });
        let refused = frames.into_iter().filter_map(|frame| stack.push(frame).err());
        assert_eq!(refused.map(|frame| frame.pfn().raw()).collect::<Vec<_>>(), [3]);
        assert_eq!((stack.room(), stack.peek(1)), (0, Some(Pfn::new(1))));
        assert_eq!(stack.take().map(|frame| frame.pfn().raw()), Some(2));
    }

    #[test]
    fn a_stack_counts_what_it_loses() {
        let mut slots = [const { None }; 1];
        let mut stack = FrameStack::new(&mut slots);
        // SAFETY: no frame stands behind the number.
        let frames = [1, 2, 3].map(|pfn| unsafe { Frame::claim(Pfn::new(pfn)) });
        frames.into_iter().for_each(|frame| stack.give(frame));
        assert_eq!((stack.len(), stack.lost()), (1, 2));
    }
}
