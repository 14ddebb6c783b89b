//! What size the guest is to have: what was asked for, kept apart from what can be aimed at.

use core::fmt;

use hypercall::PAGE_SIZE;

/// Bytes in a KiB, the unit of `memory/target` in xenstore.
const KIB: u64 = 1024;

/// The size that was asked for, and the one that the balloon aims at.
///
/// The wish is never forgotten: when its limit moves, the aim follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goal {
    /// What was asked for, in frames.
    pub wanted: u64,
    /// What the balloon aims at, in frames.
    pub frames: u64,
    /// Why that is not the same.
    pub limit: Option<Limit>,
}

/// What keeps the aim from the wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The guest needs at least so many frames to live.
    Floor(u64),
    /// The guest has no pfns for more than so many frames: it can grow its frame map and direct
    /// mapping first.
    Pfns(u64),
}

impl Goal {
    /// Returns `wanted`, between the floor and what there are pfns for. The floor wins.
    pub(crate) const fn new(wanted: u64, floor: u64, pfns: u64) -> Self {
        if wanted < floor {
            return Self { wanted, frames: floor, limit: Some(Limit::Floor(floor)) };
        }
        if wanted > pfns {
            return Self { wanted, frames: pfns, limit: Some(Limit::Pfns(pfns)) };
        }
        Self { wanted, frames: wanted, limit: None }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} frames", self.frames)?;
        match self.limit {
            None => Ok(()),
            Some(Limit::Floor(_)) => write!(f, ", not {}: the guest needs that many", self.wanted),
            Some(Limit::Pfns(_)) => {
                write!(f, ", not {}: grow the frame map to have more", self.wanted)
            }
        }
    }
}

/// Why a text is no target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetError {
    /// There is nothing in it: the node is absent, or not written yet.
    Empty,
    /// There is something else than decimal digits in it, at this byte.
    NotANumber(usize),
    /// The number is more than any machine has.
    TooLarge,
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the target is empty: keep the size and wait for one"),
            Self::NotANumber(at) => write!(f, "byte {at} of the target is no decimal digit"),
            Self::TooLarge => f.write_str("the target is more than any machine has"),
        }
    }
}

impl core::error::Error for TargetError {}

/// Reads a target as a toolstack writes it (`memory/target`: KiB in decimal), in whole frames. What
/// is wrong with it is the caller's to report; the balloon keeps its goal.
///
/// # Errors
/// [`TargetError`]. White space around the number and a final NUL are let pass.
///
/// ```
/// use balloon::frames_of_kib;
///
/// assert_eq!(frames_of_kib(b"262144"), Ok(65536)); // `memory/target` of a guest of 256 MiB
/// assert!(frames_of_kib(b"a lot").is_err());
/// ```
pub fn frames_of_kib(text: &[u8]) -> Result<u64, TargetError> {
    let text = text.strip_suffix(&[0]).unwrap_or(text);
    let start = text.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    let digits = text.trim_ascii();
    if digits.is_empty() {
        return Err(TargetError::Empty);
    }
    let mut kib = 0u64;
    for (at, byte) in digits.iter().enumerate() {
        if !byte.is_ascii_digit() {
            return Err(TargetError::NotANumber(start + at));
        }
        let digit = u64::from(byte - b'0');
        let more = kib.checked_mul(10).and_then(|tens| tens.checked_add(digit));
        kib = more.ok_or(TargetError::TooLarge)?;
    }
    Ok(kib / (PAGE_SIZE as u64 / KIB))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString;

    use super::*;

    #[test]
    fn the_wish_stays_while_the_aim_keeps_to_the_limits() {
        assert_eq!(Goal::new(50, 10, 100), Goal { wanted: 50, frames: 50, limit: None });
        assert_eq!(Goal::new(0, 10, 100).frames, 10);
        assert_eq!(Goal::new(u64::MAX, 10, 100).limit, Some(Limit::Pfns(100)));
        // A guest of fewer pfns than its own floor grows no hole.
        assert_eq!(Goal::new(0, 10, 5).frames, 10);
        let said = Goal::new(3, 10, 100).to_string();
        assert_eq!(said, "10 frames, not 3: the guest needs that many");
    }

    #[test]
    fn targets_are_read_as_toolstacks_write_them() {
        assert_eq!(frames_of_kib(b"262144"), Ok(65536));
        assert_eq!(frames_of_kib(b" 7\n"), Ok(1));
        assert_eq!(frames_of_kib(b"0\0"), Ok(0));
    }

    #[test]
    fn what_is_no_target_is_refused_by_its_name() {
        assert_eq!(frames_of_kib(b""), Err(TargetError::Empty));
        assert_eq!(frames_of_kib(b" \n"), Err(TargetError::Empty));
        assert_eq!(frames_of_kib(b"-4"), Err(TargetError::NotANumber(0)));
        assert_eq!(frames_of_kib(b" 12x"), Err(TargetError::NotANumber(3)));
        assert_eq!(frames_of_kib(b"0x1000"), Err(TargetError::NotANumber(1)));
        assert_eq!(frames_of_kib(b"99999999999999999999"), Err(TargetError::TooLarge));
        assert_eq!(frames_of_kib(b"18446744073709551615"), Ok(u64::MAX / 4));
        assert_eq!(frames_of_kib(b"\xff\xfe"), Err(TargetError::NotANumber(0)));
    }
}
