//! Operations on a live space: in every way, and with each of their requests refused.

use hypercall::{FrameSource as _, Level, PteFlags};
use pvmmu::{Pages, Pgd, Pinned, Tools};

use crate::stage::{BESIDE, ELSEWHERE, MAPPED, READ_ONLY, TABLE, With, in_every_way};

const FEW: Pages = Pages { count: 8, ..MAPPED };
/// More than are flushed one by one.
const SOME: Pages = Pages { count: 12, ..MAPPED };

/// Makes a test of each operation.
macro_rules! in_every_way {
    ($($name:ident: |$pgd:ident, $with:ident| $run:expr;)*) => { $(
        #[test]
        fn $name() {
            fn run(
                $pgd: &mut Pgd<Pinned>,
                $with: &mut With<'_, '_>,
            ) -> Result<(), String> {
                $run.map_err(|error| error.to_string())
            }
            in_every_way(&run);
        }
    )* };
}

in_every_way! {
    a_page_that_is_protected: |pgd, with| pgd.protect(with, Pages::one(MAPPED.start), READ_ONLY);
    pages_that_are_protected_one_by_one: |pgd, with| pgd.protect(with, FEW, READ_ONLY);
    pages_that_are_protected_at_once: |pgd, with| pgd.protect(with, SOME, READ_ONLY);
    whole_tables_that_are_protected: |pgd, with| pgd.protect(with, MAPPED, READ_ONLY);
    pages_whose_accessed_and_dirty_bits_are_cleared: |pgd, with| {
        pgd.edit(with, |edit| edit.clear_reading_ad(SOME, &mut |_, _| {}))
    };
    a_page_that_becomes_writable_for_a_moment: |pgd, with| pgd.edit(with, |edit| {
        edit.protect(FEW, READ_ONLY)?;
        edit.submit()?;
        edit.protect(FEW, PteFlags::USER_RW)?;
        edit.protect(SOME, READ_ONLY)
    });
    a_page_that_is_unmapped: |pgd, with| pgd.unmap(with, Pages::one(MAPPED.start));
    pages_that_are_unmapped_one_by_one: |pgd, with| pgd.unmap(with, FEW);
    pages_that_are_unmapped_at_once: |pgd, with| pgd.unmap(with, SOME);
    most_of_a_table_that_is_unmapped: |pgd, with| {
        pgd.unmap(with, Pages { count: 500, ..TABLE })
    };
    whole_tables_that_are_unmapped: |pgd, with| pgd.unmap(with, MAPPED);
    pages_that_are_unmapped_and_asked_for_accessed_and_dirty: |pgd, with| {
        pgd.edit(with, |edit| edit.unmap_reading_ad(SOME, &mut |_, _| {}))
    };
    pages_that_move: |pgd, with| pgd.remap(with, SOME, ELSEWHERE);
    a_page_that_moves: |pgd, with| pgd.remap(with, Pages::one(TABLE.start), ELSEWHERE);
    a_whole_table_whose_pages_move: |pgd, with| pgd.remap(with, TABLE, ELSEWHERE);
    a_table_that_moves: |pgd, with| {
        pgd.edit(with, |edit| edit.move_table(TABLE.start, ELSEWHERE))
    };
    a_frame_that_is_replaced: |pgd, with| {
        let frame = with.frames.take().expect("a frame");
        pgd.edit(with, |edit| edit.replace(MAPPED.start, PteFlags::USER_RW, frame))
    };
    a_frame_that_is_replaced_by_one_that_is_read_only: |pgd, with| {
        let frame = with.frames.take().expect("a frame");
        pgd.edit(with, |edit| edit.replace(TABLE.start, READ_ONLY, frame))
    };
    pages_that_are_mapped_where_there_were_none: |pgd, with| {
        pgd.map_pages(with, Pages { start: ELSEWHERE, count: 9 }, PteFlags::USER_RW)
    };
    pages_that_are_mapped_beside_others: |pgd, with| {
        pgd.map_pages(with, Pages { start: BESIDE, count: 9 }, PteFlags::USER_RW)
    };
    a_page_that_is_unmapped_and_mapped_again: |pgd, with| pgd.edit(with, |edit| {
        edit.unmap(FEW)?;
        edit.map_pages(FEW, READ_ONLY)
    });
    a_table_that_is_made_read_only: |pgd, with| {
        let flags = PteFlags::TABLE - PteFlags::WRITABLE;
        pgd.edit(with, |edit| edit.set_table_flags(Level::L2, TABLE.start, flags))
    };
    tables_of_every_level_that_are_made_read_only: |pgd, with| pgd.edit(with, |edit| {
        let flags = PteFlags::TABLE - PteFlags::WRITABLE;
        edit.set_table_flags(Level::L3, TABLE.start, flags)?;
        edit.set_table_flags(Level::L4, TABLE.start, flags)
    });
    tables_that_are_held_and_then_unmapped: |pgd, with| {
        let Tools { guest, batch, .. } = &mut *with;
        let held = pgd.hold_l1_tables(guest, batch).map_err(|error| error.to_string());
        held.and_then(|_| pgd.unmap(with, SOME).map_err(|error| error.to_string()))
    };
}
