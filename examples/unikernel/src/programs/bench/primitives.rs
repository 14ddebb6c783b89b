//! Pages of the running address space, one by one, by each way that Xen offers to change an entry.
#![expect(unsafe_code, reason = "runs on an address space whose kernel half is the running one")]

use alloc::format;
use alloc::string::String;

use hypercall::{Cpu, Machine, PteFlags};
use pvmmu::primitive::{Need, Primitive, Runs};
use pvmmu::{Pgd, Pinned, load_root};

use super::super::OrSay;
use super::bare::Bare;
use super::row::Bench;
use super::spaces::{build, va};

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
    let context = bench.guest.context();
    let shape = (super::PAGES / 512, 512, PteFlags::USER_RW);
    let pgd = build(&context, shape, &mut bench.memory)?;
    let mut pgd = pgd.pin(&context, &mut bench.storage.batch()).or_say("pin")?;
    // SAFETY: the kernel half is a copy of the running one, and no Rust object lives in a user
    // half.
    unsafe { pgd.load(&context) }.or_say("load")?;
    let done = by_each(bench, bare, &mut pgd);
    let context = bench.guest.context();
    // SAFETY: the tree the kernel booted on.
    unsafe { load_root(&context, context.kernel_root) }.or_say("leave")?;
    let pgd = pgd.unpin(&context, &mut bench.storage.batch()).or_say("unpin")?;
    super::spaces::destroy(&context, pgd, &mut bench.memory)?;
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
                set_each(bench, pgd, (pages, flags), by)?;
                let cost = bench.end(start);
                let operation = format!("one page to {access}, {name}");
                let floor = pages * (floor + bare.flush - bare.null);
                bench.row((&operation, "pages"), pages, cost, Some(floor))?;
            }
        }
    }
    Ok(())
}

fn set_each<M: Machine + Cpu>(
    bench: &Bench<'_, '_, M>,
    pgd: &mut Pgd<Pinned>,
    (pages, flags): (u64, PteFlags),
    by: Primitive,
) -> Result<(), String> {
    let context = bench.guest.context();
    let need = if by == Primitive::PreserveAd { Need::KeepAccessedDirty } else { Need::Set };
    for page in 0..pages {
        let change = (va(page / 512, page % 512)?, flags);
        pgd.set_flags(&context, change, (need, Runs::Here), Some(by)).or_say(name_of(by))?;
    }
    Ok(())
}

fn name_of(by: Primitive) -> &'static str {
    ALL.iter().find_map(|(known, name)| (*known == by).then_some(*name)).unwrap_or("a primitive")
}
