//! A wording as text with holes: `Bad type (saw {saw} != exp {exp}) for mfn {mfn} (pfn {pfn})`.
//!
//! A line is searched for the longest piece of plain text of every wording at once; where one
//! stands, the rest of the wording is compared forwards and backwards from there. So whatever a
//! console, a syslog or a person put in front of a line does not matter.

/// What a hole stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Field {
    Mfn,
    Pfn,
    Saw,
    Exp,
    Type,
    Caf,
    Taf,
    Errno,
    Slot,
    Level,
    Pte,
    Flags,
    Wanted,
    Owner,
    Domain,
    Vcpu,
    Number,
    Major,
    Minor,
    Text,
}

/// How the value in a hole is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Hex,
    Decimal,
    /// `d7`, `Dom7`, `7`, `d[IO]`, `NULL`, or a pointer.
    Domain,
    /// Anything without a blank.
    Word,
}

/// A domain that is none: free, Xen's, or a pointer that says nothing.
pub(crate) const NOBODY: u64 = 0x7ff4;
const DOM_IO: u64 = 0x7ff1;
const DOM_XEN: u64 = 0x7ff2;
const DOM_COW: u64 = 0x7ff3;

const HOLES: [(&str, Field, Format); 22] = [
    ("mfn", Field::Mfn, Format::Hex),
    ("pfn", Field::Pfn, Format::Hex),
    ("saw", Field::Saw, Format::Hex),
    ("exp", Field::Exp, Format::Hex),
    ("type", Field::Type, Format::Hex),
    ("caf", Field::Caf, Format::Hex),
    ("taf", Field::Taf, Format::Hex),
    ("errno", Field::Errno, Format::Decimal),
    ("slot", Field::Slot, Format::Hex),
    ("entry", Field::Slot, Format::Decimal),
    ("level", Field::Level, Format::Decimal),
    ("pte", Field::Pte, Format::Hex),
    ("flags", Field::Flags, Format::Hex),
    ("wanted", Field::Wanted, Format::Domain),
    ("owner", Field::Owner, Format::Domain),
    ("domain", Field::Domain, Format::Domain),
    ("vcpu", Field::Vcpu, Format::Decimal),
    ("n", Field::Number, Format::Decimal),
    ("x", Field::Number, Format::Hex),
    ("major", Field::Major, Format::Decimal),
    ("minor", Field::Minor, Format::Decimal),
    ("word", Field::Text, Format::Word),
];

#[derive(Clone, Copy, Debug)]
enum Piece {
    Plain(&'static str),
    Hole(Field, Format),
}

/// Values found in a line.
const VALUES_MAX: usize = 8;

/// What the holes of a wording held.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fields {
    values: [Option<(Field, u64)>; VALUES_MAX],
}

impl Fields {
    /// Returns the value of `field`, if the wording has it.
    pub(crate) fn get(&self, field: Field) -> Option<u64> {
        self.values.iter().flatten().find(|(found, _)| *found == field).map(|(_, value)| *value)
    }

    fn set(&mut self, field: Field, value: u64) {
        // Of two of a kind the first counts; what has no room is a number that nobody asks for.
        if let (None, Some(free)) =
            (self.get(field), self.values.iter_mut().find(|slot| slot.is_none()))
        {
            *free = Some((field, value));
        }
    }
}

/// A wording, taken apart.
#[derive(Debug)]
pub(crate) struct Pattern {
    pieces: Vec<Piece>,
    anchor: usize,
}

impl Pattern {
    /// Takes a wording apart.
    ///
    /// # Panics
    /// If it has a hole of an unknown name, or no plain text: a slip in the table, found by its
    /// tests.
    pub(crate) fn new(text: &'static str) -> Self {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((plain, hole)) = rest.split_once('{') {
            if !plain.is_empty() {
                pieces.push(Piece::Plain(plain));
            }
            let (name, behind) = hole.split_once('}').expect("a hole has an end");
            let (_, field, format) =
                HOLES.iter().find(|(known, _, _)| *known == name).expect("a hole has a known name");
            pieces.push(Piece::Hole(*field, *format));
            rest = behind;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Plain(rest));
        }
        let length = |piece: &Piece| match piece {
            Piece::Plain(text) => text.len(),
            Piece::Hole(..) => 0,
        };
        // The first of the longest, so that an anchor is as far to the left as can be.
        let longest = pieces.iter().map(length).max().expect("a wording has text");
        let anchor = pieces.iter().position(|piece| length(piece) == longest).unwrap_or(0);
        Self { pieces, anchor }
    }

    /// Returns its longest piece of plain text.
    pub(crate) fn anchor(&self) -> &'static str {
        match self.pieces.get(self.anchor) {
            Some(Piece::Plain(text)) => text,
            _ => "",
        }
    }

    /// If the wording stands in `line` with its anchor at `at`: where it begins, and its values.
    pub(crate) fn find(&self, line: &[u8], at: usize) -> Option<(usize, Fields)> {
        let mut fields = Fields::default();
        let mut start = at;
        for piece in self.pieces[..self.anchor].iter().rev() {
            let before = &line[..start];
            start -= match piece {
                Piece::Plain(text) if before.ends_with(text.as_bytes()) => text.len(),
                Piece::Plain(_) => return None,
                Piece::Hole(field, format) => {
                    let run = before.iter().rev().take_while(|byte| format.has(**byte)).count();
                    fields.set(*field, format.read(&before[start - run..])?);
                    run
                }
            };
        }
        let mut end = at + self.anchor().len();
        for piece in &self.pieces[self.anchor + 1..] {
            let behind = &line[end..];
            end += match piece {
                Piece::Plain(text) if behind.starts_with(text.as_bytes()) => text.len(),
                Piece::Plain(_) => return None,
                Piece::Hole(field, format) => {
                    let run = behind.iter().take_while(|byte| format.has(**byte)).count();
                    fields.set(*field, format.read(&behind[..run])?);
                    run
                }
            };
        }
        let is_word = |at: usize| line.get(at).is_some_and(u8::is_ascii_alphanumeric);
        let within_a_word = start > 0 && is_word(start - 1) && is_word(start);
        (!within_a_word).then_some((start, fields))
    }
}

impl Format {
    const fn has(self, byte: u8) -> bool {
        match self {
            Self::Hex => byte.is_ascii_hexdigit() || byte == b'x',
            Self::Decimal => byte.is_ascii_digit() || byte == b'-',
            Self::Domain => byte.is_ascii_alphanumeric() || matches!(byte, b'[' | b']' | b'-'),
            Self::Word => !byte.is_ascii_whitespace(),
        }
    }

    /// Returns the value, negative numbers without their sign.
    fn read(self, bytes: &[u8]) -> Option<u64> {
        let text = std::str::from_utf8(bytes).ok()?;
        match self {
            Self::Hex => hex(text),
            Self::Decimal => text.trim_start_matches('-').parse().ok(),
            Self::Domain => Some(match text {
                "" => return None,
                "d[IO]" => DOM_IO,
                "d[XEN]" => DOM_XEN,
                "d[COW]" => DOM_COW,
                _ => text
                    .trim_start_matches(|letter: char| "Ddom".contains(letter))
                    .parse()
                    .ok()
                    .filter(|id| *id < NOBODY)
                    .unwrap_or(NOBODY),
            }),
            Self::Word => (!text.is_empty()).then_some(0),
        }
    }
}

/// Returns a number in hexadecimal, with or without `0x`.
pub(crate) fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(wording: &'static str, line: &str) -> Option<Fields> {
        let pattern = Pattern::new(wording);
        let at = line.find(pattern.anchor())?;
        pattern.find(line.as_bytes(), at).map(|(_, fields)| fields)
    }

    #[test]
    fn values_are_read_on_both_sides_of_the_anchor() {
        let fields =
            find("Error {errno} while pinning mfn {mfn}", "x Error -22 while pinning mfn ab")
                .expect("found");
        assert_eq!(fields.get(Field::Errno), Some(22));
        assert_eq!(fields.get(Field::Mfn), Some(0xab));
        assert_eq!(fields.get(Field::Pfn), None);
    }

    #[test]
    fn hexadecimal_needs_no_prefix_and_may_have_one() {
        for (text, slot) in [("slot 0", 0), ("slot 0x7", 7), ("slot 1ff", 0x1ff)] {
            assert_eq!(find("slot {slot}", text).and_then(|f| f.get(Field::Slot)), Some(slot));
        }
    }

    #[test]
    fn domains_are_numbers_names_or_nobody() {
        for (text, id) in
            [("d7", 7), ("7", 7), ("d[IO]", DOM_IO), ("NULL", NOBODY), ("32756", NOBODY)]
        {
            let line = format!("od={text} caf");
            assert_eq!(find("od={owner} caf", &line).and_then(|f| f.get(Field::Owner)), Some(id));
        }
    }

    #[test]
    fn a_wording_inside_a_word_or_with_a_hole_left_empty_is_not_found() {
        assert!(find("Mfn {mfn} not pinned", "xMfn 1 not pinned").is_none());
        assert!(find("Mfn {mfn} not pinned", "Mfn  not pinned").is_none());
        assert!(find("Mfn {mfn} not pinned", "Mfn 11112222333344445 not pinned").is_none());
        assert!(find("for mfn {mfn} (pfn {pfn})", "for mfn 1 (pfn 2").is_none());
    }
}
