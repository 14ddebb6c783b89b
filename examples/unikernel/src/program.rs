//! What a program has to work with.
#![expect(unsafe_code, reason = "stores into the user half, and joins frames that it owns")]

use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU64;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;

use hypercall::middleware::Counting;
use hypercall::shared_info::ArchSharedInfo;
use hypercall::start_info::BootInfo;
use hypercall::{Cpu, FrameAccess as _, Frames, GuestVa, Machine, Pfn};
use p2m::{Guest, P2m};

use crate::direct_map::Made;
use crate::life::Life;
use crate::pool::Pool;

/// The guest a program runs in.
pub(crate) struct Kernel<'a, M> {
    /// The guest: its machine, which counts what is asked of Xen, its frame map, and the root that
    /// it booted on.
    pub(crate) guest: Guest<'a, Counting<&'a M>>,
    /// The CPU.
    pub(crate) cpu: &'a M,
    /// What the builder said.
    pub(crate) boot: BootInfo,
    /// All frames that nobody uses. The direct mapping reaches every one.
    pub(crate) pool: Pool,
    /// What became of all other frames when the direct mapping was made.
    pub(crate) made: Made,
    /// The words behind the program's name on the command line.
    pub(crate) arguments: &'a str,
    /// The boot module.
    pub(crate) module: Option<&'a [u8]>,
    /// Where it prints.
    pub(crate) console: &'a mut dyn fmt::Write,
    /// What else the machine gives it.
    pub(crate) platform: &'a dyn Platform,
    /// Its second vCPU, on the same machine, if it has one.
    pub(crate) second: Option<&'a dyn Second<M>>,
}

/// What the machine gives a guest besides memory and hypercalls.
pub(crate) trait Platform {
    /// The words in `shared_info` that a toolstack reads, mapped on first use.
    ///
    /// # Errors
    /// A sentence, if the page cannot be mapped.
    fn shared_info(&self) -> Result<&ArchSharedInfo, String>;

    /// Where this program sees what the running address space maps at `va`; `None` if it does not
    /// run in that address space.
    fn words(&self, va: GuestVa) -> Option<NonNull<AtomicU64>>;

    /// Lets others run for a while.
    fn wait(&self);

    /// What the CPU's clock showed when the kernel was entered; 0 where there was no such time.
    fn entered(&self) -> u64 {
        0
    }

    /// The frame behind an address of the kernel's own memory.
    fn pfn_at(&self, address: usize) -> Option<Pfn>;

    /// The I/O ports, as far as the domain has them.
    ///
    /// # Errors
    /// A sentence, if there are none.
    fn ports(&self) -> Result<&dyn Ports, String>;

    /// Does `work`, which executes instructions that only a kernel may, or may not even so. How
    /// many of them were exceptions and were left out; `None`, and nothing is done, if this program
    /// runs as no kernel.
    fn privileged(&self, _work: &mut dyn FnMut()) -> Option<u64> {
        None
    }

    /// Begins to listen to a toolstack, once.
    ///
    /// # Errors
    /// A sentence, if there is none.
    fn life(&self) -> Result<Box<dyn Life + '_>, String>;

    /// Executes the `ret` at `va`: whether that works or faults; `None` where there is no CPU.
    ///
    /// # Safety
    /// There is a `ret`.
    unsafe fn execute(&self, _va: GuestVa) -> Option<bool> {
        None
    }

    /// Lends the kernel's heap a run of frames. They come back if it takes none.
    fn extend_heap(&self, frames: Frames) -> Result<(), Frames>;

    /// A run that was lent to the heap, and in which nothing is, if there is one: it is lent no
    /// more.
    fn shrink_heap(&self) -> Option<Frames>;

    /// Is told that the direct mapping has entries for `frames` frames.
    ///
    /// # Safety
    /// It has, and those of frames that have memory map them (I-3).
    unsafe fn direct_map_reaches(&self, frames: u64);
}

/// I/O ports of 32 bits.
pub(crate) trait Ports {
    /// Writes a word.
    fn write(&self, port: u16, value: u32);

    /// Reads a word.
    fn read(&self, port: u16) -> u32;
}

/// What the second vCPU is to do, on its machine.
pub(crate) type Work<'a, M> = dyn FnMut(&M) + Send + 'a;

/// The second vCPU of a guest, which does what it is told. Methods are called by the first one.
pub(crate) trait Second<M> {
    /// Lets it run, on the root that the kernel booted on; or go on, if it was stopped.
    ///
    /// # Errors
    /// A sentence, if it does not start.
    fn start(&self) -> Result<(), String>;

    /// Stops it, between one piece of work and the next.
    ///
    /// # Errors
    /// A sentence, if Xen refuses.
    fn stop(&self) -> Result<(), String>;

    /// Lets it do `work` once, and waits for that.
    fn once(&self, work: &mut Work<'_, M>);

    /// Lets it do `work` over and over, beside `meanwhile`, which begins after the first time and
    /// ends before the last.
    fn beside(&self, work: &mut Work<'_, M>, meanwhile: &mut dyn FnMut());
}

impl<M: Machine + Cpu> Kernel<'_, M> {
    /// Says what the CPU lacks, if it lacks something.
    pub(crate) fn say_what_is_missing(&mut self) -> Result<(), String> {
        let missing = self.guest.machine().missing_flags();
        if !missing.contains(hypercall::PteFlags::NO_EXECUTE) {
            return Ok(());
        }
        writeln!(self.console, "this CPU has no NX: all that is mapped can be executed")
            .map_err(|error| format!("console: {error}"))
    }

    /// Writes a word of the user half that the running address space maps; false if that faults.
    pub(crate) fn store(&self, va: GuestVa, value: u64) -> bool {
        // SAFETY: programs map only frames of their pool in the user half, and no Rust object is in
        // them.
        unsafe { self.cpu.store(va, value) }.is_ok()
    }

    /// The same guest with another frame map, for as long as that is borrowed: all that it has goes
    /// over.
    pub(crate) fn on_map<'b>(&'b mut self, p2m: &'b P2m<'b>) -> Kernel<'b, M> {
        // SAFETY: it is the same map, in another place.
        let guest = unsafe { Guest::new(self.guest.machine(), p2m, self.guest.kernel_root()) };
        Kernel {
            guest,
            cpu: self.cpu,
            boot: self.boot,
            pool: core::mem::replace(&mut self.pool, Pool::empty()),
            made: core::mem::take(&mut self.made),
            arguments: self.arguments,
            module: self.module,
            console: &mut *self.console,
            platform: self.platform,
            second: self.second,
        }
    }
}

/// The number that follows `name=` among `arguments`, or `default`.
///
/// # Errors
/// A sentence, if what follows is no number.
pub(crate) fn number(arguments: &str, name: &str, default: u64) -> Result<u64, String> {
    let value = arguments
        .split_whitespace()
        .find_map(|word| word.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')));
    value.map_or(Ok(default), |digits| {
        digits.parse().map_err(|_| format!("{name}={digits} is not a number"))
    })
}
