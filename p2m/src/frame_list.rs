//! The three-level frame list: a page of frames of pages of frames of the list's own pages.
//!
//! Toolstacks that do not walk the linear list read this one (`pfn_to_mfn_frame_list_list`), and so
//! do older tools that examine a guest from outside. It describes up to 2^27 pfns, 512 GiB; a
//! longer map has only the linear list.
//!
//! Its pages hold machine frames that nobody translates. After a restore all of them are stale, and
//! [`FrameList::build`] writes them again.
#![expect(unsafe_code, reason = "writes the pages of the list, which belong to it (I-1)")]

use hypercall::{AccessError, Frame, FrameAccess, FrameSource, Mfn, PAGE_SIZE, Pfn};

use crate::error::{ListError, P2mError};
use crate::guest::Guest;
use crate::leaves::Leaves;
use crate::map::{P2m, Pfns};
use crate::runs::LEAF_WORDS;

/// Entries in a page of frames.
const PER_PAGE: u64 = 512;
/// Entries that are written at a time.
const PART: usize = 64;
/// Pfns described by one page of frames of list pages: 1 GiB.
const PFNS_PER_MIDDLE: u64 = PER_PAGE * LEAF_WORDS;
/// The pages of a frame list. Dropping it leaks them.
#[derive(Debug)]
pub struct FrameList<'s> {
    top: Frame,
    middles: &'s mut [Option<Frame>],
}

impl<'s> FrameList<'s> {
    /// Pfns that a frame list can describe.
    pub const PFNS_MAX: u64 = PER_PAGE * PFNS_PER_MIDDLE;

    /// Creates an empty frame list. `top` is its first page. `middles` has a place for the page of
    /// each GiB; its contents are dropped.
    pub fn new(top: Frame, middles: &'s mut [Option<Frame>]) -> Self {
        middles.fill_with(|| None);
        Self { top, middles }
    }

    /// Returns the frame to publish.
    ///
    /// # Errors
    /// The frame is not the guest's.
    pub fn top(&self, p2m: &P2m<'_>) -> Result<Mfn, P2mError> {
        p2m.mfn(self.top.pfn())
    }

    /// Writes all of the list, for the first time or after a restore.
    ///
    /// # Errors
    /// [`ListError`]. Part of the list may be written; do not publish it.
    ///
    /// ```
    /// # use hypercall::{FrameAccess, PAGE_SHIFT, Pfn};
    /// # use pv_tests::guest::TestGuest;
    /// use hypercall::FrameSource;
    /// use p2m::{BuilderList, FrameList};
    ///
    /// let TestGuest { model, guest, boot, mut frames, .. } = TestGuest::new();
    /// let first = model.guest().pfn_at(boot.p2m_list).ok_or("mapped")?;
    /// let leaves = unsafe { BuilderList::new(first) };
    /// let mut middles = [const { None }; 1]; // a table for each GiB
    /// let top = FrameSource::take(&mut frames).ok_or("no memory")?;
    /// let mut list = FrameList::new(top, &mut middles);
    /// list.build(&guest, &leaves, &mut frames)?;
    /// // What a toolstack finds for the first 512 pfns is the builder's own page.
    /// let leaf = list.lookup(&guest, 0)?;
    /// assert_eq!(leaf, Some(guest.mfn(first)?));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn build<M: FrameAccess, L: Leaves>(
        &mut self,
        guest: &Guest<'_, M>,
        leaves: &L,
        source: &mut impl FrameSource,
    ) -> Result<(), ListError> {
        let gibs = describable(guest.p2m().len())?.div_ceil(PFNS_PER_MIDDLE);
        for gib in 0..gibs {
            self.refresh_gib(guest, leaves, gib, source)?;
        }
        // Entries past the end lead to a page, too, because tools check them.
        let last = self.middle(guest.p2m(), gibs - 1)?;
        for start in (gibs..PER_PAGE).step_by(PART) {
            let count = index(PER_PAGE - start).map_or(PART, |left| left.min(PART));
            put(guest.machine(), self.top.pfn(), start, &[last; PART][..count])?;
        }
        Ok(())
    }

    /// Updates the entries of `pfns`, after their words got other pages or the map grew over them.
    ///
    /// # Errors
    /// As for [`build`](Self::build). Each entry is right or as it was.
    pub fn refresh<M: FrameAccess, L: Leaves>(
        &mut self,
        guest: &Guest<'_, M>,
        leaves: &L,
        pfns: Pfns,
        source: &mut impl FrameSource,
    ) -> Result<(), ListError> {
        let end = describable(pfns.end().min(guest.p2m().len()))?;
        for gib in pfns.start.raw() / PFNS_PER_MIDDLE..end.div_ceil(PFNS_PER_MIDDLE) {
            self.refresh_gib(guest, leaves, gib, source)?;
        }
        Ok(())
    }

    fn refresh_gib<M: FrameAccess, L: Leaves>(
        &mut self,
        guest: &Guest<'_, M>,
        leaves: &L,
        gib: u64,
        source: &mut impl FrameSource,
    ) -> Result<(), ListError> {
        let places = self.middles.len();
        let place = index(gib).and_then(|gib| self.middles.get_mut(gib));
        let place = place.ok_or(ListError::NoPlace { places })?;
        let page = match place {
            Some(page) => page,
            None => {
                let first = Pfn::new(gib * PFNS_PER_MIDDLE);
                place.insert(source.take().ok_or(ListError::OutOfFrames(first))?)
            }
        };
        let pages = guest.p2m().len().div_ceil(LEAF_WORDS);
        let first = gib * PER_PAGE;
        let mut leaf = leaves.leaf(guest, first)?;
        let mut part = [Mfn::new(0); PART];
        for start in (0..PER_PAGE).step_by(PART) {
            for (at, word) in (first + start..).zip(&mut part) {
                if at < pages {
                    leaf = leaves.leaf(guest, at)?;
                }
                *word = leaf;
            }
            put(guest.machine(), page.pfn(), start, &part)?;
        }
        // The page is complete before an entry leads to it.
        let mfn = guest.mfn(page.pfn())?;
        put(guest.machine(), self.top.pfn(), gib, &[mfn])?;
        Ok(())
    }

    /// Returns the written page of a GiB.
    fn middle(&self, p2m: &P2m<'_>, gib: u64) -> Result<Mfn, ListError> {
        let places = self.middles.len();
        let page = index(gib).and_then(|gib| self.middles.get(gib)).and_then(Option::as_ref);
        Ok(p2m.mfn(page.ok_or(ListError::NoPlace { places })?.pfn())?)
    }

    /// Finds the frame of page `leaf` of the linear list as a toolstack does: frame by frame from
    /// the top. `None` if the list leads to a frame that is not the guest's.
    ///
    /// # Errors
    /// A page cannot be read.
    pub fn lookup<M: FrameAccess>(
        &self,
        guest: &Guest<'_, M>,
        leaf: u64,
    ) -> Result<Option<Mfn>, AccessError> {
        let middle = get(guest.machine(), self.top.pfn(), leaf / PER_PAGE)?;
        match guest.pfn(middle) {
            Ok(page) => get(guest.machine(), page, leaf % PER_PAGE).map(Some),
            Err(_) => Ok(None),
        }
    }
}

/// Returns `pfns`, if a frame list can describe that many.
const fn describable(pfns: u64) -> Result<u64, ListError> {
    match pfns {
        0..=FrameList::PFNS_MAX => Ok(pfns),
        _ => Err(ListError::Capacity { pfns, capacity: FrameList::PFNS_MAX }),
    }
}

fn index(number: u64) -> Option<usize> {
    usize::try_from(number).ok()
}

/// Writes at most [`PART`] words of a page from number `at` on.
fn put<M: FrameAccess>(machine: &M, page: Pfn, at: u64, words: &[Mfn]) -> Result<(), AccessError> {
    let offset = index(at * 8).unwrap_or(PAGE_SIZE);
    let mut bytes = [[0; 8]; PART];
    for (bytes, word) in bytes.iter_mut().zip(words) {
        *bytes = word.raw().to_le_bytes();
    }
    // SAFETY: the page belongs to the list (I-1).
    unsafe { machine.write_bytes(page, offset, bytes[..words.len()].as_flattened()) }
}

fn get<M: FrameAccess>(machine: &M, page: Pfn, at: u64) -> Result<Mfn, AccessError> {
    let mut bytes = [0; 8];
    machine.read_bytes(page, index(at * 8).unwrap_or(PAGE_SIZE), &mut bytes)?;
    Ok(Mfn::new(u64::from_le_bytes(bytes)))
}
