//! The record of what was seen: a rolling hash (FNV-1a), the same everywhere.

const START: u64 = 0xcbf2_9ce4_8422_2325;
const FACTOR: u64 = 0x0100_0000_01b3;

/// Everything seen so far, as 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Record(u64);

impl Record {
    /// Nothing seen.
    #[must_use]
    pub const fn new() -> Self {
        Self(START)
    }

    /// Adds a number.
    pub const fn add(&mut self, number: u64) {
        let bytes = number.to_le_bytes();
        let mut k = 0;
        while k < bytes.len() {
            self.0 = (self.0 ^ bytes[k] as u64).wrapping_mul(FACTOR);
            k += 1;
        }
    }

    /// The hash.
    #[must_use]
    pub const fn value(self) -> u64 {
        self.0
    }
}

impl Default for Record {
    fn default() -> Self {
        Self::new()
    }
}
