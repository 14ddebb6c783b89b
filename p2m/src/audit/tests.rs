//! Maps that are wrong in every way that an audit finds.
#![expect(unsafe_code, reason = "publishes a list that no toolstack reads")]

use expect_test::expect;
use hypercall::shared_info::ArchSharedInfo;

use super::*;
use crate::map::tests::{M2p, guest, list, map};

/// pfn k has mfn k + 16, but for what the test changes.
fn machine(pfns: u64) -> M2p {
    let before = (0..16).map(|_| None);
    M2p(before.chain((0..pfns).map(|pfn| Some(Pfn::new(pfn)))).collect())
}

fn good(pfns: u64) -> Vec<u64> {
    (16..16 + pfns).collect()
}

const OWNER: DomId = DomId(9);

fn foreign(mfn: u64) -> u64 {
    P2mEntry::Foreign { owner: OWNER, mfn: Mfn::new(mfn) }.encode().expect("a frame")
}

#[test]
fn a_true_map_is_clean_in_one_go_or_in_steps() {
    let (words, m2p) = (list(&good(1000)), machine(1000));
    let p2m = map(&words);
    let mut places = [None; 4];
    let mut audit = Audit::begin(&mut places);
    audit.run(&guest(&m2p, &p2m));
    let whole = audit.report().to_string();
    assert!(audit.report().is_clean(), "{whole}");
    let mut places = [None; 4];
    let mut audit = Audit::begin(&mut places);
    assert_eq!(audit.step(&guest(&m2p, &p2m), 300), Progress::More(Pfn::new(300)));
    let mut steps = 1;
    while audit.step(&guest(&m2p, &p2m), 300) != Progress::Done {
        steps += 1;
    }
    assert_eq!((steps, audit.report().to_string()), (3, whole));
}

#[test]
fn everything_that_is_wrong_is_found_and_neighbours_are_one_finding() {
    let (mut words, mut m2p) = (good(40), machine(40));
    words[3] = 16 + 5; // a frame behind two pfns
    m2p.0[16 + 8] = Some(Pfn::new(30)); // M2P has it elsewhere
    for mfn in 16 + 10..16 + 14 {
        m2p.0[mfn] = None; // no frames of the guest's, four in a row
    }
    words[20] = foreign(16 + 1); // the guest's own frame, marked foreign
    words[21] = foreign(4000); // a foreign frame
    words[22] = 1 << 62; // pfn 0x16 as identity: mfn 0x16 is pfn 6
    words[23] = u64::MAX;
    let words = list(&words);
    let p2m = map(&words);
    let mut places = [None; 16];
    let mut audit = Audit::begin(&mut places);
    audit.run(&guest(&m2p, &p2m));
    audit.compare_reservation(35);
    expect![[r#"
        audit of 40 pfns: 36 ram, 1 absent, 1 identity, 2 foreign
          pfn 00003: mfn 00015 is behind pfn 00005, too
          pfn 00008: mfn 00018 is pfn 0001e in M2P
          pfn 0000a..0000e: mfn 0001a is not in M2P, and so on
          pfn 00014: mfn 00011, marked as of domain 9, is pfn 00001
          pfn 00016: the frame of this number is pfn 00006
          the map has 36 frames of RAM, Xen counts 35
        findings: 6"#]]
    .assert_eq(&audit.report().to_string());
    expect![[r#"
        audit pfns=40 ram=36 absent=1 identity=1 foreign=2 findings=6 dropped=0
        finding start=3 count=1 kind=duplicate mfn=21 other=5
        finding start=8 count=1 kind=m2p_elsewhere mfn=24 m2p=30
        finding start=10 count=4 kind=not_in_m2p mfn=26
        finding start=20 count=1 kind=foreign_is_own owner=9 mfn=17 own=1
        finding start=22 count=1 kind=identity_is_own own=6
        finding start=0 count=0 kind=reservation map=36 xen=35"#]]
    .assert_eq(&audit.report().records().to_string());

    // A guest that maps its own grants has such frames, and knows its number.
    let mut places = [None; 16];
    let mut audit = Audit::begin(&mut places).of_domain(OWNER);
    audit.run(&guest(&m2p, &p2m));
    assert_eq!(audit.report().findings().count(), 4);

    // What finds no place is counted.
    let mut places = [None; 2];
    let mut audit = Audit::begin(&mut places);
    audit.run(&guest(&m2p, &p2m));
    assert_eq!((audit.report().findings.len(), audit.report().dropped), (2, 6));
    assert!(audit.report().to_string().ends_with("findings: 2, and 6 pfns not listed"));
}

#[test]
fn findings_are_one_if_they_are_alike_and_neighbours() {
    let (mut words, mut m2p) = (good(8), machine(8));
    for mfn in [16 + 1, 16 + 3, 16 + 4] {
        m2p.0[mfn] = None;
    }
    words[5] = 16; // another kind, right behind
    let words = list(&words);
    let p2m = map(&words);
    let mut places = [None; 8];
    let mut audit = Audit::begin(&mut places);
    audit.run(&guest(&m2p, &p2m));
    // Nothing lies between these two, and neither is about a pfn.
    audit.compare_reservation(4);
    audit.compare_reservation(5);
    let found = audit.report().records().to_string();
    let found: Vec<_> = found.lines().skip(1).map(|line| line.split(" mfn").next()).collect();
    assert_eq!(
        found,
        [
            "finding start=1 count=1 kind=not_in_m2p",
            "finding start=3 count=2 kind=not_in_m2p",
            "finding start=5 count=1 kind=duplicate",
            "finding start=0 count=0 kind=reservation map=8 xen=4",
            "finding start=0 count=0 kind=reservation map=8 xen=5",
        ]
        .map(Some)
    );
}

#[test]
fn what_a_toolstack_would_misread_is_found() {
    let (words, m2p) = (list(&good(8)), machine(8));
    let p2m = map(&words);
    let arch = ArchSharedInfo::default();
    let toolstack = Toolstack::new(&arch);
    let list = GuestVa::new(0xffff_9000_0000_0000).expect("a guest address");
    let root = Mfn::new(17);
    let found = |expected: Option<(GuestVa, Mfn)>| {
        let mut places = [None; 8];
        let mut audit = Audit::begin(&mut places);
        audit.run(&guest(&m2p, &p2m));
        audit.check_toolstack(&toolstack, &p2m, expected);
        let text = audit.report().records().to_string();
        text.lines()
            .skip(1)
            .map(|line| line.split("kind=").nth(1).expect("a kind").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(found(None), ["max_pfn published=0 needed=8 len=8", "not_published"]);
    let unaligned = GuestVa::new(0xffff_ffff_8067_4000).expect("a guest address");
    // SAFETY: no toolstack reads it.
    assert!(unsafe { toolstack.publish_list(&p2m, unaligned, root) }.is_err());
    assert_eq!(toolstack.read().cr3, 0, "nothing was published");
    // SAFETY: as above.
    unsafe { toolstack.publish_list(&p2m, list, root) }.expect("aligned");
    assert_eq!(found(Some((list, root))), Vec::<String>::new());
    let elsewhere = "list_elsewhere cr3=69632 list=18446620928407240704";
    // After a restore the root has another frame.
    assert_eq!(found(Some((list, Mfn::new(99)))), [elsewhere]);
    let change = toolstack.changing();
    assert_eq!(found(Some((list, root))), ["generation_odd generation=1"]);
    drop(change);
    assert_eq!(found(Some((list, root))), Vec::<String>::new());
    toolstack.withdraw_list();
    assert_eq!(
        found(Some((list, root))),
        ["list_elsewhere cr3=0 list=18446620928407240704", "not_published"]
    );
}

#[test]
fn a_step_looks_at_no_more_words_than_it_is_told() {
    let (mut words, m2p) = (good(8), machine(8));
    words[1] = u64::MAX;
    words[2] = foreign(4000);
    words[5] = u64::MAX;
    let words = list(&words);
    let p2m = map(&words);
    for words_max in [1, 2, 3, 7] {
        let mut places = [None; 4];
        let mut audit = Audit::begin(&mut places);
        for next in (words_max..8).step_by(usize::try_from(words_max).expect("a small number")) {
            assert_eq!(audit.step(&guest(&m2p, &p2m), words_max), Progress::More(Pfn::new(next)));
        }
        assert_eq!(audit.step(&guest(&m2p, &p2m), words_max), Progress::Done);
        let header = "audit of 8 pfns: 5 ram, 2 absent, 0 identity, 1 foreign";
        assert!(audit.report().to_string().starts_with(header), "{}", audit.report());
    }
}

#[test]
fn max_pfn_is_to_lie_behind_the_last_frame_and_within_the_map() {
    let (absent, identity) = (u64::MAX, 1 << 62);
    let (ram, alien) = (18, foreign(4000));
    for (words, needed) in [
        ([16, 17, ram, absent], 3),
        ([16, 17, alien, absent], 3),
        ([16, 17, alien, identity], 3),
        ([16, 17, identity, absent], 2),
        ([16, alien, absent, identity], 2),
        ([absent, identity, absent, alien], 4),
    ] {
        let words = list(&words);
        let p2m = map(&words);
        let arch = ArchSharedInfo::default();
        let toolstack = Toolstack::new(&arch);
        for published in 0..=6 {
            let longer = list(&good(published.max(1)));
            if published > 0 {
                toolstack.raise_max_pfn(&map(&longer));
            }
            let mut places = [None; 8];
            let mut audit = Audit::begin(&mut places);
            audit.run(&guest(&machine(8), &p2m));
            audit.check_toolstack(&toolstack, &p2m, None);
            let text = audit.report().records().to_string();
            let wanted = format!("kind=max_pfn published={published} needed={needed} len=4");
            assert_eq!(text.contains(&wanted), !(needed..=4).contains(&published), "{text}");
        }
    }
}

#[test]
fn max_pfn_never_goes_back() {
    let arch = ArchSharedInfo::default();
    let toolstack = Toolstack::new(&arch);
    for (len, published) in [(8, 8), (3, 8), (20, 20), (19, 20)] {
        let words = list(&good(len));
        toolstack.raise_max_pfn(&map(&words));
        assert_eq!(toolstack.read().max_pfn, published);
    }
}
