//! Pages that two spaces share: what was writable must not be written by way of a TLB.

use hypercall::GuestVa;
use pvmmu::{Mapped, Pages, Pgd, Pinned, Presence};

use crate::stage::{From, MAPPED, Setup, Uses, With, in_every_way, never_stale};

fn told(error: impl ToString) -> String {
    error.to_string()
}

/// What there is of a page that was written first.
fn make_own(pgd: &mut Pgd<Pinned>, with: &mut With<'_, '_>, va: GuestVa) -> Result<(), String> {
    pgd.edit(with, |edit| edit.make_own(va)).map_err(told)
}

/// Lets the child let go of its pages, however often that is refused: one request is.
fn end(child: Pgd<Pinned>, with: &mut With<'_, '_>) -> Result<(), String> {
    let Err(error) = child.destroy(with) else { return Ok(()) };
    let reason = error.to_string();
    let child = error.into_pgd().expect(&reason);
    child.destroy(with).map_err(told)?;
    Err(reason)
}

#[test]
fn pages_that_are_shared_with_a_child() {
    in_every_way(&|pgd, with| {
        let child = pgd.fork(with).map_err(told)?;
        end(child, with)
    });
}

#[test]
fn few_pages_that_are_shared_with_a_child() {
    in_every_way(&|pgd, with| {
        pgd.unmap(with, Pages { start: MAPPED.at(20).expect("mapped"), count: 500 })
            .map_err(told)?;
        let child = pgd.fork(with).map_err(told)?;
        end(child, with)
    });
}

/// The vCPU runs on the parent, which gets a copy; the frame that it had before is the child's.
#[test]
fn a_page_that_becomes_a_copy() {
    in_every_way(&|pgd, with| {
        let child = pgd.fork(with).map_err(told)?;
        let copied = make_own(pgd, with, MAPPED.start);
        end(child, with).and(copied)
    });
}

/// A page that is nobody else's any more is written through the TLB that knows it as read-only.
#[test]
fn the_last_one_to_have_a_page_writes_to_it_on_every_vcpu() {
    for (presence, from) in [(Presence::Steady, From::Frames), (Presence::MayVanish, From::Pool)] {
        let setup = Setup { presence, from, ..Setup::PLAIN };
        crate::stage::play(
            setup,
            &hypercall::middleware::Refusals::new(&[], &[]),
            &|pgd, with, second| {
                let mut child = pgd.fork(with).map_err(told)?;
                second.use_pages();
                let va = MAPPED.start;
                make_own(&mut child, with, va)?;
                assert!(!second.writes(va), "the parent's is read-only until it asks");
                second.use_pages();
                assert!(second.holds(va));
                make_own(pgd, with, va)?;
                let page = pgd.translate(&with.guest, va).map_err(told)?;
                assert!(page.is_some_and(|page| matches!(page.frame, Mapped::Own(_))));
                assert!(!second.holds(va), "with what its TLB has it would fault for nothing");
                assert!(second.writes(va));
                assert_eq!(second.stale(), Vec::<String>::new());
                end(child, with)
            },
        );
    }
}

#[test]
fn a_frame_that_a_child_lets_go_of_is_still_the_parents() {
    let setup = Setup { uses: Uses::Around, ..Setup::PLAIN };
    never_stale(setup, &|pgd, with| {
        let child = pgd.fork(with).map_err(told)?;
        let other = pgd.fork(with).map_err(told)?;
        end(child, with)?;
        end(other, with)
    });
}
