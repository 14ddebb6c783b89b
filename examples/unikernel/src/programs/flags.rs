//! `flags`: what becomes of the flags that a page is mapped with, in the address space that runs:
//! what Xen adds to user and kernel entries, cache attributes that it gives to domains with devices
//! only, pages that may not be executed, and that nothing is left in the entry of a page that is
//! gone.

use alloc::format;
use alloc::string::String;

use hypercall::{BatchStorage, Cpu, Errno, GuestVa, Machine, Pte, PteFlags};
use p2m::walk;
use pvmmu::{MapError, Pages, Pgd, PinFailure, Pinned, TablePool, Tools};

use super::OrSay;
use super::life::{load, load_kernel, tools};
use crate::guest::{Kernel, Platform, Pool};
use crate::report::Verdict;

const EXECUTABLE: PteFlags = PteFlags::USER_RW.difference(PteFlags::NO_EXECUTE);
const CACHE: [PteFlags; 4] =
    [PteFlags::PWT, PteFlags::PCD, PteFlags::PWT.union(PteFlags::PCD), PteFlags::PAT_OR_PSE];
/// What Xen says of cache attributes that a domain may not choose.
const REFUSED: Errno = Errno::EINVAL;
/// `ret`, eight times.
const RETURNS: u64 = 0xc3c3_c3c3_c3c3_c3c3;

type With<'a, 'b, 't, M> = Tools<'a, 'b, 't, M, Pool>;

/// Runs the program.
pub(super) fn run<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Verdict {
    let free = kernel.pool.len();
    let has_devices = kernel.boot.console == hypercall::Console::Hypervisor;
    let (cpu, platform) = (kernel.cpu, kernel.platform);
    let (guest, pool) = kernel.parts();
    let mut storage = BatchStorage::<64, 16>::new();
    let mut batch = storage.batch();
    let pgd = Pgd::new(&guest, pool).or_say("new")?;
    let mut pgd = pgd.pin(&guest, &mut batch).or_say("pin")?;
    load(&guest, &pgd)?;
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut with = tools(&guest, &mut batch, &mut tables, pool);
    let pages = Pages::one(GuestVa::new(1 << 35).or_say("address")?);
    let told = adjusted(&mut pgd, &mut with, pages)
        .and_then(|()| cached(&mut pgd, &mut with, (pages, has_devices)))
        .and_then(|cached| Ok((cached, executed(&mut pgd, &mut with, pages, (cpu, platform))?)));
    load_kernel(&guest)?;
    pgd.destroy(&mut with).or_say("destroy")?;
    let (cached, executed) = told?;
    loose(kernel, (pages, has_devices))?;
    match free - kernel.pool.len() {
        0 => Ok(format!("cache attributes are {cached}; {executed}")),
        lost => Err(format!("{lost} frames were lost")),
    }
}

fn entry<M: Machine>(
    pgd: &Pgd<Pinned>,
    with: &With<'_, '_, '_, M>,
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
    with: &mut With<'_, '_, '_, M>,
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
    with: &mut With<'_, '_, '_, M>,
    (pages, has_devices): (Pages, bool),
) -> Result<&'static str, String> {
    for bits in CACHE {
        let mapped = pgd.map_pages(with, pages, PteFlags::USER_RW | bits);
        agrees(mapped.map_err(|error| error.error), (has_devices, bits))?;
        if has_devices {
            let pte = entry(pgd, with, pages)?;
            says(pte, "the attributes are not there", |pte| pte.flags().contains(bits))?;
            pgd.unmap(with, pages).or_say("unmap")?;
        }
        pgd.map_pages(with, pages, PteFlags::USER_RW).or_say("map")?;
        let before = entry(pgd, with, pages)?;
        let protected = pgd.protect(with, pages, PteFlags::USER_RW | bits);
        agrees(protected.map_err(|error| error.error), (has_devices, bits))?;
        let pte = entry(pgd, with, pages)?;
        let expected = if has_devices { before.flags() | bits } else { before.flags() };
        says(pte, "after protect", |pte| pte.same_for_guest(before.with_flags(expected)))?;
        pgd.unmap(with, pages).or_say("unmap")?;
    }
    Ok(if has_devices { "kept" } else { "refused" })
}

/// Whether Xen has answered as it does to a domain with devices, or without.
fn agrees(
    result: Result<(), MapError>,
    (has_devices, bits): (bool, PteFlags),
) -> Result<(), String> {
    match result {
        Ok(()) if has_devices => Ok(()),
        Err(MapError::Refused { error, .. } | MapError::LinkRefused { error, .. })
            if !has_devices && error.error.errno == REFUSED =>
        {
            Ok(())
        }
        Ok(()) => Err(format!("{bits:?} were taken")),
        Err(error) => Err(format!("{bits:?}: {error}")),
    }
}

/// The same when a whole tree is validated.
fn loose<M: Machine + Cpu>(
    kernel: &mut Kernel<'_, M>,
    (pages, has_devices): (Pages, bool),
) -> Result<(), String> {
    let (guest, pool) = kernel.parts();
    let mut storage = BatchStorage::<64, 16>::new();
    let mut batch = storage.batch();
    for bits in CACHE {
        let mut pgd = Pgd::new(&guest, pool).or_say("new")?;
        pgd.map_pages(&guest, pages, PteFlags::USER_RW | bits, pool).or_say("map")?;
        let pgd = match pgd.pin(&guest, &mut batch) {
            Ok(pgd) if has_devices => pgd.unpin(&guest, &mut batch).or_say("unpin")?,
            Err(refused) if !has_devices => match (refused.failure, refused.undo) {
                (PinFailure::Table { error, .. }, Ok(())) if error.errno == REFUSED => refused.pgd,
                _ => return Err(format!("{bits:?}: {refused}")),
            },
            Ok(_) => return Err(format!("a tree with {bits:?} was pinned")),
            Err(refused) => return Err(format!("{bits:?}: {refused}")),
        };
        pgd.destroy(&guest, pool).map_err(|(_, error)| format!("destroy: {error}"))?;
    }
    Ok(())
}

/// A page with a function in it that returns, called with and without leave to execute it.
#[expect(unsafe_code, reason = "writes to a page of its own; no Rust object is there")]
fn executed<M: Machine>(
    pgd: &mut Pgd<Pinned>,
    with: &mut With<'_, '_, '_, M>,
    pages: Pages,
    (cpu, platform): (&impl Cpu, &dyn Platform),
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
