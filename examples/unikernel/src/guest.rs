//! What a program has to work with.
#![expect(unsafe_code, reason = "stores into the user half, and joins frames that it owns")]

use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU64;

use alloc::string::String;
use alloc::vec::Vec;

use hypercall::{ArchSharedInfo, BootInfo, Counting, Cpu, Frame, Frames, GuestVa, Machine, Pfn};
use p2m::{LeafSource, P2m};
use pvmmu::{Context, FrameSource};

/// The guest a program runs in.
pub(crate) struct Guest<'a, M> {
    /// The machine, counting what is asked of Xen.
    pub(crate) machine: Counting<&'a M>,
    /// The CPU.
    pub(crate) cpu: &'a M,
    /// What the builder said.
    pub(crate) boot: BootInfo,
    /// Its frame map.
    pub(crate) p2m: &'a P2m<'a>,
    /// The root it booted on.
    pub(crate) kernel_root: Pfn,
    /// Frames free to use, all in the direct mapping.
    pub(crate) pool: Pool,
    /// Frames free to use that the direct mapping does not reach: good for pages, not for tables.
    pub(crate) far: Option<Frames>,
    /// The words behind the program's name on the command line.
    pub(crate) arguments: &'a str,
    /// The boot module.
    pub(crate) module: Option<&'a [u8]>,
    /// Where it prints.
    pub(crate) console: &'a mut dyn fmt::Write,
    /// What else the machine gives it.
    pub(crate) platform: &'a dyn Platform,
    /// Its second vCPU, on the same machine.
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
}

/// What the second vCPU is to do, on its machine.
pub(crate) type Work<'a, M> = dyn FnMut(&M) + Send + 'a;

/// The second vCPU of a guest, which does what it is told. Methods are called by the first one.
pub(crate) trait Second<M> {
    /// Lets it run, on the root that the kernel booted on; or go on, if it was stopped.
    ///
    /// # Errors
    /// A sentence, if the guest has no second vCPU or it does not start.
    fn start(&self) -> Result<(), String>;

    /// Stops it, between one piece of work and the next.
    ///
    /// # Errors
    /// A sentence, if Xen refuses.
    fn stop(&self) -> Result<(), String>;

    /// Lets it do `work` once, and waits for that.
    fn once(&self, work: &mut Work<'_, M>);

    /// Lets it do `work` over and over, beside `meanwhile`, which begins behind the first time and
    /// ends before the last.
    fn beside(&self, work: &mut Work<'_, M>, meanwhile: &mut dyn FnMut());
}

impl<M: Machine + Cpu> Guest<'_, M> {
    /// Writes a word of the user half that the running address space maps; false if that faults.
    pub(crate) fn store(&self, va: GuestVa, value: u64) -> bool {
        // SAFETY: programs map only frames of their pool in the user half, and no Rust object is in
        // them.
        unsafe { self.cpu.store(va, value) }.is_ok()
    }

    /// The context of address space operations.
    pub(crate) fn context(&self) -> Context<'_, Counting<&M>> {
        Context { machine: &self.machine, p2m: self.p2m, kernel_root: self.kernel_root }
    }

    /// The context of address space operations, and the pool beside it.
    pub(crate) fn parts(&mut self) -> (Context<'_, Counting<&M>>, &mut Pool) {
        let Self { machine, p2m, kernel_root, pool, .. } = self;
        (Context { machine, p2m, kernel_root: *kernel_root }, pool)
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
        digits.parse().map_err(|_| alloc::format!("{name}={digits} is no number"))
    })
}

/// Free frames, on the heap.
pub(crate) struct Pool {
    frames: Vec<Frame>,
}

impl Pool {
    /// No frames.
    pub(crate) const fn empty() -> Self {
        Self { frames: Vec::new() }
    }

    /// All of `frames`.
    pub(crate) fn new(mut frames: Frames) -> Self {
        let mut all: Vec<_> = core::iter::from_fn(|| frames.take()).collect();
        all.reverse();
        Self { frames: all }
    }

    /// A run of `count` free frames that follow one another, if there is one at the end of the
    /// pool.
    pub(crate) fn take_run(&mut self, count: u64) -> Option<Frames> {
        let first = self.frames.last()?.pfn();
        let len = self.frames.len().checked_sub(usize::try_from(count).ok()?)?;
        let follows = |(at, frame): (u64, &Frame)| frame.pfn().offset_from(first) == Some(at);
        if !(0..).zip(self.frames[len..].iter().rev()).all(follows) {
            return None;
        }
        self.frames.truncate(len);
        // SAFETY: the frames have just left the pool (I-1).
        Some(unsafe { Frames::claim(first, count) })
    }

    /// How many are free.
    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }
}

impl LeafSource for Pool {
    fn take(&mut self) -> Option<Frame> {
        self.frames.pop()
    }

    fn give(&mut self, frame: Frame) {
        self.frames.push(frame);
    }
}

impl FrameSource for Pool {
    fn take(&mut self) -> Option<Frame> {
        self.frames.pop()
    }

    fn give(&mut self, frame: Frame) {
        self.frames.push(frame);
    }
}
