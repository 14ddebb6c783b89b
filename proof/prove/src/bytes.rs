//! Steps from bytes that a fuzzer chooses: every sequence of bytes is one of steps.

use hypercall::VaFlush;

use crate::op::{Cas, Hold, Link, Op, Step, UpdatePlace, VaPlace, Value, Which};

/// Bytes that make a step.
const LEN: usize = 16;

impl Step {
    /// Returns the steps that `bytes` stand for, sixteen bytes each.
    ///
    /// ```
    /// use prove::Step;
    ///
    /// let steps: Vec<Step> = Step::from_bytes(&[7; 64]).collect();
    /// assert!(!steps.is_empty()); // any bytes are steps
    /// ```
    pub fn from_bytes(bytes: &[u8]) -> impl Iterator<Item = Self> + '_ {
        bytes.as_chunks::<LEN>().0.iter().map(decode)
    }
}

fn decode(bytes: &[u8; LEN]) -> Step {
    let [link, kind, a, b, c, d, place, which, flags @ ..] = *bytes;
    let value = Value { which: frame(which, c), flags: u64::from_le_bytes(flags) };
    let link = match link % 4 {
        0 => Link::SameRequest,
        1 => Link::SameMulticall,
        _ => Link::Alone,
    };
    let hold = if d % 2 == 0 { Hold::Released } else { Hold::Mapped };
    let (frame_number, slot) = (a, b);
    let op = match kind % 16 {
        0..=4 => Op::Update { command: d, place: spot(place, a, b), value },
        5..=8 => Op::Ext { command: d % 24, first: frame(place, a), second: frame(which, c) },
        9 => Op::VaMapping { place: address(place, a), flags: value.flags, flush: flush(d) },
        10 | 11 => Op::Store { frame: frame_number, slot, value },
        12 => {
            let expected = if d % 2 == 0 { Cas::Current } else { Cas::Other };
            Op::CompareExchange { frame: frame_number, slot, expected, value }
        }
        13 => Op::Zero { frame: frame_number },
        14 if d < 128 => Op::Exchange { frame: frame_number, hold },
        14 => Op::Balloon { frame: frame_number, hold },
        _ => Op::Update { command: 0, place: UpdatePlace::Direct(a), value },
    };
    Step { link, op }
}

const fn frame(selector: u8, number: u8) -> Which {
    match selector % 32 {
        0 => Which::Zero,
        1 => Which::Invalid,
        2 => Which::OutOfRange,
        3 => Which::SharedInfo,
        4 => Which::RunningRoot,
        5 => Which::RunningL1,
        _ => Which::Arena(number),
    }
}

const fn spot(selector: u8, frame: u8, slot: u8) -> UpdatePlace {
    match selector % 16 {
        0 => UpdatePlace::OutOfRange,
        1 => UpdatePlace::XenSlot,
        2..=4 => UpdatePlace::Direct(frame),
        _ => UpdatePlace::Slot(frame, slot),
    }
}

const fn address(selector: u8, frame: u8) -> VaPlace {
    match selector % 8 {
        0 => VaPlace::Hole,
        1 => VaPlace::Nowhere,
        _ => VaPlace::Direct(frame),
    }
}

const fn flush(selector: u8) -> VaFlush {
    match selector % 5 {
        0 => VaFlush::None,
        1 => VaFlush::PageLocal,
        2 => VaFlush::PageAll,
        3 => VaFlush::TlbLocal,
        _ => VaFlush::TlbAll,
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString as _;
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn any_bytes_are_steps_and_survive_being_written_down() {
        let bytes: Vec<u8> = (0..=255).cycle().step_by(7).take(4096 + 5).collect();
        let steps: Vec<Step> = Step::from_bytes(&bytes).collect();
        assert_eq!(steps.len(), 256, "a rest that is too short makes no step");
        for step in steps {
            assert_eq!(step.to_string().parse(), Ok(step), "{step}");
        }
    }
}
