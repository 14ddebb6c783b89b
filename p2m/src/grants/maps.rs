//! What this guest maps of others' grants: the list of handles that nobody else keeps.
//!
//! Xen answers a map request slot by slot, and the hypercall's own result says nothing about them;
//! so every slot has a result here too. Each mapping has a pfn of its own, which had no memory: it
//! is marked foreign while the mapping lasts, so that no allocator takes it for the guest's. The
//! mark, the place in the list and the mapping come and go together: a slot of which one cannot be
//! had gets none.
#![expect(unsafe_code, reason = "asks Xen to map at addresses that the caller owns (I-2)")]

use core::fmt;

use hypercall::{
    DomId, Error, GrantAccess, GrantHandle, GrantMap, GrantRef, GrantStatus, GrantUnmap, Grants,
    GuestVa, Mfn, Pfn,
};

use crate::entry::P2mEntry;
use crate::error::P2mError;
use crate::map::P2m;

/// A grant to map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRequest {
    /// The pfn it is known by, which has no memory.
    pub pfn: Pfn,
    /// Where it is mapped: an address with an L1 table, whose entry is replaced.
    pub va: GuestVa,
    /// Who grants it.
    pub domain: DomId,
    /// As what.
    pub reference: GrantRef,
    /// What it is mapped for.
    pub access: GrantAccess,
}

/// A grant that is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedGrant {
    /// What was asked for.
    pub request: MapRequest,
    /// What Xen calls the mapping.
    pub handle: GrantHandle,
    /// The frame.
    pub mfn: Mfn,
}

/// Why a slot was not mapped, or not unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantFailure {
    /// The pfn cannot be marked, or its mark cannot be taken off: Xen was not asked, or the mapping
    /// was undone.
    P2m(P2mError),
    /// Xen refused.
    Refused(GrantStatus),
    /// Xen refused the whole hypercall.
    Call(Error),
    /// The list has no place for another mapping.
    NoPlace,
    /// Nothing is mapped for this pfn.
    NotMapped(Pfn),
    /// It was mapped, could not be recorded, and cannot be unmapped: the mapping stays, in the
    /// list.
    NotUndone(GrantStatus),
}

impl fmt::Display for GrantFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::P2m(error) => write!(f, "{error}"),
            Self::Refused(status) => write!(f, "Xen refused: {status}"),
            Self::Call(error) => write!(f, "{error}"),
            Self::NoPlace => f.write_str("the list of mappings is full"),
            Self::NotMapped(pfn) => write!(f, "no grant is mapped as pfn {pfn}"),
            Self::NotUndone(status) => write!(f, "the mapping cannot be undone: {status}"),
        }
    }
}

impl core::error::Error for GrantFailure {}

impl From<P2mError> for GrantFailure {
    fn from(error: P2mError) -> Self {
        Self::P2m(error)
    }
}

/// The mappings of others' grants, in memory of the caller's.
#[derive(Debug)]
pub struct GrantMaps<'s> {
    places: &'s mut [Option<MappedGrant>],
}

/// The most slots that go to Xen in one hypercall.
const GRANT_SLOTS_MAX: usize = 32;

impl<'s> GrantMaps<'s> {
    /// An empty list. What is in `places` already is forgotten.
    pub fn new(places: &'s mut [Option<MappedGrant>]) -> Self {
        places.fill(None);
        Self { places }
    }

    /// The mappings that there are.
    pub fn iter(&self) -> impl Iterator<Item = &MappedGrant> {
        self.places.iter().flatten()
    }

    /// Maps grants; `results` gets what became of each, in order, as far as it reaches. Slots are
    /// independent of one another.
    ///
    /// # Hypercalls
    /// One `grant_table_op` for each 32 requests; one more for each slot that was mapped and cannot
    /// be recorded, to undo it.
    ///
    /// # Safety
    /// The caller owns the pages at the addresses, and no Rust object lives there (I-2).
    ///
    /// ```
    /// # use hypercall::{DomId, FrameAccess, GrantAccess, GrantRef, Pfn};
    /// # use p2m::LeafSource;
    /// # use pv_tests::guest::Guest;
    /// # use xen_model::GrantEntry;
    /// use p2m::{GrantFailure, GrantMaps, MapRequest};
    ///
    /// let Guest { model, p2m, mut frames, .. } = Guest::dom0(); // beside domain 1
    /// # let other = model.vcpu(1, 0).ok_or("it is there")?;
    /// # let frame = other.built_mfn(Pfn::new(7)).ok_or("it has memory")?;
    /// # other.write_grant(8, GrantEntry { flags: 1, domain: 0, frame }).map_err(|_| "no table")?;
    /// let pfn = LeafSource::take(&mut frames).ok_or("no memory")?.pfn();
    /// unsafe { p2m.depopulate(pfn) }?; // a pfn that has no memory: the balloon's reserve has such
    /// let request = MapRequest {
    ///     pfn,
    ///     va: model.direct_map(pfn)?,
    ///     domain: DomId(1),
    ///     reference: GrantRef(8),
    ///     access: GrantAccess::ReadWrite,
    /// };
    /// let (mut places, mut results) = ([None; 4], [Err(GrantFailure::NoPlace)]);
    /// let mut maps = GrantMaps::new(&mut places);
    /// unsafe { maps.map((model, p2m), &[request], &mut results) };
    /// let mapped = results[0]?;
    /// assert_eq!(p2m.machine_frame(pfn), Ok(mapped.mfn));
    /// unsafe { maps.unmap((model, p2m), pfn) }?;
    /// assert_eq!(maps.iter().count(), 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn map<M: Grants + ?Sized>(
        &mut self,
        (machine, p2m): (&M, &P2m<'_>),
        requests: &[MapRequest],
        results: &mut [Result<MappedGrant, GrantFailure>],
    ) {
        let results = results.chunks_mut(GRANT_SLOTS_MAX);
        for (requests, results) in requests.chunks(GRANT_SLOTS_MAX).zip(results) {
            // SAFETY: a part of what the caller vouches for.
            unsafe { self.map_some((machine, p2m), requests, results) };
        }
    }

    /// Maps up to `GRANT_SLOTS_MAX` grants.
    ///
    /// # Safety
    /// As for [`map`](Self::map).
    unsafe fn map_some<M: Grants + ?Sized>(
        &mut self,
        (machine, p2m): (&M, &P2m<'_>),
        requests: &[MapRequest],
        results: &mut [Result<MappedGrant, GrantFailure>],
    ) {
        let mut places = self.places.iter().filter(|place| place.is_none()).count();
        let mut maps = [GrantMap::EMPTY; GRANT_SLOTS_MAX];
        let mut asked = 0;
        for (at, (request, result)) in requests.iter().zip(results.iter_mut()).enumerate() {
            match plan(p2m, request, &requests[..at], places) {
                Ok(map) => {
                    maps[asked] = map;
                    asked += 1;
                    places -= 1;
                    *result = Err(GrantFailure::Refused(GrantStatus::NOT_ISSUED));
                }
                Err(failure) => *result = Err(failure),
            }
        }
        // SAFETY: the caller vouches for the addresses.
        let whole = unsafe { machine.grant_map(&mut maps[..asked]) };
        let planned = |result: &Result<_, _>| {
            matches!(result, Err(GrantFailure::Refused(GrantStatus::NOT_ISSUED)))
        };
        let slots = requests.iter().zip(results).filter(|(_, result)| planned(result));
        for ((request, result), map) in slots.zip(&maps) {
            *result = match (whole, map.mfn()) {
                (Err(error), _) if map.status() == GrantStatus::NOT_ISSUED => {
                    Err(GrantFailure::Call(error))
                }
                (_, None) => Err(GrantFailure::Refused(map.status())),
                (_, Some(mfn)) => {
                    let handle = GrantHandle(map.handle);
                    self.record((machine, p2m), MappedGrant { request: *request, handle, mfn })
                }
            };
        }
    }

    /// Marks what was mapped, or undoes the mapping.
    fn record<M: Grants + ?Sized>(
        &mut self,
        (machine, p2m): (&M, &P2m<'_>),
        mapped: MappedGrant,
    ) -> Result<MappedGrant, GrantFailure> {
        let MapRequest { pfn, va, domain, .. } = mapped.request;
        // SAFETY: Xen has just mapped the frame for this pfn, which had none.
        let marked = unsafe { p2m.set_foreign(pfn, domain, mapped.mfn) };
        let place = self.places.iter_mut().find(|place| place.is_none());
        let (Some(place), Ok(())) = (place, marked) else {
            let mut unmaps = [GrantUnmap::kernel(va, mapped.handle)];
            // SAFETY: mapped a moment ago, and told to nobody.
            let undone = unsafe { machine.grant_unmap(&mut unmaps) };
            return Err(match (marked, unmaps[0].status()) {
                (Err(error), GrantStatus::OKAY) => error.into(),
                (Ok(()), GrantStatus::OKAY) => GrantFailure::NoPlace,
                (_, status) => {
                    undone.map_or_else(GrantFailure::Call, |()| GrantFailure::NotUndone(status))
                }
            });
        };
        *place = Some(mapped);
        Ok(mapped)
    }

    /// Maps all of the grants or none: if one slot fails, those that did not are unmapped again.
    /// The first failure and its slot are the error; should a slot not be unmapped either, it stays
    /// in the list.
    ///
    /// # Errors
    /// The slot and its failure.
    ///
    /// # Hypercalls
    /// As for [`map`](Self::map); on failure as for [`unmap`](Self::unmap) too.
    ///
    /// # Safety
    /// As for [`map`](Self::map).
    pub unsafe fn map_all<M: Grants + ?Sized>(
        &mut self,
        (machine, p2m): (&M, &P2m<'_>),
        requests: &[MapRequest],
        results: &mut [Result<MappedGrant, GrantFailure>],
    ) -> Result<(), (usize, GrantFailure)> {
        // SAFETY: the caller's promise is handed on.
        unsafe { self.map((machine, p2m), requests, results) };
        let failed = results.iter().take(requests.len()).enumerate();
        let Some((slot, failure)) =
            failed.filter_map(|(slot, result)| Some((slot, result.err()?))).next()
        else {
            return Ok(());
        };
        for result in results.iter_mut().take(requests.len()) {
            if let Ok(mapped) = *result {
                // SAFETY: mapped above, and told to nobody.
                let unmapped = unsafe { self.unmap((machine, p2m), mapped.request.pfn) };
                *result = Err(unmapped.err().unwrap_or(failure));
            }
        }
        Err((slot, failure))
    }

    /// Unmaps the grant known as `pfn`, which has no memory then.
    ///
    /// # Errors
    /// [`GrantFailure::NotMapped`] if it is none of the list's; otherwise Xen's refusal, or an mark
    /// that somebody took off: the mapping stays in the list.
    ///
    /// # Hypercalls
    /// One `grant_table_op`.
    ///
    /// # Safety
    /// Nobody uses the mapping any more.
    pub unsafe fn unmap<M: Grants + ?Sized>(
        &mut self,
        (machine, p2m): (&M, &P2m<'_>),
        pfn: Pfn,
    ) -> Result<(), GrantFailure> {
        let is_it = |place: &&mut Option<MappedGrant>| {
            place.is_some_and(|mapped| mapped.request.pfn == pfn)
        };
        let place = self.places.iter_mut().find(is_it).ok_or(GrantFailure::NotMapped(pfn))?;
        let mapped = place.ok_or(GrantFailure::NotMapped(pfn))?;
        let entry = p2m.entry(pfn)?;
        if entry != (P2mEntry::Foreign { owner: mapped.request.domain, mfn: mapped.mfn }) {
            return Err(P2mError::NotForeign { pfn, entry }.into());
        }
        let mut unmaps = [GrantUnmap::kernel(mapped.request.va, mapped.handle)];
        // SAFETY: the caller vouches that the mapping is unused.
        unsafe { machine.grant_unmap(&mut unmaps) }.map_err(GrantFailure::Call)?;
        if unmaps[0].status() != GrantStatus::OKAY {
            return Err(GrantFailure::Refused(unmaps[0].status()));
        }
        *place = None;
        // SAFETY: Xen has just ended the mapping, and nobody uses it.
        unsafe { p2m.clear_foreign(pfn) }?;
        Ok(())
    }

    /// Unmaps everything; calls `stays` for each mapping that would not go, and says how many those
    /// are.
    ///
    /// # Hypercalls
    /// One `grant_table_op` for each mapping.
    ///
    /// # Safety
    /// Nobody uses any of the mappings any more.
    pub unsafe fn unmap_all<M: Grants + ?Sized>(
        &mut self,
        (machine, p2m): (&M, &P2m<'_>),
        stays: &mut impl FnMut(MappedGrant, GrantFailure),
    ) -> usize {
        let mut staying = 0;
        for at in 0..self.places.len() {
            let Some(mapped) = self.places[at] else { continue };
            // SAFETY: the caller's promise is handed on.
            if let Err(failure) = unsafe { self.unmap((machine, p2m), mapped.request.pfn) } {
                stays(mapped, failure);
                staying += 1;
            }
        }
        staying
    }
}

/// What to ask of Xen for a request, unless the map or the list says already that it cannot be
/// recorded.
fn plan(
    p2m: &P2m<'_>,
    request: &MapRequest,
    before: &[MapRequest],
    places: usize,
) -> Result<GrantMap, GrantFailure> {
    let MapRequest { pfn, va, domain, reference, access } = *request;
    p2m.check_can_fill(pfn)?;
    if before.iter().any(|other| other.pfn == pfn) {
        let entry = p2m.entry(pfn)?;
        return Err(P2mError::Occupied { pfn, entry }.into());
    }
    if places == 0 {
        return Err(GrantFailure::NoPlace);
    }
    Ok(GrantMap::kernel(va, domain, reference, access))
}

#[cfg(all(test, not(loom)))]
#[path = "maps/tests.rs"]
mod tests;
