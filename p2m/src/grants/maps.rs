//! The grants of others that this guest maps, with their handles, which nobody else keeps.
//!
//! Xen answers a map request slot by slot, and the hypercall's own result says nothing about them.
//! So every slot has a result here, too. Each mapping has a pfn of its own, which was empty. It is
//! marked foreign during the mapping, so that no allocator takes it for the guest's memory. The
//! mark, the place in the list and the mapping come and go together. If Xen maps a grant but its
//! pfn cannot be marked, the mapping is undone. If Xen refuses that, the mapping stays in the list,
//! with its handle.
#![expect(unsafe_code, reason = "asks Xen to map at addresses that the caller owns (I-2)")]

use core::fmt;

use hypercall::grants::{
    GrantAccess, GrantHandle, GrantMap, GrantRef, GrantStatus, GrantUnmap, Grants,
};
use hypercall::{DomId, GuestVa, Mfn, PAGE_SHIFT, Pfn};

use super::error::GrantError;
use crate::entry::P2mEntry;
use crate::error::P2mError;
use crate::guest::Guest;
use crate::map::P2m;

/// A grant to map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRequest {
    /// The pfn for it, which is empty.
    pub pfn: Pfn,
    /// The address for it, which has an L1 table. The entry there is replaced.
    pub va: GuestVa,
    /// The domain that grants it.
    pub domain: DomId,
    /// The number of the grant.
    pub reference: GrantRef,
    /// The access wanted.
    pub access: GrantAccess,
}

/// A grant that is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedGrant {
    /// The request.
    pub request: MapRequest,
    /// Xen's handle of the mapping.
    pub handle: GrantHandle,
    /// The frame.
    pub mfn: Mfn,
    /// Whether the frame map marks its pfn as foreign. It does not only if the pfn was filled
    /// meanwhile and Xen refused to undo the mapping.
    pub is_marked: bool,
}

/// A grant that was not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotMapped {
    /// The reason.
    pub error: GrantError,
    /// Whether nothing is left of it. If not, the mapping stays in the list, and this is why it
    /// could not be unmapped.
    pub undo: Result<(), GrantError>,
}

impl From<GrantError> for NotMapped {
    /// Says that nothing had been done yet.
    fn from(error: GrantError) -> Self {
        Self { error, undo: Ok(()) }
    }
}

impl fmt::Display for NotMapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.error)?;
        match &self.undo {
            Ok(()) => Ok(()),
            Err(error) => write!(f, "; its mapping stays: {error}"),
        }
    }
}

impl core::error::Error for NotMapped {}

/// The mappings of others' grants, in the caller's memory.
#[derive(Debug)]
pub struct GrantMaps<'s> {
    places: &'s mut [Option<MappedGrant>],
}

/// The most slots that go to Xen in one hypercall.
const GRANT_SLOTS_MAX: usize = 32;

impl<'s> GrantMaps<'s> {
    /// Creates an empty list. The contents of `places` are forgotten.
    pub fn new(places: &'s mut [Option<MappedGrant>]) -> Self {
        places.fill(None);
        Self { places }
    }

    /// Returns the mappings.
    pub fn iter(&self) -> impl Iterator<Item = &MappedGrant> {
        self.places.iter().flatten()
    }

    /// Maps as many grants as `results` has places, and stores the result of each there, in order.
    /// A failure does not affect the others. A second mapping with the same pfn or in the same page
    /// is refused.
    ///
    /// # Hypercalls
    /// One `grant_table_op` for each 32 requests; one more to undo each slot that was mapped and
    /// cannot be marked.
    ///
    /// # Safety
    /// The caller owns the pfns, and the pages at the addresses, in which no Rust object is (I-2),
    /// as long as the list has the mappings.
    ///
    /// ```
    /// # use hypercall::grants::{GrantAccess, GrantRef};
    /// # use hypercall::{DomId, FrameAccess, FrameSource, Pfn};
    /// # use pv_tests::guest::TestGuest;
    /// # use xen_model::GrantEntry;
    /// use p2m::grants::{GrantError, GrantMaps, MapRequest};
    ///
    /// let TestGuest { model, guest, p2m, mut frames, .. } = TestGuest::dom0(); // beside domain 1
    /// # let other = model.vcpu(1, 0).ok_or("it is there")?;
    /// # let frame = other.built_mfn(Pfn::new(7)).ok_or("it has memory")?;
    /// # other.write_grant(8, GrantEntry { flags: 1, domain: 0, frame }).map_err(|_| "no table")?;
    /// let pfn = FrameSource::take(&mut frames).ok_or("no memory")?.pfn();
    /// unsafe { p2m.depopulate(pfn) }?; // a pfn that has no memory: the balloon's reserve has such
    /// let request = MapRequest {
    ///     pfn,
    ///     va: model.direct_map(pfn)?,
    ///     domain: DomId(1),
    ///     reference: GrantRef(8),
    ///     access: GrantAccess::ReadWrite,
    /// };
    /// let (mut places, mut results) = ([None; 4], [Err(GrantError::NoPlace(pfn).into())]);
    /// let mut maps = GrantMaps::new(&mut places);
    /// unsafe { maps.map(&guest, &[request], &mut results) };
    /// let mapped = results[0]?;
    /// assert_eq!(p2m.machine_frame(pfn), Ok(mapped.mfn));
    /// unsafe { maps.unmap(&guest, pfn) }?;
    /// assert_eq!(maps.iter().count(), 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn map<M: Grants>(
        &mut self,
        guest: &Guest<'_, M>,
        requests: &[MapRequest],
        results: &mut [Result<MappedGrant, NotMapped>],
    ) {
        let results = results.chunks_mut(GRANT_SLOTS_MAX);
        for (requests, results) in requests.chunks(GRANT_SLOTS_MAX).zip(results) {
            // SAFETY: a part of what the caller vouches for.
            unsafe { self.map_some(guest, requests, results) };
        }
    }

    /// Maps up to `GRANT_SLOTS_MAX` grants.
    ///
    /// # Safety
    /// As for [`map`](Self::map).
    unsafe fn map_some<M: Grants>(
        &mut self,
        guest: &Guest<'_, M>,
        requests: &[MapRequest],
        results: &mut [Result<MappedGrant, NotMapped>],
    ) {
        let (mut maps, mut slots) = ([GrantMap::EMPTY; GRANT_SLOTS_MAX], [0; GRANT_SLOTS_MAX]);
        let mut places = [0; GRANT_SLOTS_MAX];
        let mut free = (0..self.places.len()).filter(|at| self.places[*at].is_none());
        let mut asked = 0;
        for (slot, request) in requests.iter().enumerate().take(results.len()) {
            let planned = slots[..asked].iter().map(|slot| &requests[*slot]);
            let others = planned.chain(self.iter().map(|mapped| &mapped.request));
            let planned = plan(guest.p2m(), request, others).and_then(|map| {
                let place = free.next().ok_or(GrantError::NoPlace(request.pfn))?;
                (maps[asked], slots[asked], places[asked]) = (map, slot, place);
                Ok(())
            });
            match planned {
                Ok(()) => asked += 1,
                Err(error) => results[slot] = Err(error.into()),
            }
        }
        // SAFETY: the caller vouches for the addresses.
        let whole = unsafe { guest.machine().grant_map(&mut maps[..asked]) };
        for ((map, slot), place) in maps[..asked].iter().zip(slots).zip(places) {
            let (request, pfn) = (requests[slot], requests[slot].pfn);
            results[slot] = match (whole, map.mfn()) {
                (Err(error), _) if map.status() == GrantStatus::NOT_ISSUED => {
                    Err(GrantError::Call { pfn, error }.into())
                }
                (_, None) => Err(GrantError::Refused { pfn, status: map.status() }.into()),
                (_, Some(mfn)) => {
                    let handle = GrantHandle(map.handle);
                    let mapped = MappedGrant { request, handle, mfn, is_marked: false };
                    self.record(guest, mapped, place)
                }
            };
        }
    }

    /// Adds a mapping to the list and marks its pfn, or undoes the mapping.
    fn record<M: Grants>(
        &mut self,
        guest: &Guest<'_, M>,
        mapped: MappedGrant,
        place: usize,
    ) -> Result<MappedGrant, NotMapped> {
        let MapRequest { pfn, domain, .. } = mapped.request;
        // SAFETY: Xen has just mapped the frame for this pfn, which had none.
        let marked = unsafe { guest.p2m().set_foreign(pfn, domain, mapped.mfn) };
        let mapped = MappedGrant { is_marked: marked.is_ok(), ..mapped };
        self.places[place] = Some(mapped);
        let Err(error) = marked else { return Ok(mapped) };
        // SAFETY: it was mapped a moment ago, and nobody knows of it.
        let undo = unsafe { self.unmap_place(guest, mapped, place) };
        Err(NotMapped { error: error.into(), undo })
    }

    /// Unmaps the grant at `pfn`, which is empty afterwards.
    ///
    /// # Errors
    /// [`GrantError`]; the mapping stays in the list. One exception: if the mark vanished while Xen
    /// was asked, the mapping has ended and left the list.
    ///
    /// # Hypercalls
    /// One `grant_table_op`.
    ///
    /// # Safety
    /// Nobody uses the mapping any more.
    pub unsafe fn unmap<M: Grants>(
        &mut self,
        guest: &Guest<'_, M>,
        pfn: Pfn,
    ) -> Result<(), GrantError> {
        let places = self.places.iter().enumerate();
        let mut found = places.filter_map(|(place, mapped)| Some((place, (*mapped)?)));
        let found = found.find(|(_, mapped)| mapped.request.pfn == pfn);
        let (place, mapped) = found.ok_or(GrantError::NotMapped(pfn))?;
        // SAFETY: the caller's promise is passed on.
        unsafe { self.unmap_place(guest, mapped, place) }
    }

    /// Unmaps the grant in this place of the list.
    ///
    /// # Safety
    /// As for [`unmap`](Self::unmap).
    unsafe fn unmap_place<M: Grants>(
        &mut self,
        guest: &Guest<'_, M>,
        mapped: MappedGrant,
        place: usize,
    ) -> Result<(), GrantError> {
        let MapRequest { pfn, va, domain: owner, .. } = mapped.request;
        if mapped.is_marked {
            let entry = guest.p2m().entry(pfn)?;
            if entry != (P2mEntry::Foreign { owner, mfn: mapped.mfn }) {
                return Err(P2mError::NotForeign { pfn, entry }.into());
            }
        }
        let mut unmaps = [GrantUnmap::kernel(va, mapped.handle)];
        // SAFETY: the caller vouches that the mapping is unused.
        let answer = unsafe { guest.machine().grant_unmap(&mut unmaps) };
        match (answer, unmaps[0].status()) {
            (_, GrantStatus::OKAY) => self.places[place] = None,
            (Err(error), _) => return Err(GrantError::Call { pfn, error }),
            (Ok(()), status) => return Err(GrantError::Refused { pfn, status }),
        }
        if mapped.is_marked {
            // SAFETY: Xen has just ended the mapping, and nobody uses it.
            unsafe { guest.p2m().clear_foreign(pfn) }?;
        }
        Ok(())
    }
}

/// Returns the slot for a request, unless the map or one of the `others`, mapped or to be mapped,
/// rules it out.
fn plan<'r>(
    p2m: &P2m<'_>,
    request: &MapRequest,
    others: impl Iterator<Item = &'r MapRequest>,
) -> Result<GrantMap, GrantError> {
    let MapRequest { pfn, va, domain, reference, access } = *request;
    for other in others {
        if other.pfn == pfn {
            return Err(GrantError::PfnTaken(pfn));
        }
        if other.va.raw() >> PAGE_SHIFT == va.raw() >> PAGE_SHIFT {
            return Err(GrantError::AddressTaken(va));
        }
    }
    p2m.check_can_fill(pfn)?;
    Ok(GrantMap::kernel(va, domain, reference, access))
}

#[cfg(all(test, not(loom)))]
#[path = "maps/tests.rs"]
mod tests;
