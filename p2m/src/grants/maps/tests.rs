//! Grants of a neighbour that exists only here, mapped, refused and undone.

use std::cell::{Cell, RefCell};

use hypercall::{Errno, FailNth, Hypercall, Refusal};

use super::*;
use crate::map::Pfns;
use crate::map::tests::{list, map};

/// Another domain that grants references 0 to 9, frames from 0x700 on, and counts what is mapped.
#[derive(Default)]
struct Neighbour {
    mapped: RefCell<Vec<(u32, u64)>>,
    handles: Cell<u32>,
    /// Answers the whole hypercall with an errno.
    deaf: Cell<bool>,
}

impl Neighbour {
    fn whole(&self) -> Result<(), Error> {
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

const NOTHING: Result<MappedGrant, GrantFailure> = Err(GrantFailure::NoPlace);

#[test]
fn every_slot_has_its_own_result_and_only_the_good_ones_are_mapped() {
    let words = list(&[u64::MAX, 0x55, u64::MAX, u64::MAX]);
    let (p2m, neighbour) = (map(&words), Neighbour::default());
    let mut places = [None; 3];
    let mut maps = GrantMaps::new(&mut places);
    let requests = [request(0, 1), request(1, 2), request(0, 3), request(9, 4), request(2, 77)];
    let mut results = [NOTHING; 5];
    // SAFETY: nothing is mapped anywhere.
    unsafe { maps.map((&neighbour, &p2m), &requests, &mut results) };
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
            "pfn 00000 has no memory already",
            "pfn 00009 is out of range: the frame map has 0x4 entries",
            "Xen refused: GNTST_bad_gntref (-3)",
        ]
    );
    let entry = P2mEntry::Foreign { owner: OWNER, mfn: Mfn::new(0x701) };
    assert_eq!(p2m.entry(Pfn::new(0)), Ok(entry));
    assert_eq!(neighbour.mapped.borrow().len(), 1);
    assert_eq!(maps.iter().count(), 1);

    // Mapped already: Xen is not asked.
    // SAFETY: as above.
    unsafe { maps.map((&neighbour, &p2m), &[request(0, 5)], &mut results) };
    let pfn = Pfn::new(0);
    assert_eq!(results[0], Err(P2mError::Occupied { pfn, entry }.into()));

    // SAFETY: as above.
    assert_eq!(unsafe { maps.unmap((&neighbour, &p2m), pfn) }, Ok(()));
    assert_eq!(p2m.entry(pfn), Ok(P2mEntry::Absent));
    // SAFETY: as above.
    let again = unsafe { maps.unmap((&neighbour, &p2m), pfn) };
    assert_eq!(again, Err(GrantFailure::NotMapped(pfn)));
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
    unsafe { maps.map((&neighbour, &p2m), &requests, &mut results) };
    assert_eq!(results[2], Err(GrantFailure::NoPlace));
    assert_eq!(neighbour.mapped.borrow().len(), 2);
}

#[test]
fn all_or_none_leaves_none_whichever_slot_fails() {
    for bad in 0..4 {
        let words = list(&[u64::MAX; 4]);
        let (p2m, neighbour) = (map(&words), Neighbour::default());
        let mut places = [None; 4];
        let mut maps = GrantMaps::new(&mut places);
        let refusal = Refusal { request: 0, errno: Errno::EINVAL, done: bad };
        let machine = FailNth::new(&neighbour, refusal);
        let requests = [0, 1, 2, 3].map(|pfn| request(u64::from(pfn), pfn));
        let mut results = [NOTHING; 4];
        // SAFETY: nothing is mapped anywhere.
        let all = unsafe { maps.map_all((&machine, &p2m), &requests, &mut results) };
        assert_eq!(all, Err((bad, GrantFailure::Refused(GrantStatus::GENERAL_ERROR))));
        assert!(neighbour.mapped.borrow().is_empty() && maps.iter().count() == 0);
        assert!(results.iter().all(Result::is_err));
        assert!(p2m.foreign().next().is_none());
        // SAFETY: as above. The second attempt finds everything as it was.
        let all = unsafe { maps.map_all((&machine, &p2m), &requests, &mut results) };
        assert_eq!(all, Ok(()));
        assert_eq!(p2m.count_foreign(&mut [(DomId(0), 0)]).map(<[_]>::len), Ok(1));
    }
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
    unsafe { maps.map((&neighbour, &p2m), &requests, &mut results) };
    let refusal = Refusal { request: 1, errno: Errno::EINVAL, done: 0 };
    let machine = FailNth::new(&neighbour, refusal);
    let mut stayed = Vec::new();
    // SAFETY: as above.
    let count = unsafe {
        maps.unmap_all((&machine, &p2m), &mut |mapped, failure| {
            stayed.push((mapped.request.pfn, failure));
        })
    };
    let failure = GrantFailure::Refused(GrantStatus::GENERAL_ERROR);
    assert_eq!((count, stayed), (1, vec![(Pfn::new(1), failure)]));
    assert_eq!(maps.iter().count(), 1);
    assert_eq!(p2m.foreign().map(|run| run.pfns).collect::<Vec<_>>(), [Pfns::new(Pfn::new(1), 1)]);

    neighbour.deaf.set(true);
    // SAFETY: as above.
    unsafe { maps.map((&neighbour, &p2m), &[request(3, 3)], &mut results) };
    assert!(matches!(results[0], Err(GrantFailure::Call(_))), "{:?}", results[0]);
    assert_eq!(p2m.entry(Pfn::new(3)), Ok(P2mEntry::Absent));
}
