//! Every error of the crate, as a person reads it.
#![cfg(not(loom))]
#![expect(unsafe_code, reason = "claims a frame that exists only as a number")]

use expect_test::expect;
use hypercall::{AccessError, DomId, Frames, Full, GrantRef, GrantStatus, Mfn, Pfn};
use p2m::{
    FrameListError, GrantError, GrantFailure, NoDirectEntry, OpenError, Outstanding, P2mEntry,
    P2mError, UnalignedList, UnmapFailure, WindowError, WindowFailure,
};
use pv_tests::words::{read, refusal, va};

const PFN: Pfn = Pfn::new(0x12);
const MFN: Mfn = Mfn::new(0x203);
const OTHER: P2mEntry = P2mEntry::Foreign { owner: DomId(3), mfn: MFN };
const ACCESS: AccessError = AccessError::Unmapped(PFN);

#[test]
fn what_is_wrong_with_a_pfn_or_an_mfn() {
    let disagreement = |p2m| P2mError::Disagreement { mfn: MFN, m2p: PFN, p2m };
    let errors = [
        P2mError::Empty,
        P2mError::OutOfRange { pfn: PFN, len: 16 },
        P2mError::Absent(PFN),
        P2mError::NotRam { pfn: PFN, entry: OTHER },
        P2mError::Occupied { pfn: PFN, entry: P2mEntry::Ram(MFN) },
        P2mError::NotForeign { pfn: PFN, entry: P2mEntry::Absent },
        P2mError::NotIdentity { pfn: PFN, entry: P2mEntry::Ram(MFN) },
        P2mError::Occupied { pfn: PFN, entry: P2mEntry::Identity },
        P2mError::NotReserved(PFN),
        P2mError::NoFrame(MFN),
        P2mError::NotInM2p(MFN),
        disagreement(Some(OTHER)),
        disagreement(None),
    ];
    read(
        &errors,
        &expect![[r#"
        the frame list is empty
        pfn 00012 is out of range: the frame map has 0x10 entries
        pfn 00012 has no memory
        pfn 00012 is mfn 00203 of domain 3, not RAM of the guest's
        pfn 00012 is mfn 00203 already
        pfn 00012 has no memory, not a foreign frame
        pfn 00012 is mfn 00203, not an identity
        pfn 00012 is an identity frame already
        pfn 00012 lies in a hole: reserve it before it is given anything
        mfn 00203 is no frame of any machine
        mfn 00203 has no pfn in M2P: it is not this guest's
        M2P says that mfn 00203 is pfn 00012, P2M says that this pfn is mfn 00203 of domain 3
        M2P says that mfn 00203 is pfn 00012, P2M says that this pfn is out of range"#]],
    );
}

#[test]
fn what_is_wrong_with_the_window() {
    let failures = [
        WindowFailure::Frames { needed: 3, given: 2 },
        WindowFailure::Unaligned(va()),
        WindowFailure::Capacity { pfns: 32, capacity: 16 },
        WindowFailure::OtherMap,
        WindowFailure::OutOfFrames,
        WindowFailure::P2m(P2mError::Absent(PFN)),
        WindowFailure::Access(ACCESS),
        WindowFailure::Full(Full),
        WindowFailure::Protect { table: PFN, error: refusal() },
        WindowFailure::Refused(refusal()),
    ];
    read(
        &failures,
        &expect![[r#"
            the window takes 3 frames, not 2
            0x0000000000005000 is not the first address of a root slot
            the map was to have 0x20 pfns and can have 0x10
            the frame map is not the one in this window
            no frame for the frame map
            pfn 00012 has no memory
            pfn 00012 is not in the direct mapping
            the batch is full: submit it, or give it more storage
            table pfn 00012 cannot be protected: mmu_update refused: EINVAL (-22)
            the window's entries: mmu_update refused: EINVAL (-22)"#]],
    );
    let undo = Err(WindowFailure::OutOfFrames);
    let errors = [
        WindowError::from(WindowFailure::OutOfFrames),
        WindowError { failure: WindowFailure::OutOfFrames, undo },
    ];
    read(
        &errors,
        &expect![[r#"
            no frame for the frame map
            no frame for the frame map; undoing it failed: no frame for the frame map"#]],
    );
    // SAFETY: no memory is behind it.
    let frames = unsafe { Frames::claim(PFN, 1) };
    let failure = WindowFailure::OutOfFrames;
    let shut = OpenError { frames: Ok(frames), failure, undo }.to_string();
    assert_eq!(shut, format!("the window stays shut: {}", WindowError { failure, undo }));
}

#[test]
fn what_is_wrong_with_lists_and_the_direct_mapping() {
    let errors = [
        FrameListError::TooLong { len: 1 << 28 },
        FrameListError::NoPlace { places: 2 },
        FrameListError::OutOfFrames,
        FrameListError::P2m(P2mError::Absent(PFN)),
        FrameListError::Access(ACCESS),
    ];
    read(
        &errors,
        &expect![[r#"
        a map of 0x10000000 pfns has no frame list: it ends at 0x8000000
        the frame list has places for 2 pages, one for each GiB
        no frame for a page of the frame list
        pfn 00012 has no memory
        pfn 00012 is not in the direct mapping"#]],
    );
    read(
        &[UnalignedList(va())],
        &expect!["toolstacks misread a linear list at 0x0000000000005000: it must begin at a GiB"],
    );
    read(
        &[NoDirectEntry(PFN)],
        &expect!["the direct mapping has no table for pfn 00012: extend it first"],
    );
}

#[test]
fn what_is_wrong_with_a_grant() {
    let grant =
        |is_mapped| Outstanding { reference: GrantRef(8), domain: DomId(3), mfn: MFN, is_mapped };
    let errors = [
        GrantError::P2m(P2mError::Absent(PFN)),
        GrantError::NoSuchEntry(GrantRef(600)),
        GrantError::Taken(grant(false)),
        GrantError::NotGranted(GrantRef(8)),
        GrantError::StillMapped(grant(true)),
        GrantError::NoFrame(MFN),
    ];
    read(
        &errors,
        &expect![[r#"
            pfn 00012 has no memory
            the grant table has no entry 600
            the entry is taken by grant 8: mfn 00203 to domain 3
            entry 8 does not hold the grant any more
            grant 8: mfn 00203 to domain 3, which has it mapped: it cannot be ended
            mfn 00203 does not fit a grant entry"#]],
    );
    let failures = [
        GrantFailure::P2m(P2mError::Absent(PFN)),
        GrantFailure::Refused(GrantStatus::BAD_GRANT_REF),
        GrantFailure::Call(refusal().error),
        GrantFailure::PfnTaken(PFN),
        GrantFailure::AddressTaken(va()),
        GrantFailure::NoPlace,
        GrantFailure::NoResult,
        GrantFailure::NotUndone(UnmapFailure::NotMapped(PFN)),
        GrantFailure::NotUndone(UnmapFailure::Mark(P2mError::Absent(PFN))),
        GrantFailure::NotUndone(UnmapFailure::Refused(GrantStatus::BAD_HANDLE)),
        GrantFailure::NotUndone(UnmapFailure::Call(refusal().error)),
    ];
    read(
        &failures,
        &expect![[r#"
            pfn 00012 has no memory
            Xen refused: GNTST_bad_gntref (-3)
            mmu_update refused: EINVAL (-22)
            pfn 00012 has a grant already, or twice in a request
            the page of 0x0000000000005000 has a grant already, or twice in a request
            the list of mappings is full
            there is no place for its result
            the mapping cannot be undone: no grant is mapped as pfn 00012
            the mapping cannot be undone: its mark is gone: pfn 00012 has no memory
            the mapping cannot be undone: Xen refused: GNTST_bad_handle (-4)
            the mapping cannot be undone: mmu_update refused: EINVAL (-22)"#]],
    );
}
