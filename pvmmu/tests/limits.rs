//! What does not fit is refused before anything has happened.
#![expect(unsafe_code, reason = "loads roots; the test is a model")]

mod common;

use common::{TestGuest, build, guest, tools};
use hypercall::{BatchStorage, GuestVa, PteFlags};
use pvmmu::{LoadError, MapError, Pages, Room, Running, TablePool, Vcpus};

#[test]
fn a_table_does_not_move_with_room_for_half_of_it() {
    let test = TestGuest::new();
    let p2m = test.p2m();
    let guest = guest(&test, &test.model, &p2m);
    let (mut pool, mut storage) = (test.pool(), BatchStorage::<40, 8>::new());
    let free = pool.len();
    let mut batch = storage.batch();
    let mut pgd = build(&guest, 16, &mut pool).pin(&guest, &mut batch).expect("pinned");
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let from = GuestVa::new(8 << 30).expect("user half");
    let to = GuestVa::new((8 << 30) + (4 << 21)).expect("user half");
    let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
    let all = Pages { start: from, count: 512 };
    pgd.map_pages(&mut with, all, PteFlags::USER_RW).expect("mapped");
    let mut one = storage_of_one();
    let mut small = one.batch();
    let left = pool.len();
    let mut with = tools(&guest, &mut small, &mut tables, &mut pool);
    let refused = pgd.edit(&mut with, |edit| edit.move_table(from, to)).expect_err("too small");
    assert!(
        matches!(refused.error, MapError::BatchTooSmall(Room { updates: 1, ops: 1 })),
        "{refused}"
    );
    assert_eq!(pool.len(), left, "the table is where it was");
    test.check();
    let mut storage = BatchStorage::<40, 8>::new();
    let mut batch = storage.batch();
    let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
    pgd.destroy(&mut with).expect("nothing has changed");
    assert_eq!(pool.len(), free);
    test.check();
}

fn storage_of_one() -> BatchStorage<1, 1> {
    BatchStorage::new()
}

#[test]
fn a_vcpu_that_nobody_can_count_loads_nothing() {
    let test = TestGuest::new();
    let p2m = test.p2m();
    let guest = guest(&test, &test.model, &p2m);
    let (mut pool, mut storage) = (test.pool(), BatchStorage::<40, 8>::new());
    let mut batch = storage.batch();
    let pgd = build(&guest, 16, &mut pool).pin(&guest, &mut batch).expect("pinned");
    let places: Vec<_> = (0..64).map(|_| Running::nowhere()).collect();
    // SAFETY: no other place is loaded through.
    let vcpus = unsafe { Vcpus::new(&places) };
    // SAFETY: it is refused; the test exists only in the model.
    let result = unsafe { vcpus.load(&guest, 32, &pgd) };
    assert!(matches!(result, Err(LoadError::NoSuchVcpu(32))), "{result:?}");
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
    pgd.destroy(&mut with).expect("nobody runs on it");
    test.check();
}
