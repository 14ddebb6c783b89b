//! The findings of an audit: for a person (`Display`), and for a program ([`Records`]).

use core::fmt;
use core::mem::discriminant;

use hypercall::{DomId, Mfn, Pfn};

use crate::map::Pfns;
use crate::runs::Census;

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum P2mProblem {
    /// M2P does not know the frame of a RAM pfn: it is not the guest's, or not any more.
    NotInM2p {
        /// The frame.
        mfn: Mfn,
    },
    /// M2P has the frame of a RAM pfn at another pfn, which has another frame.
    M2pElsewhere {
        /// The frame.
        mfn: Mfn,
        /// The pfn in M2P.
        m2p: Pfn,
    },
    /// One frame is behind two pfns.
    Duplicate {
        /// The frame.
        mfn: Mfn,
        /// The other pfn, which M2P knows.
        other: Pfn,
    },
    /// A frame marked foreign that is the guest's own memory.
    ForeignIsOwn {
        /// The domain it is marked as.
        owner: DomId,
        /// The frame.
        mfn: Mfn,
        /// The pfn that has it as RAM.
        own: Pfn,
    },
    /// An identity frame whose machine frame is the guest's own memory.
    IdentityIsOwn {
        /// The pfn that has it as RAM.
        own: Pfn,
    },
    /// The frame list and the linear list lead to different frames.
    FrameList {
        /// The frame it leads to.
        found: Option<Mfn>,
        /// The frame of the linear list's page.
        is: Option<Mfn>,
    },
    /// A change of the mapping was begun and not ended.
    GenerationOdd(u64),
    /// A toolstack would read too few pfns, or more than there are.
    MaxPfn {
        /// The published number.
        published: u64,
        /// Pfns in use.
        needed: u64,
        /// Pfns in the map.
        len: u64,
    },
    /// A toolstack would look for the linear list elsewhere.
    ListElsewhere {
        /// Under this cr3.
        cr3: u64,
        /// At this address.
        list: u64,
    },
    /// A toolstack would find no list at all.
    NotPublished,
    /// Xen's count of frames is not the RAM in the map.
    Reservation {
        /// RAM in the map.
        map: u64,
        /// Frames that Xen counts.
        xen: u64,
    },
}

/// A problem, and the pfns that have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct P2mFinding {
    /// The pfns.
    pub pfns: Pfns,
    /// The problem of the first one. The others have the same kind of problem.
    pub problem: P2mProblem,
}

impl P2mFinding {
    /// Absorbs `next`, if it is of the same kind and directly behind.
    pub(super) fn extend(&mut self, next: &Self) -> bool {
        let same = discriminant(&self.problem) == discriminant(&next.problem);
        let behind = self.pfns.count > 0 && self.pfns.end() == next.pfns.start.raw();
        if same && behind {
            self.pfns.count += next.pfns.count;
        }
        same && behind
    }
}

/// The result of an audit.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    /// The pfns that were checked.
    pub looked_at: Pfns,
    /// The number of each kind.
    pub census: Census,
    /// The findings.
    pub findings: &'a [Option<P2mFinding>],
    /// Pfns with problems for which there was no place.
    pub dropped: u64,
}

impl<'a> Report<'a> {
    /// Returns whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.dropped == 0
    }

    /// Returns the findings.
    pub fn findings(&self) -> impl Iterator<Item = &'a P2mFinding> {
        self.findings.iter().flatten()
    }

    /// Returns the report for a program: a line for each record, with words `name=value`, numbers
    /// in decimal.
    #[must_use]
    pub const fn records(&self) -> Records<'_> {
        Records(self)
    }
}

impl fmt::Display for P2mProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInM2p { mfn } => write!(f, "mfn {mfn} is not in M2P"),
            Self::M2pElsewhere { mfn, m2p } => write!(f, "mfn {mfn} is pfn {m2p} in M2P"),
            Self::Duplicate { mfn, other } => write!(f, "mfn {mfn} is behind pfn {other}, too"),
            Self::ForeignIsOwn { owner, mfn, own } => {
                write!(f, "mfn {mfn}, marked as of domain {}, is pfn {own}", owner.0)
            }
            Self::IdentityIsOwn { own } => write!(f, "the frame of this number is pfn {own}"),
            Self::FrameList { found: Some(found), .. } => {
                write!(f, "the frame list leads to mfn {found}")
            }
            Self::FrameList { found: None, .. } => f.write_str("the frame list leads nowhere"),
            Self::GenerationOdd(generation) => {
                write!(f, "generation {generation} is odd: a change has not ended")
            }
            Self::MaxPfn { published, needed, len } => write!(
                f,
                "max_pfn is {published:#x}, {needed:#x} pfns are in use, the map has {len:#x}"
            ),
            Self::ListElsewhere { cr3, list } => {
                write!(f, "the linear list is published at {list:#x} under cr3 {cr3:#x}")
            }
            Self::NotPublished => f.write_str("no list is published"),
            Self::Reservation { map, xen } => {
                write!(f, "the map has {map} frames of RAM, Xen counts {xen}")
            }
        }
    }
}

impl fmt::Display for P2mFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pfns, problem } = self;
        match pfns.count {
            0 => write!(f, "{problem}"),
            1 => write!(f, "pfn {}: {problem}", pfns.start),
            _ => write!(f, "pfn {}..{:05x}: {problem}, and so on", pfns.start, pfns.end()),
        }
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "audit of {}", self.census)?;
        for finding in self.findings() {
            writeln!(f, "  {finding}")?;
        }
        match (self.findings.len(), self.dropped) {
            (0, 0) => f.write_str("nothing is wrong"),
            (findings, 0) => write!(f, "findings: {findings}"),
            (findings, dropped) => write!(f, "findings: {findings}, and {dropped} pfns not listed"),
        }
    }
}

/// A report in lines of `name=value`.
#[derive(Clone, Copy, Debug)]
pub struct Records<'a>(&'a Report<'a>);

impl fmt::Display for Records<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { census, findings, dropped, .. } = self.0;
        write!(
            f,
            "audit pfns={} ram={} absent={} identity={} foreign={} findings={} dropped={dropped}",
            census.total(),
            census.ram,
            census.absent,
            census.identity,
            census.foreign,
            findings.len()
        )?;
        for P2mFinding { pfns, problem } in self.0.findings() {
            write!(f, "\nfinding start={} count={} ", pfns.start.raw(), pfns.count)?;
            record(f, problem)?;
        }
        Ok(())
    }
}

fn record(f: &mut fmt::Formatter<'_>, problem: &P2mProblem) -> fmt::Result {
    let number = |mfn: Option<Mfn>| mfn.map_or(u64::MAX, Mfn::raw);
    match *problem {
        P2mProblem::NotInM2p { mfn } => write!(f, "kind=not_in_m2p mfn={}", mfn.raw()),
        P2mProblem::M2pElsewhere { mfn, m2p } => {
            write!(f, "kind=m2p_elsewhere mfn={} m2p={}", mfn.raw(), m2p.raw())
        }
        P2mProblem::Duplicate { mfn, other } => {
            write!(f, "kind=duplicate mfn={} other={}", mfn.raw(), other.raw())
        }
        P2mProblem::ForeignIsOwn { owner, mfn, own } => {
            write!(f, "kind=foreign_is_own owner={} mfn={} own={}", owner.0, mfn.raw(), own.raw())
        }
        P2mProblem::IdentityIsOwn { own } => write!(f, "kind=identity_is_own own={}", own.raw()),
        P2mProblem::FrameList { found, is } => {
            write!(f, "kind=frame_list found={} is={}", number(found), number(is))
        }
        P2mProblem::GenerationOdd(generation) => {
            write!(f, "kind=generation_odd generation={generation}")
        }
        P2mProblem::MaxPfn { published, needed, len } => {
            write!(f, "kind=max_pfn published={published} needed={needed} len={len}")
        }
        P2mProblem::ListElsewhere { cr3, list } => {
            write!(f, "kind=list_elsewhere cr3={cr3} list={list}")
        }
        P2mProblem::NotPublished => f.write_str("kind=not_published"),
        P2mProblem::Reservation { map, xen } => write!(f, "kind=reservation map={map} xen={xen}"),
    }
}
