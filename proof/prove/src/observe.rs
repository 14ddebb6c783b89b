//! Observations, and their digest.

use alloc::vec::Vec;

use crate::random::mix;

/// What was seen after a group of steps: answers, then the frames that it touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    words: Vec<u64>,
}

impl Observation {
    /// Returns the words, in order.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    pub(crate) fn push(&mut self, word: u64) {
        self.words.push(word);
    }

    pub(crate) fn clear(&mut self) {
        self.words.clear();
    }
}

/// Observations folded into one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(u64);

impl Digest {
    /// Folds an observation in.
    pub fn add(&mut self, observation: &Observation) {
        for word in &observation.words {
            self.0 = mix(self.0.rotate_left(5) ^ *word).wrapping_add(1);
        }
    }

    /// Returns the number.
    #[must_use]
    pub const fn value(self) -> u64 {
        self.0
    }
}
