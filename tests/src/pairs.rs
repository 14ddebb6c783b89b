//! Every pair of refusals: an operation with one of its requests refused, and with one of those
//! refused, too, that follow, the undoing of the first included. An access to a frame that fails
//! is a refusal, too.
//!
//! A test names its crate and itself and gives a scenario: a guest on a model, one operation on a
//! machine around it, and then, on the model itself, everything taken apart and accounted for
//! ([`Account`](crate::account::Account)). The scenario panics if something is wrong.
//!
//! | variable | |
//! |---|---|
//! | `PVMMU_PAIRS=all` | every pair of refusals, and every failing access alone |
//! | `PVMMU_PAIRS=accesses` | every pair with an access that fails: this takes many hours |
//! | `PVMMU_PAIRS_SEED=N` | this sample |
//! | `PVMMU_PAIRS_ONLY=r1.d1,a2` | one run: `r1` refused after `d1` elements, access `a2` failed |
//!
//! Accesses to one frame in one way with nothing in between differ in nothing but their number. All
//! of them are tried alone; the first and the last of them are in pairs.
//!
//! Each test ends with a line `pairs: CRATE NAME PAIRS ACCESSES`: pairs of refused requests, and
//! runs with an access that failed. `cargo xtask check pairs` adds them up.

use std::cell::Cell;
use std::env;
use std::hash::{BuildHasher as _, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use hypercall::middleware::{Accessed, Asked, FailEach, Refusal, Refusals};
use hypercall::{Errno, Hypercall};

/// Requests that a scenario can have.
const REQUESTS_MAX: usize = 4096;
/// Accesses to frames that it can have.
const ACCESSES_MAX: usize = 16384;
/// What a sample has of first refusals, and of second ones for each of them.
const FIRSTS: usize = 8;
const SECONDS: usize = 4;
/// The same of accesses that fail; the seconds also of requests behind one.
const ACCESSES: usize = 4;
const ACCESS_SECONDS: usize = 0;
/// Elements of a long request that a sample looks at, besides the first, second, middle and last.
const PLACES: usize = 2;
/// What Xen answers, in turn.
const ERRNOS: [Errno; 3] = [Errno::ENOMEM, Errno::EBUSY, Errno::EINVAL];

/// What is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    /// A request, after so many elements.
    Request { number: usize, done: usize },
    /// An access to a frame.
    Access(usize),
}

/// How many runs there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    /// With one request refused.
    pub singles: usize,
    /// With two requests refused.
    pub pairs: usize,
    /// With an access that failed, alone or beside another refusal.
    pub accesses: usize,
}

/// Which pairs are tried.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    /// All pairs of refusals, and each failing access alone.
    All,
    /// All pairs that have an access that fails.
    Accesses,
    Sample(Random),
    Only(Vec<Point>),
}

/// Runs `scenario` without a refusal, with one, and with two, as the environment says: with all
/// pairs of them, or with a sample.
///
/// ```
/// use hypercall::{Assist, Hypercalls};
/// use pv_tests::pairs::{self, around};
/// use xen_model::Model;
///
/// let tried = pairs::run("pv-tests", "two_assists", |plan| {
///     let model = Model::builder().build().expect("a guest");
///     let machine = around(&model, plan);
///     let _ = machine.enable_assist(Assist::WritablePageTables);
///     let _ = machine.enable_assist(Assist::M2pStrict);
///     model.audit().expect("whatever is refused");
/// });
/// assert_eq!((tried.singles, tried.pairs, tried.accesses), (2, 1, 0));
/// ```
///
/// # Panics
/// With the scenario, after a line that says how to run the same pair again; or if two runs of it
/// do not ask the same, or it asks for nothing.
pub fn run(package: &str, name: &str, scenario: impl Fn(&Refusals<'_>)) -> Tried {
    let scope = match Scope::from_environment(|name| env::var(name).ok()) {
        Ok(scope) => scope,
        Err(wrong) => panic!("{wrong}"),
    };
    let Tried { singles, pairs, accesses } = scope.run(&format!("{package} {name}"), &scenario);
    println!("pairs: {package} {name} {pairs} {accesses} (and {singles} single refusals)");
    Tried { singles, pairs, accesses }
}

/// Returns a machine around `machine` that refuses what `plan` says.
pub const fn around<'r, M>(machine: M, plan: &'r Refusals<'r>) -> FailEach<'r, M> {
    FailEach::new(machine, plan)
}

impl Scope {
    fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        if let Some(points) = variable("PVMMU_PAIRS_ONLY") {
            let parsed = points.split(',').filter(|word| !word.is_empty()).map(Point::parse);
            let parsed: Option<Vec<_>> = parsed.collect();
            return match parsed {
                Some(points) if points.len() <= 2 => Ok(Self::Only(points)),
                _ => Err(format!("PVMMU_PAIRS_ONLY={points} is not like 3.0,a5")),
            };
        }
        match variable("PVMMU_PAIRS").as_deref() {
            Some("all") => Ok(Self::All),
            Some("accesses") => Ok(Self::Accesses),
            None | Some("" | "sample") => {
                let seed = match variable("PVMMU_PAIRS_SEED") {
                    Some(seed) => seed.parse().map_err(|_| format!("{seed:?} is not a seed"))?,
                    None => RandomState::new().hash_one(0) >> 32,
                };
                Ok(Self::Sample(Random(seed)))
            }
            Some(other) => Err(format!("PVMMU_PAIRS={other} is not \"all\", nor \"accesses\"")),
        }
    }

    fn run(mut self, name: &str, scenario: &impl Fn(&Refusals<'_>)) -> Tried {
        let trial = Trial::new(name, scenario);
        let mut tried = Tried::default();
        if let Self::Only(points) = &self {
            if trial.run(points).reached == points.len() {
                tried.count(points);
            }
            return tried;
        }
        if let Self::Sample(Random(seed)) = &self {
            println!("PVMMU_PAIRS_SEED={seed} chooses this sample of {name}");
        }
        let undisturbed = trial.run(&[]);
        assert!(!undisturbed.asked.is_empty(), "{name} asks Xen for nothing");
        for first in self.firsts(&undisturbed) {
            let single = trial.run(&[first]);
            single.assert_begins_as(&undisturbed, first, name);
            tried.count(&[first]);
            for second in self.seconds(&single, first) {
                let both = trial.run(&[first, second]);
                both.assert_begins_as(&single, second, name);
                tried.count(&[first, second]);
            }
        }
        tried
    }

    /// Returns what is refused first.
    fn firsts(&mut self, run: &Run) -> Vec<Point> {
        let requests = run.requests(0, self);
        let accesses = (0..run.made.len()).map(Point::Access).collect();
        let mut firsts = self.choose(requests, FIRSTS);
        firsts.extend(self.choose(accesses, ACCESSES));
        firsts
    }

    /// Returns what is refused behind `first`, which was refused in `run`.
    fn seconds(&mut self, run: &Run, first: Point) -> Vec<Point> {
        let is_request = matches!(first, Point::Request { .. });
        let mut seconds = Vec::new();
        if *self == Self::All && !is_request {
            return seconds;
        }
        if !(*self == Self::Accesses && is_request) {
            let requests = run.requests_behind(first, self);
            let count = if is_request { SECONDS } else { ACCESS_SECONDS };
            seconds = self.choose(requests, count);
        }
        if *self != Self::All {
            seconds.extend(self.choose(run.accesses_behind(first), ACCESS_SECONDS));
        }
        seconds
    }

    /// All of them, or `count` chosen ones.
    fn choose(&mut self, mut points: Vec<Point>, count: usize) -> Vec<Point> {
        if let Self::Sample(random) = self {
            for at in 0..points.len().min(count) {
                let other = at + random.below(points.len() - at);
                points.swap(at, other);
            }
            points.truncate(count);
        }
        points
    }

    /// Counts of elements of a request that take effect before its refusal.
    fn dones(&mut self, elements: usize) -> Vec<usize> {
        match self {
            Self::Sample(random) if elements > 4 + PLACES => {
                let mut dones = vec![0, 1, elements / 2, elements - 1];
                dones.extend((0..PLACES).map(|_| random.below(elements)));
                dones.sort_unstable();
                dones.dedup();
                dones
            }
            _ => (0..elements.max(1)).collect(),
        }
    }
}

impl Tried {
    /// Counts a run in which all of `points` were refused.
    fn count(&mut self, points: &[Point]) {
        let has_access = points.iter().any(|point| matches!(point, Point::Access(_)));
        *match points.len() {
            _ if has_access => &mut self.accesses,
            1 => &mut self.singles,
            2 => &mut self.pairs,
            _ => return,
        } += 1;
    }
}

/// What a run came to.
struct Run {
    asked: Vec<Asked>,
    made: Vec<Accessed>,
    /// Refusals that were due.
    reached: usize,
}

impl Run {
    /// Up to the last refusal, each run with it asks what the run without it asked.
    fn assert_begins_as(&self, without: &Self, last: Point, name: &str) {
        let same = match last {
            Point::Request { number, .. } => {
                let both = [self, without].map(|run| run.asked.get(..=number));
                both[0].is_some() && both[0] == both[1]
            }
            Point::Access(number) => {
                let both = [self, without].map(|run| run.made.get(..=number));
                both[0].is_some() && both[0] == both[1]
            }
        };
        assert!(same, "{name} does not ask the same each time, up to {last:?}");
    }

    /// All places of the requests from number `from` on.
    fn requests(&self, from: usize, scope: &mut Scope) -> Vec<Point> {
        let mut points = Vec::new();
        for (number, asked) in self.asked.iter().enumerate().skip(from) {
            let dones = scope.dones(asked.elements);
            points.extend(dones.into_iter().map(|done| Point::Request { number, done }));
        }
        points
    }

    /// All places of requests behind `first`. Xen stops at the first element that it refuses,
    /// except with grants, which it answers one by one.
    fn requests_behind(&self, first: Point, scope: &mut Scope) -> Vec<Point> {
        let (number, first) = match first {
            Point::Request { number, done } => (number, done),
            Point::Access(at) => return self.requests(came_before(&self.made[at]), scope),
        };
        let mut behind = Vec::new();
        let Asked { hypercall, elements } = self.asked[number];
        if matches!(hypercall, Hypercall::GrantTableOp(_)) {
            let dones = scope.dones(elements).into_iter().filter(|done| *done > first);
            behind.extend(dones.map(|done| Point::Request { number, done }));
        }
        behind.extend(self.requests(number + 1, scope));
        behind
    }

    /// Returns the first and the last of accesses that do not differ, behind `first`.
    fn accesses_behind(&self, first: Point) -> Vec<Point> {
        let is_behind = |at: usize| match first {
            Point::Request { number, .. } => came_before(&self.made[at]) > number,
            Point::Access(number) => at > number,
        };
        let differs = |at: usize| {
            let [before, behind] = [at.wrapping_sub(1), at + 1].map(|other| self.made.get(other));
            let this = Some(&self.made[at]);
            before != this || behind != this
        };
        let behind = (0..self.made.len()).filter(|at| is_behind(*at) && differs(*at));
        behind.map(Point::Access).collect()
    }
}

/// A scenario, and where its runs write down what they ask.
struct Trial<'s, S> {
    name: &'s str,
    scenario: &'s S,
    asked: Vec<Cell<Option<Asked>>>,
    made: Vec<Cell<Option<Accessed>>>,
}

impl<'s, S: Fn(&Refusals<'_>)> Trial<'s, S> {
    fn new(name: &'s str, scenario: &'s S) -> Self {
        let asked = vec![Cell::new(None); REQUESTS_MAX];
        Self { name, scenario, asked, made: vec![Cell::new(None); ACCESSES_MAX] }
    }

    /// Runs the scenario with these refusals.
    fn run(&self, points: &[Point]) -> Run {
        let refusals: Vec<_> =
            points.iter().enumerate().filter_map(|(at, point)| point.refusal(at)).collect();
        let failing: Vec<_> = points.iter().filter_map(Point::failing).collect();
        let plan = Refusals::new(&refusals, &self.asked).and_accesses(&failing, &self.made);
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.scenario)(&plan)));
        let run = Run {
            asked: self.asked.iter().map_while(Cell::take).collect(),
            made: self.made.iter().map_while(Cell::take).collect(),
            reached: plan.refused(),
        };
        if let Err(panic) = outcome {
            self.tell(points, &run);
            resume_unwind(panic);
        }
        let fits = run.asked.len() < REQUESTS_MAX && run.made.len() < ACCESSES_MAX;
        assert!(fits, "{} asks more than is written down", self.name);
        run
    }

    /// Says how to make the same run again, and what was refused in it.
    fn tell(&self, points: &[Point], run: &Run) {
        let words: Vec<String> = points.iter().map(Point::word).collect();
        eprintln!("{} fails alone with PVMMU_PAIRS_ONLY=\"{}\"", self.name, words.join(","));
        let or_not = |what: Option<String>| what.unwrap_or_else(|| "not asked".to_owned());
        for (at, point) in points.iter().enumerate() {
            match *point {
                Point::Request { number, done } => {
                    let what = or_not(run.asked.get(number).map(Asked::to_string));
                    let errno = errno(at, number, done);
                    eprintln!("  request {number} ({what}): {errno} after {done}");
                }
                Point::Access(number) => {
                    let what = or_not(run.made.get(number).map(Accessed::to_string));
                    eprintln!("  access {number} ({what}) fails");
                }
            }
        }
    }
}

/// Returns what Xen answers, at the point that is number `at` of its run.
const fn errno(at: usize, number: usize, done: usize) -> Errno {
    ERRNOS[(number + done + at) % ERRNOS.len()]
}

/// Returns how many requests came before the access.
fn came_before(access: &Accessed) -> usize {
    usize::try_from(access.requests).expect("there are fewer")
}

impl Point {
    fn parse(word: &str) -> Option<Self> {
        let word = word.trim();
        if let Some(number) = word.strip_prefix('a') {
            return Some(Self::Access(number.parse().ok()?));
        }
        let (number, done) = word.split_once('.')?;
        Some(Self::Request { number: number.parse().ok()?, done: done.parse().ok()? })
    }

    fn word(&self) -> String {
        match self {
            Self::Request { number, done } => format!("{number}.{done}"),
            Self::Access(number) => format!("a{number}"),
        }
    }

    /// Returns the refusal of the point that is number `at` of its run, if it is of a request.
    fn refusal(&self, at: usize) -> Option<Refusal> {
        let Self::Request { number, done } = *self else { return None };
        Some(Refusal { request: number as u64, errno: errno(at, number, done), done })
    }

    /// Returns the number of the access that fails.
    fn failing(&self) -> Option<u64> {
        match self {
            Self::Request { .. } => None,
            Self::Access(number) => Some(*number as u64),
        }
    }
}

/// Numbers that follow from a seed (splitmix64).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let below = (word ^ (word >> 31)) % bound as u64;
        usize::try_from(below).expect("below a usize")
    }
}

#[cfg(test)]
#[expect(unsafe_code, reason = "asks a model for what changes nothing")]
mod tests {
    use std::cell::RefCell;

    use hypercall::grants::{GrantAccess, GrantMap, GrantRef, Grants as _};
    use hypercall::{
        Assist, Call, DomId, FrameAccess as _, GuestVa, Hypercalls as _, MmuExtOp, Pfn, Request,
    };
    use x86_64::structures::paging::PageTableIndex;
    use xen_model::Model;

    use super::*;
    use crate::account::Account;

    /// What an operation does whose undoing is refused.
    enum Habit {
        /// The frame is given to nobody.
        Sound,
        /// Its caller gets it back, though Xen has it in use.
        GivesTwice,
        Panics,
    }

    /// Asks for `count` things, one after the other in a request, and asks for the opposite of
    /// those that were done if one is refused.
    fn operation(plan: &Refusals<'_>, count: usize, habit: &Habit) {
        let model = Model::builder().build().expect("a guest");
        let machine = around(&model, plan);
        let frame = [Pfn::new(9)];
        let mut account = Account::of(frame);
        let ask = |count: usize| {
            let ops = vec![MmuExtOp::tlb_flush_all(); count];
            let mut calls = [Call::new(Request::MmuExt(&ops, DomId::SELF))];
            // SAFETY: a flush changes nothing.
            unsafe { machine.issue(&mut calls) }.expect("looked at");
            calls[0].result().map_err(|refused| refused.done as usize)
        };
        match ask(count) {
            Ok(_) => account.found("mapped", frame),
            Err(0) => account.found("free", frame),
            Err(done) => match (ask(done), habit) {
                (Ok(_), _) => account.found("free", frame),
                (Err(_), Habit::Sound) => account.found("quarantined", frame),
                (Err(_), Habit::GivesTwice) => {
                    account.found("mapped", frame);
                    account.found("free", frame);
                }
                (Err(_), Habit::Panics) => panic!("it gave up"),
            },
        }
        account.assert_balanced();
    }

    /// Returns what a run panics with, and the points of the run.
    fn failure(scope: Scope, habit: &Habit) -> (String, Vec<u64>) {
        let last = RefCell::new(Vec::new());
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            scope.run("planted", &|plan: &Refusals<'_>| {
                *last.borrow_mut() = plan.refusals().iter().map(|it| it.request).collect();
                operation(plan, 4, habit);
            })
        }));
        let panic = outcome.expect_err("it is found");
        let words = panic.downcast_ref::<String>().cloned();
        let words = words.or_else(|| panic.downcast_ref::<&str>().map(|it| (*it).to_owned()));
        (words.expect("words"), last.into_inner())
    }

    #[test]
    fn a_frame_with_two_owners_is_found_when_the_undoing_is_refused_and_the_pair_is_named() {
        let (words, points) = failure(Scope::All, &Habit::GivesTwice);
        assert!(words.contains("1 pages have two owners") && words.contains("mapped"), "{words}");
        assert_eq!(points, [0, 1]);
        for seed in 0..20 {
            let (sampled, points) = failure(Scope::Sample(Random(seed)), &Habit::GivesTwice);
            assert_eq!((sampled, points), (words.clone(), vec![0, 1]));
        }
    }

    #[test]
    fn a_panic_of_the_operation_is_a_failure() {
        let (words, _) = failure(Scope::All, &Habit::Panics);
        assert_eq!(words, "it gave up");
    }

    #[test]
    fn every_element_of_every_request_is_refused_with_every_one_of_what_follows() {
        // After d of n elements, the undoing has d; with d = 0 there is none.
        let pairs = |count: usize| (0..count).sum::<usize>();
        for count in [1, 2, 9, 40] {
            let sound = |plan: &Refusals<'_>| operation(plan, count, &Habit::Sound);
            let tried = Scope::All.run("planted", &sound);
            assert_eq!(tried, Tried { singles: count, pairs: pairs(count), accesses: 0 });
            let sample = Scope::Sample(Random(3)).run("planted", &sound);
            assert!(sample.singles <= FIRSTS && sample.pairs <= FIRSTS * SECONDS, "{sample:?}");
            assert!(count == 1 || sample.pairs > 0, "{sample:?}");
        }
    }

    #[test]
    fn two_grants_of_one_request_are_a_pair() {
        let tried = Scope::All.run("planted", &|plan: &Refusals<'_>| {
            let model = Model::builder().build().expect("a guest");
            let va = GuestVa::new(0x5000).expect("user half");
            let mut maps = [GrantMap::kernel(va, DomId(7), GrantRef(8), GrantAccess::ReadOnly); 4];
            // SAFETY: there is no such domain, so nothing is mapped.
            unsafe { around(&model, plan).grant_map(&mut maps) }.expect("looked at");
        });
        assert_eq!(tried, Tried { singles: 4, pairs: 6, accesses: 0 });
    }

    /// Reads three entries of one table, asks, and reads an entry of another one.
    fn reader(plan: &Refusals<'_>) {
        let model = Model::builder().build().expect("a guest");
        let machine = around(&model, plan);
        let read = |table, index| {
            let index = PageTableIndex::new(index);
            let read = machine.read_entry(Pfn::new(table), index);
            assert!(read.is_ok() || plan.refused() > 0, "{read:?}");
        };
        (0..3).for_each(|index| read(9, index));
        let _ = machine.enable_assist(Assist::WritablePageTables);
        read(10, 0);
    }

    #[test]
    fn every_access_fails_alone_and_with_what_is_refused_behind_it() {
        // Behind each of the first three accesses comes the request, and behind all of these the
        // fourth; after the first two also the third, the last of those that do not differ.
        let (alone, pairs) = (4, 3 + 4 + 2);
        let tried = Scope::All.run("planted", &reader);
        assert_eq!(tried, Tried { singles: 1, pairs: 0, accesses: alone });
        let tried = Scope::Accesses.run("planted", &reader);
        assert_eq!(tried, Tried { singles: 1, pairs: 0, accesses: alone + pairs });
        let sound = |plan: &Refusals<'_>| operation(plan, 4, &Habit::Sound);
        let tried = Scope::Accesses.run("planted", &sound);
        assert_eq!(tried, Tried { singles: 4, pairs: 0, accesses: 0 });
    }

    #[test]
    fn an_access_that_an_operation_does_not_survive_is_found() {
        let gives_up = |plan: &Refusals<'_>| {
            reader(plan);
            assert!(plan.refused() == 0 || plan.seen() == 0, "it gave up");
        };
        for scope in [Scope::All, Scope::Accesses, Scope::Sample(Random(7))] {
            let outcome = catch_unwind(AssertUnwindSafe(|| scope.run("planted", &gives_up)));
            assert!(outcome.is_err());
        }
    }

    #[test]
    fn one_pair_runs_alone() {
        let only = |points: &str| {
            let of = |name: &str| (name == "PVMMU_PAIRS_ONLY").then(|| points.to_owned());
            Scope::from_environment(of)
        };
        let runs = Cell::new(0);
        let scenario = |plan: &Refusals<'_>| {
            runs.set(runs.get() + 1);
            operation(plan, 4, &Habit::Sound);
        };
        let tried = only("0.3,1.2").expect("two points").run("planted", &scenario);
        assert_eq!((tried, runs.get()), (Tried { pairs: 1, ..Tried::default() }, 1));
        let tried = only("0.3,9.2").expect("two points").run("planted", &scenario);
        assert_eq!((tried, runs.get()), (Tried::default(), 2), "request 9 never came");
        for wrong in ["1", "x.1", "a", "a1.2", "1.2,3.4,a6"] {
            assert!(only(wrong).is_err(), "{wrong}");
        }
        assert_eq!(only("1.2,"), Ok(Scope::Only(vec![Point::Request { number: 1, done: 2 }])));
        assert_eq!(only(" a7"), Ok(Scope::Only(vec![Point::Access(7)])));
    }

    #[test]
    fn the_environment_chooses_all_or_a_sample_and_its_seed() {
        let scope = |all: &'static str, seed: &'static str| {
            Scope::from_environment(|name: &str| match name {
                "PVMMU_PAIRS" => Some(all.to_owned()),
                "PVMMU_PAIRS_SEED" => Some(seed.to_owned()),
                _ => None,
            })
        };
        assert_eq!(scope("all", "7"), Ok(Scope::All));
        assert_eq!(scope("accesses", "7"), Ok(Scope::Accesses));
        assert_eq!(scope("sample", "7"), Ok(Scope::Sample(Random(7))));
        assert!(scope("sample", "seven").is_err() && scope("some", "7").is_err());
        assert!(matches!(Scope::from_environment(|_| None), Ok(Scope::Sample(_))));
    }

    #[test]
    fn a_scenario_that_asks_for_something_else_each_time_is_refused() {
        let runs = Cell::new(0);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            Scope::All.run("planted", &|plan: &Refusals<'_>| {
                runs.set(runs.get() + 1);
                operation(plan, 4 - runs.get().min(3), &Habit::Sound);
            })
        }));
        assert!(outcome.is_err());
    }
}
