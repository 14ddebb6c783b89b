//! The workload: pages full of words that only this guest can know, looked at again and again. A
//! page that is lost, swapped or overwritten does not go unnoticed.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use hypercall::{AccessError, Frame, FrameAccess, FrameSource, PAGE_SIZE, Pfn};

use crate::life::survives;
use crate::program::Second;

/// Bytes that are compared at a time.
const CHUNK_BYTES: usize = 512;

survives! {
    /// A page in use.
    struct Page {
        frame: Frame,
        /// How often it was written.
        edition: u64,
    }
}

survives! {
    /// The pages in use, oldest first.
    #[derive(Default)]
    pub(super) struct Workload {
        pages: Vec<Page>,
        /// Where each vCPU goes on, in its part of the pages.
        next: [usize; 2],
        edition: u64,
        /// Pages looked at so far.
        pub(super) verified: u64,
        /// Those of them that the second vCPU looked at.
        pub(super) beside: u64,
    }
}

impl Workload {
    /// Pages in use.
    pub(super) fn len(&self) -> u64 {
        self.pages.len() as u64
    }

    /// Takes pages from `source` until there are `pages`, or none is left.
    pub(super) fn grow<M: FrameAccess>(
        &mut self,
        machine: &M,
        source: &mut impl FrameSource,
        pages: u64,
    ) -> Result<(), String> {
        while self.len() < pages
            && let Some(frame) = source.take()
        {
            self.edition += 1;
            let page = Page { frame, edition: self.edition };
            let written = page.write(machine);
            self.pages.push(page);
            written?;
        }
        Ok(())
    }

    /// Gives the newest page back, looked at a last time.
    pub(super) fn release<M: FrameAccess>(
        &mut self,
        machine: &M,
    ) -> Option<(Frame, Result<(), String>)> {
        let page = self.pages.pop()?;
        let sound = page.verify(machine);
        self.verified += 1;
        Some((page.frame, sound))
    }

    /// Looks at `count` pages and writes each of them anew.
    pub(super) fn work<M: FrameAccess>(&mut self, machine: &M, count: u64) -> Result<(), String> {
        let edition = AtomicU64::new(self.edition);
        let worked = turn_over(machine, &mut self.pages, &mut self.next[0], count, &edition);
        self.edition = edition.into_inner();
        self.verified += worked?;
        Ok(())
    }

    /// The same with the front half of the pages, while the second vCPU does it with the other one,
    /// at least twice.
    pub(super) fn work_beside<M: FrameAccess>(
        &mut self,
        machine: &impl FrameAccess,
        second: &dyn Second<M>,
        count: u64,
    ) -> Result<(), String> {
        let half = self.pages.len() / 2;
        let (front, back) = self.pages.split_at_mut(half);
        let [front_next, back_next] = &mut self.next;
        let edition = AtomicU64::new(self.edition);
        let (mut ours, mut theirs) = (Ok(0), Ok(0));
        second.beside(
            &mut |machine| {
                if let Ok(before) = theirs {
                    let round = turn_over(machine, back, back_next, count, &edition);
                    theirs = round.map(|pages| before + pages);
                }
            },
            &mut || ours = turn_over(machine, front, front_next, count, &edition),
        );
        self.edition = edition.into_inner();
        let theirs = theirs?;
        self.verified += ours? + theirs;
        self.beside += theirs;
        Ok(())
    }

    /// Looks at every page.
    pub(super) fn verify<M: FrameAccess>(&mut self, machine: &M) -> Result<(), String> {
        for page in &self.pages {
            page.verify(machine)?;
            self.verified += 1;
        }
        Ok(())
    }
}

/// Looks at `count` of `pages` from `next` on, and writes each of them anew. How many there were.
fn turn_over<M: FrameAccess>(
    machine: &M,
    pages: &mut [Page],
    next: &mut usize,
    count: u64,
    edition: &AtomicU64,
) -> Result<u64, String> {
    let count = count.min(pages.len() as u64);
    for _ in 0..count {
        *next = if *next < pages.len() { *next } else { 0 };
        let page = &mut pages[*next];
        page.verify(machine)?;
        page.edition = edition.fetch_add(1, Ordering::Relaxed) + 1;
        page.write(machine)?;
        *next += 1;
    }
    Ok(count)
}

impl Page {
    fn chunks(&self) -> impl Iterator<Item = (usize, [u8; CHUNK_BYTES])> {
        let (pfn, edition) = (self.frame.pfn(), self.edition);
        (0..PAGE_SIZE).step_by(CHUNK_BYTES).map(move |offset| (offset, words(pfn, edition, offset)))
    }

    fn write<M: FrameAccess>(&self, machine: &M) -> Result<(), String> {
        for (offset, bytes) in self.chunks() {
            // SAFETY: the frame is the workload's (I-1).
            unsafe { machine.write_bytes(self.frame.pfn(), offset, &bytes) }
                .map_err(unreachable)?;
        }
        Ok(())
    }

    fn verify<M: FrameAccess>(&self, machine: &M) -> Result<(), String> {
        let (pfn, edition) = (self.frame.pfn(), self.edition);
        for (offset, bytes) in self.chunks() {
            let mut found = [0; CHUNK_BYTES];
            machine.read_bytes(pfn, offset, &mut found).map_err(unreachable)?;
            if found != bytes
                && let Some(at) = (0..CHUNK_BYTES).find(|at| found[*at] != bytes[*at])
            {
                let (found, written) = (found[at], bytes[at]);
                return Err(format!(
                    "pfn {pfn} holds {found:#x} at {:#x}, edition {edition} of it has {written:#x}",
                    offset + at
                ));
            }
        }
        Ok(())
    }
}

fn unreachable(error: AccessError) -> String {
    format!("the workload: {error}")
}

/// What edition `edition` of page `pfn` holds from `offset` on: no two words are alike.
fn words(pfn: Pfn, edition: u64, offset: usize) -> [u8; CHUNK_BYTES] {
    let mut bytes = [0; CHUNK_BYTES];
    for (k, word) in bytes.chunks_exact_mut(8).enumerate() {
        let place = pfn.raw() << 12 | (offset + 8 * k) as u64;
        // An odd factor maps no two words to the same one (Knuth's multiplicative hashing).
        let mixed = (place ^ edition << 44).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&mixed.to_le_bytes());
    }
    bytes
}
