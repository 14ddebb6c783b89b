//! `memory`: where all of the guest's memory is after boot, counted to the page; what the direct
//! mapping says of each; and what making it took.
//!
//! Every pfn is free, a table of the direct mapping, or in a use that was known at boot, and only
//! one of them. Each is mapped where it belongs, writable unless it is a table or code.

use alloc::format;
use alloc::string::String;

use early_pgt::{Access, UseKind};
use hypercall::{Cpu, ENTRIES, FrameAccess as _, Level, Machine, Pfn, Pte};
use p2m::{Pfns, walk};
use x86_64::structures::paging::PageTableIndex;

use super::OrSay;
use crate::program::Kernel;
use crate::report::Verdict;

/// Pfns that an L1 table maps.
const CHUNK: u64 = 512;
/// The most hypercalls that the direct mapping of 8 GiB may take.
const HYPERCALLS_MAX: u64 = 10;

/// Runs the program.
pub(super) fn run<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Verdict {
    super::audit::run(kernel)?;
    if kernel.made.root != Some(kernel.guest.kernel_root()) {
        let (root, made) = (kernel.guest.kernel_root(), kernel.made.root);
        return Err(format!("the kernel takes pfn {root} for its root, which is {made:?}"));
    }
    let pages = kernel.guest.p2m().len();
    let read_only = count(kernel)?;
    let made = &kernel.made;
    let tables: u64 = made.tables.iter().map(|run| run.count).sum();
    let [hypercalls, own] = made.counts.map(|counts| counts.hypercalls);
    let [ticks, in_xen] = made.ticks.map(|all| all / pages);
    writeln!(kernel.console, "{tables:>9} tables of the direct mapping and the kernel's own")
        .or_say("console")?;
    let kept = made.uses.iter().map(|used| (used, ""));
    for (used, what) in kept.chain(made.given_back.iter().map(|used| (used, ": free now"))) {
        let (start, count) = (used.pfns.start, used.pfns.count);
        writeln!(kernel.console, "{count:>9} {:?}, from pfn {start}{what}", used.kind)
            .or_say("console")?;
    }
    let (stack, became) = builders_stack(kernel)?;
    writeln!(kernel.console, "{:>9} builder's stack, pfn {stack}: {became} now", 1)
        .or_say("console")?;
    writeln!(kernel.console, "{:>9} free", kernel.pool.len()).or_say("console")?;
    writeln!(kernel.console, "{pages:>9} in all, {read_only} of them read-only")
        .or_say("console")?;
    if hypercalls + own > HYPERCALLS_MAX {
        return Err(format!("the direct mapping took {hypercalls} hypercalls, and {own} more"));
    }
    Ok(format!(
        "{pages} pages, {tables} tables, {hypercalls} hypercalls and {own} for the kernel's own \
         tables, {ticks} ticks a page, {in_xen} of them in Xen"
    ))
}

/// Where the builder's stack was, behind its tables (`xg_dom_x86.c`, `dom0_build.c`), and what
/// became of it: it is free, or the first frame that was taken for a table.
fn builders_stack<M: Machine + Cpu>(kernel: &Kernel<'_, M>) -> Result<(Pfn, &'static str), String> {
    let tables = kernel.made.given_back.iter().find(|used| used.kind == UseKind::BuilderTables);
    let stack = tables.map(|used| Pfn::new(used.pfns.end())).ok_or("the builder's tables stay")?;
    if kernel.pool.is_free(stack) {
        return Ok((stack, "free"));
    }
    match kernel.made.tables.iter().any(|run| run.iter().any(|pfn| pfn == stack)) {
        true => Ok((stack, "a table")),
        false => Err(format!("the builder's stack, pfn {stack}, is lost")),
    }
}

/// Looks at every page, and says how many are read-only.
fn count<M: Machine + Cpu>(kernel: &Kernel<'_, M>) -> Result<u64, String> {
    let (mut read_only, mut free) = (0, 0);
    let mut entries = [Pte::ABSENT; ENTRIES as usize];
    for pfn in kernel.guest.p2m().all().iter() {
        let at = usize::try_from(pfn.raw() % CHUNK).unwrap_or(0);
        if at == 0 {
            let guest = kernel.guest;
            let va = kernel.guest.machine().direct_map(pfn).or_say("direct mapping")?;
            let path = walk(&guest, guest.kernel_root(), va).or_say("walk")?;
            let table = path.at(Level::L1).ok_or_else(|| format!("pfn {pfn} has no L1"))?.table;
            let first = PageTableIndex::new(0);
            kernel.guest.machine().read_entries(table, first, &mut entries).or_say("entries")?;
        }
        let pte = entries[at];
        if kernel.made.guards.contains(&pfn) {
            match pte == Pte::ABSENT {
                true => continue,
                false => return Err(format!("pfn {pfn} below a stack is mapped: {pte}")),
            }
        }
        // A page of the image lends its place to `shared_info`.
        let right =
            kernel.guest.p2m().mfn(pfn) == Ok(pte.mfn()) || pte.mfn() == kernel.boot.shared_info;
        if !right || !pte.is_present() {
            return Err(format!("the direct mapping has {pte} for pfn {pfn}"));
        }
        let holds = |run: &Pfns| run.start <= pfn && pfn.raw() < run.end();
        let is_table = kernel.made.tables.iter().any(holds);
        let used = kernel.made.uses.iter().filter(|used| holds(&used.pfns)).count();
        let is_free = kernel.pool.is_free(pfn);
        if usize::from(is_table) + used + usize::from(is_free) > 1 {
            return Err(format!("pfn {pfn} is in more than one use"));
        }
        if !is_table && used == 0 && !is_free {
            // What this program has taken to publish a frame list.
            free += 1;
        }
        let wanted = match is_table {
            true => Access::ReadOnly,
            false => Access::of(pfn, &kernel.made.uses),
        };
        if pte.is_writable() != (wanted == Access::Writable) {
            return Err(format!("pfn {pfn} should be {wanted:?}, but its entry is {pte}"));
        }
        read_only += u64::from(wanted == Access::ReadOnly);
    }
    check_sum(kernel, free)?;
    Ok(read_only)
}

/// Nothing is lost: what is neither free nor known is the frame list, a page and one for each GiB.
fn check_sum<M: Machine + Cpu>(kernel: &Kernel<'_, M>, unknown: u64) -> Result<(), String> {
    let frame_list = 1 + kernel.guest.p2m().len().div_ceil(CHUNK * CHUNK);
    let uses: u64 = kernel.made.uses.iter().map(|used| used.pfns.count).sum();
    let tables: u64 = kernel.made.tables.iter().map(|run| run.count).sum();
    let sum = uses + tables + unknown + kernel.pool.len() as u64;
    let back = |kind| kernel.made.given_back.iter().filter(move |used| used.kind == kind).count();
    let lists = back(UseKind::List) + back(UseKind::ListAndTables);
    let all_back = back(UseKind::BuilderTables) == 1 && lists == 1;
    if unknown != frame_list || sum != kernel.guest.p2m().len() || !all_back {
        return Err(format!(
            "{uses} in use + {tables} tables + {} free + {unknown} published = {sum} pages",
            kernel.pool.len()
        ));
    }
    Ok(())
}
