//! The size asked for, and the size that can be aimed at.

use core::fmt;

use hypercall::PAGE_SIZE;

/// Bytes in a KiB, the unit of `memory/target` in xenstore.
const KIB: u64 = 1024;

/// The size asked for and the size aimed at. When the limit moves, the aim follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goal {
    /// What was asked for, in frames.
    pub wanted: u64,
    /// What the balloon aims at, in frames.
    pub frames: u64,
    /// Why they differ.
    pub limit: Option<Limit>,
}

/// What separates the aim from the wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The guest needs at least this many frames to live.
    Floor(u64),
    /// The guest has pfns for only this many frames. It can grow its frame map and direct mapping
    /// first.
    Pfns(u64),
}

impl Goal {
    /// Limits `wanted` to the floor and to the number of pfns. The floor wins.
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

/// Why a text is not a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetError {
    /// It is empty: the node is absent, or not written yet.
    Empty,
    /// This byte is not a decimal digit.
    NotANumber(usize),
    /// The number is larger than any machine.
    TooLarge,
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the target is empty: keep the size and wait for one"),
            Self::NotANumber(at) => write!(f, "byte {at} of the target is not a decimal digit"),
            Self::TooLarge => f.write_str("the target is larger than any machine"),
        }
    }
}

impl core::error::Error for TargetError {}

/// Reads a toolstack's target (`memory/target`: KiB in decimal) and returns it in whole frames.
///
/// # Errors
/// [`TargetError`]. White space around the number and a final NUL are accepted.
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
