//! The word that Xen keeps for each frame (`type_info`), in each of its layouts.
//!
//! The same digits mean different things in different releases: `2000000000000000` is an L2 table
//! up to Xen 4.9 and an L1 table from 4.10 on. So a word is read in every layout that is possible,
//! and a layout in which it would be nonsense is ruled out.

use std::fmt;

use bitflags::bitflags;
use hypercall::Level;
use hypercall::explain::Use;

use crate::release::{Span, XenVersion};

bitflags! {
    /// The flags of a word.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct WordFlags: u8 {
        /// A pin holds one use (`PGT_pinned`).
        const PINNED = 1;
        /// The contents were found good for the type (`PGT_validated`).
        const VALIDATED = 2;
        /// Validation, or its undoing, has stopped half-way (`PGT_partial`).
        const PARTIAL = 4;
        /// An entry is being edited (`PGT_locked`).
        const LOCKED = 8;
        /// Mapped write-combining on a CPU that does not snoop itself (`PGT_non_coherent`).
        const NON_COHERENT = 16;
    }
}

/// A layout of `type_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Era {
    /// Type in bits 31:29, up to Xen 3.3.
    Bits31,
    /// Type in bits 63:61, pinned in bit 60: Xen 3.4.
    Bits63Of34,
    /// Type in bits 63:60: Xen 4.0 to 4.9.
    FourBits,
    /// Type in bits 63:61, locked in bit 60: from Xen 4.10 on.
    ThreeBits,
}

/// Where the parts of a word are.
struct Places {
    type_shift: u32,
    type_bits: u32,
    flags: [(u32, WordFlags); 5],
    /// Marks the fourth L2 of a 32-bit guest.
    pae_bit: u32,
    /// Bits 0 to this one, exclusive.
    count_bits: u32,
    types: [Option<Use>; 9],
}

const TABLES: [Option<Use>; 5] = [
    Some(Use::Nothing),
    Some(Use::Table(Level::L1)),
    Some(Use::Table(Level::L2)),
    Some(Use::Table(Level::L3)),
    Some(Use::Table(Level::L4)),
];

const fn types(six: Option<Use>, eight: Option<Use>) -> [Option<Use>; 9] {
    let [nothing, l1, l2, l3, l4] = TABLES;
    let writable = Some(Use::Writable);
    [nothing, l1, l2, l3, l4, Some(Use::Descriptors), six, writable, eight]
}

impl Era {
    /// All of them, oldest first.
    pub const ALL: [Self; 4] = [Self::Bits31, Self::Bits63Of34, Self::FourBits, Self::ThreeBits];

    /// Returns the releases that have it.
    #[must_use]
    pub const fn releases(self) -> Span {
        let (since, until) = match self {
            Self::Bits31 => (XenVersion::FIRST, XenVersion::new(3, 3)),
            Self::Bits63Of34 => (XenVersion::new(3, 4), XenVersion::new(3, 4)),
            Self::FourBits => (XenVersion::new(4, 0), XenVersion::new(4, 9)),
            Self::ThreeBits => (XenVersion::new(4, 10), XenVersion::LAST),
        };
        Span { since, until }
    }

    const fn places(self) -> Places {
        const SHARED: Option<Use> = Some(Use::Shared);
        // A flag that a layout lacks is at a bit that its type or count covers: it is masked out.
        const LACKS: u32 = 63;
        let ((type_shift, type_bits), flag_bits, pae_bit, count_bits, types) = match self {
            Self::Bits31 => {
                let types = types(Some(Use::Descriptors), None);
                ((29, 3), [28, 27, LACKS, LACKS, LACKS], 26, 26, types)
            }
            Self::Bits63Of34 => ((61, 3), [60, 59, 57, 56, LACKS], 58, 56, types(None, None)),
            Self::FourBits => ((60, 4), [59, 58, 56, 55, LACKS], 57, 55, types(None, SHARED)),
            Self::ThreeBits => ((61, 3), [59, 58, 56, 60, 55], 57, 55, types(SHARED, None)),
        };
        let flags = flags(flag_bits);
        Places { type_shift, type_bits, flags, pae_bit, count_bits, types }
    }

    /// Reads a word; `None` if it has a type that this layout does not know.
    #[must_use]
    pub fn read(self, word: u64) -> Option<Word> {
        let places = self.places();
        let mask = (1u64 << places.type_bits) - 1;
        let number = word >> places.type_shift & mask;
        let used = (*places.types.get(usize::try_from(number).ok()?)?)?;
        let above = places.type_shift + places.type_bits;
        if above < 64 && word >> above != 0 {
            return None;
        }
        let own = |bit: u32| bit < places.type_shift && word >> bit & 1 == 1;
        let flags = places.flags.iter().filter(|(bit, _)| own(*bit)).map(|(_, flag)| *flag);
        let count = word & ((1 << places.count_bits) - 1);
        Some(Word { used, flags: flags.collect(), count })
    }

    /// Returns the use for which a bare type stands, as Xen prints what it expected.
    #[must_use]
    pub fn bare(self, word: u64) -> Option<Use> {
        let read = self.read(word)?;
        let bare = read.flags.is_empty() && read.count == 0 && read.used != Use::Nothing;
        bare.then_some(read.used)
    }

    /// Returns a word that a frame in use can have; nonsense is none.
    #[must_use]
    pub fn in_use(self, word: u64) -> Option<Word> {
        let read = self.read(word)?;
        let has = |flag| read.flags.contains(flag);
        let is_pae = word >> self.places().pae_bit & 1 == 1;
        let sane = read.count > 0
            && read.count < 1 << 32
            && read.used != Use::Nothing
            && (has(WordFlags::VALIDATED) || matches!(read.used, Use::Table(_) | Use::Descriptors))
            && (!is_pae || read.used == Use::Table(Level::L2))
            && (!has(WordFlags::PINNED) || matches!(read.used, Use::Table(_)))
            // Locking a page takes a use of its own.
            && (!has(WordFlags::LOCKED) || read.count >= 2)
            && !(has(WordFlags::PARTIAL) && has(WordFlags::VALIDATED));
        sane.then_some(read)
    }
}

const fn flags(bits: [u32; 5]) -> [(u32, WordFlags); 5] {
    use WordFlags as F;
    [
        (bits[0], F::PINNED),
        (bits[1], F::VALIDATED),
        (bits[2], F::PARTIAL),
        (bits[3], F::LOCKED),
        (bits[4], F::NON_COHERENT),
    ]
}

impl fmt::Display for Era {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = match self {
            Self::Bits31 => "type in bits 31:29",
            Self::Bits63Of34 => "type in bits 63:61, pinned in bit 60",
            Self::FourBits => "type in bits 63:60",
            Self::ThreeBits => "type in bits 63:61",
        };
        write!(f, "{bits}, Xen {}", self.releases())
    }
}

/// A word, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// What the frame is used as.
    pub used: Use,
    /// The flags.
    pub flags: WordFlags,
    /// Uses.
    pub count: u64,
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.used.fmt(f)?;
        for (flag, name) in [
            (WordFlags::LOCKED, "an entry being edited (locked)"),
            (WordFlags::PINNED, "pinned"),
            (WordFlags::VALIDATED, "validated"),
            (WordFlags::PARTIAL, "half validated"),
            (WordFlags::NON_COHERENT, "mapped write-combining"),
        ] {
            if self.flags.contains(flag) {
                write!(f, ", {name}")?;
            }
        }
        match self.count {
            1 => f.write_str(", 1 use"),
            count => write!(f, ", {count} uses"),
        }
    }
}

/// Returns the layouts in which a frame can have had the word `saw` and can have been wanted as
/// `exp`, among the releases of `span`.
#[must_use]
pub(crate) fn eras(saw: Option<u64>, exp: Option<u64>, span: Span) -> Vec<Era> {
    let fits = |era: &Era| {
        era.releases().meet(span).is_some()
            && saw.is_none_or(|saw| era.in_use(saw).is_some())
            && exp.is_none_or(|exp| era.bare(exp).is_some())
    };
    Era::ALL.into_iter().filter(fits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_first_crash_are_those_of_xen_4_0_to_4_9() {
        let found = eras(Some(0x7400_0000_0000_0001), Some(0x1000_0000_0000_0000), Span::ALL);
        assert_eq!(found, [Era::FourBits]);
        let word = found[0].in_use(0x7400_0000_0000_0001).expect("a word");
        assert_eq!((word.used, word.count), (Use::Writable, 1));
        assert_eq!(word.to_string(), "writable memory, validated, 1 use");
    }

    #[test]
    fn the_same_conflict_from_4_10_on_has_one_reading_too() {
        let found = eras(Some(0xe400_0000_0000_0001), Some(0x2000_0000_0000_0000), Span::ALL);
        assert_eq!(found, [Era::ThreeBits]);
        assert_eq!(found[0].bare(0x2000_0000_0000_0000), Some(Use::Table(Level::L1)));
    }

    #[test]
    fn one_word_alone_can_be_ambiguous_and_the_release_decides() {
        let l1_or_l2 = |span| eras(None, Some(0x2000_0000_0000_0000), span);
        assert_eq!(l1_or_l2(Span::ALL), [Era::Bits63Of34, Era::FourBits, Era::ThreeBits]);
        let only =
            |minor| Span { since: XenVersion::new(4, minor), until: XenVersion::new(4, minor) };
        assert_eq!(l1_or_l2(only(9)), [Era::FourBits]);
        assert_eq!(l1_or_l2(only(10)), [Era::ThreeBits]);
    }

    #[test]
    fn flags_are_read_in_every_layout() {
        let pinned = [
            (Era::Bits31, 0x3800_0002),
            (Era::Bits63Of34, 0x3800_0000_0000_0002),
            (Era::FourBits, 0x1c00_0000_0000_0002),
            (Era::ThreeBits, 0x2c00_0000_0000_0002),
        ];
        for (era, word) in pinned {
            let read = era.in_use(word).expect("a pinned L1");
            assert_eq!(read.to_string(), "an L1 table, pinned, validated, 2 uses", "{era:?}");
        }
        let locked = Era::ThreeBits.in_use(0x3400_0000_0000_0002).expect("a locked L1");
        assert_eq!(
            locked.to_string(),
            "an L1 table, an entry being edited (locked), validated, 2 uses"
        );
        assert_eq!(Era::ThreeBits.in_use(0x3400_0000_0000_0001), None);
        let combining = Era::ThreeBits.in_use(0xe480_0000_0000_0001).expect("write-combining");
        assert!(combining.to_string().contains("mapped write-combining"));
    }
}
