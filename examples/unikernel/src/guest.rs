//! What a program has to work with.
#![expect(unsafe_code, reason = "stores into the user half, and joins frames that it owns")]

use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU64;
use pvmmu::SpaceFrames;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use hypercall::{
    ArchSharedInfo, BootInfo, Counting, Cpu, Frame, FrameAccess as _, FrameSource, Frames, GuestVa,
    Machine, Pfn,
};
use p2m::{Guest, P2m};

use crate::direct_map::Made;
use crate::life::Life;

/// The guest a program runs in.
pub(crate) struct Kernel<'a, M> {
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

    /// Lets it do `work` over and over, beside `meanwhile`, which begins behind the first time and
    /// ends before the last.
    fn beside(&self, work: &mut Work<'_, M>, meanwhile: &mut dyn FnMut());
}

impl<M: Machine + Cpu> Kernel<'_, M> {
    /// Says what the CPU lacks, if it lacks something.
    pub(crate) fn say_what_is_missing(&mut self) -> Result<(), String> {
        let missing = self.machine.missing_flags();
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
        Kernel {
            machine: Counting::new(self.cpu),
            cpu: self.cpu,
            boot: self.boot,
            p2m,
            kernel_root: self.kernel_root,
            pool: core::mem::replace(&mut self.pool, Pool::empty()),
            made: core::mem::take(&mut self.made),
            arguments: self.arguments,
            module: self.module,
            console: &mut *self.console,
            platform: self.platform,
            second: self.second,
        }
    }

    /// The guest, as operations take it.
    pub(crate) fn guest(&self) -> Guest<'_, Counting<&M>> {
        // SAFETY: the guest's frame map, and the root that its kernel runs on.
        unsafe { Guest::new(&self.machine, self.p2m, self.kernel_root) }
    }

    /// The guest, as operations take it, and the pool beside it.
    pub(crate) fn parts(&mut self) -> (Guest<'_, Counting<&M>>, &mut Pool) {
        let Self { machine, p2m, kernel_root, pool, .. } = self;
        // SAFETY: the guest's frame map, and the root that its kernel runs on.
        (unsafe { Guest::new(machine, p2m, *kernel_root) }, pool)
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
        digits.parse().map_err(|_| format!("{name}={digits} is no number"))
    })
}

/// Free frames: a bit for each pfn, on the heap.
pub(crate) struct Pool {
    free: Vec<u64>,
    len: usize,
    /// No frame below this word is free.
    lowest: usize,
}

impl Pool {
    /// No frames.
    pub(crate) const fn empty() -> Self {
        Self { free: Vec::new(), len: 0, lowest: 0 }
    }

    /// Room for frames below `pages`, none of them free.
    pub(crate) fn of_pages(pages: u64) -> Self {
        let mut pool = Self::empty();
        pool.reach(pages);
        pool
    }

    /// Makes room for frames below `pages`; the new ones are not free.
    pub(crate) fn reach(&mut self, pages: u64) {
        let words = usize::try_from(pages.div_ceil(u64::from(u64::BITS))).unwrap_or(0);
        self.free.resize(self.free.len().max(words), 0);
    }

    /// Takes back a run of frames.
    pub(crate) fn give_run(&mut self, mut frames: Frames) {
        while let Some(frame) = frames.take() {
            FrameSource::give(self, frame);
        }
    }

    /// A run of `count` free frames that follow one another, the lowest there is.
    pub(crate) fn take_run(&mut self, count: u64) -> Option<Frames> {
        let (mut start, mut found) = (0, 0);
        for pfn in self.lowest as u64 * 64..self.free.len() as u64 * 64 {
            if !self.is_free(Pfn::new(pfn)) {
                found = 0;
                continue;
            }
            if found == 0 {
                start = pfn;
            }
            found += 1;
            if found == count {
                (start..=pfn).for_each(|pfn| self.mark_used(Pfn::new(pfn)));
                // SAFETY: the frames have just left the pool (I-1).
                return Some(unsafe { Frames::claim(Pfn::new(start), count) });
            }
        }
        None
    }

    /// How many are free.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    fn place(pfn: Pfn) -> (usize, u64) {
        (usize::try_from(pfn.raw() / 64).unwrap_or(usize::MAX), 1 << (pfn.raw() % 64))
    }

    /// Whether a frame is free.
    pub(crate) fn is_free(&self, pfn: Pfn) -> bool {
        let (word, bit) = Self::place(pfn);
        self.free.get(word).is_some_and(|free| free & bit != 0)
    }

    fn mark_used(&mut self, pfn: Pfn) {
        let (word, bit) = Self::place(pfn);
        self.free[word] &= !bit;
        self.len -= 1;
    }

    fn take_one(&mut self) -> Option<Frame> {
        let word = self.lowest + self.free[self.lowest..].iter().position(|free| *free != 0)?;
        self.lowest = word;
        let pfn = Pfn::new(word as u64 * 64 + u64::from(self.free[word].trailing_zeros()));
        self.mark_used(pfn);
        // SAFETY: the frame has just left the pool (I-1).
        Some(unsafe { Frame::claim(pfn) })
    }

    /// # Panics
    /// If the frame is free already, or none that the pool has a place for.
    fn give_one(&mut self, frame: &Frame) {
        let (word, bit) = Self::place(frame.pfn());
        assert!(!self.is_free(frame.pfn()), "pfn {} is freed twice", frame.pfn());
        self.free[word] |= bit;
        self.len += 1;
        self.lowest = self.lowest.min(word);
    }
}

impl FrameSource for Pool {
    fn take(&mut self) -> Option<Frame> {
        self.take_one()
    }

    fn give(&mut self, frame: Frame) {
        self.give_one(&frame);
    }
}

impl SpaceFrames for Pool {}
