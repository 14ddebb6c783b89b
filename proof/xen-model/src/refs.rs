//! References: who holds a frame, and as what.
//!
//! Section 2 of the specification. A general reference keeps a frame its owner's; a type reference,
//! on top of it, keeps it usable as one type. Names in parentheses are Xen's (arch/x86/mm.c, 4.14
//! to 4.20).

use hypercall::{Errno, Mfn};

use crate::domain::{Holds, Parked};
use crate::log::{Number, Pd};
use crate::page::{Contents, INVALID_M2P, NOBODY, POISON};
use crate::release::Release;
use crate::state::{Answer, State};
use crate::types::{CountFlags, PageType, TypeFlags, TypeInfo};

impl State {
    /// Takes a general reference to a frame of `domain`'s (`get_page`).
    pub(crate) fn get_page(&mut self, mfn: Mfn, domain: u16) -> bool {
        let page = self.frames.page(mfn);
        if page.count.refs > 0 && page.owner == domain {
            page.count.refs += 1;
            return true;
        }
        self.explain_owner(mfn, domain);
        false
    }

    #[cold]
    fn explain_owner(&mut self, mfn: Mfn, wanted: u16) {
        let (release, layout) = (self.release, self.release.layout());
        let page = self.frames.page(mfn);
        let (caf, taf) = (page.count.word(release), page.kind.word(layout));
        let owner = if page.count.refs == 0 { NOBODY } else { page.owner };
        let mfn = self.number(mfn);
        if release.before(Release::V4_6) {
            // Where the domains' structures were, which says nothing; no owner is a null pointer.
            let pointer =
                |id: u16| if id == NOBODY { 0 } else { 0xffff_8300_0000_0000 | u64::from(id) };
            let (wanted, owner) = (pointer(wanted), pointer(owner));
            self.say(format_args!(
                "Error pfn {mfn}: rd={wanted:016x}, od={owner:016x}, caf={caf:08x}, taf={taf:016x}"
            ));
        } else if release.before(Release::V4_14) {
            // No owner is the number of DOMID_INVALID here.
            self.say_always(format_args!(
                "Error pfn {mfn}: rd={wanted} od={owner} caf={caf:08x} taf={taf:016x}"
            ));
        } else {
            let (wanted, owner) = (Pd(wanted), Pd(owner));
            self.say_always(format_args!(
                "Error mfn {mfn}: rd={wanted} od={owner} caf={caf:08x} taf={taf:016x}"
            ));
        }
    }

    /// As [`get_page`](Self::get_page), for any number (`get_page_from_mfn`).
    pub(crate) fn get_page_from_mfn(&mut self, mfn: Mfn, domain: u16) -> bool {
        if self.frames.is_ram(mfn) && self.get_page(mfn, domain) {
            return true;
        }
        let (what, number) =
            (if self.release.before(Release::V4_9) { "pfn" } else { "mfn" }, self.number(mfn));
        self.say(format_args!("Could not get page ref for {what} {number}"));
        false
    }

    /// As [`get_page`](Self::get_page), for any number, without a line if it is none of RAM
    /// (`get_page_from_gfn`).
    pub(crate) fn get_page_from_gfn(&mut self, mfn: Mfn, domain: u16) -> bool {
        self.frames.is_ram(mfn) && self.get_page(mfn, domain)
    }

    /// Drops a general reference; the last one frees the frame (`put_page`).
    pub(crate) fn put_page(&mut self, mfn: Mfn) {
        let page = self.frames.page(mfn);
        debug_assert!(page.count.refs > 0, "reference to {mfn} dropped twice");
        page.count.refs = page.count.refs.saturating_sub(1);
        if page.count.refs == 0 {
            self.free_page(mfn);
        }
    }

    /// Gives a frame back to the heap (`free_domheap_page`).
    pub(crate) fn free_page(&mut self, mfn: Mfn) {
        let page = self.frames.page(mfn);
        if page.count.flags.contains(CountFlags::XEN_HEAP) {
            page.owner = NOBODY;
            return;
        }
        debug_assert!(
            page.kind.count == 0,
            "frame {mfn} freed while it is in use as {}",
            page.kind.kind
        );
        let owner = core::mem::replace(&mut page.owner, NOBODY);
        page.count.flags = CountFlags::FREE;
        page.kind = TypeInfo::default();
        page.m2p = INVALID_M2P;
        page.contents = Contents::Filled(POISON);
        if let Some(domain) = self.find_mut(owner) {
            domain.tot_pages = domain.tot_pages.saturating_sub(1);
        }
        self.heap.free(mfn.raw());
    }

    /// Takes a use of a frame as `kind`, validating it if need be (`_get_page_type`).
    pub(crate) fn get_page_type(&mut self, mfn: Mfn, kind: PageType) -> Answer {
        let page = self.frames.page(mfn);
        let now = page.kind;
        if now.count > 0 {
            if now.kind != kind {
                self.explain_type(mfn, kind);
                return Err(Errno::EINVAL);
            }
            if now.is_validated() {
                page.kind.count += 1;
                return Ok(());
            }
            if !now.flags.contains(TypeFlags::PARTIAL) {
                // Someone is validating it right now. Xen would wait for another CPU; here there
                // is none.
                return Err(Errno::EINVAL);
            }
            page.kind.flags -= TypeFlags::PARTIAL;
            let result = self.validate_page(mfn, kind);
            self.put_page(mfn);
            return result;
        }
        page.kind.count = 1;
        self.statistics.transitions[now.kind as usize][kind as usize] += 1;
        let page = self.frames.page(mfn);
        if now.kind != kind {
            page.kind.kind = kind;
            page.kind.flags -= TypeFlags::VALIDATED;
            if now.kind != PageType::None {
                self.statistics.type_flushes += 1;
                self.flush_frame(mfn);
            }
        }
        let page = self.frames.page(mfn);
        if page.kind.flags.contains(TypeFlags::NON_COHERENT) && kind != PageType::Writable {
            page.kind.flags -= TypeFlags::NON_COHERENT;
        }
        if page.kind.is_validated() {
            return Ok(());
        }
        if kind == PageType::Writable || kind == PageType::None {
            page.kind.flags |= TypeFlags::VALIDATED;
            return Ok(());
        }
        page.linear = 0;
        page.validated = 0;
        self.validate_page(mfn, kind)
    }

    /// Says why a frame cannot be used as `wanted`. A type one level above is passed over: it may
    /// be a linear table.
    #[cold]
    fn explain_type(&mut self, mfn: Mfn, wanted: PageType) {
        let now = self.frames.page(mfn).kind;
        let one_above = matches!(
            (now.kind, wanted),
            (PageType::L2, PageType::L1)
                | (PageType::L3, PageType::L2)
                | (PageType::L4, PageType::L3)
        );
        if one_above {
            return;
        }
        let layout = self.release.layout();
        let (saw, expected) = (now.word(layout), wanted.word(layout));
        let (number, pfn): (Number, Number) = (self.number(mfn), self.m2p_number(mfn));
        self.say(format_args!(
            "Bad type (saw {saw:016x} != exp {expected:016x}) for mfn {number} (pfn {pfn})"
        ));
    }

    /// Finds out whether the contents are good for the type (`validate_page`).
    fn validate_page(&mut self, mfn: Mfn, kind: PageType) -> Answer {
        let result = match kind.level() {
            Some(level) => self.promote(mfn, level),
            None => self.validate_descriptors(mfn),
        };
        let errno = match result {
            Ok(()) => {
                self.frames.page(mfn).kind.flags |= TypeFlags::VALIDATED;
                return Ok(());
            }
            Err(errno) => errno,
        };
        let mut stopped_half_way = errno == Errno::ERESTART;
        if !stopped_half_way {
            self.explain_validation(mfn, kind);
            stopped_half_way = self.vcpu().parked.last().is_some_and(|parked| parked.table == mfn);
        }
        let page = self.frames.page(mfn);
        if stopped_half_way {
            page.kind.flags |= TypeFlags::PARTIAL;
            page.count.refs += 1;
        } else {
            page.kind = TypeInfo::default();
        }
        Err(errno)
    }

    #[cold]
    fn explain_validation(&mut self, mfn: Mfn, kind: PageType) {
        let (release, layout) = (self.release, self.release.layout());
        let page = self.frames.page(mfn);
        let (caf, taf) = (page.count.word(release), page.kind.word(layout));
        let kind = kind.word(layout);
        let (number, pfn) = (self.number(mfn), self.m2p_number(mfn));
        self.say(format_args!(
            "Error while validating mfn {number} (pfn {pfn}) for type {kind:016x}: \
             caf={caf:08x} taf={taf:016x}"
        ));
    }

    /// Takes a general reference and a use (`get_page_and_type_from_mfn`).
    pub(crate) fn get_page_and_type(&mut self, mfn: Mfn, kind: PageType, domain: u16) -> Answer {
        if !self.get_page_from_mfn(mfn, domain) {
            return Err(Errno::EINVAL);
        }
        self.get_page_type(mfn, kind).inspect_err(|_| self.put_page(mfn))
    }

    /// Drops a use; the last one of a table drops all its entries hold (`_put_page_type`).
    ///
    /// `container` is the table whose entry is the use, if any.
    pub(crate) fn put_page_type(&mut self, mfn: Mfn, container: Option<Mfn>) -> Answer {
        let now = self.frames.page(mfn).kind;
        let linear = container.filter(|container| {
            now.kind.level().is_some() && self.frames.page(*container).kind.kind == now.kind
        });
        let half_way = now.flags.contains(TypeFlags::PARTIAL);
        if now.count == 1 && now.kind.level().is_some() && (now.is_validated() || half_way) {
            let page = self.frames.page(mfn);
            page.kind.flags -= TypeFlags::VALIDATED | TypeFlags::PARTIAL;
            if let Err(errno) = self.demote(mfn) {
                let page = self.frames.page(mfn);
                page.kind.flags |= TypeFlags::PARTIAL;
                if !half_way {
                    page.count.refs += 1;
                }
                return Err(errno);
            }
            self.frames.page(mfn).kind.count = 0;
            if half_way {
                self.put_page(mfn);
            }
        } else {
            let page = self.frames.page(mfn);
            debug_assert!(page.kind.count > 0, "use of {mfn} dropped twice");
            page.kind.count = page.kind.count.saturating_sub(1);
        }
        if let Some(container) = linear {
            self.frames.page(mfn).linear += 1;
            self.frames.page(container).linear -= 1;
        }
        Ok(())
    }

    /// Drops a use and a general reference (`put_page_and_type_preemptible`).
    pub(crate) fn put_page_and_type(&mut self, mfn: Mfn, container: Option<Mfn>) -> Answer {
        self.put_page_type(mfn, container)?;
        self.put_page(mfn);
        Ok(())
    }

    /// Drops a use that is no table's, which cannot be interrupted, and a general reference.
    pub(crate) fn put_plain_page_and_type(&mut self, mfn: Mfn) {
        let page = self.frames.page(mfn);
        debug_assert!(page.kind.count > 0, "use of {mfn} dropped twice");
        page.kind.count = page.kind.count.saturating_sub(1);
        self.put_page(mfn);
    }

    /// Drops what a parked table holds.
    pub(crate) fn tear_down(&mut self, parked: Parked) -> Answer {
        match parked.holds {
            Holds::Both => self.put_page_and_type(parked.table, parked.container),
            Holds::Partial => self.put_page_type(parked.table, parked.container),
        }
    }

    /// Locks a frame whose use is settled, for the edit of one entry (`page_lock`).
    pub(crate) fn page_lock(&mut self, mfn: Mfn) -> bool {
        let kind = &mut self.frames.page(mfn).kind;
        if kind.count == 0 || !kind.is_validated() {
            return false;
        }
        kind.flags |= TypeFlags::LOCKED;
        kind.count += 1;
        true
    }

    /// Undoes [`page_lock`](Self::page_lock).
    pub(crate) fn page_unlock(&mut self, mfn: Mfn) {
        let kind = &mut self.frames.page(mfn).kind;
        kind.flags -= TypeFlags::LOCKED;
        kind.count -= 1;
    }
}
