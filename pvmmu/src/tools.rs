//! What operations on an address space work with.

use hypercall::{Batch, FrameSource, Level, Machine};

use crate::flush::Reach;
use crate::frames::{ForeignFrames, Shares, SpaceFrames};
use crate::pgd::Pgd;
use crate::pool::{PoolError, TablePool};
use crate::vcpus::Vcpus;
use p2m::Guest;

/// Whether pages that an operation keeps mapped may be missing while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// They stay mapped throughout: other vCPUs, or interrupts, may use them. Dirty bits that the
    /// CPU sets meanwhile are kept, and so are accessed bits where an entry keeps its place.
    ///
    /// [`Edit::remap`](crate::Edit::remap) and
    /// [`Edit::clear_reading_ad`](crate::Edit::clear_reading_ad) take write access from clean,
    /// writable pages for a moment. Whoever writes one then faults, finds it mapped, and tries
    /// again. If a handler must write pages without a fault, map them with the dirty bit set.
    Steady,
    /// Nobody uses the address space meanwhile. Whole tables may be unlinked, changed and linked
    /// again.
    MayVanish,
}

/// What operations on an address space work with.
///
/// # Invariants
/// I-19: the flushes of an operation reach every vCPU whose TLB may know the address space.
#[derive(Debug)]
pub struct Tools<'a, 't, M, F> {
    /// The guest.
    pub guest: Guest<'a, M>,
    /// Collects changes of a pinned address space. Its room bounds what goes to Xen in one trap.
    pub batch: Batch<'a>,
    /// Frames for pages and tables.
    pub frames: SpaceFrames<'a, F>,
    /// Whether pages may be missing meanwhile.
    pub presence: Presence,
    /// Empty validated tables, if there are any.
    pub pool: Option<&'a mut TablePool<'t>>,
    /// The vCPUs whose TLBs may know the address space.
    pub(crate) reach: Reach,
    /// Where the vCPUs run, if that is tracked. Then `reach` follows from it.
    pub(crate) vcpus: Option<Vcpus<'a>>,
}

impl<'a, 't, M, F> Tools<'a, 't, M, F> {
    /// Makes tools that take frames from `frames`. Loose address spaces need no more; pinned ones
    /// need a batch, too. The tools keep pages present and flush every vCPU, which is right for any
    /// address space.
    ///
    /// ```
    /// # use pv_tests::guest::TestGuest;
    /// use hypercall::BatchStorage;
    /// use pvmmu::{Presence, Tools};
    ///
    /// # let mut test = TestGuest::new();
    /// # let guest = test.guest;
    /// let mut storage = BatchStorage::<512, 16>::new();
    /// let mut tools = Tools::new(guest, &mut test.frames).with_batch(storage.batch());
    /// tools.presence = Presence::MayVanish; // nobody runs on what is changed
    /// ```
    pub const fn new(guest: Guest<'a, M>, frames: &'a mut F) -> Self {
        let (presence, reach) = (Presence::Steady, Reach::Everywhere);
        let (batch, frames) = (Batch::none(), SpaceFrames::new(frames));
        Self { guest, batch, frames, presence, pool: None, reach, vcpus: None }
    }

    /// Collects changes of pinned address spaces in `batch`.
    ///
    /// ```
    /// # use pv_tests::guest::TestGuest;
    /// use hypercall::BatchStorage;
    /// use pvmmu::Tools;
    ///
    /// # let mut test = TestGuest::new();
    /// let mut storage = BatchStorage::<64, 4>::new(); // 64 changes in one trap
    /// let tools = Tools::new(test.guest, &mut test.frames).with_batch(storage.batch());
    /// assert_eq!(tools.batch.room(), 64);
    /// ```
    #[must_use]
    pub fn with_batch(mut self, batch: Batch<'a>) -> Self {
        self.batch = batch;
        self
    }

    /// Takes missing tables, validated already, from `pool`, and gives those that become empty back
    /// to it. A table that is to hold many pages does not come from there: it costs less to fill a
    /// new one and have it validated ([`Costs::to_map`](crate::cost::Costs::to_map)).
    ///
    /// ```
    /// # use pv_tests::guest::TestGuest;
    /// use pvmmu::{TablePool, Tools};
    ///
    /// # let mut test = TestGuest::new();
    /// let (mut l1, mut l2) = ([const { None }; 16], [const { None }; 2]);
    /// let mut pool = TablePool::new([&mut l1, &mut l2, &mut []]);
    /// let tools = Tools::new(test.guest, &mut test.frames).with_pool(&mut pool);
    /// assert!(tools.pool.is_some_and(|pool| pool.is_empty()));
    /// ```
    #[must_use]
    pub fn with_pool(mut self, pool: &'a mut TablePool<'t>) -> Self {
        self.pool = Some(pool);
        self
    }

    /// Takes frames for tables from `frames`, and gives them back there, for a kernel that keeps
    /// tables apart from pages.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// use pvmmu::{FrameStack, Pgd, Tools};
    ///
    /// # let mut test = TestGuest::new();
    /// let mut slots = [const { None }; 8];
    /// let mut tables = FrameStack::new(&mut slots);
    /// (0..8).filter_map(|_| test.frames.take()).for_each(|frame| tables.give(frame));
    /// let mut tools = Tools::new(test.guest, &mut test.frames).with_table_frames(&mut tables);
    /// let pgd = Pgd::new(&mut tools)?;
    /// assert_eq!(tables.len(), 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn with_table_frames(mut self, frames: &'a mut dyn FrameSource) -> Self {
        self.frames.take_tables_from(frames);
        self
    }

    /// Counts in `shares` who shares a frame. [`Pgd::fork`] needs it, and so does every change of
    /// an address space that was forked: always the same one.
    ///
    /// ```
    /// # use pv_tests::guest::TestGuest;
    /// use pvmmu::{Shares, Tools};
    ///
    /// # let mut test = TestGuest::new();
    /// let mut counts = vec![0; test.p2m.len() as usize]; // one place for each pfn
    /// let mut shares = Shares::new(&mut counts);
    /// let tools = Tools::new(test.guest, &mut test.frames).with_shares(&mut shares);
    /// # let _ = tools;
    /// ```
    #[must_use]
    pub fn with_shares(mut self, shares: &'a mut Shares<'_>) -> Self {
        self.frames.count_in(shares.reborrow());
        self
    }

    /// Asks `foreign` for the owner of a frame that is not the guest's, and tells it when the frame
    /// is no longer mapped.
    ///
    /// ```
    /// # use pv_tests::guest::TestGuest;
    /// use hypercall::{DomId, Mfn};
    /// use pvmmu::{ForeignFrames, Tools};
    ///
    /// struct Devices;
    ///
    /// impl ForeignFrames for Devices {
    ///     fn give_foreign(&mut self, _: Mfn) {}
    ///
    ///     fn domain_of(&self, _: Mfn) -> DomId {
    ///         DomId::IO
    ///     }
    /// }
    ///
    /// # let mut test = TestGuest::new();
    /// let mut devices = Devices;
    /// let tools = Tools::new(test.guest, &mut test.frames).with_foreign(&mut devices);
    /// # let _ = tools;
    /// ```
    #[must_use]
    pub fn with_foreign(mut self, foreign: &'a mut dyn ForeignFrames) -> Self {
        self.frames.tell_foreign(foreign);
        self
    }

    /// Makes operations flush only the vCPUs that, by `vcpus`, run on the address space.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// use pvmmu::{Pages, Running, Vcpus};
    ///
    /// static RUNNING: [Running; 2] = [Running::nowhere(), Running::nowhere()];
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// let (mut pgd, tools) = TestGuest::with_pinned(pages);
    /// // The kernel loads roots through these alone.
    /// let vcpus = unsafe { Vcpus::new(&RUNNING) };
    /// pgd.unmap(&mut tools.tracked(vcpus), pages)?; // nobody runs on it: nothing is flushed
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn tracked(mut self, vcpus: Vcpus<'a>) -> Self {
        self.vcpus = Some(vcpus);
        self
    }

    /// Makes operations flush `reach`, whatever they change.
    ///
    /// # Safety
    /// No other vCPU's TLB knows the address spaces that these tools change. An unmapped frame is
    /// handed out as soon as the vCPUs of `reach` have flushed (I-19).
    #[expect(unsafe_code, reason = "believes what the caller says of TLBs (I-19)")]
    pub unsafe fn set_reach(&mut self, reach: Reach) {
        (self.reach, self.vcpus) = (reach, None);
    }

    /// Lends these tools for another machine: a middleware around the guest's own.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// use hypercall::middleware::Counting;
    ///
    /// let pages = Pages::one(GuestVa::new(0x40_0000)?);
    /// let (mut pgd, mut tools) = TestGuest::with_pinned(pages);
    /// let counting = Counting::new(tools.guest.machine());
    /// pgd.unmap(&mut tools.on_machine(&counting), pages)?;
    /// assert_eq!(counting.counts().hypercalls, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn on_machine<'b, N>(&'b mut self, machine: &'b N) -> Tools<'b, 't, N, F> {
        Tools {
            guest: self.guest.with_machine(machine),
            batch: self.batch.lend(),
            frames: self.frames.lend(),
            presence: self.presence,
            pool: self.pool.as_deref_mut(),
            reach: self.reach,
            vcpus: self.vcpus,
        }
    }

    /// Returns whether the pool has a table for each level below `level`.
    pub(crate) fn has_tables_below(&self, level: Level) -> bool {
        self.pool.as_ref().is_some_and(|pool| pool.has_all_below(level))
    }

    /// Returns the same tools, for one operation, with pages from `source`.
    pub(crate) fn with_source<'b, G>(&'b mut self, source: &'b mut G) -> Tools<'b, 't, M, G>
    where
        F: FrameSource,
    {
        let machine = self.guest.machine();
        let Tools { guest, batch, frames, presence, pool, reach, vcpus } = self.on_machine(machine);
        let frames = frames.with_source(source);
        Tools { guest, batch, frames, presence, pool, reach, vcpus }
    }

    /// Fills the pool with `count` tables of `level`, as [`TablePool::fill`] does. Returns how many
    /// it made: none without a pool.
    ///
    /// # Errors
    /// As for [`TablePool::fill`].
    ///
    /// # Hypercalls
    /// As for [`TablePool::fill`].
    ///
    /// ```
    /// # use pv_tests::guest::TestGuest;
    /// use hypercall::Level;
    ///
    /// let mut tools = TestGuest::new().tools(); // its pool has 8 places for each level
    /// assert_eq!(tools.fill_pool(Level::L1, 5)?, 5);
    /// assert_eq!(tools.drain_pool(Level::L1, 9)?, 5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn fill_pool(&mut self, level: Level, count: usize) -> Result<u64, PoolError>
    where
        M: Machine,
        F: FrameSource,
    {
        let Self { guest, batch, frames, pool: Some(pool), .. } = self else { return Ok(0) };
        pool.fill(guest, level, count, frames.of_tables(), batch)
    }

    /// Ends up to `count` tables of `level` in the pool, as [`TablePool::drain`] does, and frees
    /// their frames. Returns how many it ended.
    ///
    /// # Errors
    /// As for [`TablePool::drain`].
    ///
    /// # Hypercalls
    /// As for [`TablePool::drain`].
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let mut tools = TestGuest::new().tools();
    /// tools.fill_pool(Level::L2, 1)?;
    /// assert_eq!(tools.drain_pool(Level::L2, 1)?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn drain_pool(&mut self, level: Level, count: usize) -> Result<u64, PoolError>
    where
        M: Machine,
        F: FrameSource,
    {
        let Self { guest, frames, pool: Some(pool), .. } = self else { return Ok(0) };
        pool.drain(guest, level, count, frames.of_tables())
    }

    /// Notes whose TLBs may know the address space, and where its pages are counted, before it is
    /// changed.
    pub(crate) fn begin<S>(&mut self, pgd: &Pgd<S>) {
        self.frames.begin(pgd.counted);
        if let Some(vcpus) = self.vcpus {
            self.reach = Reach::Vcpus(vcpus.on(pgd));
        }
    }
}
