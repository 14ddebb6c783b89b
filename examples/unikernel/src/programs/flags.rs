//! `flags`: what becomes of the flags that a page is mapped with, in the address space that runs:
//! what Xen adds to user and kernel entries, cache attributes that it gives to domains with devices
//! only, pages that may not be executed, and that nothing is left in the entry of a page that is
//! gone.

use alloc::format;
use alloc::string::String;
use core::fmt;

use hypercall::start_info::Console;
use hypercall::{BatchStorage, Cpu, Errno, GuestVa, Machine, Pte, PteFlags};
use p2m::walk;
use pvmmu::{MapError, Pages, Pgd, PinFailure, Pinned, TablePool, Tools};

use super::life::{load, load_kernel, tools};
use super::{OrSay, all_are_back};
use crate::pool::Pool;
use crate::program::{Kernel, Platform};
use crate::report::Verdict;

const EXECUTABLE: PteFlags = PteFlags::USER_RW.difference(PteFlags::NO_EXECUTE);
const CACHE: [PteFlags; 4] =
    [PteFlags::PWT, PteFlags::PCD, PteFlags::PWT.union(PteFlags::PCD), PteFlags::PAT_OR_PSE];
/// What Xen says of cache attributes that a domain may not choose.
const REFUSED: Errno = Errno::EINVAL;
/// `ret`, eight times.
const RETURNS: u64 = 0xc3c3_c3c3_c3c3_c3c3;

/// What Xen does with cache attributes: it keeps them in a domain that has devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attributes {
    Kept,
    Refused,
}

impl fmt::Display for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kept => f.write_str("kept"),
            Self::Refused => f.write_str("refused"),
        }
    }
}

type With<'a, 't, M> = Tools<'a, 't, M, Pool>;

/// Runs the program.
pub(super) fn run<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Verdict {
    let free = kernel.pool.len();
    let attributes = match kernel.boot.console {
        Console::Hypervisor => Attributes::Kept,
        Console::Ring { .. } => Attributes::Refused,
    };
    let (cpu, platform) = (kernel.cpu, kernel.platform);
    let (guest, pool) = (kernel.guest, &mut kernel.pool);
    let mut storage = BatchStorage::<64, 16>::new();
    let mut batch = storage.batch();
    let pgd = Pgd::new(&mut Tools::new(guest, pool)).or_say("new")?;
    let mut pgd = pgd.pin(&guest, &mut batch).or_say("pin")?;
    load(&guest, &pgd)?;
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut with = tools(&guest, &mut batch, &mut tables, pool);
    let pages = Pages::one(GuestVa::new(1 << 35).or_say("address")?);
    let told = adjusted(&mut pgd, &mut with, pages)
        .and_then(|()| cached(&mut pgd, &mut with, pages, attributes))
        .and_then(|()| executed(&mut pgd, &mut with, pages, cpu, platform));
    load_kernel(&guest)?;
    pgd.destroy(&mut with).or_say("destroy")?;
    let executed = told?;
    loose(kernel, pages, attributes)?;
    all_are_back(kernel, free)?;
    Ok(format!("cache attributes are {attributes}; {executed}"))
}

fn entry<M: Machine>(
    pgd: &Pgd<Pinned>,
    with: &With<'_, '_, M>,
    pages: Pages,
) -> Result<Pte, String> {
    let leaf = walk(&with.guest, pgd.root(), pages.start).or_say("walk")?.leaf();
    leaf.map(|(_, pte)| pte).ok_or_else(|| "there is no table".into())
}

fn says(pte: Pte, what: &str, is_right: impl FnOnce(Pte) -> bool) -> Result<(), String> {
    if is_right(pte) { Ok(()) } else { Err(format!("{what}: the entry is {pte}")) }
}

/// User and kernel entries, read back, and gone.
fn adjusted<M: Machine>(
    pgd: &mut Pgd<Pinned>,
    with: &mut With<'_, '_, M>,
    pages: Pages,
) -> Result<(), String> {
    let noted = PteFlags::KERNEL_RO | PteFlags::AVAILABLE;
    for flags in [PteFlags::USER_RW, EXECUTABLE, PteFlags::KERNEL_RW, noted] {
        pgd.map_pages(with, pages, flags).or_say("map")?;
        let pte = entry(pgd, with, pages)?;
        let is_users = flags.contains(PteFlags::USER);
        let marks = (PteFlags::GLOBAL, PteFlags::GUEST_KERNEL);
        let (mark, other) = if is_users { marks } else { (marks.1, marks.0) };
        let written = pte.with_flags(with.guest.machine().offered(flags));
        says(pte, "not what was written", |pte| pte.same_for_guest(written))?;
        says(pte, "Xen's mark is missing", |pte| pte.flags().contains(mark | PteFlags::USER))?;
        says(pte, "Xen's other mark is set", |pte| !pte.flags().contains(other))?;
        pgd.unmap(with, pages).or_say("unmap")?;
        let pte = entry(pgd, with, pages)?;
        says(pte, "something is left of an unmapped page", |pte| pte == Pte::ABSENT)?;
    }
    Ok(())
}

/// Cache attributes, of a new page and of one that is mapped: kept where there are devices, refused
/// elsewhere, with everything as it was.
fn cached<M: Machine>(
    pgd: &mut Pgd<Pinned>,
    with: &mut With<'_, '_, M>,
    pages: Pages,
    attributes: Attributes,
) -> Result<(), String> {
    for bits in CACHE {
        let mapped = pgd.map_pages(with, pages, PteFlags::USER_RW | bits);
        agrees(mapped.map_err(|error| error.error), attributes, bits)?;
        if attributes == Attributes::Kept {
            let pte = entry(pgd, with, pages)?;
            says(pte, "the attributes are not there", |pte| pte.flags().contains(bits))?;
            pgd.unmap(with, pages).or_say("unmap")?;
        }
        pgd.map_pages(with, pages, PteFlags::USER_RW).or_say("map")?;
        let before = entry(pgd, with, pages)?;
        let protected = pgd.protect(with, pages, PteFlags::USER_RW | bits);
        agrees(protected.map_err(|error| error.error), attributes, bits)?;
        let pte = entry(pgd, with, pages)?;
        let expected = match attributes {
            Attributes::Kept => before.flags() | bits,
            Attributes::Refused => before.flags(),
        };
        says(pte, "after protect", |pte| pte.same_for_guest(before.with_flags(expected)))?;
        pgd.unmap(with, pages).or_say("unmap")?;
    }
    Ok(())
}

/// Whether Xen has answered as it does to a domain with devices, or without.
fn agrees(
    result: Result<(), MapError>,
    attributes: Attributes,
    bits: PteFlags,
) -> Result<(), String> {
    match (attributes, result) {
        (Attributes::Kept, Ok(())) => Ok(()),
        (
            Attributes::Refused,
            Err(MapError::Refused { error, .. } | MapError::LinkRefused { error, .. }),
        ) if error.error.errno == REFUSED => Ok(()),
        (_, Ok(())) => Err(format!("{bits:?} were taken")),
        (_, Err(error)) => Err(format!("{bits:?}: {error}")),
    }
}

/// The same when a whole tree is validated.
fn loose<M: Machine + Cpu>(
    kernel: &mut Kernel<'_, M>,
    pages: Pages,
    attributes: Attributes,
) -> Result<(), String> {
    let (guest, pool) = (kernel.guest, &mut kernel.pool);
    let mut storage = BatchStorage::<64, 16>::new();
    let mut batch = storage.batch();
    for bits in CACHE {
        let mut pgd = Pgd::new(&mut Tools::new(guest, pool)).or_say("new")?;
        pgd.map_pages(&mut Tools::new(guest, pool), pages, PteFlags::USER_RW | bits)
            .or_say("map")?;
        let pgd = match (attributes, pgd.pin(&guest, &mut batch)) {
            (Attributes::Kept, Ok(pgd)) => pgd.unpin(&guest, &mut batch).or_say("unpin")?,
            (Attributes::Kept, Err(refused)) => return Err(format!("{bits:?}: {refused}")),
            (Attributes::Refused, Ok(_)) => {
                return Err(format!("a tree with {bits:?} was pinned"));
            }
            (Attributes::Refused, Err(refused)) => match (refused.failure, refused.undo) {
                (PinFailure::Table { error, .. }, Ok(())) if error.errno == REFUSED => refused.pgd,
                _ => return Err(format!("{bits:?}: {refused}")),
            },
        };
        pgd.destroy(&mut Tools::new(guest, pool)).map_err(|error| format!("destroy: {error}"))?;
    }
    Ok(())
}

/// A page with a function in it that returns, called with and without leave to execute it.
#[expect(unsafe_code, reason = "writes to a page of its own; no Rust object is there")]
fn executed<M: Machine>(
    pgd: &mut Pgd<Pinned>,
    with: &mut With<'_, '_, M>,
    pages: Pages,
    cpu: &impl Cpu,
    platform: &dyn Platform,
) -> Result<&'static str, String> {
    if with.guest.machine().missing_flags().contains(PteFlags::NO_EXECUTE) {
        return Ok("what NX forbids is left out, for this CPU has none");
    }
    pgd.map_pages(with, pages, PteFlags::USER_RW).or_say("map")?;
    // SAFETY: the page is the program's own.
    unsafe { cpu.store(pages.start, RETURNS) }.or_say("store")?;
    for (flags, may) in [(PteFlags::USER_RW, false), (EXECUTABLE, true), (PteFlags::USER_RW, false)]
    {
        pgd.protect(with, pages, flags).or_say("protect")?;
        let pte = entry(pgd, with, pages)?;
        says(pte, "NX", |pte| pte.flags().contains(PteFlags::NO_EXECUTE) != may)?;
        // SAFETY: the page holds eight times `ret`.
        match unsafe { platform.execute(pages.start) } {
            Some(executes) if executes != may => {
                return Err(format!("executed: {executes}, with {flags:?}"));
            }
            Some(_) => {}
            None => return Ok("there is no CPU to execute pages"),
        }
    }
    Ok("a page is executed without NX only")
}
