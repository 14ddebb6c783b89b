//! Puts the lines of one refusal together: from the entry that could not be granted, over the
//! tables that failed because of it, out to the request that was refused.
//!
//! Xen prints the innermost line first. Lines of several vCPUs and domains come mixed, and some are
//! lost, so a chain is kept for each speaker and ends where the next line does not fit.

use std::collections::HashMap;

use crate::messages::Role;
use crate::pattern::Field;
use crate::prefix::{Speaker, Stamp};
use crate::recognise::Line;

/// Lines of a chain come within this time of one another, in microseconds: a slow serial line takes
/// a hundredth of a second for each.
const GAP_MAX: u64 = 1_000_000;

/// A table that failed validation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Failed {
    /// Its level, 1 to 4.
    pub(crate) level: u64,
    /// Its frame, if the line that says so is there.
    pub(crate) frame: Option<(u64, u64)>,
    /// The slot at which it failed, likewise.
    pub(crate) slot: Option<u64>,
    /// The type word that it was to have, likewise.
    pub(crate) kind: Option<u64>,
}

/// One refusal.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) speaker: Speaker,
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) stamp: Stamp,
    /// The lines that say why, innermost first.
    pub(crate) causes: Vec<Line>,
    /// The tables that failed, innermost first.
    pub(crate) tables: Vec<Failed>,
    pub(crate) request: Option<Line>,
    /// Misleading lines.
    pub(crate) follow_ups: u64,
    /// Messages that Xen left out directly after the last line of it.
    pub(crate) lost: u64,
    latest: Stamp,
}

impl Event {
    fn new(line: &Line) -> Self {
        Self {
            speaker: line.prefix.speaker,
            first: line.number,
            last: line.number,
            stamp: line.prefix.stamp,
            causes: Vec::new(),
            tables: Vec::new(),
            request: None,
            follow_ups: 0,
            lost: 0,
            latest: line.prefix.stamp,
        }
    }

    /// Returns the line that the refusal is about: a bad type, or else the first that says
    /// anything.
    pub(crate) fn primary(&self) -> Option<&Line> {
        let bad_type = self.causes.iter().find(|line| line.message.role == Role::BadType);
        let cause = self.causes.iter().find(|line| line.message.role == Role::Cause);
        bad_type.or(cause).or(self.request.as_ref()).or(self.causes.first())
    }

    /// Returns whether `line` goes on with this refusal.
    fn takes(&self, line: &Line) -> bool {
        if apart(self.latest, line.prefix.stamp).is_some_and(|gap| gap > GAP_MAX) {
            return false;
        }
        let level = |line: &Line| line.fields.get(Field::Level);
        match line.message.role {
            Role::FollowUp => true,
            Role::Slot => self.tables.last().is_none_or(|last| Some(last.level) < level(line)),
            // The level of this line is in a word whose layout is not known yet.
            Role::Table => self.tables.last().is_some_and(|last| last.frame.is_none()),
            Role::Request(_) => self.leads_to(line),
            _ => self.tables.is_empty() && !self.has_such(line),
        }
    }

    /// Returns whether the request in `line` can be the outer end.
    fn leads_to(&self, line: &Line) -> bool {
        let Some(mfn) = line.fields.get(Field::Mfn) else { return self.tables.is_empty() };
        match self.tables.last() {
            Some(Failed { frame: Some((last, _)), .. }) => *last == mfn,
            Some(_) => true,
            None => self.causes.iter().any(|cause| cause.fields.get(Field::Mfn) == Some(mfn)),
        }
    }

    /// Returns whether a line of that kind is here already, about another frame.
    fn has_such(&self, line: &Line) -> bool {
        let twice = |known: &&Line| known.message.name == line.message.name;
        self.causes.iter().find(twice).is_some_and(|known| {
            line.message.role == Role::BadType
                || known.fields.get(Field::Mfn) != line.fields.get(Field::Mfn)
        })
    }

    fn add(&mut self, line: Line) {
        self.last = line.number;
        self.latest = line.prefix.stamp;
        let fields = line.fields;
        let slot = fields.get(Field::Slot);
        match line.message.role {
            Role::FollowUp => self.follow_ups += 1,
            Role::Slot => {
                let level = fields.get(Field::Level).unwrap_or(0);
                self.tables.push(Failed { level, frame: None, slot, kind: None });
            }
            Role::Table => {
                let frame = fields.get(Field::Mfn).zip(fields.get(Field::Pfn));
                let kind = fields.get(Field::Type);
                match self.tables.last_mut() {
                    Some(last) if last.frame.is_none() => (last.frame, last.kind) = (frame, kind),
                    // The line with the slot is lost.
                    _ => self.tables.push(Failed { level: 0, frame, slot: None, kind }),
                }
            }
            Role::Request(_) | Role::Refusal(_) => self.request = Some(line),
            _ => self.causes.push(line),
        }
    }
}

/// Returns how far two lines are apart, in microseconds, if both say when they were printed.
pub(crate) fn apart(one: Stamp, other: Stamp) -> Option<u64> {
    let gap = |a: Option<u64>, b: Option<u64>| a.zip(b).map(|(a, b)| a.abs_diff(b));
    gap(one.uptime, other.uptime).or_else(|| gap(one.of_year, other.of_year))
}

/// Speakers whose refusals are followed at a time: more is a log that was put together from noise.
const OPEN_MAX: usize = 4096;

/// The refusals that may still go on.
#[derive(Debug, Default)]
pub(crate) struct Chains {
    open: HashMap<Speaker, Event>,
}

impl Chains {
    /// Takes a line of a refusal. What it ends goes to `ended`.
    pub(crate) fn push(&mut self, line: Line, ended: &mut impl FnMut(Event)) {
        let speaker = line.prefix.speaker;
        let role = line.message.role;
        if self.open.len() >= OPEN_MAX && !self.open.contains_key(&speaker) {
            self.end(0, ended);
        }
        let lone = matches!(role, Role::Refusal(_));
        if let Some(open) = self.open.get_mut(&speaker) {
            if !lone && open.takes(&line) {
                open.add(line);
                if matches!(role, Role::Request(_)) {
                    ended(self.open.remove(&speaker).expect("it is open"));
                }
                return;
            }
            ended(self.open.remove(&speaker).expect("it is open"));
        }
        let mut event = Event::new(&line);
        event.add(line);
        if lone || matches!(role, Role::Request(_)) {
            ended(event);
        } else {
            self.open.insert(speaker, event);
        }
    }

    /// Ends all of them: Xen left out `lost` messages here, or the log ends.
    pub(crate) fn end(&mut self, lost: u64, ended: &mut impl FnMut(Event)) {
        let mut events: Vec<Event> = self.open.drain().map(|(_, event)| event).collect();
        events.sort_by_key(|event| event.first);
        for mut event in events {
            event.lost = lost;
            ended(event);
        }
    }
}
