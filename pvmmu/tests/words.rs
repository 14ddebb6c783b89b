//! Errors of address spaces, as a person reads them.
#![cfg(not(loom))]

use expect_test::expect;
use hypercall::{DomId, GuestVa, Mfn, Pfn, Pte, PteFlags};
use pv_tests::words::{read, refusal, va};
use pvmmu::primitive::Primitive;
use pvmmu::{LoadError, MapError, PinFailure, RangeError, Room};

const PFN: Pfn = Pfn::new(0x12);
const MFN: Mfn = Mfn::new(0x203);

fn flags(flags: PteFlags) -> MapError {
    MapError::Flags { va: va(), flags }
}

fn not_shared(flags: PteFlags) -> MapError {
    MapError::NotShared { va: va(), pte: Pte::new(MFN, flags) }
}

#[test]
fn what_is_wrong_with_a_request() {
    let present = PteFlags::PRESENT;
    let shared = PteFlags::from_bits_retain(1 << 53);
    let errors = [
        MapError::KernelHalf(GuestVa::new(0xffff_8880_0000_5000).expect("kernel half")),
        MapError::Unaligned(va()),
        flags(PteFlags::WRITABLE),
        flags(present | PteFlags::GLOBAL | PteFlags::GRANT),
        flags(PteFlags::USER | PteFlags::GLOBAL | shared),
        MapError::Occupied { va: va(), pte: Pte::new(MFN, PteFlags::USER_RW) },
        MapError::NotMapped(va()),
        not_shared(PteFlags::USER_RW),
        not_shared(present),
        not_shared(present | shared),
        MapError::Overlap(va()),
        MapError::OnlyLive(DomId(3)),
        MapError::CannotShare(PFN),
        MapError::OtherShares,
        MapError::Own(PFN),
        MapError::NotForeign(MFN),
        MapError::OutOfFrames,
        MapError::BatchTooSmall(Room { updates: 1, ops: 0 }),
        MapError::NotItsFork(PFN),
        MapError::Unfit(Primitive::MmuUpdate),
        MapError::Unfit(Primitive::VaMapping),
    ];
    read(
        &errors,
        &expect![[r#"
            0xffff888000005000 is in the half that all address spaces share
            0x0000000000005000 is not the first address of a page
            flags 0x2 for 0x0000000000005000 lack PRESENT
            flags 0x4000000000000101 for 0x0000000000005000 have GLOBAL GRANT, which a caller may
              not set
            flags 0x20000000000104 for 0x0000000000005000 lack PRESENT and have GLOBAL
              0x20000000000000, which a caller may not set
            0x0000000000005000 is already mapped: 8000000000203067
            0x0000000000005000 is not mapped
            the page at 0x0000000000005000 is not shared, and writable already: write again (its
              entry is 8000000000203067)
            the page at 0x0000000000005000 is not shared (its entry is 0000000000203001)
            the page at 0x0000000000005000 is shared, and was not writable before: protect it with
              WRITABLE first (its entry is 0020000000203001)
            the pages to move overlap their destination at 0x0000000000005000
            frames of domain 3 can be mapped only in a pinned tree
            pfn 00012 cannot be shared: its count is full, or the tools have none for it
              (with_shares)
            the address space shares frames that these tools do not count: give them the Shares with
              which it was forked (with_shares)
            pfn 00012 is the guest's own, and cannot be mapped as another's
            mfn 00203 is foreign: name the domain that has it, not DOMID_SELF
            the source of frames has none left for a page or a table: give it more, and go on with
              the pages that are not done
            the batch has room for 1 updates and 0 extended operations, but needs 2 updates and 1
              extended operations: enlarge its BatchStorage<UPDATES, OPS>
            root pfn 00012 is not what a refused fork of this one left
            mmu_update loses what this change must keep, or does not reach the address space: ask
              primitive::cheapest for one that is right
            update_va_mapping loses what this change must keep, or does not reach the address space:
              ask primitive::cheapest for one that is right"#]],
    );
}

#[test]
fn what_xen_refused_and_what_follows_from_it() {
    let error = refusal().error;
    let errors = [
        MapError::InDoubt(error),
        MapError::HalfForked,
        MapError::Refused { va: va(), error: refusal() },
        MapError::Faulted(va()),
        MapError::RefusedCall(refusal()),
        MapError::NotUndone { left: 0, error },
        MapError::NotUndone { left: 2, error },
    ];
    read(
        &errors,
        &expect![[r#"
            what an earlier undo left was not repaired: mmu_update refused: EINVAL (-22); nothing
              else was done: try again
            a fork of this address space was refused and not taken back: call take_back_fork first
            at 0x0000000000005000: mmu_update refused: EINVAL (-22)
            at 0x0000000000005000: Xen refused the entry, and the write faulted
            mmu_update refused: EINVAL (-22); no address is known to be at fault, and what went out
              with it has been undone: try again
            the undo could not be flushed: mmu_update refused: EINVAL (-22); the next change of the
              address space flushes first
            2 updates could not be undone: mmu_update refused: EINVAL (-22); the next change of the
              address space repairs it first, and frames in doubt went to give_uncertain"#]],
    );
    let range = |done| RangeError { done, error: MapError::NotMapped(va()) };
    read(
        &[range(0), range(5)],
        &expect![[r#"
        0x0000000000005000 is not mapped
        0x0000000000005000 is not mapped (after 5 pages done)"#]],
    );
}

#[test]
fn why_a_tree_is_not_pinned_or_loaded() {
    let error = refusal().error;
    let failures = [
        PinFailure::InDoubt(error),
        PinFailure::HalfForked,
        PinFailure::Protect { table: PFN, error },
        PinFailure::Root { pfn: PFN, mfn: MFN, error },
        PinFailure::Call(error),
        PinFailure::BatchTooSmall,
    ];
    read(
        &failures,
        &expect![[r#"
            what an earlier undo left was not repaired: mmu_update refused: EINVAL (-22); nothing
              else was done: try again
            a fork of this address space was refused and not taken back: call take_back_fork first
            the direct mapping of table pfn 00012 is unchanged: mmu_update refused: EINVAL (-22)
            root pfn 00012 (mfn 00203): mmu_update refused: EINVAL (-22)
            no table is known to be at fault: mmu_update refused: EINVAL (-22)
            the batch has no room for a table: it needs 1 updates and 1 extended operations: enlarge
              its BatchStorage<UPDATES, OPS>"#]],
    );
    let half = hypercall::Error { done: 1, ..error };
    let errors = [
        LoadError::Refused { root: PFN, error },
        LoadError::Refused { root: PFN, error: half },
        LoadError::NoSuchVcpu(32),
    ];
    read(
        &errors,
        &expect![[r#"
            root pfn 00012 is not loaded: mmu_update refused: EINVAL (-22)
            root pfn 00012 is loaded, but not its root for user code: mmu_update refused: EINVAL
              (-22) after 1 done
            there is no place for vCPU 32: give Vcpus one for each, at most 32"#]],
    );
}

/// An error goes through every operation: its words cost nothing there.
#[test]
fn words_do_not_make_an_error_larger() {
    assert!(size_of::<MapError>() <= 240, "{}", size_of::<MapError>());
}
