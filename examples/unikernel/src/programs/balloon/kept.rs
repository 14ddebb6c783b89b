//! Memory that the guest keeps, and looks at: what is in it must not change, whatever goes out and
//! comes in around it.
#![expect(unsafe_code, reason = "stores into frames that it took from the pool")]

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use hypercall::{Cpu, Frame, FrameAccess as _, Machine, PAGE_SIZE, Pfn};
use p2m::LeafSource as _;

use super::super::OrSay;
use crate::guest::Guest;

/// Words that are written into a page, spread over it.
const WORDS: usize = 8;

/// Frames out of the pool.
pub(super) struct Kept {
    frames: Vec<Frame>,
}

impl Kept {
    /// `count` frames, each with words of its own in it, spread over the whole pool.
    pub(super) fn take<M: Machine + Cpu>(
        guest: &mut Guest<'_, M>,
        count: usize,
    ) -> Result<Self, String> {
        let all = guest.pool.len();
        let every = (all / count.max(1)).max(1);
        let mut frames = Vec::with_capacity(count);
        let mut others = Vec::with_capacity(all - count);
        for at in 0..all {
            let frame = guest.pool.take().ok_or("the pool is empty")?;
            if at.is_multiple_of(every) && frames.len() < count {
                for word in 0..WORDS {
                    let value = value(frame.pfn(), word).to_le_bytes();
                    // SAFETY: the frame is the program's by its token (I-1).
                    unsafe { guest.machine.write_bytes(frame.pfn(), offset(word), &value) }
                        .or_say("store")?;
                }
                frames.push(frame);
            } else {
                others.push(frame);
            }
        }
        others.into_iter().rev().for_each(|frame| guest.pool.give(frame));
        Ok(Self { frames })
    }

    /// Whether every word is what it was.
    pub(super) fn verify<M: Machine + Cpu>(&self, guest: &Guest<'_, M>) -> Result<(), String> {
        for frame in &self.frames {
            for word in 0..WORDS {
                let mut found = [0; 8];
                guest.machine.read_bytes(frame.pfn(), offset(word), &mut found).or_say("load")?;
                let (found, is) = (u64::from_le_bytes(found), value(frame.pfn(), word));
                if found != is {
                    return Err(format!("{frame:?}: word {word} is {found:#x}, was {is:#x}"));
                }
            }
        }
        Ok(())
    }

    /// Back to the pool.
    pub(super) fn give_back<M>(self, guest: &mut Guest<'_, M>) {
        self.frames.into_iter().rev().for_each(|frame| guest.pool.give(frame));
    }
}

const fn offset(word: usize) -> usize {
    word * (PAGE_SIZE / WORDS + 8)
}

/// What is written at a place: different in every page and at every word.
fn value(pfn: Pfn, word: usize) -> u64 {
    (pfn.raw() << 8 | word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
