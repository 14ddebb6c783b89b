//! Where page tables come from and go to.

use hypercall::Frame;

/// Hands out frames for page tables and takes them back. A frame handed out must be in the direct mapping, mapped
/// there writable; what is in it does not matter.
pub trait TableSource {
    /// A frame, if there is one.
    fn take(&mut self) -> Option<Frame>;

    /// Takes a frame back. It is writable again, and holds what was last in the table.
    fn give(&mut self, frame: Frame);
}

/// A stack of frames in the caller's memory.
#[derive(Debug)]
pub struct FrameStack<'s> {
    slots: &'s mut [Option<Frame>],
    used: usize,
}

impl<'s> FrameStack<'s> {
    /// An empty stack for as many frames as `slots` has places. What is in them already is dropped.
    pub fn new(slots: &'s mut [Option<Frame>]) -> Self {
        slots.fill_with(|| None);
        Self { slots, used: 0 }
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
}

impl TableSource for FrameStack<'_> {
    fn take(&mut self) -> Option<Frame> {
        self.used = self.used.checked_sub(1)?;
        self.slots[self.used].take()
    }

    /// A frame too many is dropped, and so lost to the guest: give a stack back only what it handed out.
    fn give(&mut self, frame: Frame) {
        if let Err(lost) = self.push(frame) {
            log::error!("no place for {lost:?} on the stack of table frames: it is lost");
        }
    }
}
