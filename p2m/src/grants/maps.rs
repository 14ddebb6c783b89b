//! What this guest maps of others' grants: the list of handles that nobody else keeps.
//!
//! Xen answers a map request slot by slot, and the hypercall's own result says nothing about them;
//! so every slot has a result here too. Each mapping has a pfn of its own, which had no memory: it
//! is marked foreign while the mapping lasts, so that no allocator takes it for the guest's. The
//! mark, the place in the list and the mapping come and go together: a slot of which one cannot be
//! had gets none. Should Xen then not undo the mapping, it stays in the list, with its handle.
#![expect(unsafe_code, reason = "asks Xen to map at addresses that the caller owns (I-2)")]

use core::fmt;

use hypercall::{
    DomId, Error, GrantAccess, GrantHandle, GrantMap, GrantRef, GrantStatus, GrantUnmap, Grants,
    GuestVa, Mfn, PAGE_SHIFT, Pfn,
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
    /// Whether its pfn is marked as foreign in the frame map. It is not only if the pfn got
    /// something else meanwhile and Xen refused to undo the mapping.
    pub is_marked: bool,
}

/// Why a grant was not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantFailure {
    /// The pfn cannot be marked: Xen was not asked, or the mapping was undone.
    P2m(P2mError),
    /// A grant is mapped for this pfn, or another of the same request is to be.
    PfnTaken(Pfn),
    /// A grant is mapped in the page of this address, or another of the same request is to be: Xen
    /// would replace the one by the other, which could never be unmapped again.
    AddressTaken(GuestVa),
    /// Xen refused.
    Refused(GrantStatus),
    /// Xen refused the whole hypercall.
    Call(Error),
    /// The list has no place for another mapping.
    NoPlace,
    /// There is no place for its result.
    NoResult,
    /// It was mapped, was not to stay, and cannot be unmapped: the mapping stays, in the list.
    NotUndone(UnmapFailure),
}

/// Why a grant was not unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmapFailure {
    /// Nothing is mapped for this pfn.
    NotMapped(Pfn),
    /// The frame map has something else for the pfn than the mark that was set.
    Mark(P2mError),
    /// Xen refused.
    Refused(GrantStatus),
    /// Xen refused the whole hypercall.
    Call(Error),
}

impl fmt::Display for GrantFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::P2m(error) => write!(f, "{error}"),
            Self::PfnTaken(pfn) => {
                write!(f, "pfn {pfn} has a grant already, or twice in a request")
            }
            Self::AddressTaken(va) => {
                write!(f, "the page of {va} has a grant already, or twice in a request")
            }
            Self::Refused(status) => write!(f, "Xen refused: {status}"),
            Self::Call(error) => write!(f, "{error}"),
            Self::NoPlace => f.write_str("the list of mappings is full"),
            Self::NoResult => f.write_str("there is no place for its result"),
            Self::NotUndone(failure) => write!(f, "the mapping cannot be undone: {failure}"),
        }
    }
}

impl core::error::Error for GrantFailure {}

impl From<P2mError> for GrantFailure {
    fn from(error: P2mError) -> Self {
        Self::P2m(error)
    }
}

impl fmt::Display for UnmapFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMapped(pfn) => write!(f, "no grant is mapped as pfn {pfn}"),
            Self::Mark(error) => write!(f, "its mark is gone: {error}"),
            Self::Refused(status) => write!(f, "Xen refused: {status}"),
            Self::Call(error) => write!(f, "{error}"),
        }
    }
}

impl core::error::Error for UnmapFailure {}

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
    /// independent of one another, except that no two are mapped for one pfn or in one page: the
    /// second is refused, and so is one beside a mapping that is in the list.
    ///
    /// # Hypercalls
    /// One `grant_table_op` for each 32 requests; one more for each slot that was mapped and cannot
    /// be marked, to undo it.
    ///
    /// # Safety
    /// The caller owns the pfns, and the pages at the addresses, in which no Rust object lives
    /// (I-2); for as long as the list has the mappings.
    ///
    /// ```
    /// # use hypercall::{DomId, FrameAccess, GrantAccess, GrantRef, Pfn};
    /// # use p2m::FrameSource;
    /// # use pv_tests::guest::TestGuest;
    /// # use xen_model::GrantEntry;
    /// use p2m::{GrantFailure, GrantMaps, MapRequest};
    ///
    /// let TestGuest { model, p2m, mut frames, .. } = TestGuest::dom0(); // beside domain 1
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
        const PLANNED: GrantFailure = GrantFailure::Refused(GrantStatus::NOT_ISSUED);
        let mut maps = [GrantMap::EMPTY; GRANT_SLOTS_MAX];
        let mut places = [0; GRANT_SLOTS_MAX];
        let mut free = (0..self.places.len()).filter(|at| self.places[*at].is_none());
        let mut asked = 0;
        for (at, request) in requests.iter().enumerate().take(results.len()) {
            let before = requests[..at].iter().zip(&*results);
            let before = before.filter(|(_, result)| **result == Err(PLANNED));
            let others = before.map(|(request, _)| request);
            let planned = plan(p2m, request, others.chain(self.iter().map(|it| &it.request)));
            let placed = planned.map(|map| (map, free.next()));
            results[at] = Err(match placed {
                Err(failure) => failure,
                Ok((_, None)) => GrantFailure::NoPlace,
                Ok((map, Some(place))) => {
                    (maps[asked], places[asked]) = (map, place);
                    asked += 1;
                    PLANNED
                }
            });
        }
        // SAFETY: the caller vouches for the addresses.
        let whole = unsafe { machine.grant_map(&mut maps[..asked]) };
        let slots = requests.iter().zip(results).filter(|(_, result)| **result == Err(PLANNED));
        for ((request, result), (map, place)) in slots.zip(maps.iter().zip(places)) {
            *result = match (whole, map.mfn()) {
                (Err(error), _) if map.status() == GrantStatus::NOT_ISSUED => {
                    Err(GrantFailure::Call(error))
                }
                (_, None) => Err(GrantFailure::Refused(map.status())),
                (_, Some(mfn)) => {
                    let (request, handle) = (*request, GrantHandle(map.handle));
                    let mapped = MappedGrant { request, handle, mfn, is_marked: false };
                    self.record((machine, p2m), mapped, place)
                }
            };
        }
    }

    /// Puts what was mapped into the list, and marks its pfn; or undoes the mapping.
    fn record<M: Grants + ?Sized>(
        &mut self,
        (machine, p2m): (&M, &P2m<'_>),
        mapped: MappedGrant,
        place: usize,
    ) -> Result<MappedGrant, GrantFailure> {
        let MapRequest { pfn, domain, .. } = mapped.request;
        // SAFETY: Xen has just mapped the frame for this pfn, which had none.
        let marked = unsafe { p2m.set_foreign(pfn, domain, mapped.mfn) };
        let mapped = MappedGrant { is_marked: marked.is_ok(), ..mapped };
        self.places[place] = Some(mapped);
        let Err(error) = marked else { return Ok(mapped) };
        // SAFETY: mapped a moment ago, and told to nobody.
        match unsafe { self.unmap_place((machine, p2m), mapped, place) } {
            Ok(()) => Err(GrantFailure::P2m(error)),
            Err(failure) => Err(GrantFailure::NotUndone(failure)),
        }
    }

    /// Maps all of the grants or none: if one slot fails, those that did not are unmapped again.
    /// The first failure and its slot are the error; should a slot not be unmapped either, its
    /// result is [`GrantFailure::NotUndone`], and it stays in the list. What was in the list before
    /// stays as it is.
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
        if results.len() < requests.len() {
            return Err((results.len(), GrantFailure::NoResult));
        }
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
                *result = Err(unmapped.err().map_or(failure, GrantFailure::NotUndone));
            }
        }
        Err((slot, failure))
    }

    /// Unmaps the grant known as `pfn`, which has no memory then.
    ///
    /// # Errors
    /// [`UnmapFailure`]: the mapping stays in the list. Only if a mark is gone that was there when
    /// Xen was asked, the mapping has ended all the same, and left the list.
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
    ) -> Result<(), UnmapFailure> {
        let places = self.places.iter().enumerate();
        let mut found = places.filter_map(|(place, mapped)| Some((place, (*mapped)?)));
        let found = found.find(|(_, mapped)| mapped.request.pfn == pfn);
        let (place, mapped) = found.ok_or(UnmapFailure::NotMapped(pfn))?;
        // SAFETY: the caller's promise is handed on.
        unsafe { self.unmap_place((machine, p2m), mapped, place) }
    }

    /// Unmaps what is in this place of the list.
    ///
    /// # Safety
    /// As for [`unmap`](Self::unmap).
    unsafe fn unmap_place<M: Grants + ?Sized>(
        &mut self,
        (machine, p2m): (&M, &P2m<'_>),
        mapped: MappedGrant,
        place: usize,
    ) -> Result<(), UnmapFailure> {
        let MapRequest { pfn, va, domain: owner, .. } = mapped.request;
        if mapped.is_marked {
            let entry = p2m.entry(pfn).map_err(UnmapFailure::Mark)?;
            if entry != (P2mEntry::Foreign { owner, mfn: mapped.mfn }) {
                return Err(UnmapFailure::Mark(P2mError::NotForeign { pfn, entry }));
            }
        }
        let mut unmaps = [GrantUnmap::kernel(va, mapped.handle)];
        // SAFETY: the caller vouches that the mapping is unused.
        let answer = unsafe { machine.grant_unmap(&mut unmaps) };
        match (answer, unmaps[0].status()) {
            (_, GrantStatus::OKAY) => self.places[place] = None,
            (Err(error), _) => return Err(UnmapFailure::Call(error)),
            (Ok(()), status) => return Err(UnmapFailure::Refused(status)),
        }
        if mapped.is_marked {
            // SAFETY: Xen has just ended the mapping, and nobody uses it.
            unsafe { p2m.clear_foreign(pfn) }.map_err(UnmapFailure::Mark)?;
        }
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
        stays: &mut impl FnMut(MappedGrant, UnmapFailure),
    ) -> usize {
        let mut staying = 0;
        for at in 0..self.places.len() {
            let Some(mapped) = self.places[at] else { continue };
            // SAFETY: the caller's promise is handed on.
            let unmapped = unsafe { self.unmap_place((machine, p2m), mapped, at) };
            if let (Err(failure), Some(mapped)) = (unmapped, self.places[at]) {
                stays(mapped, failure);
                staying += 1;
            }
        }
        staying
    }
}

/// What to ask of Xen for a request, unless the map, or one of the `others` that are or will be
/// mapped, says already that it cannot be.
fn plan<'r>(
    p2m: &P2m<'_>,
    request: &MapRequest,
    others: impl Iterator<Item = &'r MapRequest>,
) -> Result<GrantMap, GrantFailure> {
    let MapRequest { pfn, va, domain, reference, access } = *request;
    for other in others {
        if other.pfn == pfn {
            return Err(GrantFailure::PfnTaken(pfn));
        }
        if other.va.raw() >> PAGE_SHIFT == va.raw() >> PAGE_SHIFT {
            return Err(GrantFailure::AddressTaken(va));
        }
    }
    p2m.check_can_fill(pfn)?;
    Ok(GrantMap::kernel(va, domain, reference, access))
}

#[cfg(all(test, not(loom)))]
#[path = "maps/tests.rs"]
mod tests;
