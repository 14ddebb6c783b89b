//! I-17: what is granted to another domain is in no other hands.
#![expect(dead_code, reason = "what the compiler refuses is not run")]

use std::sync::atomic::AtomicU64;

use hypercall::Frame;
use hypercall::grants::Grants;
use p2m::Guest;
use p2m::grants::{Grant, GrantMaps, Granted};

fn a_grant_table_is_taken_by_unsafe_code_alone<'a>(
    entries: &'a [AtomicU64],
    tables: &'a AtomicU64,
) -> Granted<'a> {
    owed!(Granted::new(entries, tables)) //~ E0133
}

fn a_frame_that_may_be_mapped_comes_back_by_unsafe_code_alone(grant: Grant<'_>) -> Frame {
    owed!(grant.vouch()) //~ E0133
}

fn anothers_frame_is_mapped_by_unsafe_code_alone(
    maps: &mut GrantMaps<'_>,
    guest: &Guest<'_, impl Grants>,
) {
    owed!(maps.map(guest, &[], &mut [])); //~ E0133
}

hidden! {
    use hypercall::{DomId, Mfn};
    use hypercall::grants::{GrantAccess, GrantRef};
    use p2m::P2m;

    fn a_frame_is_not_granted_by_its_number(granted: &Granted<'_>, p2m: &P2m<'_>) {
        let (entry, access) = (GrantRef(8), GrantAccess::ReadWrite);
        granted.grant(p2m, entry, DomId(1), Mfn::new(1), access); //~ E0308
    }

    fn a_frame_that_is_granted_is_in_no_other_hands(
        granted: &Granted<'_>,
        p2m: &P2m<'_>,
        frame: Frame,
    ) -> Frame {
        let (entry, access) = (GrantRef(8), GrantAccess::ReadWrite);
        granted.grant(p2m, entry, DomId(1), frame, access);
        frame //~ E0382
    }

    fn a_grant_is_not_ended_twice(grant: Grant<'_>) {
        let _ = grant.end();
        let _ = grant.end(); //~ E0382
    }

    fn the_frame_of_a_grant_is_not_taken_out(grant: Grant<'_>) -> Frame {
        grant.frame //~ E0616
    }
}
