//! Memory that the guest keeps, and looks at: what is in it must not change, whatever goes out and
//! comes in around it.
#![expect(unsafe_code, reason = "stores into frames that it took from the pool")]

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use hypercall::{Cpu, Frame, FrameAccess as _, FrameSource as _, Machine, PAGE_SIZE, Pfn};

use super::super::OrSay;
use crate::program::Kernel;

/// Words that are written into a page, spread over it.
const WORDS: usize = 8;
/// Of so many frames that follow one another in the pool ...
const EVERY: usize = 2048;
/// ... so many are kept: few enough to leave whole blocks of 2 MiB.
const RUN: usize = 64;

/// Frames out of the pool.
pub(super) struct Kept {
    frames: Vec<Frame>,
}

impl Kept {
    /// Runs of frames from all over the pool, each frame with words of its own in it.
    pub(super) fn spread<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Result<Self, String> {
        Self::take(kernel, |at| at % EVERY < RUN)
    }

    /// Every second frame of the pool: what is left has no block of 2 MiB.
    pub(super) fn every_second<M: Machine + Cpu>(
        kernel: &mut Kernel<'_, M>,
    ) -> Result<Self, String> {
        Self::take(kernel, |at| at % 2 == 0)
    }

    /// Those frames of the pool that `is_kept`, by their place in it.
    fn take<M: Machine + Cpu>(
        kernel: &mut Kernel<'_, M>,
        is_kept: impl Fn(usize) -> bool,
    ) -> Result<Self, String> {
        let all = kernel.pool.len();
        let count = (0..all).filter(|at| is_kept(*at)).count();
        let mut frames = Vec::with_capacity(count);
        let mut others = Vec::with_capacity(all - count);
        for at in 0..all {
            let frame = kernel.pool.take().ok_or("the pool is empty")?;
            if is_kept(at) {
                fill(kernel, frame.pfn())?;
                frames.push(frame);
            } else {
                others.push(frame);
            }
        }
        others.into_iter().rev().for_each(|frame| kernel.pool.give(frame));
        Ok(Self { frames })
    }

    /// Whether every word is what it was.
    pub(super) fn verify<M: Machine + Cpu>(&self, kernel: &Kernel<'_, M>) -> Result<(), String> {
        for frame in &self.frames {
            for word in 0..WORDS {
                let mut found = [0; 8];
                kernel
                    .guest
                    .machine()
                    .read_bytes(frame.pfn(), offset(word), &mut found)
                    .or_say("load")?;
                let (found, is) = (u64::from_le_bytes(found), value(frame.pfn(), word));
                if found != is {
                    return Err(format!("{frame:?}: word {word} is {found:#x}, was {is:#x}"));
                }
            }
        }
        Ok(())
    }

    /// Back to the pool.
    pub(super) fn give_back<M>(self, kernel: &mut Kernel<'_, M>) {
        self.frames.into_iter().rev().for_each(|frame| kernel.pool.give(frame));
    }
}

/// Writes the words of a page.
fn fill<M: Machine + Cpu>(kernel: &Kernel<'_, M>, pfn: Pfn) -> Result<(), String> {
    (0..WORDS).try_for_each(|word| {
        let value = value(pfn, word).to_le_bytes();
        // SAFETY: the frame is the program's by its token (I-1).
        unsafe { kernel.guest.machine().write_bytes(pfn, offset(word), &value) }.or_say("store")
    })
}

const fn offset(word: usize) -> usize {
    word * (PAGE_SIZE / WORDS + 8)
}

/// What is written at a place: different in every page and at every word.
fn value(pfn: Pfn, word: usize) -> u64 {
    (pfn.raw() << 8 | word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
