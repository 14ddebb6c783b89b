//! Every operation, with each of its requests refused in turn: nothing is lost, nothing is left
//! half done but what the operation says, and Xen's counts add up.
#![expect(unsafe_code, reason = "loads roots; the test is a model")]

mod common;
#[macro_use]
mod sweeping;

use common::{TestGuest, guest, tools};
use hypercall::middleware::{FailNth, Refusal};
use hypercall::{Errno, FrameSource as _, Level, Machine, PteFlags};
use p2m::walk;
use pvmmu::{Pages, Pgd, Pinned, Presence, Room, Running, Shares, TablePool, Tools, Vcpus};
use sweeping::{
    Operation, READ_ONLY, Storage, Work, destroy, full, refuse_each, sparse, start, va,
};

/// Room for many changes, and for fewer than a table has.
const MANY: Room = Room { updates: 40, ops: 12 };

sweep_with!(MANY);

sweep! {
    in batches of MANY;
    protecting_pages_in_place: |pgd, with| {
        with.presence = Presence::Steady;
        pgd.protect(with, full(), READ_ONLY)
    };
    a_section_of_many_changes: |pgd, with| pgd.edit(with, |edit| {
        edit.unmap(Pages { start: full().start, count: 3 })?;
        edit.protect(sparse(), READ_ONLY)?;
        edit.map_pages(Pages::one(va(3, 0, 0)), PteFlags::USER_RW)?;
        edit.map_pages(Pages::one(va(3, 2, 1)), PteFlags::USER_RW)?;
        edit.map_pages(Pages::one(va(900, 0, 0)), PteFlags::USER_RW)
    });
    filling_and_draining_a_pool: |_pgd, with| {
        let filled = with.fill_pool(Level::L1, 9);
        filled.and_then(|_| with.drain_pool(Level::L1, 9)).map(drop)
    };
    writing_to_a_forked_page: |pgd, with| {
        let plain = pgd.fork(with).map_err(|error| error.to_string());
        plain.and_then(|child| {
            let copied = pgd.edit(with, |edit| {
                edit.make_own(sparse().start)?;
                edit.make_own(full().start)
            });
            let mut outcome = copied.map_err(|error| error.to_string());
            if let Err(error) = child.destroy(with) {
                let child = error.into_pgd().expect("it is there");
                child.destroy(with).expect("only one request is refused");
                outcome = Err("destroying the child".to_owned());
            }
            outcome
        })
    };
    unmapping_entry_by_entry_in_several_batches: |pgd, with| {
        pgd.unmap(with, Pages { start: full().start, count: 200 })
    };
    unmapping_and_asking_for_accessed_and_dirty: |pgd, with| {
        pgd.edit(with, |edit| edit.unmap_reading_ad(full(), &mut |_, _| {}))
    };
    clearing_accessed_and_dirty: |pgd, with| {
        pgd.edit(with, |edit| edit.clear_reading_ad(full(), &mut |_, _| {}))
    };
    making_a_table_read_only_for_all_its_pages: |pgd, with| {
        let flags = PteFlags::PRESENT | PteFlags::USER;
        pgd.edit(with, |edit| edit.set_table_flags(Level::L2, full().start, flags))
    };
}

#[test]
fn ending_an_address_space_with_tables_from_a_pool() {
    struct This;
    impl Operation for This {
        fn run<M: Machine>(
            &self,
            _: &mut Pgd<Pinned>,
            with: &mut Work<'_, '_, M>,
        ) -> Result<(), String> {
            let loose = Pgd::new(with).map_err(|error| error.to_string())?;
            let mut pgd = match loose.pin(&with.guest, &mut with.batch) {
                Ok(pgd) => pgd,
                Err(error) => {
                    let reason = error.to_string();
                    error.pgd.destroy(with).expect("loose");
                    return Err(reason);
                }
            };
            let pages = Pages { start: va(1, 1, 250), count: 12 };
            let mapped = pgd.map_pages(with, pages, PteFlags::USER_RW);
            let mut outcome = mapped.map_err(|error| error.to_string());
            if let Err(error) = pgd.destroy(with) {
                let reason = error.to_string();
                let pgd = error.into_pgd().expect(&reason);
                destroy(pgd, with);
                outcome = Err(reason);
            }
            outcome
        }
    }
    refuse_each(&This, MANY);
}

#[test]
fn the_vcpus_that_run_on_an_address_space_are_known() {
    let test = TestGuest::new();
    let p2m = test.p2m();
    let guest = guest(&test, &test.model, &p2m);
    let mut pool = test.pool();
    let mut storage = Storage::new();
    let mut batch = storage.batch();
    let one = Pgd::new(&mut Tools::new(guest, &mut pool)).expect("a root");
    let one = one.pin(&guest, &mut batch).expect("pinned");
    let places = [Running::nowhere(), Running::nowhere()];
    // SAFETY: every load of the test goes through these places.
    let vcpus = unsafe { Vcpus::new(&places) };
    assert!(vcpus.on(&one).is_empty());
    // SAFETY: the model runs no code.
    unsafe { vcpus.load(&guest, 0, &one) }.expect("loaded");
    assert_eq!(vcpus.on(&one).0, 1);
    let refusing = FailNth::new(&test.model, Refusal { request: 0, errno: Errno::ENOMEM, done: 0 });
    let around = common::guest(&test, &refusing, &p2m);
    // SAFETY: as above.
    unsafe { vcpus.leave(&around, 0) }.expect_err("refused");
    assert_eq!(vcpus.on(&one).0, 1, "it has not left");
    // SAFETY: as above.
    unsafe { vcpus.leave(&guest, 0) }.expect("left");
    assert!(vcpus.on(&one).is_empty());
    let loose = one.unpin(&guest, &mut batch).expect("nobody runs on it");
    common::destroy(&guest, loose, &mut pool);
    test.check();
}

#[test]
fn a_parent_is_as_it_was_when_a_fork_is_refused() {
    for request in 0..6 {
        let test = TestGuest::new();
        let p2m = test.p2m();
        let plain = guest(&test, &test.model, &p2m);
        let mut pool = test.pool();
        let mut counts = vec![0; test.list.len()];
        let mut shares = Shares::new(&mut counts);
        let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
        let mut storage = Storage::new();
        let mut batch = storage.batch();
        let mut pgd = start(&plain, &mut pool, &mut batch);
        let entries = |pgd: &Pgd<Pinned>| {
            let all =
                (0..full().count).map(|at| full().at(at)).chain((0..20).map(|at| sparse().at(at)));
            all.map(|va| walk(&plain, pgd.root(), va.expect("user half")).expect("readable").leaf())
                .collect::<Vec<_>>()
        };
        let before = entries(&pgd);
        let refusal = Refusal { request, errno: Errno::ENOMEM, done: 3 };
        let machine = FailNth::new(&test.model, refusal);
        let around = guest(&test, &machine, &p2m);
        let mut with = tools(&around, &mut batch, &mut tables, &mut pool).with_shares(&mut shares);
        match pgd.fork(&mut with) {
            Ok(child) => {
                assert!(!machine.has_refused());
                destroy(child, &mut with);
            }
            Err(error) => {
                assert!(error.left.is_none(), "{error}");
                assert_eq!(entries(&pgd), before, "{error}");
            }
        }
        let mut with = tools(&plain, &mut batch, &mut tables, &mut pool).with_shares(&mut shares);
        destroy(pgd, &mut with);
        test.check();
    }
}
