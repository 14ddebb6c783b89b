//! No assertion holds on a machine that does nothing, whether it says yes to everything or no.

mod support;

use std::cell::Cell;

use hypercall::raw::{RawCpu, RawHypercalls, RawWrite};
use hypercall::{AccessError, Cpu, Fault, FrameAccess, GuestVa, Mfn, Pfn, Pte};
use x86_64::structures::paging::PageTableIndex;
use xen_model::{Model, Release, Role};

use conformance::{AssertionOutcome, assertions, run};

/// Assertions that ask Xen for nothing: they look at what is there.
const ONLY_LOOK: [u16; 1] = [106];

/// A machine whose Xen can be made deaf: every hypercall then gives this answer and does nothing.
struct Deaf<'a> {
    model: &'a Model,
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
            unsafe { self.model.raw(number, arguments) }
        }
    }

    impl RawCpu for Deaf<'_> {
        unsafe fn write(&self, address: u64, how: RawWrite, value: u64) -> Option<u64> {
            // SAFETY: the caller's promise is handed on.
            unsafe { self.model.write(address, how, value) }
        }

        unsafe fn load_selector(&self, selector: u16) -> bool {
            // SAFETY: the caller's promise is handed on.
            unsafe { self.model.load_selector(selector) }
        }
    }

    // SAFETY: the machine has no memory that Rust knows of: what it says concerns the test alone.
    unsafe impl Cpu for Deaf<'_> {
        fn load(&self, va: GuestVa) -> Result<u64, Fault> {
            Cpu::load(self.model, va)
        }

        unsafe fn store(&self, va: GuestVa, value: u64) -> Result<(), Fault> {
            // SAFETY: the caller's promise is handed on.
            unsafe { Cpu::store(self.model, va, value) }
        }

        unsafe fn compare_exchange(&self, va: GuestVa, old: u64, new: u64) -> Result<u64, Fault> {
            // SAFETY: the caller's promise is handed on.
            unsafe { Cpu::compare_exchange(self.model, va, old, new) }
        }

        fn ticks(&self) -> u64 {
            0
        }
    }

    // SAFETY: the machine has no memory that Rust knows of: what it says concerns the test alone.
    unsafe impl FrameAccess for Deaf<'_> {
        fn read_entry(&self, table: Pfn, index: PageTableIndex) -> Result<Pte, AccessError> {
            self.model.read_entry(table, index)
        }

        unsafe fn write_entry(
            &self,
            table: Pfn,
            index: PageTableIndex,
            pte: Pte,
        ) -> Result<(), AccessError> {
            // SAFETY: the caller's promise is handed on.
            unsafe { self.model.write_entry(table, index, pte) }
        }

        fn read_bytes(&self, pfn: Pfn, offset: usize, into: &mut [u8]) -> Result<(), AccessError> {
            self.model.read_bytes(pfn, offset, into)
        }

        unsafe fn write_bytes(&self, pfn: Pfn, at: usize, from: &[u8]) -> Result<(), AccessError> {
            // SAFETY: the caller's promise is handed on.
            unsafe { self.model.write_bytes(pfn, at, from) }
        }

        fn machine_to_phys(&self, mfn: Mfn) -> Option<Pfn> {
            self.model.machine_to_phys(mfn)
        }

        fn direct_map(&self, pfn: Pfn) -> Result<GuestVa, AccessError> {
            self.model.direct_map(pfn)
        }
    }
}

/// Makes each assertion, on a machine of its own, which always gives `answer`.
fn none_holds_where_the_answer_is(answer: i64) {
    for at in 0..assertions::<Deaf<'_>>().len() {
        let model = support::machine(Release::V4_17, Role::DomU);
        let machine = Deaf { model: &model, answer: Cell::new(None) };
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
