//! Which machine frame stands behind which page of a new domain.
//!
//! Under a real Xen a guest's frames lie anywhere. Here they lie anywhere by seed, and by a formula
//! that works both ways, so that a guest of a terabyte needs no list of them.

use crate::random::Random;

/// A reversible assignment of the frames `start..start + count` to pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scatter {
    start: u64,
    count: u64,
    factor: u64,
    inverse: u64,
    shift: u64,
}

impl Scatter {
    /// Page k has frame `start + k`.
    pub(crate) const fn contiguous(start: u64, count: u64) -> Self {
        Self { start, count, factor: 1, inverse: 1, shift: 0 }
    }

    /// Pages have frames out of `start..start + count` that are no neighbours.
    pub(crate) fn random(start: u64, count: u64, random: &mut Random) -> Self {
        if count < 4 {
            return Self::contiguous(start, count);
        }
        loop {
            let factor = 2 + random.below(count - 2);
            if let Some(inverse) = inverse_modulo(factor, count) {
                return Self { start, count, factor, inverse, shift: random.below(count) };
            }
        }
    }

    pub(crate) const fn frame(&self, page: u64) -> u64 {
        self.start + (multiply(page, self.factor, self.count) + self.shift) % self.count
    }

    pub(crate) const fn page(&self, frame: u64) -> u64 {
        let place = frame - self.start + self.count - self.shift;
        multiply(place % self.count, self.inverse, self.count)
    }
}

/// Returns `a * b % modulus`, for a modulus below 2^40.
#[expect(clippy::cast_possible_truncation, reason = "a remainder of a 64-bit modulus")]
const fn multiply(a: u64, b: u64, modulus: u64) -> u64 {
    match a.checked_mul(b) {
        Some(product) => product % modulus,
        None => (a as u128 * b as u128 % modulus as u128) as u64,
    }
}

/// Returns the inverse of `a` modulo `modulus`, if they have no common divisor.
fn inverse_modulo(a: u64, modulus: u64) -> Option<u64> {
    let (mut r0, mut r1) = (i128::from(modulus), i128::from(a));
    let (mut t0, mut t1) = (0, 1);
    while r1 != 0 {
        let quotient = r0 / r1;
        (r0, r1) = (r1, r0 - quotient * r1);
        (t0, t1) = (t1, t0 - quotient * t1);
    }
    if r0 != 1 {
        return None;
    }
    u64::try_from(t0.rem_euclid(i128::from(modulus))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_has_a_frame_of_its_own_and_back() {
        for count in [1, 3, 4, 17, 512, 65536, 99_991] {
            let scatter = Scatter::random(0x1000, count, &mut Random::new(7));
            let mut seen = vec![false; usize::try_from(count).unwrap()];
            for page in 0..count {
                let frame = scatter.frame(page);
                assert!((0x1000..0x1000 + count).contains(&frame));
                assert_eq!(scatter.page(frame), page);
                let place = usize::try_from(frame - 0x1000).unwrap();
                assert!(!std::mem::replace(&mut seen[place], true));
            }
        }
    }

    #[test]
    fn neighbours_are_rare() {
        let scatter = Scatter::random(0, 65536, &mut Random::new(1));
        let neighbours = (1..65536).filter(|k| scatter.frame(*k) == scatter.frame(k - 1) + 1);
        assert!(neighbours.count() < 100);
    }
}
