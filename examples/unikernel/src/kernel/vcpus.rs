//! The second vCPU: a stack, exceptions and a `gs` base of its own, the kernel's root, and a place
//! where it finds what to do.
//!
//! The first vCPU posts a [`Job`] that lives on its stack, and takes no step out of the function
//! that holds it before the second one has put the place back to empty. Neither waits without
//! yielding to Xen, so that both make progress on a machine with one CPU.

use core::arch::asm;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use alloc::format;
use alloc::string::String;

use hypercall::xen::{VcpuContext, VcpuStart, Xen};
use hypercall::{Errno, GuestVa};

use super::boot::Early;
use super::{stack, traps};
use crate::program::{Second, Work};

/// The number of the second vCPU.
const SECOND: u32 = 1;

/// What `gs:0` shows on the second vCPU: its number.
static NUMBER: AtomicU64 = AtomicU64::new(SECOND as u64);

/// What the second vCPU is to do.
struct Job<'a> {
    work: &'a mut Work<'a, Xen>,
    xen: &'a Xen,
}

/// Where the two vCPUs meet.
struct Post {
    /// A [`Job`], or null: nothing to do.
    job: AtomicPtr<()>,
    /// Whether the next round of the job is its last.
    is_last: AtomicBool,
    /// Rounds that have ended, of all jobs.
    rounds: AtomicU64,
    /// Whether the second vCPU is to stop itself.
    goes_down: AtomicBool,
}

static POST: Post = Post {
    job: AtomicPtr::new(null_mut()),
    is_last: AtomicBool::new(false),
    rounds: AtomicU64::new(0),
    goes_down: AtomicBool::new(false),
};

/// The second vCPU, as the first one sees it.
pub(super) struct SecondVcpu<'a> {
    early: &'a Early,
    xen: &'a Xen,
}

impl<'a> SecondVcpu<'a> {
    /// It has not been started yet; none if the guest has one vCPU.
    pub(super) fn find(early: &'a Early, xen: &'a Xen) -> Option<Self> {
        Xen::vcpu_is_up(SECOND).is_ok().then_some(Self { early, xen })
    }

    fn initialise(&self) -> Result<(), String> {
        let root = self.early.p2m().mfn(self.early.root());
        let stack_top = GuestVa::new(stack::SECOND.top());
        let start = VcpuStart {
            entry: second_main,
            argument: u64::from(SECOND),
            stack_top: stack_top.map_err(|error| format!("its stack: {error}"))?,
            root: root.map_err(|error| format!("its root: {error}"))?,
            gs_base: &raw const NUMBER as u64,
        };
        let context = VcpuContext::new(start, &traps::table());
        // SAFETY: the stack is only its own, and like the rest of the kernel mapped by the root
        // that the kernel booted on; the handlers are those of the first vCPU.
        match unsafe { Xen::initialise_vcpu(SECOND, &context) } {
            // It has been up before, in this domain: after a restore it has not.
            Err(error) if error.errno == Errno::EEXIST => Ok(()),
            other => other.map_err(|error| format!("vCPU {SECOND}: {error}")),
        }
    }

    /// Posts a job, calls `meanwhile`, and waits until the job has had its last round.
    fn run(&self, work: &mut Work<'_, Xen>, meanwhile: Option<&mut dyn FnMut()>) {
        let mut job = Job { work, xen: self.xen };
        let rounds = POST.rounds.load(Ordering::Acquire);
        POST.is_last.store(meanwhile.is_none(), Ordering::Release);
        POST.job.store((&raw mut job).cast(), Ordering::Release);
        if let Some(meanwhile) = meanwhile {
            wait_until(|| POST.rounds.load(Ordering::Acquire) > rounds);
            meanwhile();
            POST.is_last.store(true, Ordering::Release);
        }
        wait_until(|| POST.job.load(Ordering::Acquire).is_null());
    }
}

impl Second<Xen> for SecondVcpu<'_> {
    fn start(&self) -> Result<(), String> {
        self.initialise()?;
        Xen::vcpu_up(SECOND).map_err(|error| format!("vCPU {SECOND} up: {error}"))
    }

    fn stop(&self) -> Result<(), String> {
        POST.goes_down.store(true, Ordering::Release);
        loop {
            match Xen::vcpu_is_up(SECOND) {
                Ok(true) => Xen::yield_now(),
                Ok(false) => return Ok(()),
                Err(error) => return Err(format!("vCPU {SECOND} down: {error}")),
            }
        }
    }

    fn once(&self, work: &mut Work<'_, Xen>) {
        self.run(work, None);
    }

    fn beside(&self, work: &mut Work<'_, Xen>, meanwhile: &mut dyn FnMut()) {
        self.run(work, Some(meanwhile));
    }
}

fn wait_until(holds: impl Fn() -> bool) {
    while !holds() {
        Xen::yield_now();
    }
}

/// What the second vCPU does: jobs, as they come.
extern "C" fn second_main(number: u64) -> ! {
    assert_eq!(number_at_gs(), number, "the gs base of vCPU {number} is not its own");
    loop {
        let job = POST.job.load(Ordering::Acquire).cast::<Job<'_>>();
        // SAFETY: the first vCPU keeps a posted job alive, and does not touch it, until the place
        // is null again, which only the store below makes it.
        if let Some(job) = unsafe { job.as_mut() } {
            let is_last = POST.is_last.load(Ordering::Acquire);
            (job.work)(job.xen);
            POST.rounds.fetch_add(1, Ordering::Release);
            if is_last {
                POST.job.store(null_mut(), Ordering::Release);
            }
        } else if POST.goes_down.swap(false, Ordering::AcqRel)
            && let Err(error) = Xen::vcpu_down(SECOND)
        {
            panic!("vCPU {number} cannot go down: {error}");
        }
        Xen::yield_now();
    }
}

fn number_at_gs() -> u64 {
    let number;
    // SAFETY: the base was set to the address of a word when the vCPU was initialised.
    unsafe { asm!("mov {}, gs:[0]", out(reg) number, options(nostack, readonly)) };
    number
}
