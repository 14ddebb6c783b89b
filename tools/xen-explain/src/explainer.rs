//! Takes a log line by line, and explains it when all of it was read.

mod finish;
mod flags;

use std::io::{self, Read};

use crate::chain::Chains;
use crate::incident::Incidents;
use crate::messages::Role;
use crate::pattern::Field;
use crate::prefix::Style;
use crate::problem::Problems;
use crate::recognise::{Line, Recogniser, harmless};
use crate::release::{Span, XenVersion};
use crate::report::{End, Lines, Note, Unknown};
use crate::word::eras;

/// Bytes that are read at once, and the longest line that is read to its end.
const BLOCK: usize = 1 << 18;
/// Unknown lines of Xen that are shown.
const UNKNOWN_MAX: usize = 8;
/// Notes and ends that are kept.
const NOTES_MAX: usize = 64;

/// Reads logs; [`finish`](Self::finish) explains them.
#[derive(Debug)]
pub struct Explainer {
    recogniser: Recogniser,
    lines: Lines,
    span: Option<Span>,
    chains: Chains,
    problems: Problems,
    incidents: Incidents,
    ends: Vec<End>,
    notes: Vec<Note>,
    unknown: Vec<Unknown>,
    /// Whether the line before ended unfinished, and only its beginning counts.
    within_a_line: bool,
}

impl Default for Explainer {
    fn default() -> Self {
        Self::new()
    }
}

impl Explainer {
    /// Ready to read.
    ///
    /// ```
    /// use xen_explain::{Colour, Explainer};
    ///
    /// let mut explainer = Explainer::new();
    /// let line = "(XEN) mm.c:2033:d0 Bad type (saw 7400000000000001 != exp 1000000000000000) \
    ///     for mfn 8df82b (pfn 1a2b)";
    /// explainer.line(line.as_bytes());
    /// let explanation = explainer.finish();
    /// assert!(explanation.text(Colour::Never).contains("8df82b"));
    /// ```
    #[must_use]
    pub fn new() -> Self {
        Self {
            recogniser: Recogniser::new(),
            lines: Lines::default(),
            span: Some(Span::ALL),
            chains: Chains::default(),
            problems: Problems::default(),
            incidents: Incidents::default(),
            ends: Vec::new(),
            notes: Vec::new(),
            unknown: Vec::new(),
            within_a_line: false,
        }
    }

    /// Reads a log to its end. Several, one after the other, count as one.
    ///
    /// # Errors
    /// Those of `input`; what was read before counts.
    pub fn read(&mut self, mut input: impl Read) -> io::Result<()> {
        let mut block = vec![0; BLOCK];
        let mut filled = 0;
        loop {
            let read = match input.read(&mut block[filled..]) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            filled += read;
            let mut start = 0;
            while let Some(length) = memchr::memchr(b'\n', &block[start..filled]) {
                self.piece(&block[start..start + length]);
                self.within_a_line = false;
                start += length + 1;
            }
            block.copy_within(start..filled, 0);
            filled -= start;
            if read == 0 {
                if filled > 0 {
                    self.piece(&block[..filled]);
                }
                self.within_a_line = false;
                return Ok(());
            }
            if filled == block.len() {
                self.piece(&block);
                self.within_a_line = true;
                filled = 0;
            }
        }
    }

    /// The beginning of a line, or the rest of one that was too long for the block.
    fn piece(&mut self, piece: &[u8]) {
        if !self.within_a_line {
            self.line(piece);
            self.lines.cut += u64::from(piece.len() == BLOCK);
        }
    }

    /// Takes one line, without its end.
    pub fn line(&mut self, line: &[u8]) {
        self.lines.total += 1;
        let number = self.lines.total;
        match self.recogniser.recognise(number, line) {
            Some(line) => self.take(line),
            None if memchr::memmem::find(line, b"(XEN)").is_some() => {
                self.lines.unknown += 1;
                if self.unknown.len() < UNKNOWN_MAX {
                    self.unknown.push(Unknown { line: number, text: harmless(line) });
                }
            }
            None => self.lines.other += 1,
        }
    }

    fn take(&mut self, line: Line) {
        match line.message.role {
            Role::GuestBoot | Role::GuestTrouble | Role::GuestCall | Role::GuestFrame => {
                // Xen has call traces too.
                if line.prefix.is_xens {
                    self.lines.unknown += 1;
                } else {
                    self.lines.guest += 1;
                    self.incidents.push(line);
                }
                return;
            }
            _ => {}
        }
        self.lines.known += 1;
        self.narrow(&line);
        let problems = &mut self.problems;
        let ended = &mut |event| problems.add(event);
        match line.message.role {
            Role::Suppressed => {
                let lost = line.fields.get(Field::Number).unwrap_or(0);
                self.lines.suppressed += lost;
                self.chains.end(lost, ended);
            }
            Role::Banner => self.chains.end(0, ended),
            Role::Crash => {
                self.chains.end(0, ended);
                if self.ends.len() < NOTES_MAX {
                    let meaning = line.message.meaning;
                    self.ends.push(End { line: line.number, text: line.text, meaning });
                }
            }
            Role::Note => self.note(line),
            _ => self.chains.push(line, ended),
        }
    }

    fn note(&mut self, line: Line) {
        let meaning = line.message.meaning;
        if let Some(known) = self.notes.iter_mut().find(|note| note.meaning == meaning) {
            known.times += 1;
        } else if self.notes.len() < NOTES_MAX {
            self.notes.push(Note { line: line.number, text: line.text, meaning, times: 1 });
        }
    }

    /// Leaves of the releases those that print such a line.
    fn narrow(&mut self, line: &Line) {
        if line.message.role == Role::Banner {
            let part = |field| line.fields.get(field).and_then(|part| u8::try_from(part).ok());
            if let (Some(major), Some(minor)) = (part(Field::Major), part(Field::Minor)) {
                let version = XenVersion::new(major, minor).min(XenVersion::LAST);
                // A banner is a boot: what was before may have been another Xen.
                self.span = Some(Span { since: version, until: version });
            }
            return;
        }
        self.span = self.span.and_then(|span| span.meet(of_line(line)));
    }
}

/// Returns the releases that print a line so.
fn of_line(line: &Line) -> Span {
    let version = |minor| XenVersion::new(4, minor);
    let style = match line.prefix.style {
        Style::Unknown => Span::ALL,
        Style::Ancient => Span { since: XenVersion::FIRST, until: XenVersion::new(3, 0) },
        Style::NoVcpu => Span { since: XenVersion::FIRST, until: version(4) },
        Style::Vcpu => Span { since: version(5), until: version(16) },
        Style::WholePath => Span { since: version(17), until: XenVersion::LAST },
    };
    // A line that is put together wrongly says nothing.
    let span = style.meet(line.wording.span).unwrap_or(Span::ALL);
    let words = (line.fields.get(Field::Saw), line.fields.get(Field::Exp));
    match (line.message.role, words) {
        (Role::BadType, (saw, exp)) => match eras(saw, exp, span).as_slice() {
            [only] => only.releases().meet(span).unwrap_or(span),
            _ => span,
        },
        _ => span,
    }
}
