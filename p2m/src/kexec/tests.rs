//! What stands in the way of a kexec, made and removed.
#![expect(unsafe_code, reason = "maps over numbers, with no memory behind them")]

use core::sync::atomic::AtomicU64;

use expect_test::expect;
use hypercall::grants::{GrantAccess, GrantRef};
use hypercall::{DomId, Frame, Mfn, Pfn};

use super::*;
use crate::map::tests::{list, map};

#[test]
fn a_guest_with_all_its_memory_and_nothing_shared_is_safe() {
    // Absent pfns behind the RAM of the memory map are no hazard: the next kernel does not use
    // them.
    let words = list(&[16, 17, 18, u64::MAX]);
    let p2m = map(&words);
    let ram = [Pfns::new(Pfn::new(0), 3)];
    let (entries, tables): ([AtomicU64; 4], AtomicU64) = Default::default();
    // SAFETY: no Xen reads it.
    let granted = unsafe { Granted::new(&entries, &tables) };
    let mut places = [None; 2];
    let maps = GrantMaps::new(&mut places);
    let state = KexecState { p2m: &p2m, ram: &ram, granted: Some(&granted), maps: Some(&maps) };
    assert!(state.kexec_is_safe().is_ok());
}

#[test]
fn each_hazard_is_counted_and_listed() {
    let foreign = P2mEntry::Foreign { owner: DomId(4), mfn: Mfn::new(0x99) };
    let foreign = foreign.encode().expect("a frame");
    let words = list(&[16, u64::MAX, u64::MAX, 19, foreign, u64::MAX]);
    let p2m = map(&words);
    let (entries, tables): ([AtomicU64; 4], AtomicU64) = Default::default();
    // SAFETY: no Xen reads it.
    let granted = unsafe { Granted::new(&entries, &tables) };
    // SAFETY: no memory is behind the number.
    let frame = unsafe { Frame::claim(Pfn::new(0)) };
    let given = granted.grant(&p2m, GrantRef(2), DomId(1), frame, GrantAccess::ReadWrite);
    let grant = given.expect("free");
    let ram = [Pfns::new(Pfn::new(0), 2), Pfns::new(Pfn::new(2), 2)];
    let state = KexecState { p2m: &p2m, ram: &ram, granted: Some(&granted), maps: None };
    let hazards = state.kexec_is_safe().expect_err("three kinds of hazards");
    let Hazards { ballooned, foreign, granted: grants, mapped, .. } = hazards;
    assert_eq!((ballooned, foreign, grants, mapped, hazards.total()), (2, 1, 1, 0, 4));
    expect![[r#"
        kexec is not safe:
          2 pages of RAM were given back to Xen:
            pfn 00001..00002  absent
            pfn 00002..00003  absent
          1 pages are frames of other domains:
            pfn 00004..00005  foreign  mfn 00099..0009a of domain 4
          1 frames are granted to other domains:
            grant 2: mfn 00010 to domain 1"#]]
    .assert_eq(&hazards.to_string());

    // Each goes away with its cause.
    let frame = grant.end().expect("nobody has it mapped");
    // SAFETY: no memory is behind these numbers.
    unsafe { p2m.clear_foreign(Pfn::new(4)) }.expect("marked");
    // SAFETY: as above.
    unsafe { p2m.populate(Pfn::new(1), Mfn::new(17)) }.expect("absent");
    let left = |state: KexecState<'_>| state.kexec_is_safe().expect_err("one hazard").to_string();
    expect![[r#"
        kexec is not safe:
          1 pages of RAM were given back to Xen:
            pfn 00002..00003  absent"#]]
    .assert_eq(&left(state));
    // SAFETY: as above.
    unsafe { p2m.populate(Pfn::new(2), Mfn::new(18)) }.expect("absent");
    assert!(state.kexec_is_safe().is_ok());
    let given = granted.grant(&p2m, GrantRef(3), DomId(1), frame, GrantAccess::ReadOnly);
    let _grant = given.expect("free");
    expect![[r#"
        kexec is not safe:
          1 frames are granted to other domains:
            grant 3: mfn 00010 to domain 1"#]]
    .assert_eq(&left(state));
}
