//! Pfns for grants: apart from RAM, as many as there are, and no more.
#![expect(unsafe_code, reason = "maps grants in a guest that exists only in the model")]

mod common;

use balloon::{Balloon, BalloonError, EmptyPfn, Next, Reserve, StepStorage, Wipe};
use common::{Guest, PAGES, SPAN, config, settle, words};
use hypercall::grants::{GrantAccess, GrantRef};
use hypercall::{DomId, FrameAccess as _, Pfn};
use p2m::grants::{GrantError, GrantMaps, MapRequest};
use p2m::{P2mEntry, P2mError};
use xen_model::{DomainConfig, GrantEntry, Model, Role};

/// A guest beside a dom0 that grants it a frame.
fn guest() -> Guest {
    let guest = Guest::of(
        Model::builder().seed(5).guest(config()).other(DomainConfig::new(Role::Dom0, 1024)),
    );
    let dom0 = guest.model.vcpu(0, 0).expect("dom0");
    let frame = dom0.built_mfn(Pfn::new(700)).expect("a page");
    let domain = guest.model.guest().domain();
    dom0.write_grant(8, GrantEntry { flags: 1, domain, frame }).expect("an entry");
    guest
}

/// What to map as a pfn of the reserve.
fn request(guest: &Guest, empty: &EmptyPfn, reference: u32) -> MapRequest {
    MapRequest {
        pfn: empty.pfn(),
        va: guest.model.direct_map(empty.pfn()).expect("an address"),
        domain: DomId(0),
        reference: GrantRef(reference),
        access: GrantAccess::ReadWrite,
    }
}

#[test]
fn a_grant_is_mapped_and_unmapped_while_ram_goes_out_and_in() {
    let guest = guest();
    let (mut words, mut stack) = (words(), guest.stack());
    let asked = Balloon::new(&guest.around(), &mut words, 0, Wipe::Never);
    let (mut balloon, _) = asked.expect("the model answers");
    let mut bits = [0; 1];
    let (mut reserve, rest) =
        Reserve::new(&mut balloon, guest.p2m, guest.empty(), &mut bits).expect("empty pfns");
    assert_eq!((reserve.free(), reserve.count(), rest.count()), (64, 64, SPAN - PAGES - 64));
    balloon.add_empty(guest.p2m, rest).expect("empty pfns");

    let empty = reserve.take().expect("one of 64");
    let mut places = [None; 4];
    let mut maps = GrantMaps::new(&mut places);
    let mut results = [Err(GrantError::NoPlace(empty.pfn()).into())];
    let requests = [request(&guest, &empty, 8)];
    // SAFETY: the address is the reserve's, and nothing is mapped there.
    unsafe { maps.map(&guest.around(), &requests, &mut results) };
    let mapped = results[0].expect("granted");
    assert_eq!(
        guest.p2m.entry(empty.pfn()),
        Ok(P2mEntry::Foreign { owner: DomId(0), mfn: mapped.mfn })
    );

    // The balloon neither gives the foreign frame away nor puts memory where it is.
    let around = guest.around();
    for target in [PAGES - 400, SPAN] {
        balloon.set_target(target);
        let last = settle(around, &mut balloon, &mut stack, &mut StepStorage::<600>::new());
        assert_eq!(last.next, Next::Idle);
        assert!(last.accounts.is_balanced(), "{}", last.accounts);
    }
    assert_eq!(balloon.goal().frames, SPAN - 64, "the reserve never gets memory");

    let refused = reserve.give(guest.p2m, empty).expect_err("it is mapped still");
    assert!(matches!(refused.error, BalloonError::NotEmpty(P2mError::Occupied { .. })));
    let empty = refused.value;
    // SAFETY: nobody uses it.
    unsafe { maps.unmap(&guest.around(), empty.pfn()) }.expect("mapped");
    reserve.give(guest.p2m, empty).expect("empty again");
    assert_eq!(reserve.free(), 64);
    guest.check();
}

#[test]
fn a_grant_that_is_refused_leaves_the_pfn_empty() {
    let guest = guest();
    let mut words = words();
    let asked = Balloon::new(&guest.around(), &mut words, 0, Wipe::Never);
    let (mut balloon, _) = asked.expect("the model answers");
    let mut bits = [0; 1];
    let (mut reserve, _rest) =
        Reserve::new(&mut balloon, guest.p2m, guest.empty(), &mut bits).expect("empty pfns");
    let empty = reserve.take().expect("one of 64");
    let mut places = [None; 4];
    let mut maps = GrantMaps::new(&mut places);
    let mut results = [Err(GrantError::NoPlace(empty.pfn()).into())];
    // SAFETY: as above.
    unsafe { maps.map(&guest.around(), &[request(&guest, &empty, 9)], &mut results) };
    let result = results[0].map_err(|not_mapped| not_mapped.error);
    assert!(matches!(result, Err(GrantError::Refused { .. })), "{result:?}");
    reserve.give(guest.p2m, empty).expect("nothing was mapped");
    guest.check();
}

#[test]
fn the_reserve_ends() {
    let guest = guest();
    let mut words = words();
    let asked = Balloon::new(&guest.around(), &mut words, 0, Wipe::Never);
    let (mut balloon, _) = asked.expect("the model answers");
    let (mut bits, mut others) = ([0; 1], [0; 1]);
    let (mut reserve, rest) =
        Reserve::new(&mut balloon, guest.p2m, guest.empty(), &mut bits).expect("empty pfns");
    let (mut other, _) =
        Reserve::new(&mut balloon, guest.p2m, rest, &mut others).expect("empty pfns");
    let mut taken: Vec<_> = core::iter::from_fn(|| reserve.take()).collect();
    assert_eq!((taken.len(), reserve.free()), (64, 0));
    taken.sort_by_key(EmptyPfn::pfn);
    taken.dedup();
    assert_eq!(taken.len(), 64, "each pfn once");
    // One of another reserve is told apart.
    let stranger = other.take().expect("8 of them");
    let pfn = stranger.pfn();
    let refused = reserve.give(guest.p2m, stranger).expect_err("it is the other's");
    assert_eq!(refused.error, BalloonError::OtherReserve(pfn));
    for empty in taken {
        reserve.give(guest.p2m, empty).expect("empty");
    }
    assert_eq!(reserve.free(), 64);
}

#[test]
fn what_has_memory_is_no_reserve() {
    let guest = guest();
    let mut words = words();
    let asked = Balloon::new(&guest.around(), &mut words, 0, Wipe::Never);
    let (mut balloon, _) = asked.expect("the model answers");
    // SAFETY: the guest exists only in the model.
    let ram = unsafe { hypercall::Frames::claim(Pfn::new(PAGES - 1), 2) };
    let refused =
        Reserve::new(&mut balloon, guest.p2m, ram, &mut []).expect_err("the first is RAM");
    assert_eq!((refused.value.count(), refused.error.to_string().contains("already")), (2, true));
}
