//! A second vCPU uses the window and the frames under it all the time: it never meets a translation
//! that is stale, whatever is changed, refused and undone.
#![expect(unsafe_code, reason = "the guest exists only in the model")]
#![cfg(not(loom))]

mod common;

use std::cell::Cell;

use common::{Storage, opened, split};
use hypercall::middleware::{FailEach, Refusal, Refusals};
use hypercall::{Errno, FrameAccess as _, PAGE_SHIFT, Pfn};
use p2m::window::WindowError;
use p2m::{Guest, Pfns, Window};
use pv_tests::meanwhile::Meanwhile;
use pv_tests::pairs;
use pv_tests::window::{CAPACITY, GIB, LEAF, WINDOW, WindowMachine, WindowPool};
use xen_model::Mode;

/// A second vCPU that loads and stores at `addresses` again and again, and keeps in its TLB what it
/// finds.
struct Second<'m> {
    machine: &'m WindowMachine,
    plan: &'m Refusals<'m>,
    vcpu: xen_model::Vcpu<'m>,
    addresses: Vec<u64>,
    uses: [Use; 2],
}

/// What a vCPU does at an address. Whatever comes first meets what the TLB had; the other is there
/// to leave a translation of its own kind.
#[derive(Clone, Copy)]
enum Use {
    Load,
    Store,
}

impl<'m> Second<'m> {
    fn new(
        machine: &'m WindowMachine,
        plan: &'m Refusals<'m>,
        addresses: impl IntoIterator<Item = u64>,
    ) -> Self {
        let (addresses, uses) = (addresses.into_iter().collect(), [Use::Load, Use::Store]);
        Self { machine, plan, vcpu: machine.second(), addresses, uses }
    }

    /// Loads what is there, and stores it again; where it may not, the page fault is the kernel's.
    fn touch(&self) {
        let model = &self.machine.model;
        for va in &self.addresses {
            let Some((_, pte)) = model.guest().l1_slot(*va) else { continue };
            let at = usize::try_from(va % 4096 / 8).expect("below 512");
            let mut word = model.word(pte.mfn(), at).unwrap_or_default().to_le_bytes();
            for what in self.uses {
                let _ = match what {
                    Use::Load => self.vcpu.load(*va, &mut word, Mode::Kernel),
                    Use::Store => self.vcpu.store(*va, &word, Mode::Kernel),
                };
            }
        }
    }

    /// The same in the midst of an operation. If a request was stopped in the middle, the end of
    /// the operation puts right what is stale there.
    fn touch_meanwhile(&self) {
        self.touch();
        if self.plan.refused() > 0 {
            let _ = self.machine.model.take_violations();
        }
    }
}

/// The guest on a machine that refuses, around one beside which the second vCPU goes on.
type Refusing<'r> = Guest<'r, FailEach<'r, &'r Meanwhile<'r, &'r WindowMachine>>>;

/// The addresses of the words of leaves from the one of `pfn` on, one in each.
fn words(pfn: u64, leaves: u64) -> impl Iterator<Item = u64> {
    (0..leaves).map(move |leaf| WINDOW + (pfn + leaf * LEAF) * 8)
}

/// Does `change` with each pair of refusals, while the second vCPU uses `addresses`.
fn nothing_is_stale(
    name: &str,
    addresses: impl Fn() -> Vec<u64>,
    change: impl Fn(&Refusing<'_>, &mut Window, &mut WindowPool) -> Result<(), WindowError>,
) {
    pairs::run("p2m", name, |plan| {
        let machine = WindowMachine::of(1024, 11);
        let (frames, mut pool) = split(&machine);
        let (p2m, mut window) = opened(&machine, frames);
        let guest = machine.guest(&machine, &p2m);
        window.grow(&guest, None, CAPACITY, &mut Storage::new().batch()).expect("it has room");
        let second = Second::new(&machine, plan, addresses());
        let touch = || second.touch_meanwhile();
        let watched = Meanwhile::before_traps(&machine, &touch);
        let refusing = pairs::around(&watched, plan);
        let guest = machine.guest(&refusing, &p2m);
        for attempt in 0..=2 {
            let done = change(&guest, &mut window, &mut pool);
            // After an undo that was refused too, something is stale until the next attempt.
            if done.map_or_else(|error| error.undo, Ok).is_ok() {
                second.touch();
            }
            machine.check();
            if done.is_ok() {
                break;
            }
            assert!(attempt < plan.refused(), "{done:?}, and nothing was refused");
        }
    });
}

#[test]
fn words_that_get_pages_of_their_own_are_stale_nowhere() {
    let first = GIB - 20 * LEAF; // in the GiB that has a table of its own
    nothing_is_stale(
        "stale_reserve",
        || words(first, 12).collect(),
        |guest, window, pool| {
            let pfns = Pfns::new(Pfn::new(first), 10 * LEAF);
            window.reserve(guest, None, pfns, pool, &mut Storage::new().batch())
        },
    );
}

#[test]
fn words_of_a_gib_that_gets_a_table_of_its_own_are_stale_nowhere() {
    nothing_is_stale(
        "stale_split",
        || words(2 * GIB, 8).collect(),
        |guest, window, pool| {
            let pfns = Pfns::new(Pfn::new(2 * GIB), 4 * LEAF);
            window.reserve(guest, None, pfns, pool, &mut Storage::new().batch())
        },
    );
}

#[test]
fn words_of_holes_that_become_identity_are_stale_nowhere() {
    nothing_is_stale(
        "stale_identity",
        || words(GIB - 8 * LEAF, 8).chain(words(2 * GIB, 8)).chain(words(3 * GIB, 8)).collect(),
        |guest, window, pool| {
            // The end of one GiB, a whole one, and the beginning of another.
            let mut storage = Storage::new();
            for (start, count) in [(GIB - 4 * LEAF, 4 * LEAF), (2 * GIB, GIB + 3 * LEAF)] {
                let pfns = Pfns::new(Pfn::new(start), count);
                // SAFETY: nothing will map the frames.
                unsafe { window.reserve_identity(guest, None, pfns, pool, &mut storage.batch()) }?;
            }
            Ok(())
        },
    );
}

#[test]
fn frames_that_become_tables_are_writable_nowhere() {
    pairs::run("p2m", "stale_open", |plan| {
        let machine = WindowMachine::of(1024, 12);
        let (frames, _) = split(&machine);
        let run = frames.start().raw()..frames.start().raw() + frames.count();
        let direct_map = machine.direct_map(Pfn::new(0)).expect("mapped").raw();
        let pages = run.map(|pfn| direct_map + (pfn << PAGE_SHIFT));
        let uses = [Use::Store, Use::Load];
        let second = Second { uses, ..Second::new(&machine, plan, pages) };
        let touch = || second.touch_meanwhile();
        let watched = Meanwhile::before_traps(&machine, &touch);
        let refusing = pairs::around(&watched, plan);
        let opened = machine.open(&refusing, frames, &mut Storage::new().batch());
        assert_eq!(opened.is_err(), plan.refused() > 0);
        if opened.map_or_else(|refused| refused.error.undo, |_| Ok(())).is_ok() {
            second.touch();
        }
        machine.check();
    });
}

#[test]
fn a_flush_that_was_refused_with_an_undo_is_made_up_for_before_anything_succeeds() {
    let first = GIB - 20 * LEAF;
    let machine = WindowMachine::of(1024, 13);
    let (frames, mut pool) = split(&machine);
    let (p2m, mut window) = opened(&machine, frames);
    let mut storage = Storage::new();
    window
        .grow(&machine.guest(&machine, &p2m), None, CAPACITY, &mut storage.batch())
        .expect("it has room");
    // The flush behind the change, the undo, and the flush behind that.
    let refusals = [1, 2, 3].map(|request| Refusal { request, errno: Errno::EBUSY, done: 0 });
    let asked = [const { Cell::new(None) }; 8];
    let plan = Refusals::new(&refusals, &asked);
    let second = Second::new(&machine, &plan, words(first, 4));
    let touch = || second.touch_meanwhile();
    let watched = Meanwhile::before_traps(&machine, &touch);
    let refusing = pairs::around(&watched, &plan);
    let (guest, pfns) = (machine.guest(&refusing, &p2m), Pfns::new(Pfn::new(first), 4 * LEAF));
    let refused = window.reserve(&guest, None, pfns, &mut pool, &mut storage.batch());
    assert!(refused.expect_err("refused").undo.is_err());
    assert_eq!((plan.refused(), pool.uncertain.len()), (3, 4), "the pages are in doubt");
    // They stay in the window; that all vCPUs see them is made sure first.
    window.reserve(&guest, None, pfns, &mut pool, &mut storage.batch()).expect("not refused");
    second.touch();
    machine.check();
    assert_eq!(pool.uncertain.len(), 4);
}
