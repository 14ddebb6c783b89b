//! A test on the model, for the tests of this folder.
#![expect(
    unsafe_code,
    reason = "claims and aliases frames of a test that exists only in the model"
)]
#![allow(dead_code, unused_macros, reason = "each test program uses a part of it")]
#![allow(unreachable_pub, reason = "a module shared by test programs")]

pub mod tables;

use std::sync::atomic::AtomicU64;

use hypercall::start_info::BootInfo;
use hypercall::{
    Batch, Call, Frame, FrameSource, GuestVa, PAGE_SHIFT, PAGE_SIZE, Pfn, Pte, PteFlags, Request,
    VaFlush, VaMapping,
};
use p2m::{Guest, P2m};
use pvmmu::{Loose, Pages, Pgd, Presence, TablePool, Tools};
use xen_model::{Builder, DomainConfig, Model, Role};

/// The first page of the frames that tests use: in the kernel image, which nothing else uses.
const ARENA: u64 = 0x40;
/// How many there are.
pub const ARENA_FRAMES: usize = 1500;
/// How many a small test has.
pub const FEW_FRAMES: u64 = 200;

/// What nearly every test begins with, under the names given: a test, perhaps a machine that
/// counts what it is asked, the guest of operations on it, and the frames that are free.
macro_rules! scene {
    ($test:ident, $guest:ident, $pool:ident) => {
        let $test = $crate::common::TestGuest::new();
        let p2m = $test.p2m();
        let $guest = $crate::common::guest(&$test, &$test.model, &p2m);
        let mut $pool = $test.pool();
    };
    ($test:ident, $machine:ident, $guest:ident, $pool:ident) => {
        let $test = $crate::common::TestGuest::new();
        let ($machine, p2m) = (hypercall::middleware::Counting::new(&$test.model), $test.p2m());
        let $guest = $crate::common::guest(&$test, &$machine, &p2m);
        let mut $pool = $test.pool();
    };
}

/// A test on a machine of its own.
pub struct TestGuest {
    pub model: Model,
    pub list: Vec<AtomicU64>,
    pub root: Pfn,
}

/// Free frames; double frees and strangers are caught.
pub struct Pool {
    frames: Vec<Frame>,
    /// Which frames of the arena are among them.
    free: Box<[bool; ARENA_FRAMES]>,
}

impl TestGuest {
    /// A domU of 16 MiB on Xen 4.17.
    pub fn new() -> Self {
        Self::built(Role::DomU, Model::builder(), 4096, ARENA_FRAMES as u64)
    }

    /// One of 4 MiB, with [`FEW_FRAMES`] frames that tests use: for tests that make thousands of
    /// it.
    pub fn small() -> Self {
        Self::built(Role::DomU, Model::builder(), 1024, FEW_FRAMES)
    }

    /// The same as dom0, beside a domU of 4 MiB, which is domain 1.
    pub fn dom0() -> Self {
        let neighbour = DomainConfig::new(Role::DomU, 1024);
        Self::built(Role::Dom0, Model::builder().other(neighbour), 4096, ARENA_FRAMES as u64)
    }

    /// A domU on a CPU without NX.
    pub fn no_nx() -> Self {
        Self::built(Role::DomU, Model::builder().no_nx(), 4096, ARENA_FRAMES as u64)
    }

    fn built(role: Role, builder: Builder, pages: u64, arena: u64) -> Self {
        let mut config = DomainConfig::new(role, pages);
        config.kernel_pages = ARENA + arena;
        config.vcpus = 2;
        let model = builder.seed(7).guest(config.clone()).build().expect("a small test");
        let boot = BootInfo::parse(&model.guest().start_info().expect("built")).expect("valid");
        let root = Pfn::new((boot.root.raw() - config.virt_base) >> PAGE_SHIFT);
        let list = model.guest().built_list();
        Self { model, list, root }
    }

    /// Its second vCPU, which runs on nothing yet.
    pub fn second(&self) -> xen_model::Vcpu<'_> {
        self.model.vcpu(self.model.guest().domain(), 1).expect("it was built with two")
    }

    /// Its frame map.
    pub fn p2m(&self) -> P2m<'_> {
        // SAFETY: the test exists only in the model.
        unsafe { P2m::adopt(&self.list) }.expect("the test has pages")
    }

    /// The pool of frames that are free to use. To be called once.
    pub fn pool(&self) -> Pool {
        let frames = if self.list.len() > 1024 { ARENA_FRAMES as u64 } else { FEW_FRAMES };
        let numbers = (ARENA..ARENA + frames).rev().map(Pfn::new);
        // SAFETY: the frames exist only in the model, and each is claimed once.
        let claimed = numbers.map(|pfn| unsafe { Frame::claim(pfn) });
        let mut pool = Pool { frames: Vec::new(), free: Box::new([false; ARENA_FRAMES]) };
        claimed.for_each(|frame| pool.give(frame));
        pool
    }

    /// Checks that Xen's counts add up, and that the test did nothing that a real one could not
    /// do.
    pub fn check(&self) {
        self.model.audit().expect("every reference has its holder");
        assert_eq!(self.model.take_violations(), Vec::<String>::new());
    }
}

/// The guest of operations on `machine`.
pub fn guest<'a, M>(test: &TestGuest, machine: &'a M, p2m: &'a P2m<'a>) -> Guest<'a, M> {
    // SAFETY: the test's frame map, and the root that its kernel runs on.
    unsafe { Guest::new(machine, p2m, test.root) }
}

impl Pool {
    /// How many frames are free.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Which frames are free.
    pub fn pfns(&self) -> impl Iterator<Item = Pfn> + use<> {
        self.frames.iter().map(Frame::pfn).collect::<Vec<_>>().into_iter()
    }

    /// Only the first `count` frames remain free; the others are put aside.
    pub fn keep(&mut self, count: usize) -> Vec<Frame> {
        let aside: Vec<Frame> = self.frames.drain(..self.frames.len() - count).collect();
        aside.iter().for_each(|frame| *self.is_free(frame) = false);
        aside
    }

    /// Whether a frame of the arena is free.
    fn is_free(&mut self, frame: &Frame) -> &mut bool {
        let place = frame.pfn().raw().checked_sub(ARENA).and_then(|place| place.try_into().ok());
        let place = place.and_then(|place: usize| self.free.get_mut(place));
        place.unwrap_or_else(|| panic!("{frame:?} is not of this pool"))
    }
}

impl FrameSource for Pool {
    fn take(&mut self) -> Option<Frame> {
        let frame = self.frames.pop()?;
        *self.is_free(&frame) = false;
        Some(frame)
    }

    fn give(&mut self, frame: Frame) {
        let before = core::mem::replace(self.is_free(&frame), true);
        assert!(!before, "{frame:?} is freed twice");
        self.frames.push(frame);
    }
}

/// Page `index` of a range that crosses the border of an L1, an L2 table and one GiB.
pub fn page(index: u64) -> GuestVa {
    let start = (1 << 30) - 8 * PAGE_SIZE as u64;
    GuestVa::new(start + index * PAGE_SIZE as u64).expect("in the user half")
}

/// The first `count` pages of that range.
pub fn pages(count: u64) -> Pages {
    Pages { start: page(0), count }
}

/// A pool of tables that holds none and takes none.
pub fn no_pool<'t>() -> TablePool<'t> {
    TablePool::new([&mut [], &mut [], &mut []])
}

/// An address space with `count` pages mapped from [`page`] 0 on.
pub fn build<M: hypercall::Machine>(
    guest: &Guest<'_, M>,
    count: u64,
    pool: &mut Pool,
) -> Pgd<Loose> {
    let mut pgd = Pgd::new(&mut Tools::new(*guest, pool)).expect("a root");
    for index in 0..count {
        let frame = pool.take().expect("a frame");
        pgd.map(&mut Tools::new(*guest, pool), page(index), PteFlags::USER_RW, frame)
            .expect("mapped");
    }
    pgd
}

/// Takes an address space apart, everything back into the pool.
pub fn destroy<M: hypercall::Machine>(guest: &Guest<'_, M>, pgd: Pgd<Loose>, pool: &mut Pool) {
    pgd.destroy(&mut Tools::new(*guest, pool)).expect("taken apart");
}

/// The pool of `with`.
pub fn table_pool<'w, 't, M, F>(with: &'w mut Tools<'_, 't, M, F>) -> &'w mut TablePool<'t> {
    with.pool.as_deref_mut().expect("a pool")
}

/// What operations on a live address space work with.
pub fn tools<'a, 'b, 't, M, F>(
    guest: &Guest<'a, M>,
    batch: &'a mut Batch<'b>,
    tables: &'a mut TablePool<'t>,
    frames: &'a mut F,
) -> Tools<'a, 't, M, F> {
    let mut tools = Tools::new(*guest, frames).with_batch(batch.lend()).with_pool(tables);
    tools.presence = Presence::MayVanish;
    tools
}

/// Lets the direct mapping of `window` show `pfn`, writable.
pub fn alias<M: hypercall::Machine>(guest: &Guest<'_, M>, window: Pfn, pfn: Pfn) {
    let va = guest.machine().direct_map(window).expect("mapped").addr();
    let pte = Pte::new(guest.p2m().mfn(pfn).expect("RAM"), PteFlags::KERNEL_RW);
    let mapping = VaMapping { va, pte, flush: VaFlush::PageAll };
    let mut calls = [Call::new(Request::VaMapping(mapping))];
    // SAFETY: the test exists only in the model.
    unsafe { guest.machine().issue(&mut calls) }.expect("issued");
    calls[0].result().expect("the alias is made");
}
