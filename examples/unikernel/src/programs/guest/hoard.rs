//! Objects on the kernel's heap, of all sizes, whose contents are known and looked at again and
//! again; the heap grows for them out of the pool, and is vacated when the guest gets smaller.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use hypercall::{Frames, PAGE_SIZE};

use crate::life::survives;
use crate::pool::Pool;
use crate::program::Platform;

/// Frames by which the heap grows and shrinks.
const EXTENT_FRAMES: u64 = 64;
const EXTENT_BYTES: u64 = EXTENT_FRAMES * PAGE_SIZE as u64;
/// Words of an object, at least and at most.
const WORDS: [u64; 2] = [16, 2048];
/// What is kept for one object beside its words: its place in the list, the heap's own bytes.
const OVERHEAD_BYTES: u64 = 64;

survives! {
    /// An object, known by its number.
    struct Object {
        words: Vec<u64>,
        number: u64,
    }
}

survives! {
    /// All of them, the newest one last.
    #[derive(Default)]
    pub(super) struct Hoard {
        objects: Vec<Object>,
        /// What they take.
        bytes: u64,
        /// What the heap has grown by.
        extents: u64,
        /// The object to look at next.
        next: usize,
        number: u64,
    }
}

impl Hoard {
    /// KiB that the heap has grown by.
    pub(super) const fn heap_kib(&self) -> u64 {
        self.extents * EXTENT_BYTES / 1024
    }

    /// Frames that the heap has grown by.
    pub(super) const fn frames(&self) -> u64 {
        self.extents * EXTENT_FRAMES
    }

    /// Lets the heap have up to `pages` pages of the pool but `reserve`, and fills three quarters
    /// of them: the rest is for what else the kernel keeps there.
    pub(super) fn grow(
        &mut self,
        platform: &dyn Platform,
        pool: &mut Pool,
        pages: u64,
        reserve: u64,
    ) -> Result<(), String> {
        while (self.extents + 1) * EXTENT_FRAMES <= pages
            && pool.len() as u64 >= EXTENT_FRAMES + reserve
            && let Some(frames) = pool.take_run(EXTENT_FRAMES)
        {
            if let Err(frames) = platform.extend_heap(frames) {
                pool.give_run(frames);
                break;
            }
            self.extents += 1;
        }
        while self.bytes < self.extents * EXTENT_BYTES / 4 * 3 {
            let Some(object) = Object::new(self.number + 1) else { return Ok(()) };
            self.number += 1;
            self.bytes += object.bytes();
            self.objects.push(object);
        }
        Ok(())
    }

    /// Throws objects away until the heap can do without an extent, which comes back; none if it
    /// has none that can be vacated.
    pub(super) fn shrink(&mut self, platform: &dyn Platform) -> Result<Option<Frames>, String> {
        if self.extents == 0 {
            return Ok(None);
        }
        loop {
            if let Some(frames) = platform.shrink_heap() {
                self.extents -= 1;
                return Ok(Some(frames));
            }
            let Some(object) = self.objects.pop() else { return Ok(None) };
            self.bytes -= object.bytes();
            object.verify()?;
        }
    }

    /// Looks at `count` objects and makes each of them anew.
    pub(super) fn work(&mut self, count: usize) -> Result<(), String> {
        for _ in 0..count.min(self.objects.len()) {
            self.next = if self.next < self.objects.len() { self.next } else { 0 };
            let object = &mut self.objects[self.next];
            object.verify()?;
            if let Some(new) = Object::new(self.number + 1) {
                self.number += 1;
                self.bytes = self.bytes + new.bytes() - object.bytes();
                *object = new;
            }
            self.next += 1;
        }
        Ok(())
    }

    /// Looks at every object.
    pub(super) fn verify(&self) -> Result<(), String> {
        self.objects.iter().try_for_each(Object::verify)
    }
}

impl Object {
    /// Object `number`, if the heap has room.
    fn new(number: u64) -> Option<Self> {
        let [least, most] = WORDS;
        let count = usize::try_from(least + word(number, 0) % (most - least)).ok()?;
        let mut words = Vec::new();
        words.try_reserve_exact(count).ok()?;
        words.extend((0..count as u64).map(|at| word(number, at)));
        Some(Self { words, number })
    }

    fn bytes(&self) -> u64 {
        self.words.capacity() as u64 * 8 + OVERHEAD_BYTES
    }

    fn verify(&self) -> Result<(), String> {
        let number = self.number;
        let wrong = (0..).zip(&self.words).find(|(at, found)| **found != word(number, *at));
        match wrong {
            None => Ok(()),
            Some((at, found)) => {
                Err(format!("object {number} of the heap: word {at} is {found:#x}"))
            }
        }
    }
}

/// Word `at` of object `number`: no two are alike, nor is one a pointer of the heap's.
const fn word(number: u64, at: u64) -> u64 {
    // An odd factor maps no two words to the same one (Knuth's multiplicative hashing).
    (number << 16 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}
