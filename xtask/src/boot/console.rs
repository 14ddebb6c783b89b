//! Watches a console: turns bytes into lines, keeps all of them in a log and the last ones at hand,
//! and gives up when time is over or nothing comes any more.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::process::{LOOK_AGAIN, interrupted};

/// Lines that a report quotes.
const TAIL_LINES: usize = 25;

/// How long a watcher waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// For everything.
    pub(crate) total: Duration,
    /// For the next byte.
    pub(crate) silence: Duration,
}

/// Why a watcher stopped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stop {
    /// The reader of lines had seen enough.
    Seen,
    /// The other side closed the console.
    Closed,
    /// All the time is used up.
    OutOfTime,
    /// Nothing came for too long.
    Silence,
    /// A signal asked us to end.
    Interrupted,
}

/// The last lines of something, without those that say nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail(VecDeque<String>);

impl Tail {
    /// Adds a line, and forgets the oldest one if there are many.
    pub(crate) fn push(&mut self, line: &str) {
        if is_empty_dump(line) {
            return;
        }
        if self.0.len() == TAIL_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line.to_owned());
    }

    /// Returns the lines, oldest first.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.iter().cloned().collect()
    }
}

/// A console being watched.
#[derive(Debug)]
pub(crate) struct Console {
    chunks: Receiver<Vec<u8>>,
    log: File,
    partial: Vec<u8>,
    tail: Tail,
}

impl Console {
    /// Starts to read a stream, which a thread does until the stream ends.
    ///
    /// # Errors
    ///
    /// The log file cannot be made.
    pub(crate) fn open(mut stream: impl Read + Send + 'static, log: &Path) -> Result<Self> {
        let log = File::create(log).with_context(|| format!("making {}", log.display()))?;
        let (sender, chunks) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length) = stream.read(&mut buffer) {
                if length == 0 || sender.send(buffer[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok(Self { chunks, log, partial: Vec::new(), tail: Tail::default() })
    }

    /// Hands over each line, without its end, until `on_line` breaks or time is up.
    ///
    /// # Errors
    ///
    /// The log cannot be written.
    pub(crate) fn watch(
        &mut self,
        limits: Limits,
        mut on_line: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Stop> {
        let started = Instant::now();
        let mut last_byte = started;
        loop {
            match self.chunks.recv_timeout(LOOK_AGAIN) {
                Ok(chunk) => {
                    last_byte = Instant::now();
                    self.log.write_all(&chunk).context("writing the console's log")?;
                    for byte in chunk {
                        if byte == b'\n' && self.take_line(&mut on_line).is_break() {
                            return Ok(Stop::Seen);
                        } else if byte != b'\n' {
                            self.partial.push(byte);
                        }
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Ok(match self.take_rest(&mut on_line) {
                        ControlFlow::Break(()) => Stop::Seen,
                        ControlFlow::Continue(()) => Stop::Closed,
                    });
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            let stop = match () {
                () if interrupted() => Stop::Interrupted,
                () if started.elapsed() > limits.total => Stop::OutOfTime,
                () if last_byte.elapsed() > limits.silence => Stop::Silence,
                () => continue,
            };
            return Ok(match self.take_rest(&mut on_line) {
                ControlFlow::Break(()) => Stop::Seen,
                ControlFlow::Continue(()) => stop,
            });
        }
    }

    /// Returns the last lines.
    pub(crate) fn tail(&self) -> Vec<String> {
        self.tail.lines()
    }

    fn take_rest(&mut self, on_line: &mut impl FnMut(&str) -> ControlFlow<()>) -> ControlFlow<()> {
        if self.partial.is_empty() { ControlFlow::Continue(()) } else { self.take_line(on_line) }
    }

    fn take_line(&mut self, on_line: &mut impl FnMut(&str) -> ControlFlow<()>) -> ControlFlow<()> {
        let line = printable(&String::from_utf8_lossy(&self.partial));
        self.partial.clear();
        let flow = on_line(&line);
        self.tail.push(&line);
        flow
    }
}

/// Returns whether a line is a part of one of Xen's stack dumps with nothing but zeros. Dozens of
/// these end a crash and would push out all that matters.
fn is_empty_dump(line: &str) -> bool {
    let words = line.strip_prefix("(XEN)").map(str::trim).unwrap_or_default();
    words.starts_with('0') && words.chars().all(|character| matches!(character, '0' | ' '))
}

/// Returns a line without what would disturb a terminal: control characters and escape sequences.
fn printable(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut characters = line.trim_end_matches('\r').chars();
    while let Some(character) = characters.next() {
        match character {
            '\x1b' if characters.next() == Some('[') => {
                // ESC [ parameters letter
                characters.by_ref().find(|end| end.is_ascii_alphabetic());
            }
            '\t' => text.push('\t'),
            character if !character.is_control() => text.push(character),
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// A stream that gives what it has and then nothing more, without an end.
    struct Open(&'static [u8]);

    impl Read for Open {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.0.is_empty() {
                thread::sleep(LONG);
            }
            self.0.read(buffer)
        }
    }

    fn watch(stream: impl Read + Send + 'static, limits: Limits) -> (Stop, Vec<String>, String) {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut console = Console::open(stream, &log).unwrap();
        let stop = console.watch(limits, |line| match line {
            "enough" => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        (stop.unwrap(), console.tail(), std::fs::read_to_string(log).unwrap())
    }

    #[test]
    fn lines_are_cleaned_and_the_log_keeps_every_byte() {
        let bytes: &[u8] = b"one\r\n\x1b[31mtwo\x1b[0m \x07x\nwithout end";
        let (stop, lines, log) = watch(bytes, Limits { total: LONG, silence: LONG });
        assert_eq!(stop, Stop::Closed);
        assert_eq!(lines, ["one", "two x", "without end"]);
        assert_eq!(log.as_bytes(), bytes);
    }

    #[test]
    fn watching_stops_at_the_line_that_decides() {
        let stream = Open(b"one\nenough\nthree\n");
        let (stop, lines, _) = watch(stream, Limits { total: LONG, silence: LONG });
        assert_eq!((stop, lines.len()), (Stop::Seen, 2));
    }

    #[test]
    fn silence_and_the_end_of_time_are_told_apart() {
        let short = Duration::from_millis(50);
        let (stop, lines, _) = watch(Open(b"half a li"), Limits { total: LONG, silence: short });
        assert_eq!((stop, lines), (Stop::Silence, vec!["half a li".to_owned()]));
        let (stop, ..) = watch(Open(b"x"), Limits { total: short, silence: LONG });
        assert_eq!(stop, Stop::OutOfTime);
    }

    #[test]
    fn empty_stack_dumps_do_not_push_out_the_rest() {
        assert!(is_empty_dump("(XEN)    0000000000000000 0000000000000000"));
        for line in ["(XEN)    0000000000000000 0000000000000001", "(XEN)", "", "0000"] {
            assert!(!is_empty_dump(line), "{line}");
        }
    }

    #[test]
    fn only_the_last_lines_are_kept_at_hand() {
        let text: String = (0..100).map(|number| format!("{number}\n")).collect();
        let stream = std::io::Cursor::new(text.into_bytes());
        let (_, lines, _) = watch(stream, Limits { total: LONG, silence: LONG });
        assert_eq!((lines.len(), lines.last().unwrap().as_str()), (TAIL_LINES, "99"));
    }
}
