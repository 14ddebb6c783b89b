//! Steps as lines of text: what a divergence is kept as.
//!
//! `=` alone, `+` in the same request, `*` in the same multicall; then the operation and its
//! arguments:
//!
//! ```text
//! = update 0 f3.1 f7 8000000000000063
//! + update 2 d3 f3 61
//! * ext 3 f12 zero
//! = va d3 63 2
//! = store f3.1 f7 63
//! = cas f3.1 current f7 63
//! = zero f3
//! = exchange f3 released
//! = balloon f3 mapped
//! = clean
//! ```

use core::fmt;
use core::str::{FromStr, SplitWhitespace};

use hypercall::VaFlush;

use crate::op::{Cas, Hold, Link, Op, Step, UpdatePlace, VaPlace, Value, Which};

/// A line that is no step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// What was expected at the word that does not fit.
    pub expected: &'static str,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}", self.expected)
    }
}

impl core::error::Error for ParseError {}

const FLUSHES: [VaFlush; 5] =
    [VaFlush::None, VaFlush::PageLocal, VaFlush::PageAll, VaFlush::TlbLocal, VaFlush::TlbAll];

const NAMED: [(Which, &str); 6] = [
    (Which::Zero, "zero"),
    (Which::Invalid, "invalid"),
    (Which::OutOfRange, "out"),
    (Which::SharedInfo, "shared"),
    (Which::RunningRoot, "root"),
    (Which::RunningL1, "l1"),
];

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arena(frame) => write!(f, "f{frame}"),
            other => {
                let name = NAMED.iter().find(|(which, _)| which == other);
                f.write_str(name.map_or("", |(_, name)| name))
            }
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:x}", self.which, self.flags)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.link {
            Link::Alone => "= ",
            Link::SameRequest => "+ ",
            Link::SameMulticall => "* ",
        })?;
        match self.op {
            Op::Update { command, place, value } => match place {
                UpdatePlace::Slot(frame, slot) => {
                    write!(f, "update {command} f{frame}.{slot} {value}")
                }
                UpdatePlace::Direct(frame) => write!(f, "update {command} d{frame} {value}"),
                UpdatePlace::OutOfRange => write!(f, "update {command} out {value}"),
                UpdatePlace::XenSlot => write!(f, "update {command} xen {value}"),
            },
            Op::Ext { command, first, second } => write!(f, "ext {command} {first} {second}"),
            Op::VaMapping { place, flags, flush } => {
                let flush = FLUSHES.iter().position(|known| *known == flush).unwrap_or(0);
                match place {
                    VaPlace::Direct(frame) => write!(f, "va d{frame} {flags:x} {flush}"),
                    VaPlace::Hole => write!(f, "va hole {flags:x} {flush}"),
                    VaPlace::Nowhere => write!(f, "va nowhere {flags:x} {flush}"),
                }
            }
            Op::Store { frame, slot, value } => write!(f, "store f{frame}.{slot} {value}"),
            Op::CompareExchange { frame, slot, expected, value } => {
                let expected = if expected == Cas::Current { "current" } else { "other" };
                write!(f, "cas f{frame}.{slot} {expected} {value}")
            }
            Op::CleanUp => f.write_str("clean"),
            Op::Zero { frame } => write!(f, "zero f{frame}"),
            Op::Exchange { frame, hold } => write!(f, "exchange f{frame} {hold}"),
            Op::Balloon { frame, hold } => write!(f, "balloon f{frame} {hold}"),
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Mapped { "mapped" } else { "released" })
    }
}

/// The words of a line, taken one by one.
struct Words<'a>(SplitWhitespace<'a>);

type Parsed<T> = Result<T, ParseError>;

impl<'a> Words<'a> {
    fn word(&mut self, expected: &'static str) -> Parsed<&'a str> {
        self.0.next().ok_or(ParseError { expected })
    }

    fn number(&mut self, expected: &'static str) -> Parsed<u8> {
        self.word(expected)?.parse().map_err(|_| ParseError { expected })
    }

    fn flags(&mut self) -> Parsed<u64> {
        let expected = "flags in hexadecimal";
        u64::from_str_radix(self.word(expected)?, 16).map_err(|_| ParseError { expected })
    }

    fn which(&mut self) -> Parsed<Which> {
        let expected = "a frame: f0 to f255, zero, invalid, out, shared, root or l1";
        let word = self.word(expected)?;
        match NAMED.iter().find(|(_, name)| *name == word) {
            Some((which, _)) => Ok(*which),
            None => prefixed(word, 'f').map(Which::Arena).ok_or(ParseError { expected }),
        }
    }

    fn value(&mut self) -> Parsed<Value> {
        Ok(Value { which: self.which()?, flags: self.flags()? })
    }

    fn frame(&mut self) -> Parsed<u8> {
        let expected = "a frame of the arena: f0 to f255";
        prefixed(self.word(expected)?, 'f').ok_or(ParseError { expected })
    }

    fn frame_slot(&mut self) -> Parsed<(u8, u8)> {
        let expected = "a word of the arena, like f3.1";
        frame_slot(self.word(expected)?).ok_or(ParseError { expected })
    }

    fn place(&mut self) -> Parsed<UpdatePlace> {
        let expected = "a place: f3.1, d3, out or xen";
        let place = match self.word(expected)? {
            "out" => Some(UpdatePlace::OutOfRange),
            "xen" => Some(UpdatePlace::XenSlot),
            word => frame_slot(word)
                .map(|(frame, slot)| UpdatePlace::Slot(frame, slot))
                .or_else(|| prefixed(word, 'd').map(UpdatePlace::Direct)),
        };
        place.ok_or(ParseError { expected })
    }

    fn hold(&mut self) -> Parsed<Hold> {
        let expected = "released or mapped";
        match self.word(expected)? {
            "released" => Ok(Hold::Released),
            "mapped" => Ok(Hold::Mapped),
            _ => Err(ParseError { expected }),
        }
    }

    fn va(&mut self) -> Parsed<Op> {
        let expected = "an address: d3, hole or nowhere";
        let place = match self.word(expected)? {
            "hole" => Some(VaPlace::Hole),
            "nowhere" => Some(VaPlace::Nowhere),
            word => prefixed(word, 'd').map(VaPlace::Direct),
        };
        let place = place.ok_or(ParseError { expected })?;
        let flags = self.flags()?;
        let flush = FLUSHES.get(usize::from(self.number("a flush, 0 to 4")?));
        Ok(Op::VaMapping {
            place,
            flags,
            flush: *flush.ok_or(ParseError { expected: "a flush, 0 to 4" })?,
        })
    }

    fn compare_exchange(&mut self) -> Parsed<Op> {
        let (frame, slot) = self.frame_slot()?;
        let expected = match self.word("current or other")? {
            "current" => Cas::Current,
            "other" => Cas::Other,
            _ => return Err(ParseError { expected: "current or other" }),
        };
        Ok(Op::CompareExchange { frame, slot, expected, value: self.value()? })
    }

    fn op(&mut self) -> Parsed<Op> {
        match self.word("an operation")? {
            "update" => Ok(Op::Update {
                command: self.number("a command, 0 to 7")?,
                place: self.place()?,
                value: self.value()?,
            }),
            "ext" => Ok(Op::Ext {
                command: self.number("a command number")?,
                first: self.which()?,
                second: self.which()?,
            }),
            "va" => self.va(),
            "store" => {
                let (frame, slot) = self.frame_slot()?;
                Ok(Op::Store { frame, slot, value: self.value()? })
            }
            "cas" => self.compare_exchange(),
            "clean" => Ok(Op::CleanUp),
            "zero" => Ok(Op::Zero { frame: self.frame()? }),
            "exchange" => Ok(Op::Exchange { frame: self.frame()?, hold: self.hold()? }),
            "balloon" => Ok(Op::Balloon { frame: self.frame()?, hold: self.hold()? }),
            _ => Err(ParseError { expected: "an operation" }),
        }
    }
}

fn prefixed(word: &str, prefix: char) -> Option<u8> {
    word.strip_prefix(prefix)?.parse().ok()
}

fn frame_slot(word: &str) -> Option<(u8, u8)> {
    let (frame, slot) = word.split_once('.')?;
    Some((prefixed(frame, 'f')?, slot.parse().ok()?))
}

impl FromStr for Step {
    type Err = ParseError;

    fn from_str(line: &str) -> Result<Self, ParseError> {
        let mut words = Words(line.split_whitespace());
        let link = match words.word("=, + or *")? {
            "=" => Link::Alone,
            "+" => Link::SameRequest,
            "*" => Link::SameMulticall,
            _ => return Err(ParseError { expected: "=, + or *" }),
        };
        let step = Self { link, op: words.op()? };
        match words.0.next() {
            None => Ok(step),
            Some(_) => Err(ParseError { expected: "the end of the line" }),
        }
    }
}
