//! What becomes of frames and tables once a batch has come through, or has not.

use hypercall::{Batch, Frame, FrameSource, Machine, MmuUpdate, Pte};

use crate::frames::SpaceFrames;
use crate::leaf::{lose as lose_leaf, lose_table, release};
use crate::marks::{FOREIGN, Held, MIRRORED, held};
use crate::pool::TablePool;
use p2m::Guest;

/// Empties a batch of which something is handed on when that has ended, even by a panic of whoever
/// gets it: nothing is handed on twice.
pub(super) struct Emptied<'b, 's>(pub(super) &'b mut Batch<'s>);

impl Drop for Emptied<'_, '_> {
    fn drop(&mut self) {
        self.0.clear();
    }
}

/// Where things go.
pub(super) struct Settled<'s, 'a, 't, M, F> {
    pub(super) guest: &'s Guest<'a, M>,
    pub(super) pool: Option<&'s mut TablePool<'t>>,
    pub(super) frames: &'s mut SpaceFrames<'a, F>,
    /// Pages whose entries changed.
    pub(super) pages: u64,
}

/// How a table came to be in no tree.
enum Outside {
    /// It was unlinked.
    Unlinked,
    /// Its link never took effect.
    NeverLinked,
}

/// What an entry stands for.
enum Thing {
    Nothing,
    Page(Pte),
    Table(Held, Pte),
}

impl Thing {
    /// Decodes an entry of a batch: a leaf, a link to a table from the pool, or the copy of one.
    /// Tables that are not from the pool are linked in steps of their own.
    fn of(pte: Pte) -> Self {
        match held(pte) {
            _ if !pte.is_present() => Self::Nothing,
            Some(held) => Self::Table(held, pte),
            None if pte.flags().contains(MIRRORED) => Self::Nothing,
            None => Self::Page(pte),
        }
    }
}

impl<M: Machine, F: FrameSource> Settled<'_, '_, '_, M, F> {
    #[expect(unsafe_code, reason = "claims back tables that are linked no more (I-4)")]
    fn table(&mut self, held: Held, pte: Pte, outside: Outside) {
        let Ok(pfn) = self.guest.p2m().pfn(self.guest.machine(), pte.mfn()) else {
            return log::error!("table mfn {} has no pfn: it is lost", pte.mfn());
        };
        // SAFETY: I-4: the entry was the table's only owner, and it is gone, or was never written.
        let frame = unsafe { Frame::claim(pfn) };
        let (frames, mut none) = (self.frames.of_tables(), TablePool::none());
        let pool = self.pool.as_deref_mut().unwrap_or(&mut none);
        match outside {
            Outside::NeverLinked => pool.return_unused(held.level(), frame, frames),
            Outside::Unlinked => pool.give_back(self.guest, held, frame, frames),
        }
    }

    /// Gives up a table that is no longer linked, or should not be. Its contents are not known.
    fn lost_table(&mut self, held: Held, pte: Pte) {
        lose_table(self.guest, pte, self.frames);
        if let (Held::Pooled(_), Some(pool)) = (held, &mut self.pool) {
            pool.note_not_returned(1);
        }
    }
}

/// Releases what the old value of each pair stood for. All pairs have taken effect.
pub(super) fn settle<M: Machine, F: FrameSource>(
    pairs: impl Iterator<Item = (MmuUpdate, u64)>,
    settled: &mut Settled<'_, '_, '_, M, F>,
) {
    for (update, old) in pairs {
        let (new, old) = (Pte::from_raw(update.value()), Pte::from_raw(old));
        match Thing::of(old) {
            Thing::Page(old) => {
                settled.pages += 1;
                if !new.is_present() || new.mfn() != old.mfn() {
                    release(settled.guest, old, settled.frames);
                }
            }
            Thing::Table(held, old) if !new.is_present() => {
                settled.table(held, old, Outside::Unlinked);
            }
            Thing::Nothing if matches!(Thing::of(new), Thing::Page(_)) => settled.pages += 1,
            Thing::Table(..) | Thing::Nothing => {}
        }
    }
}

/// Gives up what the new value of a pair stands for and its old one does not, because it is not
/// known what TLBs have. For an inverted pair, that is what left.
pub(super) fn lose<M: Machine, F: FrameSource>(
    pairs: impl Iterator<Item = (MmuUpdate, u64)>,
    settled: &mut Settled<'_, '_, '_, M, F>,
) {
    for (update, old) in pairs {
        let (new, old) = (Pte::from_raw(update.value()), Pte::from_raw(old));
        match Thing::of(new) {
            Thing::Page(new) if !old.is_present() || new.mfn() != old.mfn() => {
                lose_leaf(settled.guest, new, settled.frames);
            }
            Thing::Table(held, new) if !old.is_present() => settled.lost_table(held, new),
            _ => {}
        }
    }
}

/// Gives back what the new value of each pair was to stand for. No pair is in effect. Nothing was
/// taken for another domain's frame, so `ForeignFrames::give_foreign` is not called for one.
pub(super) fn take_back<M: Machine, F: FrameSource>(
    pairs: impl Iterator<Item = (MmuUpdate, u64)>,
    settled: &mut Settled<'_, '_, '_, M, F>,
) {
    for (update, old) in pairs {
        let (new, old) = (Pte::from_raw(update.value()), Pte::from_raw(old));
        match Thing::of(new) {
            Thing::Page(new) if new.flags().contains(FOREIGN) => {}
            Thing::Page(new) if !old.is_present() || new.mfn() != old.mfn() => {
                release(settled.guest, new, settled.frames);
            }
            Thing::Table(held, new) if !old.is_present() => {
                settled.table(held, new, Outside::NeverLinked);
            }
            _ => {}
        }
    }
}
