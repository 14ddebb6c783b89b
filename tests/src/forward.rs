//! Accesses to frames that go to the machine inside.

/// Forwards [`FrameAccess`](hypercall::FrameAccess) to the field `machine` of a machine around
/// another: `forward_accesses!([M: FrameAccess] Around<M>)`.
#[macro_export]
macro_rules! forward_accesses {
    ([$($generics:tt)*] $around:ty) => {
        const _: () = {
            use core::ops::Range;

            use hypercall::{AccessError, FrameAccess, GuestVa, Mfn, Pfn, Pte, PteFlags};
            use x86_64::structures::paging::PageTableIndex;

            // SAFETY: every access goes to the machine inside, whose answer is handed on.
            unsafe impl<$($generics)*> FrameAccess for $around {
                fn read_entry(
                    &self,
                    table: Pfn,
                    index: PageTableIndex,
                ) -> Result<Pte, AccessError> {
                    self.machine.read_entry(table, index)
                }

                unsafe fn write_entry(
                    &self,
                    table: Pfn,
                    index: PageTableIndex,
                    pte: Pte,
                ) -> Result<(), AccessError> {
                    // SAFETY: the caller's promise is handed on.
                    unsafe { self.machine.write_entry(table, index, pte) }
                }

                fn next_present(
                    &self,
                    table: Pfn,
                    slots: Range<u16>,
                ) -> Result<Option<(PageTableIndex, Pte)>, AccessError> {
                    self.machine.next_present(table, slots)
                }

                fn read_bytes(
                    &self,
                    pfn: Pfn,
                    offset: usize,
                    into: &mut [u8],
                ) -> Result<(), AccessError> {
                    self.machine.read_bytes(pfn, offset, into)
                }

                unsafe fn write_bytes(
                    &self,
                    pfn: Pfn,
                    offset: usize,
                    from: &[u8],
                ) -> Result<(), AccessError> {
                    // SAFETY: the caller's promise is handed on.
                    unsafe { self.machine.write_bytes(pfn, offset, from) }
                }

                fn machine_to_phys(&self, mfn: Mfn) -> Option<Pfn> {
                    self.machine.machine_to_phys(mfn)
                }

                fn direct_map(&self, pfn: Pfn) -> Result<GuestVa, AccessError> {
                    self.machine.direct_map(pfn)
                }

                fn missing_flags(&self) -> PteFlags {
                    self.machine.missing_flags()
                }
            }
        };
    };
}
