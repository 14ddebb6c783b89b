//! Every error of the crate, as a person reads it.
#![cfg(not(loom))]

use expect_test::expect;
use hypercall::grants::{GrantRef, GrantStatus};
use hypercall::{AccessError, DomId, Full, Mfn, Pfn};
use p2m::grants::{GrantError, NotMapped, Outstanding};
use p2m::toolstack::UnalignedList;
use p2m::window::WindowError;
use p2m::{ListError, NoDirectEntry, P2mEntry, P2mError};
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
        pfn 00012 is mfn 00203 of domain 3, not the guest's RAM
        pfn 00012 is mfn 00203 already
        pfn 00012 has no memory, not a foreign frame
        pfn 00012 is mfn 00203, not an identity
        pfn 00012 is an identity frame already
        pfn 00012 is in a hole: reserve it before use
        mfn 00203 is beyond the frames of any machine
        mfn 00203 has no pfn in M2P: it is not this guest's
        M2P says that mfn 00203 is pfn 00012, P2M says that this pfn is mfn 00203 of domain 3
        M2P says that mfn 00203 is pfn 00012, P2M says that this pfn is out of range"#]],
    );
}

#[test]
fn what_is_wrong_with_the_list() {
    let failures = [
        ListError::Frames { needed: 3, given: 2 },
        ListError::Unaligned(va()),
        ListError::Capacity { pfns: 32, capacity: 16 },
        ListError::NoPlace { places: 2 },
        ListError::OtherMap(va()),
        ListError::OutOfFrames(PFN),
        ListError::P2m(P2mError::Absent(PFN)),
        ListError::Access(ACCESS),
        ListError::Full(Full),
        ListError::Protect { table: PFN, error: refusal() },
        ListError::Refused { pfn: PFN, error: refusal() },
    ];
    read(
        &failures,
        &expect![[r#"
        the window needs 3 frames, not 2
        0x0000000000005000 is not the first address of a root slot
        there is room for the words of 0x10 pfns, not of 0x20
        the frame list has places for 2 pages, one for each GiB
        the frame map is not the one in the window at 0x0000000000005000
        no frame for the word of pfn 00012
        pfn 00012 has no memory
        pfn 00012 is not in the direct mapping
        the batch is full: submit it, or give it more storage
        table pfn 00012 cannot be protected: mmu_update refused: EINVAL (-22)
        the window cannot map the words from pfn 00012 on: mmu_update refused: EINVAL (-22)"#]],
    );
    let failure = ListError::OutOfFrames(PFN);
    let undo = Err(ListError::P2m(P2mError::Absent(PFN)));
    let errors = [WindowError::from(failure), WindowError { failure, undo }];
    read(
        &errors,
        &expect![[r#"
            no frame for the word of pfn 00012
            no frame for the word of pfn 00012; undoing it failed: pfn 00012 has no memory"#]],
    );
}

#[test]
fn what_is_wrong_with_what_is_published_and_the_direct_mapping() {
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
        GrantError::OtherTable(GrantRef(8)),
        GrantError::StillMapped(grant(true)),
        GrantError::NoFrame(MFN),
        GrantError::PfnTaken(PFN),
        GrantError::AddressTaken(va()),
        GrantError::NoPlace(PFN),
        GrantError::NotMapped(PFN),
        GrantError::Refused { pfn: PFN, status: GrantStatus::BAD_GRANT_REF },
        GrantError::Call { pfn: PFN, error: refusal().error },
    ];
    read(
        &errors,
        &expect![[r#"
        pfn 00012 has no memory
        the grant table has no entry 600
        the entry is in use: grant 8: mfn 00203 to domain 3
        entry 8 no longer holds the grant
        the table in which entry 8 held the grant is gone
        grant 8: mfn 00203 to domain 3, which has it mapped: it cannot be ended
        mfn 00203 does not fit a grant entry
        pfn 00012 has a grant already, or is twice in the request
        the page of 0x0000000000005000 has a grant already, or is twice in the request
        the list of mappings has no place for pfn 00012
        no grant is mapped as pfn 00012
        the grant of pfn 00012: GNTST_bad_gntref (-3)
        the grant of pfn 00012: mmu_update refused: EINVAL (-22)"#]],
    );
    let error = GrantError::P2m(P2mError::Absent(PFN));
    let undo = Err(GrantError::NotMapped(PFN));
    read(
        &[NotMapped { error, undo }, NotMapped::from(error)],
        &expect![[r#"
            pfn 00012 has no memory; its mapping stays: no grant is mapped as pfn 00012
            pfn 00012 has no memory"#]],
    );
}
