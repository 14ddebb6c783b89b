//! Says in words, at once, why Xen refused.
//!
//! A release build of Xen only returns an errno. The guest's own tables show what a debug build
//! would print: the frame, its use, the use that was refused, and who maps it how. The words are
//! those of `hypercall::explain`, which `xen-explain` uses for Xen's log lines. So both say the
//! same of the same refusal.

use core::fmt;

use hypercall::explain::{Cause, Conflict, Use};
use hypercall::{Errno, Error, FrameAccess, Level, Pte, RefusableFlag};

use crate::audit::Tree;
use crate::error::PinFailure;
use crate::obstacles::{Obstacle, Obstacles, table_level};
use crate::pgd::Loose;
use crate::pin::PinError;
use crate::tables::Part;
use p2m::Guest;

/// Why a request was refused. Its `Display` is several lines for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Why {
    /// The conflict, if the guest's own tables show it.
    pub conflict: Option<Conflict>,
    /// The entries in the way: the first ones, and their number.
    pub obstacles: Obstacles,
    /// The possible causes, likeliest first.
    pub causes: &'static [Cause],
}

/// Causes of a refusal that the guest's own tables do not explain.
const ELSEWHERE: &[Cause] = &[Cause::GrantedWritable, Cause::FlagsRefused, Cause::MapsDisagree];
/// Causes of the refusal of a frame that is not the guest's.
const NO_MEMORY: &[Cause] = &[Cause::NoIoPermission, Cause::NotConverted];
/// Causes of the refusal of an entry for its contents.
const REFUSED_FLAGS: &[Cause] = &[Cause::FlagsRefused, Cause::MapsDisagree];
/// The only cause of the refusal of an entry with a flag that the CPU lacks.
const NO_NX: &[Cause] = &[Cause::NoExecuteMissing];
/// Causes of the refusal of somebody else's frame.
const NOT_OURS: &[Cause] = &[Cause::FrameGone, Cause::ForeignFrame, Cause::NotConverted];

impl Why {
    /// The guest's tables do not show it.
    const UNKNOWN: Self = Self { conflict: None, obstacles: Obstacles::NONE, causes: ELSEWHERE };

    fn of(conflict: Conflict, obstacles: Obstacles) -> Self {
        Self { conflict: Some(conflict), obstacles, causes: conflict.causes() }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.conflict {
            Some(conflict) => write!(f, "{conflict}")?,
            None if self.causes == NO_NX => f.write_str("a flag stood in the way")?,
            None => f.write_str("the guest's own tables do not show what stood in the way")?,
        }
        for obstacle in self.obstacles.first() {
            write!(f, "\n  {obstacle}")?;
        }
        for (number, cause) in (1..).zip(self.causes) {
            write!(f, "\n  {number}. {cause}\n     check: {}", cause.check())?;
        }
        Ok(())
    }
}

impl PinError<Loose> {
    /// Returns why Xen refused the tree, as far as the tables showed it then. Reads nothing now.
    ///
    ///
    /// ```
    /// # use hypercall::middleware::{FailNth, Refusal};
    /// # use hypercall::Errno;
    /// # use pv_tests::guest::TestGuest;
    /// use p2m::Guest;
    /// use pvmmu::{Pgd, Tools};
    ///
    /// let mut test = TestGuest::new();
    /// let pgd = Pgd::new(&mut Tools::new(test.guest, &mut test.frames))?;
    /// // A machine that refuses the second request: the pin.
    /// let refusal = Refusal { request: 1, done: 0, errno: Errno::EINVAL };
    /// let machine = FailNth::new(test.model, refusal);
    /// let guest = test.guest.with_machine(&machine);
    /// let error = pgd.pin(&guest, test.batch()).unwrap_err();
    /// println!("{error}\n{}", error.why());
    /// error.pgd.destroy(&mut Tools::new(guest, &mut test.frames))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn why(&self) -> Why {
        let (level, pfn, mfn) = match self.failure {
            PinFailure::Table { level, pfn, mfn, .. } => (level, pfn, mfn),
            PinFailure::Root { pfn, mfn, .. } => (Level::L4, pfn, mfn),
            _ => return Why { causes: &[Cause::EarlierRefusal], ..Why::UNKNOWN },
        };
        match self.obstacles.first().next() {
            Some(Obstacle::Writable(_)) => {
                // The number is known if all that are in the way map it.
                let maps_it = |obstacle: &Obstacle| matches!(obstacle, Obstacle::Writable(_));
                let uses = self.obstacles.count();
                let uses = self.obstacles.first().all(|it| maps_it(&it)).then_some(uses);
                let (had, wanted) = (Use::Writable, Use::Table(level));
                Why::of(Conflict { mfn, pfn: Some(pfn), had, uses, wanted }, self.obstacles)
            }
            Some(Obstacle::MapsTable(place, level)) => {
                let (had, wanted) = (Use::Table(level), Use::Writable);
                let mfn = place.pte.mfn();
                Why::of(Conflict { mfn, pfn: None, had, uses: None, wanted }, self.obstacles)
            }
            Some(Obstacle::UnknownFrame(_)) => {
                Why { conflict: None, obstacles: self.obstacles, causes: NOT_OURS }
            }
            Some(Obstacle::Flag(_, flag)) => {
                let causes = match flag {
                    RefusableFlag::NoExecute => NO_NX,
                    _ => &[Cause::FlagsRefused],
                };
                Why { conflict: None, obstacles: self.obstacles, causes }
            }
            // A link is only in the way of an unpin.
            Some(Obstacle::Links(_)) | None => Why::UNKNOWN,
        }
    }
}

/// Returns why Xen refused `pte` as an entry of an L1 table, by any primitive. Reads the tables of
/// the running tree and of `trees`.
///
/// ```
/// # use hypercall::{Errno, Error, GuestVa, Hypercall, Pte, PteFlags};
/// # use pv_tests::guest::TestGuest;
/// use pvmmu::{Pages, explain};
///
/// let (pgd, tools) = TestGuest::with_pinned(Pages::one(GuestVa::new(0x40_0000)?));
/// // Somebody has tried to map the root, writable; Xen said no more than EBUSY.
/// let pte = Pte::new(tools.guest.mfn(pgd.root())?, PteFlags::USER_RW);
/// let error = Error { hypercall: Hypercall::MmuUpdate, errno: Errno::EBUSY, done: 0 };
/// let why = explain::mapping_refused(&tools.guest, &[pgd.tree()], pte, error);
/// assert!(why.to_string().contains("was an L4 table"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn mapping_refused<M: FrameAccess>(
    guest: &Guest<'_, M>,
    trees: &[Tree],
    pte: Pte,
    error: Error,
) -> Why {
    let mfn = pte.mfn();
    let missing = guest.machine().missing_flags();
    if pte.is_present() && error.errno == Errno::EINVAL && pte.flags().intersects(missing) {
        return Why { causes: NO_NX, ..Why::UNKNOWN };
    }
    let Ok(pfn) = guest.pfn(mfn) else {
        // Xen returns EPERM for what is not memory, EBUSY for memory of others.
        let is_device = error.errno == Errno::EPERM;
        return Why { causes: if is_device { NO_MEMORY } else { NOT_OURS }, ..Why::UNKNOWN };
    };
    let own = trees.iter().map(|tree| Part::user_half(tree.kernel));
    let mut trees = core::iter::once(Part::whole(guest.kernel_root())).chain(own);
    match trees.find_map(|tree| table_level(guest, tree, mfn)) {
        Some(level) if pte.is_writable() => {
            let (had, wanted) = (Use::Table(level), Use::Writable);
            let conflict = Conflict { mfn, pfn: Some(pfn), had, uses: None, wanted };
            Why::of(conflict, Obstacles::NONE)
        }
        _ if error.errno == Errno::EINVAL => Why { causes: REFUSED_FLAGS, ..Why::UNKNOWN },
        _ => Why::UNKNOWN,
    }
}
