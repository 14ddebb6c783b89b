//! The balloon: the pfns that it holds, and the guest's size and goal.

use core::fmt;

use hypercall::memory::MemoryOp;
use hypercall::{DomId, Error, Frame, FrameSource, Frames, Hypercalls, Machine, Pfn, Refused};
use p2m::runs::Grain;
use p2m::{DirectEntries, Guest, P2m, P2mEntry, P2mError};

use crate::goal::Goal;
use crate::set::{LARGE_FRAMES, PfnSet};
use crate::step::{Accounts, BalloonObstacle, BalloonStep, Moved, Next, PAUSE_MAX};
use crate::work::StepMemory;

/// The size of the guest.
///
/// # Invariants
/// I-12: the balloon owns every pfn in `held`, as a [`Frame`] would (I-1). Between steps each of
/// them has no memory, or is one of the `set_aside` pfns. Those have memory, and nothing maps it
/// except, at most, their own entry in the direct mapping.
#[derive(Debug)]
pub struct Balloon<'s> {
    pub(crate) held: PfnSet<'s>,
    pub(crate) populated: u64,
    pub(crate) reserved: u64,
    pub(crate) set_aside: u64,
    /// Where the search for frames set aside goes on.
    pub(crate) aside_from: Pfn,
    /// Pfns searched since the last one found.
    pub(crate) aside_looked: u64,
    /// Frames that no pfn could take and that Xen refused to take back.
    pub(crate) stray: u64,
    floor: u64,
    wanted: u64,
    wipe: Wipe,
    /// How long to wait after the next step without progress; 0 if the last one made some.
    pause: u32,
    /// The direction of the last step without progress.
    stuck: Option<Direction>,
    /// Xen's count of the guest's frames after the last change in this step.
    pub(crate) xen: Option<u64>,
    /// Steps left in which Xen is not asked for large extents, because it had none.
    pub(crate) large_refused: u32,
}

/// What to do with the contents of a frame that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wipe {
    /// Overwrite them. Xen may hand the frame to another domain as it is.
    Always,
    /// Leave them: the owner of the frames has no secrets, or has wiped them.
    Never,
}

/// The direction in which frames move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Out,
    In,
}

/// What the caller should do after a new target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retarget {
    /// Take a step.
    Step,
    /// Nothing. The size is right.
    Idle,
    /// Go on waiting: the same obstacle is still in the way. A target that changes often is no
    /// reason to ask Xen often.
    KeepWaiting,
}

/// Why a balloon cannot begin, or a balloon or reserve cannot take pfns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BalloonError {
    /// The set of pfns needs more memory.
    TooFewWords {
        /// Words given.
        words: usize,
        /// Words needed.
        needed: u64,
    },
    /// Xen refused to say how much memory the guest has.
    Refused(Error),
    /// A pfn is not empty, has no word in the map, or has no bit in the set.
    NotEmpty(P2mError),
    /// The pfn belongs to another reserve.
    OtherReserve(Pfn),
}

impl fmt::Display for BalloonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooFewWords { words, needed } => {
                write!(f, "the set of pfns needs {needed} words, not {words}")
            }
            Self::Refused(error) => write!(f, "Xen does not tell the guest's size: {error}"),
            Self::NotEmpty(error) => write!(f, "the balloon takes only empty pfns: {error}"),
            Self::OtherReserve(pfn) => write!(f, "pfn {pfn} belongs to another reserve"),
        }
    }
}

impl core::error::Error for BalloonError {}

impl<'s> Balloon<'s> {
    /// Returns how many words [`new`](Self::new) needs for a guest of up to `pfns` pfns.
    #[must_use]
    pub const fn words_needed(pfns: u64) -> u64 {
        PfnSet::words_needed(pfns)
    }

    /// Creates an empty balloon. The guest's present size is its goal. `words` is memory for the
    /// set of pfns: enough for the most that the guest will ever have. The guest never gets smaller
    /// than `floor` frames.
    ///
    /// # Errors
    /// [`BalloonError::TooFewWords`] if `words` does not cover the present map;
    /// [`BalloonError::Refused`].
    ///
    /// # Hypercalls
    /// One `memory_op` (`XENMEM_current_reservation`).
    ///
    /// ```
    /// # use pv_tests::guest::TestGuest;
    /// use balloon::{Balloon, Wipe};
    ///
    /// let TestGuest { guest, p2m, .. } = TestGuest::new(); // 4096 pages
    /// let mut words = vec![0; Balloon::words_needed(p2m.len()) as usize];
    /// let (balloon, accounts) = Balloon::new(&guest, &mut words, 512, Wipe::Always)?;
    /// assert_eq!((accounts.populated, balloon.ballooned()), (4096, 0));
    /// # Ok::<(), balloon::BalloonError>(())
    /// ```
    pub fn new<M: Hypercalls>(
        guest: &Guest<'_, M>,
        words: &'s mut [u64],
        floor: u64,
        wipe: Wipe,
    ) -> Result<(Self, Accounts), BalloonError> {
        let (machine, p2m) = (guest.machine(), guest.p2m());
        let needed = Self::words_needed(p2m.len());
        if (words.len() as u64) < needed {
            return Err(BalloonError::TooFewWords { words: words.len(), needed });
        }
        let populated = p2m
            .runs(p2m.all(), Grain::Kind)
            .filter(|run| matches!(run.first, P2mEntry::Ram(_)))
            .map(|run| run.pfns.count)
            .sum();
        let xen = current_reservation(machine).map_err(BalloonError::Refused)?;
        let balloon = Self {
            held: PfnSet::empty(words),
            populated,
            reserved: 0,
            set_aside: 0,
            aside_from: Pfn::new(0),
            aside_looked: 0,
            stray: 0,
            floor,
            wanted: populated,
            wipe,
            pause: 0,
            stuck: None,
            xen: None,
            large_refused: 0,
        };
        let accounts = balloon.accounts_with(p2m, Some(xen));
        Ok((balloon, accounts))
    }

    /// Takes over empty pfns, which memory can fill later: those between the size at boot and the
    /// maximum. Grow the map and the direct mapping over them first.
    ///
    /// # Errors
    /// All the pfns, with [`BalloonError::NotEmpty`].
    ///
    /// ```
    /// # use core::sync::atomic::AtomicU64;
    /// # use hypercall::{Frames, Pfn};
    /// # use p2m::{Guest, P2m};
    /// use balloon::{Balloon, Wipe};
    ///
    /// let model = xen_model::Model::builder().pages(2048).build()?;
    /// let mut list = model.guest().built_list();
    /// list.resize_with(2112, || AtomicU64::new(u64::MAX)); // the map has grown by 64 pfns
    /// let p2m = unsafe { P2m::adopt(&list) }?;
    /// let kernel_root = Pfn::new(0); // not used here
    /// let guest = unsafe { Guest::new(&model, &p2m, kernel_root) };
    /// let mut words = [0; 33];
    /// let (mut balloon, _) = Balloon::new(&guest, &mut words, 0, Wipe::Always)?;
    /// let empty = unsafe { Frames::claim(Pfn::new(2048), 64) }; // nobody else has them
    /// balloon.add_empty(&p2m, empty)?;
    /// assert_eq!(balloon.ballooned(), 64); // what the guest can grow by
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn add_empty(
        &mut self,
        p2m: &P2m<'_>,
        frames: Frames,
    ) -> Result<(), Refused<Frames, BalloonError>> {
        let pfns = frames.start().raw()..frames.start().raw() + frames.count();
        let end = self.held.end();
        let fits = match pfns.end > end {
            true => Err(P2mError::OutOfRange { pfn: Pfn::new(pfns.end - 1), len: end }),
            false => check_all_empty(p2m, &frames),
        };
        if let Err(error) = fits {
            return Err(Refused { value: frames, error: BalloonError::NotEmpty(error) });
        }
        for pfn in pfns.map(Pfn::new) {
            // INVARIANT: I-12: the token is consumed, and no pfn of it has memory.
            self.held.insert(pfn);
        }
        Ok(())
    }

    /// Counts `pfns` as reserved: holes of the map, which the balloon never fills.
    pub const fn leave_out(&mut self, pfns: u64) {
        self.reserved = self.reserved.saturating_add(pfns);
    }

    /// Sets the goal: `frames` frames in all.
    ///
    /// ```
    /// # use pv_tests::guest::TestGuest;
    /// use balloon::{Balloon, Retarget, Wipe};
    ///
    /// let TestGuest { guest, p2m, .. } = TestGuest::new(); // 4096 pages
    /// let mut words = vec![0; Balloon::words_needed(p2m.len()) as usize];
    /// let (mut balloon, _) = Balloon::new(&guest, &mut words, 512, Wipe::Always)?;
    /// assert_eq!(balloon.set_target(4000), Retarget::Step);
    /// assert_eq!(balloon.set_target(4096), Retarget::Idle);
    /// # Ok::<(), balloon::BalloonError>(())
    /// ```
    pub fn set_target(&mut self, frames: u64) -> Retarget {
        self.wanted = frames;
        match self.direction() {
            None if self.set_aside == 0 => Retarget::Idle,
            Some(direction) if self.stuck == Some(direction) => Retarget::KeepWaiting,
            _ => {
                self.pause = 0;
                Retarget::Step
            }
        }
    }

    /// Returns whether the last step made no progress.
    pub(crate) const fn is_stuck(&self) -> bool {
        self.stuck.is_some()
    }

    /// Returns the goal, and why it differs from what was asked for.
    #[must_use]
    pub const fn goal(&self) -> Goal {
        Goal::new(self.wanted, self.floor, self.populated + self.ballooned())
    }

    /// Returns the number of pfns that have no memory and may get some.
    #[must_use]
    pub const fn ballooned(&self) -> u64 {
        self.held.count() - self.set_aside
    }

    /// Returns whether the balloon holds this pfn.
    #[must_use]
    pub fn holds(&self, pfn: Pfn) -> bool {
        self.held.contains(pfn)
    }

    /// Returns the pfns that are set aside ([`Accounts::set_aside`]), lowest first. The balloon
    /// hands one out only after Xen has mapped it at its place again.
    ///
    /// ```
    /// # use pv_tests::guest::TestGuest;
    /// use balloon::{Balloon, Wipe};
    ///
    /// let TestGuest { guest, p2m, .. } = TestGuest::new();
    /// let mut words = vec![0; Balloon::words_needed(p2m.len()) as usize];
    /// let (balloon, _) = Balloon::new(&guest, &mut words, 512, Wipe::Always)?;
    /// assert_eq!(balloon.aside(p2m).count(), 0); // nothing was refused twice
    /// # Ok::<(), balloon::BalloonError>(())
    /// ```
    pub fn aside<'b>(&'b self, p2m: &'b P2m<'_>) -> impl Iterator<Item = Pfn> + 'b {
        let held = (self.set_aside > 0).then(|| self.held.iter_from(Pfn::new(0)));
        held.into_iter().flatten().filter(|pfn| p2m.mfn(*pfn).is_ok())
    }

    /// Returns the state of all pfns, and Xen's count.
    ///
    /// # Hypercalls
    /// One `memory_op` (`XENMEM_current_reservation`).
    pub fn accounts<M: Hypercalls + ?Sized>(&self, machine: &M, p2m: &P2m<'_>) -> Accounts {
        self.accounts_with(p2m, current_reservation(machine).ok())
    }

    fn accounts_with(&self, p2m: &P2m<'_>, xen: Option<u64>) -> Accounts {
        let (span, ballooned) = (p2m.len(), self.ballooned());
        let Self { populated, reserved, set_aside, stray, .. } = *self;
        Accounts { span, populated, ballooned, reserved, set_aside, stray, xen }
    }

    /// Takes one step towards the goal, of at most as many frames as `work` has room for.
    ///
    /// # Hypercalls
    /// Two if nothing is refused. Out: a multicall that clears the entries and flushes; then one
    /// that gives the frames up and asks for the count (`XENMEM_decrease_reservation`,
    /// `XENMEM_current_reservation`). In: a multicall that asks for frames and for the count
    /// (`XENMEM_populate_physmap`); then an `mmu_update`. Only the count if there is nothing to do
    /// or to spare. Refusals cost at most four more in all.
    ///
    /// ```
    /// # use pv_tests::guest::TestGuest;
    /// use balloon::{Balloon, Next, Wipe, StepStorage};
    ///
    /// let mut test = TestGuest::new(); // 4096 pages
    /// let mut words = vec![0; Balloon::words_needed(test.p2m.len()) as usize];
    /// let (mut balloon, _) = Balloon::new(&test.guest, &mut words, 512, Wipe::Always)?;
    /// balloon.set_target(3000);
    /// let mut storage = StepStorage::<256>::new();
    /// let step = loop {
    ///     let step = storage.with(|work| balloon.step(&test.guest, &mut test.frames, work));
    ///     if step.next != Next::Again {
    ///         break step; // there, or something is in the way: `Next::Wait` says what
    ///     }
    /// };
    /// assert_eq!((step.next, step.accounts.populated), (Next::Idle, 3000));
    /// assert!(step.accounts.is_balanced());
    /// # Ok::<(), balloon::BalloonError>(())
    /// ```
    pub fn step<M: Machine>(
        &mut self,
        guest: &Guest<'_, M>,
        allocator: &mut impl FrameSource,
        work: &mut StepMemory<'_, '_>,
    ) -> BalloonStep {
        let direct = &mut DirectEntries::new(*guest);
        self.xen = None;
        let (moved, next) = if let Some(obstacle) = self.why_no_room(work) {
            (Moved::Nothing, self.next(0, Some(obstacle)))
        } else if self.set_aside > 0 {
            let recovered = self.recover(direct, allocator, work);
            (Moved::Nothing, recovered.map_or(Next::Again, |frames| self.next(frames, None)))
        } else {
            let (progress, moved, obstacle) = self.towards_goal(direct, allocator, work);
            (moved, self.next(progress, obstacle))
        };
        let xen = self.xen.or_else(|| current_reservation(guest.machine()).ok());
        BalloonStep { moved, next, accounts: self.accounts_with(guest.p2m(), xen) }
    }

    /// Returns an obstacle if `work` has too little room for the next step. Changes nothing.
    fn why_no_room(&self, work: &StepMemory<'_, '_>) -> Option<BalloonObstacle> {
        let frames = work.frames_max();
        let fits = match self.direction() {
            _ if self.set_aside > 0 => frames > 0,
            None => true,
            Some(Direction::Out) => frames.min(work.out_max) > 0 && work.batch.ops_max() > 0,
            Some(Direction::In) => frames.min(work.in_max) > 0 || frames >= LARGE_FRAMES,
        };
        (!fits).then(|| work.no_room())
    }

    fn towards_goal<M: Machine>(
        &mut self,
        direct: &mut DirectEntries<'_, M>,
        allocator: &mut impl FrameSource,
        work: &mut StepMemory<'_, '_>,
    ) -> (u64, Moved, Option<BalloonObstacle>) {
        let count = self.goal().frames.abs_diff(self.populated).min(work.frames_max() as u64);
        let out_max = work.out_max;
        // A count of what fits in memory.
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        match self.direction() {
            None => (0, Moved::Nothing, None),
            Some(Direction::Out) => {
                let (frames, obstacle) = self.inflate(direct, allocator, work, count.min(out_max));
                (frames, Moved::out(frames), obstacle)
            }
            Some(Direction::In) => {
                let (frames, obstacle) = self.deflate(direct, allocator, work, count);
                (frames, Moved::in_(frames), obstacle)
            }
        }
    }

    /// Returns the direction of the goal.
    pub(crate) const fn direction(&self) -> Option<Direction> {
        let frames = self.goal().frames;
        if self.populated > frames {
            Some(Direction::Out)
        } else if self.populated < frames {
            Some(Direction::In)
        } else {
            None
        }
    }

    pub(crate) const fn wipes(&self) -> bool {
        matches!(self.wipe, Wipe::Always)
    }

    /// Returns what comes next after a step that moved `progress` frames.
    fn next(&mut self, progress: u64, obstacle: Option<BalloonObstacle>) -> Next {
        if progress > 0 {
            self.pause = 0;
            self.stuck = None;
        }
        let is_stuck = self.set_aside > 0 && progress == 0;
        let aside = is_stuck.then_some(BalloonObstacle::SetAside(self.set_aside));
        match obstacle.or(aside) {
            Some(why) => {
                self.pause = (self.pause * 2).clamp(1, PAUSE_MAX);
                self.stuck = self.direction();
                Next::Wait { why, pause: self.pause }
            }
            None if self.direction().is_none() && self.set_aside == 0 => Next::Idle,
            None => Next::Again,
        }
    }

    /// Takes a frame into the balloon, or gives it back with the reason.
    pub(crate) fn hold(&mut self, frame: Frame) -> Result<Pfn, Refused<Frame, BalloonObstacle>> {
        let pfn = frame.pfn();
        if self.held.insert(pfn) {
            // INVARIANT: I-12: the token is consumed here.
            return Ok(pfn);
        }
        let end = Pfn::new(self.held.end());
        let error = match pfn < end {
            true => BalloonObstacle::Held(pfn),
            false => BalloonObstacle::BeyondSet { pfn, end },
        };
        Err(Refused { value: frame, error })
    }

    /// Returns a pfn that has memory and is mapped to the allocator.
    #[expect(unsafe_code, reason = "makes the token again that `hold` consumed")]
    pub(crate) fn let_go(&mut self, pfn: Pfn, allocator: &mut impl FrameSource) {
        if self.held.remove(pfn) {
            // SAFETY: I-12: the balloon owned it until a moment ago, and nobody else does (I-1).
            allocator.give(unsafe { Frame::claim(pfn) });
        }
    }
}

/// Checks that `frames` are empty and have words in the map.
pub(crate) fn check_all_empty(p2m: &P2m<'_>, frames: &Frames) -> Result<(), P2mError> {
    let pfns = frames.start().raw()..frames.start().raw() + frames.count();
    pfns.map(Pfn::new).try_for_each(|pfn| p2m.check_can_fill(pfn))
}

/// Returns Xen's count of the guest's frames.
#[expect(unsafe_code, reason = "asks Xen for a number")]
pub(crate) fn current_reservation<M: Hypercalls + ?Sized>(machine: &M) -> Result<u64, Error> {
    // SAFETY: it only reports.
    unsafe { machine.memory_op(&mut MemoryOp::CurrentReservation(DomId::SELF)) }
}
