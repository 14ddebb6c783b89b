//! The machine as a test sees it: [`Model`], and [`Vcpu`], one vCPU of one of its domains.

use core::cell::{Ref, RefCell, RefMut};
use core::sync::atomic::AtomicU64;

use hypercall::middleware::Asked;
use hypercall::start_info::StartInfo;
use hypercall::{Errno, GuestVa, Level, Mfn, PAGE_SHIFT, Pfn, Pte, Slot};

use crate::access::PageFault;
use crate::audit::Contradictions;
use crate::emulate::Store;
use crate::page::INVALID_M2P;
use crate::release::{Flavour, Release};
use crate::state::{Current, State, Statistics};
use crate::tlb::Mode;
use crate::types::{CountInfo, TypeInfo};

/// A machine with Xen and its domains.
///
/// `&Model` implements the seam for the first vCPU of the guest that was built first;
/// [`Model::vcpu`] gives any other.
#[derive(Debug)]
pub struct Model {
    state: RefCell<State>,
}

/// What Xen knows of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameInfo {
    /// Its owner, if any: the number of a domain, or one of Xen's special ones.
    pub owner: Option<u16>,
    /// References.
    pub count: CountInfo,
    /// Type and uses.
    pub kind: TypeInfo,
    /// M2P entry, raw.
    pub m2p: u64,
    /// Linear page tables: above zero if this table holds some, below if it is used as one.
    pub linear: i16,
}

impl FrameInfo {
    /// `count_info` and `type_info` as `release` shows them.
    #[must_use]
    pub fn words(&self, release: Release) -> (u64, u64) {
        (self.count.word(release), self.kind.word(release.layout()))
    }
}

impl Model {
    pub(crate) const fn new(state: State) -> Self {
        Self { state: RefCell::new(state) }
    }

    pub(crate) fn state(&self) -> Ref<'_, State> {
        self.state.borrow()
    }

    pub(crate) fn state_mut(&self) -> RefMut<'_, State> {
        self.state.borrow_mut()
    }

    /// The first vCPU of the guest that was built first.
    #[must_use]
    pub const fn guest(&self) -> Vcpu<'_> {
        Vcpu { model: self, current: Current { domain: 0, vcpu: 0 } }
    }

    /// A vCPU of the domain with number `domain`, if there is such a one.
    ///
    /// ```
    /// use xen_model::{DomainConfig, Model, Role};
    ///
    /// let neighbour = DomainConfig::new(Role::DomU, 1024);
    /// let model = Model::builder().role(Role::Dom0).other(neighbour).build()?;
    /// let other = model.vcpu(1, 0).ok_or("it was built")?;
    /// assert_eq!((other.domain(), other.total_pages()), (1, 1024));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn vcpu(&self, domain: u16, vcpu: usize) -> Option<Vcpu<'_>> {
        let state = self.state();
        let index = state.domains.iter().position(|candidate| candidate.id == domain)?;
        let current = Current { domain: index, vcpu };
        (vcpu < state.domains[index].vcpus.len()).then_some(Vcpu { model: self, current })
    }

    /// Which Xen this is.
    #[must_use]
    pub fn release(&self) -> Release {
        self.state().release
    }

    /// Which build of it.
    #[must_use]
    pub fn flavour(&self) -> Flavour {
        self.state().flavour
    }

    /// What Xen has printed since the last call.
    #[must_use]
    pub fn take_log(&self) -> Vec<String> {
        self.state_mut().log.take()
    }

    /// What domains have written by `console_io` since the last call.
    #[must_use]
    pub fn take_console(&self) -> Vec<String> {
        core::mem::take(&mut self.state_mut().console)
    }

    /// What the guests did since the last call that no machine forgives: stores to read-only frames
    /// through the seam, uses of stale translations.
    #[must_use]
    pub fn take_violations(&self) -> Vec<String> {
        core::mem::take(&mut self.state_mut().violations)
    }

    /// Keeps in mind what is asked through the seam from now on.
    pub(crate) fn record_requests(&self) {
        self.state_mut().requests = Some(Vec::new());
    }

    pub(crate) fn take_requests(&self) -> Vec<Asked> {
        self.state_mut().requests.take().unwrap_or_default()
    }

    /// Counted events.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.state().statistics
    }

    /// Recomputes every count from the tables and other holders.
    ///
    /// # Errors
    /// All [`Contradictions`]: a mistake of the model itself, never of a guest.
    ///
    /// ```
    /// let model = xen_model::Model::builder().build()?;
    /// model.audit()?; // every reference that Xen counts has a holder
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn audit(&self) -> Result<(), Contradictions> {
        self.state().audit()
    }

    /// Interrupts hypercalls at every `every`-th point where Xen looks whether it should; 0 for
    /// never.
    pub fn preempt_every(&self, every: u64) {
        self.state_mut().preemption.every = every;
    }

    /// What Xen knows of a frame, if it is RAM.
    ///
    /// ```
    /// use hypercall::Pfn;
    /// use xen_model::PageType;
    ///
    /// let model = xen_model::Model::builder().build()?;
    /// let mfn = model.guest().built_mfn(Pfn::new(0)).ok_or("it has memory")?;
    /// let frame = model.frame(mfn).ok_or("it is memory")?;
    /// assert_eq!((frame.kind.kind, frame.m2p), (PageType::Writable, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn frame(&self, mfn: Mfn) -> Option<FrameInfo> {
        let page = self.state().frames.peek(mfn)?;
        let owner = (page.owner != crate::page::NOBODY).then_some(page.owner);
        let (count, kind, m2p, linear) = (page.count, page.kind, page.m2p, page.linear);
        Some(FrameInfo { owner, count, kind, m2p, linear })
    }

    /// A word of a frame, whoever owns it; `None` if it is no RAM.
    #[must_use]
    pub fn word(&self, mfn: Mfn, index: usize) -> Option<u64> {
        let state = self.state();
        (state.frames.is_ram(mfn) && index < crate::page::WORDS)
            .then(|| state.frames.word(mfn, index))
    }

    /// Writes a word of a frame behind everybody's back, as a test that prepares contents does.
    ///
    /// It changes nothing if the frame is no RAM. Writing to a live table breaks the model's own
    /// law.
    pub fn poke(&self, mfn: Mfn, index: usize, word: u64) {
        let mut state = self.state_mut();
        if state.frames.is_ram(mfn) && index < crate::page::WORDS {
            state.frames.words(mfn)[index] = word;
        }
    }

    /// One past the highest frame of RAM.
    #[must_use]
    pub fn ram_end(&self) -> Mfn {
        Mfn::new(self.state().frames.end())
    }
}

/// One vCPU of one domain: a place to make hypercalls and touch memory from.
#[derive(Clone, Copy, Debug)]
pub struct Vcpu<'m> {
    model: &'m Model,
    current: Current,
}

impl<'m> Vcpu<'m> {
    /// The machine.
    #[must_use]
    pub const fn model(&self) -> &'m Model {
        self.model
    }

    /// The state, with this vCPU running.
    pub(crate) fn run(&self) -> RefMut<'m, State> {
        let mut state = self.model.state_mut();
        state.current = self.current;
        state
    }

    /// The domain's number.
    #[must_use]
    pub fn domain(&self) -> u16 {
        self.model.state().domains[self.current.domain].id
    }

    /// What the builder told the domain, as it was at the start.
    #[must_use]
    pub fn start_info(&self) -> Option<StartInfo> {
        self.model.state().domains[self.current.domain].start_info.clone()
    }

    /// Where `start_info` is: the register `rsi` at the start.
    #[must_use]
    pub fn start_info_address(&self) -> u64 {
        let state = self.model.state();
        let plan = &state.frames.plans()[state.domains[self.current.domain].plan];
        plan.address(plan.pieces.start_info)
    }

    /// Where the boot stack begins, growing down: the register `rsp` at the start.
    #[must_use]
    pub fn stack_top(&self) -> u64 {
        let state = self.model.state();
        let plan = &state.frames.plans()[state.domains[self.current.domain].plan];
        plan.address(plan.pieces.stack + 1)
    }

    /// The first page that no piece of the builder's lies in or behind.
    #[must_use]
    pub fn first_free_page(&self) -> Pfn {
        let state = self.model.state();
        let plan = &state.frames.plans()[state.domains[self.current.domain].plan];
        let outside = plan.p2m.map_or(0, |mapping| mapping.tables + mapping.table_count());
        Pfn::new((plan.pieces.stack + 1).max(outside))
    }

    /// The frame that page `pfn` had at the start.
    #[must_use]
    pub fn built_mfn(&self, pfn: Pfn) -> Option<Mfn> {
        let state = self.model.state();
        let plan = &state.frames.plans()[state.domains[self.current.domain].plan];
        (pfn.raw() < plan.pages).then(|| plan.mfn(pfn.raw()))
    }

    /// The frame list as the builder wrote it: the word of each pfn is its frame's number.
    ///
    /// ```
    /// let model = xen_model::Model::builder().pages(2048).build()?;
    /// assert_eq!(model.guest().built_list().len(), 2048);
    /// # Ok::<(), xen_model::BuildError>(())
    /// ```
    #[must_use]
    pub fn built_list(&self) -> Vec<AtomicU64> {
        let mfns = (0..).map_while(|pfn| self.built_mfn(Pfn::new(pfn)));
        mfns.map(|mfn| AtomicU64::new(mfn.raw())).collect()
    }

    /// The page that the running kernel tables map at `va`.
    #[must_use]
    pub fn pfn_at(&self, va: GuestVa) -> Option<Pfn> {
        let (_, pte) = self.l1_slot(va.raw()).filter(|(_, pte)| pte.is_present())?;
        self.m2p(pte.mfn())
    }

    /// The running root of the kernel.
    #[must_use]
    pub fn kernel_root(&self) -> Option<Mfn> {
        self.run().vcpu().kernel_root
    }

    /// The running root of user mode.
    #[must_use]
    pub fn user_root(&self) -> Option<Mfn> {
        self.run().vcpu().user_root
    }

    /// Frames the domain has, as Xen counts them (`tot_pages`).
    #[must_use]
    pub fn total_pages(&self) -> u64 {
        self.run().domain().tot_pages
    }

    /// Where the entry is that maps `va` in the running kernel tables, and what it holds.
    #[must_use]
    pub fn l1_slot(&self, va: u64) -> Option<(Slot, Pte)> {
        let mut state = self.run();
        let root = state.vcpu().kernel_root?;
        let table = state.find_l1(root, va)?;
        let entry = Pte::from_raw(state.frames.word(table, State::index_of(Level::L1, va)));
        let index = Level::L1.index_of(GuestVa::new(va).ok()?);
        Some((Slot { table, index }, entry))
    }

    /// M2P as the guest can read it: `None` if it names no page.
    pub(crate) fn m2p(&self, mfn: Mfn) -> Option<Pfn> {
        let word = self.model.state().m2p(mfn);
        (word < INVALID_M2P - 1).then_some(Pfn::new(word))
    }

    /// Tells the seam where the guest's kernel now sees page 0, and how many pages from there.
    ///
    /// The builder's mapping is where it starts: `frames` pages at `VIRT_BASE`.
    pub fn set_direct_map(&self, start: GuestVa, frames: u64) {
        let mut state = self.run();
        let domain = &mut state.domains[self.current.domain];
        domain.direct_map = start.raw();
        domain.mapped_frames = frames;
    }

    /// Where the kernel sees page `pfn`, if the seam was told that it does.
    pub(crate) fn direct_address(&self, pfn: Pfn) -> Option<u64> {
        let state = self.model.state();
        let domain = &state.domains[self.current.domain];
        (pfn.raw() < domain.mapped_frames)
            .then(|| domain.direct_map.wrapping_add(pfn.raw() << PAGE_SHIFT))
    }

    /// Loads bytes at an address, as the guest's code does.
    ///
    /// # Errors
    /// [`PageFault`], which the guest's handler would get.
    ///
    /// ```
    /// use xen_model::Mode;
    ///
    /// let model = xen_model::Model::builder().build()?;
    /// let mut magic = [0; 3];
    /// let start_info = model.guest().start_info_address();
    /// model.guest().load(start_info, &mut magic, Mode::Kernel).map_err(|_| "not mapped")?;
    /// assert_eq!(&magic, b"xen");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn load(&self, va: u64, into: &mut [u8], mode: Mode) -> Result<(), PageFault> {
        self.run().load(va, into, mode)
    }

    /// Stores bytes at an address by one instruction; Xen emulates it if it hits a live L1 table
    /// and may be.
    ///
    /// # Errors
    /// [`PageFault`], which the guest's handler would get.
    pub fn store(&self, va: u64, from: &[u8], mode: Mode) -> Result<(), PageFault> {
        self.run().execute(va, Store::Plain(from), mode).map(drop)
    }

    /// Compares and exchanges `len_bytes` bytes at an address by one locked instruction. Answers
    /// what was there.
    ///
    /// # Errors
    /// [`PageFault`], which the guest's handler would get.
    pub fn compare_exchange(
        &self,
        va: u64,
        expected: u128,
        new: u128,
        len_bytes: usize,
    ) -> Result<u128, PageFault> {
        let store = Store::CompareExchange { expected, new, bytes: len_bytes };
        self.run().execute(va, store, Mode::Kernel)
    }

    /// Loads a selector of the LDT: Xen takes the page it lies in into use.
    ///
    /// # Errors
    /// [`PageFault`] if the page cannot hold descriptors.
    pub fn load_ldt_selector(&self, index: u64) -> Result<(), PageFault> {
        let mut state = self.run();
        let offset = index * 8;
        let va = state.vcpu().ldt_base.wrapping_add(offset);
        if index < state.vcpu().ldt_entries && state.map_ldt_page(offset >> PAGE_SHIFT) {
            Ok(())
        } else {
            Err(PageFault { va, code: 0 })
        }
    }

    /// Grants `frame` to `domain` by entry `reference` of this domain's table.
    ///
    /// # Errors
    /// `EINVAL` if the table has no such entry.
    pub fn write_grant(&self, reference: u32, entry: GrantEntry) -> Result<(), Errno> {
        let id = self.domain();
        let GrantEntry { flags, domain, frame } = entry;
        let word = u64::from(flags) | u64::from(domain) << 16 | frame.raw() << 32;
        self.run().write_grant(id, reference, word)
    }

    /// Entry `reference` of this domain's grant table.
    ///
    /// # Errors
    /// `EINVAL` if the table has no such entry.
    pub fn read_grant(&self, reference: u32) -> Result<GrantEntry, Errno> {
        let word = self.model.state().read_grant(self.domain(), reference)?;
        let [f0, f1, d0, d1, m0, m1, m2, m3] = word.to_le_bytes();
        Ok(GrantEntry {
            flags: u16::from_le_bytes([f0, f1]),
            domain: u16::from_le_bytes([d0, d1]),
            frame: Mfn::new(u64::from(u32::from_le_bytes([m0, m1, m2, m3]))),
        })
    }

    /// Whether Xen has raised #GP since the last call.
    #[must_use]
    pub fn take_general_protection(&self) -> bool {
        core::mem::take(&mut self.run().vcpu().general_protection)
    }

    /// Whether Xen has crashed the domain.
    #[must_use]
    pub fn is_crashed(&self) -> bool {
        self.run().domain().crashed
    }

    /// Why the domain has shut down (`SHUTDOWN_*`), if it has.
    #[must_use]
    pub fn shutdown_reason(&self) -> Option<u8> {
        self.run().domain().shutdown
    }
}

/// An entry of a grant table, version 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantEntry {
    /// `GTF_*`.
    pub flags: u16,
    /// Who may map the frame.
    pub domain: u16,
    /// The frame.
    pub frame: Mfn,
}
