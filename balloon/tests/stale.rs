//! What a second vCPU, which used a frame before, still has of it in its TLB: nothing, once the
//! frame has left.

mod common;

use balloon::{Moved, Next, StepStorage, Wipe};
use common::{FREE, Guest, PAGES, Stack, VIRT_BASE, begin, config, settle, step, words};
use hypercall::memory::{Extent, MemoryOp, Reservation};
use hypercall::middleware::{FailNth, Refusal};
use hypercall::{DomId, Errno, Hypercalls as _, PAGE_SHIFT, Pfn};
use xen_model::{DomainConfig, Mode, Model, Role};

type Storage = StepStorage<64>;

/// A guest of two vCPUs beside a dom0.
fn guest() -> Guest {
    let mut config = config();
    config.vcpus = 2;
    let dom0 = DomainConfig::new(Role::Dom0, 1024);
    Guest::of(Model::builder().seed(5).guest(config).other(dom0))
}

/// The second vCPU, which runs on the same tables as the first.
fn second(guest: &Guest) -> xen_model::Vcpu<'_> {
    let first = guest.model.guest();
    let second = guest.model.vcpu(first.domain(), 1).expect("two vCPUs");
    second.initialise(first.kernel_root().expect("a root"), None).expect("not running yet");
    second
}

/// Reads and writes pages through the direct mapping, as a stray pointer would. How many of them
/// are there.
fn touch(vcpu: &xen_model::Vcpu<'_>, pfns: &[Pfn]) -> usize {
    let touched = pfns.iter().map(|pfn| VIRT_BASE + (pfn.raw() << PAGE_SHIFT));
    let touched = touched.filter(|va| {
        let read = vcpu.load(*va, &mut [0; 8], Mode::Kernel);
        read.and(vcpu.store(*va, &[1; 8], Mode::Kernel)).is_ok()
    });
    touched.count()
}

/// The frames that leave first.
fn top(stack: &Stack, count: usize) -> Vec<Pfn> {
    stack.0.iter().rev().take(count).map(|frame| frame.pfn()).collect()
}

/// No vCPU used what the tables no longer say.
fn check(guest: &Guest) {
    assert_eq!(guest.model.take_violations(), Vec::<String>::new());
}

#[test]
fn a_frame_that_has_left_is_in_no_tlb_of_any_vcpu() {
    let guest = guest();
    let second = second(&guest);
    let (mut words, mut stack) = (words(), guest.stack());
    let mut balloon = begin(&guest, &mut words, Wipe::Never);
    let pfns = top(&stack, 200);
    assert_eq!(touch(&second, &pfns), 200);
    balloon.set_target(PAGES - 150);
    let mut left = 0;
    loop {
        let around = guest.around();
        let out = step(around, &mut balloon, &mut stack, &mut Storage::new());
        let Moved::Out(frames) = out.moved else { panic!("{out:?}") };
        left += usize::try_from(frames).expect("few");
        assert_eq!(touch(&second, &pfns), 200 - left);
        check(&guest);
        if out.next == Next::Idle {
            break;
        }
    }
    assert_eq!(left, 150);
    guest.check();
}

#[test]
fn a_pfn_that_comes_back_with_another_frame_is_read_through_its_new_entry() {
    let guest = guest();
    let second = second(&guest);
    let (mut words, mut stack) = (words(), guest.stack());
    let mut balloon = begin(&guest, &mut words, Wipe::Never);
    let pfns = top(&stack, 100);
    let before: Vec<_> = pfns.iter().map(|pfn| guest.p2m.mfn(*pfn)).collect();
    for target in [PAGES - 100, PAGES] {
        touch(&second, &pfns);
        balloon.set_target(target);
        let around = guest.around();
        let last = settle(around, &mut balloon, &mut stack, &mut Storage::new());
        assert_eq!(last.next, Next::Idle);
    }
    let moved = pfns.iter().zip(&before).filter(|(pfn, mfn)| guest.p2m.mfn(**pfn) != **mfn).count();
    assert!(moved > 0, "none has another frame");
    assert_eq!(touch(&second, &pfns), 100);
    check(&guest);
    guest.check();
}

#[test]
fn a_frame_that_comes_back_after_a_refusal_is_where_every_vcpu_thinks_it_is() {
    for (request, done) in [(0, 0), (0, 7), (1, 0), (2, 0), (2, 7)] {
        let guest = guest();
        let second = second(&guest);
        let (mut words, mut stack) = (words(), guest.stack());
        let mut balloon = begin(&guest, &mut words, Wipe::Never);
        let pfns = top(&stack, 20);
        touch(&second, &pfns);
        balloon.set_target(PAGES - 20);
        let machine = FailNth::new(&guest.model, Refusal { request, errno: Errno::ENOMEM, done });
        let out = step(guest.on(&machine), &mut balloon, &mut stack, &mut Storage::new());
        let left = if request == 2 { done } else { 0 };
        assert_eq!(out.moved, if left == 0 { Moved::Nothing } else { Moved::Out(left as u64) });
        assert_eq!(touch(&second, &pfns), 20 - left, "request {request} after {done}");
        check(&guest);
        guest.check();
    }
}

#[test]
fn a_pfn_whose_frame_is_written_off_is_in_no_tlb_when_it_gets_another() {
    let guest = guest();
    let second = second(&guest);
    let (mut words, mut stack) = (words(), guest.stack());
    let mut balloon = begin(&guest, &mut words, Wipe::Never);
    let mut storage = Storage::new();
    // Some others are out, behind it, so that Xen has more than its frame to give.
    balloon.set_target(PAGES - 30);
    let last = settle(guest.around(), &mut balloon, &mut stack, &mut storage);
    assert_eq!(last.next, Next::Idle);
    let pfns = top(&stack, 1);
    let mfn = guest.p2m.mfn(pfns[0]).expect("RAM");
    touch(&second, &pfns);
    // The entry is cleared; the flush is refused, and so is the way back.
    let refusal = Refusal { request: 1, errno: Errno::ENOMEM, done: 0 };
    let inner = FailNth::new(&guest.model, refusal);
    let machine = FailNth::new(&inner, refusal);
    balloon.set_target(PAGES - 31);
    let out = step(guest.on(&machine), &mut balloon, &mut stack, &mut storage);
    assert_eq!((out.moved, out.accounts.set_aside), (Moved::Nothing, 1));
    assert!(inner.has_refused() && machine.has_refused());
    // A toolstack takes the frame, and the guest learns of it.
    let dom0 = guest.model.vcpu(0, 0).expect("dom0");
    let domain = DomId(guest.model.guest().domain());
    let mut extents = [Extent::from_mfn(mfn)];
    let list = Reservation { extents: &mut extents, order: 0, flags: 0, domain };
    #[expect(unsafe_code, reason = "only the model's memory is at stake")]
    // SAFETY: as the reason says.
    let taken = unsafe { dom0.memory_op(&mut MemoryOp::Decrease(list)) };
    assert_eq!(taken, Ok(1));
    let last = settle(guest.around(), &mut balloon, &mut stack, &mut storage);
    assert_eq!((last.next, last.accounts.set_aside), (Next::Idle, 0), "it is written off");
    balloon.set_target(PAGES - 30);
    let last = settle(guest.around(), &mut balloon, &mut stack, &mut storage);
    assert_eq!(last.next, Next::Idle);
    assert_ne!(guest.p2m.mfn(pfns[0]), Ok(mfn), "the pfn has another frame");
    assert_eq!((touch(&second, &pfns), stack.0.len() as u64), (1, FREE - 30));
    check(&guest);
    guest.check();
}
