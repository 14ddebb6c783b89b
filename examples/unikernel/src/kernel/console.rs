//! The console: Xen's own for dom0, a ring shared with dom0's xenconsoled for a domU.

use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering, fence};

use hypercall::xen::{ShutdownReason, Xen};
use hypercall::{BootInfo, Console as Kind, GuestVa};
use spin::Mutex;

use super::boot;

/// `struct xencons_interface` (public/io/console.h).
#[repr(C)]
struct Ring {
    input: [u8; 1024],
    output: [u8; OUTPUT_BYTES],
    in_cons: AtomicU32,
    in_prod: AtomicU32,
    out_cons: AtomicU32,
    out_prod: AtomicU32,
}

const OUTPUT_BYTES: usize = 2048;
const _: () = assert!(OUTPUT_BYTES.is_power_of_two());

enum Way {
    /// Nothing is known yet: try Xen's console.
    Unknown,
    Hypervisor,
    Ring {
        ring: *mut Ring,
        port: u32,
    },
}

// SAFETY: the ring's page stays mapped for the life of the kernel; the lock around it admits one writer.
unsafe impl Send for Way {}

static WAY: Mutex<Way> = Mutex::new(Way::Unknown);

/// Finds out how to print.
pub(super) fn open(info: &BootInfo, direct_map: GuestVa) {
    *WAY.lock() = match info.console {
        Kind::Hypervisor => Way::Hypervisor,
        Kind::Ring { mfn, port } => match boot::builder_page(mfn, direct_map) {
            Some(va) => Way::Ring { ring: va.addr().as_mut_ptr(), port },
            None => Way::Unknown,
        },
    };
}

/// How this guest ends when it has nothing left to do.
pub(super) fn shutdown_reason() -> ShutdownReason {
    match *WAY.lock() {
        Way::Hypervisor => ShutdownReason::Reboot,
        _ => ShutdownReason::Poweroff,
    }
}

/// Takes the lock away from whoever the panic interrupted.
pub(super) fn unlock_for_panic() {
    if WAY.is_locked() {
        // SAFETY: there is one vCPU, and the code that held the lock never runs again.
        unsafe { WAY.force_unlock() };
    }
}

/// Prints through the way that was found. Text is lost only if there is none.
pub(super) struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        match &*WAY.lock() {
            Way::Unknown | Way::Hypervisor => {
                Xen::console_write(text.as_bytes()).map_err(|_| fmt::Error)
            }
            Way::Ring { ring, port } => {
                for line in text.split_inclusive('\n') {
                    write_ring(*ring, *port, line.as_bytes());
                }
                Ok(())
            }
        }
    }
}

/// Puts bytes into the ring, waiting for the other side when it is full. A ring whose counters make no sense is
/// written all the same: the other side may do with its own page what it likes.
fn write_ring(ring: *mut Ring, port: u32, bytes: &[u8]) {
    // SAFETY: the page is mapped; only the counters are made references, and they are atomic.
    let (out_cons, out_prod) = unsafe { (&(*ring).out_cons, &(*ring).out_prod) };
    let mut prod = out_prod.load(Ordering::Relaxed);
    for byte in bytes {
        while prod.wrapping_sub(out_cons.load(Ordering::Acquire)) as usize >= OUTPUT_BYTES {
            notify(port);
            Xen::yield_now();
        }
        let place = prod as usize % OUTPUT_BYTES;
        // SAFETY: the place is inside the mapped ring; the other side reads it only after `out_prod` moves.
        unsafe { ptr::addr_of_mut!((*ring).output).cast::<u8>().add(place).write_volatile(*byte) };
        prod = prod.wrapping_add(1);
        out_prod.store(prod, Ordering::Release);
    }
    fence(Ordering::SeqCst);
    notify(port);
}

fn notify(port: u32) {
    // A port that Xen refuses means that nobody listens: nothing to be done about it here.
    let _ = Xen::notify(port);
}

/// Log lines go to the console.
pub(super) struct Logger;

/// The kernel's logger.
pub(super) static LOGGER: Logger = Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        use fmt::Write as _;
        // A log line that cannot be printed has nowhere else to go.
        let _ = writeln!(Console, "[{}] {}", record.level(), record.args());
    }

    fn flush(&self) {}
}
