//! A guest of the model whose frame map has a window, and the part of the CPU that a host lacks:
//! what the model's page tables map at the window appears in a buffer, at which the map looks.
#![expect(unsafe_code, reason = "the guest exists only in the model")]
#![expect(clippy::missing_panics_doc, reason = "for tests: what cannot be is a panic")]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use hypercall::memory::MemoryOp;
use hypercall::start_info::BootInfo;
use hypercall::{
    AccessError, Assist, Batch, Call, Error, Frame, FrameAccess, FrameSource, Frames, GuestVa,
    Hypercalls, Mfn, PAGE_SHIFT, Pfn, Pte, Refused, Uncertain,
};
use p2m::window::{WindowError, WindowPlace};
use p2m::{BuilderList, Guest, P2m, Window};
use x86_64::structures::paging::PageTableIndex;
use xen_model::{BootMapping, DomainConfig, Model, Role};

/// Where the window is.
pub const WINDOW: u64 = 0xffff_9000_0000_0000;
/// Pfns in a GiB.
pub const GIB: u64 = 1 << 18;
/// How far the map of a guest may grow that has no more than that.
pub const CAPACITY: u64 = 4 * GIB;
/// Where the builder maps all of the guest's pages.
const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
/// Words in a page of the list.
pub const LEAF: u64 = 512;

/// A guest of the model, and its window as a buffer.
#[derive(Debug)]
pub struct WindowMachine {
    /// The machine.
    pub model: Model,
    /// What its builder left.
    pub boot: BootInfo,
    /// How far its map may grow.
    pub capacity: u64,
    list: Vec<AtomicU64>,
    window: Vec<AtomicU64>,
    mapped: RefCell<Vec<Option<(Mfn, bool)>>>,
}

impl WindowMachine {
    /// Creates a domU of 16 MiB, all of it in the direct mapping.
    pub fn new(seed: u64) -> Self {
        Self::of(4096, seed)
    }

    /// Returns the same with so many pages.
    pub fn of(pages: u64, seed: u64) -> Self {
        let mut config = DomainConfig::new(Role::DomU, pages);
        config.boot_mapping = BootMapping::AllPages;
        config.virt_base = DIRECT_MAP;
        config.vcpus = 2;
        let model = Model::builder().guest(config).seed(seed).build().expect("a guest");
        let start_info = model.guest().start_info().expect("a guest has a start_info");
        let boot = BootInfo::parse(&start_info).expect("the builder's own");
        let list = model.guest().built_list();
        let capacity = CAPACITY.max(boot.pages.next_multiple_of(GIB));
        let window = (0..capacity).map(|_| AtomicU64::new(0)).collect();
        let pages = usize::try_from(capacity / LEAF).expect("small");
        Self { model, boot, capacity, list, window, mapped: RefCell::new(vec![None; pages]) }
    }

    /// Returns its second vCPU, which runs on the same root.
    #[must_use]
    pub fn second(&self) -> xen_model::Vcpu<'_> {
        let first = self.model.guest();
        let second = self.model.vcpu(first.domain(), 1).expect("it was built with two");
        second.initialise(first.kernel_root().expect("it runs"), None).expect("a root");
        second
    }

    /// Returns the builder's map.
    #[must_use]
    pub fn builder_map(&self) -> P2m<'_> {
        // SAFETY: the guest exists only in the model.
        unsafe { P2m::adopt(&self.list) }.expect("not empty")
    }

    /// Returns where the builder put its list.
    #[must_use]
    pub fn builder_list(&self) -> BuilderList {
        // SAFETY: the builder put it there.
        unsafe { BuilderList::new(self.pfn_at(self.boot.p2m_list)) }
    }

    /// Returns the guest on `machine`, this one or something around it, with the map `p2m`.
    #[must_use]
    pub fn guest<'a, M>(&self, machine: &'a M, p2m: &'a P2m<'a>) -> Guest<'a, M> {
        // SAFETY: the guest exists only in the model.
        unsafe { Guest::new(machine, p2m, self.root()) }
    }

    /// Returns the root that the guest runs on.
    #[must_use]
    pub fn root(&self) -> Pfn {
        self.pfn_at(self.boot.root)
    }

    fn pfn_at(&self, va: GuestVa) -> Pfn {
        let start = self.direct_map(Pfn::new(0)).expect("mapped").raw();
        Pfn::new((va.raw() - start) >> PAGE_SHIFT)
    }

    /// Frames that nobody uses, claimed anew: call it once for each guest.
    pub fn frames(&self) -> Frames {
        let first = self.model.guest().first_free_page();
        // SAFETY: the guest exists only in the model, where a frame used twice is noticed.
        unsafe { Frames::claim(first, self.boot.pages - first.raw()) }
    }

    /// Opens the window on `machine`, this guest or something around it.
    ///
    /// # Errors
    /// As [`Window::open`].
    pub fn open<M: hypercall::Machine>(
        &self,
        machine: &M,
        frames: Frames,
        batch: &mut Batch<'_>,
    ) -> Result<(P2m<'_>, Window), Refused<Result<Frames, Uncertain>, WindowError>> {
        let va = GuestVa::new(WINDOW).expect("a guest address");
        let words = NonNull::from(self.window.as_slice()).cast();
        let place = WindowPlace { va, words, capacity: self.capacity };
        let (map, list) = (self.builder_map(), self.builder_list());
        // SAFETY: the slot is free, and the buffer shows what the window maps.
        unsafe { Window::open(&self.guest(machine, &map), list, place, frames, batch) }
    }

    /// Shows what changed in the mapping of the window. A page that stays keeps what was stored.
    fn refresh(&self) {
        for (gib, pages) in self.mapped.borrow_mut().chunks_mut(512).enumerate() {
            let table = self.l1_table(gib as u64);
            for (at, was) in pages.iter_mut().enumerate() {
                let now = table.and_then(|table| self.model.word(table, at)).map(Pte::from_raw);
                let now = now.filter(|pte| pte.is_present());
                let now = now.map(|pte| (pte.mfn(), pte == pte.writable()));
                if now != *was {
                    *was = now;
                    self.copy(gib * 512 + at, now.map(|(mfn, _)| mfn));
                }
            }
        }
    }

    /// Returns the table that maps the words of a GiB.
    fn l1_table(&self, gib: u64) -> Option<Mfn> {
        let va = WINDOW + (gib << (PAGE_SHIFT + 9));
        self.model.guest().l1_slot(va).map(|(slot, _)| slot.table)
    }

    /// Returns the pages that the window's entries lead to: its tables of L1 and the pages of the
    /// list.
    #[must_use]
    pub fn pages_in_window(&self, p2m: &P2m<'_>) -> BTreeSet<Pfn> {
        let mapped = self.mapped.borrow();
        let pages = mapped.iter().flatten().map(|(mfn, _)| *mfn);
        let tables = (0..mapped.len() as u64 / 512).filter_map(|gib| self.l1_table(gib));
        let found: BTreeSet<Mfn> = pages.chain(tables).collect();
        found.into_iter().filter_map(|mfn| p2m.pfn(self, mfn).ok()).collect()
    }

    /// Shows every page again as it is in its frame: what a restore does to it.
    pub fn show_frames(&self) {
        for (page, mapped) in self.mapped.borrow().iter().enumerate() {
            self.copy(page, mapped.map(|(mfn, _)| mfn));
        }
    }

    fn copy(&self, page: usize, mfn: Option<Mfn>) {
        for at in 0..512 {
            let word = mfn.map_or(0xbad, |mfn| self.model.word(mfn, at).expect("RAM"));
            self.window[page * 512 + at].store(word, Ordering::Relaxed);
        }
    }

    /// Returns whether the window maps the word of `pfn` writable.
    #[must_use]
    pub fn is_writable(&self, pfn: u64) -> bool {
        let page = usize::try_from(pfn / LEAF).expect("small");
        self.mapped.borrow()[page].is_some_and(|(_, writable)| writable)
    }

    /// Nothing is wrong with the model, and the guest did nothing that a machine would not forgive.
    pub fn check(&self) {
        self.model.audit().expect("the model's own accounts");
        assert_eq!(self.model.take_violations(), Vec::<String>::new());
    }
}

// SAFETY: the machine has no memory that Rust knows of: what it says concerns the test alone.
unsafe impl Hypercalls for WindowMachine {
    unsafe fn issue(&self, calls: &mut [Call<'_>]) -> Result<(), Error> {
        // SAFETY: the promise is handed on.
        let result = unsafe { self.model.issue(calls) };
        self.refresh();
        result
    }

    unsafe fn memory_op(&self, op: &mut MemoryOp<'_>) -> Result<u64, Error> {
        // SAFETY: as above.
        unsafe { self.model.memory_op(op) }
    }

    fn enable_assist(&self, assist: Assist) -> Result<(), Error> {
        self.model.enable_assist(assist)
    }
}

// SAFETY: the machine has no memory that Rust knows of: what it says concerns the test alone.
unsafe impl FrameAccess for WindowMachine {
    fn read_entry(&self, table: Pfn, index: PageTableIndex) -> Result<Pte, AccessError> {
        self.model.read_entry(table, index)
    }

    unsafe fn write_entry(
        &self,
        table: Pfn,
        index: PageTableIndex,
        pte: Pte,
    ) -> Result<(), AccessError> {
        // SAFETY: as above.
        unsafe { self.model.write_entry(table, index, pte) }
    }

    fn read_bytes(&self, pfn: Pfn, offset: usize, into: &mut [u8]) -> Result<(), AccessError> {
        self.model.read_bytes(pfn, offset, into)
    }

    unsafe fn write_bytes(&self, pfn: Pfn, offset: usize, from: &[u8]) -> Result<(), AccessError> {
        // SAFETY: as above.
        unsafe { self.model.write_bytes(pfn, offset, from) }
    }

    fn machine_to_phys(&self, mfn: Mfn) -> Option<Pfn> {
        self.model.machine_to_phys(mfn)
    }

    fn direct_map(&self, pfn: Pfn) -> Result<GuestVa, AccessError> {
        self.model.direct_map(pfn)
    }
}

/// Free frames.
#[derive(Debug, Default)]
pub struct WindowPool {
    frames: Vec<Frame>,
    /// Pages that are kept from everyone.
    pub uncertain: Vec<Pfn>,
}

impl WindowPool {
    /// Those of a run.
    #[must_use]
    pub fn new(mut frames: Frames) -> Self {
        let frames = std::iter::from_fn(|| frames.take()).collect();
        Self { frames, uncertain: Vec::new() }
    }

    /// Returns how many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.frames.len()
    }

    /// Returns whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Those that are free.
    pub fn iter(&self) -> impl Iterator<Item = Pfn> {
        self.frames.iter().map(Frame::pfn)
    }
}

impl FrameSource for WindowPool {
    fn take(&mut self) -> Option<Frame> {
        self.frames.pop()
    }

    fn give(&mut self, frame: Frame) {
        assert!(!self.frames.contains(&frame), "{frame:?} is given back twice");
        self.frames.push(frame);
    }

    fn give_uncertain(&mut self, frames: Uncertain) {
        let pfns = frames.start().raw()..frames.start().raw() + frames.count();
        self.uncertain.extend(pfns.map(Pfn::new));
    }
}
