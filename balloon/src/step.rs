//! What a step did and what comes next.

use core::fmt;

use hypercall::{AccessError, BatchError, Error, Pfn, Pte};
use p2m::{NoDirectEntry, P2mError};

/// What a step of the balloon did.
#[must_use = "a step may say that it cannot go on"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonStep {
    /// The frames that went to Xen or came from it.
    pub moved: Moved,
    /// What comes next.
    pub next: Next,
    /// The state of all pfns now.
    pub accounts: Accounts,
}

/// The frames that a step moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// None.
    Nothing,
    /// This many went back to Xen.
    Out(u64),
    /// This many came from Xen and are the allocator's now.
    In(u64),
}

impl Moved {
    pub(crate) const fn out(frames: u64) -> Self {
        if frames == 0 { Self::Nothing } else { Self::Out(frames) }
    }

    pub(crate) const fn in_(frames: u64) -> Self {
        if frames == 0 { Self::Nothing } else { Self::In(frames) }
    }
}

/// When to take the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// When there is a new goal. This one is reached.
    Idle,
    /// At once, or when the guest has time.
    Again,
    /// After a pause, because something is in the way. The balloon never gives up.
    Wait {
        /// What is in the way.
        why: BalloonObstacle,
        /// How long, in the caller's unit of time: 1, then 2, 4, ... up to [`PAUSE_MAX`]. A second
        /// is a good unit. Progress makes it 1 again.
        pause: u32,
    },
}

/// The longest pause between two steps without progress, in the caller's unit of time.
pub const PAUSE_MAX: u32 = 32;

/// What keeps the balloon from its goal for now. No obstacle loses a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BalloonObstacle {
    /// The allocator has no frame to spare.
    NothingToSpare,
    /// The guest has as many frames as it may have (`XENMEM_maximum_reservation`).
    Maximum {
        /// The most frames that it may have.
        frames: u64,
    },
    /// Xen has no more frames to give.
    XenHasNoMore {
        /// Extents asked for.
        asked: u64,
        /// Extents received.
        came: u64,
    },
    /// Xen took fewer frames than were offered. The allocator has the others again.
    XenTookFewer {
        /// Frames offered.
        offered: u64,
        /// Frames taken.
        taken: u64,
    },
    /// The allocator gave a frame that the map does not call memory.
    NoMemory(P2mError),
    /// One of the balloon's pfns cannot get memory: its word in the map does not exist, or is not
    /// empty.
    NoPlace(P2mError),
    /// The step's memory has no room for a single frame, or none for the flush that frames need
    /// when they leave.
    NoRoom {
        /// Frames that there is room for.
        frames: usize,
        /// Flushes that there is room for.
        flushes: usize,
    },
    /// The allocator gave a frame beyond the pfns that the balloon was made for. It has the frame
    /// again.
    BeyondSet {
        /// The frame.
        pfn: Pfn,
        /// The first pfn beyond the set.
        end: Pfn,
    },
    /// The allocator gave a frame that the balloon holds already: the frame has two owners. The
    /// allocator has it again.
    Held(Pfn),
    /// The allocator gave a frame that the direct mapping does not map writable at its place: a
    /// table, or a protected page.
    InUse {
        /// The frame.
        pfn: Pfn,
        /// What maps it.
        pte: Pte,
    },
    /// The entry where a frame should be mapped is not empty.
    Occupied {
        /// The frame.
        pfn: Pfn,
        /// The entry.
        pte: Pte,
    },
    /// The direct mapping has no table for a pfn that should get or lose memory.
    NoDirectEntry(NoDirectEntry),
    /// The machine refused to wipe a frame.
    NotWiped(AccessError),
    /// Xen refused to change the direct mapping.
    Mapping {
        /// The first frame whose entry is unchanged.
        pfn: Pfn,
        /// The refusal.
        error: BatchError,
    },
    /// Xen refused to take memory or to give some.
    Refused {
        /// The first pfn whose memory was to change.
        pfn: Pfn,
        /// The refusal.
        error: Error,
    },
    /// An undo was refused: this many frames have memory and are not mapped. The balloon keeps
    /// them and tries again in the next steps.
    SetAside(u64),
}

impl fmt::Display for BalloonObstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingToSpare => f.write_str("the guest has no frame to spare"),
            Self::Maximum { frames } => {
                write!(f, "the guest may have {frames} frames: raise its maximum (xl mem-max)")
            }
            Self::XenHasNoMore { asked, came } => {
                write!(f, "Xen has no more memory: it gave {came} of {asked} extents")
            }
            Self::XenTookFewer { offered, taken } => {
                write!(f, "Xen took only {taken} of {offered} frames")
            }
            Self::NoMemory(error) => write!(f, "the allocator's frame has no memory: {error}"),
            Self::NoPlace(error) => write!(f, "a pfn of the balloon cannot get memory: {error}"),
            Self::NoRoom { frames, flushes } => write!(
                f,
                "the step's storage has room for {frames} frames and {flushes} flushes: too little"
            ),
            Self::BeyondSet { pfn, end } => write!(
                f,
                "the allocator's frame {pfn} is beyond the balloon's set, which ends at {end}"
            ),
            Self::Held(pfn) => {
                write!(f, "the balloon holds the allocator's frame {pfn} already")
            }
            Self::InUse { pfn, pte } => {
                write!(f, "the allocator's frame {pfn} is in use: its entry is {pte}")
            }
            Self::Occupied { pfn, pte } => {
                write!(f, "pfn {pfn} cannot be mapped: its entry is {pte} already")
            }
            Self::NoDirectEntry(error) => error.fmt(f),
            Self::NotWiped(error) => write!(f, "a frame cannot be wiped: {error}"),
            Self::Mapping { pfn, error } => {
                write!(f, "the direct mapping from pfn {pfn} on is unchanged: {error}")
            }
            Self::Refused { pfn, error } => {
                write!(f, "the memory of the pfns from {pfn} on is unchanged: {error}")
            }
            Self::SetAside(frames) => {
                write!(f, "{frames} frames cannot be mapped again yet: they are set aside")
            }
        }
    }
}

impl core::error::Error for BalloonObstacle {}

/// The state of all the guest's pfns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accounts {
    /// All pfns: the length of the guest's frame map.
    pub span: u64,
    /// Pfns that have memory.
    pub populated: u64,
    /// Pfns whose memory is with Xen, and which may get some again.
    pub ballooned: u64,
    /// Pfns that never get memory: holes, and those kept for grants and foreign frames.
    pub reserved: u64,
    /// Populated pfns that the balloon keeps ([`BalloonObstacle::SetAside`]).
    pub set_aside: u64,
    /// The most frames that no pfn could take and Xen refused to take back. No map has them and
    /// nobody uses them, but Xen counts them ([`surplus`](Self::surplus)).
    pub stray: u64,
    /// Xen's count (`XENMEM_current_reservation`); none if Xen refused to say.
    pub xen: Option<u64>,
}

impl Accounts {
    /// Returns how many more frames Xen counts than the map has. More: someone still uses frames
    /// that left, in a mapping or a grant; they go with the last use. Fewer: someone else took
    /// frames away.
    #[must_use]
    pub const fn surplus(&self) -> i64 {
        match self.xen {
            Some(xen) => xen.wrapping_sub(self.populated).cast_signed(),
            None => 0,
        }
    }

    /// Returns whether every pfn is accounted for and Xen agrees.
    #[must_use]
    pub const fn is_balanced(&self) -> bool {
        self.pfns() == self.span && self.surplus() == 0 && self.xen.is_some()
    }

    /// Returns the sum of all kinds.
    const fn pfns(&self) -> u64 {
        self.populated.saturating_add(self.ballooned).saturating_add(self.reserved)
    }
}

impl fmt::Display for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { span, populated, ballooned, reserved, .. } = self;
        write!(f, "{populated} populated + {ballooned} ballooned + {reserved} reserved")?;
        let sum = self.pfns();
        write!(f, " {} {span} pfns", if sum == *span { "==" } else { "!=" })?;
        match self.xen {
            Some(xen) if xen == *populated => f.write_str(", Xen agrees"),
            Some(xen) => write!(f, ", Xen counts {xen}"),
            None => f.write_str(", Xen did not answer"),
        }?;
        match self.set_aside {
            0 => Ok(()),
            aside => write!(f, ", {aside} set aside"),
        }?;
        match self.stray {
            0 => Ok(()),
            stray => write!(f, ", {stray} without a pfn"),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString;

    use super::*;

    #[test]
    fn accounts_say_in_a_line_whether_they_add_up() {
        let accounts = Accounts {
            span: 100,
            populated: 70,
            ballooned: 20,
            reserved: 10,
            set_aside: 0,
            stray: 0,
            xen: Some(70),
        };
        assert!(accounts.is_balanced());
        let line = "70 populated + 20 ballooned + 10 reserved == 100 pfns, Xen agrees";
        assert_eq!(accounts.to_string(), line);
        let more = Accounts { xen: Some(72), ..accounts };
        assert_eq!((more.surplus(), more.is_balanced()), (2, false));
        let fewer = Accounts { xen: Some(69), span: 101, set_aside: 3, stray: 2, ..accounts };
        assert_eq!((fewer.surplus(), fewer.is_balanced()), (-1, false));
        let line = "70 populated + 20 ballooned + 10 reserved != 101 pfns, Xen counts 69, \
                    3 set aside, 2 without a pfn";
        assert_eq!(fewer.to_string(), line);
        assert!(!Accounts { xen: None, ..accounts }.is_balanced());
        // A number that someone left out by mistake.
        assert!(!Accounts { reserved: u64::MAX, ..accounts }.is_balanced());
    }
}
