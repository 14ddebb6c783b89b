//! `mmuext_op` (26): pins, roots, flushes and the rest (`do_mmuext_op`).
//!
//! Section 4.2 of the specification.

use hypercall::commands::ext;
use hypercall::{Errno, Level, Mfn, MmuExtOp};

use crate::domain::{ASSIST_M2P_STRICT, Domain, Holds, Parked};
use crate::mmu_update::BatchAnswer;
use crate::page::{DOM_IO, DOM_XEN, WORDS};
use crate::release::Release;
use crate::state::{Answer, State};
use crate::types::{PageType, TypeFlags};
use crate::xen_slots;

/// Most entries of an LDT.
const LDT_ENTRIES_MAX: u64 = 8192;

/// How the vCPUs of a `*_MULTI` flush are named.
pub(crate) type ReadMask<'f> = &'f mut dyn FnMut(&mut State, u64) -> Answer<u64>;

impl State {
    /// Carries out `do_mmuext_op`. `read` fetches an operation, `mask` the vCPU mask at an address;
    /// both may fault.
    pub(crate) fn mmuext_op(
        &mut self,
        count: usize,
        foreign: u16,
        mut read: impl FnMut(&mut Self, usize) -> Answer<MmuExtOp>,
        mask: ReadMask<'_>,
    ) -> BatchAnswer {
        self.finish_teardown();
        let owner = match self.page_owner(foreign) {
            Ok(id) => id,
            Err(errno) => return BatchAnswer::refused(errno, None),
        };
        if matches!(owner, DOM_IO | DOM_XEN) {
            // Neither is a PV domain.
            return BatchAnswer::refused(Errno::EINVAL, None);
        }
        if !self.may_act_for(owner) {
            return BatchAnswer::refused(Errno::EPERM, None);
        }
        let (done, result) = self.batch(count, |state, at| {
            let op = read(state, at)?;
            state.extended(op, owner, mask)
        });
        BatchAnswer { done: Some(done), result }
    }

    fn extended(&mut self, op: MmuExtOp, owner: u16, mask: ReadMask<'_>) -> Answer {
        let mfn = Mfn::new(op.argument1());
        let command = op.command();
        match command {
            ext::PIN_L1_TABLE..=ext::PIN_L4_TABLE => {
                let level = [Level::L1, Level::L2, Level::L3, Level::L4][command as usize];
                return self.pin(level, mfn, owner);
            }
            ext::UNPIN_TABLE => return self.unpin(mfn, owner),
            ext::CLEAR_PAGE => return self.clear_page(mfn, owner),
            ext::COPY_PAGE => {
                return self.copy_page(mfn, Mfn::new(op.argument2()), owner);
            }
            ext::MARK_SUPER | ext::UNMARK_SUPER => {
                return Err(Errno::EOPNOTSUPP);
            }
            14 | 21.. => return Err(Errno::ENOSYS),
            _ => {}
        }
        if owner != self.caller() {
            return Err(Errno::EPERM);
        }
        match command {
            ext::NEW_BASEPTR => self.new_kernel_root(mfn),
            ext::NEW_USER_BASEPTR => self.new_user_root(mfn),
            ext::FLUSH_CACHE | ext::FLUSH_CACHE_GLOBAL => self.flush_cache(command),
            ext::SET_LDT => self.set_ldt(op.argument1(), op.argument2()),
            _ => self.flush_tlb(op, mask),
        }
    }

    /// Carries out `MMUEXT_PIN_L1_TABLE` to `MMUEXT_PIN_L4_TABLE`.
    pub(crate) fn pin(&mut self, level: Level, mfn: Mfn, owner: u16) -> Answer {
        if !self.get_page_from_gfn(mfn, owner) {
            return Err(Errno::EINVAL);
        }
        if let Err(errno) = self.get_page_type(mfn, PageType::table(level)) {
            if errno != Errno::ERESTART {
                self.explain_pin(errno, mfn);
            }
            self.put_page(mfn);
            return Err(errno);
        }
        let page = self.frames.page(mfn);
        if page.kind.flags.contains(TypeFlags::PINNED) {
            let number = self.number(mfn);
            let subject = if self.release.before(Release::V4_9) { "Mfn" } else { "mfn" };
            self.say(format_args!("{subject} {number} already pinned"));
            // A pin holds another use, so this is not the last one.
            self.put_page_and_type(mfn, None)?;
            return Err(Errno::EINVAL);
        }
        page.kind.flags |= TypeFlags::PINNED;
        Ok(())
    }

    #[cold]
    fn explain_pin(&mut self, errno: Errno, mfn: Mfn) {
        let number = self.number(mfn);
        if self.release.before(Release::V4_9) {
            self.say(format_args!("Error while pinning mfn {number}"));
        } else {
            let errno = errno.raw();
            self.say(format_args!("Error -{errno} while pinning mfn {number}"));
        }
    }

    /// Carries out `MMUEXT_UNPIN_TABLE`.
    fn unpin(&mut self, mfn: Mfn, owner: u16) -> Answer {
        let old_text = self.release.before(Release::V4_9);
        let number = self.number(mfn);
        if !self.get_page_from_gfn(mfn, owner) {
            if old_text {
                self.say(format_args!("Mfn {number} bad domain"));
            } else {
                self.say(format_args!("mfn {number} bad, or bad owner d{owner}"));
            }
            return Err(Errno::EINVAL);
        }
        let page = self.frames.page(mfn);
        if !page.kind.flags.contains(TypeFlags::PINNED) {
            self.put_page(mfn);
            let subject = if old_text { "Mfn" } else { "mfn" };
            self.say(format_args!("{subject} {number} not pinned"));
            return Err(Errno::EINVAL);
        }
        page.kind.flags -= TypeFlags::PINNED;
        self.park(Parked { table: mfn, container: None, holds: Holds::Both });
        self.put_page(mfn);
        Ok(())
    }

    /// Carries out `MMUEXT_NEW_BASEPTR` (`new_guest_cr3`). Xen turns global translations off while
    /// it loads cr3 (`switch_cr3_cr4`), so the TLB keeps none.
    fn new_kernel_root(&mut self, mfn: Mfn) -> Answer {
        let old = self.vcpu().kernel_root;
        if old == Some(mfn) {
            self.vcpu().tlb.flush();
            return Ok(());
        }
        let caller = self.caller();
        if let Err(errno) = self.get_page_and_type(mfn, PageType::L4, caller) {
            if errno != Errno::ERESTART {
                let number = self.number(mfn);
                self.say(format_args!("Error while installing new baseptr {number}"));
            }
            return Err(errno);
        }
        self.forget_ldt_pages_of(self.current.vcpu);
        if !self.domain().has_assist(ASSIST_M2P_STRICT) {
            self.frames.words(mfn)[xen_slots::M2P_SLOT] = xen_slots::m2p_entry();
        }
        self.vcpu().kernel_root = Some(mfn);
        self.vcpu().tlb.flush();
        if let Some(old) = old {
            self.park(Parked { table: old, container: None, holds: Holds::Both });
        }
        Ok(())
    }

    /// Carries out `MMUEXT_NEW_USER_BASEPTR`.
    fn new_user_root(&mut self, mfn: Mfn) -> Answer {
        let old = self.vcpu().user_root;
        let new = (mfn.raw() != 0).then_some(mfn);
        if old == new {
            return Ok(());
        }
        if let Some(mfn) = new {
            let caller = self.caller();
            if let Err(errno) = self.get_page_and_type(mfn, PageType::L4, caller) {
                if errno != Errno::ERESTART {
                    self.explain_user_root(errno, mfn);
                }
                return Err(errno);
            }
            if self.domain().has_assist(ASSIST_M2P_STRICT) {
                self.frames.words(mfn)[xen_slots::M2P_SLOT] = 0;
            }
        }
        self.vcpu().user_root = new;
        if let Some(old) = old {
            self.park(Parked { table: old, container: None, holds: Holds::Both });
        }
        Ok(())
    }

    #[cold]
    fn explain_user_root(&mut self, errno: Errno, mfn: Mfn) {
        let number = self.number(mfn);
        if self.release.before(Release::V4_9) {
            self.say(format_args!("Error while installing new mfn {number}"));
        } else {
            let errno = errno.raw();
            self.say(format_args!("Error -{errno} installing new mfn {number}"));
        }
    }

    /// Carries out `MMUEXT_FLUSH_CACHE` and `MMUEXT_FLUSH_CACHE_GLOBAL`, for those who may map
    /// devices.
    fn flush_cache(&self, command: u32) -> Answer {
        if self.domain().is_privileged() {
            Ok(())
        } else if command == ext::FLUSH_CACHE || self.release == Release::V4_20 {
            Err(Errno::EACCES)
        } else {
            Err(Errno::EINVAL)
        }
    }

    /// Returns the six TLB flushes.
    fn flush_tlb(&mut self, op: MmuExtOp, mask: ReadMask<'_>) -> Answer {
        let vcpus = self.domain().vcpus.len();
        let everyone = u64::MAX;
        let which = match op.command() {
            ext::TLB_FLUSH_LOCAL | ext::INVLPG_LOCAL => {
                1u64.checked_shl(u32::try_from(self.current.vcpu).unwrap_or(0)).unwrap_or(1)
            }
            // A typed operation carries its vCPUs with it.
            ext::TLB_FLUSH_MULTI | ext::INVLPG_MULTI if !op.vcpus().is_empty() => {
                u64::from(op.vcpus().0)
            }
            ext::TLB_FLUSH_MULTI | ext::INVLPG_MULTI => {
                mask(self, op.argument2()).map_err(|_| Errno::EINVAL)?
            }
            _ => everyone,
        };
        let one_page =
            matches!(op.command(), ext::INVLPG_LOCAL | ext::INVLPG_MULTI | ext::INVLPG_ALL);
        let page = one_page.then(|| op.argument1());
        if page.is_some_and(|va| !xen_slots::is_canonical(va) || !xen_slots::address_ok(va)) {
            return Ok(());
        }
        self.statistics.asked_flushes += 1;
        for vcpu in (0..vcpus).filter(|vcpu| *vcpu >= 64 || which & 1 << vcpu != 0) {
            self.flush_vcpu(vcpu, page);
        }
        Ok(())
    }

    /// Flushes a page, or all, from the TLB of one of the caller's vCPUs.
    pub(crate) fn flush_vcpu(&mut self, vcpu: usize, page: Option<u64>) {
        let domain = self.current.domain;
        let tlb = &mut self.domains[domain].vcpus[vcpu].tlb;
        match page {
            Some(va) => tlb.flush_page(va >> hypercall::PAGE_SHIFT),
            None => tlb.flush(),
        }
    }

    /// Carries out `MMUEXT_SET_LDT`: notes where the LDT is; its pages are looked at when they are
    /// used.
    fn set_ldt(&mut self, base: u64, entries: u64) -> Answer {
        let entries = entries & 0xffff_ffff;
        let aligned = base.is_multiple_of(hypercall::PAGE_SIZE as u64);
        if entries > LDT_ENTRIES_MAX || entries > 0 && !(aligned && xen_slots::address_ok(base)) {
            self.say(format_args!("Bad args to SET_LDT: ptr={base:x}, ents={entries:x}"));
            return Err(Errno::EINVAL);
        }
        let same = self.vcpu().ldt_base == base && self.vcpu().ldt_entries == entries;
        if !same {
            self.forget_ldt_pages_of(self.current.vcpu);
            self.vcpu().ldt_base = base;
            self.vcpu().ldt_entries = entries;
        }
        Ok(())
    }

    /// Carries out `MMUEXT_CLEAR_PAGE`.
    fn clear_page(&mut self, mfn: Mfn, owner: u16) -> Answer {
        let got = self.get_page_from_gfn(mfn, owner);
        if !got || self.get_page_type(mfn, PageType::Writable).is_err() {
            if got {
                self.put_page(mfn);
            }
            let number = self.number(mfn);
            self.say(format_args!("Error clearing mfn {number}"));
            return Err(Errno::EINVAL);
        }
        self.frames.words(mfn).fill(0);
        self.put_plain_page_and_type(mfn);
        Ok(())
    }

    /// Carries out `MMUEXT_COPY_PAGE`.
    fn copy_page(&mut self, to: Mfn, from: Mfn, owner: u16) -> Answer {
        if !self.get_page_from_gfn(from, owner) {
            let number = self.number(from);
            self.say(format_args!("Error copying from mfn {number}"));
            return Err(Errno::EINVAL);
        }
        let got = self.get_page_from_gfn(to, owner);
        if !got || self.get_page_type(to, PageType::Writable).is_err() {
            if got {
                self.put_page(to);
            }
            self.put_page(from);
            let number = self.number(to);
            self.say(format_args!("Error copying to mfn {number}"));
            return Err(Errno::EINVAL);
        }
        for index in 0..WORDS {
            let word = self.frames.word(from, index);
            self.frames.words(to)[index] = word;
        }
        self.put_plain_page_and_type(to);
        self.put_page(from);
        Ok(())
    }

    /// Returns whether a domain keeps M2P from its user mode.
    pub(crate) fn has_strict_m2p(&self, owner: u16) -> bool {
        self.find(owner).is_some_and(|domain: &Domain| domain.has_assist(ASSIST_M2P_STRICT))
    }
}
