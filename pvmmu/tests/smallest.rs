//! What needs more than one update at once, with the smallest batch that this crate takes, and with
//! each request refused in turn; and what is said of a smaller one.

mod common;
#[macro_use]
mod sweeping;

use hypercall::{Level, PteFlags};
use pvmmu::{FrameSource as _, Pages, Presence, SMALLEST_BATCH, Tools};
use sweeping::{READ_ONLY, full, sparse, va};

sweep! {
    in batches of SMALLEST_BATCH;
    protecting_a_whole_table: |pgd, with| pgd.protect(with, full(), READ_ONLY);
    protecting_pages_in_place: |pgd, with| {
        with.presence = Presence::Steady;
        pgd.protect(with, sparse(), READ_ONLY)
    };
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
    mapping_under_a_root_without_tables_of_a_pool: |pgd, with| {
        let tables = &mut pvmmu::TablePool::new([&mut [], &mut [], &mut []]);
        let Tools { context, batch, frames, reach, presence, .. } = &mut *with;
        let (context, reach, presence) = (*context, *reach, *presence);
        let with = &mut Tools { context, batch, tables, frames: &mut **frames, reach, presence };
        pgd.map_pages(with, Pages { start: va(800, 1, 250), count: 9 }, PteFlags::USER_RW)
    };
    holding_each_l1_table: |pgd, with| {
        let Tools { context, batch, .. } = with;
        pgd.hold_l1_tables(context, batch).map(drop).map_err(|(failure, undo)| {
            assert_eq!(undo, Ok(()));
            failure
        })
    };
    holding_and_then_protecting_a_whole_table: |pgd, with| {
        let Tools { context, batch, .. } = &mut *with;
        let held = pgd.hold_l1_tables(context, batch).map_err(|(failure, _)| failure.to_string());
        held.and_then(|_| {
            pgd.protect(with, full(), READ_ONLY).map_err(|error| error.to_string())
        })
    };
    holding_and_then_unmapping_a_whole_table: |pgd, with| {
        let Tools { context, batch, .. } = &mut *with;
        let held = pgd.hold_l1_tables(context, batch).map_err(|(failure, _)| failure.to_string());
        held.and_then(|_| pgd.unmap(with, full()).map_err(|error| error.to_string()))
    };
    filling_and_draining_a_pool: |_pgd, with| {
        let Tools { context, batch, tables, frames, .. } = with;
        let filled = tables.fill(context, (Level::L1, 5), *frames, batch);
        filled.and_then(|_| tables.drain(context, (Level::L1, 9), *frames)).map(drop)
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
    making_a_table_read_only_for_all_its_pages: |pgd, with| {
        let flags = PteFlags::PRESENT | PteFlags::USER;
        pgd.edit(with, |edit| edit.set_table_flags((Level::L4, full().start), flags))
    };
    moving_a_table_under_new_ones: |pgd, with| {
        pgd.edit(with, |edit| edit.move_table(full().start, va(1000, 0, 0)))
    };
    replacing_a_frame: |pgd, with| {
        let frame = with.frames.take().expect("a frame");
        pgd.edit(with, |edit| edit.replace((full().start, READ_ONLY), frame))
    };
}
