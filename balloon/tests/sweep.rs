//! Every request of a way out and in refused in turn, after every count of elements that is worth
//! trying, and every two of them: after each step each frame is somewhere, and at the end the map,
//! the tables, M2P and Xen's count agree.

mod common;

use balloon::{Balloon, Next, Wipe, WorkStorage};
use common::{FREE, Guest, PAGES, SPAN, Stack, step, words};
use hypercall::{Errno, FailNth, Machine, Refusal};

type Storage = WorkStorage<520>;

/// Frames that go out: a step of many, one of few.
const OUT: u64 = 540;

/// Goes out and in on `machine`, however often it refuses, and checks every step. Between steps the
/// guest is whole.
fn out_and_in<M: Machine>(guest: &Guest, machine: &M, stack: &mut Stack) {
    let p2m = guest.p2m();
    let (mut words, mut storage) = (words(), Storage::new());
    let asked = Balloon::new((&guest.model, &p2m), &mut words, 0, Wipe::Never);
    let (mut balloon, _) = asked.expect("the model answers");
    balloon.leave_out(SPAN - PAGES);
    for target in [PAGES - OUT, PAGES] {
        balloon.set_target(target);
        let mut steps = 0;
        loop {
            let step = step((guest, machine, &p2m), &mut balloon, stack, &mut storage);
            let xen = guest.model.guest().total_pages();
            let accounts = balloon::Accounts { xen: Some(xen), ..step.accounts };
            assert!(accounts.is_balanced(), "{step:?}: {accounts}");
            let held = balloon.ballooned() + accounts.set_aside;
            assert_eq!(stack.0.len() as u64 + held, FREE, "{step:?}: frames were lost");
            steps += 1;
            assert!(steps < 40, "no end: {step:?}");
            match step.next {
                Next::Again => {}
                Next::Wait { pause, .. } => assert!(pause <= 2, "{step:?}"),
                Next::Idle => break,
            }
        }
    }
    assert_eq!(balloon.ballooned(), 0);
    guest.check();
}

fn refusals(request: u64) -> impl Iterator<Item = Refusal> {
    [0, 3, 519].map(|done| Refusal { request, errno: Errno::ENOMEM, done }).into_iter()
}

#[test]
fn each_request_may_be_refused() {
    for request in 0.. {
        let mut reached = false;
        for refusal in refusals(request) {
            let guest = Guest::new();
            let machine = FailNth::new(&guest.model, refusal);
            out_and_in(&guest, &machine, &mut guest.stack());
            reached |= machine.has_refused();
        }
        if !reached {
            assert!(request >= 10, "{request} requests are fewer than there are");
            return;
        }
    }
}

#[test]
fn each_two_requests_may_be_refused() {
    for first in 0..12 {
        for behind in 1..=5 {
            for (first, second) in refusals(first).zip(refusals(first + behind)) {
                let guest = Guest::new();
                let inner = FailNth::new(&guest.model, second);
                let machine = FailNth::new(&inner, first);
                out_and_in(&guest, &machine, &mut guest.stack());
            }
        }
    }
}
