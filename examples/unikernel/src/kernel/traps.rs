//! Exceptions: a fault that was to be expected goes on, any other is reported and ends the guest.
//! Events take the same way in and out.
//!
//! Xen delivers an exception to a PV kernel on its own stack as `rcx, r11, [error code,] rip, cs,
//! rflags, rsp, ss`. The way back is the `iret` hypercall, which takes `rax, r11, rcx, flags` in
//! front of the same five words.

use core::arch::{asm, global_asm};
use core::fmt::{self, Write as _};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hypercall::xen::{ShutdownReason, TrapInfo, Xen, fault_fixup};
use hypercall::{Error, GuestVa};
use p2m::walk;
use pvmmu::mapper::flush_length;
use x86_64::VirtAddr;

use super::console::{self, Console};
use super::{boot, events};

const PROTECTION_FAULT: u8 = 13;
const PAGE_FAULT: u8 = 14;
/// What stands for a vector when Xen calls for an event, which comes as an exception does.
const EVENT: u64 = 256;

/// Whether a fault is being reported.
static REPORTING: AtomicBool = AtomicBool::new(false);

/// The address that [`try_execute`] jumps to, and [`NOWHERE`] once that has faulted.
static JUMP: AtomicU64 = AtomicU64::new(NOWHERE);

/// No address that can be jumped to: the jump itself faults, before `rip` is that.
const NOWHERE: u64 = u64::MAX;

/// Instructions that were left out.
static SKIPPED: AtomicU64 = AtomicU64::new(0);

/// How many instructions were left out so far, that flush a page and are Xen's to execute.
pub(super) fn skipped() -> u64 {
    SKIPPED.load(Ordering::Relaxed)
}

/// Registers at the exception, as the stubs push them.
#[repr(C)]
struct Frame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    rbp: u64,
    rbx: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    rax: u64,
    rcx: u64,
    r11: u64,
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Exceptions that come without an error code, and those that come with one.
macro_rules! stubs {
    ([$($plain:literal)*] [$($coded:literal)*]) => {
        global_asm!(
            $(
                concat!("trap_stub_", $plain, ":"),
                "pop rcx",
                "pop r11",
                "push 0",
                concat!("push ", $plain),
                "jmp trap_common",
            )*
            $(
                concat!("trap_stub_", $coded, ":"),
                "pop rcx",
                "pop r11",
                concat!("push ", $coded),
                "jmp trap_common",
            )*
            "event_stub:",
            "pop rcx",
            "pop r11",
            "push 0",
            "push {event}",
            "trap_common:",
            "push r11",
            "push rcx",
            "push rax",
            "push rdi",
            "push rsi",
            "push rdx",
            "push r8",
            "push r9",
            "push r10",
            "push rbx",
            "push rbp",
            "push r12",
            "push r13",
            "push r14",
            "push r15",
            "cld",
            "mov rdi, rsp",
            "mov rbp, rsp",
            "and rsp, -16",
            "call {handler}",
            "mov rsp, rbp",
            "pop r15",
            "pop r14",
            "pop r13",
            "pop r12",
            "pop rbp",
            "pop rbx",
            "pop r10",
            "pop r9",
            "pop r8",
            "pop rdx",
            "pop rsi",
            "pop rdi",
            "pop rax",
            "pop rcx",
            "pop r11",
            "add rsp, 16",
            "push 0",
            "push rcx",
            "push r11",
            "push rax",
            "mov eax, 23",
            "syscall",
            "ud2",
            ".balign 8",
            "trap_stubs:",
            $(concat!(".quad ", $plain, ", trap_stub_", $plain),)*
            $(concat!(".quad ", $coded, ", trap_stub_", $coded),)*
            ".quad 0, 0",
            handler = sym handle,
            event = const EVENT,
        );

        /// Stubs and their vectors, ended by a pair of zeroes.
        const STUBS: usize = [$($plain,)* $($coded,)*].len();
    };
}

stubs!([0 1 3 4 5 6 7 9 16 18 19] [10 11 12 13 14 17]);

unsafe extern "C" {
    static trap_stubs: [[u64; 2]; STUBS + 1];
    static event_stub: u8;
}

/// The handlers of all exceptions, and the end of the table.
pub(super) fn table() -> [TrapInfo; STUBS + 1] {
    let mut table = [TrapInfo::END; STUBS + 1];
    // SAFETY: defined above, constant.
    let stubs = unsafe { &trap_stubs };
    for (entry, [vector, stub]) in table.iter_mut().zip(&stubs[..STUBS]) {
        *entry = TrapInfo::new(u8::try_from(*vector).unwrap_or(PAGE_FAULT), *stub);
    }
    table
}

/// Takes over exceptions of the running vCPU.
///
/// # Panics
/// If Xen refuses the table.
pub(super) fn install() {
    // SAFETY: the stubs take exceptions as Xen delivers them to a 64-bit kernel, and the table's
    // last entry is END.
    if let Err(error) = unsafe { Xen::set_trap_table(&table()) } {
        panic!("{error}");
    }
}

/// Takes events from now on; Xen sends none while vCPU 0's are masked.
///
/// # Errors
/// As Xen says.
pub(super) fn install_events() -> Result<(), Error> {
    let stub = &raw const event_stub as u64;
    // SAFETY: the stub takes an event as Xen delivers it: as an exception without an error code.
    unsafe { Xen::set_event_callback(stub) }
}

/// Reads from an address that nothing maps, as the program `fault` asks.
pub(super) fn fault_on_purpose() -> ! {
    let nowhere = core::ptr::without_provenance::<u64>(0xdead_0000);
    // SAFETY: none, on purpose: the load faults, and the report of that is what is asked for.
    let value = unsafe { nowhere.read_volatile() };
    panic!("a load from nowhere gave {value:#x}")
}

/// Calls address 0, which nothing maps, as `fault call` asks.
pub(super) fn call_on_purpose() -> ! {
    // SAFETY: none, on purpose: the call faults, and the report of that is what is asked for.
    unsafe { asm!("call {}", in(reg) 0u64, clobber_abi("C")) };
    panic!("the call of address 0 has returned")
}

/// Calls a function that is nothing but a `ret`; false if the CPU does not fetch it.
///
/// # Safety
/// That is what is at `va`, and this runs on the vCPU that booted.
pub(super) unsafe fn try_execute(va: GuestVa) -> bool {
    JUMP.store(va.raw(), Ordering::Relaxed);
    // SAFETY: the function returns at once, or the fault handler returns in its place.
    unsafe { asm!("call {}", in(reg) va.raw()) };
    JUMP.swap(NOWHERE, Ordering::Relaxed) == va.raw()
}

/// Returns from a function that could not be fetched, if [`try_execute`] called it.
fn return_from_jump(frame: &mut Frame) -> bool {
    if JUMP.compare_exchange(frame.rip, NOWHERE, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        return false;
    }
    let stack: *const u64 = VirtAddr::new_truncate(frame.rsp).as_ptr();
    // SAFETY: the call has pushed the address that it returns to.
    frame.rip = unsafe { stack.read() };
    frame.rsp += 8;
    true
}

extern "C" fn handle(frame: &mut Frame) {
    if frame.vector == EVENT {
        return events::upcall();
    }
    if frame.vector == u64::from(PAGE_FAULT)
        && let Some(rip) = fault_fixup(frame.rip)
    {
        frame.rip = rip;
        return;
    }
    if frame.vector == u64::from(PAGE_FAULT) && return_from_jump(frame) {
        return;
    }
    if frame.vector == u64::from(PROTECTION_FAULT)
        && let Some(length) = flush_length(instruction(frame.rip))
    {
        // A flush by a program that was written for a bare machine: what it has changed through
        // `LiveMapper` is flushed.
        SKIPPED.fetch_add(1, Ordering::Relaxed);
        frame.rip += length;
        return;
    }
    if REPORTING.swap(true, Ordering::Relaxed) {
        // A fault in the report of a fault: there is nothing left to say.
        Xen::shutdown(ShutdownReason::Crash);
    }
    console::unlock_for_panic();
    // If the console refuses the report, the guest still ends as crashed.
    let _ = report(frame);
    let _ = writeln!(Console, "PVMMU-VERDICT fail the kernel faulted");
    Xen::shutdown(match console::shutdown_reason() {
        ShutdownReason::Poweroff => ShutdownReason::Crash,
        dom0 => dom0,
    })
}

/// The bytes of the instruction at `rip`, which the CPU has just read.
fn instruction(rip: u64) -> impl Iterator<Item = u8> {
    (0..15).map_while(move |offset| {
        let address = usize::try_from(rip.checked_add(offset)?).ok()?;
        // SAFETY: the kernel's code; no byte past the end of the instruction is asked for.
        Some(unsafe { core::ptr::with_exposed_provenance::<u8>(address).read() })
    })
}

fn report(frame: &Frame) -> fmt::Result {
    let name = match frame.vector {
        0 => "divide error",
        3 => "breakpoint",
        6 => "invalid opcode",
        8 => "double fault",
        13 => "general protection fault",
        14 => "page fault",
        _ => "exception",
    };
    let mut out = Console;
    writeln!(out, "{name} (vector {}, error code {:#x})", frame.vector, frame.error)?;
    writeln!(
        out,
        "rip {:016x}  cs {:04x}  rflags {:016x}",
        frame.rip,
        frame.cs & 0xffff,
        frame.rflags
    )?;
    writeln!(out, "rsp {:016x}  ss {:04x}  rbp {:016x}", frame.rsp, frame.ss & 0xffff, frame.rbp)?;
    writeln!(out, "rax {:016x}  rbx {:016x}  rcx {:016x}", frame.rax, frame.rbx, frame.rcx)?;
    writeln!(out, "rdx {:016x}  rsi {:016x}  rdi {:016x}", frame.rdx, frame.rsi, frame.rdi)?;
    writeln!(out, "r8  {:016x}  r9  {:016x}  r10 {:016x}", frame.r8, frame.r9, frame.r10)?;
    writeln!(out, "r11 {:016x}  r12 {:016x}  r13 {:016x}", frame.r11, frame.r12, frame.r13)?;
    writeln!(out, "r14 {:016x}  r15 {:016x}", frame.r14, frame.r15)?;
    if frame.vector != u64::from(PAGE_FAULT) {
        return Ok(());
    }
    let address = cr2();
    let was = |bit: u64, yes, no| if frame.error & bit != 0 { yes } else { no };
    writeln!(
        out,
        "cr2 {address:016x}: a {} of {}",
        if address == frame.rip { "fetch" } else { was(2, "write", "read") },
        was(1, "a page that does not allow it", "a page that is not there")
    )?;
    print_walk(&mut out, address)
}

/// The faulting address. Xen emulates the read.
fn cr2() -> u64 {
    let value;
    // SAFETY: reading cr2 has no effect; Xen answers it for the vCPU.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Prints the entries that the address goes through.
fn print_walk(out: &mut Console, address: u64) -> fmt::Result {
    let Some(early) = boot::known() else { return Ok(()) };
    let va = match GuestVa::new(address) {
        Ok(va) => va,
        Err(reason) => return writeln!(out, "{reason}"),
    };
    let xen = boot::machine(early);
    let guest = early.guest(&xen);
    writeln!(out, "entries on the way in the tree that the kernel booted on:")?;
    match walk(&guest, guest.kernel_root(), va) {
        Ok(walk) => write!(out, "{walk}"),
        Err(error) => writeln!(out, "  {error}"),
    }
}
