//! The end of a kernel that has met a bug of its own.

use core::fmt::Write as _;
use core::panic::PanicInfo;

use hypercall::xen::{ShutdownReason, Xen};

use super::console::{self, Console};

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    console::unlock_for_panic();
    // There is nobody left to tell if this fails.
    let _ = writeln!(Console, "{info}");
    let _ = writeln!(Console, "PVMMU-VERDICT fail the kernel panicked");
    Xen::shutdown(match console::shutdown_reason() {
        ShutdownReason::Poweroff => ShutdownReason::Crash,
        dom0 => dom0,
    })
}
