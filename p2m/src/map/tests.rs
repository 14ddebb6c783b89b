//! Look-ups and changes of an adopted list, and the list and M2P that other tests use.

use std::collections::BTreeMap;

use arbtest::arbtest;

use super::*;
use crate::guest::Guest;

/// A machine with an M2P and nothing else.
pub(crate) struct M2p(pub(crate) Vec<Option<Pfn>>);

#[expect(unsafe_code, reason = "declared unsafe by the trait, and does nothing")]
// SAFETY: the machine has no memory that Rust knows of: what it says concerns the test alone.
unsafe impl FrameAccess for M2p {
    fn read_entry(
        &self,
        table: Pfn,
        _: x86_64::structures::paging::PageTableIndex,
    ) -> Result<hypercall::Pte, hypercall::AccessError> {
        Err(hypercall::AccessError::Unmapped(table))
    }

    unsafe fn write_entry(
        &self,
        table: Pfn,
        _: x86_64::structures::paging::PageTableIndex,
        _: hypercall::Pte,
    ) -> Result<(), hypercall::AccessError> {
        Err(hypercall::AccessError::Unmapped(table))
    }

    fn read_bytes(&self, pfn: Pfn, _: usize, _: &mut [u8]) -> Result<(), hypercall::AccessError> {
        Err(hypercall::AccessError::Unmapped(pfn))
    }

    unsafe fn write_bytes(
        &self,
        pfn: Pfn,
        _: usize,
        _: &[u8],
    ) -> Result<(), hypercall::AccessError> {
        Err(hypercall::AccessError::Unmapped(pfn))
    }

    fn machine_to_phys(&self, mfn: Mfn) -> Option<Pfn> {
        *self.0.get(usize::try_from(mfn.raw()).ok()?)?
    }

    fn direct_map(&self, pfn: Pfn) -> Result<hypercall::GuestVa, hypercall::AccessError> {
        Err(hypercall::AccessError::Unmapped(pfn))
    }
}

/// Returns a list of words.
pub(crate) fn list(words: &[u64]) -> Vec<AtomicU64> {
    words.iter().copied().map(AtomicU64::new).collect()
}

/// Returns a map over them; no memory is behind the numbers.
pub(crate) fn map(words: &[AtomicU64]) -> P2m<'_> {
    // SAFETY: nothing of this host is in these frames.
    unsafe { P2m::adopt(words) }.expect("not empty")
}

/// Returns a guest of both, with a root that nobody walks.
pub(crate) fn guest<'a, M>(machine: &'a M, p2m: &'a P2m<'a>) -> Guest<'a, M> {
    // SAFETY: nothing of this host is in these frames.
    unsafe { Guest::new(machine, p2m, Pfn::new(0)) }
}

const MFN: Mfn = Mfn::new(0x777);
const OWNER: DomId = DomId(3);

#[test]
fn look_ups_tell_every_kind_apart_and_never_panic() {
    let foreign = P2mEntry::Foreign { owner: OWNER, mfn: MFN }.encode().expect("a frame");
    let words = list(&[0x10, entry::ABSENT, entry::IDENTITY, foreign]);
    let p2m = map(&words);
    let at = |pfn| p2m.mfn(Pfn::new(pfn));
    assert_eq!(at(0), Ok(Mfn::new(0x10)));
    assert_eq!(at(1), Err(P2mError::Absent(Pfn::new(1))));
    let (pfn, entry) = (Pfn::new(2), P2mEntry::Identity);
    assert_eq!(at(2), Err(P2mError::NotRam { pfn, entry }));
    let (pfn, entry) = (Pfn::new(3), P2mEntry::Foreign { owner: OWNER, mfn: MFN });
    assert_eq!(at(3), Err(P2mError::NotRam { pfn, entry }));
    for pfn in [4, 1 << 40, u64::MAX].map(Pfn::new) {
        assert_eq!(p2m.mfn(pfn), Err(P2mError::OutOfRange { pfn, len: 4 }));
        assert_eq!(p2m.machine_frame(pfn), Err(P2mError::OutOfRange { pfn, len: 4 }));
    }
    let frame = |pfn| p2m.machine_frame(Pfn::new(pfn));
    assert_eq!([frame(2), frame(3)], [Ok(Mfn::new(2)), Ok(MFN)]);
    // SAFETY: no memory is behind these numbers.
    assert_eq!(unsafe { P2m::adopt(&[]) }.map(|_| ()), Err(P2mError::Empty));
}

#[test]
fn m2p_is_believed_only_if_p2m_agrees() {
    let words = list(&[5, 6, entry::ABSENT]);
    let p2m = map(&words);
    let to = |pfn| Some(Pfn::new(pfn));
    let m2p = M2p(vec![None, to(2), to(9), to(0), None, to(0), to(0)]);
    let pfn = |mfn| p2m.pfn(&m2p, Mfn::new(mfn));
    assert_eq!(pfn(5), Ok(Pfn::new(0)));
    assert_eq!(pfn(4), Err(P2mError::NotInM2p(Mfn::new(4))));
    let says = |mfn| pfn(mfn).expect_err("not the guest's").to_string();
    assert_eq!(
        says(3),
        "M2P says that mfn 00003 is pfn 00000, P2M says that this pfn is mfn 00005"
    );
    assert_eq!(
        says(1),
        "M2P says that mfn 00001 is pfn 00002, P2M says that this pfn has no memory"
    );
    assert!(says(2).ends_with("is out of range"));
}

#[test]
fn a_foreign_frame_is_marked_once_cleared_once_and_never_given_away() {
    let words = list(&[entry::ABSENT, 5]);
    let p2m = map(&words);
    let (pfn, ram) = (Pfn::new(0), Pfn::new(1));
    let entry = P2mEntry::Foreign { owner: OWNER, mfn: MFN };
    // SAFETY: no memory is behind these numbers.
    assert_eq!(unsafe { p2m.set_foreign(pfn, OWNER, MFN) }, Ok(()));
    // SAFETY: no memory is behind these numbers.
    assert_eq!(unsafe { p2m.set_foreign(pfn, OWNER, MFN) }, Err(P2mError::Occupied { pfn, entry }));
    // SAFETY: no memory is behind these numbers.
    assert_eq!(unsafe { p2m.populate(pfn, MFN) }, Err(P2mError::Occupied { pfn, entry }));
    // SAFETY: no memory is behind these numbers.
    assert_eq!(unsafe { p2m.depopulate(pfn) }, Err(P2mError::NotRam { pfn, entry }));
    // SAFETY: no frame stands behind the number.
    #[expect(unsafe_code, reason = "a number for a frame")]
    let frame = unsafe { Frame::claim(pfn) };
    let Refused { value: frame, error } = p2m.own(frame).expect_err("no allocator may have it");
    assert_eq!(error, P2mError::NotRam { pfn, entry });
    // SAFETY: no memory is behind these numbers.
    assert_eq!(unsafe { p2m.clear_foreign(pfn) }, Ok((OWNER, MFN)));
    let entry = P2mEntry::Absent;
    // SAFETY: no memory is behind these numbers.
    assert_eq!(unsafe { p2m.clear_foreign(pfn) }, Err(P2mError::NotForeign { pfn, entry }));
    let entry = P2mEntry::Ram(Mfn::new(5));
    // SAFETY: no memory is behind these numbers.
    assert_eq!(unsafe { p2m.clear_foreign(ram) }, Err(P2mError::NotForeign { pfn: ram, entry }));
    assert_eq!(p2m.own(frame).map_err(|refused| refused.error), Err(P2mError::Absent(pfn)));
}

#[test]
fn extents_change_as_a_whole_or_not_at_all() {
    let words = list(&[entry::ABSENT, entry::ABSENT, entry::ABSENT, 5, entry::ABSENT]);
    let p2m = map(&words);
    let before: Vec<_> = p2m.all().iter().map(|pfn| p2m.entry(pfn)).collect();
    let all = p2m.all();
    // SAFETY: no memory is behind these numbers.
    assert!(matches!(unsafe { p2m.set_identity(all) }, Err(P2mError::Occupied { .. })));
    // SAFETY: no memory is behind these numbers.
    assert!(matches!(unsafe { p2m.populate_run(all, MFN) }, Err(P2mError::Occupied { .. })));
    let beyond = Pfns::new(Pfn::new(4), 2);
    // SAFETY: no memory is behind these numbers.
    assert!(matches!(unsafe { p2m.set_identity(beyond) }, Err(P2mError::OutOfRange { .. })));
    // SAFETY: no memory is behind these numbers.
    assert!(matches!(unsafe { p2m.clear_identity(all) }, Err(P2mError::NotIdentity { .. })));
    let after: Vec<_> = p2m.all().iter().map(|pfn| p2m.entry(pfn)).collect();
    assert_eq!(before, after);
    let three = Pfns::new(Pfn::new(0), 3);
    // SAFETY: no memory is behind these numbers.
    assert_eq!(unsafe { p2m.set_identity(three) }, Ok(()));
    // SAFETY: no memory is behind these numbers.
    assert_eq!(unsafe { p2m.clear_identity(three) }, Ok(()));
    // SAFETY: no memory is behind these numbers.
    assert_eq!(unsafe { p2m.populate_run(three, MFN) }, Ok(()));
    assert_eq!(p2m.mfn(Pfn::new(2)), Ok(Mfn::new(0x779)));
    // SAFETY: no memory is behind these numbers.
    assert_eq!(unsafe { p2m.replace(Pfn::new(2), Mfn::new(9)) }, Ok(Mfn::new(0x779)));
    let too_far = Mfn::new(u64::MAX);
    // SAFETY: no memory is behind these numbers.
    assert_eq!(unsafe { p2m.replace(Pfn::new(2), too_far) }, Err(P2mError::NoFrame(too_far)));
}

#[test]
fn random_changes_of_an_adopted_list_agree_with_a_plain_map() {
    arbtest(|u| {
        let words = list(&[entry::ABSENT; 64]);
        let p2m = map(&words);
        let mut plain = BTreeMap::new();
        for _ in 0..u.int_in_range(1..=200)? {
            let pfn = Pfn::new(u.int_in_range(0..=70)?);
            let mfn = Mfn::new(u.int_in_range(0..=1000)?);
            let known = plain.get(&pfn).copied();
            let free = pfn.raw() < 64 && known.is_none();
            match u.int_in_range(0..=3)? {
                0 => {
                    // SAFETY: no memory is behind these numbers.
                    assert_eq!(unsafe { p2m.populate(pfn, mfn) }.is_ok(), free);
                    free.then(|| plain.insert(pfn, P2mEntry::Ram(mfn)));
                }
                1 => {
                    // SAFETY: no memory is behind these numbers.
                    assert_eq!(unsafe { p2m.set_foreign(pfn, OWNER, mfn) }.is_ok(), free);
                    let entry = P2mEntry::Foreign { owner: OWNER, mfn };
                    free.then(|| plain.insert(pfn, entry));
                }
                2 => {
                    let is_ram = matches!(known, Some(P2mEntry::Ram(_)));
                    // SAFETY: no memory is behind these numbers.
                    assert_eq!(unsafe { p2m.depopulate(pfn) }.is_ok(), is_ram);
                    is_ram.then(|| plain.remove(&pfn));
                }
                _ => {
                    let is_foreign = matches!(known, Some(P2mEntry::Foreign { .. }));
                    // SAFETY: no memory is behind these numbers.
                    assert_eq!(unsafe { p2m.clear_foreign(pfn) }.is_ok(), is_foreign);
                    is_foreign.then(|| plain.remove(&pfn));
                }
            }
        }
        for pfn in p2m.all().iter() {
            let expected = plain.get(&pfn).copied().unwrap_or(P2mEntry::Absent);
            assert_eq!(p2m.entry(pfn), Ok(expected));
        }
        let foreign = plain.values().filter(|e| matches!(e, P2mEntry::Foreign { .. })).count();
        let counted: u64 = p2m.foreign().map(|run| run.pfns.count).sum();
        assert_eq!(counted, foreign as u64);
        Ok(())
    });
}
