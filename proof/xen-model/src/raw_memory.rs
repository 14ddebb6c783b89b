//! `memory_op` with its structures in guest memory (`do_memory_op`, `arch_memory_op`).

use hypercall::Errno;
use hypercall::memory::MemoryRegion;

use crate::exchange::Swap;
use crate::memory_info::About;
use crate::memory_op::{Extents, Move, Shape};
use crate::raw::{low, low16};
use crate::state::{Answer, State};

/// Bits of the sub-operation; those above are the extent to go on from.
const COMMAND_BITS: u32 = 6;
/// Most entries of a memory map (`E820MAX`).
const MAP_ENTRIES_MAX: u32 = 1024;
/// Bytes of an `e820entry`.
const REGION: usize = 20;
/// `XENMAPSPACE_gmfn_range` and `XENMAPSPACE_gmfn_foreign`.
const SPACE_RANGE: u64 = 3;
const SPACE_FOREIGN: u64 = 4;

/// A list of extents in guest memory.
struct List(u64);

impl Extents for List {
    fn get(&mut self, state: &mut State, index: u64) -> Answer<u64> {
        state.words_in(self.0.wrapping_add(index * 8)).map(|[word]| word)
    }

    fn set(&mut self, state: &mut State, index: u64, word: u64) -> Answer {
        state.copy_out(self.0.wrapping_add(index * 8), &word.to_le_bytes())
    }

    fn exists(&self) -> bool {
        self.0 != 0
    }
}

/// Reads a `struct xen_memory_reservation`.
const fn reservation([list, extents, order_flags, domain]: [u64; 4]) -> (Shape, List) {
    let (order, flags) = (low(order_flags), low(order_flags >> 32));
    (Shape { extents, start: 0, order, flags, domain: low16(domain) }, List(list))
}

impl State {
    pub(crate) fn raw_memory_op(&mut self, command: u64, argument: u64) -> Answer<u64> {
        let start = command >> COMMAND_BITS;
        let no_start = if start == 0 { Ok(()) } else { Err(Errno::EINVAL) };
        match command & ((1 << COMMAND_BITS) - 1) {
            0 => Ok(self.raw_move(Move::Increase, start, argument)),
            1 => Ok(self.raw_move(Move::Decrease, start, argument)),
            6 => Ok(self.raw_move(Move::Populate, start, argument)),
            2 => no_start.map(|()| self.frames.end()),
            3 => no_start.and_then(|()| self.raw_about(About::Current, argument)),
            4 => no_start.and_then(|()| self.raw_about(About::Maximum, argument)),
            14 => no_start.and_then(|()| self.raw_about(About::LastPfn, argument)),
            5 => self.raw_machphys_list(argument),
            7 => self.raw_add_to_physmap(argument),
            9 => {
                let map = self.memory_map()?;
                self.raw_memory_map(&map, argument)
            }
            10 => {
                let [room, _] = self.words_in(argument)?;
                let map = self.machine_memory_map(low(room) as usize)?;
                self.raw_memory_map(&map, argument)
            }
            11 => no_start.and_then(|()| self.raw_exchange(argument)),
            12 => {
                let mapping = self.machphys_mapping();
                let words = [mapping.start, mapping.end, mapping.max_mfn];
                self.copy_out(argument, words.map(u64::to_le_bytes).as_flattened())?;
                Ok(0)
            }
            13 => self.raw_set_memory_map(argument),
            15 => no_start.and_then(|()| self.raw_remove_from_physmap(argument)),
            18 | 19 => Ok(0),
            23 => self.raw_add_batch(argument),
            _ => Err(Errno::ENOSYS),
        }
    }

    fn raw_move(&mut self, what: Move, start: u64, argument: u64) -> u64 {
        let Ok(words) = self.words_in(argument) else { return start };
        let (shape, mut list) = reservation(words);
        let needed = what != Move::Increase || list.exists();
        if start > shape.extents || needed && Self::list_okay(list.0, shape.extents, 8).is_err() {
            return start;
        }
        self.move_memory(what, Shape { start, ..shape }, &mut list)
    }

    fn raw_about(&mut self, what: About, argument: u64) -> Answer<u64> {
        let mut id = [0; 2];
        self.copy_in(argument, &mut id)?;
        self.about_domain(what, u16::from_le_bytes(id))
    }

    fn raw_exchange(&mut self, argument: u64) -> Answer<u64> {
        let [a, b, c, d, e, f, g, h, mut done] = self.words_in(argument)?;
        let ((give, mut given), (take, mut taken)) =
            (reservation([a, b, c, d]), reservation([e, f, g, h]));
        let mut swap = Swap { give, take, given: &mut given, taken: &mut taken };
        let answer = self.exchange(&mut swap, &mut done);
        let lists = Self::list_okay(a, give.extents, 8).and(Self::list_okay(e, take.extents, 8));
        let answer = answer.and(lists);
        self.copy_out(argument.wrapping_add(64), &done.to_le_bytes())?;
        answer.map(|()| 0)
    }

    fn raw_machphys_list(&mut self, argument: u64) -> Answer<u64> {
        let [max, list, _] = self.words_in(argument)?;
        let frames: Vec<u64> =
            self.machphys_frames().map(|mfn| mfn.raw()).take(low(max) as usize).collect();
        for (k, mfn) in frames.iter().enumerate() {
            self.copy_out(list.wrapping_add(k as u64 * 8), &mfn.to_le_bytes())?;
        }
        let count = u32::try_from(frames.len()).unwrap_or(u32::MAX);
        self.copy_out(argument.wrapping_add(16), &count.to_le_bytes())?;
        Ok(0)
    }

    fn raw_memory_map(&mut self, map: &[MemoryRegion], argument: u64) -> Answer<u64> {
        let [count, buffer] = self.words_in(argument)?;
        let count = (low(count) as usize).min(map.len());
        for (k, region) in map[..count].iter().enumerate() {
            let mut bytes = [0; REGION];
            let (start, len_bytes, kind) = (region.start, region.len_bytes, region.kind);
            bytes[..8].copy_from_slice(&start.to_le_bytes());
            bytes[8..16].copy_from_slice(&len_bytes.to_le_bytes());
            bytes[16..].copy_from_slice(&kind.to_le_bytes());
            self.copy_out(buffer.wrapping_add((k * REGION) as u64), &bytes)?;
        }
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.copy_out(argument, &count.to_le_bytes())?;
        Ok(0)
    }

    fn raw_set_memory_map(&mut self, argument: u64) -> Answer<u64> {
        let [domain, count, buffer] = self.words_in(argument)?;
        if low(count) > MAP_ENTRIES_MAX {
            return Err(Errno::EINVAL);
        }
        let id = self.any_domain(low16(domain))?;
        if !self.may_act_for(id) {
            return Err(Errno::EPERM);
        }
        let mut map = Vec::new();
        for k in 0..u64::from(low(count)) {
            let mut bytes = [0; REGION];
            self.copy_in(buffer.wrapping_add(k * REGION as u64), &mut bytes)?;
            let (words, kind) = bytes.split_at(16);
            let word = |k: usize| {
                words[k * 8..k * 8 + 8]
                    .iter()
                    .rev()
                    .fold(0, |word, byte| word << 8 | u64::from(*byte))
            };
            let kind = kind.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
            map.push(MemoryRegion { start: word(0), len_bytes: word(1), kind });
        }
        if let Some(domain) = self.find_mut(id) {
            domain.memory_map = Some(map);
        }
        Ok(0)
    }

    /// Carries out `XENMEM_add_to_physmap`, which no PV domain may have done to it.
    fn raw_add_to_physmap(&mut self, argument: u64) -> Answer<u64> {
        let [head, _, _] = self.words_in(argument)?;
        if head >> 32 == SPACE_FOREIGN {
            return Err(Errno::ENOSYS);
        }
        self.refuse_physmap(low16(head))
    }

    /// Carries out `XENMEM_add_to_physmap_batch`.
    fn raw_add_batch(&mut self, argument: u64) -> Answer<u64> {
        let [head, ..] = self.words_in::<4>(argument)?;
        if u64::from(low16(head >> 16)) == SPACE_RANGE {
            return Err(Errno::EOPNOTSUPP);
        }
        self.refuse_physmap(low16(head))
    }

    fn raw_remove_from_physmap(&mut self, argument: u64) -> Answer<u64> {
        let [domain, _] = self.words_in(argument)?;
        self.refuse_physmap(low16(domain))
    }

    fn refuse_physmap(&self, domain: u16) -> Answer<u64> {
        let id = self.any_domain(domain)?;
        Err(if self.may_act_for(id) { Errno::EACCES } else { Errno::EPERM })
    }
}
