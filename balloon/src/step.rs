//! What a step did, and what comes next.

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
    /// Where all pfns are now.
    pub accounts: Accounts,
}

/// Frames that changed hands in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// None.
    Nothing,
    /// So many were given back to Xen.
    Out(u64),
    /// So many came from Xen and are the allocator's now.
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

/// When the next step is worth taking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The size is the goal: when there is another one.
    Idle,
    /// At once, or whenever the guest has time.
    Again,
    /// After a while: something is in the way. The balloon never gives up; it would only be in vain
    /// to ask at once.
    Wait {
        /// What.
        why: BalloonObstacle,
        /// How long: 1, then 2, 4, ... up to [`PAUSE_MAX`] of the caller's units of time, of which
        /// a second is a good one. Frames that move make it 1 again.
        pause: u32,
    },
}

/// The longest pause between two steps in vain, in the caller's units of time.
pub const PAUSE_MAX: u32 = 32;

/// What keeps the balloon from its goal for now. Whatever it is, nothing was lost by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BalloonObstacle {
    /// The allocator has no frame to spare.
    NothingToSpare,
    /// Xen gave fewer frames than asked for, because this is the most the guest may have
    /// (`XENMEM_maximum_reservation`).
    Maximum {
        /// The most frames it may have.
        frames: u64,
    },
    /// Xen gave fewer frames than asked for: it has no more.
    XenHasNoMore {
        /// Extents asked for.
        asked: u64,
        /// Extents that came.
        came: u64,
    },
    /// Xen took fewer frames than were offered. The others are the allocator's again.
    XenTookFewer {
        /// Frames offered.
        offered: u64,
        /// Frames taken.
        taken: u64,
    },
    /// The allocator gave a frame that is no memory of the guest's.
    NoMemory(P2mError),
    /// A pfn of the balloon's cannot be given memory: the map has no memory for its word, or the
    /// word says that it has something.
    NoPlace(P2mError),
    /// What the step works with has no room for a single frame on its way, or none for the flush
    /// that goes with frames that leave.
    NoRoom {
        /// Frames that there is room for.
        frames: usize,
        /// Flushes that there is room for.
        flushes: usize,
    },
    /// The allocator gave a frame for which the balloon has no bit: it lies behind the pfns that
    /// the balloon was made for. The allocator has it again.
    BeyondSet {
        /// The frame.
        pfn: Pfn,
        /// The first pfn that has no bit.
        end: Pfn,
    },
    /// The allocator gave a frame that the balloon holds already, so it has two owners. The
    /// allocator has it again.
    Held(Pfn),
    /// The allocator gave a frame that the direct mapping does not map writable at its place: it is
    /// someone's table, or protected.
    InUse {
        /// The frame.
        pfn: Pfn,
        /// What maps it.
        pte: Pte,
    },
    /// There is something where a frame should be mapped.
    Occupied {
        /// The frame.
        pfn: Pfn,
        /// What is mapped there.
        pte: Pte,
    },
    /// The direct mapping has no table for a pfn that should get memory, or lose it.
    NoDirectEntry(NoDirectEntry),
    /// A frame could not be wiped.
    NotWiped(AccessError),
    /// Xen refused to change the direct mapping.
    Mapping(BatchError),
    /// Xen refused the hypercall as a whole.
    Refused(Error),
    /// A change could not be undone: so many frames have memory and are not mapped. The balloon
    /// keeps them; the next steps try again.
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
                write!(f, "Xen has no memory: {came} of {asked} extents came")
            }
            Self::XenTookFewer { offered, taken } => {
                write!(f, "Xen took {taken} of {offered} frames; the others stay")
            }
            Self::NoMemory(error) => write!(f, "the allocator's frame is no memory: {error}"),
            Self::NoPlace(error) => write!(f, "a pfn cannot be given memory: {error}"),
            Self::NoRoom { frames, flushes } => write!(
                f,
                "a step has room for {frames} frames and {flushes} flushes: give it storage"
            ),
            Self::BeyondSet { pfn, end } => write!(
                f,
                "the allocator's frame {pfn} is not the balloon's to take: its set ends at {end}"
            ),
            Self::Held(pfn) => {
                write!(f, "the allocator's frame {pfn} is the balloon's already")
            }
            Self::InUse { pfn, pte } => {
                write!(f, "the allocator's frame {pfn} is in use: its entry is {pte:?}")
            }
            Self::Occupied { pfn, pte } => {
                write!(f, "pfn {pfn} gets memory, and {pte:?} is mapped at its place")
            }
            Self::NoDirectEntry(error) => write!(f, "{error}"),
            Self::NotWiped(error) => write!(f, "a frame cannot be wiped: {error}"),
            Self::Mapping(error) => write!(f, "the direct mapping stays as it is: {error}"),
            Self::Refused(error) => write!(f, "{error}"),
            Self::SetAside(frames) => {
                write!(f, "{frames} frames cannot be mapped again yet: they are kept aside")
            }
        }
    }
}

impl core::error::Error for BalloonObstacle {}

/// Where all the guest's pfns are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accounts {
    /// Pfns that the guest has: as many as its frame map is long.
    pub span: u64,
    /// Those that have memory.
    pub populated: u64,
    /// Those whose memory is with Xen, and which may get some.
    pub ballooned: u64,
    /// Those that will never have memory: kept for grants and other domains' frames, and holes.
    pub reserved: u64,
    /// Populated ones that the balloon keeps aside ([`BalloonObstacle::SetAside`]).
    pub set_aside: u64,
    /// Frames, at most, that no pfn could take and that Xen would not have back. They are in no map
    /// and used by nobody, and Xen counts them ([`surplus`](Self::surplus)).
    pub stray: u64,
    /// What Xen says the guest has (`XENMEM_current_reservation`); none if it refused to say.
    pub xen: Option<u64>,
}

impl Accounts {
    /// Returns how many frames Xen counts beyond those that the map has. Above zero: frames that
    /// were given back while someone still used them, in a mapping or a grant; they go with the
    /// last use. Below zero: frames that someone else took away.
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

    /// Pfns that are somewhere.
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
            None => f.write_str(", Xen was not heard"),
        }?;
        match self.set_aside {
            0 => Ok(()),
            aside => write!(f, ", {aside} kept aside"),
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
                    3 kept aside, 2 without a pfn";
        assert_eq!(fewer.to_string(), line);
        assert!(!Accounts { xen: None, ..accounts }.is_balanced());
        // A number that someone left out by mistake.
        assert!(!Accounts { reserved: u64::MAX, ..accounts }.is_balanced());
    }
}
