//! The console: Xen's own for dom0, a ring shared with dom0's xenconsoled for a domU.

use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering, fence};

use hypercall::GuestVa;
use hypercall::start_info::{BootInfo, Console as Kind};
use hypercall::xen::{ShutdownReason, Xen};

use super::lock::Mutex;
use super::{boot, events};

/// `struct xencons_interface` (public/io/console.h).
///
/// The other side may change any byte of it at any time: all of it is atomic.
#[repr(C)]
struct Ring {
    input: [AtomicU8; 1024],
    output: [AtomicU8; OUTPUT_BYTES],
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
        ring: &'static Ring,
        port: u32,
    },
}

static WAY: Mutex<Way> = Mutex::new(Way::Unknown);

/// Finds out how to print.
pub(super) fn open(info: &BootInfo, direct_map: GuestVa) {
    *WAY.lock() = match info.console {
        Kind::Hypervisor => Way::Hypervisor,
        Kind::Ring { mfn, port } => match boot::builder_page(mfn, direct_map) {
            // SAFETY: the builder mapped the ring's page, which stays; it is smaller than a page,
            // and every byte pattern is one of its values.
            Some(va) => Way::Ring { ring: unsafe { &*va.addr().as_ptr() }, port },
            None => Way::Unknown,
        },
    };
}

/// The ring has another port: the guest was restored in another domain.
pub(super) fn moved_to(new: u32) {
    if let Way::Ring { port, .. } = &mut *WAY.lock() {
        *port = new;
    }
}

/// How a toolstack asked the guest to end.
static ASKED: Mutex<Option<ShutdownReason>> = Mutex::new(None);

/// When this guest has nothing left to do it shall end so.
pub(super) fn end_with(reason: ShutdownReason) {
    *ASKED.lock() = Some(reason);
}

/// How this guest ends when it has nothing left to do.
pub(super) fn shutdown_reason() -> ShutdownReason {
    match (*ASKED.lock(), &*WAY.lock()) {
        (Some(asked), _) => asked,
        (None, Way::Hypervisor) => ShutdownReason::Reboot,
        (None, _) => ShutdownReason::Poweroff,
    }
}

/// Takes the lock away from whoever the panic interrupted.
pub(super) fn unlock_for_panic() {
    if WAY.is_locked() {
        // SAFETY: the lock guards nothing but the choice of a way to print, which is made once, at
        // boot: whoever else holds it only reads. What it may come to is a mixed line.
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
                    write_ring(ring, *port, line.as_bytes());
                }
                Ok(())
            }
        }
    }
}

/// Puts bytes into the ring, waiting for the other side when it is full. A ring whose counters make
/// no sense is written all the same: the other side may do with its own page what it likes.
fn write_ring(ring: &Ring, port: u32, bytes: &[u8]) {
    let mut prod = ring.out_prod.load(Ordering::Relaxed);
    for byte in bytes {
        while prod.wrapping_sub(ring.out_cons.load(Ordering::Acquire)) as usize >= OUTPUT_BYTES {
            notify(port);
            events::wait_for(port);
        }
        ring.output[prod as usize % OUTPUT_BYTES].store(*byte, Ordering::Relaxed);
        prod = prod.wrapping_add(1);
        ring.out_prod.store(prod, Ordering::Release);
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
