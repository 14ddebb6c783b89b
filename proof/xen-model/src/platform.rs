//! The small hypercalls, and what Xen does to a guest: assists, answers about itself, crashes,
//! exceptions.
//!
//! Sections 4.7 to 4.10 of the specification.

use hypercall::Errno;

use crate::domain::{ASSIST_EXTENDED_CR3, Domain};
use crate::grant::MapGrant;
use crate::raw::{low, low16};
use crate::state::{Answer, State};

/// Assists there are (`VM_ASSIST_VALID`): 0 to 5, and 32.
const ASSISTS: u64 = 0x3f | 1 << 32;
const CMD_ENABLE: u64 = 0;
const CMD_DISABLE: u64 = 1;
/// `XENFEAT_mmu_pt_update_preserve_ad` and so on come with the release; these two do not.
const FEATURE_EXTENDED_CR3: u32 = 0x10;
const FEATURE_DOM0: u32 = 0x800;
/// What a domU may not know about Xen.
const DENIED: &[u8] = b"<denied>\0";

impl State {
    /// Carries out `vm_assist` (21).
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

    /// Carries out `xen_version` (17) (`do_xen_version`).
    pub(crate) fn xen_version(&mut self, command: u32, argument: u64) -> Answer<u64> {
        let version = self.release.version();
        let dom0 = self.domain().is_privileged();
        match command {
            0 => return Ok(u64::from(version)),
            1 => self.copy_out(argument, b".0-model\0\0\0\0\0\0\0\0")?,
            2 => self.copy_out(argument, &[0; 144])?,
            3 => {
                let minor = version & 0xffff;
                let text = format!("xen-3.0-x86_64 xen-4.{minor}-x86_64 \0");
                self.copy_out(argument, text.as_bytes())?;
            }
            4 => self.copy_out(argument, &[0; 64])?,
            5 => {
                let newest = self.release == crate::release::Release::V4_20 && self.is_debug();
                let start: u64 = if newest { 0 } else { hypercall::XEN_HOLE_START };
                self.copy_out(argument, &start.to_le_bytes())?;
            }
            6 => return self.features(argument),
            7 if argument != 0 => return Err(Errno::EINVAL),
            7 => return Ok(hypercall::PAGE_SIZE as u64),
            8 => self.copy_out(argument, &[0; 16])?,
            9 => self.copy_out(argument, if dom0 { b"\0" } else { DENIED })?,
            10 if dom0 => return Ok(0),
            10 => return Err(Errno::EPERM),
            _ => return Err(Errno::ENOSYS),
        }
        Ok(0)
    }

    fn features(&mut self, argument: u64) -> Answer<u64> {
        let [words] = self.words_in(argument)?;
        if low(words) != 0 {
            return Err(Errno::EINVAL);
        }
        let mut features = self.release.features();
        if self.domain().has_assist(ASSIST_EXTENDED_CR3) {
            features |= FEATURE_EXTENDED_CR3;
        }
        if self.domain().is_privileged() {
            features |= FEATURE_DOM0;
        }
        self.copy_out(argument.wrapping_add(4), &features.to_le_bytes())?;
        Ok(0)
    }

    /// Carries out `console_io` (18) (`do_console_io`).
    pub(crate) fn console_io(&mut self, command: u32, count: u64, buffer: u64) -> Answer<u64> {
        let may_write = command == 0 && self.is_debug();
        if !self.domain().is_privileged() && !may_write {
            return Err(Errno::EPERM);
        }
        match command {
            0 => {
                let length = usize::try_from(low(count)).unwrap_or(0).min(4096);
                let mut bytes = vec![0; length];
                self.copy_in(buffer, &mut bytes)?;
                let caller = self.caller();
                for line in String::from_utf8_lossy(&bytes).lines() {
                    self.console.push(format!("(d{caller}) {line}"));
                }
                Ok(0)
            }
            1 => Ok(0),
            _ => Err(Errno::ENOSYS),
        }
    }

    /// Carries out `sched_op` (29): nothing is ever waited for here, so only an end has an effect.
    pub(crate) fn sched_op(&mut self, command: u32, argument: u64, rdx: u64) -> Answer<u64> {
        match command {
            0 | 1 | 6 => Ok(0),
            2 | 5 => {
                let mut reason = [0; 4];
                self.copy_in(argument, &mut reason)?;
                // Xen does not look at it; the toolstack does.
                self.vcpu().suspend_argument = rdx;
                let domain = self.current.domain;
                let shutdown: &mut Domain = &mut self.domains[domain];
                shutdown.shutdown.get_or_insert(reason[0]);
                Ok(0)
            }
            3 => self.copy_in(argument, &mut [0; 24]).map(|()| 0),
            _ => Err(Errno::ENOSYS),
        }
    }

    /// Carries out `grant_table_op` (20), on structures in guest memory (`do_grant_table_op`).
    pub(crate) fn grant_table_op(&mut self, command: u32, list: u64, count: u32) -> Answer<u64> {
        if count.cast_signed() < 0 {
            return Err(Errno::EINVAL);
        }
        let size = match command {
            0 => 32,
            1 | 2 | 7 => 24,
            4 => return Err(Errno::EOPNOTSUPP),
            _ => return Err(Errno::ENOSYS),
        };
        Self::list_okay(list, u64::from(count), size)?;
        for k in 0..u64::from(count) {
            let at = list.wrapping_add(k * size);
            match command {
                0 => self.raw_map_grant(at)?,
                2 => self.raw_setup_grants(at)?,
                _ => self.raw_unmap_grant(at, command)?,
            }
        }
        Ok(0)
    }

    fn raw_map_grant(&mut self, at: u64) -> Answer {
        let [host_address, flags_ref, granter, _] = self.words_in(at)?;
        let (flags, reference) = (low(flags_ref), low(flags_ref >> 32));
        let map = MapGrant { host_address, flags, reference, granter: low16(granter) };
        match self.map_grant(map) {
            Ok((handle, frame)) => {
                self.copy_out(at.wrapping_add(18), &0i16.to_le_bytes())?;
                self.copy_out(at.wrapping_add(20), &handle.to_le_bytes())?;
                self.copy_out(
                    at.wrapping_add(24),
                    &(frame.raw() << hypercall::PAGE_SHIFT).to_le_bytes(),
                )
            }
            Err(status) => self.copy_out(at.wrapping_add(18), &status.to_le_bytes()),
        }
    }

    fn raw_unmap_grant(&mut self, at: u64, command: u32) -> Answer {
        let [host_address, second, handle] = self.words_in(at)?;
        let replace = (command == 7).then_some(second);
        let handle = low(handle);
        let mut answer = self.unmap_grant(host_address, handle, replace);
        if replace.is_none() && second != 0 && answer.is_ok() {
            self.unmap_device_grant(handle);
            answer = Ok(());
        }
        let status = answer.err().unwrap_or(0);
        self.copy_out(at.wrapping_add(20), &status.to_le_bytes())
    }

    fn raw_setup_grants(&mut self, at: u64) -> Answer {
        let [domain_frames, _, list] = self.words_in(at)?;
        let answer = self.setup_grants(low16(domain_frames), low(domain_frames >> 32));
        let status = match answer {
            Ok(frames) => {
                for (k, mfn) in frames.iter().enumerate() {
                    self.copy_out(list.wrapping_add(k as u64 * 8), &mfn.raw().to_le_bytes())?;
                }
                0i16
            }
            Err(status) => status,
        };
        self.copy_out(at.wrapping_add(8), &status.to_le_bytes())
    }
}
