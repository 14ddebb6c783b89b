//! Two vCPUs on one address space, on the model.
#![expect(unsafe_code, reason = "loads roots; no Rust object lives in the model's test")]

mod common;

use common::tables::check_marks;
use common::{TestGuest, build, guest, page, tools};
use hypercall::middleware::{Counting, FailNth, Refusal};
use hypercall::{BatchStorage, Errno, PteFlags, VcpuSet};
use pvmmu::flush::Reach;
use pvmmu::{
    DestroyError, Pages, Pgd, PinFailure, Pinned, Running, TablePool, Tools, Vcpus, load_root,
};
use xen_model::Mode;

const READ_ONLY: PteFlags = PteFlags::USER_RW.difference(PteFlags::WRITABLE);

/// A test whose second vCPU runs on `pgd`; the first one does not.
struct Scene {
    test: TestGuest,
    places: [Running; 2],
}

impl Scene {
    fn new() -> Self {
        let test = TestGuest::new();
        let second = test.second();
        let root = test.model.guest().kernel_root().expect("it runs");
        second.initialise(root, None).expect("started");
        Self { test, places: [const { Running::nowhere() }; 2] }
    }

    fn vcpus(&self) -> Vcpus<'_> {
        // SAFETY: every load of the test goes through these places.
        unsafe { Vcpus::new(&self.places) }
    }

    fn enter(&self, pgd: &Pgd<Pinned>) {
        let (p2m, second) = (self.test.p2m(), self.test.second());
        let guest = guest(&self.test, &second, &p2m);
        // SAFETY: the model's test has no Rust objects; this is the second vCPU.
        unsafe { self.vcpus().load(&guest, 1, pgd) }.expect("loaded");
    }

    fn leave(&self) {
        let (p2m, second) = (self.test.p2m(), self.test.second());
        let guest = guest(&self.test, &second, &p2m);
        // SAFETY: as above.
        unsafe { self.vcpus().leave(&guest, 1) }.expect("left");
    }

    fn writes(&self) -> bool {
        self.test.second().store(page(0).raw(), &[1], Mode::Kernel).is_ok()
    }
}

#[test]
fn a_tree_that_another_vcpu_runs_on_is_not_destroyed_and_xen_is_not_asked() {
    let scene = Scene::new();
    let (test, p2m, mut pool) = (&scene.test, scene.test.p2m(), scene.test.pool());
    let free = pool.len();
    let counting = Counting::new(&test.model);
    let guest = guest(test, &counting, &p2m);
    let mut storage = BatchStorage::<40, 8>::new();
    let mut batch = storage.batch();
    let pgd = build(&guest, 16, &mut pool).pin(&guest, &mut batch).expect("pinned");
    scene.enter(&pgd);
    let vcpus = scene.vcpus();
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
    let before = counting.counts();
    let error = vcpus.destroy(pgd, &mut with).expect_err("it is in use");
    assert_eq!(counting.counts(), before);
    assert!(matches!(error, DestroyError::Running(_, set) if set == VcpuSet::one(1)), "{error}");
    assert!(error.to_string().contains("vCPUs 1 run on root pfn"), "{error}");
    assert!(scene.writes());
    scene.leave();
    let pgd = error.into_pgd().expect("it is there");
    vcpus.destroy(pgd, &mut with).expect("nobody runs on it");
    assert_eq!(pool.len(), free);
    test.check();
}

#[test]
fn a_vcpu_that_got_only_a_kernel_root_counts_for_the_user_roots_address_space_too() {
    let test = TestGuest::new();
    let (p2m, mut pool) = (test.p2m(), test.pool());
    let plain = guest(&test, &test.model, &p2m);
    let mut storage = BatchStorage::<40, 8>::new();
    let mut batch = storage.batch();
    let [one, other] = [(); 2].map(|()| {
        let pgd = Pgd::with_user_root(&mut Tools::new(plain, &mut pool)).expect("two roots");
        pgd.pin(&plain, &mut batch).expect("pinned")
    });
    let places = [Running::nowhere()];
    // SAFETY: every load of the test goes through these places.
    let vcpus = unsafe { Vcpus::new(&places) };
    // SAFETY: the model's test has no Rust objects.
    unsafe { vcpus.load(&plain, 0, &one) }.expect("loaded");
    for done in [1, 0] {
        let refusal = |request, done| Refusal { request, errno: Errno::ENOMEM, done };
        let machine = FailNth::new(&test.model, refusal(0, done));
        // And the way back, if it is asked for.
        let machine = FailNth::new(&machine, refusal(1, 0));
        let around = guest(&test, &machine, &p2m);
        // SAFETY: as above.
        unsafe { vcpus.load(&around, 0, &other) }.expect_err("refused");
        assert!(!vcpus.on(&one).is_empty(), "its user root is loaded");
        assert!(!vcpus.on(&other).is_empty(), "its kernel root is");
    }
    // SAFETY: as above.
    unsafe { vcpus.load(&plain, 0, &other) }.expect("loaded");
    assert!(vcpus.on(&one).is_empty());
    // SAFETY: as above.
    unsafe { vcpus.leave(&plain, 0) }.expect("left");
    for pgd in [one, other] {
        let loose = pgd.unpin(&plain, &mut batch).expect("nobody runs on it");
        common::destroy(&plain, loose, &mut pool);
    }
    test.check();
}

/// Batches that hold one table, all, and everything between: each remainder of the undo.
#[test]
fn unpinning_a_tree_that_another_vcpu_runs_on_is_refused_and_undone_at_every_batch_length() {
    let mut storage = BatchStorage::<12, 8>::new();
    for length in 1..=12 {
        let scene = Scene::new();
        let (test, p2m, mut pool) = (&scene.test, scene.test.p2m(), scene.test.pool());
        let guest = guest(test, &test.model, &p2m);
        let mut batch = storage.batch_of(length, 8);
        let mut pgd = build(&guest, 16, &mut pool).pin(&guest, &mut batch).expect("pinned");
        let tables = pgd.tables(&guest).expect("readable");
        assert!(tables < 12, "a batch that holds them all is among the lengths");
        if length % 2 == 0 {
            let _ = pgd.hold_l1_tables(&guest, &mut batch).expect("held");
        }
        scene.enter(&pgd);
        let error = pgd.unpin(&guest, &mut batch).expect_err("it is in use");
        assert_eq!(error.undo, Ok(()), "{error}");
        let PinFailure::Protect { error: refusal, .. } = error.failure else { panic!("{error}") };
        assert_eq!(refusal.errno, Errno::EBUSY);
        assert!(scene.writes(), "the other vCPU goes on");
        test.check();
        scene.leave();
        let loose = error.pgd.unpin(&guest, &mut batch).expect("nobody runs on it");
        common::destroy(&guest, loose, &mut pool);
        test.check();
    }
}

#[test]
fn a_change_reaches_the_vcpus_that_run_on_the_tree_and_no_others() {
    let scene = Scene::new();
    let (test, p2m, mut pool) = (&scene.test, scene.test.p2m(), scene.test.pool());
    let guest = guest(test, &test.model, &p2m);
    let mut storage = BatchStorage::<40, 8>::new();
    let mut batch = storage.batch();
    let mut pgd = build(&guest, 16, &mut pool).pin(&guest, &mut batch).expect("pinned");
    scene.enter(&pgd);
    assert!(scene.writes());
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
    // SAFETY: the page and its frame stay; the model sees what is stale.
    unsafe { with.set_reach(Reach::Local) };
    pgd.protect(&mut with, Pages::one(page(0)), READ_ONLY).expect("protected");
    assert!(!scene.writes(), "the model does not let a stale translation through");
    let stale = test.model.take_violations();
    assert!(stale.iter().any(|line| line.starts_with("stale translation: store")), "{stale:?}");
    pgd.protect(&mut with, Pages::one(page(0)), PteFlags::USER_RW).expect("writable");
    assert!(scene.writes());
    let vcpus = scene.vcpus();
    assert_eq!(vcpus.on(&pgd), VcpuSet::one(1));
    let mut with = with.tracked(vcpus);
    pgd.protect(&mut with, Pages::one(page(0)), READ_ONLY).expect("protected");
    assert!(!scene.writes());
    scene.leave();
    // SAFETY: the model's test has no Rust objects.
    unsafe { load_root(&guest, guest.kernel_root()) }.expect("the kernel's root");
    pgd.destroy(&mut with).expect("destroyed");
    test.check();
}

/// The other vCPU is in one of the tables all the while. Every request is refused in turn; a table
/// keeps or loses its pin, and never a page.
#[test]
fn tables_are_held_and_let_go_of_while_another_vcpu_is_in_them() {
    for (request, done) in (0..12).flat_map(|request| [0, 1].map(|done| (request, done))) {
        let scene = Scene::new();
        let (test, p2m, mut pool) = (&scene.test, scene.test.p2m(), scene.test.pool());
        let refusal = Refusal { request, errno: Errno::EINVAL, done };
        let machine = FailNth::new(&test.model, refusal);
        let (plain, around) = (guest(test, &test.model, &p2m), guest(test, &machine, &p2m));
        let mut storage = BatchStorage::<8, 8>::new();
        let mut batch = storage.batch();
        let mut pgd = build(&plain, 16, &mut pool).pin(&plain, &mut batch).expect("pinned");
        scene.enter(&pgd);
        assert!(scene.writes());
        let held = pgd.hold_l1_tables(&around, &mut batch);
        assert!(held.is_ok() || machine.has_refused(), "{held:?}");
        check_marks(test, pgd.root());
        assert!(scene.writes(), "request {request} refused after {done}");
        // All other pages of its own table, and of the one beside it.
        let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
        let mut with = tools(&around, &mut batch, &mut tables, &mut pool);
        let others = Pages { start: page(1), count: 15 };
        let unmapped = pgd.unmap(&mut with, others);
        assert!(unmapped.is_ok() || machine.has_refused(), "{unmapped:?}");
        assert!(scene.writes(), "request {request} refused after {done}");
        check_marks(test, pgd.root());
        test.check();
        scene.leave();
        let mut with = tools(&plain, &mut batch, &mut tables, &mut pool);
        pgd.destroy(&mut with).expect("nobody runs on it");
        test.check();
    }
}
