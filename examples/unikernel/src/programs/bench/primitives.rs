//! Pages of the running address space, one by one, by each way that Xen offers to change an entry:
//! protected by the library, which finds the entry and chooses the request; unmapped and mapped by
//! the request itself, at places that are known.
#![expect(unsafe_code, reason = "runs on an address space whose kernel half is the running one")]

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use hypercall::{
    BatchStorage, Cpu, FrameAccess as _, GuestVa, Level, Machine, MmuUpdate, Pte, PteFlags, Slot,
    VaFlush, VaMapping,
};
use p2m::walk;
use pvmmu::flush::{Flush, Reach};
use pvmmu::primitive::{Primitive, WriteMode};
use pvmmu::{Pgd, Pinned, load_root};
use x86_64::structures::paging::PageTableIndex;

use super::super::OrSay;
use super::bare::Bare;
use super::row::{Bench, Cost};
use super::spaces::{Shape, build, va};

/// Pages that a row changes, each with a trap of its own.
const SIZES: [u64; 5] = [1, 16, 256, 4096, super::PAGES];

const READ_ONLY: PteFlags = PteFlags::USER_RW.difference(PteFlags::WRITABLE);

const ALL: [(Primitive, &str); 5] = [
    (Primitive::MmuUpdate, "mmu_update"),
    (Primitive::PreserveAd, "mmu_update, keeping A and D"),
    (Primitive::VaMapping, "update_va_mapping"),
    (Primitive::EmulatedStore, "emulated store"),
    (Primitive::EmulatedCompareExchange, "emulated cmpxchg"),
];

/// The rows of this file.
pub(super) fn run<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    bare: &Bare,
) -> Result<(), String> {
    let guest = bench.kernel.guest;
    let shape = Shape { tables: super::PAGES / 512, pages: 512, flags: PteFlags::USER_RW };
    let pgd = build(&mut bench.memory.tools(guest), shape)?;
    let mut pgd = pgd.pin(&guest, &mut bench.storage.batch()).or_say("pin")?;
    // SAFETY: the kernel half is a copy of the running one, and no Rust object lives in a user
    // half.
    unsafe { pgd.load(&guest) }.or_say("load")?;
    let done = by_each(bench, bare, &mut pgd).and_then(|()| bare_by_each(bench, bare, &pgd));
    // SAFETY: the tree the kernel booted on.
    unsafe { load_root(&guest, guest.kernel_root()) }.or_say("leave")?;
    let pgd = pgd.unpin(&guest, &mut bench.storage.batch()).or_say("unpin")?;
    super::spaces::destroy(&mut bench.memory.tools(guest), pgd)?;
    done
}

fn by_each<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    bare: &Bare,
    pgd: &mut Pgd<Pinned>,
) -> Result<(), String> {
    for (by, name) in ALL {
        for pages in SIZES {
            for (flags, access, floor) in [
                (READ_ONLY, "read-only", bare.read_only_in_place(1)),
                (PteFlags::USER_RW, "writable", bare.writable_in_place(1)),
            ] {
                let start = bench.begin();
                set_each(bench, pgd, pages, flags, by)?;
                let cost = bench.end(start);
                let operation = format!("one page to {access}, {name}");
                let floor = pages * (floor + bare.flush - bare.null);
                bench.row(&operation, "pages", pages, cost, Some(floor))?;
            }
        }
    }
    Ok(())
}

fn set_each<M: Machine + Cpu>(
    bench: &Bench<'_, '_, M>,
    pgd: &mut Pgd<Pinned>,
    pages: u64,
    flags: PteFlags,
    by: Primitive,
) -> Result<(), String> {
    let guest = bench.kernel.guest;
    let need =
        if by == Primitive::PreserveAd { WriteMode::KeepAccessedDirty } else { WriteMode::Set };
    for page in 0..pages {
        let va = va(page / 512, page % 512)?;
        // SAFETY: the bench has loaded the address space.
        let set = unsafe { pgd.set_flags_here(&guest, va, flags, need, Some(by)) };
        set.or_say(name_of(by))?;
    }
    Ok(())
}

fn name_of(by: Primitive) -> &'static str {
    ALL.iter().find_map(|(known, name)| (*known == by).then_some(*name)).unwrap_or("a primitive")
}

/// An entry of the address space.
pub(super) struct Place {
    va: GuestVa,
    pub(super) slot: Slot,
    /// Where the direct mapping shows it.
    entry: GuestVa,
    pub(super) pte: Pte,
}

/// Pages unmapped one by one, and mapped again.
fn bare_by_each<M: Machine + Cpu>(
    bench: &mut Bench<'_, '_, M>,
    bare: &Bare,
    pgd: &Pgd<Pinned>,
) -> Result<(), String> {
    let unmap = bare.clear(1) + bare.flush - bare.null;
    for (by, name) in ALL {
        for pages in SIZES {
            let mut were = Vec::with_capacity(usize::try_from(pages).or_say("pages")?);
            let cost = put_each(bench, pgd, pages, by, |place| {
                were.push(place.pte);
                Pte::ABSENT
            })?;
            let operation = format!("one page unmapped, {name}");
            bench.row(&operation, "pages", pages, cost, Some(pages * unmap))?;
            let mut were = were.into_iter();
            let cost = put_each(bench, pgd, pages, by, |_| were.next().unwrap_or(Pte::ABSENT))?;
            let operation = format!("one page mapped, {name}");
            bench.row(&operation, "pages", pages, cost, Some(pages * bare.fill(1)))?;
        }
    }
    Ok(())
}

/// Sets the first entries of the address space one by one, in each table when all that there is to
/// know of it is known; what that takes.
fn put_each<M: Machine + Cpu>(
    bench: &Bench<'_, '_, M>,
    pgd: &Pgd<Pinned>,
    pages: u64,
    by: Primitive,
    mut new: impl FnMut(&Place) -> Pte,
) -> Result<Cost, String> {
    let mut cost = Cost::default();
    for table in 0..pages.div_ceil(512) {
        let places = places(bench, pgd, table, pages.min(512))?;
        let new: Vec<Pte> = places.iter().map(&mut new).collect();
        let start = bench.begin();
        let mut both = places.iter().zip(new);
        both.try_for_each(|(place, new)| put(bench, place, new, by))?;
        cost = cost.and(bench.end(start));
    }
    Ok(cost)
}

/// The first entries of an L1 table of the address space, as they are now.
pub(super) fn places<M: Machine + Cpu>(
    bench: &Bench<'_, '_, M>,
    pgd: &Pgd<Pinned>,
    table: u64,
    pages: u64,
) -> Result<Vec<Place>, String> {
    let guest = bench.kernel.guest;
    let path = walk(&guest, pgd.root(), va(table, 0)?).or_say("walk")?;
    let l1 = path.at(Level::L1).ok_or("no L1 table")?;
    let window = guest.machine().direct_map(l1.table).or_say("the direct mapping")?.raw();
    let place = |(page, index)| {
        let index = PageTableIndex::new(index);
        let entry = GuestVa::new(window + page * size_of::<Pte>() as u64).or_say("an entry")?;
        let pte = guest.machine().read_entry(l1.table, index).or_say("read")?;
        Ok(Place { va: va(table, page)?, slot: Slot { index, ..l1.slot }, entry, pte })
    };
    (0..pages).zip(0..512u16).map(place).collect()
}

/// Sets an entry, and flushes the page everywhere if it was used.
fn put<M: Machine + Cpu>(
    bench: &Bench<'_, '_, M>,
    place: &Place,
    new: Pte,
    by: Primitive,
) -> Result<(), String> {
    let (machine, old) = (bench.kernel.guest.machine(), place.pte);
    let mut storage = BatchStorage::<1, 1>::new();
    let mut batch = storage.batch();
    let faulted = |_| format!("{} faulted", name_of(by));
    match by {
        Primitive::MmuUpdate => batch.update(MmuUpdate::set(place.slot, new), old.raw()),
        Primitive::PreserveAd => {
            batch.update(MmuUpdate::set_preserving_ad(place.slot, new), old.raw())
        }
        Primitive::VaMapping => {
            let flush = if old.is_present() { VaFlush::PageAll } else { VaFlush::None };
            batch.va_mapping(VaMapping { va: place.va.addr(), pte: new, flush }, old)
        }
        Primitive::EmulatedStore => {
            // SAFETY: an entry of an address space of the bench's own, which no Rust object lives
            // in.
            unsafe { machine.store(place.entry, new.raw()) }.map_err(faulted)?;
            Ok(())
        }
        Primitive::EmulatedCompareExchange => {
            // SAFETY: as above.
            let was = unsafe { machine.compare_exchange(place.entry, old.raw(), new.raw()) };
            if was.map_err(faulted)? != old.raw() {
                return Err(format!("{:#x} is another entry by now", place.va.raw()));
            }
            Ok(())
        }
    }
    .or_say("batch")?;
    if old.is_present() && by != Primitive::VaMapping {
        Flush::page(place.va).push(&mut batch, Reach::Everywhere).or_say("flush")?;
    }
    // SAFETY: as above.
    unsafe { batch.submit(machine) }.or_say(name_of(by))
}
