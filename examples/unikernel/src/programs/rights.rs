//! `rights`: nothing but the kernel's code can be executed, and nothing that can be executed can be
//! written, at any address: first as the tables say it, entry by entry, then as the CPU sees it.
#![expect(unsafe_code, reason = "stores and jumps that must fault, on purpose")]

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;

use early_pgt::UseKind;
use hypercall::{
    AccessError, Cpu, ENTRIES, Entry, FrameAccess as _, FrameSource as _, GuestVa, Level, Machine,
    PAGE_SHIFT, PAGE_SIZE, Pfn, Pte, PteFlags, XEN_SLOTS,
};
use p2m::{Guest, Pfns};
use x86_64::structures::paging::PageTableIndex;

use super::OrSay;
use crate::direct_map::VIRT_BASE;
use crate::program::Kernel;
use crate::report::Verdict;

/// `ret`, the one instruction that is tried.
const RETURN: u8 = 0xc3;
/// A constant that would be a fine function.
static CONSTANT: [u8; 16] = [RETURN; 16];

/// Runs the program.
pub(super) fn run<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Verdict {
    let code = place_of(kernel, UseKind::KernelText)?;
    let constants = place_of(kernel, UseKind::KernelConstants)?;
    let guest = kernel.guest;
    let everything = guest.machine().missing_flags().contains(PteFlags::NO_EXECUTE);
    let mut found = Found { code, everything, executable: 0, read_only: 0, pages: 0 };
    found.descend(&guest, guest.kernel_root(), Level::L4, 0, Rights::ALL)?;
    if !everything && found.executable != code.count {
        return Err(format!("{} pages of {} are executable", found.executable, code.count));
    }
    let Found { executable, read_only, pages, .. } = found;
    let what = if everything { "or anything else" } else { "of them code" };
    writeln!(
        kernel.console,
        "{pages} entries map pages: {executable} executable, {what}, {read_only} read-only"
    )
    .or_say("console")?;
    let writes = try_to_write(kernel, [code, constants])?;
    if everything {
        return Ok(format!("{writes} writes faulted; jumps are left out, for this CPU has no NX"));
    }
    let jumps = try_to_execute(kernel, code)?;
    Ok(format!("{executable} pages of code; {writes} writes and {jumps} jumps faulted"))
}

/// Where pages of the image are.
fn place_of<M>(kernel: &Kernel<'_, M>, kind: UseKind) -> Result<Pfns, String> {
    let used = kernel.made.uses.iter().find(|used| used.kind == kind);
    used.map(|used| used.pfns).ok_or_else(|| format!("the image has no {kind:?}"))
}

/// What the entries on the way to a page allow together.
#[derive(Clone, Copy)]
struct Rights {
    writable: bool,
    executable: bool,
}

impl Rights {
    const ALL: Self = Self { writable: true, executable: true };

    fn below(self, pte: Pte) -> Self {
        Self {
            writable: self.writable && pte.is_writable(),
            executable: self.executable && !pte.flags().contains(PteFlags::NO_EXECUTE),
        }
    }
}

/// What all tables say.
struct Found {
    code: Pfns,
    /// All that is mapped can be executed: the CPU has no NX.
    everything: bool,
    executable: u64,
    read_only: u64,
    pages: u64,
}

impl Found {
    /// Looks at everything below a table, which begins at address `start`.
    fn descend<M: Machine>(
        &mut self,
        guest: &Guest<'_, M>,
        table: Pfn,
        level: Level,
        start: u64,
        rights: Rights,
    ) -> Result<(), String> {
        let mut entries = Box::new([Pte::ABSENT; ENTRIES as usize]);
        let first = PageTableIndex::new(0);
        guest.machine().read_entries(table, first, entries.as_mut_slice()).or_say("a table")?;
        for (index, pte) in (0..ENTRIES).zip(entries.iter()) {
            // The user half is empty, and Xen's slots are its own.
            if level == Level::L4 && index <= *XEN_SLOTS.end() {
                continue;
            }
            let sign = if level == Level::L4 { 0xffff << 48 } else { 0 };
            let at = start | sign | (u64::from(index) << level.shift());
            let rights = rights.below(*pte);
            match (pte.decode(level), level.below()) {
                (Entry::Absent, _) => {}
                (Entry::Table(mfn), Some(below)) => {
                    let table = guest.pfn(mfn).or_say("a table")?;
                    self.descend(guest, table, below, at, rights)?;
                }
                _ => self.leaf(at, rights)?,
            }
        }
        Ok(())
    }

    /// Whether a page of code is read-only, and others are what they may.
    fn code_is_read_only(&self, at: u64, rights: Rights) -> Result<(), String> {
        match self.is_code(at) && rights.writable {
            true => Err(format!("{at:#x} is code, and writable")),
            false => Ok(()),
        }
    }

    /// Whether an address is one of the code at its own place.
    fn is_code(&self, at: u64) -> bool {
        let pfn = at.checked_sub(VIRT_BASE).map(|offset| offset >> PAGE_SHIFT);
        pfn.is_some_and(|pfn| self.code.start.raw() <= pfn && pfn < self.code.end())
    }

    fn leaf(&mut self, at: u64, rights: Rights) -> Result<(), String> {
        self.pages += 1;
        self.read_only += u64::from(!rights.writable);
        if !rights.executable {
            return Ok(());
        }
        self.executable += 1;
        if self.everything {
            return self.code_is_read_only(at, rights);
        }
        match self.is_code(at) && !rights.writable {
            true => Ok(()),
            false => Err(format!("{at:#x} is executable, and writable: {}", rights.writable)),
        }
    }
}

fn at_virt_base(pfn: Pfn) -> Result<GuestVa, String> {
    GuestVa::new(VIRT_BASE + (pfn.raw() << PAGE_SHIFT)).or_say("VIRT_BASE")
}

/// Stores into pages that must not be written, at both of their addresses. How many faulted: all.
fn try_to_write<M: Machine + Cpu>(
    kernel: &mut Kernel<'_, M>,
    parts: [Pfns; 2],
) -> Result<usize, String> {
    let mut faults = 0;
    for pfn in parts.into_iter().flat_map(|part| [part.start, Pfn::new(part.end() - 1)]) {
        for va in [at_virt_base(pfn)?, kernel.guest.machine().direct_map(pfn).or_say("direct map")?]
        {
            let before = kernel.cpu.load(va).or_say("a load")?;
            // SAFETY: if this does not fault it writes what is there already.
            if unsafe { kernel.cpu.store(va, before) }.is_ok() {
                return Err(format!("{va} can be written"));
            }
            writeln!(kernel.console, "writing {va} faults").or_say("console")?;
            faults += 1;
        }
        write_through_the_seam(kernel, pfn)?;
    }
    Ok(faults)
}

/// Writes to a page that must not be written by the seam's methods: each says that it is read-only.
fn write_through_the_seam<M: Machine>(kernel: &Kernel<'_, M>, pfn: Pfn) -> Result<(), String> {
    let machine = kernel.guest.machine();
    let first = PageTableIndex::new(0);
    let before = machine.read_entry(pfn, first).or_say("a read")?;
    let bytes = before.raw().to_le_bytes();
    // SAFETY: if this does not fault it writes what is there already.
    let entry = unsafe { machine.write_entry(pfn, first, before) };
    // SAFETY: as above.
    let entries = unsafe { machine.write_entries(pfn, first, &[before]) };
    // SAFETY: as above.
    let words = unsafe { machine.write_bytes(pfn, 0, &bytes) };
    // SAFETY: as above.
    let bytes = unsafe { machine.write_bytes(pfn, 1, &bytes[1..3]) };
    for write in [entry, entries, words, bytes] {
        if write != Err(AccessError::ReadOnly(pfn)) {
            return Err(format!("a write to pfn {pfn}, which is read-only, gave {write:?}"));
        }
    }
    Ok(())
}

/// Jumps to a `ret` in code, which works, and in everything else, which must fault. How many did.
fn try_to_execute<M: Machine + Cpu>(
    kernel: &mut Kernel<'_, M>,
    code: Pfns,
) -> Result<usize, String> {
    let frame = kernel.pool.take().ok_or("the pool is empty")?;
    let direct = |pfn| kernel.guest.machine().direct_map(pfn).or_say("direct map");
    // SAFETY: the frame is this program's.
    unsafe { kernel.guest.machine().write_bytes(frame.pfn(), 0, &[RETURN]) }.or_say("a frame")?;
    let heap = Box::new([RETURN; 16]);
    let stack = [RETURN; 16];
    let address = |bytes: &[u8; 16]| GuestVa::new(bytes.as_ptr().addr() as u64).or_say("address");
    let mut tries = alloc::vec![("a free frame", direct(frame.pfn())?, false)];
    if let Some(offset) = return_in(kernel, code.start)? {
        let plus = |va: GuestVa| GuestVa::new(va.raw() + offset).or_say("address");
        tries.push(("code", plus(at_virt_base(code.start)?)?, true));
        tries.push(("code in the direct map", plus(direct(code.start)?)?, false));
        tries.push(("a constant", address(&CONSTANT)?, false));
        tries.push(("the heap", address(&heap)?, false));
        tries.push(("the stack", address(&stack)?, false));
    }
    let mut faults = 0;
    for (what, va, works) in tries {
        // SAFETY: what is there is a `ret`.
        let executed = unsafe { kernel.platform.execute(va) };
        match executed {
            None => {
                writeln!(kernel.console, "nothing is executed on the model").or_say("console")?;
            }
            Some(executed) if executed == works => {
                let does = if works { "works" } else { "faults" };
                writeln!(kernel.console, "executing {what}, {va}, {does}").or_say("console")?;
                faults += usize::from(!works);
            }
            Some(_) => return Err(format!("{what} at {va}: to be executed is {works}")),
        }
    }
    kernel.pool.give(frame);
    Ok(faults)
}

/// Where in a page a byte is that can be executed as `ret`; `None` on the model, which has no code.
fn return_in<M: Machine + Cpu>(kernel: &Kernel<'_, M>, pfn: Pfn) -> Result<Option<u64>, String> {
    let mut bytes = alloc::vec![0; PAGE_SIZE];
    kernel.guest.machine().read_bytes(pfn, 0, &mut bytes).or_say("code")?;
    let at = bytes.iter().position(|byte| *byte == RETURN);
    Ok(at.map(|at| at as u64))
}
