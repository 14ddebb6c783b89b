//! From bytes to a message: finds a wording anywhere in a line, and reads what stands before it.

use aho_corasick::{AhoCorasick, MatchKind};

use crate::messages::{self, Message, Wording};
use crate::pattern::{Fields, Pattern};
use crate::prefix::{self, Prefix};

/// A line that says something known.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// Its number, from 1.
    pub(crate) number: u64,
    /// What stands before the message.
    pub(crate) prefix: Prefix,
    /// The message.
    pub(crate) message: &'static Message,
    /// In which wording.
    pub(crate) wording: &'static Wording,
    /// With which values.
    pub(crate) fields: Fields,
    /// The message and what follows it, if its values are not all that matters.
    pub(crate) text: String,
}

/// Knows all wordings.
#[derive(Debug)]
pub(crate) struct Recogniser {
    anchors: AhoCorasick,
    /// For each anchor the wordings that have it.
    wordings: Vec<Vec<Known>>,
}

#[derive(Debug)]
struct Known {
    message: &'static Message,
    wording: &'static Wording,
    pattern: Pattern,
}

impl Recogniser {
    /// Prepares for searching.
    ///
    /// # Panics
    /// If the table of messages is broken, which its tests would find.
    pub(crate) fn new() -> Self {
        let mut texts: Vec<&'static str> = Vec::new();
        let mut wordings: Vec<Vec<Known>> = Vec::new();
        for message in messages::all() {
            for wording in message.wordings {
                let pattern = Pattern::new(wording.text);
                let at = texts.iter().position(|text| *text == pattern.anchor());
                let at = at.unwrap_or_else(|| {
                    texts.push(pattern.anchor());
                    wordings.push(Vec::new());
                    texts.len() - 1
                });
                wordings[at].push(Known { message, wording, pattern });
            }
        }
        let anchors = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(texts)
            .expect("a few hundred short texts");
        Self { anchors, wordings }
    }

    /// Returns what a line says, if it is anything known.
    pub(crate) fn recognise(&self, number: u64, line: &[u8]) -> Option<Line> {
        for hit in self.anchors.find_iter(line) {
            for known in &self.wordings[hit.pattern().as_usize()] {
                if let Some((start, fields)) = known.pattern.find(line, hit.start()) {
                    let prefix = prefix::read(&line[..start]);
                    let Known { message, wording, .. } = known;
                    let text = text(message, line, start, &prefix);
                    return Some(Line { number, prefix, message, wording, fields, text });
                }
            }
        }
        None
    }
}

/// Returns the words of a line that are worth keeping, made harmless for a terminal.
fn text(message: &Message, line: &[u8], start: usize, prefix: &Prefix) -> String {
    use messages::Role;
    match message.role {
        Role::GuestFrame => {
            let name = line[start..].split(|byte| *byte == b'+').next().unwrap_or_default();
            harmless(name.rsplit(|byte| *byte == b']').next().unwrap_or_default())
        }
        Role::GuestTrouble | Role::GuestCall | Role::Note => harmless(&line[start..]),
        Role::Crash => harmless(&line[prefix.length..]),
        _ => String::new(),
    }
}

/// Characters of a line that are shown.
const SHOWN_MAX: usize = 160;

/// Returns a line as text that a terminal takes for text: nothing below a blank, not too long.
pub(crate) fn harmless(line: &[u8]) -> String {
    let line = &line[..line.len().min(SHOWN_MAX)];
    let text = String::from_utf8_lossy(line);
    let shown = |character: char| if character.is_control() { '\u{fffd}' } else { character };
    text.trim().chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::Role;

    /// A wording with something plausible in its holes.
    fn filled(text: &str) -> String {
        let mut line = String::new();
        let mut rest = text;
        while let Some((plain, hole)) = rest.split_once('{') {
            let (name, behind) = hole.split_once('}').expect("a hole has an end");
            line += plain;
            line += match name {
                "saw" => "e400000000000001",
                "exp" | "type" => "2000000000000000",
                "errno" => "-22",
                "wanted" | "domain" | "owner" => "1",
                "level" => "2",
                "word" => "somewhere",
                _ => "7",
            };
            rest = behind;
        }
        line + rest
    }

    #[test]
    fn every_wording_is_recognised_as_itself_behind_any_prefix() {
        let recogniser = Recogniser::new();
        let mut wordings = 0;
        for message in messages::all() {
            for wording in message.wordings {
                let text = filled(wording.text);
                for prefix in
                    ["", "(XEN) mm.c:1:d1 ", "Apr  6 02:50:04 h xl: (XEN) [ 1.5] mm.c:1:d1v0 "]
                {
                    let line = format!("{prefix}{text}");
                    let found = recogniser.recognise(1, line.as_bytes());
                    let found = found.unwrap_or_else(|| panic!("not recognised: {line}"));
                    assert_eq!(found.message.name, message.name, "{line}");
                }
                wordings += 1;
            }
        }
        assert!(wordings > 150, "{wordings} wordings");
    }

    #[test]
    fn no_wording_stands_twice_in_the_table() {
        let mut texts: Vec<_> = messages::all()
            .flat_map(|message| message.wordings.iter().map(|wording| wording.text))
            .collect();
        texts.sort_unstable();
        let twice: Vec<_> = texts.windows(2).filter(|pair| pair[0] == pair[1]).collect();
        assert!(twice.is_empty(), "{twice:?}");
    }

    #[test]
    fn every_refusal_has_a_cause_and_every_message_a_meaning() {
        for message in messages::all() {
            assert!(message.meaning.len() > 10, "{}", message.name);
            let says_why =
                matches!(message.role, Role::Cause | Role::Request(_) | Role::Refusal(_));
            assert!(!says_why || !message.causes.is_empty(), "{}", message.name);
        }
    }

    #[test]
    fn a_line_is_shown_without_anything_that_moves_a_terminal() {
        let text = harmless(b"\x1b[31mred\x07\xff\r\n");
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert!(harmless(&[b'a'; 10_000]).len() <= SHOWN_MAX);
    }
}
