//! A vCPU that got only a kernel root (its user root and the way back were refused) asks for a
//! third address space. Until that is answered it runs on the second one, and counts for it.
#![expect(unsafe_code, reason = "loads roots of a test that exists only in the model")]
mod common;

use core::cell::RefCell;

use common::{TestGuest, build, guest, page, tools};
use hypercall::middleware::{FailNth, Refusal};
use hypercall::{BatchStorage, Errno, VcpuSet};
use pv_tests::meanwhile::Meanwhile;
use pvmmu::{Pages, Pgd, Running, TablePool, Tools, Vcpus};
use xen_model::Mode;

const fn refuse(request: u64, done: usize) -> Refusal {
    Refusal { request, errno: Errno::ENOMEM, done }
}

#[test]
fn a_vcpu_counts_for_the_root_it_runs_on_until_another_load_is_answered() {
    let test = TestGuest::new();
    let (p2m, mut pool) = (test.p2m(), test.pool());
    let second = test.second();
    second.initialise(test.model.guest().kernel_root().expect("it runs"), None).expect("started");
    let plain = guest(&test, &test.model, &p2m);
    let on_second = guest(&test, &second, &p2m);
    let mut storage = BatchStorage::<40, 8>::new();
    let mut batch = storage.batch();
    let c = Pgd::new(&mut Tools::new(plain, &mut pool))
        .expect("a root")
        .pin(&plain, &mut batch)
        .expect("pinned");
    let a = Pgd::new(&mut Tools::new(plain, &mut pool))
        .expect("a root")
        .pin(&plain, &mut batch)
        .expect("pinned");
    let b = build(&plain, 4, &mut pool).pin(&plain, &mut batch).expect("pinned");
    let places = [const { Running::nowhere() }; 2];
    // SAFETY: every load of the test goes through these places.
    let vcpus = unsafe { Vcpus::new(&places) };
    // SAFETY: the model's test has no Rust objects; this is the second vCPU.
    unsafe { vcpus.load(&on_second, 1, &c) }.expect("loaded");
    // B's kernel root is taken, its user root is refused, and so is the way back to C.
    let machine = FailNth::new(&second, refuse(0, 1));
    let machine = FailNth::new(&machine, refuse(1, 0));
    // SAFETY: the model's test has no Rust objects; this is the second vCPU.
    unsafe { vcpus.load(&guest(&test, &machine, &p2m), 1, &b) }.expect_err("refused");
    assert_eq!(second.kernel_root(), p2m.mfn(b.root()).ok());
    assert!(second.store(page(0).raw(), &[1], Mode::Kernel).is_ok(), "it uses B's page");
    assert!(!vcpus.on(&b).is_empty());
    // Now it asks for A, and meanwhile vCPU 0 unmaps that page of B. A is refused.
    let b = RefCell::new(b);
    let work = RefCell::new((batch, pool));
    let once = RefCell::new(true);
    let seen = RefCell::new(Vec::new());
    let what = || {
        if !once.replace(false) {
            return;
        }
        seen.borrow_mut().push(vcpus.on(&b.borrow()));
        let (batch, pool) = &mut *work.borrow_mut();
        let free = pool.len();
        let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
        let mut with = tools(&plain, batch, &mut tables, pool).tracked(vcpus);
        b.borrow_mut().unmap(&mut with, Pages::one(page(0))).expect("unmapped");
        assert_eq!(with.frames.source.len(), free + 1, "its frame is free");
    };
    let machine = FailNth::new(&second, refuse(0, 0));
    let machine = Meanwhile::new(&machine, &what);
    // SAFETY: the model's test has no Rust objects; this is the second vCPU.
    unsafe { vcpus.load(&guest(&test, &machine, &p2m), 1, &a) }.expect_err("refused");
    assert_eq!(*seen.borrow(), [VcpuSet::one(1)], "it has not left B yet");
    let _ = second.store(page(0).raw(), &[1], Mode::Kernel);
    assert_eq!(test.model.take_violations(), Vec::<String>::new());
}
