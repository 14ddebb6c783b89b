//! Every assertion on the model, as every release and in both roles; and the table of all numbers.

mod support;

use std::collections::BTreeSet;

use xen_model::{Model, Release, Role};

use conformance::{Applies, Assertion, AssertionOutcome, assertions, run};
use support::machine;

/// Makes every assertion on a machine; after each the model recounts all references (number 17).
fn all_hold_on(model: &Model, release: Release, role: Role) {
    let mut env = support::env(model, model);
    for assertion in assertions() {
        let here = match assertion.applies {
            Applies::Everywhere => true,
            Applies::Dom0 => role == Role::Dom0,
            Applies::DomU => role == Role::DomU,
        };
        let outcome = run(&assertion, &mut env);
        let wanted = if here {
            outcome == AssertionOutcome::Holds
        } else {
            outcome != AssertionOutcome::Holds
        };
        assert!(wanted, "{release:?} {role:?} {}: {outcome:?}", assertion.name);
        // Nor has an assertion used a translation that it should have flushed.
        let violations = model.take_violations();
        assert!(violations.is_empty(), "{release:?} {}: {violations:?}", assertion.name);
        let audit = if release == Release::V4_17 { model.audit() } else { Ok(()) };
        assert!(audit.is_ok(), "{release:?} {role:?} after {}: {audit:?}", assertion.name);
    }
}

fn all_hold(release: Release, role: Role) {
    all_hold_on(&machine(release, role), release, role);
}

#[test]
fn all_hold_on_4_14() {
    all_hold(Release::V4_14, Role::Dom0);
    all_hold(Release::V4_14, Role::DomU);
}

#[test]
fn all_hold_on_4_17() {
    all_hold(Release::V4_17, Role::Dom0);
    all_hold(Release::V4_17, Role::DomU);
}

#[test]
fn all_hold_on_4_20() {
    all_hold(Release::V4_20, Role::Dom0);
    all_hold(Release::V4_20, Role::DomU);
}

#[test]
fn all_hold_when_hypercalls_are_interrupted() {
    for every in [2, 3, 7] {
        let model = machine(Release::V4_17, Role::DomU);
        model.preempt_every(every);
        all_hold_on(&model, Release::V4_17, Role::DomU);
    }
}

/// The numbers that stand in the names of the model's own tests, each with its group's letter.
fn numbers_left_to_the_model() -> BTreeSet<(char, u16)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../xen-model/tests/assertions");
    let mut numbers = BTreeSet::new();
    for file in std::fs::read_dir(folder).expect("a folder") {
        let text = std::fs::read_to_string(file.expect("a file").path()).expect("text");
        let tests = text.split("#[test]\nfn ").skip(1);
        for word in tests.flat_map(|test| test.split('(').next().unwrap_or_default().split('_')) {
            let Some((letter, digits)) = word.split_at_checked(1) else { continue };
            if let (Ok(letter), 3, Ok(number)) = (letter.parse(), digits.len(), digits.parse()) {
                numbers.insert((letter, number));
            }
        }
    }
    numbers
}

#[test]
fn the_table_of_numbers_says_which_there_are_and_where() {
    let table = include_str!("../../../docs/testing-assertions.md");
    let all: Vec<Assertion<Model>> = assertions();
    let left = numbers_left_to_the_model();
    let mut group = ' ';
    for line in table.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if let [_, heading, ..] = cells[..]
            && let Some(letter) = heading.strip_prefix("**").and_then(|rest| rest.chars().next())
        {
            group = letter;
        }
        let [_, number, _, place, _, rest, _] = cells[..] else { continue };
        let Ok(number) = number.parse::<u16>() else { continue };
        let made: Vec<_> = all.iter().filter(|assertion| assertion.number == number).collect();
        assert_eq!(made.len(), usize::from(place == "conformance"), "{line}");
        for assertion in made {
            let letter = assertion.name.chars().next().expect("a name");
            assert_eq!(letter.to_ascii_uppercase(), assertion.group, "{}", assertion.name);
            assert_eq!(group, assertion.group, "{}", assertion.name);
        }
        let is_left = left.contains(&(group.to_ascii_lowercase(), number));
        assert_eq!(is_left, !rest.is_empty(), "{line}");
        assert!(is_left || place == "conformance", "{line}");
    }
    assert_eq!(table.lines().filter(|line| is_row(line)).count(), 116);
}

/// Whether a line of the table is a number's.
fn is_row(line: &str) -> bool {
    line.split('|').nth(1).is_some_and(|cell| cell.trim().parse::<u16>().is_ok())
}
