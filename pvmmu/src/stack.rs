//! Stacks in the caller's memory: of frames, and of the tables of a pool.

use hypercall::{Frame, FrameSource, Pfn};

/// A table of a pool. It is pinned and read-only, and so no frame until the pool ends it: what is
/// left in the memory of a pool that is gone is neither handed out nor mapped as a page.
#[derive(Debug)]
#[must_use = "a table that is dropped is lost"]
pub struct PooledTable(Frame);

impl PooledTable {
    pub(crate) const fn new(frame: Frame) -> Self {
        Self(frame)
    }

    pub(crate) const fn pfn(&self) -> Pfn {
        self.0.pfn()
    }

    /// Returns the frame, which is still a table.
    pub(crate) fn into_frame(self) -> Frame {
        self.0
    }
}

/// A stack of tokens in the caller's memory.
#[derive(Debug)]
pub(crate) struct Stack<'s, T> {
    slots: &'s mut [Option<T>],
    used: usize,
}

impl<'s, T> Stack<'s, T> {
    /// Creates an empty stack. What is in `slots` is dropped.
    pub(crate) fn new(slots: &'s mut [Option<T>]) -> Self {
        slots.fill_with(|| None);
        Self { slots, used: 0 }
    }

    pub(crate) const fn len(&self) -> usize {
        self.used
    }

    pub(crate) const fn room(&self) -> usize {
        self.slots.len() - self.used
    }

    /// Puts a token on the stack, or gives it back if there is no place for it.
    pub(crate) fn push(&mut self, token: T) -> Result<(), T> {
        match self.slots.get_mut(self.used) {
            Some(slot) => {
                *slot = Some(token);
                self.used += 1;
                Ok(())
            }
            None => Err(token),
        }
    }

    pub(crate) fn take(&mut self) -> Option<T> {
        self.used = self.used.checked_sub(1)?;
        self.slots[self.used].take()
    }

    /// Returns the token `below` places under the top.
    pub(crate) fn peek(&self, below: usize) -> Option<&T> {
        self.slots.get(self.used.checked_sub(below + 1)?)?.as_ref()
    }
}

/// A stack of frames in the caller's memory.
#[derive(Debug)]
pub struct FrameStack<'s> {
    slots: Stack<'s, Frame>,
    lost: u64,
}

impl<'s> FrameStack<'s> {
    /// Creates an empty stack with a place for each of `slots`. Their contents are dropped.
    ///
    /// ```
    /// use hypercall::{FrameSource, Frames, Pfn};
    /// use pvmmu::FrameStack;
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
        Self { slots: Stack::new(slots), lost: 0 }
    }

    /// Returns the number of frames on the stack.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.slots.len()
    }

    /// Returns whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.slots.len() == 0
    }

    /// Returns the number of places left.
    #[must_use]
    pub const fn room(&self) -> usize {
        self.slots.room()
    }

    /// Returns how many frames came back and found no place. They have leaked.
    ///
    /// ```
    /// use hypercall::{Frame, FrameSource, Pfn};
    /// use pvmmu::FrameStack;
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
        self.slots.push(frame)
    }
}

impl FrameSource for FrameStack<'_> {
    fn take(&mut self) -> Option<Frame> {
        self.slots.take()
    }

    /// A frame too many is lost to the guest, and counted ([`lost`](FrameStack::lost)). A stack
    /// that gets back only what it handed out loses none.
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
    fn a_stack_gives_back_what_it_was_given_and_no_more() {
        let mut slots = [const { None }; 2];
        let mut stack = FrameStack::new(&mut slots);
        // SAFETY: no frame stands behind the numbers.
        let frames = [1, 2, 3].map(|pfn| unsafe { Frame::claim(Pfn::new(pfn)) });
        let refused = frames.into_iter().filter_map(|frame| stack.push(frame).err());
        assert_eq!(refused.map(|frame| frame.pfn().raw()).collect::<Vec<_>>(), [3]);
        assert_eq!((stack.room(), stack.slots.peek(1).map(Frame::pfn)), (0, Some(Pfn::new(1))));
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
