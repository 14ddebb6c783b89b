//! The audit: checks whether the map is true.
//!
//! For the guest: M2P must lead from each pfn's frame back to that pfn; no frame may be behind two
//! pfns; frames marked foreign or identity must not be the guest's own memory. For the toolstack:
//! what is published must lead to the list's own pages, cover the map, and not be in the middle of
//! a change. For Xen, if asked: the guest must own as many frames as the map has RAM.
//!
//! The audit allocates nothing and keeps nothing per frame. It finds a frame that P2M has twice
//! because M2P has one pfn for each frame. A pfn costs a few tens of instructions, and so does a
//! page that holes share. [`Audit::step`] does a bounded part, for a guest that has other things to
//! do.

mod report;

pub use report::{P2mFinding, P2mProblem, Records, Report};

use hypercall::{DomId, FrameAccess, GuestVa, Mfn, PAGE_SHIFT, Pfn};

use crate::entry::P2mEntry;
use crate::frame_list::FrameList;
use crate::guest::Guest;
use crate::leaves::Leaves;
use crate::map::{P2m, Pfns};
use crate::runs::{Census, LEAF_WORDS, step};
use crate::sync::Ordering;
use crate::toolstack::Toolstack;

/// An audit in progress.
#[derive(Debug)]
pub struct Audit<'f> {
    next: u64,
    census: Census,
    /// The end of the pfns that are not absent.
    populated_end: u64,
    /// The guest's own domain, if known: a grant that it maps from itself is its own and foreign.
    own: Option<DomId>,
    findings: Findings<'f>,
}

/// The progress of an audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The next step begins at this pfn.
    More(Pfn),
    /// Every pfn was checked.
    Done,
}

/// Findings in the caller's memory.
#[derive(Debug)]
struct Findings<'f> {
    places: &'f mut [Option<P2mFinding>],
    used: usize,
    dropped: u64,
}

impl Findings<'_> {
    fn add(&mut self, finding: P2mFinding) {
        let last = self.used.checked_sub(1).and_then(|last| self.places[last].as_mut());
        if last.is_some_and(|last| last.extend(&finding)) {
            return;
        }
        match self.places.get_mut(self.used) {
            Some(place) => {
                *place = Some(finding);
                self.used += 1;
            }
            None => self.dropped += finding.pfns.count,
        }
    }
}

impl<'f> Audit<'f> {
    /// Begins an audit at pfn 0. Findings go to `places`; those without a place are counted.
    pub fn begin(places: &'f mut [Option<P2mFinding>]) -> Self {
        places.fill(None);
        Self {
            next: 0,
            census: Census::default(),
            populated_end: 0,
            own: None,
            findings: Findings { places, used: 0, dropped: 0 },
        }
    }

    /// Accepts the guest's own frames that are marked as `domain`'s: the guest is that domain, and
    /// maps its own grants.
    #[must_use]
    pub const fn of_domain(mut self, domain: DomId) -> Self {
        self.own = Some(domain);
        self
    }

    /// Checks every pfn.
    ///
    /// ```
    /// use p2m::audit::Audit;
    /// # use pv_tests::guest::TestGuest;
    ///
    /// let TestGuest { model, guest, .. } = TestGuest::new();
    /// let mut places = [None; 8]; // for the first findings
    /// let mut audit = Audit::begin(&mut places);
    /// audit.run(&guest);
    /// audit.compare_reservation(model.guest().total_pages());
    /// assert!(audit.report().is_clean());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn run<M: FrameAccess>(&mut self, guest: &Guest<'_, M>) {
        while self.step(guest, u64::MAX) != Progress::Done {}
    }

    /// Checks the next `words_max` words. A page that holes share counts as one word.
    ///
    /// ```
    /// use p2m::audit::{Audit, Progress};
    /// # use pv_tests::guest::TestGuest;
    ///
    /// let TestGuest { guest, .. } = TestGuest::new();
    /// let mut places = [None; 8];
    /// let mut audit = Audit::begin(&mut places);
    /// let mut steps = 1;
    /// while let Progress::More(_) = audit.step(&guest, 512) {
    ///     steps += 1; // a kernel does something else meanwhile
    /// }
    /// assert!(steps >= 8 && audit.report().is_clean());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn step<M: FrameAccess>(&mut self, guest: &Guest<'_, M>, words_max: u64) -> Progress {
        let (p2m, end) = (guest.p2m(), guest.p2m().len());
        let mut left = words_max;
        while left > 0 {
            left -= self.look_at_ram(guest, left);
            let pfn = self.next;
            let next = step(p2m, pfn, end).filter(|_| left > 0 && pfn < end);
            let Some((entry, count)) = next else { break };
            self.look(guest, Pfn::new(pfn), entry);
            self.census.add(entry, count);
            self.next += count;
            left -= 1;
            if entry != P2mEntry::Absent && entry != P2mEntry::Identity {
                self.populated_end = self.next;
            }
        }
        if self.next < end { Progress::More(Pfn::new(self.next)) } else { Progress::Done }
    }

    /// Compares the RAM in the map with the `frames` that Xen counts for the guest
    /// (`XENMEM_current_reservation`). Call it after every pfn was checked.
    pub fn compare_reservation(&mut self, frames: u64) {
        if frames != self.census.ram {
            let problem = P2mProblem::Reservation { map: self.census.ram, xen: frames };
            self.findings.add(P2mFinding { pfns: Pfns::new(Pfn::new(0), 0), problem });
        }
    }

    /// Checks what a toolstack reads: the linear list is expected at `list` under `root`. Call it
    /// after every pfn was checked.
    pub fn check_toolstack(
        &mut self,
        toolstack: &Toolstack<'_>,
        p2m: &P2m<'_>,
        list: Option<(GuestVa, Mfn)>,
    ) {
        let published = toolstack.read();
        let whole = p2m.all();
        let mut add = |problem| self.findings.add(P2mFinding { pfns: whole, problem });
        if !published.generation.is_multiple_of(2) {
            add(P2mProblem::GenerationOdd(published.generation));
        }
        if published.max_pfn < self.populated_end || published.max_pfn > p2m.len() {
            let needed = self.populated_end;
            add(P2mProblem::MaxPfn { published: published.max_pfn, needed, len: p2m.len() });
        }
        let has_list = published.cr3 != 0;
        let is_list = list.is_some_and(|(list, root)| {
            published.cr3 == root.raw() << PAGE_SHIFT && published.list == list.raw()
        });
        if has_list != list.is_some() || (has_list && !is_list) {
            add(P2mProblem::ListElsewhere { cr3: published.cr3, list: published.list });
        }
        if !has_list && matches!(published.frame_list, 0 | u64::MAX) {
            add(P2mProblem::NotPublished);
        }
    }

    /// Compares the frame list with the pages of the linear list.
    pub fn check_frame_list<M: FrameAccess, L: Leaves>(
        &mut self,
        guest: &Guest<'_, M>,
        frame_list: &FrameList<'_>,
        leaves: &L,
    ) {
        for index in 0..guest.p2m().len().div_ceil(LEAF_WORDS) {
            let found = frame_list.lookup(guest, index).ok().flatten();
            let is = leaves.leaf(guest, index).ok();
            if found != is || found.is_none() {
                let pfns = Pfns::new(Pfn::new(index * LEAF_WORDS), LEAF_WORDS);
                self.findings
                    .add(P2mFinding { pfns, problem: P2mProblem::FrameList { found, is } });
            }
        }
    }

    /// Returns the findings so far.
    #[must_use]
    pub fn report(&self) -> Report<'_> {
        let findings = &self.findings;
        let looked_at = Pfns::new(Pfn::new(0), self.next);
        let places = &findings.places[..findings.used];
        Report { looked_at, census: self.census, findings: places, dropped: findings.dropped }
    }

    /// Checks RAM up to the next pfn that is not, and returns how many. An audit spends its time
    /// here.
    fn look_at_ram<M: FrameAccess>(&mut self, guest: &Guest<'_, M>, max: u64) -> u64 {
        let (machine, p2m) = (guest.machine(), guest.p2m());
        let mut pfn = self.next;
        for word in p2m.list.words(pfn, max) {
            let word = word.load(Ordering::Relaxed);
            if !p2m.list.is_ram(word) {
                break;
            }
            let m2p = machine.machine_to_phys(Mfn::new(word));
            if m2p != Some(Pfn::new(pfn)) {
                self.blame_ram(p2m, Pfn::new(pfn), Mfn::new(word), m2p);
            }
            pfn += 1;
        }
        let looked_at = pfn - self.next;
        self.census.ram += looked_at;
        if looked_at > 0 {
            self.populated_end = pfn;
        }
        self.next = pfn;
        looked_at
    }

    /// Checks one pfn.
    fn look<M: FrameAccess>(&mut self, guest: &Guest<'_, M>, pfn: Pfn, entry: P2mEntry) {
        match entry {
            P2mEntry::Ram(mfn) => {
                let m2p = guest.machine().machine_to_phys(mfn);
                if m2p != Some(pfn) {
                    self.blame_ram(guest.p2m(), pfn, mfn, m2p);
                }
            }
            P2mEntry::Absent => {}
            P2mEntry::Identity => {
                let mfn = Mfn::new(pfn.raw());
                if let Ok(own) = guest.pfn(mfn) {
                    self.add(pfn, P2mProblem::IdentityIsOwn { own });
                }
            }
            P2mEntry::Foreign { owner, mfn } => {
                if let (Ok(own), true) = (guest.pfn(mfn), self.own != Some(owner)) {
                    self.add(pfn, P2mProblem::ForeignIsOwn { owner, mfn, own });
                }
            }
        }
    }

    /// Records what is wrong with RAM that M2P has elsewhere.
    #[cold]
    fn blame_ram(&mut self, p2m: &P2m<'_>, pfn: Pfn, mfn: Mfn, m2p: Option<Pfn>) {
        let problem = match m2p {
            None => P2mProblem::NotInM2p { mfn },
            Some(other) if p2m.mfn(other) == Ok(mfn) => P2mProblem::Duplicate { mfn, other },
            Some(other) => P2mProblem::M2pElsewhere { mfn, m2p: other },
        };
        self.add(pfn, problem);
    }

    fn add(&mut self, pfn: Pfn, problem: P2mProblem) {
        self.findings.add(P2mFinding { pfns: Pfns::new(pfn, 1), problem });
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
