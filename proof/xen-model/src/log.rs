//! What a debug Xen prints about the guest, captured.
//!
//! The wording follows the release (specification, 0.2): prefix, format of frame numbers, texts.
//! Line numbers of Xen's sources differ in every point release, so the model prints 0 there;
//! compare lines from behind the prefix.

use core::fmt;
use std::collections::VecDeque;

use crate::release::{Flavour, Release};

/// Lines kept; older ones fall off.
const LINES_MAX: usize = 10_000;

/// Which file of Xen a line comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum File {
    /// mm.c
    Mm,
    /// pv/ro-page-fault.c
    RoPageFault,
    /// common/memory.c
    Memory,
    /// common/multicall.c
    Multicall,
    /// common/grant_table.c
    GrantTable,
    /// pv/grant_table.c
    PvGrantTable,
    /// The header of `adjust_guest_l1e`.
    PvMmHeader,
}

impl File {
    const fn name(self, release: Release) -> &'static str {
        let whole_tree = matches!(release, Release::V4_17 | Release::V4_20);
        match (self, whole_tree) {
            (Self::Mm, true) => "arch/x86/mm.c",
            (Self::Mm, false) => "mm.c",
            (Self::RoPageFault, true) => "arch/x86/pv/ro-page-fault.c",
            (Self::RoPageFault, false) => "ro-page-fault.c",
            (Self::Memory, true) => "common/memory.c",
            (Self::Memory, false) => "memory.c",
            (Self::Multicall, true) => "common/multicall.c",
            (Self::Multicall, false) => "multicall.c",
            (Self::GrantTable, true) => "common/grant_table.c",
            (Self::PvGrantTable, true) => "arch/x86/pv/grant_table.c",
            (Self::GrantTable | Self::PvGrantTable, false) => "grant_table.c",
            (Self::PvMmHeader, true) => "arch/x86/pv/mm.h",
            (Self::PvMmHeader, false) => "mm.h",
        }
    }
}

/// Who prints.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Speaker {
    pub(crate) domain: u16,
    pub(crate) vcpu: usize,
}

/// The captured lines.
#[derive(Debug)]
pub(crate) struct Log {
    release: Release,
    debug_lines: bool,
    guest_lines: bool,
    lines: VecDeque<String>,
}

impl Log {
    pub(crate) fn new(release: Release, flavour: Flavour, everything: Verbosity) -> Self {
        let debug = flavour == Flavour::Debug;
        let guest_lines = debug || everything == Verbosity::All;
        // Up to 4.5 debug lines were part of every build.
        let debug_lines = debug || release.before(Release::V4_6);
        Self { release, debug_lines, guest_lines, lines: VecDeque::new() }
    }

    /// A line that only debug builds print (`gdprintk`).
    pub(crate) fn debug(&mut self, file: File, by: Speaker, text: fmt::Arguments<'_>) {
        if self.debug_lines {
            let (file, who) = (file.name(self.release), self.who(by));
            self.push(format!("(XEN) {file}:0:{who} {text}"));
        }
    }

    /// A line that every build prints if its log level lets it (`gprintk`).
    pub(crate) fn guest(&mut self, by: Speaker, text: fmt::Arguments<'_>) {
        if self.guest_lines {
            let who = self.who(by);
            self.push(format!("(XEN) {who} {text}"));
        }
    }

    fn who(&self, by: Speaker) -> String {
        if self.release == Release::V4_4 {
            format!("d{}", by.domain)
        } else {
            format!("d{}v{}", by.domain, by.vcpu)
        }
    }

    fn push(&mut self, line: String) {
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    pub(crate) fn take(&mut self) -> Vec<String> {
        self.lines.drain(..).collect()
    }
}

/// How much of the guests' log lines a release build prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    /// Warnings and errors, rate-limited: of the lines modelled here, none.
    Default,
    /// `guest_loglvl=all`.
    All,
}

/// A frame number as the release prints it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Number(pub(crate) u64, pub(crate) Release);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.1.before(Release::V4_9) {
            write!(f, "{:x}", self.0)
        } else {
            write!(f, "{:05x}", self.0)
        }
    }
}

/// Xen's `%#x`: zero has no prefix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HashX(pub(crate) u64);

impl fmt::Display for HashX {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { f.write_str("0") } else { write!(f, "{:#x}", self.0) }
    }
}

/// Xen's `%pd`: a domain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pd(pub(crate) u16);

impl fmt::Display for Pd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            crate::page::DOM_IO => f.write_str("d[IO]"),
            crate::page::DOM_XEN => f.write_str("d[XEN]"),
            crate::page::NOBODY => f.write_str("NULL"),
            id => write!(f, "d{id}"),
        }
    }
}

/// Returns the text of a line behind its prefix `(XEN) file:line:dNvM `.
#[must_use]
pub fn text_of(line: &str) -> &str {
    let line = line.strip_prefix("(XEN) ").unwrap_or(line);
    line.split_once(' ').map_or(line, |(_, text)| text)
}
