//! The explanation of a log, as data: `xen-explain --json` prints it, [`text`] shows it to people.
//!
//! [`text`]: super::text

use serde::Serialize;

use crate::prefix::Speaker;
use crate::release::Span;

/// What a log says.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// How many lines there are, and what became of each.
    pub lines: Lines,
    /// The releases of Xen that print such lines, if all lines can be of one.
    pub xen: Option<Span>,
    /// Causes, with everything they stopped, in the order in which they appear.
    pub problems: Vec<Problem>,
    /// Refusals beyond what is kept, or whose cause is lost.
    pub more_refusals: u64,
    /// Frames that appear in several refusals, the most frequent first.
    pub recurring: Vec<RecurringFrame>,
    /// Runs of neighbouring pfns among the frames that could not be granted.
    pub neighbours: Vec<Neighbours>,
    /// What the guest kernel noticed.
    pub guest: Vec<Incident>,
    /// Domains, or Xen, that ended.
    pub ends: Vec<End>,
    /// Messages that are worth knowing and refuse nothing.
    pub notes: Vec<Note>,
    /// Lines of Xen that are not known: the first few.
    pub unknown: Vec<Unknown>,
}

/// What became of the lines. The counts add up to `total`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lines {
    /// All of them.
    pub total: u64,
    /// Lines of Xen about memory.
    pub known: u64,
    /// Lines of a guest kernel about its own trouble.
    pub guest: u64,
    /// Lines of Xen that are not known here.
    pub unknown: u64,
    /// Everything else.
    pub other: u64,
    /// Of all lines, how many were too long to be read to their end.
    pub cut: u64,
    /// Messages that Xen says it left out.
    pub suppressed: u64,
}

/// Where and when something is.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LogPosition {
    /// Number of the line, from 1, over all inputs.
    pub line: u64,
    /// Seconds since Xen, or the kernel, started.
    pub uptime: Option<f64>,
}

/// A frame that cannot be had, and what follows.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    /// A word for programs: the message that says it.
    pub kind: &'static str,
    /// What is wrong, in a sentence; several if the words can be read in several ways.
    pub what: Vec<String>,
    /// The frame, in hexadecimal.
    pub mfn: Option<String>,
    /// What M2P said of it.
    pub pfn: Option<String>,
    /// How the type words read.
    pub words: Vec<String>,
    /// Whose requests were refused.
    pub speakers: Vec<Speaker>,
    /// How often.
    pub times: u64,
    /// The first time.
    pub first: LogPosition,
    /// Line of the last time.
    pub last_line: u64,
    /// What was refused because of it.
    pub stopped: Vec<Stopped>,
    /// Lines that follow from the failure and are no cause of anything.
    pub follow_ups: u64,
    /// What can lead to it, likeliest first.
    pub causes: Vec<LikelyCause>,
    /// What the guest kernel noticed of it.
    pub guest: Vec<Match>,
    /// What ended because of it.
    pub ended: Vec<u64>,
}

/// One way in which a problem stopped a request.
#[derive(Clone, Debug, Serialize)]
pub struct Stopped {
    /// First line.
    pub first_line: u64,
    /// Last line.
    pub last_line: u64,
    /// How often exactly this.
    pub times: u64,
    /// Tables that failed, from the inside out.
    pub tables: Vec<Table>,
    /// The addresses that the failing entry is for, as far as the slots say.
    pub address: Option<String>,
    /// The request that was refused, in words.
    pub request: String,
    /// The errno, if a line says it.
    pub errno: Option<u64>,
    /// Messages lost directly after.
    pub lost: u64,
}

/// A table that failed because of what is in it.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// Its level.
    pub level: Option<u64>,
    /// Its frame.
    pub mfn: Option<String>,
    /// What M2P said of it.
    pub pfn: Option<String>,
    /// The slot that leads to the failure.
    pub slot: Option<u64>,
}

/// Something in the guest that can lead to the problem.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LikelyCause {
    /// A word for programs.
    pub name: &'static str,
    /// What it is. A sentence.
    pub what: &'static str,
    /// What to check.
    pub check: &'static str,
}

/// A frame in several refusals.
#[derive(Clone, Debug, Serialize)]
pub struct RecurringFrame {
    /// Its number.
    pub mfn: String,
    /// What M2P said of it.
    pub pfn: Option<String>,
    /// Refusals that it is the cause of.
    pub as_cause: u64,
    /// Refusals in which it is a table that failed because of another frame.
    pub as_table: u64,
    /// First line.
    pub first_line: u64,
    /// Last line.
    pub last_line: u64,
}

/// Pfns side by side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Neighbours {
    /// The first.
    pub first: String,
    /// The last.
    pub last: String,
    /// How many.
    pub count: u64,
}

/// Something the guest kernel noticed.
#[derive(Clone, Debug, Serialize)]
pub struct Incident {
    /// First line.
    pub first_line: u64,
    /// Last line.
    pub last_line: u64,
    /// Its words.
    pub says: Vec<String>,
    /// The call trace, innermost function first.
    pub trace: Vec<String>,
    /// What the guest was doing, if the trace says.
    pub doing: Option<&'static str>,
    /// Whether a batch of the paravirtualized MMU was refused: Linux warns and goes on.
    pub multicall: bool,
    /// Whether it belongs to a problem above.
    pub matched: bool,
}

/// A problem and an incident that belong together.
#[derive(Clone, Debug, Serialize)]
pub struct Match {
    /// Which incident, counted from 0.
    pub incident: usize,
    /// Why they belong together.
    pub how: String,
}

/// The end of a domain.
#[derive(Clone, Debug, Serialize)]
pub struct End {
    /// The line.
    pub line: u64,
    /// Its text.
    pub text: String,
    /// What it means.
    pub meaning: &'static str,
}

/// A message that refuses nothing.
#[derive(Clone, Debug, Serialize)]
pub struct Note {
    /// The first line.
    pub line: u64,
    /// Its text.
    pub text: String,
    /// What it means.
    pub meaning: &'static str,
    /// How often such a message is there.
    pub times: u64,
}

/// A line of Xen that is not known.
#[derive(Clone, Debug, Serialize)]
pub struct Unknown {
    /// Its number.
    pub line: u64,
    /// Its text, cut, without control characters.
    pub text: String,
}
