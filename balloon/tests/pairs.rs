//! Every pair of refusals on every way of the balloon: each request of a way, each element of it,
//! the undoing of the first refusal included. After each step every pfn is in one place; at the end
//! all frames are back, and the map, the tables, M2P and Xen's count agree.

mod common;

use std::env;

use balloon::{Accounts, Balloon, BalloonError, BalloonStep, Next, Reserve, StepStorage, Wipe};
use common::{FREE, FREE_FROM, Guest, PAGES, SPAN, Stack, config, step, words};
use hypercall::Errno;
use hypercall::memory::{Extent, MemoryOp, Reservation};
use hypercall::middleware::{FailNth, Refusal, Refusals};
use hypercall::{DomId, Hypercalls as _, Machine, Pfn};
use pv_tests::account::Account;
use pv_tests::pairs::{self, around};
use xen_model::{DomainConfig, Model, Role};

/// Room for so many frames, of which 8 go out at once and 7 come in.
type Storage = StepStorage<8>;

/// Steps after which there is an end, whatever is refused twice.
const STEPS_MAX: usize = 60;

/// A guest that changes its size, and what the pages are that it does that with.
struct Scene<'g, M> {
    guest: &'g Guest,
    machine: &'g M,
    balloon: Balloon<'g>,
    stack: Stack,
    /// Empty pfns that the balloon was given.
    more: u64,
}

impl<'g, M: Machine> Scene<'g, M> {
    /// Nothing, if even the first question is refused: then nothing was taken.
    fn begin(guest: &'g Guest, machine: &'g M, words: &'g mut [u64]) -> Option<Self> {
        match Balloon::new(&guest.on(machine), words, 0, Wipe::Always) {
            Ok((balloon, _)) => {
                Some(Self { guest, machine, balloon, stack: guest.stack(), more: 0 })
            }
            Err(error) => {
                assert!(matches!(error, BalloonError::Refused(_)), "{error}");
                guest.check();
                None
            }
        }
    }

    /// Each pfn is with the allocator, with Xen, or set aside: in one of them.
    fn account(&self) {
        let free = (FREE_FROM..FREE_FROM + FREE).map(Pfn::new);
        let more = PAGES..PAGES + self.more;
        let all = || free.clone().chain(more.clone().map(Pfn::new));
        let mut account = Account::of(all());
        account.found("free", self.stack.0.iter().map(|frame| frame.pfn()));
        let held = || all().filter(|pfn| self.balloon.holds(*pfn));
        account.found("ballooned", held().filter(|pfn| self.guest.p2m.mfn(*pfn).is_err()));
        account.found("set aside", self.balloon.aside(self.guest.p2m));
        account.assert_balanced();
    }

    /// A step; what it says of the accounts is so.
    fn step<const N: usize>(&mut self, storage: &mut StepStorage<N>) -> BalloonStep {
        let around = self.guest.on(self.machine);
        let step = step(around, &mut self.balloon, &mut self.stack, storage);
        let xen = Some(self.guest.model.guest().total_pages());
        let accounts = Accounts { xen, ..step.accounts };
        let aside = self.balloon.aside(self.guest.p2m).count() as u64;
        assert_eq!((accounts.stray, accounts.set_aside), (0, aside), "{step:?}");
        self.account();
        self.guest.model.audit().expect("every reference has its holder");
        step
    }

    /// Steps until the size is right, whatever is refused on the way.
    fn go<const N: usize>(&mut self, target: u64, storage: &mut StepStorage<N>) {
        self.balloon.set_target(target);
        for _ in 0..STEPS_MAX {
            let step = self.step(storage);
            match step.next {
                Next::Again => {}
                Next::Wait { pause, .. } => assert!(pause <= 4, "{step:?}"),
                Next::Idle => return,
            }
        }
        panic!("no end");
    }

    /// Everything is taken apart: all frames are back.
    fn end(mut self, storage: &mut Storage) {
        self.go(PAGES, storage);
        assert_eq!((self.stack.0.len() as u64, self.balloon.ballooned()), (FREE, self.more));
        self.account();
        let accounts = self.balloon.accounts(&self.guest.model, self.guest.p2m);
        assert_eq!((accounts.set_aside, accounts.surplus()), (0, 0), "{accounts}");
        self.guest.check();
    }
}

#[test]
fn frames_go_out_and_come_back_whichever_two_requests_are_refused() {
    pairs::run("balloon", "out_and_in", |plan: &Refusals<'_>| {
        let guest = Guest::new();
        let machine = around(&guest.model, plan);
        let mut words = words();
        let Some(mut scene) = Scene::begin(&guest, &machine, &mut words) else { return };
        let mut storage = Storage::new();
        // A whole step, and a part of one.
        scene.go(PAGES - 11, &mut storage);
        scene.end(&mut storage);
    });
}

#[test]
fn the_guest_grows_beyond_its_size_at_boot_whichever_two_requests_are_refused() {
    pairs::run("balloon", "growth", |plan: &Refusals<'_>| {
        let guest = Guest::new();
        let machine = around(&guest.model, plan);
        let (mut words, mut bits) = (words(), [0; 1]);
        let Some(mut scene) = Scene::begin(&guest, &machine, &mut words) else { return };
        let mut storage = Storage::new();
        let (few, rest) = guest.empty().split(9).expect("so many");
        scene.balloon.add_empty(guest.p2m, few).expect("empty pfns");
        scene.more = 9;
        // Beside pfns that never get memory.
        let reserve = Reserve::new(&mut scene.balloon, guest.p2m, rest, &mut bits);
        let (mut reserve, none) = reserve.expect("empty pfns");
        let apart = reserve.take().expect("some");
        scene.go(PAGES + 9, &mut storage);
        reserve.give(guest.p2m, apart).expect("as empty as before");
        assert_eq!((reserve.free(), none.count()), (SPAN - PAGES - 9, 0));
        scene.go(PAGES - 2, &mut storage);
        scene.end(&mut storage);
    });
}

#[test]
fn a_frame_that_a_toolstack_takes_is_found_out_whichever_two_requests_are_refused() {
    pairs::run("balloon", "lost_frame", |plan: &Refusals<'_>| {
        let mut guests = Model::builder().seed(3).guest(config());
        guests = guests.other(DomainConfig::new(Role::Dom0, 1024));
        let guest = Guest::of(guests);
        let machine = around(&guest.model, plan);
        let mut words = words();
        let Some(mut scene) = Scene::begin(&guest, &machine, &mut words) else { return };
        let mut storage = Storage::new();
        // dom0 gives up the third frame that will leave, behind the guest's back.
        let third = scene.stack.0[scene.stack.0.len() - 3].pfn();
        let mut extents = [Extent::from_mfn(guest.p2m.mfn(third).expect("RAM"))];
        let domain = DomId(guest.model.guest().domain());
        let list = Reservation { extents: &mut extents, order: 0, flags: 0, domain };
        let dom0 = guest.model.vcpu(0, 0).expect("dom0");
        #[expect(unsafe_code, reason = "only the model's memory is at stake")]
        // SAFETY: as the reason says.
        let given = unsafe { dom0.memory_op(&mut MemoryOp::Decrease(list)) };
        assert_eq!(given, Ok(1));
        scene.go(PAGES - 5, &mut storage);
        scene.end(&mut storage);
    });
}

/// Two refusals on the way of a block of 2 MiB. It is moved by too many elements for all their
/// pairs to be tried: this takes the first, one in the middle and the last that a block has.
fn pairs_of_a_block() -> impl Iterator<Item = [Refusal; 2]> {
    let refusals =
        |request| [0, 3, 511].map(|done| Refusal { request, errno: Errno::ENOMEM, done });
    let requests = (1..=10).flat_map(|first| (1..=5).map(move |behind| (first, first + behind)));
    requests.flat_map(move |(first, second)| {
        let seconds = move |first| refusals(second).map(|second| [first, second]);
        refusals(first).into_iter().flat_map(seconds)
    })
}

#[test]
fn whole_blocks_come_back_whichever_two_requests_are_refused() {
    let every = if env::var("PVMMU_PAIRS").is_ok_and(|scope| scope == "all") { 1 } else { 11 };
    let mut tried = 0;
    for [first, second] in pairs_of_a_block().step_by(every) {
        let guest = Guest::new();
        let inner = FailNth::new(&guest.model, second);
        let machine = FailNth::new(&inner, first);
        let mut words = words();
        let mut scene = Scene::begin(&guest, &machine, &mut words).expect("answered");
        let mut storage = Box::new(StepStorage::<800>::new());
        scene.go(PAGES - 740, &mut storage);
        scene.go(PAGES, &mut storage);
        scene.end(&mut Storage::new());
        tried += 1;
    }
    println!("pairs: balloon blocks {tried} 0");
}
