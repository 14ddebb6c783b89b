//! What an assertion works with: a machine, frames, and the pages through which it talks to Xen.
#![expect(unsafe_code, reason = "asks for changes of frames of the arena, which nobody else uses")]

mod calls;
pub(crate) mod grant;
mod memory;
mod mmu;
mod tables;
mod way;

pub(crate) use calls::{ENTRY_WORDS, Entry, words};
pub(crate) use memory::{Extents, op};
pub(crate) use mmu::Answer;
pub(crate) use tables::{
    GUEST_KERNEL, INVALID, KERNEL_RO, KERNEL_RW, NON_RAM, OUT_OF_RANGE, TABLE, TABLE_RO,
};
pub(crate) use way::WAYS;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use hypercall::raw::RawWrite;
use hypercall::start_info::BootInfo;
use hypercall::{GuestVa, Mfn, PAGE_SIZE, Pfn};
use prove::ArenaFrame;

use crate::Target;
use crate::check::Check;

/// Numbers of hypercalls (public/xen.h).
pub(crate) mod number {
    pub(crate) const MMU_UPDATE: u32 = 1;
    pub(crate) const SET_GDT: u32 = 2;
    pub(crate) const UPDATE_DESCRIPTOR: u32 = 10;
    pub(crate) const MEMORY_OP: u32 = 12;
    pub(crate) const MULTICALL: u32 = 13;
    pub(crate) const UPDATE_VA_MAPPING: u32 = 14;
    pub(crate) const XEN_VERSION: u32 = 17;
    pub(crate) const CONSOLE_IO: u32 = 18;
    pub(crate) const GRANT_TABLE_OP: u32 = 20;
    pub(crate) const VM_ASSIST: u32 = 21;
    pub(crate) const UPDATE_VA_MAPPING_OTHERDOMAIN: u32 = 22;
    pub(crate) const MMUEXT_OP: u32 = 26;
}

/// The caller, for `foreigndom`.
pub(crate) const SELF: u64 = 0x7ff0;
/// Owner of I/O frames.
pub(crate) const IO: u64 = 0x7ff1;
/// A domain that does not exist.
pub(crate) const NOBODY: u64 = 0x6f77;
/// An address without tables.
pub(crate) const NOWHERE: u64 = 0x5000_0000_0000;
/// An address in Xen's range.
pub(crate) const HOLE: u64 = 0xffff_8400_0000_0000;

/// Pages for lists and structures.
const ARGUMENT_PAGES: usize = 3;

/// What is known of the guest and of Xen.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// What the builder said.
    pub boot: BootInfo,
    /// The root that the guest runs on.
    pub root: (Pfn, Mfn),
    /// Major and minor number of the running Xen.
    pub release: (u64, u64),
    /// The guest's own number.
    pub domain: u64,
    /// A frame of another domain, if there is one.
    pub foreign: Option<u64>,
}

/// A frame of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Page(usize);

/// What an assertion works with.
#[derive(Debug)]
pub struct Env<'a, M> {
    machine: &'a M,
    facts: Facts,
    frames: Vec<ArenaFrame>,
    /// Pages that the guest has made read-only.
    made: Vec<core::ops::Range<u64>>,
    arguments: [ArenaFrame; ARGUMENT_PAGES],
    used: usize,
    /// Pages that have no frame now.
    gone: Vec<Page>,
    bed: Option<Page>,
    reservation: i64,
}

impl<'a, M: Target> Env<'a, M> {
    /// Creates an environment on `machine`, which booted with `boot` and runs on `root`, the frame
    /// `root_mfn`, with the frames of an arena (at least 600 are needed): each zero, mapped
    /// writable in the direct mapping and nowhere else, and used by nobody.
    ///
    /// # Errors
    /// A sentence, if there are too few frames or Xen does not answer the first questions.
    pub fn new(
        machine: &'a M,
        boot: BootInfo,
        root: Pfn,
        root_mfn: Mfn,
        mut frames: Vec<ArenaFrame>,
    ) -> Check<Self> {
        if frames.len() < 600 {
            return Err(format!("{} frames are too few", frames.len()));
        }
        let arguments = frames.drain(..ARGUMENT_PAGES).collect::<Vec<_>>();
        let arguments = arguments.try_into().map_err(|_| String::from("no argument pages"))?;
        let facts =
            Facts { boot, root: (root, root_mfn), release: (0, 0), domain: 0, foreign: None };
        let gone = Vec::new();
        let mut env = Self {
            machine,
            facts,
            frames,
            arguments,
            made: Vec::new(),
            used: 0,
            gone,
            bed: None,
            reservation: 0,
        };
        let version = env.call(number::XEN_VERSION, [0; 5]).cast_unsigned();
        env.facts.release = (version >> 16, version & 0xffff);
        env.facts.domain = env.find_own_domain()?;
        env.facts.foreign = env.find_foreign();
        env.reservation = env.current_reservation(SELF);
        env.clean_up()?;
        Ok(env)
    }

    /// Returns what is known of the guest and of Xen.
    #[must_use]
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Returns the answer for dom0, or the one for a domU.
    pub(crate) fn by_role<T>(&self, dom0: T, domu: T) -> T {
        if self.facts.boot.is_dom0 { dom0 } else { domu }
    }

    /// Returns the answer up to 4.17, or the one from 4.20 on.
    pub(crate) fn by_release<T>(&self, before: T, since_4_20: T) -> T {
        if self.facts.release >= (4, 20) { since_4_20 } else { before }
    }

    /// Returns a clean frame: zero, and mapped writable in the direct mapping.
    pub(crate) fn take(&mut self) -> Check<Page> {
        if self.used == self.frames.len() {
            return Err("the arena is used up".into());
        }
        self.used += 1;
        Ok(Page(self.used - 1))
    }

    /// Two clean frames whose direct mappings are neighbours.
    pub(crate) fn take_neighbours(&mut self) -> Check<[Page; 2]> {
        let mut first = self.take()?;
        loop {
            let second = self.take()?;
            if self.va(second) == self.va(first) + PAGE_SIZE as u64 {
                return Ok([first, second]);
            }
            first = second;
        }
    }

    /// Returns the machine frame of a page.
    pub(crate) fn mfn(&self, page: Page) -> u64 {
        self.frames[page.0].mfn.raw()
    }

    /// Returns the pfn of a page.
    pub(crate) fn pfn(&self, page: Page) -> u64 {
        self.frames[page.0].pfn.raw()
    }

    /// Returns the address of a page in the direct mapping.
    pub(crate) fn va(&self, page: Page) -> u64 {
        self.frames[page.0].va.raw()
    }

    /// The page has another frame now.
    pub(crate) fn adopt(&mut self, page: Page, mfn: u64) {
        self.frames[page.0].mfn = Mfn::new(mfn);
        self.gone.retain(|gone| *gone != page);
    }

    /// The page has no frame any more.
    pub(crate) fn gone(&mut self, page: Page) {
        self.gone.push(page);
    }

    /// Returns what M2P says.
    pub(crate) fn m2p(&self, mfn: u64) -> Option<u64> {
        self.machine.machine_to_phys(Mfn::new(mfn)).map(Pfn::raw)
    }

    /// Returns what the builder's P2M list says.
    pub(crate) fn p2m(&self, pfn: u64) -> Option<u64> {
        let inside = pfn < self.facts.boot.pages;
        inside.then(|| self.load(self.facts.boot.p2m_list.raw() + pfn * 8).ok())?
    }

    /// Says that the guest has made these pages read-only since its builder was done: tables of its
    /// own, code.
    pub fn made_read_only(&mut self, pfns: core::ops::Range<u64>) {
        self.made.push(pfns);
    }

    /// Returns whether a pfn is one of the arena's, which have other frames than the builder gave
    /// them.
    pub(crate) fn is_arena(&self, pfn: u64) -> bool {
        let frames = self.arguments.iter().chain(&self.frames);
        frames.into_iter().any(|frame| frame.pfn.raw() == pfn)
    }

    /// Returns whether a pfn is not as the builder left it: of the arena, or read-only now.
    pub(crate) fn is_changed(&self, pfn: u64) -> bool {
        self.is_arena(pfn) || self.made.iter().any(|made| made.contains(&pfn))
    }

    /// Returns where the builder mapped pfn 0.
    pub(crate) const fn kernel_va(&self) -> u64 {
        self.facts.boot.root.raw() - (self.facts.root.0.raw() << hypercall::PAGE_SHIFT)
    }

    /// Returns where the direct mapping shows a pfn.
    pub(crate) fn direct_va(&self, pfn: u64) -> Check<u64> {
        let va = self.machine.direct_map(Pfn::new(pfn));
        va.map(GuestVa::raw).map_err(|error| format!("{error}"))
    }

    /// Calls Xen.
    pub(crate) fn call(&self, number: u32, arguments: [u64; 5]) -> i64 {
        // SAFETY: assertions only change what frames of the arena are, and their direct mapping.
        unsafe { self.machine.raw(number, arguments) }
    }

    /// Reads a word.
    pub(crate) fn load(&self, address: u64) -> Check<u64> {
        let va = GuestVa::new(address).map_err(|error| format!("{error}"))?;
        self.machine.load(va).map_err(|fault| format!("{fault}"))
    }

    /// Writes in the way that `how` says; an error is a fault.
    pub(crate) fn write(&self, address: u64, how: RawWrite, value: u64) -> Check<u64> {
        // SAFETY: assertions write to frames of the arena only, or where nobody may write; live
        // tables are Xen's to validate.
        let written = unsafe { self.machine.write(address, how, value) };
        written.ok_or_else(|| format!("the write to {address:#x} faulted"))
    }

    /// Writes a word.
    pub(crate) fn store(&self, address: u64, value: u64) -> Check {
        let va = GuestVa::new(address).map_err(|error| format!("{error}"))?;
        // SAFETY: as in `write`.
        unsafe { self.machine.store(va, value) }.map_err(|fault| format!("{fault}"))
    }

    /// Writes `new` if the word is `current`, and returns what was there.
    pub(crate) fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Check<u64> {
        let va = GuestVa::new(address).map_err(|error| format!("{error}"))?;
        // SAFETY: as in `write`.
        unsafe { self.machine.compare_exchange(va, current, new) }
            .map_err(|fault| format!("{fault}"))
    }

    /// Returns whether a data segment register can be loaded with `selector`.
    pub(crate) fn load_selector(&self, selector: u16) -> Check {
        // SAFETY: assertions put descriptors of data segments where they want them loaded.
        let loaded = unsafe { self.machine.load_selector(selector) };
        loaded.then_some(()).ok_or_else(|| format!("loading selector {selector:#x} faulted"))
    }

    /// Puts words into an argument page and says where they are.
    pub(crate) fn put(&self, page: usize, offset: usize, words: &[u64]) -> u64 {
        let frame = &self.arguments[page];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        // SAFETY: argument pages belong to the arena.
        let put = unsafe { self.machine.write_bytes(frame.pfn, offset, &bytes) };
        debug_assert!(put.is_ok(), "argument pages are mapped writable");
        frame.va.raw() + offset as u64
    }

    /// Words of an argument page.
    pub(crate) fn got(&self, page: usize, offset: usize, count: usize) -> Vec<u64> {
        let at = self.arguments[page].va.raw() + offset as u64;
        (0..count).map(|word| self.load(at + word as u64 * 8).unwrap_or(u64::MAX)).collect()
    }

    /// Puts everything back as it was; every frame used is exchanged, which shows that nothing
    /// holds it.
    pub(crate) fn clean_up(&mut self) -> Check {
        let mut left: Vec<String> = self.leave_modes();
        let used: Vec<Page> = (0..self.used).map(Page).collect();
        for page in &used {
            // Most are not pinned.
            let _ = self.unpin(*page);
        }
        for page in &used {
            if let Err(reason) = self.set_direct(*page, 0) {
                left.push(reason);
            }
        }
        self.flush();
        let mut lost = Vec::new();
        for page in &used {
            if let Err(reason) = self.renew(*page) {
                left.push(format!("page {} (mfn {:x}): {reason}", page.0, self.mfn(*page)));
                lost.push(page.0);
            }
        }
        for at in lost.iter().rev() {
            self.frames.remove(*at);
        }
        (self.used, self.bed) = (0, None);
        self.gone.clear();
        let now = self.current_reservation(SELF);
        if now != self.reservation {
            left.push(format!("the guest has {now} frames, not {}", self.reservation));
            self.reservation = now;
        }
        if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
    }

    /// Returns a fresh frame for a page that nothing maps; then zero, and mapped writable.
    fn renew(&mut self, page: Page) -> Check {
        if self.gone.contains(&page) {
            self.populate(page)?;
        } else {
            want!(self.exchange(page)?, 0);
        }
        self.rw(page)?;
        // SAFETY: the page belongs to the arena and was just mapped writable.
        let zeroed =
            unsafe { self.machine.write_bytes(self.frames[page.0].pfn, 0, &[0; PAGE_SIZE]) };
        zeroed.map_err(|error| format!("{error}"))
    }
}
