//! What a section reads is what it has written, to the last page of what is pending: nothing that
//! is read is behind a change of its own.

use hypercall::PteFlags;
use hypercall::middleware::Refusals;
use pvmmu::{Pages, Presence};

use crate::stage::{MAPPED, READ_ONLY, Setup, never_stale, play};

#[test]
fn a_step_back_by_one_page_sees_what_is_pending_there() {
    for count in [1, 2, 8, 20] {
        never_stale(Setup::PLAIN, &|pgd, with| {
            let pages = Pages { count, ..MAPPED };
            let last = Pages::one(pages.at(count - 1).expect("mapped"));
            let edited = pgd.edit(with, |edit| {
                edit.unmap(pages)?;
                // It is free: what was there is pending.
                edit.map_pages(last, PteFlags::USER_RW)?;
                // It is there: that is pending.
                edit.protect(last, READ_ONLY)?;
                edit.unmap(last)
            });
            edited.map_err(|error| error.to_string())
        });
    }
}

/// A CPU that has a page as dirty in its TLB does not mark it again.
#[test]
fn no_tlb_has_a_page_whose_accessed_and_dirty_bits_are_cleared() {
    for presence in [Presence::Steady, Presence::MayVanish] {
        let setup = Setup { presence, ..Setup::PLAIN };
        play(setup, &Refusals::new(&[], &[]), &|pgd, with, second| {
            let pages = Pages { count: 20, ..MAPPED };
            let mut dirty = 0;
            let cleared = pgd.edit(with, |edit| {
                edit.clear_reading_ad(pages, &mut |_, flags| {
                    dirty += u32::from(flags.contains(PteFlags::DIRTY));
                })
            });
            cleared.map_err(|error| error.to_string())?;
            assert_eq!(dirty, 12, "so many of them were used");
            let held = (0..20).filter(|at| second.holds(pages.at(*at).expect("mapped"))).count();
            assert_eq!(held, 0, "{presence:?}: pages whose next write may go unnoticed");
            Ok(())
        });
    }
}

#[test]
fn a_page_that_is_changed_twice_in_a_section_keeps_the_second_change() {
    never_stale(Setup::PLAIN, &|pgd, with| {
        let last = Pages::one(MAPPED.at(7).expect("mapped"));
        let edited = pgd.edit(with, |edit| {
            edit.protect(Pages { count: 8, ..MAPPED }, READ_ONLY)?;
            edit.unmap(last)
        });
        edited.map_err(|error| error.to_string())?;
        let left = pgd.translate(&with.guest, last.start).map_err(|error| error.to_string())?;
        assert!(left.is_none(), "{left:?}");
        Ok(())
    });
}
