//! Every assertion on the model, as every release and in both roles; and the table of all numbers.

mod support;

use xen_model::{Model, Release, Role};

use conformance::{Applies, Assertion, Outcome, assertions, run};
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
        let wanted = if here { outcome == Outcome::Holds } else { outcome != Outcome::Holds };
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

#[test]
fn the_table_of_numbers_says_which_there_are() {
    let table = include_str!("../../../docs/testing-assertions.md");
    let all: Vec<Assertion<Model>> = assertions();
    let mut group = ' ';
    for number in 1..=116 {
        let line = table.lines().find(|line| line.starts_with(&format!("| {number} |")));
        let line = line.unwrap_or_else(|| panic!("no line for {number}"));
        let made: Vec<_> = all.iter().filter(|assertion| assertion.number == number).collect();
        assert_eq!(made.len(), usize::from(line.contains("| conformance |")), "{line}");
        for assertion in made {
            let letter = assertion.name.chars().next().expect("a name");
            assert_eq!(letter.to_ascii_uppercase(), assertion.group, "{}", assertion.name);
            assert!(assertion.group >= group, "{}", assertion.name);
            group = assertion.group;
        }
    }
}
