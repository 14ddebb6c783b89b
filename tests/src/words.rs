//! How tests read the errors of a crate: all of them, a line each.
#![expect(clippy::missing_panics_doc, reason = "for tests: what cannot be is a panic")]

use std::fmt::Display;

use expect_test::Expect;
use hypercall::{BatchError, Errno, Error, GuestVa, Hypercall};

/// Returns an address to be named in an error.
pub fn va() -> GuestVa {
    GuestVa::new(0x5000).expect("user half")
}

/// Returns a refusal to be named in an error.
#[must_use]
pub const fn refusal() -> BatchError {
    let error = Error { hypercall: Hypercall::MmuUpdate, errno: Errno::EINVAL, done: 0 };
    BatchError { request: 0, requests: 1, error, flag: None }
}

/// The longest line of words in a test.
const WIDTH: usize = 88;

/// Holds errors, a line each, against the words for them. Long lines are continued, indented.
pub fn read(errors: &[impl Display], words: &Expect) {
    let lines: Vec<_> = errors.iter().map(|error| folded(&error.to_string())).collect();
    words.assert_eq(&lines.join("\n"));
}

fn folded(line: &str) -> String {
    let (mut text, mut length) = (String::new(), 0);
    for word in line.split(' ') {
        let separator = match length {
            0 => "",
            _ if length + 1 + word.len() > WIDTH => "\n  ",
            _ => " ",
        };
        length = if separator.starts_with('\n') { 2 } else { length + separator.len() };
        length += word.len();
        text.extend([separator, word]);
    }
    text
}
