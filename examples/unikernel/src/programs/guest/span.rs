//! Growth beyond the size at boot: the toolstack's maximum, the frame map in its window, the direct
//! mapping.

use alloc::boxed::Box;
use alloc::string::String;

use balloon::frames_of_kib;
use hypercall::{BatchStorage, Cpu, FrameSource as _, Frames, Machine, Pfn};
use p2m::{FrameList, Pfns, Toolstack, Window};

use super::super::OrSay as _;
use super::super::extend::{TABLE_PFNS, extend_direct_map};
use super::POOL_RESERVE;
use super::epoch::Epoch;
use super::workload::Workload;
use crate::life::{Life, survives};
use crate::store::Store;

/// What a toolstack lets the guest grow to, in KiB.
const STATIC_MAX: &str = "memory/static-max";

/// Room for the changes of a growth that go to Xen together.
pub(super) type Storage = BatchStorage<512, 8>;

survives! {
    /// How far the guest may grow.
    pub(super) struct Span {
        window: Window,
        /// Pfns that there will ever be.
        maximum: u64,
        /// The last growth was refused: no other one until there is another target.
        refused: bool,
    }
}

/// The most pfns that the guest gets, whatever a toolstack says: the heap has room for their bits.
const PFNS_MAX: u64 = 1 << 22;

/// How many pages the toolstack lets the guest have some day; none if it does not say, or nothing
/// that makes sense.
pub(super) fn maximum(store: &mut Store, life: &dyn Life) -> Option<u64> {
    let value = store.read(life, STATIC_MAX).ok()??;
    frames_of_kib(&value).ok().map(|pages| pages.min(PFNS_MAX))
}

impl Span {
    /// It grows in `window`, to `maximum` pfns.
    pub(super) const fn new(window: Window, maximum: u64) -> Self {
        Self { window, maximum, refused: false }
    }

    /// There is another target.
    pub(super) const fn try_again(&mut self) {
        self.refused = false;
    }

    /// Pfns that there will ever be.
    pub(super) const fn maximum(&self) -> u64 {
        self.maximum
    }

    /// Where the frame map is.
    pub(super) const fn window(&self) -> &Window {
        &self.window
    }

    /// Grows until there are pfns for `wanted` pages, or as many as there may be: the map, its
    /// frame list, the direct mapping. The new pfns, which have no memory; none if there are enough
    /// already, or too few frames for the tables of more.
    ///
    /// # Errors
    /// A sentence, and how many pfns were made and cannot be used.
    pub(super) fn grow<M: Machine + Cpu>(
        &mut self,
        epoch: &mut Epoch<'_, '_, M>,
        frame_list: &mut FrameList<'_>,
        workload: &mut Workload,
        wanted: u64,
    ) -> Result<Option<Frames>, (String, u64)> {
        let len = epoch.p2m().len();
        let end = wanted.saturating_add(TABLE_PFNS - 1) / TABLE_PFNS * TABLE_PFNS;
        let new = Pfns::new(Pfn::new(len), end.min(self.maximum).saturating_sub(len));
        // A page of words and a table for each 512 pfns, and those above them.
        let needed = 2 * (new.count / TABLE_PFNS + 2) + 8 + POOL_RESERVE;
        if new.count == 0 || self.refused || epoch.free() + workload.len() < needed {
            return Ok(None);
        }
        let room = make_room(epoch, workload, needed);
        if let Err(reason) = room.and_then(|()| self.extend(epoch, frame_list, new)) {
            self.refused = true;
            return Err((reason, epoch.p2m().len() - len));
        }
        // SAFETY: the map ended before them until now: nobody ever had them (I-1).
        Ok(Some(unsafe { Frames::claim(new.start, new.count) }))
    }

    fn extend<M: Machine + Cpu>(
        &mut self,
        epoch: &mut Epoch<'_, '_, M>,
        frame_list: &mut FrameList<'_>,
        new: Pfns,
    ) -> Result<(), String> {
        let mut storage = Box::new(Storage::new());
        let mut batch = storage.batch();
        let (kernel, life) = epoch.kernel();
        let toolstack = Some(&Toolstack::new(life.shared_info()));
        let (guest, pool) = (&kernel.guest, &mut kernel.pool);
        self.window.grow(guest, toolstack, new.end(), &mut batch).or_say("grow the frame map")?;
        let reserved = self.window.reserve(guest, toolstack, new, pool, &mut batch);
        reserved.or_say("words of the frame map")?;
        frame_list.refresh(guest, &self.window, new, pool).or_say("frame list")?;
        let tables = extend_direct_map(kernel, new)?;
        kernel.pool.reach(new.end());
        let end = new.end();
        writeln!(kernel.console, "the guest may have {end} pages now, {tables} tables for them")
            .or_say("console")
    }
}

/// Takes frames from the workload until `needed` are free.
fn make_room<M: Machine + Cpu>(
    epoch: &mut Epoch<'_, '_, M>,
    workload: &mut Workload,
    needed: u64,
) -> Result<(), String> {
    while epoch.free() < needed {
        let released = workload.release(epoch.machine());
        let (frame, sound) = released.ok_or("no frames to grow with")?;
        epoch.pool().give(frame);
        sound?;
    }
    Ok(())
}
