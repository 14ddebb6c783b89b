//! A guest of the model for the tests of this folder.
#![expect(unsafe_code, reason = "claims frames of a guest that exists only in the model")]
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(unreachable_pub, reason = "a module shared by test programs")]

use std::sync::atomic::AtomicU64;

use balloon::{Allocator, Around, Balloon, Next, Step, Wipe, WorkStorage};
use hypercall::{BootInfo, Frame, Frames, GuestVa, Machine, PAGE_SHIFT, Pfn, Pte, Slot};
use p2m::{Audit, FindDirect, NoDirectEntry, P2m};
use xen_model::{BootMapping, DomainConfig, Model, Role};

/// Where the guest sees its page 0.
pub const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;
/// Pages of the guest at boot: not a multiple of 2 MiB.
pub const PAGES: u64 = 3000;
/// Pfns that its map and its direct mapping have room for.
pub const SPAN: u64 = 3072;
/// The first page that tests use, and how many: kernel image that is nobody's.
pub const FREE_FROM: u64 = 0x40;
pub const FREE: u64 = 2200;

/// A guest on a machine of its own.
pub struct Guest {
    pub model: Model,
    list: Vec<AtomicU64>,
}

/// Finds entries in the model's page tables.
pub struct Direct<'m>(pub &'m Model);

// SAFETY: the model itself says where the entry is.
unsafe impl FindDirect for Direct<'_> {
    fn find(&mut self, pfn: Pfn) -> Result<(Slot, Pte), NoDirectEntry> {
        let va = VIRT_BASE + (pfn.raw() << PAGE_SHIFT);
        self.0.guest().l1_slot(va).ok_or(NoDirectEntry(pfn))
    }
}

/// Frames that are free, in a stack; what goes wrong with ownership is caught.
#[derive(Default)]
pub struct Stack(pub Vec<Frame>);

impl Allocator for Stack {
    fn take(&mut self) -> Option<Frame> {
        self.0.pop()
    }

    fn give(&mut self, frame: Frame) {
        assert!(!self.0.contains(&frame), "{frame:?} is given twice");
        self.0.push(frame);
    }
}

/// How Xen is set up.
pub fn config() -> DomainConfig {
    let mut config = DomainConfig::new(Role::DomU, PAGES);
    config.boot_mapping = BootMapping::AllPages;
    config.kernel_pages = FREE_FROM + FREE;
    config
}

impl Guest {
    /// A domU of 3000 pages on Xen 4.17, with empty pfns behind them.
    pub fn new() -> Self {
        Self::of(Model::builder().seed(11).guest(config()))
    }

    pub fn of(builder: xen_model::Builder) -> Self {
        let model = builder.build().expect("a small guest");
        let boot = BootInfo::parse(&model.guest().start_info().expect("built")).expect("valid");
        assert_eq!(boot.pages, PAGES);
        let mfn = |pfn| model.guest().built_mfn(Pfn::new(pfn)).map_or(u64::MAX, |mfn| mfn.raw());
        let list = (0..SPAN).map(mfn).map(AtomicU64::new).collect();
        let start = GuestVa::new(VIRT_BASE).expect("a guest address");
        model.guest().set_direct_map(start, SPAN);
        Self { model, list }
    }

    pub fn p2m(&self) -> P2m<'_> {
        // SAFETY: the guest exists only in the model.
        unsafe { P2m::adopt(&self.list) }.expect("pages")
    }

    /// The frames that are free at boot. To be called once.
    pub fn stack(&self) -> Stack {
        let pfns = FREE_FROM..FREE_FROM + FREE;
        // SAFETY: the frames exist only in the model, and each is claimed once.
        Stack(pfns.map(|pfn| unsafe { Frame::claim(Pfn::new(pfn)) }).collect())
    }

    /// The pfns behind the size at boot. To be called once.
    pub fn empty(&self) -> Frames {
        // SAFETY: as above.
        unsafe { Frames::claim(Pfn::new(PAGES), SPAN - PAGES) }
    }

    /// Xen's counts add up, nothing was done that a real machine would not forgive, and the map
    /// says what is true.
    pub fn check(&self) {
        self.model.audit().expect("every reference has its holder");
        assert_eq!(self.model.take_violations(), Vec::<String>::new());
        let mut places = [None; 8];
        let mut audit = Audit::begin(&mut places);
        let p2m = self.p2m();
        audit.run(&self.model, &p2m);
        audit.compare_reservation(self.model.guest().total_pages());
        assert!(audit.report().is_clean(), "{}", audit.report());
    }
}

/// Words for the set of pfns.
pub fn words() -> Vec<u64> {
    vec![0; usize::try_from(Balloon::words_needed(SPAN)).expect("small")]
}

/// The floor of [`begin`].
pub const FLOOR: u64 = 900;

/// A balloon in a guest that stays below its size at boot.
pub fn begin<'w>(guest: &Guest, words: &'w mut [u64], wipe: Wipe) -> Balloon<'w> {
    let asked = Balloon::new((&guest.model, &guest.p2m()), words, FLOOR, wipe);
    let (mut balloon, accounts) = asked.expect("the model answers");
    assert_eq!((accounts.populated, accounts.xen), (PAGES, Some(PAGES)));
    balloon.leave_out(SPAN - PAGES);
    balloon
}

/// A step on `machine`, which is the guest's model or something around it.
pub fn step<M: Machine, const N: usize>(
    (guest, machine, p2m): (&Guest, &M, &P2m<'_>),
    balloon: &mut Balloon<'_>,
    allocator: &mut impl Allocator,
    storage: &mut WorkStorage<N>,
) -> Step {
    let mut direct = Direct(&guest.model);
    let mut around = Around { machine, p2m, direct: &mut direct };
    storage.with(|work| balloon.step(&mut around, allocator, work))
}

/// Steps until the balloon has nothing more to do, or has to wait. The last step.
pub fn settle<M: Machine, const N: usize>(
    around: (&Guest, &M, &P2m<'_>),
    balloon: &mut Balloon<'_>,
    allocator: &mut impl Allocator,
    storage: &mut WorkStorage<N>,
) -> Step {
    for _ in 0..1000 {
        let step = step(around, balloon, allocator, storage);
        if step.next != Next::Again {
            return step;
        }
    }
    panic!("the balloon goes on for ever");
}
