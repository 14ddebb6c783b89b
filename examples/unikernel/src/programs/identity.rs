//! `identity`: dom0 sees the machine's own frames in its direct mapping, where it gave its memory
//! up: the ISA area; and the firmware below 4 GiB, behind its memory.

use alloc::format;
use alloc::string::String;

use hypercall::memory::MemoryOp;
use hypercall::{
    Cpu, DomId, FrameAccess as _, GuestVa, Hypercalls as _, Level, Machine, PAGE_SIZE, Pfn,
};
use p2m::runs::Census;
use p2m::{Pfns, walk};

use super::OrSay;
use crate::identity::{FIRMWARE, ISA};
use crate::program::Kernel;
use crate::report::Verdict;

/// Where the CPU begins after a reset, from the end of the firmware and of the ISA area, and what
/// is there: a far jump.
const RESET: (u64, u64) = (0x10, 0xea);
/// What the firmware of a PC with ACPI has on a 16-byte border of the last 128 KiB of the area.
const SIGNATURE: u64 = u64::from_le_bytes(*b"RSD PTR ");
/// Where that begins.
const SEARCHED: Pfns = Pfns::new(Pfn::new(0xe0), 0x20);

/// Runs the program.
#[expect(unsafe_code, reason = "asks Xen for a number")]
pub(super) fn run<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Verdict {
    let p2m = kernel.guest.p2m();
    let census = Census::of(p2m, p2m.all());
    if (census.identity, census.ram) != (ISA.count, p2m.len() - ISA.count) {
        return Err(format!("{census}"));
    }
    // SAFETY: only reports.
    let own =
        unsafe { kernel.guest.machine().memory_op(&mut MemoryOp::CurrentReservation(DomId::SELF)) };
    let own = own.or_say("current reservation")?;
    if own != census.ram {
        return Err(format!("Xen counts {own} pages, the frame map {}", census.ram));
    }
    let mut seen = 0;
    let firmware = Some(FIRMWARE).filter(|firmware| p2m.len() <= firmware.start.raw());
    let shown = [Some(ISA), firmware];
    for pfn in shown.into_iter().flatten().flat_map(|pfns| pfns.iter()) {
        let guest = kernel.guest;
        let path = walk(&guest, guest.kernel_root(), place(kernel, pfn)?).or_say("walk")?;
        let step = path.at(Level::L1).ok_or_else(|| format!("pfn {pfn} has no L1"))?;
        if !step.pte.is_present() || step.pte.mfn().raw() != pfn.raw() {
            return Err(format!("pfn {pfn} should be the machine's own, but is {}", step.pte));
        }
        seen += 1;
    }
    let (mut resets, mut areas) = (0, 0);
    for pfns in shown.into_iter().flatten() {
        areas += 1;
        let word = read(kernel, (pfns.end() << 12) - RESET.0)?;
        writeln!(kernel.console, "16 bytes before pfn {:x}: {word:#018x}", pfns.end())
            .or_say("console")?;
        match word & 0xff {
            first if first == RESET.1 => resets += 1,
            // The model has device frames, and nothing in them; behind its memory nothing answers.
            _ if word == 0 || word == u64::MAX => {}
            _ => return Err(format!("where the CPU begins is {word:#x}, no far jump")),
        }
    }
    if resets != 0 && resets != areas {
        return Err(format!("only {resets} of {areas} areas show where the CPU begins"));
    }
    let acpi = find_acpi(kernel)?;
    Ok(format!("{seen} pages are the machine's; {resets} reset vectors read; ACPI: {acpi}"))
}

/// Where the direct mapping shows a pfn, of memory or not.
fn place<M: Machine + Cpu>(kernel: &Kernel<'_, M>, pfn: Pfn) -> Result<GuestVa, String> {
    let start = kernel.guest.machine().direct_map(Pfn::new(0)).or_say("direct mapping")?;
    start.checked_add_pages(pfn.raw()).or_say("direct mapping")
}

/// The word at an address of the machine's.
fn read<M: Machine + Cpu>(kernel: &Kernel<'_, M>, address: u64) -> Result<u64, String> {
    let page = place(kernel, Pfn::new(address / PAGE_SIZE as u64))?;
    let va = GuestVa::new(page.raw() + address % PAGE_SIZE as u64).or_say("address")?;
    kernel.cpu.load(va).or_say("the machine's frame")
}

/// What the firmware says of ACPI: its root pointer, if the sum of its 20 bytes is right.
fn find_acpi<M: Machine + Cpu>(kernel: &Kernel<'_, M>) -> Result<String, String> {
    for address in (SEARCHED.start.raw() << 12..SEARCHED.end() << 12).step_by(16) {
        if read(kernel, address)? != SIGNATURE {
            continue;
        }
        let words = [SIGNATURE, read(kernel, address + 8)?, read(kernel, address + 16)?];
        let bytes = words.iter().flat_map(|word| word.to_le_bytes());
        let sum = bytes.take(20).fold(0_u8, u8::wrapping_add);
        return match sum {
            0 => {
                Ok(format!("root pointer at {address:#x}, tables at {:#x}", words[2] & 0xffff_ffff))
            }
            sum => Err(format!("the root pointer at {address:#x} has the sum {sum}")),
        };
    }
    Ok("no root pointer".into())
}
