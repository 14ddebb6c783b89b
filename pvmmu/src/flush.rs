//! What the TLBs must forget, collected and merged until a batch carries it to Xen.

use hypercall::{Batch, Full, GuestVa, MmuExtOp, VcpuSet};

/// The most pages that are flushed one by one. More are flushed with everything else.
pub const PAGES_SINGLY: usize = 8;

/// The vCPUs whose TLBs may know an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Only the vCPU that runs this.
    Local,
    /// These vCPUs: those that have run on the address space since their last flush.
    Vcpus(VcpuSet),
    /// Every vCPU.
    Everywhere,
}

/// A flush that is owed. [`Flush::push`] pays it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "until it is flushed, a TLB may go on with what stood there before"]
pub struct Flush {
    pages: [GuestVa; PAGES_SINGLY],
    count: Count,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    Pages(usize),
    All,
}

impl Flush {
    /// Nothing is owed.
    pub const NONE: Self =
        Self { pages: [const { lowest() }; PAGES_SINGLY], count: Count::Pages(0) };

    /// Everything is owed.
    pub const ALL: Self = Self { count: Count::All, ..Self::NONE };

    /// Owes one page.
    ///
    /// ```
    /// use hypercall::GuestVa;
    /// use pvmmu::flush::Flush;
    ///
    /// let mut owed = Flush::page(GuestVa::new(0x40_0000)?);
    /// owed.add(GuestVa::new(0x80_0000)?, 2);
    /// assert_ne!(owed, Flush::NONE);
    /// # Ok::<(), hypercall::NotGuestVa>(())
    /// ```
    pub const fn page(va: GuestVa) -> Self {
        let mut flush = Self::NONE;
        flush.add(va, 1);
        flush
    }

    /// Adds `count` pages from `va` on.
    ///
    /// ```
    /// use hypercall::GuestVa;
    /// use pvmmu::flush::{Flush, PAGES_SINGLY};
    ///
    /// let mut owed = Flush::NONE;
    /// owed.add(GuestVa::new(0x40_0000)?, PAGES_SINGLY as u64);
    /// assert_ne!(owed, Flush::ALL); // page by page
    /// owed.add(GuestVa::new(0x80_0000)?, 1);
    /// assert_eq!(owed, Flush::ALL); // one more, and everything is cheaper
    /// # Ok::<(), hypercall::NotGuestVa>(())
    /// ```
    pub const fn add(&mut self, va: GuestVa, count: u64) {
        let Count::Pages(mut used) = self.count else { return };
        if count > (PAGES_SINGLY - used) as u64 {
            *self = Self::ALL;
            return;
        }
        let mut at = 0;
        while at < count {
            match va.checked_add_pages(at) {
                Ok(page) => self.pages[used] = page,
                Err(_) => {
                    *self = Self::ALL;
                    return;
                }
            }
            used += 1;
            at += 1;
        }
        self.count = Count::Pages(used);
    }

    /// Puts the flush at the end of a batch, behind the changes that need it: up to `PAGES_SINGLY`
    /// elements of an `mmuext_op`, or one.
    ///
    /// # Errors
    /// [`Full`]. One place for an extended operation is enough for any flush.
    ///
    /// ```
    /// use hypercall::{BatchStorage, GuestVa};
    /// use pvmmu::flush::{Flush, Reach};
    ///
    /// let mut storage = BatchStorage::<8, 2>::new();
    /// let mut batch = storage.batch();
    /// // ... the changes that the flush is owed for ...
    /// Flush::page(GuestVa::new(0x40_0000)?).push(&mut batch, Reach::Everywhere)?;
    /// assert_eq!(batch.requests(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn push(self, batch: &mut Batch<'_>, reach: Reach) -> Result<(), Full> {
        let nowhere = matches!(reach, Reach::Vcpus(set) if set.is_empty());
        if matches!(self.count, Count::Pages(0)) || nowhere {
            return Ok(());
        }
        match self.count {
            Count::Pages(count) if count <= batch.ops_room() => {
                let pages = &self.pages[..count];
                pages.iter().try_for_each(|va| batch.op(page_op(*va, reach)))
            }
            _ => batch.op(all_op(reach)),
        }
    }
}

/// Returns an address for the unused places.
const fn lowest() -> GuestVa {
    match GuestVa::new(0) {
        Ok(va) => va,
        Err(_) => panic!("address 0 is the guest's"),
    }
}

const fn page_op(va: GuestVa, reach: Reach) -> MmuExtOp {
    match reach {
        Reach::Local => MmuExtOp::invlpg_local(va.addr()),
        Reach::Vcpus(set) => MmuExtOp::invlpg_vcpus(va.addr(), set),
        Reach::Everywhere => MmuExtOp::invlpg_all(va.addr()),
    }
}

const fn all_op(reach: Reach) -> MmuExtOp {
    match reach {
        Reach::Local => MmuExtOp::tlb_flush_local(),
        Reach::Vcpus(set) => MmuExtOp::tlb_flush_vcpus(set),
        Reach::Everywhere => MmuExtOp::tlb_flush_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypercall::BatchStorage;

    fn va(page: u64) -> GuestVa {
        GuestVa::new(page << 12).expect("user half")
    }

    fn ops(flush: Flush, reach: Reach) -> String {
        let mut storage = BatchStorage::<1, 16>::new();
        let mut batch = storage.batch();
        flush.push(&mut batch, reach).expect("room");
        format!("{batch:?}")
    }

    #[test]
    fn few_pages_are_flushed_singly_and_many_at_once() {
        let mut flush = Flush::page(va(1));
        flush.add(va(7), 2);
        assert_eq!(
            ops(flush, Reach::Everywhere),
            "[MmuExt([ext 11 1000 0, ext 11 7000 0, ext 11 8000 0], DomId(32752))]"
        );
        flush.add(va(100), 5);
        assert!(ops(flush, Reach::Local).contains("ext 7 68000 0"), "eight pages");
        flush.add(va(200), 1);
        assert_eq!(ops(flush, Reach::Local), "[MmuExt([ext 6 0 0], DomId(32752))]");
    }

    #[test]
    fn more_pages_than_there_are_addresses_are_everything() {
        let mut long = Flush::NONE;
        long.add(va(0), u64::MAX);
        assert_eq!(long, Flush::ALL);
    }

    #[test]
    fn an_address_space_that_no_vcpu_knows_needs_no_flush() {
        assert_eq!(ops(Flush::ALL, Reach::Vcpus(VcpuSet::NONE)), "[]");
        assert_eq!(ops(Flush::NONE, Reach::Everywhere), "[]");
    }

    #[test]
    fn a_flush_of_some_vcpus_carries_their_set() {
        let mut storage = BatchStorage::<1, 1>::new();
        let mut batch = storage.batch();
        Flush::ALL.push(&mut batch, Reach::Vcpus(VcpuSet(0b101))).expect("room");
        let text = format!("{batch:?}");
        assert!(text.starts_with("[MmuExt([ext 8 0 "), "{text}");
    }
}
