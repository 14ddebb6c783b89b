//! Who counts the shares of an address space.

use hypercall::{Level, Machine};

use crate::frames::SpaceFrames;
use crate::map_error::MapError;
use crate::marks::SHARED;
use crate::pgd::Pgd;
use crate::tables::{Part, Step};
use p2m::Guest;

impl<S> Pgd<S> {
    /// Begins work that may end any share: either `frames` count them, or there is none.
    #[inline]
    pub(crate) fn begin_to_release<M: Machine, F>(
        &mut self,
        guest: &Guest<'_, M>,
        frames: &mut SpaceFrames<'_, F>,
    ) -> Result<(), MapError> {
        frames.begin(self.counted);
        if frames.is_counted_elsewhere() {
            self.end_counting(guest)?;
            frames.begin(self.counted);
        }
        Ok(())
    }

    /// Forgets where pages are counted, if none is shared any more.
    #[cold]
    fn end_counting<M: Machine>(&mut self, guest: &Guest<'_, M>) -> Result<(), MapError> {
        // Entries do not tell what a fork that was not taken back has shared, nor the tree what is
        // in a table that was to move.
        if self.doubt.is_some() {
            return Err(MapError::OtherShares);
        }
        Part::user_half(self.root()).entries(guest, &mut |place| {
            let is_shared = place.level == Level::L1 && place.pte.flags().contains(SHARED);
            if is_shared { Err(MapError::OtherShares) } else { Ok(Step::Into) }
        })?;
        self.counted = None;
        Ok(())
    }
}
