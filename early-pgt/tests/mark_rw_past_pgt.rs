//! The crash of 2011 and its repair, on the model: a kernel of Linux's shape maps memory L1 by L1
//! with tables from a buffer that its mapping walks over, in two rounds, one below and one above
//! 4 GiB.
#![expect(unsafe_code, reason = "claims frames of a guest that exists only in the model")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use early_pgt::{Access, FrameUse, Marks, PastPgt, UseKind, mask_rw, set_access};
use hypercall::{
    BatchStorage, Call, DomId, FrameAccess as _, Hypercalls as _, Level, MmuExtOp, MmuUpdate, Pfn,
    Pte, PteFlags, Request, Slot,
};
use p2m::{P2m, Pfns};
use pv_tests::booting::Booting;
use x86_64::structures::paging::PageTableIndex;
use xen_model::{BootMapping, DomainConfig, Role};

/// Pfns that an L1 table maps.
const CHUNK: u64 = 512;
/// The first pfn above 4 GiB.
const FOUR_GIB: u64 = 1 << 20;

/// What the kernel does about the frames that its buffer does not use.
#[derive(Clone, Copy, PartialEq)]
enum Kernel {
    /// Nothing: only frames that are tables already are mapped read-only.
    WithoutFix,
    /// `mask_rw` over the whole buffer, and `mark_rw_past_pgt`.
    WithFix,
}

/// A kernel with page-table code that knows nothing of Xen but what `hooks` tell it.
struct Linux<'g> {
    booting: &'g Booting,
    p2m: P2m<'g>,
    kernel: Kernel,
    past: PastPgt,
    /// Starts of buffers that the boot allocator has reserved.
    reserved: BTreeSet<Pfn>,
    /// The L1 table of the new mapping, by the number of its first pfn.
    tables: RefCell<BTreeMap<u64, Pfn>>,
    /// What was made writable again.
    repaired: Vec<Pfns>,
}

impl Linux<'_> {
    /// Maps `chunks` with tables from the buffer at `marks`, which is in one of them.
    fn round(
        &mut self,
        chunks: impl Iterator<Item = u64>,
        mut marks: Marks,
    ) -> Result<Marks, String> {
        for chunk in chunks {
            let table = marks.end;
            marks.end = Pfn::new(table.raw() + 1);
            for pfn in (chunk * CHUNK..(chunk + 1) * CHUNK).map(Pfn::new) {
                self.before_entry(pfn, marks)?;
                let pte = Pte::new(self.p2m.mfn(pfn).expect("RAM"), PteFlags::KERNEL_RW);
                let read_only = match self.kernel {
                    Kernel::WithFix => marks.all(),
                    Kernel::WithoutFix => marks.tables(),
                };
                let buffer = FrameUse { pfns: read_only, kind: UseKind::TableBuffer };
                let at = PageTableIndex::new_truncate((pfn.raw() % CHUNK) as u16);
                let pte = mask_rw(pte, pfn, &[buffer]);
                // SAFETY: frames of the model's guest.
                unsafe { self.booting.model.write_entry(table, at, pte) }.expect("loose");
            }
            self.pin(table)?;
            self.tables.borrow_mut().insert(chunk * CHUNK, table);
        }
        Ok(marks)
    }

    fn before_entry(&mut self, pfn: Pfn, marks: Marks) -> Result<(), String> {
        let reserved = &self.reserved;
        match self.past.entry(pfn, marks, |start| reserved.contains(&start)) {
            Some(unused) if self.kernel == Kernel::WithFix => self.repair(unused),
            _ => Ok(()),
        }
    }

    /// Makes the frames writable in the new mapping, too.
    fn repair(&mut self, unused: Pfns) -> Result<(), String> {
        let mut storage = BatchStorage::<64, 1>::new();
        let mut batch = storage.batch();
        for pfn in unused.iter() {
            let first = pfn.raw() / CHUNK * CHUNK;
            let Some(table) = self.tables.borrow().get(&first).copied() else { continue };
            let index = PageTableIndex::new_truncate((pfn.raw() % CHUNK) as u16);
            let old = self.booting.model.read_entry(table, index).expect("mapped");
            let slot = Slot { table: self.p2m.mfn(table).expect("RAM"), index };
            batch.update(MmuUpdate::set(slot, old.writable()), old.raw()).expect("room");
        }
        // SAFETY: frames of the model's guest.
        unsafe { batch.submit(&self.booting.model) }.map_err(|error| error.to_string())?;
        self.repaired.push(unused);
        Ok(())
    }

    /// Makes a filled table read-only where the kernel sees it, and pins it.
    fn pin(&self, table: Pfn) -> Result<(), String> {
        let guest = self.booting.guest(&self.booting.model, &self.p2m);
        let mut storage = BatchStorage::<1, 1>::new();
        let (frame, batch) = (Pfns::new(table, 1), &mut storage.batch());
        // SAFETY: frames of the model's guest.
        unsafe { set_access(&guest, frame, Access::ReadOnly, batch) }.map_err(|e| e.to_string())?;
        let pin = [MmuExtOp::pin(Level::L1, self.p2m.mfn(table).expect("RAM"))];
        let mut calls = [Call::new(Request::MmuExt(&pin, DomId::SELF))];
        // SAFETY: as above.
        unsafe { self.booting.model.issue(&mut calls) }.expect("a hypercall");
        calls[0].result().map_err(|error| error.to_string())
    }
}

/// A guest with memory above 4 GiB, and a kernel in it.
fn boot(booting: &Booting, kernel: Kernel) -> Linux<'_> {
    Linux {
        booting,
        p2m: booting.p2m(),
        kernel,
        past: PastPgt::new(),
        reserved: BTreeSet::new(),
        tables: RefCell::new(BTreeMap::new()),
        repaired: Vec::new(),
    }
}

fn guest() -> Booting {
    let mut config = DomainConfig::new(Role::DomU, FOUR_GIB + 64 * CHUNK);
    config.virt_base = 0xffff_8800_0000_0000;
    config.boot_mapping = BootMapping::AllPages;
    Booting::of(config)
}

/// A buffer of 32 frames in the last chunk but one below `end`.
fn buffer(end: u64) -> Marks {
    let start = Pfn::new(end - 2 * CHUNK + 100);
    Marks { start, end: start, top: Pfn::new(start.raw() + 32) }
}

/// The eight chunks below `end`, the ones with the buffer first.
fn chunks(end: u64) -> impl Iterator<Item = u64> {
    (end / CHUNK - 8..end / CHUNK).rev()
}

#[test]
fn without_the_fix_xen_refuses_a_table_that_was_mapped_writable_before_it_became_one() {
    let booting = guest();
    let mut linux = boot(&booting, Kernel::WithoutFix);
    let _ = booting.model.take_log();
    let refused = linux.round(chunks(FOUR_GIB), buffer(FOUR_GIB)).expect_err("the crash of 2011");
    assert!(refused.contains("EINVAL") || refused.contains("EBUSY"), "{refused}");
    let log = booting.model.take_log().join("\n");
    // d0 Bad type (saw 7400000000000001 != exp 1000000000000000) for mfn b1d89 (pfn bacf7), with
    // the numbers that types have since Xen 4.10.
    assert!(log.contains("Bad type (saw e400000000000001 != exp 2000000000000000)"), "{log}");
    assert!(log.contains("while pinning mfn"), "{log}");
}

#[test]
fn with_the_fix_two_rounds_pass_and_what_they_did_not_use_is_writable_again() {
    let booting = guest();
    let mut linux = boot(&booting, Kernel::WithFix);
    let low = linux.round(chunks(FOUR_GIB), buffer(FOUR_GIB)).expect("the round below 4 GiB");
    assert_eq!(linux.repaired, [], "the round is not over for anybody who looks");
    linux.reserved.insert(low.start);
    let end = FOUR_GIB + 64 * CHUNK;
    let high = linux.round(chunks(end), buffer(end)).expect("the round above 4 GiB");
    assert_eq!(linux.repaired, [low.unused()], "the old round's frames, once");
    // The last round is not seen to end by any entry.
    linux.reserved.insert(high.start);
    let reserved = linux.reserved.clone();
    let last = linux.past.allocator_is_up(high, |start| reserved.contains(&start));
    linux.repair(last.expect("the last round")).expect("writable");
    assert_eq!(linux.repaired, [low.unused(), high.unused()]);
    let tables: Vec<Pfn> = linux.tables.borrow().values().copied().collect();
    for (first, table) in linux.tables.borrow().iter() {
        for at in 0..512u16 {
            let index = PageTableIndex::new_truncate(at);
            let pte = booting.model.read_entry(*table, index).expect("mapped");
            let pfn = Pfn::new(first + u64::from(at));
            assert_eq!(pte.is_writable(), !tables.contains(&pfn), "pfn {pfn}: no third state");
        }
    }
    booting.check();
}
