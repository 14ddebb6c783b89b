//! A machine that counts.

use core::cell::Cell;
use core::ops::Sub;

use super::{forward_cpu, forward_frame_access};
use crate::call::{Call, Outcome};
use crate::error::Error;
use crate::frame::{Mfn, Pfn};
use crate::grants::{GrantMap, GrantStatus, GrantUnmap, Grants};
use crate::machine::{AccessError, Assist, Cpu, Fault, FrameAccess, Hypercalls};
use crate::memory::MemoryOp;
use crate::pte::Pte;
use crate::va::GuestVa;
use x86_64::structures::paging::PageTableIndex;

/// What passed through the seam.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Traps into Xen: hypercalls issued; a multicall counts once.
    pub hypercalls: u64,
    /// Elements requested: page-table updates, extended operations, va mappings, extents.
    pub entries: u64,
    /// Requests that Xen refused.
    pub refused: u64,
}

impl Sub for Counts {
    type Output = Self;

    /// Returns what was counted between two snapshots.
    fn sub(self, earlier: Self) -> Self {
        Self {
            hypercalls: self.hypercalls - earlier.hypercalls,
            entries: self.entries - earlier.entries,
            refused: self.refused - earlier.refused,
        }
    }
}

/// Wraps a machine and counts what goes to Xen. Frame access is not counted.
#[derive(Debug)]
pub struct Counting<M> {
    machine: M,
    counts: Cell<Counts>,
}

impl<M> Counting<M> {
    /// Wraps `machine`, and starts from zero.
    ///
    /// ```
    /// use hypercall::middleware::Counting;
    /// use hypercall::{Assist, Hypercalls};
    ///
    /// let model = xen_model::Model::builder().build()?;
    /// let machine = Counting::new(&model);
    /// machine.enable_assist(Assist::WritablePageTables)?;
    /// assert_eq!(machine.counts().hypercalls, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub const fn new(machine: M) -> Self {
        let counts = Cell::new(Counts { hypercalls: 0, entries: 0, refused: 0 });
        Self { machine, counts }
    }

    /// Returns what was counted so far.
    pub const fn counts(&self) -> Counts {
        self.counts.get()
    }

    /// Returns the machine inside.
    pub const fn inner(&self) -> &M {
        &self.machine
    }

    fn add(&self, entries: usize, refused: usize) {
        let old = self.counts.get();
        self.counts.set(Counts {
            hypercalls: old.hypercalls + 1,
            entries: old.entries + entries as u64,
            refused: old.refused + refused as u64,
        });
    }
}

#[expect(unsafe_code, reason = "forwards calls with the promises of their callers")]
// SAFETY: every call goes to the machine inside, whose answer is handed on.
unsafe impl<M: Hypercalls> Hypercalls for Counting<M> {
    unsafe fn issue(&self, calls: &mut [Call<'_>]) -> Result<(), Error> {
        // SAFETY: the caller's promise is handed on.
        let result = unsafe { self.machine.issue(calls) };
        if !calls.is_empty() {
            let (mut entries, mut refused) = (0, 0);
            for call in &*calls {
                entries += call.request.len();
                refused += usize::from(matches!(call.outcome, Outcome::Refused { .. }));
            }
            self.add(entries, refused);
        }
        result
    }

    unsafe fn memory_op(&self, op: &mut MemoryOp<'_>) -> Result<u64, Error> {
        let entries = op.extents();
        // SAFETY: the caller's promise is handed on.
        let result = unsafe { self.machine.memory_op(op) };
        self.add(entries, usize::from(result.is_err()));
        result
    }

    unsafe fn memory_op_counted(
        &self,
        op: &mut MemoryOp<'_>,
    ) -> (Result<u64, Error>, Result<u64, Error>) {
        let entries = op.extents();
        // SAFETY: the caller's promise is handed on.
        let (answer, count) = unsafe { self.machine.memory_op_counted(op) };
        self.add(entries, usize::from(answer.is_err()) + usize::from(count.is_err()));
        (answer, count)
    }

    fn enable_assist(&self, assist: Assist) -> Result<(), Error> {
        let result = self.machine.enable_assist(assist);
        self.add(0, usize::from(result.is_err()));
        result
    }
}

#[expect(unsafe_code, reason = "forwards calls with the promises of their callers")]
// SAFETY: every call goes to the machine inside, whose answer is handed on.
unsafe impl<M: Grants> Grants for Counting<M> {
    unsafe fn grant_map(&self, maps: &mut [GrantMap]) -> Result<(), Error> {
        // SAFETY: the caller's promise is handed on.
        let result = unsafe { self.machine.grant_map(maps) };
        let refused = maps.iter().filter(|map| map.status() != GrantStatus::OKAY).count();
        self.add(maps.len(), refused);
        result
    }

    unsafe fn grant_unmap(&self, unmaps: &mut [GrantUnmap]) -> Result<(), Error> {
        // SAFETY: the caller's promise is handed on.
        let result = unsafe { self.machine.grant_unmap(unmaps) };
        let refused = unmaps.iter().filter(|unmap| unmap.status() != GrantStatus::OKAY).count();
        self.add(unmaps.len(), refused);
        result
    }

    fn grant_table(&self, frames: &mut [Mfn]) -> Result<(), Error> {
        let result = self.machine.grant_table(frames);
        self.add(0, usize::from(result.is_err()));
        result
    }
}

forward_frame_access!([M: FrameAccess] Counting<M>, self => self.machine);
forward_cpu!([M: Cpu] Counting<M>, self => self.machine);
