//! A machine that refuses chosen requests, fails chosen accesses, and records what it was asked.

use core::cell::Cell;
use core::fmt;

use super::accesses::{Accessed, Accesses};
use super::forward_cpu;
use crate::call::{Call, Outcome, Request};
use crate::error::{Errno, Error, Hypercall};
use crate::frame::Mfn;
use crate::grants::{GrantMap, GrantStatus, GrantUnmap, Grants};
use crate::machine::{Assist, Cpu, Fault, Hypercalls};
use crate::memory::{Exchange, MemoryOp, Reservation};
use crate::va::GuestVa;

/// Which request is refused, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its number, from 0, over everything issued: each request of a multicall counts, each
    /// `memory_op` counts.
    pub request: u64,
    /// The errno.
    pub errno: Errno,
    /// How many of its elements take effect before the refusal (fewer if it has fewer).
    pub done: usize,
}

/// A request, as it passed through the seam.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Which hypercall.
    pub hypercall: Hypercall,
    /// How many elements it had.
    pub elements: usize,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.hypercall, self.elements)
    }
}

/// Which requests are refused, and which were made so far. All machines that [`FailEach`] makes of
/// one plan share its count.
#[derive(Debug)]
pub struct Refusals<'r> {
    refusals: &'r [Refusal],
    asked: &'r [Cell<Option<Asked>>],
    seen: Cell<u64>,
    accesses: Accesses<'r>,
}

impl<'r> Refusals<'r> {
    /// Plans to refuse each of `refusals`, in any order, and to record the requests in `asked`, as
    /// far as there is room.
    pub const fn new(refusals: &'r [Refusal], asked: &'r [Cell<Option<Asked>>]) -> Self {
        Self { refusals, asked, seen: Cell::new(0), accesses: Accesses::new(&[], &[]) }
    }

    /// Plans to fail, besides, the accesses to frames whose numbers `failing` lists, and to record
    /// the accesses in `made`, as far as there is room. Accesses are counted from 0, apart from
    /// requests.
    ///
    /// ```
    /// use core::cell::Cell;
    /// use hypercall::middleware::{FailEach, Refusals};
    /// use hypercall::{AccessError, FrameAccess};
    ///
    /// let model = xen_model::Model::builder().build()?;
    /// let made = [const { Cell::new(None) }; 4];
    /// let plan = Refusals::new(&[], &[]).and_accesses(&[1], &made);
    /// let machine = FailEach::new(&model, &plan);
    /// let page = model.guest().first_free_page();
    /// let read = || machine.read_bytes(page, 0, &mut [0]);
    /// assert_eq!(read(), Ok(()));
    /// assert_eq!(read(), Err(AccessError::Unmapped(page)));
    /// assert_eq!(read(), Ok(()));
    /// assert_eq!((plan.accessed(), plan.refused()), (3, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn and_accesses(
        mut self,
        failing: &'r [u64],
        made: &'r [Cell<Option<Accessed>>],
    ) -> Self {
        self.accesses = Accesses::new(failing, made);
        self
    }

    /// Returns the refusals that are planned.
    pub const fn refusals(&self) -> &'r [Refusal] {
        self.refusals
    }

    /// Returns the number of requests so far.
    pub const fn seen(&self) -> u64 {
        self.seen.get()
    }

    /// Returns the number of accesses to frames so far.
    pub const fn accessed(&self) -> u64 {
        self.accesses.seen()
    }

    /// Returns how many of the planned refusals and failures have come.
    pub fn refused(&self) -> usize {
        let requests = self.refusals.iter().filter(|it| it.request < self.seen.get());
        requests.count() + self.accesses.failed()
    }

    pub(super) const fn accesses(&self) -> &Accesses<'r> {
        &self.accesses
    }

    /// Makes a plan that continues to count at `seen`.
    pub(super) const fn at(refusals: &'r [Refusal], seen: u64) -> Self {
        Self { refusals, asked: &[], seen: Cell::new(seen), accesses: Accesses::new(&[], &[]) }
    }

    /// Counts a request, and returns its number.
    fn count(&self, hypercall: Hypercall, elements: usize) -> u64 {
        let number = self.seen.get();
        self.seen.set(number + 1);
        let place = usize::try_from(number).ok().and_then(|at| self.asked.get(at));
        if let Some(place) = place {
            place.set(Some(Asked { hypercall, elements }));
        }
        number
    }

    /// Returns how request `number` is refused. If it is listed more than once, the first element
    /// counts.
    fn of(&self, number: u64) -> Option<Refusal> {
        let of_it = self.refusals.iter().filter(|refusal| refusal.request == number);
        of_it.min_by_key(|refusal| refusal.done).copied()
    }

    /// Counts a request on one thing or none. Returns its errno if it is refused.
    fn count_whole(&self, hypercall: Hypercall) -> Result<(), Error> {
        let number = self.count(hypercall, 1);
        self.of(number).map_or(Ok(()), |it| Err(Error { hypercall, errno: it.errno, done: 0 }))
    }

    /// Returns the next refused one of `elements`, which are answered one by one, from `from` on.
    fn next_of(&self, number: u64, from: usize, elements: usize) -> Option<usize> {
        let of_it = self.refusals.iter().filter(|refusal| refusal.request == number);
        of_it.map(|it| it.done.min(elements - 1)).filter(|at| *at >= from).min()
    }
}

/// Wraps a machine, refuses some requests and fails some accesses. All others go through as on Xen,
/// also those after a refused one in a multicall.
#[derive(Debug)]
pub struct FailEach<'r, M> {
    pub(super) machine: M,
    pub(super) plan: &'r Refusals<'r>,
}

impl<'r, M> FailEach<'r, M> {
    /// Wraps `machine`, and refuses what `plan` says.
    ///
    /// ```
    /// use core::cell::Cell;
    /// use hypercall::middleware::{FailEach, Refusal, Refusals};
    /// use hypercall::{Assist, Errno, Hypercalls};
    ///
    /// let model = xen_model::Model::builder().build()?;
    /// let refusal = |request, errno| Refusal { request, errno, done: 0 };
    /// let refusals = [refusal(0, Errno::ENOMEM), refusal(2, Errno::EBUSY)];
    /// let asked = [const { Cell::new(None) }; 4];
    /// let plan = Refusals::new(&refusals, &asked);
    /// let machine = FailEach::new(&model, &plan);
    /// let ask = || machine.enable_assist(Assist::WritablePageTables);
    /// assert_eq!(ask().unwrap_err().errno, Errno::ENOMEM);
    /// assert_eq!(ask(), Ok(()));
    /// assert_eq!(ask().unwrap_err().errno, Errno::EBUSY);
    /// assert_eq!((plan.seen(), plan.refused()), (3, 2));
    /// assert_eq!(asked.iter().flat_map(Cell::get).count(), 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub const fn new(machine: M, plan: &'r Refusals<'r>) -> Self {
        Self { machine, plan }
    }

    /// Returns the machine inside.
    pub const fn inner(&self) -> &M {
        &self.machine
    }
}

/// Returns the first `count` elements of a request.
fn prefix<'a>(request: Request<'a>, count: usize) -> Request<'a> {
    match request {
        Request::MmuUpdate(updates, domain) => Request::MmuUpdate(&updates[..count], domain),
        Request::MmuExt(ops, domain) => Request::MmuExt(&ops[..count], domain),
        Request::VaMapping(_) => request,
    }
}

/// Returns how many extents an exchange swaps as a unit: given and taken ones.
fn chunk(exchange: &Exchange<'_>) -> (usize, usize) {
    let (give, take) = (exchange.give.order, exchange.take.order);
    // A word does not hold it: more than any list has.
    let extents = |order: u32| 1_usize.checked_shl(order).unwrap_or(usize::MAX);
    (extents(take.saturating_sub(give)), extents(give.saturating_sub(take)))
}

/// Returns in how many places Xen can stop.
fn elements(op: &MemoryOp<'_>) -> usize {
    match op {
        MemoryOp::Exchange(exchange) => op.extents() / chunk(exchange).0,
        _ => op.extents(),
    }
}

/// Returns the first `count` extents of a list, or all if it has fewer.
fn part<'p>(list: &'p mut Reservation<'_>, count: usize) -> Reservation<'p> {
    let count = count.min(list.extents.len());
    Reservation { extents: &mut list.extents[..count], ..*list }
}

#[expect(unsafe_code, reason = "forwards calls with the promises of their callers")]
impl<M: Hypercalls> FailEach<'_, M> {
    /// Runs the part of `call` that is to take effect, and marks the call as refused.
    ///
    /// # Safety
    /// As for [`Hypercalls::issue`].
    unsafe fn refuse(&self, call: &mut Call<'_>, refusal: Refusal) -> Result<(), Error> {
        let done = refusal.done.min(call.request.len().saturating_sub(1));
        let mut part = [Call::new(prefix(call.request, done))];
        if done > 0 {
            // SAFETY: a part of what the caller vouches for.
            unsafe { self.machine.issue(&mut part) }?;
        }
        call.outcome = match part[0].outcome {
            // The machine's own refusal comes first.
            own @ Outcome::Refused { .. } => own,
            _ => {
                let done = u32::try_from(done).unwrap_or(u32::MAX);
                Outcome::Refused { errno: refusal.errno, done }
            }
        };
        Ok(())
    }

    /// Exchanges the chunks that are to be exchanged, and refuses the next.
    ///
    /// # Safety
    /// As for [`Hypercalls::memory_op`].
    unsafe fn refuse_exchange(
        &self,
        exchange: &mut Exchange<'_>,
        refusal: Refusal,
    ) -> Result<u64, Error> {
        let (given, taken) = chunk(exchange);
        let chunks = exchange.give.extents.len() / given;
        let done = refusal.done.min(chunks.saturating_sub(1));
        if done > 0 {
            let give = part(&mut exchange.give, done * given);
            let take = part(&mut exchange.take, done.saturating_mul(taken));
            let mut first = MemoryOp::Exchange(Exchange { give, take });
            // SAFETY: a part of what the caller vouches for.
            unsafe { self.machine.memory_op(&mut first) }?;
        }
        let done = u32::try_from(done * given).unwrap_or(u32::MAX);
        let hypercall = Hypercall::MemoryOp("exchange");
        Err(Error { hypercall, errno: refusal.errno, done })
    }
}

#[expect(unsafe_code, reason = "forwards calls with the promises of their callers")]
// SAFETY: every call goes to the machine inside, perhaps in parts, whose answer is handed on; what
// is refused here was not asked.
unsafe impl<M: Hypercalls> Hypercalls for FailEach<'_, M> {
    unsafe fn issue(&self, calls: &mut [Call<'_>]) -> Result<(), Error> {
        let mut first = None;
        for call in &*calls {
            let number = self.plan.count(call.request.hypercall(), call.request.len());
            first.get_or_insert(number);
        }
        let first = first.unwrap_or_default();
        let refusals = (first..).map(|number| self.plan.of(number)).take(calls.len());
        let mut rest = calls;
        let mut passed = 0;
        for (at, refusal) in refusals.enumerate() {
            let Some(refusal) = refusal else { continue };
            let (before, behind) = rest.split_at_mut(at - passed);
            // SAFETY: a part of what the caller vouches for, in its order.
            unsafe { self.machine.issue(before) }?;
            let (refused, after) = behind.split_at_mut(1);
            // SAFETY: as above.
            unsafe { self.refuse(&mut refused[0], refusal) }?;
            (rest, passed) = (after, at + 1);
        }
        // SAFETY: as above.
        unsafe { self.machine.issue(rest) }
    }

    unsafe fn memory_op(&self, op: &mut MemoryOp<'_>) -> Result<u64, Error> {
        let hypercall = Hypercall::MemoryOp(op.name());
        let elements = elements(op);
        let number = self.plan.count(hypercall, elements.max(1));
        let Some(refusal) = self.plan.of(number) else {
            // SAFETY: the caller's promise is handed on.
            return unsafe { self.machine.memory_op(op) };
        };
        let done = refusal.done.min(elements.saturating_sub(1));
        let mut first = match op {
            MemoryOp::Increase(list) => MemoryOp::Increase(part(list, done)),
            MemoryOp::Decrease(list) => MemoryOp::Decrease(part(list, done)),
            MemoryOp::Populate(list) => MemoryOp::Populate(part(list, done)),
            // SAFETY: the caller's promise is handed on.
            MemoryOp::Exchange(it) => return unsafe { self.refuse_exchange(it, refusal) },
            _ => return Err(Error { hypercall, errno: refusal.errno, done: 0 }),
        };
        // Operations on extents are never refused with an errno: they complete fewer.
        if done == 0 {
            return Ok(0);
        }
        // SAFETY: a part of what the caller vouches for.
        unsafe { self.machine.memory_op(&mut first) }
    }

    fn enable_assist(&self, assist: Assist) -> Result<(), Error> {
        self.plan.count_whole(Hypercall::VmAssist)?;
        self.machine.enable_assist(assist)
    }
}

/// Grants are answered one by one: element `done` of the request is refused, those around it go
/// through. Several elements of one request can be refused.
#[expect(unsafe_code, reason = "forwards calls with the promises of their callers")]
// SAFETY: as above.
unsafe impl<M: Grants> Grants for FailEach<'_, M> {
    unsafe fn grant_map(&self, maps: &mut [GrantMap]) -> Result<(), Error> {
        if maps.is_empty() {
            // SAFETY: the caller's promise is handed on.
            return unsafe { self.machine.grant_map(maps) };
        }
        let number = self.plan.count(Hypercall::GrantTableOp("map_grant_ref"), maps.len());
        let mut from = 0;
        while let Some(at) = self.plan.next_of(number, from, maps.len()) {
            // SAFETY: a part of what the caller vouches for.
            unsafe { self.machine.grant_map(&mut maps[from..at]) }?;
            maps[at].status = GrantStatus::GENERAL_ERROR.0;
            from = at + 1;
        }
        // SAFETY: as above.
        unsafe { self.machine.grant_map(&mut maps[from..]) }
    }

    unsafe fn grant_unmap(&self, unmaps: &mut [GrantUnmap]) -> Result<(), Error> {
        if unmaps.is_empty() {
            // SAFETY: the caller's promise is handed on.
            return unsafe { self.machine.grant_unmap(unmaps) };
        }
        let number = self.plan.count(Hypercall::GrantTableOp("unmap_grant_ref"), unmaps.len());
        let mut from = 0;
        while let Some(at) = self.plan.next_of(number, from, unmaps.len()) {
            // SAFETY: a part of what the caller vouches for.
            unsafe { self.machine.grant_unmap(&mut unmaps[from..at]) }?;
            unmaps[at].status = GrantStatus::GENERAL_ERROR.0;
            from = at + 1;
        }
        // SAFETY: as above.
        unsafe { self.machine.grant_unmap(&mut unmaps[from..]) }
    }

    fn grant_table(&self, frames: &mut [Mfn]) -> Result<(), Error> {
        self.plan.count_whole(Hypercall::GrantTableOp("setup_table"))?;
        self.machine.grant_table(frames)
    }
}

// The CPU's accesses reach Xen by a fault; they are not requests.
forward_cpu!([M: Cpu] FailEach<'_, M>, self => self.machine);
