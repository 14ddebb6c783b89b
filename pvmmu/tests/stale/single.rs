//! One entry, by any of the ways that Xen offers, and by the traits of crate `x86_64`.
#![expect(unsafe_code, reason = "the traits of crate x86_64 ask for it; the model runs no code")]

use core::cell::Cell;

use hypercall::middleware::{Refusal, Refusals};
use hypercall::{Errno, PteFlags};
use pvmmu::mapper::LiveMapper;
use pvmmu::primitive::{Primitive, WriteMode};
use pvmmu::{Pgd, Pinned, Tools};
use x86_64::VirtAddr;
use x86_64::structures::paging::mapper::Mapper as _;
use x86_64::structures::paging::{Page, PageTableFlags, Size4KiB};

use crate::stage::{MAPPED, READ_ONLY, Setup, Uses, With, never_stale, play, run_on};

const WAYS: [Primitive; 5] = [
    Primitive::MmuUpdate,
    Primitive::PreserveAd,
    Primitive::VaMapping,
    Primitive::EmulatedStore,
    Primitive::EmulatedCompareExchange,
];

const fn need(by: Primitive) -> WriteMode {
    match by {
        Primitive::PreserveAd => WriteMode::KeepAccessedDirty,
        _ => WriteMode::Set,
    }
}

/// Both vCPUs run on the space: `update_va_mapping` reaches no other.
#[test]
fn a_page_whose_flags_are_set_by_any_primitive() {
    for by in WAYS {
        never_stale(Setup::PLAIN, &|pgd, with| {
            let guest = with.guest;
            run_on(&guest, pgd);
            // SAFETY: it runs here.
            unsafe { pgd.set_flags_here(&guest, MAPPED.start, READ_ONLY, need(by), Some(by)) }
                .map(drop)
                .map_err(|error| format!("{by:?}: {error}"))
        });
    }
}

/// The page becomes writable, the vCPU writes, and the flush is refused: the page is read-only
/// again, also for the TLB.
#[test]
fn a_page_whose_new_flags_are_taken_back() {
    let setup = Setup { uses: Uses::Between, ..Setup::PLAIN };
    let asked = [const { Cell::new(None) }; 64];
    play(setup, &Refusals::new(&[], &asked), &|pgd, with, _| {
        read_only_here(pgd, with);
        Ok(())
    });
    let before = asked.iter().flat_map(Cell::get).count() as u64;
    for (by, request) in WAYS.iter().flat_map(|by| (0..2).map(move |request| (*by, request))) {
        let refusal = Refusal { request: before + request, errno: Errno::ENOMEM, done: 0 };
        play(setup, &Refusals::new(&[refusal], &[]), &|pgd, with, second| {
            read_only_here(pgd, with);
            let writable = PteFlags::USER_RW;
            // SAFETY: it runs here.
            let set = unsafe {
                pgd.set_flags_here(&with.guest, MAPPED.start, writable, need(by), Some(by))
            };
            let _ = second.stale();
            second.use_pages();
            let stale = second.stale();
            assert!(stale.is_empty(), "{by:?}, request {request} refused: {set:?}, {stale:?}");
            Ok(())
        });
    }
}

/// Lets both vCPUs run on the space, whose pages are read-only.
fn read_only_here(pgd: &mut Pgd<Pinned>, with: &mut With<'_, '_>) {
    pgd.protect(with, MAPPED, READ_ONLY).expect("protected");
    run_on(&with.guest, pgd);
}

#[test]
fn a_page_that_the_mapper_changes_or_unmaps() {
    let page = Page::<Size4KiB>::containing_address(VirtAddr::new(MAPPED.start.raw()));
    never_stale(Setup::PLAIN, &|pgd, with| {
        let Tools { guest, batch, .. } = with;
        let mut mapper = LiveMapper::new(*guest, pgd, batch);
        let flags = PageTableFlags::PRESENT | PageTableFlags::USER_ACCESSIBLE;
        // SAFETY: no Rust object lives in the model's test.
        let changed = unsafe { mapper.update_flags(page, flags) };
        changed.map(|flush| flush.ignore()).map_err(|error| format!("{error:?}"))
    });
    never_stale(Setup::PLAIN, &|pgd, with| {
        let Tools { guest, batch, .. } = with;
        let mut mapper = LiveMapper::new(*guest, pgd, batch);
        let unmapped = mapper.unmap(page);
        unmapped.map(|(_, flush)| flush.ignore()).map_err(|error| format!("{error:?}"))
    });
}
