//! The page through which a guest talks to xenstored: two rings of bytes
//! (`struct xenstore_domain_interface`, public/io/xs_wire.h).
//!
//! The other side may write any byte at any time, so all of it is atomic, and its counters are
//! checked at each use: one that makes no sense is an error, never an index.

use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering, fence};

/// Bytes of each ring.
pub(crate) const RING_BYTES: usize = 1024;

/// The page.
#[repr(C)]
pub(crate) struct StoreRing {
    pub(super) requests: [AtomicU8; RING_BYTES],
    pub(super) responses: [AtomicU8; RING_BYTES],
    pub(super) request_cons: AtomicU32,
    pub(super) request_prod: AtomicU32,
    pub(super) response_cons: AtomicU32,
    pub(super) response_prod: AtomicU32,
}

/// Counters of a ring that cannot be: more bytes than it has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BrokenRing {
    pub(crate) cons: u32,
    pub(crate) prod: u32,
}

impl fmt::Display for BrokenRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cons, prod } = self;
        write!(f, "the xenstore ring says {cons} read and {prod} written, of {RING_BYTES} bytes")
    }
}

/// Bytes between two counters.
fn filled(cons: u32, prod: u32) -> Result<usize, BrokenRing> {
    let bytes = prod.wrapping_sub(cons) as usize;
    if bytes > RING_BYTES { Err(BrokenRing { cons, prod }) } else { Ok(bytes) }
}

/// The bytes of a ring from the one with number `first` on.
fn from(ring: &[AtomicU8; RING_BYTES], first: u32) -> impl Iterator<Item = &AtomicU8> {
    (0..).map(move |offset: u32| &ring[first.wrapping_add(offset) as usize % RING_BYTES])
}

impl StoreRing {
    /// Writes as many of `bytes` as there is room for, and says how many.
    ///
    /// # Errors
    /// [`BrokenRing`]; nothing was written.
    pub(crate) fn send(&self, bytes: &[u8]) -> Result<usize, BrokenRing> {
        let prod = self.request_prod.load(Ordering::Relaxed);
        let room = RING_BYTES - filled(self.request_cons.load(Ordering::Acquire), prod)?;
        let count = bytes.len().min(room);
        fence(Ordering::SeqCst);
        for (to, byte) in from(&self.requests, prod).zip(&bytes[..count]) {
            to.store(*byte, Ordering::Relaxed);
        }
        self.request_prod.store(advanced(prod, count), Ordering::SeqCst);
        Ok(count)
    }

    /// Reads as many bytes as there are, and says how many.
    ///
    /// # Errors
    /// [`BrokenRing`]; nothing was read.
    pub(crate) fn receive(&self, into: &mut [u8]) -> Result<usize, BrokenRing> {
        let cons = self.response_cons.load(Ordering::Relaxed);
        let count = filled(cons, self.response_prod.load(Ordering::Acquire))?.min(into.len());
        for (byte, from) in into[..count].iter_mut().zip(from(&self.responses, cons)) {
            *byte = from.load(Ordering::Relaxed);
        }
        self.response_cons.store(advanced(cons, count), Ordering::SeqCst);
        Ok(count)
    }

    /// Forgets what was not read: after a restore it is not for us.
    pub(crate) fn forget(&self) {
        self.response_cons.store(self.response_prod.load(Ordering::Acquire), Ordering::Release);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "at most RING_BYTES")]
const fn advanced(counter: u32, count: usize) -> u32 {
    counter.wrapping_add(count as u32)
}

#[cfg(test)]
impl Default for StoreRing {
    fn default() -> Self {
        Self {
            requests: [const { AtomicU8::new(0) }; RING_BYTES],
            responses: [const { AtomicU8::new(0) }; RING_BYTES],
            request_cons: AtomicU32::default(),
            request_prod: AtomicU32::default(),
            response_cons: AtomicU32::default(),
            response_prod: AtomicU32::default(),
        }
    }
}
