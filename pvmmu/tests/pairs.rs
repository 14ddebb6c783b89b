//! Every operation on an address space with two requests refused: whatever Xen refuses, also of the
//! undo, and of what puts right what the undo left. No frame has two owners, none is handed out
//! that a table, a page or another vCPU's TLB still leads to, and each is accounted for in the end.

mod common;
mod pairing;

use common::guest;
use hypercall::{FrameSource as _, Level, PteFlags};
use pairing::{CLEAN, Layout, READ_ONLY, Variant, end, few, many, start, sweep, va};
use pvmmu::Pages;
use pvmmu::primitive::WriteMode;

macro_rules! sweep {
    ($($name:ident, $layout:ident: |$spaces:ident, $with:ident| $work:expr;)*) => { $(
        #[test]
        fn $name() {
            sweep(stringify!($name), Layout::$layout, |$spaces, $with| { let _ = $work; });
        }
    )* };
}

sweep! {
    mapping_pages_under_new_tables, Few: |spaces, with| {
        spaces.first().map_pages(with, Pages { start: va(700, 1, 254), count: 3 }, CLEAN)
    };
    mapping_many_pages_under_a_new_table, Few: |spaces, with| {
        spaces.first().map_pages(with, Pages { start: va(700, 1, 0), count: 40 }, CLEAN)
    };
    mapping_pages_in_tables_that_are_there, Few: |spaces, with| {
        spaces.first().map_pages(with, Pages { start: va(1, 2, 500), count: 3 }, CLEAN)
    };
    mapping_one_frame, Few: |spaces, with| {
        let frame = with.frames.take().expect("a frame");
        match spaces.first().map(with, va(2, 0, 0), PteFlags::USER_RW, frame) {
            Ok(()) => {}
            Err(failed) => failed.value.into_iter().for_each(|frame| with.frames.give(frame)),
        }
    };
    unmapping_pages, Few: |spaces, with| spaces.first().unmap(with, few());
    unmapping_a_whole_table, Many: |spaces, with| spaces.first().unmap(with, many());
    unmapping_most_of_a_table, Many: |spaces, with| {
        spaces.first().unmap(with, Pages { count: 92, ..many() })
    };
    unmapping_and_reading_what_was_seen, Few: |spaces, with| {
        spaces.first().edit(with, |edit| edit.unmap_reading_ad(few(), &mut |_, _| {}))
    };
    clearing_what_was_seen, Few: |spaces, with| {
        spaces.first().edit(with, |edit| edit.clear_reading_ad(few(), &mut |_, _| {}))
    };
    protecting_pages, Few: |spaces, with| spaces.first().protect(with, few(), READ_ONLY);
    protecting_a_whole_table, Many: |spaces, with| {
        spaces.first().protect(with, many(), READ_ONLY)
    };
    moving_pages, Few: |spaces, with| spaces.first().remap(with, few(), va(9, 0, 0));
    moving_pages_to_a_table_that_is_there, Few: |spaces, with| {
        spaces.first().remap(with, few(), va(1, 2, 505))
    };
    moving_a_table, Many: |spaces, with| {
        spaces.first().edit(with, |edit| edit.move_table(va(1, 8, 0), va(9, 2, 0)))
    };
    replacing_a_frame, Few: |spaces, with| {
        let frame = with.frames.take().expect("a frame");
        spaces.first().edit(with, |edit| edit.replace(few().start, READ_ONLY, frame))
    };
    setting_the_flags_of_tables, Few: |spaces, with| {
        let flags = PteFlags::TABLE | PteFlags::NO_EXECUTE;
        spaces.first().edit(with, |edit| {
            edit.set_table_flags(Level::L4, few().start, flags)?;
            edit.set_table_flags(Level::L2, few().start, flags)
        })
    };
    setting_the_flags_of_one_page, Few: |spaces, with| {
        spaces.first().set_flags(&with.guest, few().start, READ_ONLY, WriteMode::Set, None)
    };
    holding_tables, Few: |spaces, with| {
        spaces.first().hold_l1_tables(&with.guest, &mut with.batch)
    };
    holding_a_table_and_unmapping_it, Many: |spaces, with| {
        let _ = spaces.first().hold_l1_tables(&with.guest, &mut with.batch);
        spaces.first().unmap(with, many())
    };
    holding_a_table_and_protecting_it, Many: |spaces, with| {
        let _ = spaces.first().hold_l1_tables(&with.guest, &mut with.batch);
        spaces.first().protect(with, many(), READ_ONLY)
    };
    holding_tables_and_ending, Few: |spaces, with| {
        let _ = spaces.first().hold_l1_tables(&with.guest, &mut with.batch);
        spaces.leave();
        end(spaces, with);
    };
    pinning, Few: |spaces, with| {
        let presence = with.presence;
        let variant = Variant { pooled: false, roots: 2, presence };
        let plain = guest(spaces.test, &spaces.test.model, with.guest.p2m());
        let loose = start(&mut with.on_machine(plain.machine()), Layout::Few, variant);
        match loose.pin(&with.guest, &mut with.batch) {
            Ok(pgd) => spaces.pinned.push(pgd),
            Err(error) => spaces.loose.push(error.pgd),
        }
    };
    unpinning, Few: |spaces, with| match spaces.take().unpin(&with.guest, &mut with.batch) {
        Ok(pgd) => spaces.loose.push(pgd),
        Err(error) => spaces.pinned.push(error.pgd),
    };
    holding_and_unpinning, Few: |spaces, with| {
        let _ = spaces.first().hold_l1_tables(&with.guest, &mut with.batch);
        match spaces.take().unpin(&with.guest, &mut with.batch) {
            Ok(pgd) => spaces.loose.push(pgd),
            Err(error) => spaces.pinned.push(error.pgd),
        }
    };
    destroying, Few: |spaces, with| {
        spaces.leave();
        end(spaces, with);
    };
    destroying_what_has_full_tables, Many: |spaces, with| {
        let _ = spaces.first().map_pages(with, Pages { start: va(3, 0, 0), count: 2 }, CLEAN);
        spaces.leave();
        end(spaces, with);
    };
    forking, Few: |spaces, with| spaces.fork(with);
    forking_and_writing_on_both_sides, Few: |spaces, with| {
        spaces.fork(with);
        for pgd in &mut spaces.pinned {
            let _ = pgd.edit(with, |edit| edit.make_own(few().start));
        }
    };
    forking_what_has_a_full_table, Many: |spaces, with| spaces.fork(with);
    filling_and_draining_a_pool, Few: |_spaces, with| {
        let _ = with.fill_pool(Level::L1, 3);
        with.drain_pool(Level::L1, 3)
    };
    many_changes_in_a_section, Few: |spaces, with| spaces.first().edit(with, |edit| {
        // What one of them meets, the next ones meet, too.
        let _ = edit.unmap(Pages { count: 1, ..few() });
        let _ = edit.map_pages(Pages { start: va(900, 0, 0), count: 2 }, CLEAN);
        let _ = edit.remap(Pages { start: va(1, 2, 511), count: 1 }, va(9, 0, 0));
        edit.protect(Pages { start: va(1, 2, 512), count: 1 }, READ_ONLY)
    });
}
