//! A machine that fails some accesses to frames.

use x86_64::structures::paging::PageTableIndex;

use super::accesses::Accessed;
use super::fail_each::FailEach;
use super::forward_frame_access;
use crate::frame::{Mfn, Pfn};
use crate::machine::{AccessError, FrameAccess};
use crate::pte::Pte;
use crate::va::GuestVa;

impl<M> FailEach<'_, M> {
    /// Counts an access that changes nothing.
    fn reach(&self, method: &'static str, pfn: Pfn) -> Result<(), AccessError> {
        let access = Accessed { method, pfn, requests: self.plan.seen() };
        self.plan.accesses().count(access).map_err(|_| AccessError::Unmapped(pfn))
    }

    /// Counts a write. A write that fails finds the frame unmapped or read-only, in turn.
    fn write(&self, method: &'static str, pfn: Pfn) -> Result<(), AccessError> {
        let access = Accessed { method, pfn, requests: self.plan.seen() };
        self.plan.accesses().count(access).map_err(|number| match number % 2 {
            0 => AccessError::ReadOnly(pfn),
            _ => AccessError::Unmapped(pfn),
        })
    }
}

forward_frame_access!(
    [M: FrameAccess] FailEach<'_, M>, self => self.machine, behind reach and write
);
