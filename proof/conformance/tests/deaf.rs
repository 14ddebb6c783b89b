//! No assertion holds on a machine that does nothing, whether it says yes to everything or no.

mod support;

use std::cell::Cell;

use hypercall::raw::{RawCpu, RawHypercalls, RawWrite};
use hypercall::{Cpu, Fault, GuestVa};
use xen_model::{Model, Release, Role};

use conformance::{AssertionOutcome, assertions, run};

/// Assertions that ask Xen for nothing: they look at what is there.
const ONLY_LOOK: [u16; 1] = [106];

/// A machine whose Xen can be made deaf: every hypercall then gives this answer and does nothing.
struct Deaf<'a> {
    machine: &'a Model,
    answer: Cell<Option<i64>>,
}

#[expect(unsafe_code, reason = "hands the promises of its callers on")]
mod seam {
    use super::*;

    impl RawHypercalls for Deaf<'_> {
        unsafe fn raw(&self, number: u32, arguments: [u64; 5]) -> i64 {
            if let Some(answer) = self.answer.get() {
                return answer;
            }
            // SAFETY: the caller's promise is handed on.
            unsafe { self.machine.raw(number, arguments) }
        }
    }

    impl RawCpu for Deaf<'_> {
        unsafe fn write(&self, address: u64, how: RawWrite, value: u64) -> Option<u64> {
            // SAFETY: the caller's promise is handed on.
            unsafe { self.machine.write(address, how, value) }
        }

        unsafe fn load_selector(&self, selector: u16) -> bool {
            // SAFETY: the caller's promise is handed on.
            unsafe { self.machine.load_selector(selector) }
        }
    }

    // SAFETY: the machine has no memory that Rust knows of: what it says concerns the test alone.
    unsafe impl Cpu for Deaf<'_> {
        fn load(&self, va: GuestVa) -> Result<u64, Fault> {
            Cpu::load(self.machine, va)
        }

        unsafe fn store(&self, va: GuestVa, value: u64) -> Result<(), Fault> {
            // SAFETY: the caller's promise is handed on.
            unsafe { Cpu::store(self.machine, va, value) }
        }

        unsafe fn compare_exchange(&self, va: GuestVa, old: u64, new: u64) -> Result<u64, Fault> {
            // SAFETY: the caller's promise is handed on.
            unsafe { Cpu::compare_exchange(self.machine, va, old, new) }
        }

        fn ticks(&self) -> u64 {
            0
        }
    }
}

pv_tests::forward_accesses!([] Deaf<'_>);

/// Makes each assertion, on a machine of its own, which always gives `answer`.
fn none_holds_where_the_answer_is(answer: i64) {
    for at in 0..assertions::<Deaf<'_>>().len() {
        let model = support::machine(Release::V4_17, Role::DomU);
        let machine = Deaf { machine: &model, answer: Cell::new(None) };
        let mut env = support::env(&machine, &model);
        machine.answer.set(Some(answer));
        let assertion = &assertions()[at];
        let outcome = run(assertion, &mut env);
        let AssertionOutcome::Failed(reason) = outcome else {
            panic!("{}: {outcome:?}", assertion.name)
        };
        // The clean-up fails too, but it is not what tells.
        let only_left = reason.starts_with("left behind");
        assert_eq!(only_left, ONLY_LOOK.contains(&assertion.number), "{}", assertion.name);
    }
}

#[test]
fn no_assertion_holds_where_all_is_accepted() {
    none_holds_where_the_answer_is(0);
}

#[test]
fn no_assertion_holds_where_all_is_refused() {
    none_holds_where_the_answer_is(-22);
}
