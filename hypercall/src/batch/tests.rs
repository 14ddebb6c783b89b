//! A batch against a machine that refuses what the test tells it to.
#![expect(unsafe_code, reason = "submitting is unsafe; the machine of these tests has no memory")]

use core::cell::RefCell;

use x86_64::VirtAddr;

use super::*;
use crate::error::{Errno, Hypercall};
use crate::frame::Mfn;
use crate::machine::Assist;
use crate::memory::MemoryOp;
use crate::op::VaFlush;

/// Answers request `k` of an issue with `answers[k]`, or `Done`; keeps what it was asked.
#[derive(Default)]
struct Scripted {
    answers: Vec<Outcome>,
    whole: Option<Error>,
    asked: RefCell<Vec<String>>,
}

impl Hypercalls for Scripted {
    unsafe fn issue(&self, calls: &mut [Call<'_>]) -> Result<(), Error> {
        if let Some(error) = self.whole {
            return Err(error);
        }
        for (k, call) in calls.iter_mut().enumerate() {
            call.outcome = self.answers.get(k).copied().unwrap_or(Outcome::Done);
            self.asked.borrow_mut().push(format!(
                "{} x{}",
                call.request.hypercall(),
                call.request.len()
            ));
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

fn update(number: u64) -> MmuUpdate {
    MmuUpdate::from_raw(number << 12, number)
}

fn va(number: u64) -> VaMapping {
    VaMapping { va: VirtAddr::new(number << 12), pte: Pte::ABSENT, flush: VaFlush::None }
}

fn submit(batch: &mut Batch<'_>, machine: &Scripted) -> Result<(), BatchError> {
    // SAFETY: the scripted machine changes nothing.
    unsafe { batch.submit(machine) }
}

#[test]
fn neighbours_of_one_kind_and_domain_form_one_request() -> Result<(), Full> {
    let mut storage = BatchStorage::<8, 4>::new();
    let mut batch = storage.batch();
    batch.update(update(1), 0)?;
    batch.update(update(2), 0)?;
    batch.update_for(update(3), 0, Domains::frames_of(DomId::IO))?;
    batch.op(MmuExtOp::unpin(Mfn::new(4)))?;
    batch.op(MmuExtOp::tlb_flush_local())?;
    batch.va_mapping(va(5), Pte::ABSENT)?;
    batch.va_mapping(va(6), Pte::ABSENT)?;
    batch.update(update(7), 0)?;
    let machine = Scripted::default();
    assert_eq!(submit(&mut batch, &machine), Ok(()));
    assert_eq!(
        machine.asked.into_inner(),
        [
            "mmu_update x2",
            "mmu_update x1",
            "mmuext_op x2",
            "update_va_mapping x1",
            "update_va_mapping x1",
            "mmu_update x1"
        ]
    );
    assert!(batch.is_empty(), "a batch is empty after success");
    Ok(())
}

#[test]
fn a_full_batch_takes_nothing_and_forgets_nothing() -> Result<(), Full> {
    let mut storage = BatchStorage::<2, 1>::new();
    let mut batch = storage.batch();
    batch.update(update(1), 0)?;
    batch.update(update(2), 0)?;
    assert_eq!(batch.update(update(3), 0), Err(Full));
    batch.op(MmuExtOp::tlb_flush_local())?;
    assert_eq!(batch.op(MmuExtOp::tlb_flush_local()), Err(Full));
    for number in 0..CALLS_MAX as u64 - 2 {
        batch.va_mapping(va(number), Pte::ABSENT)?;
    }
    assert_eq!(batch.va_mapping(va(99), Pte::ABSENT), Err(Full));
    assert_eq!(batch.requests(), CALLS_MAX);
    Ok(())
}

#[test]
fn a_refusal_names_the_request_and_what_took_effect() -> Result<(), Full> {
    let mut storage = BatchStorage::<8, 4>::new();
    let mut batch = storage.batch();
    for number in 1..=3 {
        batch.update(update(number), 0)?;
    }
    batch.op(MmuExtOp::unpin(Mfn::new(4)))?;
    batch.va_mapping(va(5), Pte::ABSENT)?;
    let machine = Scripted {
        answers: vec![Outcome::Refused { errno: Errno::EBUSY, done: 2 }],
        ..Scripted::default()
    };
    let error = Error { hypercall: Hypercall::MmuUpdate, errno: Errno::EBUSY, done: 2 };
    assert_eq!(submit(&mut batch, &machine), Err(BatchError { request: 0, requests: 3, error }));
    let applied: Vec<_> = batch.applied().collect();
    assert_eq!(
        applied,
        [
            Element::Update(update(1)),
            Element::Update(update(2)),
            Element::Op(MmuExtOp::unpin(Mfn::new(4))),
            Element::Va(va(5)),
        ],
        "a multicall goes on behind a refused request"
    );
    Ok(())
}

#[test]
fn an_inverted_batch_puts_back_what_took_effect_last_one_first() -> Result<(), Full> {
    let mut storage = BatchStorage::<8, 4>::new();
    let mut batch = storage.batch();
    for number in 1..=3 {
        batch.update(update(number), 100 + number)?;
    }
    batch.op(MmuExtOp::unpin(Mfn::new(4)))?;
    batch.va_mapping(va(5), Pte::from_raw(105))?;
    let refused = Outcome::Refused { errno: Errno::EINVAL, done: 2 };
    let machine = Scripted { answers: vec![refused], ..Scripted::default() };
    assert!(submit(&mut batch, &machine).is_err());
    batch.invert();
    batch.op(MmuExtOp::tlb_flush_local())?;
    assert_eq!(
        format!("{batch:?}"),
        "[VaMapping(VaMapping { va: VirtAddr(0x5000), pte: pte 0000000000000069, flush: None }), \
         MmuUpdate([set 2000 := 0000000000000066, set 1000 := 0000000000000065], \
         Domains { frames: DomId(32752), tables: None }), MmuExt([ext 6 0 0], DomId(32752))]"
    );
    Ok(())
}

#[test]
fn a_refused_multicall_is_an_error_even_if_no_request_ran() -> Result<(), Full> {
    let mut storage = BatchStorage::<8, 4>::new();
    let mut batch = storage.batch();
    batch.update(update(1), 0)?;
    batch.op(MmuExtOp::tlb_flush_local())?;
    let error = Error { hypercall: Hypercall::Multicall, errno: Errno::EFAULT, done: 0 };
    let machine = Scripted { whole: Some(error), ..Scripted::default() };
    assert_eq!(submit(&mut batch, &machine), Err(BatchError { request: 0, requests: 2, error }));
    assert_eq!(batch.applied().count(), 0);
    Ok(())
}

#[test]
fn the_error_reads_as_a_sentence() {
    let error = Error { hypercall: Hypercall::MmuExtOp, errno: Errno::EINVAL, done: 0 };
    assert_eq!(
        BatchError { request: 1, requests: 2, error }.to_string(),
        "mmuext_op refused: EINVAL (-22) (request 2 of 2)"
    );
}
