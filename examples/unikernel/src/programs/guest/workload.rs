//! The workload: pages full of words that only this guest can know, looked at again and again. A
//! page that is lost, swapped or overwritten does not go unnoticed.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use hypercall::{AccessError, Frame, FrameAccess, PAGE_SIZE, Pfn};
use p2m::LeafSource;

use crate::life::survives;

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
        /// The page to look at next.
        next: usize,
        edition: u64,
        /// Pages looked at so far.
        pub(super) verified: u64,
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
        source: &mut impl LeafSource,
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

    /// Gives pages back until there are no more than `pages`. Each is looked at a last time.
    pub(super) fn shrink<M: FrameAccess>(
        &mut self,
        machine: &M,
        sink: &mut impl LeafSource,
        pages: u64,
    ) -> Result<(), String> {
        while self.len() > pages
            && let Some(page) = self.pages.pop()
        {
            let sound = page.verify(machine);
            sink.give(page.frame);
            sound?;
            self.verified += 1;
        }
        Ok(())
    }

    /// Looks at `count` pages and writes each of them anew.
    pub(super) fn work<M: FrameAccess>(&mut self, machine: &M, count: u64) -> Result<(), String> {
        for _ in 0..count.min(self.len()) {
            self.next = if self.next < self.pages.len() { self.next } else { 0 };
            self.edition += 1;
            let edition = self.edition;
            let Some(page) = self.pages.get_mut(self.next) else { return Ok(()) };
            page.verify(machine)?;
            page.edition = edition;
            page.write(machine)?;
            self.next += 1;
            self.verified += 1;
        }
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
            if let Some(at) = (0..CHUNK_BYTES).find(|at| found[*at] != bytes[*at]) {
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
