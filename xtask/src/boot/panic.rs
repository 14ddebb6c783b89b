//! What Xen says when it panics, which takes several lines.

use super::outcome::Outcome;

/// Collects the words of a panic.
#[derive(Debug, Default)]
pub(crate) struct PanicReader(Option<Vec<String>>);

impl PanicReader {
    /// Reads a line of Xen's. There is an outcome at the last line of a panic.
    pub(crate) fn line(&mut self, words: &str) -> Option<Outcome> {
        match &mut self.0 {
            Some(_) if words.starts_with("Reboot in") || words.starts_with("Manual reset") => {
                return self.unfinished();
            }
            Some(panic) if !words.is_empty() && !words.starts_with("***") => {
                panic.push(words.to_owned());
            }
            None if words.starts_with("Panic on CPU") => self.0 = Some(Vec::new()),
            _ => {}
        }
        None
    }

    /// Returns what is to be said of a panic whose last line never came.
    pub(crate) fn unfinished(&self) -> Option<Outcome> {
        self.0.as_ref().map(|words| Outcome::XenPanicked(words.join(" ")))
    }
}
