//! Dirty bits that the CPU sets between a look at an entry and its change: none is lost, and none
//! is made up. A second vCPU writes before every request of an operation, on the model.
#![expect(unsafe_code, reason = "answers for a machine; loads roots of a model's test")]

mod common;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use common::{Pool, TestGuest, guest, tools};
use hypercall::memory::MemoryOp;
use hypercall::middleware::{Counting, Counts};
use hypercall::{
    Assist, BatchStorage, Call, Error, FrameSource as _, GuestVa, Hypercalls, PteFlags, Request,
};
use p2m::walk;
use pvmmu::{Pages, Pgd, Pinned, Presence, Shares, TablePool, Tools};
use xen_model::{Mode, Model};

/// Of a page that can be written, and has not been.
const CLEAN: PteFlags =
    PteFlags::USER_RW.difference(PteFlags::ACCESSED).difference(PteFlags::DIRTY);
const READ_ONLY: PteFlags = PteFlags::USER_RW.difference(PteFlags::WRITABLE);

/// A machine on which something happens before each request.
struct Meanwhile<'m> {
    machine: &'m Model,
    happens: &'m dyn Fn(&[Call<'_>]),
}

// SAFETY: what the model answers.
unsafe impl Hypercalls for Meanwhile<'_> {
    unsafe fn issue(&self, calls: &mut [Call<'_>]) -> Result<(), Error> {
        (self.happens)(calls);
        // SAFETY: the caller's promise is handed on.
        unsafe { self.machine.issue(calls) }
    }

    unsafe fn memory_op(&self, op: &mut MemoryOp<'_>) -> Result<u64, Error> {
        // SAFETY: as above.
        unsafe { self.machine.memory_op(op) }
    }

    fn enable_assist(&self, assist: Assist) -> Result<(), Error> {
        self.machine.enable_assist(assist)
    }
}

pv_tests::forward_accesses!([] Meanwhile<'_>);

type Frames = Pool;
type Work<'a, 't, M> = Tools<'a, 't, M, Frames>;

const COUNT: u64 = 12;

/// Pages of two tables.
fn pages() -> Pages {
    Pages { start: address(0x3f_a000), count: COUNT }
}

/// Where they move to: in one table.
fn elsewhere() -> Pages {
    Pages { start: address(0x8000_0000), count: COUNT }
}

fn address(raw: u64) -> GuestVa {
    GuestVa::new(raw).expect("user half")
}

/// Of the pages, by number, which the second vCPU writes.
const fn is_written(at: u64) -> bool {
    !at.is_multiple_of(3)
}

fn flags(guest: &p2m::Guest<'_, Model>, pgd: &Pgd<Pinned>, va: GuestVa) -> PteFlags {
    let (_, pte) = walk(guest, pgd.root(), va).expect("readable").leaf().expect("its table");
    assert!(pte.is_present(), "{va} is mapped");
    pte.flags()
}

/// A life around an operation on clean pages while a second vCPU writes to some of them before each
/// request that concerns them, at whichever address it can. `check` is told of each page whether
/// the vCPU has written it.
fn live<T>(
    operation: impl Fn(&mut Pgd<Pinned>, &mut Work<'_, '_, Meanwhile<'_>>) -> T,
    check: impl Fn(&p2m::Guest<'_, Model>, &Pgd<Pinned>, &T, &dyn Fn(u64) -> bool),
    end: impl Fn(T, &mut Work<'_, '_, Model>),
) {
    let test = TestGuest::new();
    let (model, p2m, mut pool) = (&test.model, test.p2m(), test.pool());
    let plain = guest(&test, model, &p2m);
    let mut counts = vec![0; test.list.len()];
    let mut shares = Shares::new(&mut counts);
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut storage = BatchStorage::<64, 8>::new();
    let mut batch = storage.batch();
    let mut pgd = Pgd::new(&mut Tools::new(plain, &mut pool)).expect("a root");
    pgd.map_pages(&mut Tools::new(plain, &mut pool), pages(), CLEAN).expect("mapped");
    // So that there is a table for them: what is asked for first is asked of the pages.
    let near = Pages::one(elsewhere().at(COUNT).expect("user half"));
    pgd.map_pages(&mut Tools::new(plain, &mut pool), near, CLEAN).expect("mapped");
    let mut pgd = pgd.pin(&plain, &mut batch).expect("pinned");
    let places = (0..COUNT).map(|at| {
        let va = pages().at(at).expect("user half");
        let leaf = walk(&plain, pgd.root(), va).expect("readable").leaf();
        leaf.expect("mapped").0.machine_address()
    });
    let places: Vec<u64> = places.collect();
    let second = test.second();
    second.initialise(model.guest().kernel_root().expect("it runs"), None).expect("started");
    // SAFETY: the model's test has no Rust objects.
    unsafe { pgd.load(&guest(&test, &second, &p2m)) }.expect("loaded");
    let written = RefCell::new(BTreeSet::new());
    // At the last moment: before a request that concerns the page.
    let write = |calls: &[Call<'_>]| {
        let concerns = |at: u64| {
            let place = places[usize::try_from(at).expect("a few")];
            calls.iter().any(|call| match call.request {
                Request::MmuUpdate(updates, _) => {
                    updates.iter().any(|update| update.target() & !7 == place)
                }
                _ => false,
            })
        };
        let is_of_all = !(0..COUNT).any(concerns);
        let written_now = |at: &u64| is_written(*at) && (is_of_all || concerns(*at));
        for at in (0..COUNT).filter(written_now) {
            for pages in [pages(), elsewhere()] {
                let va = pages.at(at).expect("user half").raw();
                if second.store(va, &[1], Mode::Kernel).is_ok() {
                    written.borrow_mut().insert(at);
                }
            }
        }
    };
    let machine = Meanwhile { machine: model, happens: &write };
    let around = guest(&test, &machine, &p2m);
    let mut with = tools(&around, &mut batch, &mut tables, &mut pool).with_shares(&mut shares);
    with.presence = Presence::Steady;
    let done = operation(&mut pgd, &mut with);
    // Between the last request and now it does not write, so that what is seen is what was kept.
    let written = written.into_inner();
    let wanted = (0..COUNT).filter(|at| is_written(*at)).count();
    assert_eq!(written.len(), wanted, "it could write to each of them at least once");
    check(&plain, &pgd, &done, &|at| written.contains(&at));
    assert_eq!(model.take_violations(), Vec::<String>::new(), "no stale translation was used");
    // SAFETY: as above.
    unsafe { pvmmu::load_root(&guest(&test, &second, &p2m), test.root) }.expect("left");
    let mut with = tools(&plain, &mut batch, &mut tables, &mut pool).with_shares(&mut shares);
    end(done, &mut with);
    pgd.destroy(&mut with).expect("nobody runs on it");
    test.check();
}

/// The dirty bits of `at` say what was written, and nothing else.
fn check_dirty(
    guest: &p2m::Guest<'_, Model>,
    pgd: &Pgd<Pinned>,
    at: Pages,
    written: &dyn Fn(u64) -> bool,
) {
    for number in 0..COUNT {
        let va = at.at(number).expect("user half");
        let is_dirty = flags(guest, pgd, va).contains(PteFlags::DIRTY);
        assert_eq!(is_dirty, written(number), "page {number}");
    }
}

#[test]
fn pages_that_move_keep_the_dirty_bits_that_another_vcpu_sets_meanwhile() {
    live(
        |pgd, with| pgd.remap(with, pages(), elsewhere().start).expect("moved"),
        |guest, pgd, (), written| check_dirty(guest, pgd, elsewhere(), written),
        |(), _| {},
    );
}

#[test]
fn a_table_that_moves_keeps_the_dirty_bits_that_another_vcpu_sets_meanwhile() {
    live(
        |pgd, with| {
            // Its last six pages are the first of a table.
            let (from, to) = (address(0x40_0000), address(0x8020_0000));
            pgd.edit(with, |edit| edit.move_table(from, to)).expect("moved");
        },
        |guest, pgd, (), written| {
            for at in 6..COUNT {
                let va = address(0x8020_0000 + (at - 6) * 4096);
                let is_dirty = flags(guest, pgd, va).contains(PteFlags::DIRTY);
                assert_eq!(is_dirty, written(at), "page {at}");
            }
        },
        |(), _| {},
    );
}

#[test]
fn protected_pages_keep_the_dirty_bits_that_another_vcpu_sets_meanwhile() {
    live(
        |pgd, with| pgd.protect(with, pages(), READ_ONLY).expect("protected"),
        |guest, pgd, (), written| {
            check_dirty(guest, pgd, pages(), written);
            assert!(!flags(guest, pgd, pages().start).contains(PteFlags::WRITABLE));
        },
        |(), _| {},
    );
}

#[test]
fn both_sides_of_a_fork_know_what_another_vcpu_writes_meanwhile() {
    live(
        |pgd, with| pgd.fork(with).expect("forked"),
        |guest, parent, child, written| {
            check_dirty(guest, parent, pages(), written);
            check_dirty(guest, child, pages(), written);
        },
        |child, with| child.destroy(with).expect("nobody runs on it"),
    );
}

#[test]
fn a_page_whose_frame_is_replaced_keeps_the_dirty_bit_that_another_vcpu_sets_meanwhile() {
    live(
        |pgd, with| {
            for at in 0..COUNT {
                let frame = with.frames.take().expect("a frame");
                let va = pages().at(at).expect("user half");
                pgd.edit(with, |edit| edit.replace(va, CLEAN, frame)).expect("replaced");
            }
        },
        |guest, pgd, (), written| check_dirty(guest, pgd, pages(), written),
        |(), _| {},
    );
}

#[test]
fn a_page_that_is_written_while_its_bits_are_cleared_is_told_or_stays_dirty() {
    live(
        |pgd, with| {
            // Accessed and clean: what is seen there goes with the bit that is cleared.
            let guest = with.guest;
            for at in 0..COUNT {
                let va = pages().at(at).expect("user half");
                let mut byte = [0];
                let model = guest.machine().machine;
                let second = model.vcpu(model.guest().domain(), 1);
                second.expect("two").load(va.raw(), &mut byte, Mode::Kernel).expect("mapped");
            }
            let mut told = BTreeSet::new();
            let clear = |edit: &mut pvmmu::Edit<'_, '_, '_, _, _>| {
                edit.clear_reading_ad(pages(), &mut |va, flags| {
                    if flags.contains(PteFlags::DIRTY) {
                        told.insert((va.raw() - pages().start.raw()) / 4096);
                    }
                })
            };
            pgd.edit(with, clear).expect("cleared");
            told
        },
        |guest, pgd, told, written| {
            for at in 0..COUNT {
                let now = flags(guest, pgd, pages().at(at).expect("user half"));
                assert!(now.contains(PteFlags::WRITABLE), "page {at} can be written again");
                let is_noted = told.contains(&at) || now.contains(PteFlags::DIRTY);
                assert_eq!(is_noted, written(at), "page {at}: {now:?}");
            }
        },
        |_, _| {},
    );
}

/// The CPU sets both bits of the first page once, just before the first request that changes its
/// entry.
fn poked(operation: impl Fn(&mut Pgd<Pinned>, &mut Work<'_, '_, Meanwhile<'_>>), at: GuestVa) {
    let test = TestGuest::new();
    let (model, p2m, mut pool) = (&test.model, test.p2m(), test.pool());
    let plain = guest(&test, model, &p2m);
    let mut counts = vec![0; test.list.len()];
    let mut shares = Shares::new(&mut counts);
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut storage = BatchStorage::<64, 8>::new();
    let mut batch = storage.batch();
    let mut pgd = Pgd::new(&mut Tools::new(plain, &mut pool)).expect("a root");
    pgd.map_pages(&mut Tools::new(plain, &mut pool), pages(), CLEAN).expect("mapped");
    let mut pgd = pgd.pin(&plain, &mut batch).expect("pinned");
    let leaf = walk(&plain, pgd.root(), pages().start).expect("readable").leaf();
    let (slot, _) = leaf.expect("it is mapped");
    let index = usize::from(u16::from(slot.index));
    let is_due = Cell::new(true);
    let poke = |calls: &[Call<'_>]| {
        let touches = calls.iter().any(|call| match call.request {
            Request::MmuUpdate(updates, _) => {
                updates.iter().any(|update| update.target() & !7 == slot.machine_address())
            }
            _ => false,
        });
        if touches && is_due.replace(false) {
            let word = model.word(slot.table, index).expect("RAM");
            let seen = PteFlags::ACCESSED | PteFlags::DIRTY;
            model.poke(slot.table, index, word | seen.bits());
        }
    };
    let machine = Meanwhile { machine: model, happens: &poke };
    let around = guest(&test, &machine, &p2m);
    let with = tools(&around, &mut batch, &mut tables, &mut pool);
    let mut with = with.with_shares(&mut shares);
    with.presence = Presence::Steady;
    operation(&mut pgd, &mut with);
    assert!(!is_due.get(), "its entry was changed");
    assert!(flags(&plain, &pgd, at).contains(PteFlags::DIRTY), "it was written, and is clean");
    let with = tools(&plain, &mut batch, &mut tables, &mut pool);
    let mut with = with.with_shares(&mut shares);
    pgd.destroy(&mut with).expect("nobody runs on it");
    test.check();
}

#[test]
fn a_dirty_bit_that_is_set_just_before_the_request_is_kept() {
    let to = elsewhere().start;
    let at = pages().start;
    poked(|pgd, with| pgd.remap(with, pages(), to).expect("moved"), to);
    poked(|pgd, with| pgd.protect(with, pages(), READ_ONLY).expect("protected"), at);
    let fork = |pgd: &mut Pgd<Pinned>, with: &mut Work<'_, '_, Meanwhile<'_>>| {
        let child = pgd.fork(with).expect("forked");
        let page = child.translate(&with.guest, at).expect("readable").expect("mapped");
        assert!(page.flags.contains(PteFlags::DIRTY), "the child's is clean");
        child.destroy(with).expect("nobody runs on it");
    };
    poked(fork, at);
}

/// What moving twelve pages with these flags costs.
fn cost(flags: PteFlags, presence: Presence) -> Counts {
    let test = TestGuest::new();
    let (p2m, mut pool) = (test.p2m(), test.pool());
    let counting = Counting::new(&test.model);
    let guest = guest(&test, &counting, &p2m);
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut storage = BatchStorage::<64, 8>::new();
    let mut batch = storage.batch();
    let (from, to) = (address(0x40_0000), address(0x40_8000));
    let mut pgd = Pgd::new(&mut Tools::new(guest, &mut pool)).expect("a root");
    let pages = Pages { start: from, count: 8 };
    pgd.map_pages(&mut Tools::new(guest, &mut pool), pages, flags).expect("mapped");
    let mut pgd = pgd.pin(&guest, &mut batch).expect("pinned");
    let before = counting.counts();
    let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
    with.presence = presence;
    pgd.remap(&mut with, pages, to).expect("moved");
    let after = counting.counts();
    pgd.destroy(&mut with).expect("nobody runs on it");
    test.check();
    Counts {
        hypercalls: after.hypercalls - before.hypercalls,
        entries: after.entries - before.entries,
        refused: after.refused,
    }
}

#[test]
fn only_clean_pages_that_may_be_written_take_two_requests_to_move() {
    let once = Counts { hypercalls: 1, entries: 24, refused: 0 };
    let twice = Counts { hypercalls: 2, entries: 40, refused: 0 };
    assert_eq!(cost(PteFlags::USER_RW, Presence::Steady), once, "dirty already");
    assert_eq!(cost(READ_ONLY & CLEAN, Presence::Steady), once, "never written");
    assert_eq!(cost(CLEAN, Presence::MayVanish), once, "nobody writes");
    assert_eq!(cost(CLEAN, Presence::Steady), twice);
}
