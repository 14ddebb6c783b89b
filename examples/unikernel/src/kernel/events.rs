//! Events: Xen interrupts vCPU 0, the handler notes that something happened, and whoever waits
//! looks for what it was. The handler takes no lock, allocates nothing and touches no ring, so that
//! no code has to fear it.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use hypercall::Error;
use hypercall::shared_info::{SharedInfo, VcpuInfo};
use hypercall::xen::Xen;

/// The page in which Xen raises events, while it is mapped.
static SHARED: AtomicPtr<SharedInfo> = AtomicPtr::new(ptr::null_mut());
/// What [`wait_for`] waits at most, in nanoseconds: an event may have been cleared by the upcall.
const POLL_MAX: u64 = 10_000_000;

/// An event came since someone last began to wait.
static HAPPENED: AtomicBool = AtomicBool::new(false);

fn shared() -> Option<&'static SharedInfo> {
    // SAFETY: null, or what `listen` was given: a page that stays mapped until `deafen`, which says
    // what its caller owes.
    unsafe { SHARED.load(Ordering::Acquire).as_ref() }
}

/// Where vCPU 0's events are masked.
const fn vcpu(shared: &SharedInfo) -> &VcpuInfo {
    &shared.vcpus[0]
}

/// Listens to the events of a page, on these ports and no others.
///
/// # Errors
/// A port that is none.
///
/// # Safety
/// The page stays mapped until [`deafen`].
pub(super) unsafe fn listen(page: NonNull<SharedInfo>, ports: &[u32]) -> Result<(), Error> {
    SHARED.store(page.as_ptr(), Ordering::Release);
    // SAFETY: by the caller's word.
    let shared = unsafe { page.as_ref() };
    for mask in &shared.mask {
        mask.store(u64::MAX, Ordering::SeqCst);
    }
    for port in ports {
        Xen::unmask(*port)?;
    }
    // Whoever waits next looks at everything once.
    HAPPENED.store(true, Ordering::SeqCst);
    unmask(shared);
    Ok(())
}

/// Listens no more. The page may be unmapped afterwards, if nobody has a reference to it.
pub(super) fn deafen() {
    if let Some(shared) = shared() {
        vcpu(shared).upcall_mask.store(1, Ordering::SeqCst);
        SHARED.store(ptr::null_mut(), Ordering::Release);
    }
}

/// Lets events in again, and the ones that are pending.
fn unmask(shared: &SharedInfo) {
    vcpu(shared).upcall_mask.store(0, Ordering::SeqCst);
    if vcpu(shared).upcall_pending.load(Ordering::SeqCst) != 0 {
        // Xen looks for pending events on the way back from every hypercall.
        Xen::yield_now();
    }
}

/// Sleeps until an event came since the last time, or until `deadline` in nanoseconds of Xen's
/// clock. Whoever calls this looks afterwards at all that an event may have been for.
pub(super) fn wait(deadline: u64) -> Result<(), Error> {
    let Some(shared) = shared() else { return Ok(()) };
    // Between the look and the sleep no event may slip through.
    vcpu(shared).upcall_mask.store(1, Ordering::SeqCst);
    if HAPPENED.load(Ordering::SeqCst) {
        unmask(shared);
    } else {
        Xen::set_timer(deadline)?;
        Xen::block();
    }
    HAPPENED.store(false, Ordering::SeqCst);
    Ok(())
}

/// Waits for an event of `port` alone, if that is possible now, and lets others run if it is not.
/// It may return early. The console uses it when its ring is full, also in the middle of a panic.
pub(super) fn wait_for(port: u32) {
    let Some(shared) = shared() else { return Xen::yield_now() };
    let Some(word) = shared.pending.get(port as usize / 64) else { return Xen::yield_now() };
    // The upcall clears the bit, too; what it was for is what the caller looks at in any case.
    if word.fetch_and(!(1 << (port % 64)), Ordering::SeqCst) >> (port % 64) & 1 == 0 {
        let deadline = now(shared).map_or(1, |now| now + POLL_MAX);
        if Xen::poll(port, deadline).is_err() {
            Xen::yield_now();
        }
    }
}

/// Nanoseconds since Xen started.
pub(super) fn now(shared: &SharedInfo) -> Option<u64> {
    // SAFETY: reading the time-stamp counter has no other effect, and Xen allows it.
    vcpu(shared).time.nanoseconds(|| unsafe { core::arch::x86_64::_rdtsc() })
}

/// The handler: notes that something happened, and clears what said so.
pub(super) fn upcall() {
    let Some(shared) = shared() else { return };
    let vcpu = vcpu(shared);
    vcpu.upcall_pending.store(0, Ordering::SeqCst);
    let mut words = vcpu.pending_words.swap(0, Ordering::SeqCst);
    while words != 0 {
        let at = words.trailing_zeros() as usize;
        words &= words - 1;
        let masked = shared.mask[at].load(Ordering::SeqCst);
        shared.pending[at].fetch_and(masked, Ordering::SeqCst);
    }
    HAPPENED.store(true, Ordering::SeqCst);
}
