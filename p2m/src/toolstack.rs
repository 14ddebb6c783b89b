//! What toolstacks read when they save, migrate or examine the guest (`struct arch_shared_info`):
//! the place and length of the linear list, and whether its mapping is changing.
#![expect(unsafe_code, reason = "what is published, toolstacks overwrite at a restore (I-20)")]

use core::fmt;

use hypercall::{GuestVa, Level, Mfn, PAGE_SHIFT};

use crate::map::P2m;
use crate::sync::{ArchSharedInfo, AtomicU64, MapWords, Ordering, fence};

/// The span of an L2 table. A list for toolstacks must begin at a multiple of it.
const LIST_ALIGNMENT: u64 = 1 << Level::L3.shift();

/// An address at which toolstacks would misread a linear list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnalignedList(pub GuestVa);

impl fmt::Display for UnalignedList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "toolstacks misread a linear list at {}: it must begin at a GiB", self.0)
    }
}

impl core::error::Error for UnalignedList {}

/// The words in `shared_info` that the guest writes.
///
/// After a restore the guest has another `shared_info`: `max_pfn` and the generation are as they
/// were, the frame list is gone, and `p2m_cr3` is stale. Create a new value then and publish again.
#[derive(Clone, Copy, Debug)]
pub struct Toolstack<'a> {
    words: &'a MapWords,
}

/// Above this bit, a generation counts the changes under way. Toolstacks only see that it is odd,
/// or has changed.
const UNDER_WAY_SHIFT: u32 = 48;
const UNDER_WAY_MAX: u64 = u64::MAX >> UNDER_WAY_SHIFT;
/// The bits of the number itself.
const NUMBER: u64 = (1 << UNDER_WAY_SHIFT) - 1;

/// Returns the generation with one more change under way: odd, whatever it was.
const fn begun(generation: u64) -> u64 {
    match generation >> UNDER_WAY_SHIFT {
        UNDER_WAY_MAX => generation | 1,
        under_way => (under_way + 1) << UNDER_WAY_SHIFT | generation & NUMBER | 1,
    }
}

/// Returns the generation when a change has ended: another number, even if it was the last. A count
/// that overflowed never falls.
const fn ended(generation: u64) -> u64 {
    match generation >> UNDER_WAY_SHIFT {
        UNDER_WAY_MAX => generation,
        0 | 1 => ((generation & NUMBER | 1) + 1) & NUMBER,
        under_way => (under_way - 1) << UNDER_WAY_SHIFT | generation & NUMBER,
    }
}

/// A change of the list's mapping. It ends when this is dropped.
#[derive(Debug)]
#[must_use = "the change ends when this is dropped"]
pub struct MappingChange<'a> {
    generation: &'a AtomicU64,
}

impl Drop for MappingChange<'_> {
    fn drop(&mut self) {
        // Who finds the generation even finds the change complete.
        change(self.generation, ended, Ordering::Release);
    }
}

/// Changes the generation.
fn change(generation: &AtomicU64, to: fn(u64) -> u64, ordering: Ordering) {
    // A failed attempt uses only the word.
    let _ = generation.fetch_update(ordering, Ordering::Relaxed, |word| Some(to(word)));
}

impl<'a> Toolstack<'a> {
    /// Uses the words of the guest's `shared_info`.
    ///
    /// ```
    /// use hypercall::shared_info::ArchSharedInfo;
    /// use p2m::Toolstack;
    ///
    /// let arch = ArchSharedInfo::default(); // the guest's is in its shared_info
    /// let toolstack = Toolstack::new(&arch);
    /// {
    ///     let _change = toolstack.changing(); // a toolstack that reads now reads again
    /// }
    /// assert_eq!(toolstack.read().generation, 2);
    /// # Ok::<(), p2m::P2mError>(())
    /// ```
    #[must_use]
    pub const fn new(arch: &'a ArchSharedInfo) -> Self {
        // SAFETY: only unsafe methods below store what leads a toolstack to a page.
        Self { words: unsafe { arch.map_words() } }
    }

    /// Publishes the linear list, which is at `list` under the root in frame `root`. Raises
    /// `max_pfn` to the length of the map.
    ///
    /// # Errors
    /// [`UnalignedList`]; nothing is published. Toolstacks (libxenguest, 4.14 to 4.20) find the end
    /// of a list by its last L1 table, and count from that table's first entry as if the list began
    /// there. Of any other list, a save silently loses the last GiB, and `xen-mfndump` reads
    /// nothing. The builder's list is of that kind: publish its frame list, or open a
    /// [`Window`](crate::Window).
    ///
    /// # Safety
    /// The map's list is at `list` under `root`, and stays there until it is withdrawn or the guest
    /// is restored. Toolstacks overwrite it (I-20).
    ///
    /// ```
    /// # use core::sync::atomic::AtomicU64;
    /// # use hypercall::shared_info::ArchSharedInfo;
    /// # use hypercall::{GuestVa, Mfn};
    /// # use p2m::{P2m, Toolstack};
    /// let list = [0x203, 0x204].map(AtomicU64::new);
    /// let p2m = unsafe { P2m::adopt(&list) }?;
    /// let (arch, root) = (ArchSharedInfo::default(), Mfn::new(0x100));
    /// let toolstack = Toolstack::new(&arch);
    /// // Where the list is in the address space of `root`.
    /// unsafe { toolstack.publish_list(&p2m, GuestVa::new(0xffff_9000_0000_0000)?, root) }?;
    /// assert_eq!(toolstack.read().max_pfn, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn publish_list(
        &self,
        p2m: &P2m<'_>,
        list: GuestVa,
        root: Mfn,
    ) -> Result<(), UnalignedList> {
        if !list.raw().is_multiple_of(LIST_ALIGNMENT) {
            return Err(UnalignedList(list));
        }
        // The word that makes a toolstack read the others comes last.
        self.words.p2m_vaddr.store(list.raw(), Ordering::Relaxed);
        self.raise_max_pfn(p2m);
        self.words.p2m_cr3.store(root.raw() << PAGE_SHIFT, Ordering::Release);
        Ok(())
    }

    /// Withdraws the linear list. Publish the frame list first: toolstacks then read that.
    pub fn withdraw_list(&self) {
        self.words.p2m_cr3.store(0, Ordering::Release);
    }

    /// Publishes the top of the frame list, or that there is none. Raises `max_pfn` to the length
    /// of the map.
    ///
    /// # Safety
    /// `top` is that of a [`FrameList`](crate::FrameList) built for this map, and is refreshed
    /// whenever its pages change. Toolstacks overwrite the pages that it names (I-20). From then on
    /// the frames of the list, those in the memory that it was given among them, are used for
    /// nothing else, also when the list is gone.
    ///
    /// ```
    /// # use core::sync::atomic::AtomicU64;
    /// # use hypercall::shared_info::ArchSharedInfo;
    /// # use hypercall::Mfn;
    /// # use p2m::{P2m, Toolstack};
    /// let list = [0x203, 0x204].map(AtomicU64::new);
    /// let p2m = unsafe { P2m::adopt(&list) }?;
    /// let arch = ArchSharedInfo::default();
    /// let toolstack = Toolstack::new(&arch);
    /// let top = Some(Mfn::new(0x203)); // of a `FrameList`
    /// unsafe { toolstack.publish_frame_list(&p2m, top) };
    /// let published = toolstack.read();
    /// assert_eq!((published.max_pfn, published.frame_list), (2, 0x203));
    /// # Ok::<(), p2m::P2mError>(())
    /// ```
    pub unsafe fn publish_frame_list(&self, p2m: &P2m<'_>, top: Option<Mfn>) {
        self.raise_max_pfn(p2m);
        let top = top.map_or(0, Mfn::raw);
        self.words.frame_list_list.store(top, Ordering::Release);
    }

    /// Raises `max_pfn` to the length of the map. Two vCPUs that do so at once cannot lower it.
    pub fn raise_max_pfn(&self, p2m: &P2m<'_>) {
        // Who finds it raised finds the words of the pfns.
        self.words.max_pfn.fetch_max(p2m.len(), Ordering::Release);
    }

    /// Makes the generation odd until the returned value is dropped. Changes may be nested or on
    /// several vCPUs at once: the generation is odd while any is under way.
    ///
    /// ```
    /// # use hypercall::shared_info::ArchSharedInfo;
    /// # use p2m::Toolstack;
    /// let arch = ArchSharedInfo::default();
    /// let toolstack = Toolstack::new(&arch);
    /// let outer = toolstack.changing();
    /// drop(toolstack.changing()); // such as that of `Window::reserve`
    /// assert!(!toolstack.read().generation.is_multiple_of(2));
    /// drop(outer);
    /// assert!(toolstack.read().generation.is_multiple_of(2));
    /// ```
    pub fn changing(&self) -> MappingChange<'a> {
        let generation = &self.words.p2m_generation;
        change(generation, begun, Ordering::Relaxed);
        // Who finds a part of the change finds the generation odd, or another.
        fence(Ordering::Release);
        MappingChange { generation }
    }

    /// Returns what a toolstack would read.
    #[must_use]
    pub fn read(&self) -> Published {
        // Each word by itself, for display: nothing else is read because of it.
        let read = |word: &AtomicU64| word.load(Ordering::Relaxed);
        Published {
            max_pfn: read(&self.words.max_pfn),
            frame_list: read(&self.words.frame_list_list),
            cr3: read(&self.words.p2m_cr3),
            list: read(&self.words.p2m_vaddr),
            generation: read(&self.words.p2m_generation) & NUMBER,
        }
    }
}

/// The words of `shared_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// `max_pfn`.
    pub max_pfn: u64,
    /// `pfn_to_mfn_frame_list_list`.
    pub frame_list: u64,
    /// `p2m_cr3`.
    pub cr3: u64,
    /// `p2m_vaddr`.
    pub list: u64,
    /// `p2m_generation`, without the count of changes under way.
    pub generation: u64,
}

#[cfg(test)]
#[path = "toolstack/tests.rs"]
mod tests;
