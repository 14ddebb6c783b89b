//! Numbers that someone else may change while they are read: a version tells.

#[cfg(not(loom))]
use core::sync::atomic::{Ordering, fence};
#[cfg(loom)]
use loom::sync::atomic::{Ordering, fence};

/// Returns what `read` sees, if nobody has changed it meanwhile. Whoever changes it makes the
/// version odd before and even after, with barriers in between.
///
/// `version` loads the version with the ordering that it is given.
pub(crate) fn unchanged<T>(
    version: impl Fn(Ordering) -> u32,
    read: impl FnOnce() -> T,
) -> Option<T> {
    // What is read belongs to this version, or to a later one.
    let before = version(Ordering::Acquire);
    let value = read();
    // If any of it belongs to a later one, so does the version that is seen from here on.
    fence(Ordering::Acquire);
    // Relaxed: the fence says all.
    let is_same = before == version(Ordering::Relaxed);
    (is_same && before & 1 == 0).then_some(value)
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU32, AtomicU64};
    use loom::thread;

    use super::*;

    /// A version, and two numbers that belong together.
    #[derive(Default)]
    struct Clock {
        version: AtomicU32,
        numbers: [AtomicU64; 2],
    }

    impl Clock {
        /// Changes the clock as Xen does (`__update_vcpu_system_time`).
        fn change(&self) {
            self.version.store(1, Ordering::Relaxed);
            fence(Ordering::Release);
            self.numbers.iter().for_each(|number| number.store(7, Ordering::Relaxed));
            self.version.store(2, Ordering::Release);
        }
    }

    #[test]
    fn numbers_of_two_versions_are_never_taken_together() {
        loom::model(|| {
            let clock = Arc::new(Clock::default());
            let xen = Arc::clone(&clock);
            let xen = thread::spawn(move || xen.change());
            let read = || clock.numbers.each_ref().map(|number| number.load(Ordering::Relaxed));
            let taken = unchanged(|order| clock.version.load(order), read);
            assert!(taken.is_none_or(|[one, other]| one == other), "two versions: {taken:?}");
            xen.join().expect("no panic");
        });
    }
}
