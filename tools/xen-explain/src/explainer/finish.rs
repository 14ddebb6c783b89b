//! From what was gathered to the [`Explanation`].

use hypercall::explain::{Cause, Conflict, Use};
use hypercall::{Level, Mfn, Pfn};

use super::{Explainer, flags, of_line};
use crate::chain::{Event, Failed};
use crate::incident::Incident as Gathered;
use crate::messages::Role;
use crate::pattern::{Field, NOBODY};
use crate::prefix::Stamp;
use crate::problem::{FoundProblem, FrameCounts};
use crate::recognise::Line;
use crate::release::Span;
use crate::report::{
    Explanation, Incident, LikelyCause, LogPosition, Match, Neighbours, Problem, RecurringFrame,
    Stopped, Table,
};
use crate::word::{Era, eras};

/// A guest notices a refusal within this time, in microseconds, by the wall clock.
const NOTICED_WITHIN: u64 = 10_000_000;
/// Or, where there are no clocks to compare, within so many lines.
const NOTICED_LINES: u64 = 50;
/// A domain ends within so many lines of what ended it.
const ENDED_LINES: u64 = 100;
/// The message that says which flags were refused.
const BAD_FLAGS: &str = "bad-flags";
/// Frames that are named as recurring.
const RECURRING_MAX: usize = 32;

impl Explainer {
    /// Explains what was read.
    #[must_use]
    pub fn finish(mut self) -> Explanation {
        let problems = &mut self.problems;
        self.chains.end(0, &mut |event| problems.add(event));
        let incidents = &self.incidents;
        let ends: Vec<u64> = self.ends.iter().map(|end| end.line).collect();
        let mut described: Vec<Problem> = (self.problems.all.iter())
            .map(|found| describe(found, self.span, incidents.booting))
            .collect();
        let mut guest: Vec<Incident> = incidents.all.iter().map(incident).collect();
        for (at, gathered) in incidents.all.iter().enumerate() {
            if let Some((problem, how)) = noticed(gathered, &self.problems.all) {
                guest[at].matched = true;
                described[problem].guest.push(Match { incident: at, how });
            }
        }
        for line in ends {
            let before = |problem: &&mut Problem| {
                problem.last_line < line && line - problem.last_line <= ENDED_LINES
            };
            if let Some(nearest) =
                described.iter_mut().filter(before).max_by_key(|problem| problem.last_line)
            {
                nearest.ended.push(line);
            }
        }
        let frames = self.problems.frames();
        let recurs = |frame: &&FrameCounts| frame.as_cause > 1;
        let recurring =
            frames.iter().filter(recurs).take(RECURRING_MAX).map(|frame| RecurringFrame {
                mfn: number(frame.mfn),
                pfn: frame.pfn.map(number),
                as_cause: frame.as_cause,
                as_table: frame.as_table,
                first_line: frame.first,
                last_line: frame.last,
            });
        let causes = frames.iter().filter(|frame| frame.as_cause > 0);
        Explanation {
            lines: self.lines,
            xen: self.span,
            recurring: recurring.collect(),
            neighbours: neighbours(causes.filter_map(|frame| frame.pfn).collect()),
            problems: described,
            more_refusals: self.problems.more,
            guest,
            ends: self.ends,
            notes: self.notes,
            unknown: self.unknown,
        }
    }
}

fn number(frame: u64) -> String {
    format!("{frame:05x}")
}

fn describe(found: &FoundProblem, log: Option<Span>, booting: Option<u64>) -> Problem {
    let primary = &found.primary;
    let fields = primary.fields;
    // What the line itself says about the release, and what all lines say together.
    let own = of_line(primary);
    let span = log.and_then(|log| log.meet(own)).unwrap_or(own);
    let readings = if found.is_bad_type() { readings(primary, span) } else { Vec::new() };
    let mut what: Vec<String> = readings.iter().map(|(_, conflict)| conflict.to_string()).collect();
    if what.is_empty() {
        what.push(sentence(primary));
    }
    let reasons = match readings.as_slice() {
        [(_, conflict), ..] => conflict.causes(),
        [] => primary.message.causes,
    };
    let mut causes: Vec<Cause> = match fields.get(Field::Flags) {
        Some(printed) if primary.message.name == BAD_FLAGS => flags::causes(printed),
        _ => reasons.to_vec(),
    };
    let starting = booting.is_some_and(|line| line.abs_diff(primary.number) <= NOTICED_LINES);
    if starting && let Some(at) = causes.iter().position(|cause| *cause == Cause::EarlyBuffer) {
        causes[..=at].rotate_right(1);
    }
    let stopped = found.stopped.iter().map(|stopped| {
        let era = readings.first().map(|(era, _)| *era);
        describe_stopped(&stopped.event, stopped.times, era, span)
    });
    Problem {
        kind: primary.message.name,
        what,
        mfn: fields.get(Field::Mfn).map(number),
        pfn: fields.get(Field::Pfn).map(number),
        words: words(primary, &readings),
        speakers: found.speakers.clone(),
        times: found.times,
        first: LogPosition { line: primary.number, uptime: uptime(primary.prefix.stamp) },
        last_line: found.last,
        stopped: stopped.collect(),
        follow_ups: found.follow_ups,
        causes: causes.into_iter().map(cause).collect(),
        guest: Vec::new(),
        ended: Vec::new(),
    }
}

fn cause(reason: Cause) -> LikelyCause {
    LikelyCause { name: reason.name(), what: reason.what(), check: reason.check() }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "for people and JSON; 2^53 microseconds is 285 years"
)]
fn uptime(stamp: Stamp) -> Option<f64> {
    stamp.uptime.map(|micros| micros as f64 / 1e6)
}

/// In every layout that is possible: what the frame was and what it was to become.
fn readings(line: &Line, span: Span) -> Vec<(Era, Conflict)> {
    let get = |field| line.fields.get(field);
    let (Some(saw), Some(exp), Some(mfn)) = (get(Field::Saw), get(Field::Exp), get(Field::Mfn))
    else {
        return Vec::new();
    };
    let conflict = |era: Era| {
        let word = era.in_use(saw)?;
        let pfn = get(Field::Pfn).filter(|pfn| *pfn < u64::MAX - 1).map(Pfn::new);
        let (had, uses) = (word.used, Some(word.count));
        Some((era, Conflict { mfn: Mfn::new(mfn), pfn, had, uses, wanted: era.bare(exp)? }))
    };
    eras(Some(saw), Some(exp), span).into_iter().filter_map(conflict).collect()
}

fn words(line: &Line, readings: &[(Era, Conflict)]) -> Vec<String> {
    let (Some(saw), Some(exp)) = (line.fields.get(Field::Saw), line.fields.get(Field::Exp)) else {
        return Vec::new();
    };
    let read = readings.iter().filter_map(|(era, conflict)| {
        let word = era.in_use(saw)?;
        Some(format!("saw {saw:016x} = {word}; exp {exp:016x} = {} ({era})", conflict.wanted))
    });
    let words: Vec<String> = read.collect();
    match words.len() {
        0 => vec![format!(
            "saw {saw:016x}, exp {exp:016x}: no layout of any release makes sense of both"
        )],
        1 => words,
        _ => words.into_iter().map(|word| format!("ambiguous: {word}")).collect(),
    }
}

/// Returns what a line says, for messages about anything but types.
fn sentence(line: &Line) -> String {
    let get = |field| line.fields.get(field);
    let mut text = String::new();
    if let Some(mfn) = get(Field::Mfn) {
        text += &format!("frame mfn {mfn:05x}");
        if let Some(pfn) = get(Field::Pfn) {
            text += &format!(" (pfn {pfn:05x})");
        }
        text += ": ";
    }
    text += line.message.meaning;
    match get(Field::Flags) {
        Some(printed) if line.message.name == BAD_FLAGS => text += &flags::refused(printed),
        Some(printed) => text += &format!(" (flags {printed:#x})"),
        None => {}
    }
    if let Some(pte) = get(Field::Pte) {
        text += &flags::entry(pte);
    }
    if let Some(owner) = get(Field::Owner)
        && matches!(line.message.name, "not-owner" | "other-owner" | "bad-steal" | "unpin-foreign")
    {
        text += &format!("; it belongs to {}", domain(owner));
    }
    text
}

fn domain(id: u64) -> String {
    match id {
        0x7ff1 => "Xen's I/O domain (no memory of a guest's)".to_owned(),
        0x7ff2 => "Xen itself".to_owned(),
        0x7ff3 => "the copy-on-write domain".to_owned(),
        NOBODY.. => "nobody that the line names".to_owned(),
        _ => format!("d{id}"),
    }
}

fn describe_stopped(event: &Event, times: u64, era: Option<Era>, span: Span) -> Stopped {
    let level = |failed: &Failed| match failed.level {
        0 => level_of(failed.kind?, era, span),
        level => Some(level),
    };
    let tables = event.tables.iter().map(|failed| Table {
        level: level(failed),
        mfn: failed.frame.map(|(mfn, _)| number(mfn)),
        pfn: failed.frame.map(|(_, pfn)| number(pfn)),
        slot: failed.slot,
    });
    let tables: Vec<Table> = tables.collect();
    let errno = event.request.as_ref().and_then(|line| line.fields.get(Field::Errno));
    Stopped {
        first_line: event.first,
        last_line: event.last,
        times,
        address: address(&tables),
        request: request(event, &tables, era),
        errno,
        lost: event.lost,
        tables,
    }
}

/// Returns the level of a table type.
fn level_of(kind: u64, era: Option<Era>, span: Span) -> Option<u64> {
    let read = |era: Era| match era.bare(kind) {
        Some(Use::Table(level)) => Some(level as u64),
        _ => None,
    };
    match (era, eras(None, Some(kind), span).as_slice()) {
        (Some(era), _) => read(era),
        (None, [only]) => read(*only),
        _ => None,
    }
}

/// Returns the request at the outer end, in words.
fn request(event: &Event, tables: &[Table], era: Option<Era>) -> String {
    if let Some(line) = &event.request {
        let (Role::Request(name) | Role::Refusal(name)) = line.message.role else {
            return String::new();
        };
        let Some(mfn) = line.fields.get(Field::Mfn) else { return name.to_owned() };
        let wanted = match (tables.last(), event.primary()) {
            (Some(outer), _) => outer.level,
            (None, Some(primary)) => {
                era.zip(primary.fields.get(Field::Exp)).and_then(|(era, exp)| {
                    match era.bare(exp)? {
                        Use::Table(level) => Some(level as u64),
                        _ => None,
                    }
                })
            }
            (None, None) => None,
        };
        return match wanted {
            Some(level) if name == "pinning" => {
                format!("pinning mfn {mfn:05x} as an L{level} table (MMUEXT_PIN_L{level}_TABLE)")
            }
            _ => format!("{name} mfn {mfn:05x}"),
        };
    }
    let top = Level::L4 as u64;
    match tables.last().and_then(|table| table.level) {
        _ if event.lost > 0 => "a request whose own line is lost".to_owned(),
        Some(level) if level < top => {
            format!("a request without a line (an mmu_update that links the L{level} table)")
        }
        _ => "a request without a line (mmu_update, update_va_mapping and set_gdt have none)"
            .to_owned(),
    }
}

/// Returns the addresses for which the innermost failing entry stands.
fn address(tables: &[Table]) -> Option<String> {
    let slot = |level: u64| {
        tables.iter().find(|table| table.level == Some(level)).and_then(|table| table.slot)
    };
    let lowest = (1..=4).find(|level| slot(*level).is_some())?;
    let base = (lowest..=4).map(|level| slot(level).map(|slot| slot << (12 + 9 * (level - 1))));
    let known: u64 = base.clone().flatten().sum();
    let size = 1u64 << (12 + 9 * (lowest - 1));
    if base.clone().all(|part| part.is_some()) {
        let start = if known >> 47 & 1 == 1 { known | 0xffff << 48 } else { known };
        return Some(format!("from {start:#018x} to {:#018x}", start + (size - 1)));
    }
    let parts = (lowest..=4)
        .rev()
        .filter_map(|level| slot(level).map(|slot| format!("slot {slot} of an L{level}")));
    Some(format!("of {}", parts.collect::<Vec<_>>().join(", ")))
}

fn incident(gathered: &Gathered) -> Incident {
    Incident {
        first_line: gathered.first,
        last_line: gathered.last,
        says: gathered.says.clone(),
        trace: gathered.trace.clone(),
        doing: gathered.doing(),
        multicall: gathered.is_multicall(),
        matched: false,
    }
}

/// Returns the problem that a guest noticed: the latest before it by the clock, or, without clocks
/// that can be compared, the nearest in the log.
fn noticed(incident: &Gathered, problems: &[FoundProblem]) -> Option<(usize, String)> {
    let seen = || {
        let numbered = problems.iter().enumerate();
        numbered.flat_map(|(at, problem)| problem.seen.iter().map(move |seen| (at, *seen)))
    };
    let by_clock = seen().filter_map(|(at, (_, stamp))| {
        let later = incident.stamp.of_year?.checked_sub(stamp.of_year?)?;
        (later <= NOTICED_WITHIN).then_some((later, at))
    });
    if let Some((later, at)) = by_clock.min() {
        let seconds = later / 1_000_000;
        return Some((at, format!("{seconds} s later by the wall clock")));
    }
    let comparable = |stamp: Stamp| incident.stamp.of_year.is_some() && stamp.of_year.is_some();
    let by_line = seen().filter_map(|(at, (line, stamp))| {
        let away = line.abs_diff(incident.first);
        (away <= NOTICED_LINES && !comparable(stamp)).then_some((away, at))
    });
    by_line.min().map(|(away, at)| (at, format!("{away} lines away in the log")))
}

/// Runs of at least two pfns side by side.
fn neighbours(mut pfns: Vec<u64>) -> Vec<Neighbours> {
    pfns.sort_unstable();
    pfns.dedup();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for pfn in pfns {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(pfn) => *last = pfn,
            _ => runs.push((pfn, pfn)),
        }
    }
    let long = runs.into_iter().filter(|(first, last)| last > first);
    let run = |(first, last): (u64, u64)| Neighbours {
        first: number(first),
        last: number(last),
        count: last - first + 1,
    };
    long.map(run).take(RECURRING_MAX).collect()
}
