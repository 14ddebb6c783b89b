//! Grants of a neighbour that exists only here, mapped, refused and undone.

use std::cell::{Cell, RefCell};

use hypercall::middleware::{FailNth, Refusal};
use hypercall::{Errno, Error, Hypercall};

use super::*;
use crate::map::Pfns;
use crate::map::tests::{guest, list, map};

/// Another domain that grants references 0 to 9, frames from 0x700 on, and counts what is mapped.
#[derive(Default)]
struct Neighbour {
    mapped: RefCell<Vec<(u32, u64)>>,
    handles: Cell<u32>,
    /// Answers the whole hypercall with an errno.
    deaf: Cell<bool>,
    /// How often it was asked to map or unmap.
    asked: Cell<usize>,
}

impl Neighbour {
    fn whole(&self) -> Result<(), Error> {
        self.asked.set(self.asked.get() + 1);
        let hypercall = Hypercall::GrantTableOp("map_grant_ref");
        match self.deaf.get() {
            true => Err(Error { hypercall, errno: Errno::EFAULT, done: 0 }),
            false => Ok(()),
        }
    }
}

// SAFETY: the machine has no memory that Rust knows of: what it says concerns the test alone.
unsafe impl Grants for Neighbour {
    unsafe fn grant_map(&self, maps: &mut [GrantMap]) -> Result<(), Error> {
        self.whole()?;
        for map in maps {
            if map.reference > 9 {
                map.status = GrantStatus::BAD_GRANT_REF.0;
                continue;
            }
            map.handle = self.handles.replace(self.handles.get() + 1);
            map.dev_bus_addr = (0x700 + u64::from(map.reference)) << 12;
            map.status = 0;
            self.mapped.borrow_mut().push((map.handle, map.host_addr));
        }
        Ok(())
    }

    unsafe fn grant_unmap(&self, unmaps: &mut [GrantUnmap]) -> Result<(), Error> {
        self.whole()?;
        for unmap in unmaps {
            let mut mapped = self.mapped.borrow_mut();
            let before = mapped.len();
            mapped.retain(|known| *known != (unmap.handle, unmap.host_addr));
            unmap.status = if mapped.len() < before { 0 } else { GrantStatus::BAD_HANDLE.0 };
        }
        Ok(())
    }

    fn grant_table(&self, _: &mut [Mfn]) -> Result<(), Error> {
        self.whole()
    }
}

const OWNER: DomId = DomId(5);

fn request(pfn: u64, reference: u32) -> MapRequest {
    MapRequest {
        pfn: Pfn::new(pfn),
        va: GuestVa::new(0x10_0000 + pfn * 0x1000).expect("a guest address"),
        domain: OWNER,
        reference: GrantRef(reference),
        access: GrantAccess::ReadWrite,
    }
}

/// Xen refused the grant of this pfn.
const fn refused(pfn: Pfn) -> GrantError {
    GrantError::Refused { pfn, status: GrantStatus::GENERAL_ERROR }
}

const NOTHING: Result<MappedGrant, NotMapped> =
    Err(NotMapped { error: refused(Pfn::new(u64::MAX)), undo: Ok(()) });

#[test]
fn every_slot_has_its_own_result_and_only_the_good_ones_are_mapped() {
    let words = list(&[u64::MAX, 0x55, u64::MAX, u64::MAX]);
    let (p2m, neighbour) = (map(&words), Neighbour::default());
    let mut places = [None; 3];
    let mut maps = GrantMaps::new(&mut places);
    let requests = [request(0, 1), request(1, 2), request(0, 3), request(9, 4), request(2, 77)];
    let mut results = [NOTHING; 5];
    // SAFETY: nothing is mapped anywhere.
    unsafe { maps.map(&guest(&neighbour, &p2m), &requests, &mut results) };
    let words: Vec<String> = results
        .iter()
        .map(|result| match result {
            Ok(mapped) => format!("mfn {}", mapped.mfn),
            Err(failure) => failure.to_string(),
        })
        .collect();
    assert_eq!(
        words,
        [
            "mfn 00701",
            "pfn 00001 is mfn 00055 already",
            "pfn 00000 has a grant already, or is twice in the request",
            "pfn 00009 is out of range: the frame map has 0x4 entries",
            "the grant of pfn 00002: GNTST_bad_gntref (-3)",
        ]
    );
    let entry = P2mEntry::Foreign { owner: OWNER, mfn: Mfn::new(0x701) };
    assert_eq!(p2m.entry(Pfn::new(0)), Ok(entry));
    assert_eq!(neighbour.mapped.borrow().len(), 1);
    assert_eq!(maps.iter().count(), 1);

    // Mapped already: Xen is not asked.
    // SAFETY: as above.
    unsafe { maps.map(&guest(&neighbour, &p2m), &[request(0, 5)], &mut results) };
    let pfn = Pfn::new(0);
    assert_eq!(results[0], Err(GrantError::PfnTaken(pfn).into()));

    // SAFETY: as above.
    assert_eq!(unsafe { maps.unmap(&guest(&neighbour, &p2m), pfn) }, Ok(()));
    assert_eq!(p2m.entry(pfn), Ok(P2mEntry::Absent));
    // SAFETY: as above.
    let again = unsafe { maps.unmap(&guest(&neighbour, &p2m), pfn) };
    assert_eq!(again, Err(GrantError::NotMapped(pfn)));
    assert!(neighbour.mapped.borrow().is_empty());
}

#[test]
fn a_full_list_maps_no_more_than_it_can_record() {
    let words = list(&[u64::MAX; 4]);
    let (p2m, neighbour) = (map(&words), Neighbour::default());
    let mut places = [None; 2];
    let mut maps = GrantMaps::new(&mut places);
    let requests = [0, 1, 2].map(|pfn| request(u64::from(pfn), pfn));
    let mut results = [NOTHING; 3];
    // SAFETY: nothing is mapped anywhere.
    unsafe { maps.map(&guest(&neighbour, &p2m), &requests, &mut results) };
    assert_eq!(results[2], Err(GrantError::NoPlace(Pfn::new(2)).into()));
    assert_eq!(neighbour.mapped.borrow().len(), 2);
}

#[test]
fn what_would_not_go_is_told_and_stays_in_the_list() {
    let words = list(&[u64::MAX; 4]);
    let (p2m, neighbour) = (map(&words), Neighbour::default());
    let mut places = [None; 4];
    let mut maps = GrantMaps::new(&mut places);
    let requests = [0, 1, 2].map(|pfn| request(u64::from(pfn), pfn));
    let mut results = [NOTHING; 3];
    // SAFETY: nothing is mapped anywhere.
    unsafe { maps.map(&guest(&neighbour, &p2m), &requests, &mut results) };
    let refusal = Refusal { request: 1, errno: Errno::EINVAL, done: 0 };
    let machine = FailNth::new(&neighbour, refusal);
    let unmapped = [0, 1, 2].map(|pfn| unmap(&mut maps, &guest(&machine, &p2m), pfn));
    assert_eq!(unmapped, [Ok(()), Err(refused(Pfn::new(1))), Ok(())]);
    assert_eq!(maps.iter().count(), 1);
    assert_eq!(p2m.foreign().map(|run| run.pfns).collect::<Vec<_>>(), [Pfns::new(Pfn::new(1), 1)]);

    neighbour.deaf.set(true);
    // SAFETY: as above.
    unsafe { maps.map(&guest(&neighbour, &p2m), &[request(3, 3)], &mut results) };
    let whole = results[0].map_err(|not_mapped| not_mapped.error);
    assert!(matches!(whole, Err(GrantError::Call { pfn, .. }) if pfn.raw() == 3), "{whole:?}");
    assert_eq!(p2m.entry(Pfn::new(3)), Ok(P2mEntry::Absent));
}

/// Maps one grant.
fn map_one<M: Grants>(
    maps: &mut GrantMaps<'_>,
    guest: &Guest<'_, M>,
    request: MapRequest,
) -> Result<MappedGrant, NotMapped> {
    let mut results = [NOTHING];
    // SAFETY: nothing is mapped anywhere.
    unsafe { maps.map(guest, &[request], &mut results) };
    results[0]
}

/// Unmaps one.
fn unmap<M: Grants>(
    maps: &mut GrantMaps<'_>,
    guest: &Guest<'_, M>,
    pfn: u64,
) -> Result<(), GrantError> {
    // SAFETY: as above.
    unsafe { maps.unmap(guest, Pfn::new(pfn)) }
}

#[test]
fn two_grants_in_one_page_are_refused_before_xen_is_asked() {
    let words = list(&[u64::MAX; 4]);
    let (p2m, neighbour) = (map(&words), Neighbour::default());
    let mut places = [None; 4];
    let mut maps = GrantMaps::new(&mut places);
    let around = &guest(&neighbour, &p2m);
    let first = request(0, 1);
    let beside = GuestVa::new(first.va.raw() + 8).expect("the same page");
    let requests = [first, MapRequest { va: beside, ..request(1, 2) }, request(2, 3)];
    let mut results = [NOTHING; 3];
    // SAFETY: nothing is mapped anywhere.
    unsafe { maps.map(around, &requests, &mut results) };
    assert_eq!(results[1], Err(GrantError::AddressTaken(beside).into()));
    assert!(results[0].is_ok() && results[2].is_ok());
    // Beside a mapping that is there, too; and Xen is not asked.
    let asked = neighbour.asked.get();
    let again = map_one(&mut maps, around, MapRequest { va: first.va, ..request(1, 2) });
    assert_eq!(again, Err(GrantError::AddressTaken(first.va).into()));
    assert_eq!((neighbour.asked.get(), p2m.entry(Pfn::new(1))), (asked + 1, Ok(P2mEntry::Absent)));
    // What was there first can be ended.
    assert_eq!((unmap(&mut maps, around, 0), unmap(&mut maps, around, 2)), (Ok(()), Ok(())));
    assert!(neighbour.mapped.borrow().is_empty());
}

/// A neighbour that maps, and then another vCPU gives the pfn something; it unmaps when it likes.
struct Racing<'a> {
    neighbour: Neighbour,
    p2m: &'a P2m<'a>,
    unmaps: Cell<bool>,
}

// SAFETY: as for the neighbour.
unsafe impl Grants for Racing<'_> {
    unsafe fn grant_map(&self, maps: &mut [GrantMap]) -> Result<(), Error> {
        // SAFETY: as above.
        unsafe { self.neighbour.grant_map(maps) }?;
        // SAFETY: no memory is behind the numbers.
        let _ = unsafe { self.p2m.populate(Pfn::new(0), Mfn::new(0x999)) };
        Ok(())
    }

    unsafe fn grant_unmap(&self, unmaps: &mut [GrantUnmap]) -> Result<(), Error> {
        match self.unmaps.get() {
            // SAFETY: as above.
            true => unsafe { self.neighbour.grant_unmap(unmaps) },
            false => {
                unmaps[0].status = GrantStatus::GENERAL_ERROR.0;
                Ok(())
            }
        }
    }

    fn grant_table(&self, _: &mut [Mfn]) -> Result<(), Error> {
        Ok(())
    }
}

#[test]
fn a_mapping_that_cannot_be_undone_stays_in_the_list_and_can_be_unmapped_later() {
    let words = list(&[u64::MAX; 2]);
    let p2m = map(&words);
    let racing = Racing { neighbour: Neighbour::default(), p2m: &p2m, unmaps: Cell::new(false) };
    let mut places = [None; 2];
    let mut maps = GrantMaps::new(&mut places);
    let around = &guest(&racing, &p2m);
    let mapped = map_one(&mut maps, around, request(0, 1));
    let pfn = Pfn::new(0);
    let error = P2mError::Occupied { pfn, entry: P2mEntry::Ram(Mfn::new(0x999)) }.into();
    assert_eq!(mapped, Err(NotMapped { error, undo: Err(refused(pfn)) }));
    let listed: Vec<_> = maps.iter().map(|it| (it.request.pfn.raw(), it.is_marked)).collect();
    assert_eq!(listed, [(0, false)]);
    // Its address and its pfn are not free for another.
    let at = MapRequest { va: request(0, 1).va, ..request(1, 2) };
    assert_eq!(map_one(&mut maps, around, at), Err(GrantError::AddressTaken(at.va).into()));
    assert_eq!(unmap(&mut maps, around, 0), Err(refused(pfn)));
    racing.unmaps.set(true);
    assert_eq!(unmap(&mut maps, around, 0), Ok(()));
    assert!(maps.iter().next().is_none() && racing.neighbour.mapped.borrow().is_empty());
    assert_eq!(p2m.mfn(Pfn::new(0)), Ok(Mfn::new(0x999)), "the pfn is the other vCPU's");
}

#[test]
fn a_grant_whose_mark_is_gone_is_not_unmapped() {
    let words = list(&[u64::MAX; 2]);
    let (p2m, neighbour) = (map(&words), Neighbour::default());
    let mut places = [None; 2];
    let mut maps = GrantMaps::new(&mut places);
    let around = &guest(&neighbour, &p2m);
    let pfn = Pfn::new(0);
    let mapped = map_one(&mut maps, around, request(0, 1)).expect("granted");
    for wrong in [Some((OWNER, Mfn::new(0x123))), Some((DomId(9), mapped.mfn)), None] {
        // SAFETY: no memory is behind the numbers.
        unsafe { p2m.clear_foreign(pfn) }.expect("marked");
        if let Some((owner, mfn)) = wrong {
            // SAFETY: as above.
            unsafe { p2m.set_foreign(pfn, owner, mfn) }.expect("absent");
        }
        let (asked, entry) = (neighbour.asked.get(), p2m.entry(pfn).expect("in the map"));
        let gone = Err(P2mError::NotForeign { pfn, entry }.into());
        assert_eq!(unmap(&mut maps, around, 0), gone, "marked as {wrong:?}");
        assert_eq!((neighbour.asked.get(), maps.iter().count()), (asked, 1));
    }
    // SAFETY: as above.
    unsafe { p2m.set_foreign(pfn, OWNER, mapped.mfn) }.expect("absent");
    assert_eq!(unmap(&mut maps, around, 0), Ok(()));
}
