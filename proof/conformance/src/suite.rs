//! The assertions as a list, and how one is run.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::check::Check;
use crate::env::Env;
use crate::{Target, group};

/// Where an assertion can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applies {
    /// Everywhere.
    Everywhere,
    /// As dom0 only.
    Dom0,
    /// As domU only.
    DomU,
}

/// One numbered assertion.
#[derive(Debug)]
pub struct Assertion<M> {
    /// Its number in docs/testing-assertions.md.
    pub number: u16,
    /// The group it belongs to, `'A'` to `'N'`.
    pub group: char,
    /// What it says, number included.
    pub name: &'static str,
    /// Where.
    pub applies: Applies,
    run: fn(&mut Env<'_, M>) -> Check,
}

/// What came of an assertion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AssertionOutcome {
    /// It holds.
    Holds,
    /// It does not: what was seen instead.
    Failed(String),
    /// It cannot be made here: why.
    NotHere(&'static str),
}

/// First number of each group.
const GROUPS: [(char, u16); 14] = [
    ('A', 1),
    ('B', 18),
    ('C', 33),
    ('D', 47),
    ('E', 51),
    ('F', 66),
    ('G', 76),
    ('H', 79),
    ('I', 92),
    ('J', 98),
    ('K', 103),
    ('L', 106),
    ('M', 110),
    ('N', 115),
];

impl<M> Assertion<M> {
    /// Returns the assertion of a function, whose name is a letter, three digits and words.
    pub(crate) fn new(
        name: &'static str,
        applies: Applies,
        run: fn(&mut Env<'_, M>) -> Check,
    ) -> Self {
        let number = name.get(1..4).and_then(|digits| digits.parse().ok()).unwrap_or(0);
        let group = GROUPS.iter().rev().find(|(_, first)| *first <= number);
        Self { number, group: group.map_or('?', |(group, _)| *group), name, applies, run }
    }
}

/// Assertions of the functions named, with where they apply.
macro_rules! assertions {
    ($($applies:ident: $($name:ident),+;)+) => {
        alloc::vec![
            $($($crate::Assertion::new(stringify!($name), $crate::Applies::$applies, $name),)+)+
        ]
    };
}

/// All assertions, by number.
///
/// ```
/// use xen_model::Model;
///
/// let assertions = conformance::assertions::<Model>();
/// println!("{} of them", assertions.len());
/// ```
#[must_use]
pub fn assertions<M: Target>() -> Vec<Assertion<M>> {
    let mut all = group::all();
    all.sort_by_key(|assertion| assertion.number);
    all
}

/// Makes one assertion and cleans up behind it.
pub fn run<M: Target>(assertion: &Assertion<M>, env: &mut Env<'_, M>) -> AssertionOutcome {
    match (assertion.applies, env.facts().boot.is_dom0) {
        (Applies::Dom0, false) => return AssertionOutcome::NotHere("dom0 only"),
        (Applies::DomU, true) => return AssertionOutcome::NotHere("domU only"),
        _ => {}
    }
    let seen = (assertion.run)(env);
    let cleaned = env.clean_up();
    match (seen, cleaned) {
        (Ok(()), Ok(())) => AssertionOutcome::Holds,
        (Err(seen), Ok(())) => AssertionOutcome::Failed(seen),
        (Ok(()), Err(left)) => AssertionOutcome::Failed(format!("left behind: {left}")),
        (Err(seen), Err(left)) => AssertionOutcome::Failed(format!("{seen}; left behind: {left}")),
    }
}
