//! I/O ports. The guest's kernel runs in ring 3: each instruction faults into Xen, which carries it
//! out if the domain has the port, as a dom0 has those of PCI.

use core::arch::asm;

use crate::program::Ports;

/// The ports of this vCPU, after Xen has allowed them.
pub(super) struct RealPorts;

impl Ports for RealPorts {
    fn write(&self, port: u16, value: u32) {
        // SAFETY: what a port does is up to the program that has it; memory is not touched by the
        // instruction itself.
        unsafe {
            asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, preserves_flags));
        }
    }

    fn read(&self, port: u16) -> u32 {
        let value: u32;
        // SAFETY: as above.
        unsafe {
            asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, preserves_flags));
        }
        value
    }
}
