//! A guest of the model for the tests of this folder.
#![expect(unsafe_code, reason = "claims frames of a guest that exists only in the model")]
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(unreachable_pub, reason = "a module shared by test programs")]

use std::sync::atomic::AtomicU64;

use balloon::{Balloon, BalloonStep, Next, StepStorage, Wipe};
use hypercall::start_info::BootInfo;
use hypercall::{Frame, FrameSource, Frames, GuestVa, Machine, Pfn};
use p2m::P2m;
use p2m::audit::Audit;
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
    pub p2m: &'static P2m<'static>,
    kernel_root: Pfn,
}

/// Frames that are free, in a stack; what goes wrong with ownership is caught.
#[derive(Default)]
pub struct Stack(pub Vec<Frame>);

impl FrameSource for Stack {
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
        let list: Vec<_> = (0..SPAN).map(mfn).map(AtomicU64::new).collect();
        // SAFETY: the guest exists only in the model.
        let p2m = Box::leak(Box::new(unsafe { P2m::adopt(list.leak()) }.expect("pages")));
        let start = GuestVa::new(VIRT_BASE).expect("a guest address");
        model.guest().set_direct_map(start, SPAN);
        let kernel_root = model.guest().pfn_at(boot.root).expect("mapped by the builder");
        Self { model, p2m, kernel_root }
    }

    /// The guest, as a step takes it.
    pub fn around(&self) -> p2m::Guest<'_, Model> {
        self.on(&self.model)
    }

    /// The guest on `machine`, which is its model or something around it.
    pub fn on<'g, M>(&'g self, machine: &'g M) -> p2m::Guest<'g, M> {
        self.with_map(self.p2m).with_machine(machine)
    }

    /// The guest with another map, which may be a wrong one.
    pub fn with_map<'g>(&'g self, p2m: &'g P2m<'g>) -> p2m::Guest<'g, Model> {
        // SAFETY: the guest exists only in the model, and the root is the one that it booted on.
        unsafe { p2m::Guest::new(&self.model, p2m, self.kernel_root) }
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
        audit.run(&self.around());
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
    let asked = Balloon::new(&guest.around(), words, FLOOR, wipe);
    let (mut balloon, accounts) = asked.expect("the model answers");
    assert_eq!((accounts.populated, accounts.xen), (PAGES, Some(PAGES)));
    balloon.leave_out(SPAN - PAGES);
    balloon
}

/// A step of the guest.
pub fn step<M: Machine, const N: usize>(
    guest: p2m::Guest<'_, M>,
    balloon: &mut Balloon<'_>,
    frames: &mut impl FrameSource,
    storage: &mut StepStorage<N>,
) -> BalloonStep {
    storage.with(|work| balloon.step(&guest, frames, work))
}

/// Steps until the balloon has nothing more to do, or has to wait. The last step.
pub fn settle<M: Machine, const N: usize>(
    guest: p2m::Guest<'_, M>,
    balloon: &mut Balloon<'_>,
    frames: &mut impl FrameSource,
    storage: &mut StepStorage<N>,
) -> BalloonStep {
    for _ in 0..1000 {
        let step = step(guest, balloon, frames, storage);
        if step.next != Next::Again {
            return step;
        }
    }
    panic!("the balloon goes on for ever");
}
