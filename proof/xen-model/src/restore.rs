//! Bringing a saved guest back, with other frames.
//!
//! Section 7.4 of the specification (tools/libs/guest, xg_sr_restore_x86_pv.c): contexts first,
//! which validates the running tables; then pins; then the P2M list.

use core::fmt;

use hypercall::{Level, Mfn, PAGE_SHIFT, Pfn, Pte};

use crate::page::WORDS;

use crate::l1e::PRESENT;
use crate::model::Model;
use crate::save::{FRAME_LISTS, Image, MAX_PFN, P2M_CR3, P2M_GENERATION, P2M_VADDR};
use crate::state::State;
use crate::types::PageType;
use crate::xen_slots;

/// Words of `start_info`.
const NR_PAGES: usize = 4;
const SHARED_INFO: usize = 5;
const FLAGS: usize = 6;
const STORE_MFN: usize = 7;
const CONSOLE_MFN: usize = 9;

/// Why a saved guest cannot be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreError {
    /// The machine could not be made.
    Build,
    /// The guest left something else than a pfn in `start_info.store_mfn` or `.console`.
    RingNotPfn(u64),
    /// Xen refused to take a table as what it was: an errno.
    Refused(Pfn, hypercall::Errno),
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Build => f.write_str("the new machine cannot be made"),
            Self::RingNotPfn(word) => {
                write!(f, "start_info names ring {word:#x}, which is not a pfn")
            }
            Self::Refused(pfn, errno) => write!(f, "the table in pfn {pfn} was refused: {errno}"),
        }
    }
}

impl core::error::Error for RestoreError {}

impl Image {
    /// Makes a machine on which the guest goes on, with frames by `seed`.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn restore(&self, seed: u64) -> Result<Model, RestoreError> {
        let builder = self.builder.clone().seed(seed).blank(self.entries);
        let model = builder.build().map_err(|_| RestoreError::Build)?;
        self.fill(&model)?;
        Ok(model)
    }

    fn fill(&self, model: &Model) -> Result<(), RestoreError> {
        let mut state = model.state_mut();
        let state = &mut *state;
        let mfn = |state: &State, pfn: u64| state.frames.plans()[0].mfn(pfn);
        let mut sent =
            vec![false; self.pages.len().max(usize::try_from(self.entries).unwrap_or(0))];
        for page in &self.pages {
            sent[place(page.pfn)] = true;
            let frame = mfn(state, page.pfn);
            let mut words = page.words.clone();
            for (index, word) in words.iter_mut().enumerate() {
                let xens = page.level == Some(Level::L4) && xen_slots::is_xens(index);
                if page.level.is_some() && *word & PRESENT != 0 && !xens {
                    let target = mfn(state, (*word & Pte::ADDRESS_MASK) >> PAGE_SHIFT);
                    *word = *word & !Pte::ADDRESS_MASK | target.raw() << PAGE_SHIFT;
                }
            }
            *state.frames.words(frame) = *words;
        }
        for pfn in (0..self.entries).filter(|pfn| !sent[place(*pfn)]) {
            let frame = mfn(state, pfn);
            state.frames.page(frame).count.refs = 1;
            state.put_page(frame);
        }
        state.domains[0].max_pages = self.max_pages;
        state.domains[0].assists = self.assists;
        self.load_context(state)?;
        for page in self.pages.iter().filter(|page| page.pinned) {
            let Some(level) = page.level else { continue };
            let frame = mfn(state, page.pfn);
            let refused = |errno| RestoreError::Refused(Pfn::new(page.pfn), errno);
            state.pin(level, frame, state.caller()).map_err(refused)?;
        }
        for (nth, page) in self.list.iter().enumerate() {
            for index in 0..WORDS {
                let pfn = (nth * WORDS + index) as u64;
                let there = sent.get(place(pfn)).copied().unwrap_or(false);
                let word = if there { mfn(state, pfn).raw() } else { u64::MAX };
                state.frames.words(mfn(state, *page))[index] = word;
            }
        }
        self.rewrite_info(state)
    }

    /// Roots and descriptor tables of the first vCPU; this validates its tables.
    fn load_context(&self, state: &mut State) -> Result<(), RestoreError> {
        let caller = state.caller();
        for (which, root) in self.roots.iter().enumerate() {
            let Some(pfn) = *root else { continue };
            let frame = state.frames.plans()[0].mfn(pfn);
            let refused = |errno| RestoreError::Refused(Pfn::new(pfn), errno);
            state.get_page_and_type(frame, PageType::L4, caller).map_err(refused)?;
            let vcpu = state.vcpu();
            let root = if which == 0 { &mut vcpu.kernel_root } else { &mut vcpu.user_root };
            *root = Some(frame);
            if which == 0 {
                state.frames.words(frame)[xen_slots::M2P_SLOT] = xen_slots::m2p_entry();
            }
        }
        let frames: Vec<Mfn> =
            self.gdt.iter().map(|pfn| state.frames.plans()[0].mfn(*pfn)).collect();
        let first = self.gdt.first().copied().unwrap_or(0);
        let refused = |errno| RestoreError::Refused(Pfn::new(first), errno);
        state.set_gdt(&frames, self.gdt_entries).map_err(refused)?;
        (state.vcpu().ldt_base, state.vcpu().ldt_entries) = self.ldt;
        Ok(())
    }

    /// `start_info` and `shared_info` as the restored guest finds them.
    fn rewrite_info(&self, state: &mut State) -> Result<(), RestoreError> {
        let frame = state.frames.plans()[0].mfn(self.start_info);
        let shared = state.domains[0].shared_info;
        for word in [STORE_MFN, CONSOLE_MFN] {
            let pfn = state.frames.word(frame, word);
            if pfn >= self.entries {
                return Err(RestoreError::RingNotPfn(pfn));
            }
            let mfn = state.frames.plans()[0].mfn(pfn).raw();
            state.frames.words(frame)[word] = mfn;
        }
        let words = state.frames.words(frame);
        words[NR_PAGES] = self.entries;
        words[SHARED_INFO] = shared.raw() << PAGE_SHIFT;
        state.store_bytes(frame, FLAGS * 8, &[0; 4]);
        state.vcpu().suspend_argument = frame.raw();
        let words = state.frames.words(shared);
        let kept = [MAX_PFN, P2M_CR3, P2M_VADDR, P2M_GENERATION];
        for (word, value) in kept.into_iter().zip(self.arch) {
            words[word] = value;
        }
        words[FRAME_LISTS] = 0;
        Ok(())
    }
}

/// A pfn as an index. The host's addresses have 64 bits.
fn place(pfn: u64) -> usize {
    usize::try_from(pfn).unwrap_or(usize::MAX)
}
