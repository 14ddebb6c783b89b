//! `mmu_update` (1): a run of changes of page-table entries, or of M2P (`do_mmu_update`).
//!
//! Section 4.1 of the specification.

use hypercall::commands::mmu;
use hypercall::{Errno, Level, Mfn, MmuUpdate};

use crate::l1e::{Owners, Place};
use crate::page::{DOM_IO, DOM_XEN};
use crate::release::Release;
use crate::state::{Answer, State};
use crate::types::PageType;

const DOMID_SELF: u16 = 0x7ff0;

/// What a batch answers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchAnswer {
    /// Entries in effect, where Xen reports them at all.
    pub(crate) done: Option<u32>,
    pub(crate) result: Answer,
}

impl BatchAnswer {
    pub(crate) const fn refused(errno: Errno, done: Option<u32>) -> Self {
        Self { done, result: Err(errno) }
    }
}

/// Whose tables and whose frames a run is about, after look-up.
#[derive(Debug, Clone, Copy)]
struct Parties {
    tables: u16,
    frames: u16,
}

impl State {
    /// Returns the domain that an MMU hypercall names (`get_pg_owner`). A caller may not give its
    /// own number.
    pub(crate) fn page_owner(&mut self, id: u16) -> Answer<u16> {
        let caller = self.caller();
        match id {
            DOMID_SELF => Ok(caller),
            _ if id == caller => {
                self.say(format_args!("Cannot specify itself as foreign domain"));
                Err(Errno::ESRCH)
            }
            DOM_IO | DOM_XEN => Ok(id),
            _ if self.find(id).is_some() => Ok(id),
            _ => {
                if self.release.before(Release::V4_9) {
                    self.say(format_args!("Unknown domain '{id}'"));
                } else {
                    self.say(format_args!("Unknown domain d{id}"));
                }
                Err(Errno::ESRCH)
            }
        }
    }

    /// Returns whether the caller may act for `target` (`XSM_TARGET` without a policy).
    pub(crate) fn may_act_for(&self, target: u16) -> bool {
        self.caller() == target || self.domain().is_privileged()
    }

    /// Carries out `do_mmu_update`. `read` fetches a request, which may fault.
    pub(crate) fn mmu_update(
        &mut self,
        count: usize,
        foreign: u32,
        mut read: impl FnMut(&mut Self, usize) -> Answer<MmuUpdate>,
    ) -> BatchAnswer {
        self.finish_teardown();
        let [low0, low1, high0, high1] = foreign.to_le_bytes();
        let (frames, tables) =
            (u16::from_le_bytes([low0, low1]), u16::from_le_bytes([high0, high1]));
        let tables = match tables.checked_sub(1) {
            None => self.caller(),
            // The domain that holds the tables is looked up quietly, and by any number but the
            // caller's own way.
            Some(id) => match self.find(id) {
                Some(domain) => domain.id,
                None => return BatchAnswer::refused(Errno::ESRCH, None),
            },
        };
        let frames = match self.page_owner(frames) {
            Ok(id) => id,
            Err(errno) => return BatchAnswer::refused(errno, Some(0)),
        };
        let parties = Parties { tables, frames };
        let mut links_changed = false;
        let (done, result) = self.batch(count, |state, at| {
            let request = read(state, at)?;
            links_changed |= state.update_one(request, parties)?;
            Ok(())
        });
        if links_changed {
            self.statistics.table_flushes += 1;
            self.flush_domain(tables);
        }
        BatchAnswer { done: Some(done), result }
    }

    /// One request. Answers whether it changed a link.
    fn update_one(&mut self, request: MmuUpdate, parties: Parties) -> Answer<bool> {
        match request.target() & mmu::MASK {
            mmu::MACHPHYS => self.update_m2p(request, parties).map(|()| false),
            command @ (mmu::NORMAL | mmu::PRESERVE_AD | mmu::NO_TRANSLATE) => {
                if parties.frames != DOM_IO && !self.may_act_for(parties.frames)
                    || !self.may_act_for(parties.tables)
                {
                    return Err(Errno::EPERM);
                }
                let mfn = request.frame();
                if !self.get_page_from_gfn(mfn, parties.tables) {
                    self.say(format_args!("Could not get page for normal update"));
                    return Err(Errno::EINVAL);
                }
                let keeps_accessed = command == mmu::PRESERVE_AD;
                let index = (request.target() >> 3 & 0x1ff) as usize;
                let place = Place { table: mfn, index, keeps_accessed };
                let answer = self.update_entry(place, request.value(), parties);
                self.put_page(mfn);
                answer
            }
            _ => Err(Errno::ENOSYS),
        }
    }

    /// Changes a word of a frame by the rules of the frame's type.
    fn update_entry(&mut self, place: Place, value: u64, parties: Parties) -> Answer<bool> {
        let Place { table, index, .. } = place;
        if !self.page_lock(table) {
            self.get_page_type(table, PageType::Writable)?;
            self.frames.words(table)[index] = value;
            self.frames.page(table).kind.count -= 1;
            return Ok(false);
        }
        let kind = self.frames.page(table).kind.kind;
        let answer = match kind.level() {
            Some(Level::L1) => {
                let owners = Owners { table: parties.tables, frame: parties.frames };
                self.mod_l1_entry(place, value, owners).map(|()| false)
            }
            Some(level) if parties.frames == parties.tables => {
                self.mod_link(level, place, value, parties.tables).map(|()| true)
            }
            None if kind == PageType::Writable => {
                self.frames.words(table)[index] = value;
                Ok(false)
            }
            Some(_) | None => Err(Errno::EINVAL),
        };
        self.page_unlock(table);
        answer
    }

    fn update_m2p(&mut self, request: MmuUpdate, parties: Parties) -> Answer {
        if parties.tables != self.caller() || !self.may_act_for(parties.frames) {
            return Err(Errno::EPERM);
        }
        let mfn: Mfn = request.frame();
        if !self.get_page_from_gfn(mfn, parties.frames) {
            self.say(format_args!("Could not get page for mach->phys update"));
            return Err(Errno::EINVAL);
        }
        self.frames.page(mfn).m2p = request.value();
        self.put_page(mfn);
        Ok(())
    }

    /// Flushes every TLB that may hold translations of a domain's.
    pub(crate) fn flush_domain(&mut self, id: u16) {
        if let Some(domain) = self.find_mut(id) {
            for vcpu in &mut domain.vcpus {
                vcpu.tlb.flush();
            }
        }
    }
}
