//! Reads logs of Xen and of its guests, and explains what they say about PV memory: "Bad type",
//! "Error while pinning" and all that comes with them, in the wordings of Xen 3.0 to 4.20. The
//! program `xen-explain` does it for files; this library does it for programs.
//!
//! A log is read once, in blocks, without keeping its lines. Each line is searched for every known
//! wording (`messages`); what stands before it says who and when (`prefix`); lines of one refusal
//! become one event (`chain`), refusals with one cause one problem (`problem`), lines of the guest
//! kernel incidents (`incident`). At the end the type words are read in the layout that all lines
//! together leave possible (`word`), and everything is written down as an [`Explanation`], with
//! causes in the words that the guest side uses too (`hypercall::explain`).
//!
//! # Main types
//! * [`Explainer`]: takes lines, or a whole log.
//! * [`Explanation`]: what they mean; [`Explanation::text`] is for people, `serde` for programs.
//! * [`Problem`]: frames that could not be had as what they were wanted as, and what was refused.
//! * [`Incident`]: what the guest kernel said.
//! * [`XenVersion`], [`Span`]: which Xen can have printed all of it.
//! * [`Era`], [`Word`]: what Xen keeps for each frame (`type_info`), in each of its layouts.
//!
//! # What it assumes
//! Nothing about the log: serial captures, `xl dmesg`, `dmesg` and journals have the lines in
//! different dress, cut, mixed and with lines lost.
//!
//! # What it prevents, and what not
//! Memory is bounded whatever the log holds; what is beyond a bound is counted, and said. What is
//! shown moves no terminal. A line in a wording that no release had is counted as unknown.
//!
//! ```
//! use xen_explain::{Colour, Explainer};
//!
//! let mut explainer = Explainer::new();
//! explainer.line(b"(XEN) mm.c:2466:d0 Bad type (saw 7400000000000001 != exp 1000000000000000) \
//!                  for mfn b1d89 (pfn bacf7)");
//! explainer.line(b"(XEN) mm.c:3027:d0 Error while pinning mfn b1d89");
//! let explanation = explainer.finish();
//! assert_eq!(
//!     explanation.problems[0].what,
//!     ["frame mfn b1d89 (pfn bacf7) was mapped writable once while it was to become an L1 table"]
//! );
//! println!("{}", explanation.text(Colour::Never));
//! ```

mod chain;
mod explainer;
mod incident;
mod messages;
mod pattern;
mod prefix;
mod problem;
mod recognise;
mod release;
mod report;
mod text;
mod word;

pub use explainer::Explainer;
pub use prefix::Speaker;
pub use release::{Span, XenVersion};
pub use report::{
    End, Explanation, Incident, LikelyCause, Lines, LogPosition, Match, Neighbours, Note, Problem,
    RecurringFrame, Stopped, Table, Unknown,
};
pub use text::Colour;
pub use word::{Era, Word, WordFlags};
