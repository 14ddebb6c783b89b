//! Anything may happen between two steps and within them: targets of every size, requests refused
//! at every place, a toolstack that moves the maximum, domains that take what Xen has free, an
//! allocator whose frames are in use. A reference of plain sets says where each pfn must be.

mod common;

use std::collections::BTreeSet;

use arbtest::arbitrary::{Result, Unstructured};
use balloon::{Accounts, Balloon, Next, StepStorage, Wipe};
use common::{FREE, FREE_FROM, Guest, PAGES, SPAN, Stack, settle, step, words};
use hypercall::middleware::{FailNth, Refusal};
use hypercall::{Errno, Frame, FrameAccess as _, Pfn};

/// Things that happen in a run.
const EVENTS: usize = 60;

/// Room for a block of 2 MiB and some.
type Storage = StepStorage<560>;

/// Frames that the guest uses, each with its number in it.
#[derive(Default)]
struct InUse(Vec<Frame>);

impl InUse {
    /// Takes frames into use, or out of it.
    fn change(&mut self, guest: &Guest, stack: &mut Stack, wanted: usize) {
        while self.0.len() > wanted {
            stack.0.push(self.0.swap_remove(0));
        }
        while self.0.len() < wanted {
            let Some(frame) = stack.0.pop() else { return };
            let mfn = guest.p2m.mfn(frame.pfn()).expect("frames of the allocator have memory");
            guest.model.poke(mfn, 5, frame.pfn().raw());
            self.0.push(frame);
        }
    }

    /// What is in them is what was put there, and the guest reads it through its own mapping.
    fn verify(&self, guest: &Guest) {
        for frame in &self.0 {
            let mut word = [0; 8];
            guest.model.read_bytes(frame.pfn(), 40, &mut word).expect("mapped");
            assert_eq!(u64::from_le_bytes(word), frame.pfn().raw(), "{frame:?}");
        }
    }
}

/// Each pfn that may be the balloon's is in one place, and the map says the same of it.
fn compare(guest: &Guest, balloon: &Balloon<'_>, stack: &Stack, in_use: &InUse) {
    let free = stack.0.iter().chain(&in_use.0).map(|frame| frame.pfn().raw());
    let free: BTreeSet<u64> = free.collect();
    assert_eq!(free.len(), stack.0.len() + in_use.0.len(), "a frame is twice with the guest");
    let mut aside = 0;
    for pfn in (FREE_FROM..FREE_FROM + FREE).chain(PAGES..SPAN) {
        let (held, populated) =
            (balloon.holds(Pfn::new(pfn)), guest.p2m.mfn(Pfn::new(pfn)).is_ok());
        assert_ne!(held, free.contains(&pfn), "pfn {pfn:#x} has no owner, or two");
        assert!(held || populated, "pfn {pfn:#x} is with the allocator and has no memory");
        aside += u64::from(held && populated);
    }
    let accounts = balloon.accounts(&guest.model, guest.p2m);
    assert_eq!(accounts.set_aside, aside);
    assert!(accounts.is_balanced(), "{accounts}");
    guest.model.audit().expect("every reference has its holder");
}

fn event(
    random: &mut Unstructured<'_>,
    guest: &Guest,
    balloon: &mut Balloon<'_>,
    stack: &mut Stack,
    in_use: &mut InUse,
    storage: &mut Storage,
) -> Result<()> {
    match random.int_in_range(0..=9)? {
        0 => {
            let extreme = [0, 1, u64::MAX, PAGES, SPAN];
            let target = random.int_in_range(0..=SPAN + 50)?;
            let _ = balloon.set_target(*random.choose(&[&extreme[..], &[target; 5]].concat())?);
        }
        1 => in_use.change(guest, stack, random.int_in_range(0..=300)?),
        2 => guest.model.guest().set_maximum(random.int_in_range(0..=SPAN + 100)?),
        3 => guest.model.leave_free(random.int_in_range(0..=1500)?),
        _ => {
            let (request, done) = (random.int_in_range(0..=9)?, random.int_in_range(0..=600)?);
            let refusal = Refusal { request, errno: Errno::ENOMEM, done };
            let machine = FailNth::new(&guest.model, refusal);
            let refusal = Refusal { request: random.int_in_range(0..=30)?, ..refusal };
            let machine = FailNth::new(&machine, refusal);
            let step = step(guest.on(&machine), balloon, stack, storage);
            let xen = Some(guest.model.guest().total_pages());
            let accounts = Accounts { xen, ..step.accounts };
            assert!(accounts.is_balanced(), "{step:?}: {accounts}");
            if let Next::Wait { pause, .. } = step.next {
                assert!((1..=balloon::PAUSE_MAX).contains(&pause), "{step:?}");
            }
        }
    }
    Ok(())
}

/// One life: events, then a way to each goal with nothing in the way.
fn live(random: &mut Unstructured<'_>) -> Result<()> {
    let guest = Guest::new();
    let (mut words, mut stack) = (words(), guest.stack());
    let asked = Balloon::new(&guest.around(), &mut words, 850, Wipe::Never);
    let (mut balloon, _) = asked.expect("the model answers");
    balloon.add_empty(guest.p2m, guest.empty()).expect("empty pfns");
    let (mut in_use, mut storage) = (InUse::default(), Storage::new());
    in_use.change(&guest, &mut stack, 100);
    for _ in 0..EVENTS {
        event(random, &guest, &mut balloon, &mut stack, &mut in_use, &mut storage)?;
        compare(&guest, &balloon, &stack, &in_use);
    }
    in_use.verify(&guest);
    // Nothing is in the way any more.
    guest.model.guest().set_maximum(SPAN);
    guest.model.leave_free(u64::MAX);
    let around = guest.around();
    for target in [PAGES - 900, SPAN] {
        let _ = balloon.set_target(target);
        let last = settle(around, &mut balloon, &mut stack, &mut storage);
        assert_eq!(last.next, Next::Idle, "{last:?}");
        assert_eq!(last.accounts.xen, Some(target));
    }
    in_use.verify(&guest);
    assert_eq!(
        stack.0.len() + in_use.0.len(),
        usize::try_from(FREE + SPAN - PAGES).expect("small")
    );
    guest.check();
    Ok(())
}

#[test]
fn whatever_happens_each_frame_is_somewhere_and_the_goal_is_reached_in_the_end() {
    arbtest::arbtest(live);
}

#[test]
fn a_frame_set_aside_behind_the_last_one_looked_at_is_found_again() {
    arbtest::arbtest(live).seed(0xd569_b37d_0000_0078);
}
