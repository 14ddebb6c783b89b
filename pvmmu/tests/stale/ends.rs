//! Spaces that end, tables that come and go.

use hypercall::Level;
use hypercall::middleware::Refusals;
use pvmmu::Pages;

use crate::stage::{ELSEWHERE, From, MAPPED, Setup, in_every_way, play};

/// Nobody may run on a space that is destroyed. If a vCPU does all the same, Xen does not let its
/// tables become plain memory. Its pages are gone by then, from the vCPU's TLB too.
#[test]
fn pages_of_a_space_that_ends_while_a_vcpu_runs_on_it() {
    for from in [From::Frames, From::Pool, From::PoolOfLowest] {
        let setup = Setup { from, ..Setup::PLAIN };
        play(setup, &Refusals::new(&[], &[]), &|pgd, with, second| {
            // Few are left, so that they go one by one.
            let rest = Pages { count: 512, start: MAPPED.at(4).expect("mapped") };
            pgd.unmap(with, rest).map_err(|error| error.to_string())?;
            let roots = pvmmu::Pgd::with_user_root(with);
            let other = roots.map_err(|error| error.to_string())?;
            let other =
                other.pin(&with.guest, &mut with.batch).map_err(|error| error.to_string())?;
            second.use_pages();
            let running = core::mem::replace(pgd, other);
            let error = running.destroy(with).expect_err("a vCPU runs on it");
            assert!(error.into_pgd().is_some());
            second.use_pages();
            assert_eq!(second.stale(), Vec::<String>::new(), "{setup:?}");
            Ok(())
        });
    }
}

#[test]
fn tables_that_go_to_the_pool_and_come_from_it() {
    in_every_way(&|pgd, with| {
        pgd.unmap(with, MAPPED).map_err(|error| error.to_string())?;
        let drained = with.drain_pool(Level::L1, 8);
        drained.map_err(|error| error.to_string())?;
        let filled = with.fill_pool(Level::L1, 3);
        filled.map_err(|error| error.to_string())?;
        let pages = Pages { start: ELSEWHERE, count: 20 };
        let mapped = pgd.map_pages(with, pages, hypercall::PteFlags::USER_RW);
        mapped.map_err(|error| error.to_string())
    });
}
