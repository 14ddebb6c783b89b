//! Operations, as values that can be written down and read again.

use core::fmt;
use core::str::FromStr;

macro_rules! kinds {
    ($($name:ident = $text:literal, $meaning:literal;)*) => {
        /// What an operation does. Frames `a` and `b` are places in the arena.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Kind {
            $(#[doc = $meaning] $name,)*
        }

        /// Every kind.
        pub const KINDS: &[Kind] = &[$(Kind::$name,)*];

        impl Kind {
            /// Its short name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

kinds! {
    Direct = "direct",
        "Maps frame a at its own address with `flags`, or not at all (`mmu_update`).";
    DirectVa = "directva", "The same by `update_va_mapping`.";
    Write = "write",
        "Stores an entry for target b into slot `index` of a, if a is mapped writable.";
    Set = "set", "Sets slot `index` of a to an entry for target b (`mmu_update`).";
    SetKeep = "setkeep", "The same, keeping accessed and dirty bits.";
    SetOdd = "setodd", "The same with a command or domain that Xen refuses, chosen by `index`.";
    Batch = "batch",
        "Sets three slots of a, from `index` on, to entries for b and its followers, in one call.";
    Calls = "calls", "A multicall: pin of b, the batch, an update by address, unpin of b.";
    Pin = "pin", "Pins a as a table of level `index`.";
    Unpin = "unpin", "Unpins a.";
    PinBatch = "pins", "Unpins a, pins b as level `index`, unpins the frame behind b, in one call.";
    UserRoot = "userroot", "Makes a the root of user mode, or none if `index` is 0.";
    BadRoot = "badroot", "Tries a frame that is no root as the root of the kernel.";
    Clear = "clear", "Clears a (`MMUEXT_CLEAR_PAGE`).";
    Copy = "copy", "Copies b to a (`MMUEXT_COPY_PAGE`).";
    Odd = "odd", "An extended operation that is refused or has no effect, chosen by `index`.";
    MachPhys = "m2p", "Sets M2P of a to a wrong pfn, reads it, and sets it right again.";
    Exchange = "exchange", "Exchanges a for another frame.";
    ExchangeUsed = "exchangeused", "Tries to exchange a while it is in use.";
    Balloon = "balloon", "Gives a back and gets another frame for its page.";
    BalloonUsed = "balloonused", "As balloon, but a is given back while it is still mapped.";
    Store = "store", "Stores to slot `index` of a by an instruction of 1, 2, 4 or 8 bytes.";
    CompareExchange = "cmpxchg", "Compares and exchanges slot `index` of a.";
    Assist = "assist", "Enables writable page tables.";
    Reset = "reset", "Takes everything apart that involves a, and maps it writable and empty.";
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Op {
    /// What it does.
    pub kind: Kind,
    /// The frame it is about.
    pub a: u8,
    /// The other frame, or one of the targets beyond the arena.
    pub b: u8,
    /// A slot, level or choice.
    pub index: u16,
    /// Flags of an entry.
    pub flags: u64,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, a, b, index, flags } = self;
        write!(f, "{} {a} {b} {index} {flags:x}", kind.name())
    }
}

/// A line that is no operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpError;

impl fmt::Display for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an operation: a name, three numbers and flags in hexadecimal are wanted")
    }
}

impl core::error::Error for OpError {}

impl FromStr for Op {
    type Err = OpError;

    fn from_str(line: &str) -> Result<Self, OpError> {
        fn number<T: FromStr>(word: Option<&str>) -> Result<T, OpError> {
            word.and_then(|word| word.parse().ok()).ok_or(OpError)
        }
        let mut words = line.split_ascii_whitespace();
        let name = words.next().ok_or(OpError)?;
        let kind = *KINDS.iter().find(|kind| kind.name() == name).ok_or(OpError)?;
        let (a, b) = (number(words.next())?, number(words.next())?);
        let index = number(words.next())?;
        let flags = words.next().ok_or(OpError)?;
        let flags = u64::from_str_radix(flags, 16).map_err(|_| OpError)?;
        match words.next() {
            None => Ok(Self { kind, a, b, index, flags }),
            Some(_) => Err(OpError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_survives_being_written_down() {
        for kind in KINDS {
            let op = Op { kind: *kind, a: 3, b: 255, index: 511, flags: u64::MAX };
            assert_eq!(op.to_string().parse(), Ok(op));
        }
        for line in ["", "pin", "pin 1 2 3", "pin 1 2 3 x", "pin 300 2 3 0", "pin 1 2 3 0 0"] {
            assert_eq!(line.parse::<Op>(), Err(OpError), "{line}");
        }
    }
}
