//! A guest on the model for the examples of the documentation: what a kernel has made when it comes
//! to the lines that an example shows. All of it lives as long as the program.
#![expect(unsafe_code, reason = "claims frames of a guest that exists only in the model")]

use std::sync::atomic::AtomicU64;

use hypercall::start_info::BootInfo;
use hypercall::{Batch, BatchStorage, Frame, FrameSource, Frames, GuestVa, Pfn, PteFlags};
use p2m::{Guest, P2m};
use pvmmu::{Pages, Pgd, Pinned, PooledTable, Presence, Shares, TablePool, Tools};
use xen_model::{BootMapping, DomainConfig, Model, Role};

/// Pages of the guest: 16 MiB.
const PAGES: u64 = 4096;
/// Memory that Xen has left, for exchanges and for a guest that grows.
const SPARE: u64 = 1 << 14;

/// A guest on a machine of its own.
#[derive(Debug)]
pub struct TestGuest {
    /// The machine.
    pub model: &'static Model,
    /// What its builder left.
    pub boot: BootInfo,
    /// Its frame map.
    pub p2m: &'static P2m<'static>,
    /// The guest, as operations take it.
    pub guest: Guest<'static, Model>,
    /// What is free: all of it is in the direct mapping.
    pub frames: Free,
}

/// Free frames.
#[derive(Debug)]
pub struct Free(Vec<Frame>);

/// What operations on a live address space take, with frames that can be shared.
pub type Work = Tools<'static, 'static, Model, Free>;

impl TestGuest {
    /// A domU of 16 MiB on Xen 4.17, which has mapped all of it.
    ///
    /// # Panics
    /// Never: the sizes are constants.
    #[must_use]
    pub fn new() -> Self {
        Self::of(Role::DomU)
    }

    /// The same as dom0, beside a domU of 4 MiB, which is domain 1.
    ///
    /// # Panics
    /// Never: the sizes are constants.
    #[must_use]
    pub fn dom0() -> Self {
        Self::of(Role::Dom0)
    }

    fn of(role: Role) -> Self {
        let mut config = DomainConfig::new(role, PAGES);
        config.boot_mapping = BootMapping::AllPages;
        config.vcpus = 2;
        let base = GuestVa::new(config.virt_base).expect("an address of the kernel half");
        let neighbour = DomainConfig::new(Role::DomU, 1024);
        let builder = Model::builder().guest(config).other(neighbour).spare_pages(SPARE);
        let model: &Model = Box::leak(Box::new(builder.build().expect("two small guests")));
        let guest = model.guest();
        guest.set_direct_map(base, PAGES);
        let boot = BootInfo::parse(&guest.start_info().expect("built")).expect("valid");
        let list: &[AtomicU64] = guest.built_list().leak();
        // SAFETY: the guest exists only in the model.
        let p2m: &P2m<'_> = Box::leak(Box::new(unsafe { P2m::adopt(list) }.expect("not empty")));
        let kernel_root = guest.pfn_at(boot.root).expect("mapped by the builder");
        let pfns = guest.first_free_page().raw()..PAGES;
        // SAFETY: the frames exist only in the model, and each is claimed once.
        let frames = pfns.rev().map(|pfn| unsafe { Frame::claim(Pfn::new(pfn)) }).collect();
        // SAFETY: the model's guest, its frame map, and the root that its builder made.
        let guest = unsafe { Guest::new(model, p2m, kernel_root) };
        Self { model, boot, p2m, guest, frames: Free(frames) }
    }

    /// A batch with room for 512 updates and 16 operations.
    pub fn batch(&self) -> &'static mut Batch<'static> {
        let storage = Box::leak(Box::new(BatchStorage::<512, 16>::new()));
        Box::leak(Box::new(storage.batch()))
    }

    /// What changes live address spaces: nobody uses them meanwhile, and the pool has places for 8
    /// tables of each level.
    #[must_use]
    pub fn tools(self) -> Work {
        let places = || (0..8).map(|_| None).collect::<Vec<Option<PooledTable>>>().leak();
        let shares = Shares::new(vec![0; self.p2m.all().iter().count()].leak());
        let (guest, batch) = (self.guest, self.batch());
        let pool = Box::leak(Box::new(TablePool::new([places(), places(), places()])));
        let (frames, shares) = (Box::leak(Box::new(self.frames)), Box::leak(Box::new(shares)));
        let tools = Tools::new(guest, frames).with_batch(batch.lend());
        let mut tools = tools.with_pool(pool).with_shares(shares);
        tools.presence = Presence::MayVanish;
        tools
    }

    /// A pinned address space with `pages` mapped, and what changes it.
    ///
    /// # Panics
    /// If `pages` are more than the guest has, or not of the user half.
    pub fn with_pinned(pages: Pages) -> (Pgd<Pinned>, Work) {
        let mut tools = Self::new().tools();
        let mut pgd = Pgd::new(&mut tools).expect("a root");
        pgd.map_pages(&mut tools, pages, PteFlags::USER_RW).expect("mapped");
        let pgd = pgd.pin(&tools.guest, &mut tools.batch).expect("pinned");
        (pgd, tools)
    }
}

impl Default for TestGuest {
    fn default() -> Self {
        Self::new()
    }
}

impl Free {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// `count` frames that follow one another.
    ///
    /// # Panics
    /// If there are not so many, or some have been handed out before.
    pub fn take_run(&mut self, count: usize) -> Frames {
        let run: Vec<Frame> = self.0.drain(self.0.len() - count..).collect();
        let (last, first) = (run.first().expect("some").pfn(), run.last().expect("some").pfn());
        assert_eq!(first.checked_add(count as u64 - 1), Some(last), "they follow one another");
        // SAFETY: their tokens end here.
        unsafe { Frames::claim(first, count as u64) }
    }
}

impl FrameSource for Free {
    fn take(&mut self) -> Option<Frame> {
        self.0.pop()
    }

    fn give(&mut self, frame: Frame) {
        self.0.push(frame);
    }
}
