//! The explanation for people.

use std::fmt::{self, Write as _};

use anstyle::{AnsiColor, Style};

use crate::report::{Explanation, Incident, Problem, Stopped};

/// Whether the text may hold colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// Plain text.
    Never,
    /// With escape sequences for a terminal.
    Always,
}

/// Problems that are shown in full; `--json` has all.
const SHOWN_MAX: usize = 20;
/// Columns of text.
const WIDTH: usize = 100;

struct Page {
    text: String,
    colour: Colour,
}

impl Page {
    fn style(&self, style: Style) -> Style {
        if self.colour == Colour::Always { style } else { Style::new() }
    }

    /// A line in a style.
    fn title(&mut self, text: &str, style: Style) {
        let style = self.style(style);
        for line in wrap(text, WIDTH) {
            self.line(format_args!("{style}{line}{style:#}"));
        }
    }

    /// A paragraph behind a word in the margin.
    fn item(&mut self, margin: &str, text: &str) {
        const INDENT: usize = 12;
        for (at, line) in wrap(text, WIDTH - INDENT).into_iter().enumerate() {
            let margin = if at == 0 { margin } else { "" };
            let dim = self.style(Style::new().dimmed());
            self.line(format_args!("  {dim}{margin:<9}{dim:#} {line}"));
        }
    }

    fn line(&mut self, text: fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{text}");
    }
}

/// Breaks a text at blanks into lines of at most `width` characters, if its words let it.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.last_mut().expect("there is one");
        if !last.is_empty() && last.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if !last.is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    lines
}

const BOLD: Style = Style::new().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();

impl Explanation {
    /// For people to read.
    #[must_use]
    pub fn text(&self, colour: Colour) -> String {
        let mut page = Page { text: String::new(), colour };
        self.summary(&mut page);
        for (at, problem) in self.problems.iter().take(SHOWN_MAX).enumerate() {
            page.line(format_args!(""));
            self.problem(&mut page, at + 1, problem);
        }
        if self.problems.len() > SHOWN_MAX {
            let more = self.problems.len() - SHOWN_MAX;
            page.line(format_args!("\n{more} more problems: --json has them all"));
        }
        self.alone(&mut page);
        self.frames(&mut page);
        self.rest(&mut page);
        page.text
    }

    fn summary(&self, page: &mut Page) {
        let lines = self.lines;
        let xen = match &self.xen {
            Some(xen) => format!("Xen {xen}"),
            None => "several releases of Xen".to_owned(),
        };
        page.title(
            &format!(
                "{} lines: {} about memory ({xen}), {} of a guest kernel, {} of Xen not known, {} \
                 other",
                lines.total, lines.known, lines.guest, lines.unknown, lines.other
            ),
            BOLD,
        );
        if lines.suppressed > 0 {
            page.line(format_args!(
                "Xen left out {} messages (rate limit): boot it with guest_loglvl=all to see them",
                lines.suppressed
            ));
        }
        if lines.cut > 0 {
            page.line(format_args!("{} lines were too long to be read to their end", lines.cut));
        }
        if self.problems.is_empty() {
            page.line(format_args!("Nothing was refused, as far as these lines say."));
        }
        if self.more_refusals > 0 {
            page.line(format_args!(
                "{} more refusals whose cause is lost, or beyond what is kept",
                self.more_refusals
            ));
        }
    }

    fn problem(&self, page: &mut Page, number: usize, problem: &Problem) {
        for (at, what) in problem.what.iter().enumerate() {
            let lead = if at == 0 { format!("{number}.") } else { "or:".to_owned() };
            page.title(&format!("{lead} {what}"), BAD);
        }
        for words in &problem.words {
            page.item("words", words);
        }
        page.item("seen", &seen(problem));
        for stopped in &problem.stopped {
            for (at, text) in chain(problem, stopped).iter().enumerate() {
                page.item(if at == 0 { "stopped" } else { "" }, text);
            }
        }
        if problem.follow_ups > 0 {
            page.item(
                "not why",
                &format!(
                    "{} lines \"Attempt to create linear p.t. ...\" follow from the failure and \
                     are no cause: Xen prints them for every writable entry of an L2, L3 or L4 \
                     that fails",
                    problem.follow_ups
                ),
            );
        }
        for found in &problem.guest {
            if let Some(incident) = self.guest.get(found.incident) {
                page.item("guest", &format!("{}: {}", found.how, noticed(incident)));
                trace(page, incident);
            }
        }
        for line in &problem.ended {
            if let Some(end) = self.ends.iter().find(|end| end.line == *line) {
                page.item("then", &format!("line {line}: {} ({})", end.text, end.meaning));
            }
        }
        let names = |problem: &Problem| -> Vec<&str> {
            problem.causes.iter().map(|cause| cause.name).collect()
        };
        let told = self.problems[..number - 1].iter().position(|it| names(it) == names(problem));
        if let Some(told) = told {
            page.item("why", &format!("as under {}", told + 1));
            return;
        }
        for (at, cause) in problem.causes.iter().enumerate() {
            let margin = if at == 0 { "why" } else { "" };
            page.item(margin, &format!("{}. {}", at + 1, cause.what));
            page.item("", &format!("   check: {}", cause.check));
        }
    }

    /// What the guest noticed that belongs to no problem.
    fn alone(&self, page: &mut Page) {
        for incident in self.guest.iter().filter(|incident| !incident.matched) {
            page.line(format_args!(""));
            page.title(&format!("The guest kernel noticed: {}", noticed(incident)), BOLD);
            trace(page, incident);
            if incident.multicall {
                page.item(
                    "means",
                    "Xen refused a part of a batch, and Linux went on as if it had worked: what \
                     follows may be anything. The lines of Xen that say why are not in this log: \
                     xl dmesg, of a debug Xen, or serial console, at the same time",
                );
            }
        }
    }

    fn frames(&self, page: &mut Page) {
        if !self.recurring.is_empty() {
            page.line(format_args!(""));
            page.title("Frames that recur", BOLD);
        }
        for frame in &self.recurring {
            let pfn = frame.pfn.as_ref().map(|pfn| format!(" (pfn {pfn})")).unwrap_or_default();
            page.line(format_args!(
                "  mfn {}{pfn}: cause of {} refusals, lines {} to {}",
                frame.mfn, frame.as_cause, frame.first_line, frame.last_line
            ));
        }
        for run in &self.neighbours {
            page.line(format_args!(
                "pfns {} to {} are neighbours: {} pages of one buffer, most likely",
                run.first, run.last, run.count
            ));
        }
    }

    fn rest(&self, page: &mut Page) {
        let belongs = |line: u64| self.problems.iter().any(|found| found.ended.contains(&line));
        for end in self.ends.iter().filter(|end| !belongs(end.line)) {
            page.line(format_args!("\nline {}: {} ({})", end.line, end.text, end.meaning));
        }
        for note in &self.notes {
            let times =
                if note.times > 1 { format!(" ({} times)", note.times) } else { String::new() };
            page.line(format_args!("\nline {}: {}{times}: {}", note.line, note.text, note.meaning));
        }
        if !self.unknown.is_empty() {
            page.line(format_args!(""));
            let shown = self.unknown.len();
            page.title(
                &format!(
                    "Lines of Xen that are not known: {}, the first {shown}",
                    self.lines.unknown
                ),
                BOLD,
            );
        }
        for unknown in &self.unknown {
            page.line(format_args!("  {:>6}  {}", unknown.line, unknown.text));
        }
    }
}

fn seen(problem: &Problem) -> String {
    let times = match problem.times {
        1 => "once".to_owned(),
        times => format!("{times} times"),
    };
    let speakers = problem.speakers.iter().map(|speaker| match (speaker.domain, speaker.vcpu) {
        (Some(domain), Some(vcpu)) => format!("d{domain}v{vcpu}"),
        (Some(domain), None) => format!("d{domain}"),
        (None, _) => "nobody named".to_owned(),
    });
    let speakers = speakers.collect::<Vec<_>>().join(", ");
    let at = problem.first.uptime.map(|at| format!(", first at {at:.6} s")).unwrap_or_default();
    let lines = if problem.last_line == problem.first.line {
        format!("line {}", problem.first.line)
    } else {
        format!("lines {} to {}", problem.first.line, problem.last_line)
    };
    format!("{times}, {lines}, by {speakers}{at}")
}

/// Returns a chain, from the frame out to the request.
fn chain(problem: &Problem, stopped: &Stopped) -> Vec<String> {
    let mut parts = Vec::new();
    let lines = match (stopped.first_line, stopped.last_line) {
        (first, last) if first == last => format!("line {first}"),
        (first, last) => format!("lines {first} to {last}"),
    };
    let times =
        if stopped.times > 1 { format!(", {} times alike", stopped.times) } else { String::new() };
    let errno = stopped.errno.map(|errno| format!(", errno -{errno}")).unwrap_or_default();
    parts.push(format!("{} failed for that reason ({lines}{times}{errno})", stopped.request));
    if let (false, Some(mfn)) = (stopped.tables.is_empty(), &problem.mfn) {
        parts.push(format!("  mfn {mfn}  the cause"));
    }
    for table in &stopped.tables {
        let level = table.level.map_or("table".to_owned(), |level| format!("L{level} table"));
        let frame = match (&table.mfn, &table.pfn) {
            (Some(mfn), Some(pfn)) => format!("mfn {mfn} (pfn {pfn})"),
            _ => "a frame that no line names".to_owned(),
        };
        let slot = match table.slot {
            Some(slot) => format!("slot {slot} of "),
            None => String::new(),
        };
        parts.push(format!("  in {slot}the {level} {frame}, which failed for that reason"));
    }
    if let Some(address) = &stopped.address {
        parts.push(format!("  the entry is for the addresses {address}"));
    }
    if stopped.lost > 0 {
        parts.push(format!(
            "  the rest of the chain is lost: Xen left out {} messages right behind",
            stopped.lost
        ));
    }
    parts
}

fn noticed(incident: &Incident) -> String {
    let says = incident.says.first().map_or("a call trace", String::as_str);
    let doing = incident.doing.map(|doing| format!("; {doing}")).unwrap_or_default();
    format!("lines {} to {}: {says}{doing}", incident.first_line, incident.last_line)
}

fn trace(page: &mut Page, incident: &Incident) {
    for says in incident.says.iter().skip(1) {
        page.item("", says);
    }
    if !incident.trace.is_empty() {
        page.item("", &incident.trace.join(" <- "));
        page.item(
            "",
            "(the trace says what the guest was doing when Xen refused, not who holds the page)",
        );
    }
}
