//! What exists in a random life, and what it should be.
#![expect(unsafe_code, reason = "loads roots; the test is a model")]

use std::collections::{BTreeMap, BTreeSet};

use hypercall::middleware::FailNth;
use hypercall::middleware::Refusal;
use hypercall::{Batch, DomId, Entry, Errno, Frame, FrameAccess as _, FrameSource, GuestVa, Level};
use hypercall::{ENTRIES, Mfn, Pfn, Pte, PteFlags};
use p2m::{Guest, P2m};
use pvmmu::{
    ForeignFrames, Loose, Pgd, Pinned, Presence, Running, Shares, TablePool, Tools, Vcpus,
};
use x86_64::structures::paging::PageTableIndex;
use xen_model::Model;

use crate::common::tables::{check_counts, check_marks, pooled};
use crate::common::{Pool, TestGuest, guest, tools};

/// Whose frame a page maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// This address space's alone.
    Own,
    /// Shared since a fork: not writable, whatever its flags say.
    Shared,
    /// Another domain's.
    Foreign,
}

/// A page as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) mfn: Mfn,
    pub(crate) flags: PteFlags,
    pub(crate) whose: Whose,
}

impl Page {
    /// What is to be read of its entry, but for marks and what Xen adjusts.
    fn visible(self) -> (Mfn, PteFlags) {
        let hidden =
            if self.whose == Whose::Shared { PteFlags::WRITABLE } else { PteFlags::empty() };
        (self.mfn, visible(self.flags.difference(hidden)))
    }
}

/// The flags that a test sets and reads back as they were: Xen makes registers of devices
/// uncacheable.
pub(crate) fn visible(flags: PteFlags) -> PteFlags {
    let all = PteFlags::PRESENT | PteFlags::WRITABLE | PteFlags::NO_EXECUTE | PteFlags::AVAILABLE;
    flags & all
}

/// What every page of an address space is to be, by page number.
pub(crate) type Known = BTreeMap<u64, Page>;

/// An address space in either state.
pub(crate) enum Life {
    Loose(Pgd<Loose>),
    Pinned(Pgd<Pinned>),
}

impl Life {
    pub(crate) fn root(&self) -> Pfn {
        match self {
            Self::Loose(pgd) => pgd.root(),
            Self::Pinned(pgd) => pgd.root(),
        }
    }

    pub(crate) fn user_root(&self) -> Option<Pfn> {
        match self {
            Self::Loose(pgd) => pgd.user_root(),
            Self::Pinned(pgd) => pgd.user_root(),
        }
    }
}

pub(crate) struct Space {
    pub(crate) pgd: Life,
    pub(crate) known: Known,
}

/// Free frames, of which some are put aside.
pub(crate) struct Scarce {
    pool: Pool,
    aside: Vec<Frame>,
}

/// A note of frames that came back and were never free.
pub(crate) struct Neighbours {
    told: Vec<Mfn>,
    ram_end: Mfn,
}

impl Neighbours {
    pub(crate) fn new(test: &TestGuest) -> Self {
        Self { told: Vec::new(), ram_end: test.model.ram_end() }
    }
}

impl Scarce {
    pub(crate) fn new(test: &TestGuest) -> Self {
        Self { pool: test.pool(), aside: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.pool.len()
    }

    /// Leaves only `count` frames until the next call.
    fn keep(&mut self, count: usize) {
        self.aside.drain(..).for_each(|frame| self.pool.give(frame));
        self.aside = self.pool.keep(count.min(self.pool.len()));
    }
}

impl FrameSource for Scarce {
    fn take(&mut self) -> Option<Frame> {
        self.pool.take()
    }

    fn give(&mut self, frame: Frame) {
        assert!(!self.aside.contains(&frame), "{frame:?} is freed twice");
        self.pool.give(frame);
    }
}

impl ForeignFrames for Neighbours {
    fn give_foreign(&mut self, mfn: Mfn) {
        self.told.push(mfn);
    }

    fn domain_of(&self, mfn: Mfn) -> DomId {
        if mfn < self.ram_end { DomId(1) } else { DomId::IO }
    }
}

/// A machine that refuses one request.
pub(crate) type Refusing<'m> = FailNth<&'m Model>;
pub(crate) type Work<'a, 't, 'm> = Tools<'a, 't, Refusing<'m>, Scarce>;

/// How an operation is hindered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hindrance {
    pub(crate) refusal: Refusal,
    pub(crate) presence: Presence,
    /// Frames that are left.
    pub(crate) frames: usize,
}

impl Hindrance {
    const NEVER: u64 = u64::MAX;

    /// In no way.
    pub(crate) const fn none() -> Self {
        let refusal = Refusal { request: Self::NEVER, errno: Errno::ENOMEM, done: 0 };
        Self { refusal, presence: Presence::MayVanish, frames: usize::MAX }
    }
}

pub(crate) struct World<'w, 'b, 't, 's> {
    pub(crate) test: &'w TestGuest,
    pub p2m: &'w P2m<'w>,
    pub(crate) batch: &'w mut Batch<'b>,
    pub(crate) tables: TablePool<'t>,
    pub(crate) frames: Scarce,
    pub(crate) neighbours: Neighbours,
    pub(crate) shares: Shares<'s>,
    pub(crate) spaces: Vec<Space>,
    pub(crate) vcpus: Vcpus<'w>,
    /// Tables of the pool's that an unpinned space kept, as plain ones.
    pub(crate) plain: u64,
    /// What has happened, for whoever reads a failure.
    pub(crate) story: Vec<String>,
}

impl World<'_, '_, '_, '_> {
    /// Whether there may be too few frames for an operation that needs fewer than `count`.
    pub(crate) fn lacks(&self, count: u64, by: Hindrance) -> bool {
        by.frames < usize::MAX || self.frames.len() as u64 <= count
    }

    /// Runs `operation` hindered; whether a request was refused.
    pub(crate) fn run<T>(
        &mut self,
        by: Hindrance,
        operation: impl FnOnce(&mut Work<'_, '_, '_>) -> T,
    ) -> (T, bool) {
        self.frames.keep(by.frames);
        let machine = FailNth::new(&self.test.model, by.refusal);
        let guest = guest(self.test, &machine, self.p2m);
        let mut with = tools(&guest, self.batch, &mut self.tables, &mut self.frames)
            .with_shares(&mut self.shares)
            .with_foreign(&mut self.neighbours);
        with.presence = by.presence;
        let result = operation(&mut with);
        self.frames.keep(usize::MAX);
        (result, machine.has_refused())
    }

    /// Runs `operation` with nothing refused.
    pub(crate) fn quietly<T>(&mut self, operation: impl FnOnce(&mut Work<'_, '_, '_>) -> T) -> T {
        self.run(Hindrance::none(), operation).0
    }

    /// What the tables of `space` say of a page, read as the test reads it.
    pub(crate) fn read(&self, space: &Space, page: u64) -> Option<Pte> {
        let guest = guest(self.test, &self.test.model, self.p2m);
        let va = GuestVa::new(page << 12).expect("user half");
        let leaf = p2m::walk(&guest, space.pgd.root(), va).expect("readable").leaf();
        leaf.map(|(_, pte)| pte).filter(|pte| pte.is_present())
    }

    /// Notes as mapped what the tables say of `pages`.
    pub(crate) fn note(
        &self,
        space: &mut Space,
        pages: impl Iterator<Item = u64>,
        flags: PteFlags,
    ) {
        for page in pages {
            if let Some(pte) = self.read(space, page) {
                let whose = if self.p2m.pfn(&self.test.model, pte.mfn()).is_ok() {
                    Whose::Own
                } else {
                    Whose::Foreign
                };
                space.known.insert(page, Page { mfn: pte.mfn(), flags, whose });
            }
        }
    }

    /// The frames of others that were given back since the last call.
    pub(crate) fn told_of(&mut self) -> Vec<Mfn> {
        std::mem::take(&mut self.neighbours.told)
    }

    /// Compares everything with what it should be.
    pub(crate) fn check(&mut self) {
        let story = self.story.last().cloned().unwrap_or_default();
        let mut owners: BTreeMap<Mfn, (u16, bool)> = BTreeMap::new();
        let mut out = self.plain;
        for space in &self.spaces {
            let root = space.pgd.root();
            if let Life::Pinned(_) = space.pgd {
                check_marks(self.test, root);
                out += pooled(self.test, root);
            }
            let read = Reading::of(self, root);
            let expected: BTreeMap<_, _> =
                space.known.iter().map(|(page, entry)| (*page, entry.visible())).collect();
            let differs = |page: &u64| read.pages.get(page) != expected.get(page);
            let all: BTreeSet<u64> = read.pages.keys().chain(expected.keys()).copied().collect();
            if let Some(page) = all.into_iter().find(differs) {
                let (is, known) = (read.pages.get(&page), space.known.get(&page));
                panic!("{:#?}\npage {page:#x} is {is:?}, to be {known:?}", self.story);
            }
            if let Some(user) = space.pgd.user_root() {
                assert_eq!(Reading::of(self, user).pages, read.pages, "roots differ: {story}");
            }
            for page in space.known.values().filter(|page| page.whose != Whose::Foreign) {
                let entry = owners.entry(page.mfn).or_default();
                entry.0 += 1;
                entry.1 |= page.whose == Whose::Own;
            }
        }
        check_counts(&self.tables, out);
        for (mfn, (count, is_own)) in owners {
            let pfn = self.p2m.pfn(&self.test.model, mfn).expect("the test's");
            assert!(count == 1 || !is_own, "mfn {mfn} has two owners: {:#?}", self.story);
            let counted = if is_own { 0 } else { count };
            assert_eq!(self.shares.count(pfn), counted, "pfn {pfn}: {:#?}", self.story);
        }
        self.test.model.audit().unwrap_or_else(|error| panic!("{error}: {:#?}", self.story));
    }

    /// Takes everything apart.
    pub(crate) fn end(&mut self) {
        let vcpus = self.vcpus;
        // SAFETY: the model runs no code.
        self.quietly(|with| unsafe { vcpus.leave(&with.guest, 0) }).expect("left");
        while let Some(space) = self.spaces.pop() {
            self.quietly(|with| match space.pgd {
                Life::Loose(pgd) => pgd.destroy(with).expect("destroyed"),
                Life::Pinned(pgd) => pgd.destroy(with).expect("destroyed"),
            });
        }
        for level in [Level::L1, Level::L2, Level::L3] {
            self.quietly(|with| {
                with.drain_pool(level, 99).expect("drained");
            });
        }
    }
}

/// What a tree maps.
struct Reading<'a> {
    guest: Guest<'a, Model>,
    pages: BTreeMap<u64, (Mfn, PteFlags)>,
}

impl<'a> Reading<'a> {
    fn of(world: &'a World<'_, '_, '_, '_>, root: Pfn) -> Self {
        let guest = guest(world.test, &world.test.model, world.p2m);
        let mut reading = Self { guest, pages: BTreeMap::new() };
        reading.below(Level::L4, root, 0);
        reading
    }

    fn below(&mut self, level: Level, table: Pfn, base: u64) {
        let mut entries = [Pte::ABSENT; ENTRIES as usize];
        let own = if level == Level::L4 { 256 } else { 512 };
        let first = PageTableIndex::new(0);
        let machine = self.guest.machine();
        machine.read_entries(table, first, &mut entries[..own]).expect("readable");
        for (index, pte) in (0u64..).zip(&entries[..own]) {
            let base = base + (index << level.shift());
            match (pte.decode(level), level.below()) {
                (Entry::Absent, _) => assert_eq!(pte.mfn(), Mfn::new(0), "{pte} names a frame"),
                (Entry::Table(mfn), Some(below)) => {
                    let pfn = self.guest.p2m().pfn(machine, mfn).expect("a table of the test's");
                    self.below(below, pfn, base);
                }
                _ => {
                    self.pages.insert(base >> 12, (pte.mfn(), visible(pte.flags())));
                }
            }
        }
    }
}

/// The only places of the world's vCPUs.
pub(crate) const fn vcpus(places: &[Running]) -> Vcpus<'_> {
    // SAFETY: every load of the world goes through these places.
    unsafe { Vcpus::new(places) }
}
