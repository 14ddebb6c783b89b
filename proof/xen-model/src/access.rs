//! Loads and stores of a guest, through its page tables and a model of its TLB.

use hypercall::{Level, Mfn, PAGE_SHIFT};

use crate::l1e::{ACCESSED, DIRTY, GLOBAL, PRESENT, RW, frame_of};
use crate::page::INVALID_M2P;
use crate::state::State;
use crate::tlb::{Mode, Scope, Translation, Writable};
use crate::xen_slots::{self, M2P_END, M2P_SLOT, M2P_START};

/// A page fault as the guest would get it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// The address (CR2).
    pub va: u64,
    /// The error code: bit 0 the entry is present, bit 1 a write, bit 2 user mode.
    pub code: u32,
}

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// What stands behind an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A byte of a frame.
    Frame(Mfn, usize),
    /// An entry of M2P, and a byte of it.
    M2p(u64, usize),
}

/// A walk through the tables that met a page.
#[derive(Clone, Copy, Debug)]
struct Walked {
    frame: Mfn,
    writable: Writable,
    scope: Scope,
}

const FAULT_PRESENT: u32 = 1;
const FAULT_WRITE: u32 = 2;
const FAULT_USER: u32 = 4;

/// Entries in a page of M2P.
const M2P_WORDS: u64 = 512;

impl State {
    /// Where an access at `va` goes.
    pub(crate) fn translate(
        &mut self,
        va: u64,
        access: Access,
        mode: Mode,
    ) -> Result<Target, PageFault> {
        let mut code = match mode {
            Mode::Kernel => 0,
            Mode::User => FAULT_USER,
        };
        if access == Access::Write {
            code |= FAULT_WRITE;
        }
        let fault = |present: u32| PageFault { va, code: code | present };
        let root = match mode {
            Mode::Kernel => self.vcpu().kernel_root,
            Mode::User => self.vcpu().user_root,
        };
        let root = root.ok_or(fault(0))?;
        if !xen_slots::is_canonical(va) {
            return Err(fault(0));
        }
        let offset = (va & 0xfff) as usize;
        if !xen_slots::address_ok(va) {
            let seen = (M2P_START..M2P_END).contains(&va)
                && self.frames.word(root, M2P_SLOT) & PRESENT != 0;
            if seen && access == Access::Read {
                return Ok(Target::M2p((va - M2P_START) / 8, offset % 8));
            }
            return Err(fault(FAULT_PRESENT));
        }
        let page = va >> PAGE_SHIFT;
        let walked = self.walk(root, va, access);
        self.vcpu().tlb.enter(mode);
        let cached = self.vcpu().tlb.get(page);
        if let Some(cached) = cached {
            self.check_stale(va, access, cached, walked);
        }
        let walked = walked.ok_or(fault(0))?;
        if access == Access::Write && walked.writable == Writable::No {
            return Err(fault(FAULT_PRESENT));
        }
        let Walked { frame, writable, scope } = walked;
        let translation = Translation { frame, writable, scope };
        // A load through what the TLB holds does not look at the tables: what it holds of the right
        // to write stays until it is flushed.
        let hides = |cached: Translation| cached.frame == frame && cached.writable == Writable::Yes;
        if cached != Some(translation) && !cached.is_some_and(hides) {
            self.vcpu().tlb.insert(page, translation);
        }
        // A page of M2P, which dom0 may map as a frame of DOMID_XEN's.
        let in_m2p = frame.raw().checked_sub(self.m2p_frames.raw());
        let pages = self.frames.end().div_ceil(M2P_WORDS);
        if let Some(number) = in_m2p.filter(|number| *number < pages) {
            return Ok(Target::M2p(number * M2P_WORDS + offset as u64 / 8, offset % 8));
        }
        Ok(Target::Frame(frame, offset))
    }

    /// Reports an access for which the TLB still has what the tables no longer say.
    fn check_stale(&mut self, va: u64, access: Access, cached: Translation, now: Option<Walked>) {
        let usable = access == Access::Read || cached.writable == Writable::Yes;
        let same = now.is_some_and(|now| {
            now.frame == cached.frame && (access == Access::Read || now.writable == Writable::Yes)
        });
        if usable && !same {
            let (frame, what) =
                (cached.frame, if access == Access::Read { "load" } else { "store" });
            self.violation(format!(
                "stale translation: {what} at {va:#x} may still reach mfn {frame}"
            ));
        }
    }

    /// Follows the tables, setting accessed and dirty bits as a CPU does.
    fn walk(&mut self, root: Mfn, va: u64, access: Access) -> Option<Walked> {
        let mut table = root;
        let mut writable = Writable::Yes;
        for level in Level::TOP_DOWN {
            let index = Self::index_of(level, va);
            let entry = self.frames.word(table, index);
            if entry & PRESENT == 0 {
                return None;
            }
            if entry & RW == 0 {
                writable = Writable::No;
            }
            let superpage = level != Level::L1 && entry & 0x80 != 0;
            let leaf = level == Level::L1 || superpage;
            let mut seen = entry | ACCESSED;
            if leaf && access == Access::Write && writable == Writable::Yes {
                seen |= DIRTY;
            }
            if seen != entry {
                self.frames.words(table)[index] = seen;
            }
            let inside =
                if superpage { (va >> PAGE_SHIFT) & ((1 << (level.shift() - 12)) - 1) } else { 0 };
            table = Mfn::new(frame_of(entry).raw() + inside);
            if leaf {
                let scope = if entry & GLOBAL != 0 { Scope::Global } else { Scope::Local };
                return Some(Walked { frame: table, writable, scope });
            }
        }
        None
    }

    /// Copies bytes from addresses of the guest's.
    pub(crate) fn load(&mut self, va: u64, into: &mut [u8], mode: Mode) -> Result<(), PageFault> {
        for (va, range) in pieces(va, into.len()) {
            let target = self.translate(va, Access::Read, mode)?;
            self.read_target(target, &mut into[range]);
        }
        Ok(())
    }

    /// Copies bytes to addresses of the guest's, by plain stores.
    pub(crate) fn store(&mut self, va: u64, from: &[u8], mode: Mode) -> Result<(), PageFault> {
        for (va, range) in pieces(va, from.len()) {
            let target = self.translate(va, Access::Write, mode)?;
            self.write_target(target, &from[range]);
        }
        Ok(())
    }

    /// Reads bytes that do not cross a page.
    pub(crate) fn read_target(&self, target: Target, into: &mut [u8]) {
        let (Target::Frame(_, offset) | Target::M2p(_, offset)) = target;
        let (mut rest, mut skipped, mut ahead) = (into, offset % 8, 0);
        while !rest.is_empty() {
            let word = &self.target_word(target, ahead).to_le_bytes()[skipped..];
            let (now, later) = rest.split_at_mut(word.len().min(rest.len()));
            now.copy_from_slice(&word[..now.len()]);
            (rest, skipped, ahead) = (later, 0, ahead + 1);
        }
    }

    /// The word at a target, or so many `ahead` of it in the same page.
    pub(crate) fn target_word(&self, target: Target, ahead: usize) -> u64 {
        match target {
            Target::Frame(mfn, _) if !self.frames.is_ram(mfn) => u64::MAX,
            Target::Frame(mfn, offset) => self.frames.word(mfn, offset / 8 + ahead),
            Target::M2p(mfn, _) => self.m2p(Mfn::new(mfn + ahead as u64)),
        }
    }

    /// Writes bytes that do not cross a page. What is written to M2P or to a device is lost.
    pub(crate) fn write_target(&mut self, target: Target, from: &[u8]) {
        match target {
            Target::Frame(mfn, offset) if self.frames.is_ram(mfn) => {
                self.store_bytes(mfn, offset, from);
            }
            Target::Frame(..) | Target::M2p(..) => {}
        }
    }

    /// What M2P says.
    pub(crate) fn m2p(&self, mfn: Mfn) -> u64 {
        self.frames.peek(mfn).map_or(INVALID_M2P, |page| page.m2p)
    }
}

/// Cuts a run of addresses at page borders.
pub(crate) fn pieces(
    va: u64,
    len_bytes: usize,
) -> impl Iterator<Item = (u64, core::ops::Range<usize>)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        if done == len_bytes {
            return None;
        }
        let at = va.wrapping_add(done as u64);
        let room = hypercall::PAGE_SIZE - (at & 0xfff) as usize;
        let length = room.min(len_bytes - done);
        done += length;
        Some((at, done - length..done))
    })
}
