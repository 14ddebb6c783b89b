//! Every error of the crate, as a person reads it.
#![expect(unsafe_code, reason = "claims a frame that exists only as a number")]

use early_pgt::{Access, EarlyError, FrameUse, ReplaceError, RoundError, UseKind};
use expect_test::expect;
use hypercall::{AccessError, Frames, Mfn, NotGuestVa, Pfn, Pte, PteFlags};
use p2m::{P2mError, Pfns, WalkError};
use pv_tests::words::{read, refusal, va};

const PFN: Pfn = Pfn::new(0x12);
const PFNS: Pfns = Pfns::new(PFN, 4);

#[test]
fn what_is_wrong_with_the_memory_map_and_the_builders_mapping() {
    let used = |kind| FrameUse { pfns: PFNS, kind };
    let (tables, other) = (used(UseKind::BuilderTables), used(UseKind::StartInfo));
    let errors = [
        EarlyError::NoMemory,
        EarlyError::RegionSize(Pfns::new(PFN, 0)),
        EarlyError::RegionOverlap { pfns: PFNS, before: Pfn::new(0x14) },
        EarlyError::OutsideRam(tables),
        EarlyError::UseOverlap { used: tables, other },
        EarlyError::DirectMapPlace(va()),
        EarlyError::KernelPlace(va()),
        EarlyError::KernelMapping { pages: 32 },
        EarlyError::Address(NotGuestVa::NotCanonical(1 << 63)),
        EarlyError::NotInKernelMapping(va()),
        EarlyError::Walk(WalkError::NotMapped(va())),
        EarlyError::NotIdentity(PFN),
        EarlyError::Walk(WalkError::P2m(P2mError::Absent(PFN))),
        EarlyError::Walk(WalkError::Access(AccessError::Unmapped(PFN))),
    ];
    read(
        &errors,
        &expect![[r#"
            the memory map has no RAM
            the memory map has a region of 0x0 pages from pfn 00012
            pfns 00012..00016 of the memory map overlap the region before, which ends at pfn 00014
            BuilderTables at pfns 00012..00016 is not all RAM of the memory map
            BuilderTables at pfns 00012..00016 and StartInfo at pfns 00012..00016 overlap
            the direct map cannot be at 0x0000000000005000: it takes whole L4 slots of its own
            the kernel's mapping of pfn 0, 0x0000000000005000, is not at a multiple of 2 MiB
            the builder mapped 0x20 pages, which are not RAM from pfn 0 on
            the direct map does not fit: address 0x8000000000000000 is not canonical
            start_info has 0x0000000000005000, which is outside the builder's mapping
            0x0000000000005000 has no L1 entry
            pfn 00012 is in an identity region, and the frame map says otherwise
            pfn 00012 has no memory
            pfn 00012 is not in the direct mapping"#]],
    );
}

#[test]
fn what_is_missing_or_refused() {
    let error = refusal();
    let mfn = Mfn::new(0x203);
    let pte = Pte::new(mfn, PteFlags::TABLE);
    let errors = [
        EarlyError::MappedTooLittle { free: 2, needed: 3 },
        EarlyError::RoundUnfinished { buffer: PFNS },
        EarlyError::BufferEmpty { buffer: PFNS },
        EarlyError::RootSlotInUse { va: va(), pte },
        EarlyError::NoStorage,
        EarlyError::TooFewFrames { given: 2, needed: 3 },
        EarlyError::Protect { frame: PFN, access: Access::ReadOnly, error },
        EarlyError::Protect { frame: PFN, access: Access::Writable, error },
        EarlyError::Switch { root: PFN, error },
        EarlyError::Link { mfn, pfn: Some(PFN), error },
        EarlyError::Link { mfn, pfn: None, error },
        EarlyError::Flush(error),
    ];
    read(
        &errors,
        &expect![[r#"
            the builder mapped too little: 2 free frames in a run, 3 are needed
            a round of the table buffer, pfns 00012..00016, was never finished
            the table buffer, pfns 00012..00016, has no frame left: plan again
            the root has 0000000000203067 for 0x0000000000005000, where the direct map will be
            the batch is too small: give it storage
            the kernel's own tables need 3 frames in a run, not 2
            pfn 00012 cannot be made read-only: mmu_update refused: EINVAL (-22)
            pfn 00012 cannot be made writable: mmu_update refused: EINVAL (-22)
            cannot switch between the builder's root and pfn 00012: mmu_update refused: EINVAL (-22)
            pfn 00012 (mfn 00203) cannot be linked: mmu_update refused: EINVAL (-22)
            mfn 00203 cannot be mapped: mmu_update refused: EINVAL (-22)
            the TLBs cannot be flushed: mmu_update refused: EINVAL (-22)"#]],
    );
}

#[test]
fn what_could_not_be_undone_is_said() {
    let (failure, cause) = (EarlyError::BufferEmpty { buffer: PFNS }, EarlyError::NoStorage);
    let round = |undo| RoundError { failure, undo }.to_string();
    let replace = |undo, frames| ReplaceError { failure, undo, frames }.to_string();
    // SAFETY: no memory is behind it.
    let frames = || unsafe { Frames::claim(PFN, 1) };
    let whole = format!("{failure}; nothing has changed");
    let broken = format!("{failure}; undoing it failed: {cause}");
    assert_eq!(round(Ok(())), whole);
    assert_eq!(round(Err(cause)), broken);
    let replaced = replace(Ok(()), Ok(frames()));
    assert_eq!(replaced, format!("the builder's tables stay: {whole}"));
    let replaced = replace(Err(cause), Err(frames().into()));
    let doubt = "pfn 00012 may be in use as tables";
    assert_eq!(replaced, format!("the builder's tables stay: {broken}; {doubt}"));
}
