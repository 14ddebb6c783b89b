//! The three-level frame list: a page of frames of pages of frames of the list's own pages.
//!
//! Toolstacks that do not walk the linear list read this one (`pfn_to_mfn_frame_list_list`); so do
//! older tools that look at a guest from outside. It reaches as far as 2^27 pfns, 512 GiB; a longer
//! map has the linear list alone.
//!
//! Its pages hold machine frames that nobody translates: after a restore they are all stale, and
//! [`FrameList::build`] writes them again.
#![expect(unsafe_code, reason = "writes the pages of the list, which belong to it (I-1)")]

use hypercall::{AccessError, Frame, FrameAccess, FrameSource, Mfn, PAGE_SIZE, Pfn};

use crate::error::P2mError;
use crate::leaves::Leaves;
use crate::map::P2m;
use crate::runs::LEAF_WORDS;

/// Entries in a page of frames.
const PER_PAGE: u64 = 512;
/// Pfns that one page of frames of list pages describes: 1 GiB.
const PFNS_PER_MIDDLE: u64 = PER_PAGE * LEAF_WORDS;
/// Pfns that a frame list can describe.
pub const FRAME_LIST_PFNS_MAX: u64 = PER_PAGE * PFNS_PER_MIDDLE;

/// Why a frame list cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameListError {
    /// The map is longer than a frame list can describe.
    TooLong {
        /// Its pfns.
        len: u64,
    },
    /// There is no place for another page of the list: one is needed for each GiB.
    NoPlace {
        /// Places there are.
        places: usize,
    },
    /// No frame for another page of the list.
    OutOfFrames,
    /// A frame of the list is none of the guest's.
    P2m(P2mError),
    /// A page of the list cannot be written.
    Access(AccessError),
}

impl From<P2mError> for FrameListError {
    fn from(error: P2mError) -> Self {
        Self::P2m(error)
    }
}

impl From<AccessError> for FrameListError {
    fn from(error: AccessError) -> Self {
        Self::Access(error)
    }
}

impl core::fmt::Display for FrameListError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::TooLong { len } => write!(
                f,
                "a map of {len:#x} pfns has no frame list: it ends at {FRAME_LIST_PFNS_MAX:#x}"
            ),
            Self::NoPlace { places } => {
                write!(f, "the frame list has places for {places} pages, one for each GiB")
            }
            Self::OutOfFrames => f.write_str("no frame for a page of the frame list"),
            Self::P2m(error) => write!(f, "{error}"),
            Self::Access(error) => write!(f, "{error}"),
        }
    }
}

impl core::error::Error for FrameListError {}

/// The pages of a frame list. Dropping it leaks them.
#[derive(Debug)]
pub struct FrameList<'s> {
    top: Frame,
    middles: &'s mut [Option<Frame>],
}

impl<'s> FrameList<'s> {
    /// An empty frame list: `top` is its first page, `middles` has a place for the page of each
    /// GiB. What is in `middles` already is dropped.
    pub fn new(top: Frame, middles: &'s mut [Option<Frame>]) -> Self {
        middles.fill_with(|| None);
        Self { top, middles }
    }

    /// The frame to publish.
    ///
    /// # Errors
    /// If it is none of the guest's.
    pub fn top(&self, p2m: &P2m<'_>) -> Result<Mfn, P2mError> {
        p2m.mfn(self.top.pfn())
    }

    /// Writes the whole list, for the first time or after a restore.
    ///
    /// # Errors
    /// [`FrameListError`]; the list may be written in part and is not to be published.
    ///
    /// # Hypercalls
    /// None.
    ///
    /// ```
    /// # use hypercall::{FrameAccess, PAGE_SHIFT, Pfn};
    /// # use pv_tests::guest::TestGuest;
    /// use p2m::{BuilderList, FrameList, FrameSource};
    ///
    /// let TestGuest { model, p2m, boot, mut frames, .. } = TestGuest::new();
    /// let first = model.test().pfn_at(boot.p2m_list).ok_or("mapped")?;
    /// let leaves = unsafe { BuilderList::new(first) };
    /// let mut middles = [const { None }; 1]; // a table for each GiB
    /// let top = FrameSource::take(&mut frames).ok_or("no memory")?;
    /// let mut list = FrameList::new(top, &mut middles);
    /// list.build((model, p2m), &leaves, &mut frames)?;
    /// // What a toolstack finds for the first 512 pfns is the builder's own page.
    /// let leaf = list.lookup(model, p2m, 0)?;
    /// assert_eq!(leaf, Some(p2m.mfn(first)?));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn build<M: FrameAccess, L: Leaves>(
        &mut self,
        (machine, p2m): (&M, &P2m<'_>),
        leaves: &L,
        source: &mut impl FrameSource,
    ) -> Result<(), FrameListError> {
        let gibs = p2m.len().div_ceil(PFNS_PER_MIDDLE);
        if gibs > PER_PAGE {
            return Err(FrameListError::TooLong { len: p2m.len() });
        }
        for gib in 0..gibs {
            self.refresh_gib((machine, p2m), leaves, gib, source)?;
        }
        // What nobody should read leads to a page all the same: tools check entries behind the end,
        // too.
        let last = self.middle((machine, p2m), gibs - 1)?;
        for gib in gibs..PER_PAGE {
            put(machine, self.top.pfn(), gib, last)?;
        }
        Ok(())
    }

    /// Writes what changed when the words of `pfns` got another page of memory, or the map grew
    /// over them.
    ///
    /// # Errors
    /// As for [`build`](Self::build); what is written is right, and what is not is as it was.
    ///
    /// # Hypercalls
    /// None.
    pub fn refresh<M: FrameAccess, L: Leaves>(
        &mut self,
        (machine, p2m): (&M, &P2m<'_>),
        leaves: &L,
        pfns: crate::map::Pfns,
        source: &mut impl FrameSource,
    ) -> Result<(), FrameListError> {
        let end = pfns.end().min(p2m.len());
        if end > FRAME_LIST_PFNS_MAX {
            return Err(FrameListError::TooLong { len: p2m.len() });
        }
        for gib in pfns.start.raw() / PFNS_PER_MIDDLE..end.div_ceil(PFNS_PER_MIDDLE) {
            self.refresh_gib((machine, p2m), leaves, gib, source)?;
        }
        Ok(())
    }

    fn refresh_gib<M: FrameAccess, L: Leaves>(
        &mut self,
        (machine, p2m): (&M, &P2m<'_>),
        leaves: &L,
        gib: u64,
        source: &mut impl FrameSource,
    ) -> Result<(), FrameListError> {
        let places = self.middles.len();
        let place = index(gib).and_then(|gib| self.middles.get_mut(gib));
        let place = place.ok_or(FrameListError::NoPlace { places })?;
        let page = match place {
            Some(page) => page,
            None => place.insert(source.take().ok_or(FrameListError::OutOfFrames)?),
        };
        let pages = p2m.len().div_ceil(LEAF_WORDS);
        let first = gib * PER_PAGE;
        let mut leaf = leaves.leaf(machine, p2m, first)?;
        for at in 0..PER_PAGE {
            if first + at < pages {
                leaf = leaves.leaf(machine, p2m, first + at)?;
            }
            put(machine, page.pfn(), at, leaf)?;
        }
        // The page is whole before the entry that leads to it.
        let mfn = p2m.mfn(page.pfn())?;
        put(machine, self.top.pfn(), gib, mfn)?;
        Ok(())
    }

    /// The page of a GiB that has been written.
    fn middle<M>(&self, (_, p2m): (&M, &P2m<'_>), gib: u64) -> Result<Mfn, FrameListError> {
        let places = self.middles.len();
        let page = index(gib).and_then(|gib| self.middles.get(gib)).and_then(Option::as_ref);
        Ok(p2m.mfn(page.ok_or(FrameListError::NoPlace { places })?.pfn())?)
    }

    /// What the list says of page `leaf` of the linear list, read the way a toolstack reads it:
    /// frame by frame from the top. `None` if it leads to a frame that is none of the guest's.
    ///
    /// # Errors
    /// If a page cannot be read.
    pub fn lookup<M: FrameAccess>(
        &self,
        machine: &M,
        p2m: &P2m<'_>,
        leaf: u64,
    ) -> Result<Option<Mfn>, AccessError> {
        let middle = get(machine, self.top.pfn(), leaf / PER_PAGE)?;
        match p2m.pfn(machine, middle) {
            Ok(page) => get(machine, page, leaf % PER_PAGE).map(Some),
            Err(_) => Ok(None),
        }
    }
}

fn index(number: u64) -> Option<usize> {
    usize::try_from(number).ok()
}

fn put<M: FrameAccess>(machine: &M, page: Pfn, at: u64, mfn: Mfn) -> Result<(), AccessError> {
    let offset = index(at * 8).unwrap_or(PAGE_SIZE);
    // SAFETY: the page belongs to the list (I-1).
    unsafe { machine.write_bytes(page, offset, &mfn.raw().to_le_bytes()) }
}

fn get<M: FrameAccess>(machine: &M, page: Pfn, at: u64) -> Result<Mfn, AccessError> {
    let mut bytes = [0; 8];
    machine.read_bytes(page, index(at * 8).unwrap_or(PAGE_SIZE), &mut bytes)?;
    Ok(Mfn::new(u64::from_le_bytes(bytes)))
}
