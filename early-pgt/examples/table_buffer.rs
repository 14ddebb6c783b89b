//! The table buffer's two faces, for a port that fills its tables itself: the bracket, and
//! `mark_rw_past_pgt`. On the model: `cargo run -p early-pgt --example table_buffer`
#![expect(unsafe_code, reason = "claims frames of a guest that exists only in the model")]

use std::error::Error;

use early_pgt::{
    Access, Change, FrameUse, Marks, PastPgt, TableBuffer, UseKind, mask_rw, set_access,
};
use hypercall::start_info::BootInfo;
use hypercall::{
    Batch, BatchStorage, FrameAccess, Frames, GuestVa, Level, PAGE_SHIFT, Pfn, Pte, PteFlags, Slot,
};
use p2m::{Guest, P2m, Pfns, walk};
use x86_64::structures::paging::PageTableIndex;
use xen_model::{BootMapping, DomainConfig, Model, Role};

/// 64 MiB, all of it mapped from the beginning.
const PAGES: u64 = 1 << 14;
const VIRT_BASE: u64 = 0xffff_8800_0000_0000;
/// Eight free frames for tables.
const BUFFER: Pfns = Pfns::new(Pfn::new(0x3000), 8);

fn main() -> Result<(), Box<dyn Error>> {
    let mut config = DomainConfig::new(Role::DomU, PAGES);
    config.virt_base = VIRT_BASE;
    config.boot_mapping = BootMapping::AllPages;
    let model = Model::builder().guest(config).build()?;
    let start_info = model.guest().start_info().ok_or("the builder left nothing")?;
    let boot = BootInfo::parse(&start_info)?;
    let list = model.guest().built_list();
    // SAFETY: the guest exists only in the model.
    let p2m = unsafe { P2m::adopt(&list) }?;
    let root = Pfn::new((boot.root.raw() - VIRT_BASE) >> PAGE_SHIFT);
    // SAFETY: the guest's frame map, and the root that its kernel runs on.
    let guest = unsafe { Guest::new(&model, &p2m, root) };
    let mut storage = BatchStorage::<16, 1>::new();
    bracket(&guest, &mut storage.batch())?;
    past(&guest, &mut storage.batch())?;
    model.audit()?;
    match model.take_violations().as_slice() {
        [] => Ok(()),
        violations => Err(violations.join("; ").into()),
    }
}

/// The bracket: frames are taken and filled, and become tables when the round is finished.
fn bracket(guest: &Guest<'_, Model>, batch: &mut Batch<'_>) -> Result<(), Box<dyn Error>> {
    // SAFETY: the frames exist only in the model, and this is the only claim.
    let frames = unsafe { Frames::claim(BUFFER.start, BUFFER.count) };
    let mut buffer = TableBuffer::new(frames);
    let mut round = buffer.begin()?;
    let table = round.take()?;
    // Pfns 0x200 to 0x3ff once more, at an address that nothing maps.
    let mut entries = [Pte::ABSENT; 512];
    for (entry, pfn) in entries.iter_mut().zip(0x200..) {
        *entry = Pte::new(guest.mfn(Pfn::new(pfn))?, PteFlags::KERNEL_RO);
    }
    // SAFETY: the table is one of the round's frames, and not live.
    unsafe { guest.machine().write_entries(table, PageTableIndex::new(0), &entries) }?;
    let new = Pte::new(guest.mfn(table)?, PteFlags::TABLE);
    let link = Change { slot: free_l2_slot(guest)?, old: Pte::ABSENT, new };
    // SAFETY: the frame is filled, and the slot is nobody's.
    let tables = unsafe { round.finish(guest, || [Ok(link)].into_iter(), batch) }?;
    let (_, unused) = buffer.into_parts().map_err(|refused| refused.error)?;
    println!("bracket: {} table, {} frames handed on, writable", tables.count, unused.count());
    Ok(())
}

/// The first empty slot behind those of the boot mapping, in the L2 table that leads to its end.
fn free_l2_slot(guest: &Guest<'_, Model>) -> Result<Slot, Box<dyn Error>> {
    let last = GuestVa::new(VIRT_BASE + ((PAGES - 1) << PAGE_SHIFT))?;
    let path = walk(guest, guest.kernel_root(), last)?;
    let table = path.at(Level::L2).ok_or("it is mapped")?.table;
    let from = u16::from(Level::L2.index_of(last)) + 1;
    for index in (from..512).map(PageTableIndex::new) {
        if !guest.machine().read_entry(table, index)?.is_present() {
            return Ok(guest.slot(table, index)?);
        }
    }
    Err("the L2 table is full".into())
}

/// The face without a bracket: the port calls `entry` for each early entry that it makes, and
/// changes what that says. It shows the whole buffer read-only, since any of it may become a table.
fn past(guest: &Guest<'_, Model>, batch: &mut Batch<'_>) -> Result<(), Box<dyn Error>> {
    let start = Pfn::new(0x3100);
    let marks = |used: u64| Marks {
        start,
        end: Pfn::new(start.raw() + used),
        top: Pfn::new(start.raw() + 4),
    };
    // SAFETY: frames of the model's guest, which nobody uses.
    unsafe { set_access(guest, marks(0).all(), Access::ReadOnly, batch) }?;
    let buffer = [FrameUse { pfns: marks(0).all(), kind: UseKind::TableBuffer }];
    let entry = Pte::new(guest.mfn(start)?, PteFlags::KERNEL_RW);
    println!("an early entry for the buffer: {entry} becomes {}", mask_rw(entry, start, &buffer));
    let mut past = PastPgt::new();
    // A round that takes one frame, then a second; nobody has reserved the tables yet.
    for used in [1, 2] {
        let over = past.entry(Pfn::new(0x1000), marks(used), |_| false);
        println!("{used} of 4 frames are tables: {over:?}");
    }
    // The allocator has them now: the round is over, and the rest is not needed.
    let over = past.entry(Pfn::new(0x1000), marks(2), |pfn| pfn == start);
    let unused = over.ok_or("the end of the round went unnoticed")?;
    // SAFETY: these never became tables.
    unsafe { set_access(guest, unused, Access::Writable, batch) }?;
    println!("the round is over: {} frames are writable again", unused.count);
    if unused == marks(2).unused() { Ok(()) } else { Err("the wrong frames".into()) }
}

#[test]
fn both_faces_leave_no_frame_in_a_third_state() {
    assert!(main().is_ok());
}
