//! Xen's free frames.
//!
//! Large blocks by order, and single frames in random order: a guest that asks for one frame at a
//! time gets them scattered, one that asks for an aligned run gets it as long as there is one.

use crate::random::Random;

/// The largest order there is (`MAX_ORDER`, 18).
pub(crate) const ORDER_MAX: u32 = 18;

/// How many blocks of order 9 are cut up together into single frames.
const BLOCKS_CUT: usize = 4;
const CUT_ORDER: u32 = 9;

#[derive(Debug)]
pub(crate) struct Heap {
    blocks: [Vec<u64>; ORDER_MAX as usize + 1],
    singles: Vec<u64>,
    random: Random,
}

impl Heap {
    /// All of `start..start + count` is free.
    pub(crate) fn new(start: u64, count: u64, random: Random) -> Self {
        let mut heap = Self { blocks: Default::default(), singles: Vec::new(), random };
        heap.add(start, count);
        heap
    }

    fn add(&mut self, mut start: u64, mut count: u64) {
        while count > 0 {
            let order = start.trailing_zeros().min(count.ilog2()).min(ORDER_MAX);
            self.blocks[order as usize].push(start);
            start += 1 << order;
            count -= 1 << order;
        }
    }

    /// Takes an aligned run of 2^`order` frames whose last is below `limit`.
    pub(crate) fn allocate(&mut self, order: u32, limit: u64) -> Option<u64> {
        if order > ORDER_MAX {
            return None;
        }
        if order == 0 {
            return self.single(limit);
        }
        self.block(order, limit).or_else(|| {
            self.coalesce();
            self.block(order, limit)
        })
    }

    /// Returns how many frames are free.
    pub(crate) fn len(&self) -> u64 {
        let blocks = self.blocks.iter().enumerate();
        let in_blocks: usize = blocks.map(|(order, blocks)| blocks.len() << order).sum();
        (in_blocks + self.singles.len()) as u64
    }

    /// Gives one frame back.
    pub(crate) fn free(&mut self, frame: u64) {
        self.singles.push(frame);
        let last = self.singles.len() - 1;
        let place = self.random.below(last as u64 + 1);
        self.singles.swap(last, usize::try_from(place).unwrap_or(last));
    }

    fn single(&mut self, limit: u64) -> Option<u64> {
        if self.singles.is_empty() {
            for _ in 0..BLOCKS_CUT {
                let cut = (0..=CUT_ORDER).rev().find_map(|order| {
                    self.block(order, u64::MAX).map(|start| (start, 1u64 << order))
                });
                let Some((start, count)) = cut else { break };
                for frame in start..start + count {
                    self.free(frame);
                }
            }
        }
        if self.singles.last().is_some_and(|frame| *frame < limit) {
            return self.singles.pop();
        }
        let place = self.singles.iter().position(|frame| *frame < limit)?;
        Some(self.singles.swap_remove(place))
    }

    fn block(&mut self, order: u32, limit: u64) -> Option<u64> {
        let length = 1u64 << order;
        let fits = |start: &u64| start.checked_add(length).is_some_and(|end| end <= limit);
        for larger in order..=ORDER_MAX {
            let blocks = &mut self.blocks[larger as usize];
            let Some(place) = blocks.iter().rposition(fits) else { continue };
            let start = blocks.swap_remove(place);
            for half in order..larger {
                self.blocks[half as usize].push(start + (1 << half));
            }
            return Some(start);
        }
        None
    }

    /// Joins single frames and blocks to blocks as large as possible.
    fn coalesce(&mut self) {
        let mut runs: Vec<(u64, u64)> = self.singles.drain(..).map(|frame| (frame, 1)).collect();
        for (order, blocks) in self.blocks.iter_mut().enumerate() {
            runs.extend(blocks.drain(..).map(|start| (start, 1u64 << order)));
        }
        runs.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::new();
        for (start, count) in runs {
            match joined.last_mut() {
                Some((first, length)) if *first + *length == start => *length += count,
                _ => joined.push((start, count)),
            }
        }
        for (start, count) in joined {
            self.add(start, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_once_and_come_back() {
        let mut heap = Heap::new(0x40, 3000, Random::new(1));
        let mut taken: Vec<u64> = Vec::new();
        while let Some(frame) = heap.allocate(0, u64::MAX) {
            taken.push(frame);
        }
        let mut sorted = taken.clone();
        sorted.sort_unstable();
        assert!(sorted.iter().copied().eq(0x40..0x40 + 3000));
        assert_ne!(sorted, taken, "single frames come scattered");
        for frame in taken {
            heap.free(frame);
        }
        let run = heap.allocate(9, u64::MAX).expect("joined again");
        assert!(run.is_multiple_of(512));
        assert_eq!(heap.allocate(19, u64::MAX), None);
    }

    #[test]
    fn an_address_limit_is_kept() {
        let mut heap = Heap::new(0, 4096, Random::new(1));
        assert!(heap.allocate(0, 100).is_none_or(|frame| frame < 100));
        assert!(heap.allocate(3, 64).is_some_and(|start| start + 8 <= 64));
    }
}
