//! Address spaces under construction: plain stores into frames that nobody else sees.
#![expect(
    unsafe_code,
    reason = "stores into loose tables; I-4 and I-5 say that nobody else uses them"
)]

mod change;

use core::marker::PhantomData;

use hypercall::{
    Frame, FrameSource, GuestVa, Level, Machine, Pfn, Pte, PteFlags, Refused, XEN_SLOTS,
};
use x86_64::structures::paging::PageTableIndex;

use crate::entries::EMPTY;
use crate::frames::SpaceFrames;
use crate::map_error::MapError;
use crate::marks::MIRRORED;
use crate::path::{Found, Path};
use crate::pgd::{Holds, Loose, Pgd};
use crate::pool::TablePool;
use crate::store::{clear, store, take_table};
use crate::teardown::empty;
use crate::tools::Tools;
use p2m::{Guest, WalkError};

impl Pgd<Loose> {
    /// Creates an address space with an empty user half and the kernel half of the running root.
    ///
    /// # Errors
    /// [`MapError::OutOfFrames`], or [`MapError::Walk`] if the frame map does not know the frame,
    /// or a table cannot be read or written. The frame taken goes back.
    ///
    /// ```
    /// # use pv_tests::guest::TestGuest;
    /// use pvmmu::Pgd;
    ///
    /// let mut tools = TestGuest::new().tools();
    /// let pgd = Pgd::new(&mut tools)?;
    /// assert_eq!(pgd.tables(&tools.guest)?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new<M: Machine, F: FrameSource>(
        tools: &mut Tools<'_, '_, M, F>,
    ) -> Result<Self, MapError> {
        let Tools { guest, frames, .. } = tools;
        let root = take_table(guest, frames, fill_root)?;
        let (user_root, holds, doubt, counted) = (None, Holds::Nothing, None, None);
        // INVARIANT: I-4, I-5 and I-6 hold for a root whose user half is empty.
        Ok(Self { root, user_root, holds, doubt, counted, state: PhantomData })
    }

    /// Does what [`new`](Self::new) does, with a second root for user code.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    ///
    /// ```
    /// # use pv_tests::guest::TestGuest;
    /// use pvmmu::Pgd;
    ///
    /// let mut tools = TestGuest::new().tools();
    /// let pgd = Pgd::with_user_root(&mut tools)?;
    /// assert_ne!(pgd.user_root(), Some(pgd.root()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn with_user_root<M: Machine, F: FrameSource>(
        tools: &mut Tools<'_, '_, M, F>,
    ) -> Result<Self, MapError> {
        let mut pgd = Self::new(tools)?;
        let Tools { guest, frames, .. } = tools;
        match take_table(guest, frames, clear) {
            // INVARIANT: I-6: both lower halves are empty.
            Ok(root) => {
                pgd.user_root = Some(root);
                Ok(pgd)
            }
            Err(error) => {
                frames.of_tables().give(pgd.root);
                Err(error)
            }
        }
    }

    /// Returns the table of `lowest` for `va`. Makes missing tables of that and higher levels.
    pub(crate) fn table<M: Machine>(
        &mut self,
        guest: &Guest<'_, M>,
        path: &mut Path,
        lowest: Level,
        va: GuestVa,
        frames: &mut SpaceFrames<'_, impl FrameSource>,
    ) -> Result<Pfn, MapError> {
        loop {
            let found = path.seek(guest, va)?;
            if let Some(table) = path.table(lowest) {
                return Ok(table);
            }
            let Found::Missing(level) = found else {
                return Err(MapError::Walk(WalkError::NotMapped(va)));
            };
            let below = level.below().ok_or(MapError::NotMapped(va))?;
            let parent = path.table(level).ok_or(MapError::NotMapped(va))?;
            let table = take_table(guest, frames, clear)?;
            let table = self.link(guest, level, parent, va, table, frames)?;
            path.set(below, Some(table));
        }
    }

    /// Links `table`; in the root, for user code, too. On failure `frames` gets it.
    fn link<M: Machine>(
        &self,
        guest: &Guest<'_, M>,
        level: Level,
        parent: Pfn,
        va: GuestVa,
        table: Frame,
        frames: &mut SpaceFrames<'_, impl FrameSource>,
    ) -> Result<Pfn, WalkError> {
        let index = level.index_of(va);
        let user = self.user_root().filter(|_| level == Level::L4);
        let copy = |pte| user.map_or(Ok(()), |user| store(guest, user, index, pte));
        let copied = guest.mfn(table.pfn()).map_err(WalkError::from).and_then(|mfn| {
            copy(Pte::new(mfn, PteFlags::TABLE | MIRRORED)).map(|()| Pte::new(mfn, PteFlags::TABLE))
        });
        let pte = match copied {
            Ok(pte) => pte,
            Err(error) => {
                frames.of_tables().give(table);
                return Err(error);
            }
        };
        // INVARIANT: I-4: the token goes into the entry; or back, if the copy is gone, too.
        let Err(error) = store(guest, parent, index, pte) else { return Ok(table.pfn()) };
        match copy(Pte::ABSENT) {
            Ok(()) => frames.of_tables().give(table),
            Err(_) => frames.of_tables().give_uncertain(table.into()),
        }
        Err(error)
    }

    /// Takes the address space apart: every frame that it maps and every table goes to `frames`.
    ///
    /// # Errors
    /// The address space with what is still in it, if a table cannot be read.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let mut tools = TestGuest::new().tools();
    /// let free = tools.frames.source.count();
    /// let mut pgd = Pgd::new(&mut tools)?;
    /// let pages = Pages { start: GuestVa::new(0x40_0000)?, count: 8 };
    /// pgd.map_pages(&mut tools, pages, PteFlags::USER_RW)?;
    /// pgd.destroy(&mut tools)?;
    /// assert_eq!(tools.frames.source.count(), free);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn destroy<M: Machine, F: FrameSource>(
        mut self,
        tools: &mut Tools<'_, '_, M, F>,
    ) -> Result<(), Refused<Self, MapError>> {
        let Tools { guest, frames, .. } = tools;
        if let Err(error) = self.put_right(guest) {
            return Err(Refused { value: self, error: error.into() });
        }
        if let Err(error) = self.begin_to_release(guest, frames) {
            return Err(Refused { value: self, error });
        }
        let pool = &mut TablePool::none();
        // INVARIANT: I-5: no table is pinned by itself, so the pool is not used.
        match empty(guest, Level::L4, self.root(), self.user_root(), pool, frames) {
            Ok(()) => {
                let frames = frames.of_tables();
                frames.give(self.root);
                self.user_root.into_iter().for_each(|root| frames.give(root));
                Ok(())
            }
            Err(error) => Err(Refused { value: self, error: error.into() }),
        }
    }
}

fn fill_root<M: Machine>(guest: &Guest<'_, M>, root: &Frame) -> Result<(), WalkError> {
    clear(guest, root)?;
    let first = XEN_SLOTS.end() + 1;
    let mut buffer = EMPTY;
    let kernel = &mut buffer[usize::from(first)..];
    let first = PageTableIndex::new_truncate(first);
    guest.machine().read_entries(guest.kernel_root(), first, kernel)?;
    // SAFETY: the root is nobody else's (I-1).
    Ok(unsafe { guest.machine().write_entries(root.pfn(), first, kernel) }?)
}
