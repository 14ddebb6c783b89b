//! Every operation, with each of its requests refused in turn: the machinery.
#![allow(unreachable_pub, reason = "a module shared by test programs")]
#![allow(dead_code, reason = "each test program uses a part of it")]

use hypercall::middleware::{FailNth, Refusal};
use hypercall::{Batch, BatchStorage, Errno, GuestVa, Level, Machine, PteFlags};
use p2m::Guest;
use pvmmu::{Pages, Pgd, Pinned, PooledTable, Room, Shares, TablePool, Tools};
use xen_model::Model;

use crate::common::tables::{check_counts, check_marks, pooled};
use crate::common::{Pool, TestGuest, guest, table_pool, tools};

pub const READ_ONLY: PteFlags = PteFlags::USER_RW.difference(PteFlags::WRITABLE);

/// Memory for the largest batch that is swept.
pub type Storage = BatchStorage<40, 12>;
pub type Frames = Pool;
pub type Work<'a, 't, M> = Tools<'a, 't, M, Frames>;

/// What is swept: an operation on an address space that is given.
pub trait Operation {
    fn run<M: Machine>(
        &self,
        pgd: &mut Pgd<Pinned>,
        with: &mut Work<'_, '_, M>,
    ) -> Result<(), String>;
}

/// Runs the operation with batches of `room`, and with request `request` refused after `done`
/// elements, for every request it makes.
pub fn refuse_each(operation: &impl Operation, room: Room) {
    let mut refused = 0;
    for request in 0..400_usize {
        let mut reached = false;
        // Besides none and some: one, two, many and all but the last, in turn.
        let another = [1, 2, 7, usize::MAX].into_iter().cycle().nth(request).expect("a cycle");
        let dones = if room.updates < 4 { [0, 1, usize::MAX] } else { [0, 3, another] };
        for done in dones {
            let refusal = Refusal { request: request as u64, errno: Errno::ENOMEM, done };
            if live(operation, room, refusal) {
                reached = true;
                refused += 1;
            }
        }
        if !reached {
            assert!(refused > 0, "the operation asks Xen for nothing");
            return;
        }
    }
    panic!("an operation of more than 400 requests");
}

/// A life around the operation; whether its request was reached.
fn live(operation: &impl Operation, room: Room, refusal: Refusal) -> bool {
    let test = TestGuest::new();
    let p2m = test.p2m();
    let plain = guest(&test, &test.model, &p2m);
    let mut pool = test.pool();
    let free = pool.len();
    let mut counts = vec![0; test.list.len()];
    let mut shares = Shares::new(&mut counts);
    let mut places = [const { None::<PooledTable> }; 24];
    let (l1, rest) = places.split_at_mut(16);
    let (l2, l3) = rest.split_at_mut(4);
    let mut tables = TablePool::new([l1, l2, l3]);
    let mut storage = Storage::new();
    let mut batch = storage.batch_of(room.updates, room.ops);
    for (level, count) in [(Level::L1, 3), (Level::L2, 2), (Level::L3, 1)] {
        tables.fill(&plain, level, count, &mut pool, &mut batch).expect("filled");
    }
    let mut pgd = start(&plain, &mut pool, &mut batch);

    let machine = FailNth::new(&test.model, refusal);
    let around = guest(&test, &machine, &p2m);
    let mut with = tools(&around, &mut batch, &mut tables, &mut pool).with_shares(&mut shares);
    let result = operation.run(&mut pgd, &mut with);
    assert_eq!(result.is_err(), machine.has_refused(), "{refusal:?}: {result:?}");
    test.model.audit().unwrap_or_else(|error| panic!("{refusal:?}: {result:?}: {error}"));
    check_marks(&test, pgd.root());
    check_counts(table_pool(&mut with), pooled(&test, pgd.root()));

    let mut with = tools(&plain, &mut batch, &mut tables, &mut pool).with_shares(&mut shares);
    destroy(pgd, &mut with);
    for level in [Level::L1, Level::L2, Level::L3] {
        tables.drain(&plain, level, 99, &mut pool).expect("drained");
    }
    assert_eq!(tables.counts().lost, 0);
    check_counts(&tables, 0);
    assert_eq!(pool.len(), free, "{refusal:?}: {result:?}: frames were lost");
    assert!(counts.iter().all(|count| *count == 0), "{refusal:?}: {result:?}: shares were lost");
    test.check();
    machine.has_refused()
}

/// Two roots, a full table and a sparse one.
pub fn start(guest: &Guest<'_, Model>, frames: &mut Frames, batch: &mut Batch<'_>) -> Pgd<Pinned> {
    let mut pgd = Pgd::with_user_root(&mut Tools::new(*guest, frames)).expect("two roots");
    for pages in [full(), sparse()] {
        pgd.map_pages(&mut Tools::new(*guest, frames), pages, PteFlags::USER_RW).expect("mapped");
    }
    pgd.pin(guest, batch).expect("pinned")
}

pub fn destroy<M: Machine>(pgd: Pgd<Pinned>, with: &mut Work<'_, '_, M>) {
    if let Err(error) = pgd.destroy(with) {
        let reason = error.to_string();
        let pgd = error.into_pgd().expect(&reason);
        pgd.destroy(with).expect("only one request is refused");
    }
}

pub fn va(gib: u64, mib: u64, page: u64) -> GuestVa {
    GuestVa::new((gib << 30) + (mib << 20) + (page << 12)).expect("user half")
}

/// A whole table.
pub fn full() -> Pages {
    Pages { start: va(1, 2, 0), count: 512 }
}

/// Some pages of another.
pub fn sparse() -> Pages {
    Pages { start: va(1, 4, 5), count: 20 }
}

macro_rules! sweep {
    (in batches of $room:expr; $($name:ident: |$pgd:ident, $with:ident| $work:expr;)*) => { $(
        #[test]
        fn $name() {
            struct This;
            impl $crate::sweeping::Operation for This {
                fn run<M: hypercall::Machine>(
                    &self,
                    $pgd: &mut pvmmu::Pgd<pvmmu::Pinned>,
                    $with: &mut $crate::sweeping::Work<'_, '_, M>,
                ) -> Result<(), String> {
                    $work.map_err(|error| error.to_string())
                }
            }
            $crate::sweeping::refuse_each(&This, $room);
        }
    )* };
}

/// Sweeps what is done with any batch, large or small.
macro_rules! sweep_with {
    ($room:expr) => {
        sweep! {
            in batches of $room;
            protecting_a_whole_table: |pgd, with| pgd.protect(with, full(), READ_ONLY);
            unmapping_a_whole_table: |pgd, with| pgd.unmap(with, full());
            unmapping_most_of_a_table: |pgd, with| {
                pgd.unmap(with, Pages { start: full().start, count: 500 })
            };
            unmapping_pages_one_by_one: |pgd, with| pgd.unmap(with, sparse());
            mapping_through_tables_of_the_pool: |pgd, with| {
                pgd.map_pages(with, Pages { start: va(700, 1, 250), count: 12 }, PteFlags::USER_RW)
            };
            mapping_through_tables_that_are_filled_first: |pgd, with| {
                pgd.map_pages(with, Pages { start: va(700, 1, 200), count: 600 }, PteFlags::USER_RW)
            };
            pinning_each_l1_table_by_itself: |pgd, with| {
                let Tools { guest, batch, .. } = with;
                pgd.hold_l1_tables(guest, batch).map(drop).inspect_err(|refused| {
                    assert_eq!(refused.value, Ok(()));
                })
            };
            holding_and_then_protecting_a_whole_table: |pgd, with| {
                let Tools { guest, batch, .. } = &mut *with;
                let held = pgd.hold_l1_tables(guest, batch);
                let held = held.map_err(|error| error.to_string());
                held.and_then(|_| {
                    pgd.protect(with, full(), READ_ONLY).map_err(|error| error.to_string())
                })
            };
            holding_and_then_unmapping_whole_tables: |pgd, with| {
                let Tools { guest, batch, .. } = &mut *with;
                let held = pgd.hold_l1_tables(guest, batch);
                let held = held.map_err(|error| error.to_string());
                held.and_then(|_| pgd.unmap(with, full()).map_err(|error| error.to_string()))
            };
            forking_and_ending_the_child: |pgd, with| {
                let child = pgd.fork(with).map_err(|error| {
                    assert!(error.left.is_none(), "{error}");
                    error.to_string()
                });
                child.and_then(|child| child.destroy(with).map_err(|error| {
                    let reason = error.to_string();
                    let child = error.into_pgd().expect(&reason);
                    child.destroy(with).expect("only one request is refused");
                    reason
                }))
            };
            moving_a_table_under_new_ones: |pgd, with| {
                pgd.edit(with, |edit| edit.move_table(full().start, va(1000, 0, 0)))
            };
            replacing_a_frame: |pgd, with| {
                let frame = with.frames.take().expect("a frame");
                pgd.edit(with, |edit| edit.replace(full().start, READ_ONLY, frame))
            };
        }
    };
}
