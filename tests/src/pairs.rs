//! Every pair of refusals: an operation with one of its requests refused, and with one of those
//! refused, too, that follow, the undoing of the first included.
//!
//! A test names its crate and itself and gives a scenario: a guest on a model, one operation on a
//! machine around it, and then, on the model itself, everything taken apart and accounted for
//! ([`Account`](crate::account::Account)). The scenario panics if something is wrong.
//!
//! | variable | |
//! |---|---|
//! | `PVMMU_PAIRS=all` | every pair, not only a sample of them |
//! | `PVMMU_PAIRS_SEED=N` | this sample |
//! | `PVMMU_PAIRS_ONLY=r1.d1,r2.d2` | one run: `r1` refused after `d1` elements, `r2` after `d2` |
//!
//! Each test ends with a line `pairs: CRATE NAME COUNT`, which `cargo xtask check pairs` adds up.

use std::cell::Cell;
use std::env;
use std::hash::{BuildHasher as _, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use hypercall::{Asked, Errno, FailEach, Hypercall, Refusal, Refusals};

/// Requests that a scenario can have.
const REQUESTS_MAX: usize = 4096;
/// What a sample has of first refusals, and of second ones for each of them.
const FIRSTS: usize = 12;
const SECONDS: usize = 5;
/// Elements of a long request that a sample looks at, besides the first, second, middle and last.
const PLACES: usize = 2;
/// What Xen answers, in turn.
const ERRNOS: [Errno; 3] = [Errno::ENOMEM, Errno::EBUSY, Errno::EINVAL];

/// What is refused in a run of a scenario.
pub type Plan<'r> = Refusals<'r>;

/// Where a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Point {
    request: usize,
    done: usize,
}

/// How many runs there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    /// With one refusal.
    pub singles: usize,
    /// With two.
    pub pairs: usize,
}

/// Which pairs are tried.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    All,
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
/// assert_eq!((tried.singles, tried.pairs), (2, 1));
/// ```
///
/// # Panics
/// With the scenario, after a line that says how to run the same pair again; or if two runs of it
/// do not ask the same, or it asks for nothing.
pub fn run(package: &str, name: &str, scenario: impl Fn(&Plan<'_>)) -> Tried {
    let scope = match Scope::from_environment(|name| env::var(name).ok()) {
        Ok(scope) => scope,
        Err(wrong) => panic!("{wrong}"),
    };
    let tried = scope.run(&format!("{package} {name}"), &scenario);
    println!("pairs: {package} {name} {} (and {} single refusals)", tried.pairs, tried.singles);
    tried
}

/// A machine around `machine` that refuses what `plan` says.
pub const fn around<'r, M>(machine: M, plan: &'r Plan<'r>) -> FailEach<'r, M> {
    FailEach::new(machine, plan)
}

impl Scope {
    fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        if let Some(points) = variable("PVMMU_PAIRS_ONLY") {
            let parsed = points.split(',').filter(|word| !word.is_empty()).map(Point::parse);
            let parsed: Option<Vec<_>> = parsed.collect();
            return match parsed {
                Some(points) if points.len() <= 2 => Ok(Self::Only(points)),
                _ => Err(format!("PVMMU_PAIRS_ONLY={points} is not like 3.0,5.1")),
            };
        }
        match variable("PVMMU_PAIRS").as_deref() {
            Some("all") => Ok(Self::All),
            None | Some("" | "sample") => {
                let seed = match variable("PVMMU_PAIRS_SEED") {
                    Some(seed) => seed.parse().map_err(|_| format!("{seed:?} is no seed"))?,
                    None => RandomState::new().hash_one(0) >> 32,
                };
                Ok(Self::Sample(Random(seed)))
            }
            Some(other) => Err(format!("PVMMU_PAIRS={other} is neither \"all\" nor \"sample\"")),
        }
    }

    fn run(mut self, name: &str, scenario: &impl Fn(&Plan<'_>)) -> Tried {
        if let Self::Only(points) = &self {
            let run = attempt(name, points, scenario);
            let tried = |count| usize::from(points.len() == count && run.reached == count);
            return Tried { singles: tried(1), pairs: tried(2) };
        }
        if let Self::Sample(Random(seed)) = &self {
            println!("PVMMU_PAIRS_SEED={seed} chooses this sample of {name}");
        }
        let undisturbed = attempt(name, &[], scenario).asked;
        assert!(!undisturbed.is_empty(), "{name} asks Xen for nothing");
        let mut tried = Tried::default();
        let firsts = points(&undisturbed, 0, &mut self);
        for first in self.choose(firsts, FIRSTS) {
            let single = attempt(name, &[first], scenario);
            single.assert_begins_as(&undisturbed, first, name);
            tried.singles += 1;
            let seconds = behind(&single.asked, first, &mut self);
            for second in self.choose(seconds, SECONDS) {
                let both = attempt(name, &[first, second], scenario);
                both.assert_begins_as(&single.asked, second, name);
                tried.pairs += 1;
            }
        }
        tried
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

/// What a run came to.
struct Run {
    asked: Vec<Asked>,
    /// Refusals that were due.
    reached: usize,
}

impl Run {
    /// Up to the last refusal, each run with it asks what the run without it asked.
    fn assert_begins_as(&self, without: &[Asked], last: Point, name: &str) {
        let both = [&self.asked, without].map(|asked| asked.get(..=last.request));
        let same = both[0].is_some() && both[0] == both[1];
        assert!(same, "{name} does not ask the same each time, up to {last:?}");
    }
}

/// Runs the scenario with these refusals.
fn attempt(name: &str, points: &[Point], scenario: &impl Fn(&Plan<'_>)) -> Run {
    let refusals: Vec<Refusal> =
        points.iter().enumerate().map(|(at, point)| Point::refusal(at, point)).collect();
    let asked = vec![Cell::new(None); REQUESTS_MAX];
    let plan = Refusals::new(&refusals, &asked);
    let outcome = catch_unwind(AssertUnwindSafe(|| scenario(&plan)));
    let run = Run { asked: asked.iter().map_while(Cell::get).collect(), reached: plan.refused() };
    if let Err(panic) = outcome {
        let words: Vec<String> = points.iter().map(Point::word).collect();
        eprintln!("{name} fails alone with PVMMU_PAIRS_ONLY=\"{}\"", words.join(","));
        for (at, point) in points.iter().enumerate() {
            let asked = run.asked.get(point.request);
            let what = asked.map_or_else(|| "not asked".to_owned(), Asked::to_string);
            let Refusal { errno, .. } = refusals[at];
            eprintln!("  request {} ({what}): {errno} after {}", point.request, point.done);
        }
        resume_unwind(panic);
    }
    assert!(run.asked.len() < REQUESTS_MAX, "{name} asks more than is written down");
    run
}

/// All places of the requests from number `from` on.
fn points(asked: &[Asked], from: usize, scope: &mut Scope) -> Vec<Point> {
    let mut points = Vec::new();
    for (request, asked) in asked.iter().enumerate().skip(from) {
        let dones = scope.dones(asked.elements);
        points.extend(dones.into_iter().map(|done| Point { request, done }));
    }
    points
}

/// All places behind `first`. Xen stops at the first element that it refuses, except with grants,
/// which it answers one by one.
fn behind(asked: &[Asked], first: Point, scope: &mut Scope) -> Vec<Point> {
    let mut behind = Vec::new();
    let Asked { hypercall, elements } = asked[first.request];
    if matches!(hypercall, Hypercall::GrantTableOp(_)) {
        let dones = scope.dones(elements).into_iter().filter(|done| *done > first.done);
        behind.extend(dones.map(|done| Point { done, ..first }));
    }
    behind.extend(points(asked, first.request + 1, scope));
    behind
}

impl Point {
    fn parse(word: &str) -> Option<Self> {
        let (request, done) = word.trim().split_once('.')?;
        Some(Self { request: request.parse().ok()?, done: done.parse().ok()? })
    }

    fn word(&self) -> String {
        format!("{}.{}", self.request, self.done)
    }

    /// The refusal of the point that is number `at` of its run.
    fn refusal(at: usize, point: &Self) -> Refusal {
        let errno = ERRNOS[(point.request + point.done + at) % ERRNOS.len()];
        Refusal { request: point.request as u64, errno, done: point.done }
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

    use hypercall::{
        Call, DomId, GrantAccess, GrantMap, GrantRef, Grants as _, GuestVa, Hypercalls as _,
        MmuExtOp, Pfn, Request,
    };
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
    fn operation(plan: &Plan<'_>, count: usize, habit: &Habit) {
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

    /// What a run panics with, and the points of the run.
    fn failure(scope: Scope, habit: &Habit) -> (String, Vec<u64>) {
        let last = RefCell::new(Vec::new());
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            scope.run("planted", &|plan: &Plan<'_>| {
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
            let sound = |plan: &Plan<'_>| operation(plan, count, &Habit::Sound);
            let tried = Scope::All.run("planted", &sound);
            assert_eq!(tried, Tried { singles: count, pairs: pairs(count) });
            let sample = Scope::Sample(Random(3)).run("planted", &sound);
            assert!(sample.singles <= FIRSTS && sample.pairs <= FIRSTS * SECONDS, "{sample:?}");
            assert!(count == 1 || sample.pairs > 0, "{sample:?}");
        }
    }

    #[test]
    fn two_grants_of_one_request_are_a_pair() {
        let tried = Scope::All.run("planted", &|plan: &Plan<'_>| {
            let model = Model::builder().build().expect("a guest");
            let va = GuestVa::new(0x5000).expect("user half");
            let mut maps = [GrantMap::kernel(va, DomId(7), GrantRef(8), GrantAccess::ReadOnly); 4];
            // SAFETY: there is no such domain, so nothing is mapped.
            unsafe { around(&model, plan).grant_map(&mut maps) }.expect("looked at");
        });
        assert_eq!(tried, Tried { singles: 4, pairs: 6 });
    }

    #[test]
    fn one_pair_runs_alone() {
        let only = |points: &str| {
            let of = |name: &str| (name == "PVMMU_PAIRS_ONLY").then(|| points.to_owned());
            Scope::from_environment(of)
        };
        let runs = Cell::new(0);
        let scenario = |plan: &Plan<'_>| {
            runs.set(runs.get() + 1);
            operation(plan, 4, &Habit::Sound);
        };
        let tried = only("0.3,1.2").expect("two points").run("planted", &scenario);
        assert_eq!((tried, runs.get()), (Tried { singles: 0, pairs: 1 }, 1));
        let tried = only("0.3,9.2").expect("two points").run("planted", &scenario);
        assert_eq!((tried, runs.get()), (Tried::default(), 2), "request 9 never came");
        for wrong in ["1", "1.2,", "x.1", "1.2,3.4,5.6"] {
            assert_eq!(only(wrong).is_err(), wrong != "1.2,", "{wrong}");
        }
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
        assert_eq!(scope("sample", "7"), Ok(Scope::Sample(Random(7))));
        assert!(scope("sample", "seven").is_err() && scope("some", "7").is_err());
        assert!(matches!(Scope::from_environment(|_| None), Ok(Scope::Sample(_))));
    }

    #[test]
    fn a_scenario_that_asks_for_something_else_each_time_is_refused() {
        let runs = Cell::new(0);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            Scope::All.run("planted", &|plan: &Plan<'_>| {
                runs.set(runs.get() + 1);
                operation(plan, 4 - runs.get().min(3), &Habit::Sound);
            })
        }));
        assert!(outcome.is_err());
    }
}
