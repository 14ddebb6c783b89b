//! Suspend, save and restore of a domU, as the toolstack does it.
//!
//! Section 7 of the specification (tools/libs/guest, xg_sr_save_x86_pv.c and
//! xg_sr_restore_x86_pv.c). A saved guest comes back with other frames: its tables, its P2M list
//! and its `start_info` are rewritten, everything else is as it was. What the real toolstack loses
//! in silence is named here.

use core::fmt;

use hypercall::{Level, Mfn, PAGE_SHIFT, Pfn, Pte};

use crate::page::WORDS;

use crate::build::Builder;
use crate::l1e::{PRESENT, frame_of};
use crate::model::Vcpu;
use crate::state::State;
use crate::types::TypeFlags;
use crate::xen_slots;

/// `SHUTDOWN_suspend`.
pub(crate) const SUSPEND: u8 = 2;

/// Words of `shared_info` (its `arch` part, from byte 3088).
pub(crate) const MAX_PFN: usize = 386;
pub(crate) const FRAME_LISTS: usize = 387;
pub(crate) const P2M_CR3: usize = 389;
pub(crate) const P2M_VADDR: usize = 390;
pub(crate) const P2M_GENERATION: usize = 391;

/// A present entry of a table that leads out of the guest: the toolstack drops the whole table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostTable {
    /// The table.
    pub table: Pfn,
    /// Its level.
    pub level: Level,
    /// The first such entry.
    pub index: usize,
    /// What it holds.
    pub entry: u64,
}

impl fmt::Display for LostTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, level, index, entry } = self;
        write!(
            f,
            "the {level} table in pfn {table} is lost: entry {index:#x} = {entry:016x} \
             leads to a frame that is none of the guest's"
        )
    }
}

/// Why a guest cannot be saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveError {
    /// It has not suspended itself.
    NotSuspended,
    /// It has published no P2M list, or one that cannot be read.
    P2mUnreadable,
    /// The frame of `start_info` that it gave with the suspend call is none of its own.
    StartInfo(u64),
    /// A root or a frame of the GDT is none of its own.
    Context(Mfn),
    /// A table holds a superpage.
    Superpage(Pfn),
}

impl fmt::Display for SaveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSuspended => f.write_str("the guest has not suspended itself"),
            Self::P2mUnreadable => f.write_str("the guest's P2M list cannot be read"),
            Self::StartInfo(mfn) => write!(f, "rdx was {mfn:#x}, not the mfn of start_info"),
            Self::Context(mfn) => write!(f, "mfn {mfn} of a vCPU's context is not in the P2M list"),
            Self::Superpage(pfn) => write!(f, "the table in pfn {pfn} holds a superpage"),
        }
    }
}

impl core::error::Error for SaveError {}

/// A page as it is sent.
#[derive(Debug, Clone)]
pub(crate) struct SavedPage {
    pub(crate) pfn: u64,
    /// The level, if it is a table.
    pub(crate) level: Option<Level>,
    pub(crate) pinned: bool,
    /// Entries of tables hold pfns where they are present.
    pub(crate) words: Box<[u64; WORDS]>,
}

/// A saved guest.
#[derive(Debug, Clone)]
pub struct Image {
    pub(crate) builder: Builder,
    /// Number of entries of the P2M list.
    pub(crate) entries: u64,
    pub(crate) pages: Vec<SavedPage>,
    pub(crate) lost: Vec<LostTable>,
    /// The pages that the list lies in, in order.
    pub(crate) list: Vec<u64>,
    pub(crate) start_info: u64,
    pub(crate) roots: [Option<u64>; 2],
    pub(crate) gdt: Vec<u64>,
    pub(crate) gdt_entries: u64,
    pub(crate) ldt: (u64, u64),
    pub(crate) assists: u64,
    /// `arch` of `shared_info`: max_pfn, p2m_cr3, p2m_vaddr, p2m_generation.
    pub(crate) arch: [u64; 4],
    pub(crate) max_pages: u64,
}

impl Image {
    /// Tables that the restored guest will find empty.
    #[must_use]
    pub fn lost_tables(&self) -> &[LostTable] {
        &self.lost
    }
}

impl Vcpu<'_> {
    /// Lets a suspended guest go on in place, as `xl save -c` does: its call answers 1, nothing
    /// else has changed.
    pub fn resume(&self) {
        let mut state = self.run();
        let domain = state.current.domain;
        state.domains[domain].shutdown = None;
    }

    /// Saves the guest, which must have suspended itself.
    ///
    /// # Errors
    /// [`SaveError`]. A table that the toolstack would lose is no error, to it: see
    /// [`Image::lost_tables`].
    ///
    /// ```
    /// let model = xen_model::Model::builder().build()?;
    /// match model.guest().save() {
    ///     Ok(image) => drop(image.restore(2)?), // elsewhere, with other frames
    ///     // A toolstack reads the guest's frame list, and this guest has not said where it is.
    ///     Err(error) => println!("{error}"),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn save(&self) -> Result<Image, SaveError> {
        let mut state = self.run();
        let image = state.save()?;
        for lost in &image.lost {
            state.violation(lost.to_string());
        }
        Ok(image)
    }
}

/// The guest's P2M list as the toolstack reads it.
struct P2m {
    entries: Vec<u64>,
    /// Frames that the list lies in.
    frames: Vec<Mfn>,
}

impl State {
    fn read_p2m(&self) -> Option<P2m> {
        let shared = self.domain().shared_info;
        let entries = self.frames.word(shared, MAX_PFN);
        let cr3 = self.frames.word(shared, P2M_CR3);
        let pages = entries.div_ceil(WORDS as u64);
        let ram = |mfn: u64| {
            let mfn = Mfn::new(mfn);
            (mfn.raw() != 0 && self.frames.is_ram(mfn)).then_some(mfn)
        };
        let frames: Option<Vec<Mfn>> = if cr3 != 0 {
            let (root, start) = (ram(cr3 >> PAGE_SHIFT)?, self.frames.word(shared, P2M_VADDR));
            let frame = |page: u64| {
                let va = start.wrapping_add(page << PAGE_SHIFT);
                let table = self.find_l1(root, va)?;
                let entry = self.frames.word(table, Self::index_of(Level::L1, va));
                ram(frame_of(entry).raw()).filter(|_| entry & PRESENT != 0)
            };
            (0..pages).map(frame).collect()
        } else {
            let lists = ram(self.frames.word(shared, FRAME_LISTS))?;
            let at = |table: Mfn, k: u64| ram(self.frames.word(table, (k % 512) as usize));
            (0..pages).map(|page| at(at(lists, page / 512)?, page)).collect()
        };
        let frames = frames?;
        let word = |pfn: u64| {
            frames
                .get((pfn / 512) as usize)
                .map_or(u64::MAX, |frame| self.frames.word(*frame, (pfn % 512) as usize))
        };
        let entries = (0..entries).map(word).collect::<Vec<u64>>();
        (!entries.is_empty()).then_some(P2m { entries, frames })
    }

    /// Returns the pfn of a frame, if P2M and M2P agree on it (`mfn_in_pseudophysmap`).
    fn pfn_in(&self, p2m: &P2m, mfn: Mfn) -> Option<u64> {
        let pfn = self.m2p(mfn);
        let back = p2m.entries.get(usize::try_from(pfn).ok()?)?;
        (*back == mfn.raw()).then_some(pfn)
    }

    fn save(&mut self) -> Result<Image, SaveError> {
        if self.domain().shutdown != Some(SUSPEND) {
            return Err(SaveError::NotSuspended);
        }
        let p2m = self.read_p2m().ok_or(SaveError::P2mUnreadable)?;
        let rdx = self.vcpu().suspend_argument;
        let start_info = self.pfn_in(&p2m, Mfn::new(rdx)).ok_or(SaveError::StartInfo(rdx))?;
        let context =
            |state: &Self, mfn: Mfn| state.pfn_in(&p2m, mfn).ok_or(SaveError::Context(mfn));
        let mut roots = [None; 2];
        let vcpu = self.vcpu();
        let (frames, gdt_entries) = (vcpu.gdt.clone(), vcpu.gdt_entries);
        let ldt = (vcpu.ldt_base, vcpu.ldt_entries);
        for (root, mfn) in roots.iter_mut().zip([vcpu.kernel_root, vcpu.user_root]) {
            *root = mfn.map(|mfn| context(self, mfn)).transpose()?;
        }
        let gdt = frames.into_iter().map(|mfn| context(self, mfn)).collect::<Result<_, _>>()?;
        let list = p2m.frames.iter().map(|mfn| context(self, *mfn)).collect::<Result<_, _>>()?;
        let mut lost = Vec::new();
        let pages = self.save_pages(&p2m, &mut lost)?;
        let shared = self.domain().shared_info;
        let arch = [MAX_PFN, P2M_CR3, P2M_VADDR, P2M_GENERATION]
            .map(|word| self.frames.word(shared, word));
        let (assists, max_pages) = (self.domain().assists, self.domain().max_pages);
        let entries = p2m.entries.len() as u64;
        let builder = self.builder.clone();
        Ok(Image {
            builder,
            entries,
            pages,
            lost,
            list,
            start_info,
            roots,
            gdt,
            gdt_entries,
            ldt,
            assists,
            arch,
            max_pages,
        })
    }

    fn save_pages(
        &self,
        p2m: &P2m,
        lost: &mut Vec<LostTable>,
    ) -> Result<Vec<SavedPage>, SaveError> {
        let mut pages = Vec::new();
        for (pfn, mfn) in p2m.entries.iter().enumerate() {
            let (pfn, mfn) = (pfn as u64, Mfn::new(*mfn));
            let Some(page) = self.frames.peek(mfn) else { continue };
            if page.owner != self.domain().id {
                continue;
            }
            let pinned = page.kind.flags.contains(TypeFlags::PINNED);
            let level = page.kind.kind.level().filter(|_| page.kind.is_validated() || pinned);
            let mut words = Box::new(core::array::from_fn(|k| self.frames.word(mfn, k)));
            if let Some(level) = level {
                match self.localise(p2m, level, &mut words) {
                    Ok(()) => {}
                    Err(Bad::Superpage) => return Err(SaveError::Superpage(Pfn::new(pfn))),
                    Err(Bad::Foreign(index, entry)) => {
                        lost.push(LostTable { table: Pfn::new(pfn), level, index, entry });
                        words.fill(0);
                    }
                }
            }
            pages.push(SavedPage { pfn, level, pinned, words });
        }
        Ok(pages)
    }

    /// Puts pfns for mfns into the present entries of a table (`normalise_pagetable`).
    fn localise(&self, p2m: &P2m, level: Level, words: &mut [u64; WORDS]) -> Result<(), Bad> {
        for (index, word) in words.iter_mut().enumerate() {
            if *word & PRESENT == 0 || level == Level::L4 && xen_slots::is_xens(index) {
                continue;
            }
            if level != Level::L1 && *word & 0x80 != 0 {
                return Err(Bad::Superpage);
            }
            let pfn = self.pfn_in(p2m, frame_of(*word)).ok_or(Bad::Foreign(index, *word))?;
            *word = *word & !Pte::ADDRESS_MASK | pfn << PAGE_SHIFT;
        }
        Ok(())
    }
}

/// An entry that cannot be sent.
enum Bad {
    Superpage,
    Foreign(usize, u64),
}
