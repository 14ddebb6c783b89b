//! Tables that are pinned by themselves: what a refusal leaves of them, and what a pool counts.

#[macro_use]
mod common;

use common::tables::{check_counts, check_marks, pooled, tables};
use common::{Pool, TestGuest, guest, table_pool, tools};
use hypercall::middleware::{FailNth, Refusal};
use hypercall::{BatchStorage, Errno, GuestVa, Level, Machine, PteFlags};
use p2m::Guest;
use pvmmu::{
    DestroyError, MapError, Pages, Pgd, Pinned, PooledTable, RangeError, Room, TablePool, Tools,
};

const READ_ONLY: PteFlags = PteFlags::USER_RW.difference(PteFlags::WRITABLE);
/// More L1 tables than change together.
const TABLES: u64 = 70;

fn table(number: u64) -> GuestVa {
    GuestVa::new((1 << 30) + (number << 21)).expect("user half")
}

fn whole_table() -> Pages {
    Pages { start: table(0), count: 512 }
}

fn refusal(request: u64, done: usize) -> Refusal {
    Refusal { request, errno: Errno::ENOMEM, done }
}

/// A pinned tree of `count` L1 tables, the first of which is full.
fn sparse<M: Machine>(guest: &Guest<'_, M>, count: u64, pool: &mut Pool) -> Pgd<Pinned> {
    let mut pgd = Pgd::with_user_root(&mut Tools::new(*guest, pool)).expect("two roots");
    pgd.map_pages(&mut Tools::new(*guest, pool), whole_table(), PteFlags::USER_RW).expect("mapped");
    for number in 1..count {
        let pages = Pages::one(table(number));
        pgd.map_pages(&mut Tools::new(*guest, pool), pages, PteFlags::USER_RW).expect("mapped");
    }
    pgd.pin(guest, &mut BatchStorage::<64, 1>::new().batch()).expect("pinned")
}

/// Every length of batch up to all of the tables and some more, in steps that leave each remainder.
#[test]
fn more_tables_than_change_together_are_held_and_let_go_of_in_batches_of_every_length() {
    scene!(test, machine, guest, pool);
    let free = pool.len();
    let mut storage = BatchStorage::<80, 80>::new();
    for length in (1..=20).chain([23, 34, 35, 36, 63, 64, 65, 69, 70, 71, 80]) {
        let mut pgd = sparse(&guest, TABLES, &mut pool);
        let mut batch = storage.batch_of(length, length);
        let before = machine.counts();
        assert_eq!(pgd.hold_l1_tables(&guest, &mut batch).map_err(|_| ()), Ok(TABLES));
        let chunk = length.min(64) as u64;
        let cost = machine.counts() - before;
        assert_eq!(cost.hypercalls, 2 * TABLES.div_ceil(chunk), "in batches of {length}");
        assert_eq!(cost.entries, 2 * TABLES);
        check_marks(&test, pgd.root());
        assert_eq!(pgd.hold_l1_tables(&guest, &mut batch).map_err(|_| ()), Ok(0), "all are");
        let all = pgd.tables(&guest).expect("readable");
        let before = machine.counts();
        let loose = pgd.unpin(&guest, &mut batch).expect("unpinned");
        let (cost, length) = (machine.counts() - before, length as u64);
        assert_eq!(cost.hypercalls, TABLES.div_ceil(length) + 1 + all.div_ceil(length));
        assert!(tables(&test, loose.root()).iter().all(|table| table.mark == 0));
        common::destroy(&guest, loose, &mut pool);
        assert_eq!(pool.len(), free);
        test.check();
    }
}

/// What is refused is one table's pin, or its mark: those before it are held, no other is.
#[test]
fn every_mark_is_right_whatever_is_refused_while_tables_are_held() {
    for (request, done) in (0..8).flat_map(|request| [0, 1, 4, 19].map(|done| (request, done))) {
        let test = TestGuest::new();
        let p2m = test.p2m();
        let plain = guest(&test, &test.model, &p2m);
        let mut pool = test.pool();
        let mut pgd = sparse(&plain, TABLES, &mut pool);
        let machine = FailNth::new(&test.model, refusal(request, done));
        let around = guest(&test, &machine, &p2m);
        let mut storage = BatchStorage::<20, 20>::new();
        let held = pgd.hold_l1_tables(&around, &mut storage.batch());
        let failure = held.expect_err("refused");
        assert_eq!(failure.value, Ok(()), "{failure}");
        let at = request / 2 * 20 + (done as u64).min(if request < 6 { 19 } else { 9 });
        let told =
            format!("L1 table pfn {}", p2m.pfn(&test.model, l1(&test, &pgd, at)).expect("RAM"));
        assert!(failure.to_string().starts_with(&told), "{told} is not in: {failure}");
        check_marks(&test, pgd.root());
        let held = tables(&test, pgd.root()).iter().filter(|table| table.mark != 0).count();
        assert_eq!(held as u64, at, "request {request} refused after {done}");
        let loose = pgd.unpin(&plain, &mut storage.batch()).expect("unpinned");
        common::destroy(&plain, loose, &mut pool);
        test.check();
    }
}

/// The machine frame of the L1 table number `at`.
fn l1(test: &TestGuest, pgd: &Pgd<Pinned>, at: u64) -> hypercall::Mfn {
    let all = tables(test, pgd.root());
    let all: Vec<_> = all.iter().filter(|table| table.level == Level::L1).collect();
    all[usize::try_from(at).expect("few")].mfn
}

/// Pins, marks and tables are compared one by one.
#[test]
fn a_refused_unpin_leaves_every_table_with_the_pin_of_its_own_that_it_had() {
    for length in [1, 3, 16] {
        let mut request = 0;
        while [0, 1, 2, 15].map(|done| unpin_refused(length, refusal(request, done)))[0] {
            request += 1;
        }
        // Unpinning 6 pins, 2 roots and 12 tables, and the undo of all that is not refused.
        assert!(request >= 3, "batches of {length} were refused {request} times");
    }
}

/// Whether the refusal was met.
fn unpin_refused(length: usize, refusal: Refusal) -> bool {
    let test = TestGuest::new();
    let p2m = test.p2m();
    let plain = guest(&test, &test.model, &p2m);
    let mut pool = test.pool();
    let free = pool.len();
    let mut storage = BatchStorage::<16, 16>::new();
    let mut batch = storage.batch();
    let mut pgd = sparse(&plain, 5, &mut pool);
    let mut places = [const { None::<PooledTable> }; 3];
    let (l1, rest) = places.split_at_mut(1);
    let (l2, l3) = rest.split_at_mut(1);
    let mut out_of = TablePool::new([l1, l2, l3]);
    for level in [Level::L1, Level::L2, Level::L3] {
        out_of.fill(&plain, level, 1, &mut pool, &mut batch).expect("filled");
    }
    let _ = pgd.hold_l1_tables(&plain, &mut batch).expect("held");
    // Of every kind: pinned in place, out of the pool on each level, and by the root alone.
    let mut with = tools(&plain, &mut batch, &mut out_of, &mut pool);
    let far = Pages::one(GuestVa::new(9 << 39).expect("user half"));
    pgd.map_pages(&mut with, far, PteFlags::USER_RW).expect("through the pool");
    pgd.map_pages(&mut with, Pages::one(table(400)), PteFlags::USER_RW).expect("filled first");
    let before = tables(&test, pgd.root());
    assert_eq!(before.iter().filter(|table| table.mark == 0).count(), 3);

    let machine = FailNth::new(&test.model, refusal);
    let around = guest(&test, &machine, &p2m);
    let loose = match pgd.unpin(&around, &mut storage.batch_of(length, length)) {
        Ok(loose) => loose,
        Err(error) => {
            assert_eq!(error.undo, Ok(()), "{error}");
            assert_eq!(tables(&test, error.pgd.root()), before, "{error}");
            test.check();
            error.pgd.unpin(&plain, &mut storage.batch()).expect("nothing in the way")
        }
    };
    common::destroy(&plain, loose, &mut pool);
    assert_eq!(pool.len(), free);
    test.check();
    machine.has_refused()
}

/// What `work` does to a tree of held tables, one of them full, with each request refused in turn:
/// every table is pinned as it was, and no page is told to be changed. `least` refusals are met.
fn each_refusal_leaves_the_pins(
    least: u64,
    work: impl Fn(&mut Pgd<Pinned>, &mut Work<'_, '_, '_>) -> Result<(), RangeError>,
) {
    let mut refused = 0;
    for (request, done) in (0..6).flat_map(|request| [0, 1].map(|done| (request, done))) {
        let test = TestGuest::new();
        let p2m = test.p2m();
        let plain = guest(&test, &test.model, &p2m);
        let mut pool = test.pool();
        let mut storage = BatchStorage::<16, 16>::new();
        let mut pgd = sparse(&plain, 3, &mut pool);
        let _ = pgd.hold_l1_tables(&plain, &mut storage.batch()).expect("held");
        let before = tables(&test, pgd.root());
        let machine = FailNth::new(&test.model, refusal(request, done));
        let around = guest(&test, &machine, &p2m);
        let mut tables_of = TablePool::new([&mut [], &mut [], &mut []]);
        let mut batch = storage.batch_of(Room::SMALLEST.updates, Room::SMALLEST.ops);
        let mut with = tools(&around, &mut batch, &mut tables_of, &mut pool);
        match work(&mut pgd, &mut with) {
            Ok(()) => assert!(!machine.has_refused()),
            Err(error) => {
                refused += 1;
                assert_eq!(error.done, 0, "{error}");
                assert_eq!(tables(&test, pgd.root()), before, "{error}");
            }
        }
        check_marks(&test, pgd.root());
        let loose = pgd.unpin(&plain, &mut storage.batch()).expect("unpinned");
        common::destroy(&plain, loose, &mut pool);
        test.check();
    }
    assert!(refused >= least, "{refused} refusals");
}

type Work<'a, 't, 'm> = Tools<'a, 't, FailNth<&'m xen_model::Model>, Pool>;

#[test]
fn a_refused_protection_of_a_whole_table_leaves_its_pin_and_counts_no_page() {
    each_refusal_leaves_the_pins(8, |pgd, with| pgd.protect(with, whole_table(), READ_ONLY));
}

#[test]
fn a_refused_unmapping_of_a_whole_table_leaves_its_pin_and_counts_no_page() {
    each_refusal_leaves_the_pins(4, |pgd, with| pgd.unmap(with, whole_table()));
}

#[test]
fn a_refused_move_of_a_table_leaves_its_pin() {
    each_refusal_leaves_the_pins(2, |pgd, with| {
        pgd.edit(with, |edit| edit.move_table(table(0), table(9)))
    });
}

/// A pool's counts while tables are taken, held in place, unmapped whole and given back.
#[test]
fn what_a_pool_counts_adds_up_whatever_becomes_of_its_tables() {
    scene!(test, guest, pool);
    let free = pool.len();
    let mut storage = BatchStorage::<600, 16>::new();
    let mut batch = storage.batch();
    let mut pgd = sparse(&guest, 4, &mut pool);
    let mut places = [const { None::<PooledTable> }; 8];
    let mut tables = TablePool::new([&mut places, &mut [], &mut []]);
    tables.fill(&guest, Level::L1, 3, &mut pool, &mut batch).expect("filled");
    let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
    for number in 10..13 {
        pgd.map_pages(&mut with, Pages::one(table(number)), PteFlags::USER_RW).expect("mapped");
    }
    let counts = table_pool(&mut with).counts();
    assert_eq!((counts.made, counts.taken, counts.out(), counts.inside()), (3, 3, 3, 0));
    // One is filled and unmapped whole: it ends as a plain frame.
    let rest = Pages { start: table(10).checked_add_pages(1).expect("user half"), count: 511 };
    pgd.map_pages(&mut with, rest, PteFlags::USER_RW).expect("mapped");
    pgd.unmap(&mut with, Pages { start: table(10), count: 512 }).expect("unmapped");
    let counts = table_pool(&mut with).counts();
    assert_eq!((counts.returned, counts.not_returned, counts.out()), (0, 1, 2));
    check_counts(table_pool(&mut with), pooled(&test, pgd.root()));
    // The four that the tree was made with join the pool when it ends; the full one is taken out.
    assert_eq!(pgd.hold_l1_tables(&guest, &mut with.batch).map_err(|_| ()), Ok(4));
    check_counts(table_pool(&mut with), pooled(&test, pgd.root()));
    pgd.destroy(&mut with).expect("destroyed");
    let counts = tables.counts();
    assert_eq!((counts.returned, counts.adopted, counts.out()), (2, 3, 0), "{counts:?}");
    assert_eq!(counts.inside(), 5);
    check_counts(&tables, 0);
    assert_eq!(tables.drain(&guest, Level::L1, 9, &mut pool), Ok(5));
    check_counts(&tables, 0);
    assert_eq!(pool.len(), free);
    test.check();
}

/// The second refusal meets the undo itself. The table is at one place or at both, and never handed
/// out as a page.
#[test]
fn a_move_that_cannot_be_undone_hands_out_no_frame() {
    let test = TestGuest::new();
    let p2m = test.p2m();
    let plain = guest(&test, &test.model, &p2m);
    let mut pool = test.pool();
    let mut storage = BatchStorage::<16, 16>::new();
    let mut pgd = sparse(&plain, 3, &mut pool);
    let free = pool.len();
    let first = FailNth::new(&test.model, refusal(0, 1));
    let both = FailNth::new(&first, refusal(1, 0));
    let around = guest(&test, &both, &p2m);
    let mut tables_of = TablePool::new([&mut [], &mut [], &mut []]);
    let mut batch = storage.batch();
    let mut with = tools(&around, &mut batch, &mut tables_of, &mut pool);
    let moved = pgd.edit(&mut with, |edit| edit.move_table(table(0), table(9)));
    let error = moved.expect_err("refused twice");
    assert!(matches!(error.error, MapError::NotUndone { left: 1, .. }), "{error}");
    assert_eq!(pool.len(), free);
    test.model.audit().expect("counts add up");
}

/// Of a table whose own pin does not come back, the mark goes, too: the tree can still be ended.
#[test]
fn a_pin_that_cannot_be_put_back_leaves_a_tree_that_can_be_ended() {
    let test = TestGuest::new();
    let p2m = test.p2m();
    let plain = guest(&test, &test.model, &p2m);
    let mut pool = test.pool();
    let free = pool.len();
    let mut storage = BatchStorage::<16, 16>::new();
    let mut pgd = sparse(&plain, 3, &mut pool);
    let held = pgd.hold_l1_tables(&plain, &mut storage.batch()).map_err(|_| ());
    assert_eq!(held, Ok(3));
    // The unpin, the updates; then the undo of those, its flush, and the pin.
    let first = FailNth::new(&test.model, refusal(1, 1));
    let both = FailNth::new(&first, refusal(4, 0));
    let around = guest(&test, &both, &p2m);
    let mut tables_of = TablePool::new([&mut [], &mut [], &mut []]);
    let mut batch = storage.batch();
    let mut with = tools(&around, &mut batch, &mut tables_of, &mut pool);
    let error = pgd.unmap(&mut with, whole_table()).expect_err("refused twice");
    assert!(matches!(error.error, MapError::NotUndone { left: 1, .. }), "{error}");
    assert_eq!(error.done, 0);
    check_marks(&test, pgd.root());
    let marked = tables(&test, pgd.root()).iter().filter(|table| table.mark != 0).count();
    assert_eq!(marked, 2, "the third is held by the tree alone");
    let loose = pgd.unpin(&plain, &mut storage.batch()).expect("unpinned");
    common::destroy(&plain, loose, &mut pool);
    assert_eq!(pool.len(), free);
    test.check();
}

/// Destroying gives up at the unpin, and can be tried again.
#[test]
fn a_destroy_that_is_refused_at_the_unpin_leaves_the_pins_and_is_done_again() {
    for request in 0..12 {
        let test = TestGuest::new();
        let p2m = test.p2m();
        let plain = guest(&test, &test.model, &p2m);
        let mut pool = test.pool();
        let free = pool.len();
        let mut storage = BatchStorage::<16, 16>::new();
        let mut places = [const { None::<PooledTable> }; 4];
        let (l1, upper) = places.split_at_mut(2);
        let (l2, l3) = upper.split_at_mut(1);
        let mut tables_of = TablePool::new([l1, l2, l3]);
        let mut batch = storage.batch();
        for level in [Level::L1, Level::L2, Level::L3] {
            tables_of.fill(&plain, level, 1, &mut pool, &mut batch).expect("filled");
        }
        let mut pgd = sparse(&plain, 50, &mut pool);
        let mut with = tools(&plain, &mut batch, &mut tables_of, &mut pool);
        let far = Pages::one(GuestVa::new(9 << 39).expect("user half"));
        pgd.map_pages(&mut with, far, PteFlags::USER_RW).expect("through the pool");
        let machine = FailNth::new(&test.model, refusal(request, 0));
        let around = guest(&test, &machine, &p2m);
        let mut with = tools(&around, &mut batch, &mut tables_of, &mut pool);
        if let Err(error) = pgd.destroy(&mut with) {
            let is_unpin = matches!(error, DestroyError::NotUnpinned(_));
            let pgd = error.into_pgd().expect("it is there");
            assert!(!is_unpin || !tables(&test, pgd.root()).is_empty());
            check_marks(&test, pgd.root());
            check_counts(&tables_of, pooled(&test, pgd.root()));
            let mut with = tools(&plain, &mut batch, &mut tables_of, &mut pool);
            pgd.destroy(&mut with).expect("only one request is refused");
        }
        check_counts(&tables_of, 0);
        for level in [Level::L1, Level::L2, Level::L3] {
            tables_of.drain(&plain, level, 9, &mut pool).expect("drained");
        }
        assert_eq!(pool.len(), free);
        test.check();
    }
}
