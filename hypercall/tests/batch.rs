//! A batch of any size beside a list: whatever is pushed, refused, sent and undone, the batch
//! tells what the list tells.
#![expect(unsafe_code, reason = "submitting is unsafe; the machine of these tests has no memory")]

use std::cell::RefCell;

use arbtest::arbitrary::{Result as Drawn, Unstructured};
use arbtest::arbtest;
use hypercall::memory::MemoryOp;
use hypercall::{
    AccessError, Assist, Batch, BatchError, BatchRuns, BatchStorage, CALLS_MAX, Call, DomId,
    Element, Errno, Error, FrameAccess, Full, GuestVa, Hypercall, Hypercalls, Mfn, MmuExtOp,
    MmuUpdate, Outcome, Pfn, Pte, RefusableFlag, Request, VaFlush, VaMapping, VcpuSet,
};
use x86_64::VirtAddr;
use x86_64::structures::paging::PageTableIndex;

const STORED_UPDATES: usize = 5;
const STORED_OPS: usize = 3;

/// Something pushed, with what it replaces.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pushed {
    Update(MmuUpdate, u64, DomId),
    Op(MmuExtOp),
    Va(VaMapping, Pte),
}

impl Pushed {
    /// Whether it goes out in one request with the one before.
    fn joins(&self, before: &Self) -> bool {
        match (before, self) {
            (Self::Update(.., a), Self::Update(.., b)) => a == b,
            (Self::Op(_), Self::Op(_)) => true,
            _ => false,
        }
    }

    fn element(&self) -> Element {
        match *self {
            Self::Update(update, ..) => Element::Update(update),
            Self::Op(op) => Element::Op(op),
            Self::Va(mapping, _) => Element::Va(mapping),
        }
    }

    /// What puts back what it replaced, if a batch can.
    fn undone(&self) -> Option<Self> {
        match *self {
            Self::Update(update, old, owner) => {
                let back = MmuUpdate::from_raw(update.target(), old);
                Some(Self::Update(back, update.value(), owner))
            }
            Self::Op(_) => None,
            Self::Va(mapping, old) => {
                Some(Self::Va(VaMapping { pte: old, ..mapping }, mapping.pte))
            }
        }
    }

    fn update(&self) -> Option<(MmuUpdate, u64)> {
        match *self {
            Self::Update(update, old, _) => Some((update, old)),
            _ => None,
        }
    }
}

/// What a batch should hold.
struct List {
    updates_max: usize,
    ops_max: usize,
    runs: Vec<Vec<Pushed>>,
}

impl List {
    fn all(&self) -> impl Iterator<Item = &Pushed> {
        self.runs.iter().flatten()
    }

    fn updates(&self) -> usize {
        self.all().filter(|pushed| pushed.update().is_some()).count()
    }

    fn ops(&self) -> usize {
        self.all().filter(|pushed| matches!(pushed, Pushed::Op(_))).count()
    }

    fn push(&mut self, pushed: Pushed) -> Result<(), Full> {
        let full = match pushed {
            Pushed::Update(..) => self.updates() == self.updates_max,
            Pushed::Op(_) => self.ops() == self.ops_max,
            Pushed::Va(..) => false,
        };
        let requests = self.runs.len();
        let last = self.runs.last_mut();
        match last.filter(|run| pushed.joins(&run[0])) {
            _ if full => return Err(Full),
            Some(run) => run.push(pushed),
            None if requests == CALLS_MAX => return Err(Full),
            None => self.runs.push(vec![pushed]),
        }
        Ok(())
    }

    fn extend(&mut self, updates: &[(MmuUpdate, u64)]) -> Result<usize, Full> {
        let pushed = |&(update, old): &_| Pushed::Update(update, old, DomId::SELF);
        let taken = updates.iter().map(pushed).take_while(|&one| self.push(one).is_ok()).count();
        if taken == 0 && !updates.is_empty() { Err(Full) } else { Ok(taken) }
    }

    fn check(&self, batch: &Batch<'_>) {
        assert_eq!(batch.is_empty(), self.runs.is_empty());
        assert_eq!(batch.requests(), self.runs.len());
        assert_eq!(batch.updates(), self.updates());
        assert_eq!((batch.updates_max(), batch.ops_max()), (self.updates_max, self.ops_max));
        assert_eq!(batch.room(), self.updates_max - self.updates());
        assert_eq!(batch.ops_room(), self.ops_max - self.ops());
    }
}

/// Answers as it is told, and keeps what it was asked.
struct Scripted {
    answers: Vec<Outcome>,
    whole: Option<Error>,
    asked: RefCell<Vec<Vec<Element>>>,
}

// SAFETY: the machine has no memory that Rust knows of: what it says concerns the test alone.
unsafe impl Hypercalls for Scripted {
    unsafe fn issue(&self, calls: &mut [Call<'_>]) -> Result<(), Error> {
        assert_eq!(calls.len(), self.answers.len(), "requests");
        for (call, &answer) in calls.iter_mut().zip(&self.answers) {
            let (request, length) = (call.request, call.request.len());
            assert_eq!(request.is_empty(), length == 0);
            self.asked.borrow_mut().push(match request {
                Request::MmuUpdate(updates, _) => {
                    updates.iter().copied().map(Element::Update).collect()
                }
                Request::MmuExt(ops, _) => ops.iter().copied().map(Element::Op).collect(),
                Request::VaMapping(mapping) => vec![Element::Va(mapping)],
            });
            call.outcome = answer;
        }
        self.whole.map_or(Ok(()), Err)
    }

    unsafe fn memory_op(&self, _: &mut MemoryOp<'_>) -> Result<u64, Error> {
        unreachable!("a batch issues no memory_op")
    }

    fn enable_assist(&self, _: Assist) -> Result<(), Error> {
        unreachable!("a batch enables no assist")
    }
}

fn draw_update(u: &mut Unstructured<'_>) -> Drawn<(MmuUpdate, u64)> {
    let update = MmuUpdate::from_raw(u64::from(u.arbitrary::<u16>()?) << 12, u.arbitrary()?);
    Ok((update, u.arbitrary()?))
}

/// Pushes something on both.
fn push(u: &mut Unstructured<'_>, batch: &mut Batch<'_>, list: &mut List) -> Drawn<()> {
    match u.int_in_range(0..=7)? {
        0..=2 => {
            let (update, old) = draw_update(u)?;
            let pushed = Pushed::Update(update, old, DomId::SELF);
            assert_eq!(batch.update(update, old), list.push(pushed));
        }
        3 => {
            let owner = *u.choose(&[DomId::SELF, DomId::IO])?;
            let (update, old) = draw_update(u)?;
            let pushed = Pushed::Update(update, old, owner);
            assert_eq!(batch.update_for(update, old, owner), list.push(pushed));
        }
        4 => {
            let count = u.int_in_range(0..=4)?;
            let updates = (0..count).map(|_| draw_update(u)).collect::<Drawn<Vec<_>>>()?;
            assert_eq!(batch.extend(updates.iter().copied()), list.extend(&updates));
        }
        5 | 6 => {
            let op = MmuExtOp::unpin(Mfn::new(u.int_in_range(0..=99)?));
            assert_eq!(batch.op(op), list.push(Pushed::Op(op)));
        }
        _ => {
            let va = VirtAddr::new(u64::from(u.arbitrary::<u16>()?) << 12);
            let pte = Pte::from_raw(u.arbitrary()?);
            let (mapping, old) =
                (VaMapping { va, pte, flush: VaFlush::None }, Pte::from_raw(u.arbitrary()?));
            assert_eq!(batch.va_mapping(mapping, old), list.push(Pushed::Va(mapping, old)));
        }
    }
    list.check(batch);
    Ok(())
}

/// What a machine answers: a request may be refused at any element, or never be seen.
fn draw_answers(u: &mut Unstructured<'_>, list: &List) -> Drawn<Vec<Outcome>> {
    if u.ratio(1, 3)? {
        return Ok(vec![Outcome::Done; list.runs.len()]);
    }
    let answer = |run: &Vec<Pushed>| {
        Ok(match u.int_in_range(0..=3)? {
            0 => {
                let done = u.int_in_range(0..=run.len() - 1)?;
                let done = u32::try_from(done).expect("a short run");
                // A machine may claim more than it was asked for.
                let done = if u.ratio(1, 8)? { u32::MAX - done } else { done };
                Outcome::Refused { errno: Errno::EBUSY, done }
            }
            1 => Outcome::NotIssued,
            _ => Outcome::Done,
        })
    };
    list.runs.iter().map(answer).collect()
}

/// The parts of `run` that are in effect, and that are not.
fn parts(run: &[Pushed], answer: Outcome) -> (&[Pushed], &[Pushed]) {
    run.split_at(match answer {
        Outcome::Done => run.len(),
        Outcome::NotIssued => 0,
        Outcome::Refused { done, .. } => run.len().min(done as usize),
    })
}

fn submit(batch: &mut Batch<'_>, machine: &Scripted) -> Result<(), BatchError> {
    // SAFETY: the scripted machine changes nothing.
    unsafe { batch.submit(machine) }
}

/// After a refusal: what took effect, what not, and the batch that undoes it.
fn refused(batch: &mut Batch<'_>, list: &List, answers: &[Outcome]) {
    let split = || list.runs.iter().zip(answers).map(|(run, &answer)| parts(run, answer));
    let applied: Vec<_> = split().flat_map(|(done, _)| done).map(Pushed::element).collect();
    assert_eq!(batch.applied().collect::<Vec<_>>(), applied);
    let unapplied: Vec<_> = split().flat_map(|(_, rest)| rest).filter_map(Pushed::update).collect();
    assert_eq!(batch.unapplied().collect::<Vec<_>>(), unapplied);
    let update_refused = list.runs.iter().zip(answers).find_map(|(run, answer)| match answer {
        Outcome::Refused { done, .. } => run.get(*done as usize)?.update(),
        _ => None,
    });
    assert_eq!(batch.refused_update(), update_refused.map(|(update, _)| update));
    assert_eq!(batch.sent().count(), 0);
    let mut undo: Vec<Vec<Element>> = split()
        .map(|(done, _)| done.iter().rev().filter_map(Pushed::undone))
        .map(|undone| undone.map(|one| one.element()).collect())
        .filter(|run: &Vec<_>| !run.is_empty())
        .collect();
    undo.reverse();
    batch.invert();
    let answers = vec![Outcome::Done; undo.len()];
    let machine = Scripted { answers, whole: None, asked: RefCell::default() };
    assert_eq!(submit(batch, &machine), Ok(()));
    assert_eq!(machine.asked.into_inner(), undo);
}

#[test]
fn a_batch_tells_what_a_list_tells() {
    arbtest(|u| {
        let mut storage = BatchStorage::<STORED_UPDATES, STORED_OPS>::new();
        let (updates, ops) = (u.int_in_range(0..=7)?, u.int_in_range(0..=5)?);
        let mut batch = storage.batch_of(updates, ops);
        let (updates_max, ops_max) = (updates.min(STORED_UPDATES), ops.min(STORED_OPS));
        let mut list = List { updates_max, ops_max, runs: Vec::new() };
        list.check(&batch);
        for _ in 0..u.int_in_range(0..=40)? {
            push(u, &mut batch, &mut list)?;
        }
        let answers = draw_answers(u, &list)?;
        let errno = Errno::EFAULT;
        let whole =
            u.ratio(1, 8)?.then_some(Error { hypercall: Hypercall::Multicall, errno, done: 0 });
        let machine = Scripted { answers, whole, asked: RefCell::default() };
        let result = submit(&mut batch, &machine);
        let first = machine.answers.iter().position(|answer| *answer != Outcome::Done);
        let requests = list.runs.len();
        let expected = match (whole, first) {
            // Nothing is asked for, and nothing is refused.
            _ if requests == 0 => Ok(()),
            (Some(error), at) => Err((at.unwrap_or(requests.saturating_sub(1)), error.errno)),
            (None, Some(at)) if machine.answers[at] == Outcome::NotIssued => {
                Err((at, Errno::EINTR))
            }
            (None, Some(at)) => Err((at, Errno::EBUSY)),
            (None, None) => Ok(()),
        };
        assert_eq!(result.map_err(|error| (error.request as usize, error.error.errno)), expected);
        assert!(result.err().is_none_or(|error| error.requests as usize == requests));
        let pushed: Vec<Vec<_>> =
            list.runs.iter().map(|run| run.iter().map(Pushed::element).collect()).collect();
        assert_eq!(*machine.asked.borrow(), pushed);
        if result.is_err() {
            list.check(&batch);
            refused(&mut batch, &list, &machine.answers);
        } else {
            let sent: Vec<_> = list.all().filter_map(Pushed::update).collect();
            assert_eq!(batch.sent().collect::<Vec<_>>(), sent);
        }
        list.runs.clear();
        list.check(&batch);
        if batch.op(MmuExtOp::tlb_flush_local()).is_ok() {
            assert_eq!(batch.sent().count(), 0, "something was pushed since");
        }
        batch.clear();
        for _ in 0..u.int_in_range(0..=9)? {
            push(u, &mut batch, &mut list)?;
        }
        Ok(())
    });
}

/// Reads the vCPUs of each flush where Xen would.
#[derive(Default)]
struct Reading(RefCell<Vec<u32>>);

// SAFETY: the machine has no memory that Rust knows of: what it says concerns the test alone.
unsafe impl Hypercalls for Reading {
    unsafe fn issue(&self, calls: &mut [Call<'_>]) -> Result<(), Error> {
        for call in calls {
            let Request::MmuExt(ops, _) = call.request else { panic!("{:?}", call.request) };
            for op in ops.iter().filter(|op| op.argument2() != 0) {
                let place = op.argument2() as *const u32;
                assert!((&raw const *op).cast::<u8>() <= place.cast());
                assert!(place < (&raw const *op).wrapping_add(1).cast());
                // SAFETY: the place lies in the element.
                self.0.borrow_mut().push(unsafe { place.read() });
            }
            call.outcome = Outcome::Done;
        }
        Ok(())
    }

    unsafe fn memory_op(&self, _: &mut MemoryOp<'_>) -> Result<u64, Error> {
        unreachable!("a batch issues no memory_op")
    }

    fn enable_assist(&self, _: Assist) -> Result<(), Error> {
        unreachable!("a batch enables no assist")
    }
}

#[test]
fn a_flush_carries_its_vcpus_with_it() -> Result<(), Full> {
    let mut storage = BatchStorage::<1, 3>::new();
    let mut batch = storage.batch();
    batch.op(MmuExtOp::tlb_flush_vcpus(VcpuSet(5)))?;
    batch.op(MmuExtOp::tlb_flush_all())?;
    batch.op(MmuExtOp::invlpg_vcpus(VirtAddr::new(0x5000), VcpuSet(9)))?;
    let machine = Reading::default();
    // SAFETY: the machine changes nothing.
    assert_eq!(unsafe { batch.submit(&machine) }, Ok(()));
    assert_eq!(machine.0.into_inner(), [5, 9]);
    Ok(())
}

#[test]
fn a_batch_holds_as_many_updates_as_it_can_remember_replaced_entries() {
    for (places, old) in [(3, 2), (2, 3), (2, 2), (0, 1)] {
        let (mut updates, mut replaced) = (vec![MmuUpdate::EMPTY; places], vec![0; old]);
        let (mut ops, mut runs) = ([MmuExtOp::EMPTY; 1], BatchRuns::new());
        let mut batch = Batch::within(&mut updates, &mut replaced, &mut ops, &mut runs);
        assert_eq!(batch.updates_max(), places.min(old));
        let pushed = (0..9).take_while(|&n| batch.update(MmuUpdate::EMPTY, n).is_ok());
        assert_eq!(pushed.count(), places.min(old));
    }
}

#[test]
fn a_refusal_is_put_in_words() {
    assert_eq!(Full.to_string(), "the batch is full: submit it, or give it more storage");
    let error = Error { hypercall: Hypercall::MmuUpdate, errno: Errno::EBUSY, done: 2 };
    let alone = BatchError { request: 0, requests: 1, error, flag: None };
    assert_eq!(alone.to_string(), error.to_string());
    let error = Error { hypercall: Hypercall::MmuExtOp, errno: Errno::EINVAL, done: 0 };
    assert_eq!(
        BatchError { request: 1, requests: 2, error, flag: None }.to_string(),
        "mmuext_op refused: EINVAL (-22) (request 2 of 2)"
    );
    let flag = Some(RefusableFlag::NoExecute);
    assert_eq!(
        BatchError { request: 1, requests: 2, error, flag }.to_string(),
        "mmuext_op refused: EINVAL (-22): the entry asks for NO_EXECUTE, which this CPU does not \
         have (request 2 of 2)"
    );
}

/// The frames of a machine that has none.
macro_rules! no_frames {
    ($machine:ty) => {
        // SAFETY: the machine has no memory that Rust knows of, and no access is made.
        unsafe impl FrameAccess for $machine {
            fn read_entry(&self, table: Pfn, _: PageTableIndex) -> Result<Pte, AccessError> {
                Err(AccessError::Unmapped(table))
            }

            unsafe fn write_entry(
                &self,
                pfn: Pfn,
                _: PageTableIndex,
                _: Pte,
            ) -> Result<(), AccessError> {
                Err(AccessError::Unmapped(pfn))
            }

            fn read_bytes(&self, pfn: Pfn, _: usize, _: &mut [u8]) -> Result<(), AccessError> {
                Err(AccessError::Unmapped(pfn))
            }

            unsafe fn write_bytes(&self, pfn: Pfn, _: usize, _: &[u8]) -> Result<(), AccessError> {
                Err(AccessError::Unmapped(pfn))
            }

            fn machine_to_phys(&self, _: Mfn) -> Option<Pfn> {
                None
            }

            fn direct_map(&self, pfn: Pfn) -> Result<GuestVa, AccessError> {
                Err(AccessError::Unmapped(pfn))
            }
        }
    };
}

no_frames!(Scripted);
no_frames!(Reading);
