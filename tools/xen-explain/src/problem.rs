//! Refusals with the same cause are one problem: the same frame, wanted as the same thing.

use std::collections::HashMap;

use crate::chain::Event;
use crate::messages::Role;
use crate::pattern::Field;
use crate::prefix::{Speaker, Stamp};
use crate::recognise::Line;

/// Problems that are kept; refusals of any further are counted.
const PROBLEMS_MAX: usize = 4096;
/// Ways in which one problem stopped requests that are kept.
const CHAINS_MAX: usize = 16;
/// Times at which one problem was seen that are kept.
const TIMES_MAX: usize = 64;
/// Frames that are counted.
const FRAMES_MAX: usize = 1 << 16;

/// What makes two refusals the same problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    domain: Option<u64>,
    message: &'static str,
    mfn: Option<u64>,
    flags: Option<u64>,
    exp: Option<u64>,
}

/// What a problem stopped, in one way.
#[derive(Clone, Debug)]
pub(crate) struct Stopped {
    /// The first refusal of this kind.
    pub(crate) event: Event,
    /// How many there are.
    pub(crate) times: u64,
}

/// A cause, and everything it stopped.
#[derive(Clone, Debug)]
pub(crate) struct FoundProblem {
    /// The line that says why.
    pub(crate) primary: Line,
    /// How many refusals.
    pub(crate) times: u64,
    /// Lines that say nothing by themselves.
    pub(crate) follow_ups: u64,
    /// Last line of the last refusal.
    pub(crate) last: u64,
    /// Who was refused.
    pub(crate) speakers: Vec<Speaker>,
    /// When, with the line.
    pub(crate) seen: Vec<(u64, Stamp)>,
    pub(crate) stopped: Vec<Stopped>,
}

/// How often a frame is in a refusal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameCounts {
    pub(crate) mfn: u64,
    pub(crate) pfn: Option<u64>,
    /// In how many refusals it is what could not be granted.
    pub(crate) as_cause: u64,
    /// In how many it is a table that failed because of another frame.
    pub(crate) as_table: u64,
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// All problems of a log.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    keys: HashMap<Key, usize>,
    pub(crate) all: Vec<FoundProblem>,
    frames: HashMap<u64, FrameCounts>,
    /// Refusals beyond what is kept.
    pub(crate) more: u64,
}

impl Problems {
    /// Adds a refusal.
    pub(crate) fn add(&mut self, event: Event) {
        self.count_frames(&event);
        let Some(primary) = event.primary() else {
            // Nothing but a misleading line, whose cause is lost.
            self.more += 1;
            return;
        };
        let fields = primary.fields;
        let key = Key {
            domain: event.speaker.domain,
            message: primary.message.name,
            mfn: fields.get(Field::Mfn),
            flags: fields.get(Field::Flags),
            exp: fields.get(Field::Exp),
        };
        let at = match self.keys.get(&key) {
            Some(at) => *at,
            None if self.all.len() < PROBLEMS_MAX => {
                self.keys.insert(key, self.all.len());
                self.all.push(FoundProblem::new(primary.clone()));
                self.all.len() - 1
            }
            None => {
                self.more += 1;
                return;
            }
        };
        self.all[at].add(event);
    }

    fn count_frames(&mut self, event: &Event) {
        let mut count = |mfn: u64, pfn: Option<u64>, as_cause: bool| {
            if self.frames.len() >= FRAMES_MAX && !self.frames.contains_key(&mfn) {
                return;
            }
            let (first, last) = (event.first, event.last);
            let new = FrameCounts { mfn, pfn, as_cause: 0, as_table: 0, first, last };
            let frame = self.frames.entry(mfn).or_insert(new);
            frame.last = last;
            if as_cause {
                frame.as_cause += 1;
            } else {
                frame.as_table += 1;
            }
        };
        if let Some(primary) = event.primary()
            && let Some(mfn) = primary.fields.get(Field::Mfn)
        {
            count(mfn, primary.fields.get(Field::Pfn), true);
        }
        for (mfn, pfn) in event.tables.iter().filter_map(|table| table.frame) {
            count(mfn, Some(pfn), false);
        }
    }

    /// Frames, those that recur most first.
    pub(crate) fn frames(&self) -> Vec<FrameCounts> {
        let mut frames: Vec<FrameCounts> = self.frames.values().copied().collect();
        frames.sort_by_key(|frame| (u64::MAX - frame.as_cause, frame.first, frame.mfn));
        frames
    }
}

impl FoundProblem {
    fn new(primary: Line) -> Self {
        Self {
            primary,
            times: 0,
            follow_ups: 0,
            last: 0,
            speakers: Vec::new(),
            seen: Vec::new(),
            stopped: Vec::new(),
        }
    }

    fn add(&mut self, event: Event) {
        self.times += 1;
        self.follow_ups += event.follow_ups;
        self.last = self.last.max(event.last);
        if !self.speakers.contains(&event.speaker) && self.speakers.len() < CHAINS_MAX {
            self.speakers.push(event.speaker);
        }
        if self.seen.len() < TIMES_MAX {
            self.seen.push((event.first, event.stamp));
        }
        let known = self.stopped.iter().position(|known| is_alike(&known.event, &event));
        match known {
            Some(known) => self.stopped[known].times += 1,
            None if self.stopped.len() < CHAINS_MAX => {
                self.stopped.push(Stopped { event, times: 1 });
            }
            None => {}
        }
    }

    /// Returns whether the frame could not be had as one type because it was in use as another.
    pub(crate) fn is_bad_type(&self) -> bool {
        self.primary.message.role == Role::BadType
    }
}

/// Whether two refusals are the same way of being refused.
fn is_alike(one: &Event, other: &Event) -> bool {
    let request = |event: &Event| {
        let request = event.request.as_ref();
        request.map(|line| (line.message.name, line.fields.get(Field::Mfn)))
    };
    one.tables == other.tables
        && request(one) == request(other)
        && (one.lost > 0) == (other.lost > 0)
}
