//! The small hypercalls, and what Xen does to a guest: assists, crashes, exceptions.
//!
//! Sections 4.7, 4.9 and 4.10 of the specification.

use hypercall::Errno;

use crate::state::{Answer, State};

/// Assists there are (`VM_ASSIST_VALID`): 0 to 5, and 32.
const ASSISTS: u64 = 0x3f | 1 << 32;
const CMD_ENABLE: u64 = 0;
const CMD_DISABLE: u64 = 1;

impl State {
    /// `vm_assist` (21).
    pub(crate) fn vm_assist(&mut self, command: u64, kind: u64) -> Answer {
        if kind >= 64 || ASSISTS & 1 << kind == 0 {
            return Err(Errno::EINVAL);
        }
        let domain = self.current.domain;
        let assists = &mut self.domains[domain].assists;
        match command {
            CMD_ENABLE => *assists |= 1 << kind,
            CMD_DISABLE => *assists &= !(1 << kind),
            _ => return Err(Errno::ENOSYS),
        }
        Ok(())
    }

    /// Xen ends a domain (`domain_crash`).
    #[cold]
    pub(crate) fn crash_domain(&mut self, id: u16) {
        if let Some(domain) = self.find_mut(id) {
            domain.crashed = true;
        }
    }

    /// Xen raises #GP in the running vCPU when it goes on.
    #[cold]
    pub(crate) fn inject_general_protection(&mut self) {
        self.vcpu().general_protection = true;
    }
}
