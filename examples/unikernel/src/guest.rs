//! What a program has to work with.
#![expect(unsafe_code, reason = "stores into the user half, which holds no Rust object")]

use core::fmt;

use alloc::string::String;
use alloc::vec::Vec;

use hypercall::{BootInfo, Counting, Cpu, Frame, Frames, GuestVa, Machine, Pfn};
use p2m::P2m;
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
    pub(crate) p2m: P2m<'a>,
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
}

impl<M: Machine + Cpu> Guest<'_, M> {
    /// Writes a word of the user half that the running address space maps; false if that faults.
    pub(crate) fn store(&self, va: GuestVa, value: u64) -> bool {
        // SAFETY: programs map only frames of their pool in the user half, and no Rust object is in
        // them.
        unsafe { self.cpu.store(va, value) }.is_ok()
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
    /// All of `frames`.
    pub(crate) fn new(mut frames: Frames) -> Self {
        let mut all: Vec<_> = core::iter::from_fn(|| frames.take()).collect();
        all.reverse();
        Self { frames: all }
    }

    /// How many are free.
    pub(crate) fn len(&self) -> usize {
        self.frames.len()
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
