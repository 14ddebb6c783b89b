//! The root that a vCPU runs on, as others see it.

#[cfg(not(loom))]
use core::sync::atomic::{AtomicU64, Ordering};
#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};

use hypercall::Pfn;

/// A vCPU that runs on no address space of ours.
const NOBODY: u64 = u64::MAX;

/// The root that one vCPU runs on.
///
/// Whoever ends an address space reads the places of all vCPUs, and must come after everything that
/// they did there. So a vCPU releases what it did when it names another root, or none. The reader
/// acquires that before it reads the rest. It knows already that a vCPU was there: a load borrows
/// the address space, and its owner ends it. So nothing else needs an order.
#[derive(Debug)]
pub struct Running {
    /// The root last asked for, unless Xen refused it.
    asked: AtomicU64,
    /// The kernel root that Xen last loaded.
    kernel: AtomicU64,
    /// The address space whose roots Xen last loaded both.
    loaded: AtomicU64,
}

impl Running {
    /// Creates the place of a vCPU that runs on a root which is not a [`Pgd`](crate::Pgd).
    ///
    /// ```
    /// use pvmmu::Running;
    ///
    /// static RUNNING: [Running; 4] = [const { Running::nowhere() }; 4];
    /// # assert_eq!(RUNNING.len(), 4);
    /// ```
    #[cfg(not(loom))]
    #[must_use]
    pub const fn nowhere() -> Self {
        let [asked, kernel, loaded] = [const { AtomicU64::new(NOBODY) }; 3];
        Self { asked, kernel, loaded }
    }

    #[cfg(loom)]
    pub(crate) fn nowhere() -> Self {
        let [asked, kernel, loaded] = [(); 3].map(|()| AtomicU64::new(NOBODY));
        Self { asked, kernel, loaded }
    }

    /// Returns whether the vCPU runs on `root`, or is about to, or has not yet left it.
    pub(crate) fn on(&self, root: Pfn) -> bool {
        if self.asked.load(Ordering::Acquire) == root.raw() {
            return true;
        }
        // Relaxed: what Xen had loaded when another root was asked for came with that one.
        [&self.kernel, &self.loaded].iter().any(|word| word.load(Ordering::Relaxed) == root.raw())
    }

    /// Records that `root` is about to be loaded. Returns the one asked for before, if any.
    pub(crate) fn ask(&self, root: Pfn) -> Option<Pfn> {
        let before = self.asked.swap(root.raw(), Ordering::Release);
        (before != NOBODY).then_some(Pfn::new(before))
    }

    /// Records that the root that was asked for is loaded, with the user root.
    pub(crate) fn loaded(&self, root: Pfn) {
        // Relaxed: `ask` has released what was done before.
        self.kernel.store(root.raw(), Ordering::Relaxed);
        self.loaded.store(root.raw(), Ordering::Relaxed);
    }

    /// Records that the root that was asked for is loaded for the kernel, and that the user root
    /// and the way back were refused.
    pub(crate) fn loaded_half(&self, root: Pfn) {
        // Relaxed: until another one is asked for, this one is.
        self.kernel.store(root.raw(), Ordering::Relaxed);
    }

    /// Records that Xen refused what was asked for: the vCPU is where it was `before`.
    pub(crate) fn refused(&self, before: Option<Pfn>) {
        self.asked.store(before.map_or(NOBODY, Pfn::raw), Ordering::Release);
    }

    /// Records that the vCPU runs on no address space of ours.
    pub(crate) fn left(&self) {
        // Relaxed: what follows releases what was done.
        self.kernel.store(NOBODY, Ordering::Relaxed);
        self.loaded.store(NOBODY, Ordering::Relaxed);
        self.asked.store(NOBODY, Ordering::Release);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    /// A vCPU, and memory that it can reach under root A.
    struct Scene {
        running: Running,
        memory: UnsafeCell<u64>,
    }

    const A: Pfn = Pfn::new(0xa);
    const B: Pfn = Pfn::new(0xb);
    const C: Pfn = Pfn::new(0xc);

    /// A vCPU that runs on A, as whoever ends A knows, writes to its memory and does `then`; the
    /// other one ends A if nobody runs on it, and the memory is someone else's.
    fn end_while(enter: fn(&Running), then: fn(&Running)) {
        loom::model(move || {
            let scene = Scene { running: Running::nowhere(), memory: UnsafeCell::new(0) };
            enter(&scene.running);
            let scene = Arc::new(scene);
            let vcpu = Arc::clone(&scene);
            let vcpu = thread::spawn(move || {
                vcpu.memory.with_mut(|_| {});
                then(&vcpu.running);
            });
            if !scene.running.on(A) {
                // The checker finds two that have the memory at once.
                scene.memory.with_mut(|_| {});
            }
            vcpu.join().expect("no panic");
            assert!(!scene.running.on(A), "it has left");
        });
    }

    fn run_on_a(running: &Running) {
        running.ask(A);
        running.loaded(A);
    }

    /// On B, and then on A's kernel root with B's user root.
    fn half_on_a(running: &Running) {
        running.ask(B);
        running.loaded(B);
        running.ask(A);
        running.loaded_half(A);
    }

    #[test]
    fn what_a_vcpu_did_before_it_left_is_done_when_it_is_seen_to_have_left() {
        end_while(run_on_a, Running::left);
    }

    #[test]
    fn what_a_vcpu_did_before_it_went_elsewhere_is_done_when_it_is_seen_there() {
        end_while(run_on_a, |running| {
            running.ask(B);
            running.loaded(B);
        });
    }

    /// Xen took the kernel root alone, and refused the way back.
    #[test]
    fn what_a_vcpu_did_on_half_a_load_is_done_when_it_is_seen_to_have_left() {
        end_while(half_on_a, Running::left);
    }

    /// It asks for a third one, and that is not yet answered.
    #[test]
    fn a_vcpu_counts_for_the_root_of_half_a_load_until_another_load_is_answered() {
        loom::model(|| {
            let running = Arc::new(Running::nowhere());
            half_on_a(&running);
            let vcpu = Arc::clone(&running);
            let vcpu = thread::spawn(move || vcpu.ask(C));
            assert!(running.on(A) && running.on(B), "it has both until Xen has answered");
            vcpu.join().expect("no panic");
            assert!(running.on(A) && running.on(B) && running.on(C));
        });
    }

    #[test]
    fn what_a_vcpu_did_on_half_a_load_is_done_when_it_is_seen_elsewhere() {
        end_while(half_on_a, |running| {
            running.ask(C);
            running.loaded(C);
        });
    }

    #[test]
    fn what_a_vcpu_did_before_it_went_elsewhere_is_done_after_a_refused_load_too() {
        end_while(run_on_a, |running| {
            running.ask(B);
            running.loaded(B);
            let before = running.ask(C);
            running.refused(before);
        });
    }

    #[test]
    fn a_vcpu_whose_load_is_refused_counts_where_it_was() {
        loom::model(|| {
            let running = Arc::new(Running::nowhere());
            run_on_a(&running);
            let vcpu = Arc::clone(&running);
            let vcpu = thread::spawn(move || {
                let before = vcpu.ask(B);
                vcpu.refused(before);
            });
            assert!(running.on(A), "it never leaves");
            vcpu.join().expect("no panic");
            assert!(running.on(A) && !running.on(B));
        });
    }
}
