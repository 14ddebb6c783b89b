//! Every frame of the machine.
//!
//! A machine of a terabyte has 2^28 frames, of which a test touches a few. What a frame is before
//! anybody has touched it follows from the plan by which its domain was built, so it is computed on
//! first touch, in chunks.

use core::cell::RefCell;

use hypercall::Mfn;

use crate::build::plan::Plan;
use crate::page::{Contents, DOM_IO, DOM_XEN, INVALID_M2P, NOBODY, Page, WORDS};
use crate::types::{CountFlags, CountInfo, PageType, TypeInfo};

const CHUNK: usize = 64;

/// Builders' tables that are kept once they are computed.
const TABLES: usize = CHUNK;

/// A stretch of RAM and what it was used for at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Region {
    /// The first megabyte.
    Io,
    /// Xen itself, and M2P.
    Xen,
    /// The frames of the domain with this plan.
    Domain(usize),
    /// Free.
    Spare,
}

/// Every frame of the machine.
#[derive(Debug)]
pub(crate) struct Frames {
    chunks: Vec<Option<Box<[Page; CHUNK]>>>,
    /// Starts of regions, ascending, in whole chunks; a hole in RAM is `None`.
    regions: Vec<(u64, Option<Region>)>,
    plans: Vec<Plan>,
    end: u64,
    spare_fill: u64,
    /// The builders' tables that were read last, each in the place that its number has here.
    tables: RefCell<[Option<ReadTable>; TABLES]>,
}

/// A builder's table, and its words.
#[derive(Debug)]
struct ReadTable {
    mfn: Mfn,
    words: Box<[u64; WORDS]>,
}

impl Frames {
    pub(crate) fn new(
        regions: Vec<(u64, Option<Region>)>,
        end: u64,
        plans: Vec<Plan>,
        spare_fill: u64,
    ) -> Self {
        let chunks = end.div_ceil(CHUNK as u64);
        let chunks = (0..chunks).map(|_| None).collect();
        let tables = RefCell::new([const { None }; TABLES]);
        Self { chunks, regions, plans, end, spare_fill, tables }
    }

    /// One past the highest frame of RAM.
    pub(crate) const fn end(&self) -> u64 {
        self.end
    }

    pub(crate) fn plans(&self) -> &[Plan] {
        &self.plans
    }

    fn region(&self, mfn: u64) -> Option<Region> {
        let behind = self.regions.partition_point(|(start, _)| *start <= mfn);
        self.regions[..behind].last().and_then(|(_, region)| *region)
    }

    /// RAM as runs of frames.
    pub(crate) fn ram_ranges(&self) -> Vec<(u64, u64)> {
        let ends = self.regions.iter().skip(1).map(|(start, _)| *start).chain([self.end]);
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for ((start, region), end) in self.regions.iter().zip(ends) {
            match ranges.last_mut() {
                _ if region.is_none() || *start == end => {}
                Some((_, last)) if *last == *start => *last = end,
                _ => ranges.push((*start, end)),
            }
        }
        ranges
    }

    /// Whether RAM stands behind the number (`mfn_valid`).
    pub(crate) fn is_ram(&self, mfn: Mfn) -> bool {
        let mfn = mfn.raw();
        mfn < self.end
            && (self.chunks.get(chunk_of(mfn)).is_some_and(Option::is_some)
                || self.region(mfn).is_some())
    }

    /// The frame, which must be RAM.
    #[inline]
    pub(crate) fn page(&mut self, mfn: Mfn) -> &mut Page {
        let (chunk, place) = (chunk_of(mfn.raw()), place_of(mfn.raw()));
        if self.chunks[chunk].is_none() {
            let first = chunk as u64 * CHUNK as u64;
            self.chunks[chunk] =
                Some(Box::new(core::array::from_fn(|k| self.untouched(first + k as u64))));
        }
        match &mut self.chunks[chunk] {
            Some(pages) => &mut pages[place],
            None => unreachable!("made above"),
        }
    }

    /// A copy of what Xen knows, without touching.
    pub(crate) fn peek(&self, mfn: Mfn) -> Option<Page> {
        if !self.is_ram(mfn) {
            return None;
        }
        match &self.chunks[chunk_of(mfn.raw())] {
            Some(pages) => {
                let page = &pages[place_of(mfn.raw())];
                Some(Page { contents: Contents::Planned, ..*page })
            }
            None => Some(self.untouched(mfn.raw())),
        }
    }

    /// What a frame is before anybody has touched it.
    fn untouched(&self, mfn: u64) -> Page {
        let mut page = Page {
            count: CountInfo { flags: CountFlags::FREE, refs: 0 },
            kind: TypeInfo::default(),
            m2p: INVALID_M2P,
            owner: NOBODY,
            linear: 0,
            validated: 0,
            contents: Contents::Filled(self.spare_fill),
        };
        match self.region(mfn) {
            None | Some(Region::Spare) => {}
            Some(Region::Io) => {
                page.owner = DOM_IO;
                page.count = CountInfo::allocated(1);
                page.kind = TypeInfo::validated(PageType::Writable, 1);
            }
            Some(Region::Xen) => {
                page.owner = DOM_XEN;
                page.count =
                    CountInfo { flags: CountFlags::XEN_HEAP | CountFlags::ALLOCATED, refs: 1 };
                page.kind = TypeInfo::validated(PageType::None, 1);
                page.contents = Contents::Filled(0);
            }
            Some(Region::Domain(plan)) => self.plans[plan].page(mfn, &mut page),
        }
        page
    }

    /// Word `index` of a frame of RAM.
    #[inline]
    pub(crate) fn word(&self, mfn: Mfn, index: usize) -> u64 {
        match &self.chunks[chunk_of(mfn.raw())] {
            Some(pages) => match &pages[place_of(mfn.raw())].contents {
                Contents::Words(words) => words[index],
                Contents::Filled(word) => *word,
                Contents::Planned => self.planned_word(mfn, index),
            },
            None => match self.region(mfn.raw()) {
                Some(Region::Domain(_)) => self.planned_word(mfn, index),
                None | Some(Region::Spare) => self.spare_fill,
                Some(Region::Io | Region::Xen) => 0,
            },
        }
    }

    fn planned_word(&self, mfn: Mfn, index: usize) -> u64 {
        let place = place_of(mfn.raw());
        if let Some(table) = &self.tables.borrow()[place]
            && table.mfn == mfn
        {
            return table.words[index];
        }
        let Some(Region::Domain(plan)) = self.region(mfn.raw()) else { return 0 };
        let plan = &self.plans[plan];
        let Some(words) = plan.table(mfn.raw()) else { return plan.word(mfn.raw(), index as u64) };
        let word = words[index];
        self.tables.borrow_mut()[place] = Some(ReadTable { mfn, words });
        word
    }

    /// The words of a frame of RAM, to write to.
    #[inline]
    pub(crate) fn words(&mut self, mfn: Mfn) -> &mut [u64; WORDS] {
        if !matches!(self.page(mfn).contents, Contents::Words(_)) {
            let mut words = Box::new([0; WORDS]);
            for (index, word) in words.iter_mut().enumerate() {
                *word = self.word(mfn, index);
            }
            self.page(mfn).contents = Contents::Words(words);
        }
        match &mut self.page(mfn).contents {
            Contents::Words(words) => words,
            Contents::Planned | Contents::Filled(_) => unreachable!("made above"),
        }
    }

    /// Every frame that may be a table or is held in a way worth checking: all touched ones, and
    /// the builders' tables.
    pub(crate) fn known(&self) -> impl Iterator<Item = Mfn> + '_ {
        let touched = self.chunks.iter().enumerate().filter(|(_, chunk)| chunk.is_some());
        let touched = touched.flat_map(|(k, _)| {
            let first = k as u64 * CHUNK as u64;
            (first..(first + CHUNK as u64).min(self.end)).map(Mfn::new)
        });
        let untouched = |mfn: &Mfn| self.chunks[chunk_of(mfn.raw())].is_none();
        touched.chain(self.plans.iter().flat_map(Plan::table_frames).filter(untouched))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the host's addresses have 64 bits")]
const fn chunk_of(mfn: u64) -> usize {
    mfn as usize / CHUNK
}

#[expect(clippy::cast_possible_truncation, reason = "the host's addresses have 64 bits")]
const fn place_of(mfn: u64) -> usize {
    mfn as usize % CHUNK
}
