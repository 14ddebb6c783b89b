//! Changes the flags of one page, by the primitive of the caller's choice.
#![expect(unsafe_code, reason = "changes entries of the user half, which belong to the tree (I-4)")]

use hypercall::{
    BatchError, BatchStorage, Cpu, Element, Entry, GuestVa, Level, Machine, MmuUpdate, Pte,
    PteFlags, Slot, VaFlush, VaMapping,
};

use crate::doubt::Doubt;
use crate::entries::flags_of_shared;
use crate::flush::{Flush, Reach};
use crate::map_error::MapError;
use crate::marks::KEPT;
use crate::pages::{check_page, offered};
use crate::path::{Found, Path};
use crate::pgd::{Pgd, Pinned};
use crate::primitive::{Changed, Primitive, Runs, WriteMode, cheapest};
use p2m::Guest;

impl Pgd<Pinned> {
    /// Gives one page new flags at once, and flushes it everywhere.
    ///
    /// # Errors
    /// [`MapError::KernelHalf`], [`MapError::Unaligned`], [`MapError::Flags`],
    /// [`MapError::NotMapped`], [`MapError::Walk`]; [`MapError::Unfit`] if `by` cannot write as
    /// `mode` asks. [`MapError::Refused`] or [`MapError::Faulted`] if Xen refuses the entry, which
    /// is then as before.
    ///
    /// # Hypercalls
    /// One. After an emulated write, which is a trap of its own, one `mmuext_op`; if that is
    /// refused, the write that undoes the change, and the flush again.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// use pvmmu::primitive::WriteMode;
    /// use pvmmu::Pages;
    ///
    /// let page = Pages::one(GuestVa::new(0x40_0000)?);
    /// let (mut pgd, tools) = TestGuest::with_pinned(page);
    /// let (va, read_only) = (page.start, PteFlags::USER_RW - PteFlags::WRITABLE);
    /// let _ = pgd.set_flags(&tools.guest, va, read_only, WriteMode::Set, None)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_flags<M: Machine + Cpu>(
        &mut self,
        guest: &Guest<'_, M>,
        va: GuestVa,
        flags: PteFlags,
        mode: WriteMode,
        by: Option<Primitive>,
    ) -> Result<Changed, MapError> {
        self.set_flags_of(guest, va, flags, mode, Runs::Elsewhere, by)
    }

    /// Does what [`set_flags`](Self::set_flags) does, in the address space that runs here. It may
    /// use [`Primitive::VaMapping`], which names no table.
    ///
    /// # Errors
    /// As for [`set_flags`](Self::set_flags).
    ///
    /// # Hypercalls
    /// As for [`set_flags`](Self::set_flags).
    ///
    /// # Safety
    /// The vCPU that runs this runs on this address space. Xen changes the entry of the loaded one:
    /// any other would get a frame of this one's (I-4).
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// use pvmmu::primitive::WriteMode;
    /// use pvmmu::Pages;
    ///
    /// let page = Pages::one(GuestVa::new(0x40_0000)?);
    /// let (mut pgd, tools) = TestGuest::with_pinned(page);
    /// unsafe { pgd.load(&tools.guest) }?;
    /// let (va, read_only) = (page.start, PteFlags::USER_RW - PteFlags::WRITABLE);
    /// let _ = unsafe { pgd.set_flags_here(&tools.guest, va, read_only, WriteMode::Set, None) }?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn set_flags_here<M: Machine + Cpu>(
        &mut self,
        guest: &Guest<'_, M>,
        va: GuestVa,
        flags: PteFlags,
        mode: WriteMode,
        by: Option<Primitive>,
    ) -> Result<Changed, MapError> {
        self.set_flags_of(guest, va, flags, mode, Runs::Here, by)
    }

    fn set_flags_of<M: Machine + Cpu>(
        &mut self,
        guest: &Guest<'_, M>,
        va: GuestVa,
        flags: PteFlags,
        mode: WriteMode,
        runs: Runs,
        by: Option<Primitive>,
    ) -> Result<Changed, MapError> {
        check_page(va)?;
        let flags = offered(guest, flags, va)?;
        let by = by.unwrap_or(cheapest(mode, runs));
        if !by.is_right(mode, runs) {
            return Err(MapError::Unfit(by));
        }
        self.put_right(guest)?;
        let mut path = Path::new(self.root());
        let Found::Table(_) = path.seek(guest, va)? else { return Err(MapError::NotMapped(va)) };
        let (slot, old) = path.entry(guest, Level::L1, va)?;
        let Entry::Leaf(_) = old.decode(Level::L1) else { return Err(MapError::NotMapped(va)) };
        let old = if let WriteMode::IfStill(old) = mode { old } else { old };
        let new = flags_of_shared(Pte::from_raw(old.raw() & KEPT | flags.bits()), old);
        let table = path.table(Level::L1).ok_or(MapError::NotMapped(va))?;
        let changed = match by {
            Primitive::MmuUpdate => request(guest, va, slot, MmuUpdate::set, new, old),
            Primitive::PreserveAd => {
                let ad = PteFlags::ACCESSED | PteFlags::DIRTY;
                let new = new.with_flags(new.flags() & !ad);
                request(guest, va, slot, MmuUpdate::set_preserving_ad, new, old)
            }
            Primitive::VaMapping => va_mapping(guest, va, new, old),
            Primitive::EmulatedStore | Primitive::EmulatedCompareExchange => {
                let page = guest.machine().direct_map(table)?.raw();
                let entry = GuestVa::new(page + u64::from(slot.index) * size_of::<Pte>() as u64);
                let entry = entry.map_err(|_| MapError::NotMapped(va))?;
                emulated(guest, va, entry, by, mode, new, old)
            }
        };
        if let Err(MapError::RefusedCall(_) | MapError::NotUndone { .. }) = changed {
            // A TLB may know the flags that the page had for a moment.
            Doubt::FLUSH.note(&mut self.doubt);
        }
        changed
    }
}

fn request<M: Machine>(
    guest: &Guest<'_, M>,
    va: GuestVa,
    slot: Slot,
    update: impl Fn(Slot, Pte) -> MmuUpdate,
    new: Pte,
    old: Pte,
) -> Result<Changed, MapError> {
    let mut storage = BatchStorage::<1, 1>::new();
    let mut batch = storage.batch();
    batch.update(update(slot, new), old.raw())?;
    Flush::page(va).push(&mut batch, Reach::Everywhere)?;
    // SAFETY: the entry keeps its frame, and belongs to the address space (I-4).
    let Err(error) = (unsafe { batch.submit(guest.machine()) }) else {
        return Ok(Changed::From(old));
    };
    if !batch.applied().any(|done| matches!(done, Element::Update(_))) {
        return Err(MapError::Refused { va, error });
    }
    // The flush was refused. Without it neither the change nor what a TLB may have taken from it
    // may stay.
    batch.invert();
    Flush::page(va).push(&mut batch, Reach::Everywhere)?;
    // SAFETY: as above.
    let undone = unsafe { batch.submit(guest.machine()) };
    undone.map_err(|again| MapError::NotUndone { left: 1, error: again.error })?;
    Err(MapError::RefusedCall(error))
}

fn va_mapping<M: Machine>(
    guest: &Guest<'_, M>,
    va: GuestVa,
    pte: Pte,
    old: Pte,
) -> Result<Changed, MapError> {
    let mut storage = BatchStorage::<1, 1>::new();
    let mut batch = storage.batch();
    batch.va_mapping(VaMapping { va: va.addr(), pte, flush: VaFlush::PageAll }, old)?;
    // SAFETY: the entry keeps its frame, and belongs to the address space (I-4), which runs here.
    let result = unsafe { batch.submit(guest.machine()) };
    result.map(|()| Changed::From(old)).map_err(|error| MapError::Refused { va, error })
}

fn emulated<M: Machine + Cpu>(
    guest: &Guest<'_, M>,
    va: GuestVa,
    entry: GuestVa,
    by: Primitive,
    mode: WriteMode,
    new: Pte,
    old: Pte,
) -> Result<Changed, MapError> {
    let changed = if by == Primitive::EmulatedStore {
        // SAFETY: the entry keeps its frame, and belongs to the address space (I-4). A table is
        // behind the address, no Rust object.
        unsafe { guest.machine().store(entry, new.raw()) }.map(|()| Changed::From(old))
    } else {
        exchange(guest.machine(), entry, mode, new, old)
    };
    let changed = changed.map_err(|_| MapError::Faulted(va))?;
    let Changed::From(was) = changed else { return Ok(changed) };
    let Err(refused) = flush_everywhere(guest, va)? else { return Ok(changed) };
    // Without the flush neither the change nor what a TLB may have taken from it may stay. Bits
    // that the CPU set meanwhile do. Xen may have adjusted what was written.
    let undone = guest.machine().load(entry).and_then(|now| {
        let now = Pte::from_raw(now);
        exchange(guest.machine(), entry, WriteMode::KeepAccessedDirty, was, now)
    });
    match undone {
        Ok(Changed::From(_)) => match flush_everywhere(guest, va)? {
            Ok(()) => Err(MapError::RefusedCall(refused)),
            Err(again) => Err(MapError::NotUndone { left: 1, error: again.error }),
        },
        Ok(Changed::Not(_)) | Err(_) => Err(MapError::NotUndone { left: 1, error: refused.error }),
    }
}

/// Flushes a page by itself. The outer result says whether Xen could be asked.
fn flush_everywhere<M: Machine>(
    guest: &Guest<'_, M>,
    va: GuestVa,
) -> Result<Result<(), BatchError>, MapError> {
    let mut storage = BatchStorage::<1, 1>::new();
    let mut batch = storage.batch();
    Flush::page(va).push(&mut batch, Reach::Everywhere)?;
    // SAFETY: a flush changes no mapping.
    Ok(unsafe { batch.submit(guest.machine()) })
}

/// Exchanges the entry. Tries again if only the CPU has changed it, and `mode` allows that.
fn exchange<M: Cpu>(
    machine: &M,
    entry: GuestVa,
    mode: WriteMode,
    new: Pte,
    old: Pte,
) -> Result<Changed, hypercall::Fault> {
    let ad = PteFlags::ACCESSED.union(PteFlags::DIRTY).bits();
    let mut old = old.raw();
    loop {
        let value = match mode {
            WriteMode::KeepAccessedDirty => new.raw() & !ad | old & ad,
            _ => new.raw(),
        };
        // SAFETY: as in `emulated`.
        let was = unsafe { machine.compare_exchange(entry, old, value) }?;
        if was == old {
            return Ok(Changed::From(Pte::from_raw(was)));
        }
        if matches!(mode, WriteMode::IfStill(_)) || (was ^ old) & !ad != 0 {
            return Ok(Changed::Not(Pte::from_raw(was)));
        }
        old = was;
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use hypercall::{Fault, Mfn};

    use super::*;

    /// A CPU whose one entry becomes `then` just before it is first exchanged.
    struct Raced {
        entry: Cell<u64>,
        then: Cell<Option<u64>>,
    }

    // SAFETY: the machine has no memory that Rust knows of: what it says concerns the test alone.
    unsafe impl Cpu for Raced {
        fn load(&self, _: GuestVa) -> Result<u64, Fault> {
            Ok(self.entry.get())
        }

        unsafe fn store(&self, _: GuestVa, value: u64) -> Result<(), Fault> {
            self.entry.set(value);
            Ok(())
        }

        unsafe fn compare_exchange(
            &self,
            _: GuestVa,
            current: u64,
            new: u64,
        ) -> Result<u64, Fault> {
            if let Some(then) = self.then.take() {
                self.entry.set(then);
            }
            let was = self.entry.get();
            if was == current {
                self.entry.set(new);
            }
            Ok(was)
        }

        fn ticks(&self) -> u64 {
            0
        }
    }

    /// Exchanges `old` for `new` on a CPU whose entry becomes `then` meanwhile; what is left.
    fn raced(mode: WriteMode, old: Pte, then: Pte, new: Pte) -> (Changed, Pte) {
        let cpu = Raced { entry: Cell::new(old.raw()), then: Cell::new(Some(then.raw())) };
        let va = GuestVa::new(0).expect("the guest's");
        let changed = exchange(&cpu, va, mode, new, old).expect("no fault");
        (changed, Pte::from_raw(cpu.entry.get()))
    }

    #[test]
    fn an_exchange_that_did_not_happen_is_not_told_as_one() {
        let old = Pte::new(Mfn::new(7), PteFlags::USER_RW);
        let (other, new) = (Pte::new(Mfn::new(8), PteFlags::USER_RW), old.read_only());
        for mode in [WriteMode::Set, WriteMode::KeepAccessedDirty, WriteMode::IfStill(old)] {
            assert_eq!(raced(mode, old, other, new), (Changed::Not(other), other), "{mode:?}");
        }
    }

    #[test]
    fn what_the_cpu_notes_meanwhile_is_kept_or_overwritten_as_asked() {
        let old = Pte::new(Mfn::new(7), PteFlags::USER_RW & !PteFlags::DIRTY);
        let (dirty, new) = (old.with_flags(old.flags() | PteFlags::DIRTY), old.read_only());
        assert_eq!(raced(WriteMode::Set, old, dirty, new), (Changed::From(dirty), new));
        let kept = raced(WriteMode::KeepAccessedDirty, old, dirty, new);
        assert_eq!(kept, (Changed::From(dirty), dirty.read_only()));
        assert_eq!(raced(WriteMode::IfStill(old), old, dirty, new), (Changed::Not(dirty), dirty));
    }
}
