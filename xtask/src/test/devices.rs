//! Real devices: the guest as dom0 on machines that have one, and for a disk the image file seen
//! from outside.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use crc32fast::Hasher;

use super::session::Session;
use crate::boot::outcome::Report;
use crate::boot::{Device, Guest, Host, Line, dom0};
use crate::paths::HostFolder;
use crate::release::Release;

/// Bytes of the disk.
const DISK_BYTES: usize = 3 << 20;

/// Guests at devices, on one release.
pub(super) struct Devices<'a> {
    /// Where logs go.
    pub(super) folder: &'a HostFolder,
    /// The machine, to which the device is added.
    pub(super) host: Host<'a>,
    /// The guest, to which the program is added.
    pub(super) guest: Guest,
    /// The release of Xen.
    pub(super) release: Release,
}

impl Devices<'_> {
    /// Runs all of them.
    ///
    /// # Errors
    ///
    /// A signal asked us to end.
    pub(super) fn run(mut self, session: &mut Session) -> Result<()> {
        let name = |what: &str| format!("Xen {}: {what}", self.release);
        let names = ["edu, DMA with 28 address bits", "disk, and its file", "net, an ARP answer"];
        let [edu, disk, net] = names.map(name);
        // So much that some of it is out of the device's reach.
        session.step("devices", &edu, || self.passes(Device::Edu, "edu", 768).map(drop_lines))?;
        session.step("devices", &disk, || self.disk())?;
        session.step("devices", &net, || self.passes(Device::Net, "net", 256).map(drop_lines))?;
        Ok(())
    }

    /// Boots a guest at a device; it must pass. What it said.
    fn passes(&mut self, device: Device, program: &str, memory_mib: u32) -> Result<Vec<String>> {
        self.host.devices = vec![device];
        self.guest.arguments = program.to_owned();
        self.guest.memory_mib = memory_mib;
        self.guest.limit = Duration::from_secs(120);
        let log = self.folder.new_log(&format!("test-dom0-{}-{program}", self.release))?;
        let mut lines = Vec::new();
        let report: Report = dom0::boot(&self.host, &self.guest, log, |line| {
            if let Line::Guest(text) = line {
                lines.push(text.to_owned());
            }
        })?;
        ensure!(report.outcome.passed(), "{report}");
        Ok(lines)
    }

    /// Returns what the guest read is what the file held, and what it wrote is what the file holds.
    fn disk(&mut self) -> Result<String> {
        let image = tempfile::NamedTempFile::new()?;
        let before: Vec<u8> =
            (0..DISK_BYTES).map(|at| (at.wrapping_mul(at) >> 7).to_le_bytes()[0]).collect();
        fs::write(image.path(), &before)?;
        let lines = self.passes(Device::Disk(image.path().to_owned()), "disk", 256)?;
        let after = fs::read(image.path())?;
        compare(&lines, &before, &after)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the end of a chain")]
fn drop_lines(lines: Vec<String>) -> String {
    let verdict = lines.last().map_or("", |line| line.trim_start_matches("PVMMU-VERDICT pass "));
    format!("({})", verdict.split(';').next().unwrap_or_default())
}

/// What the guest says that it read or wrote.
#[derive(Debug, PartialEq, Eq)]
struct Claim {
    verb: String,
    first: usize,
    sectors: usize,
    checksum: u32,
}

impl Claim {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("PVMMU-DISK ")?.split(' ');
        Some(Self {
            verb: words.next()?.to_owned(),
            first: words.next()?.parse().ok()?,
            sectors: words.next()?.parse().ok()?,
            checksum: u32::from_str_radix(words.next()?, 16).ok()?,
        })
    }
}

/// Follows the guest's claims from the file as it was to the file as it is.
fn compare(lines: &[String], before: &[u8], after: &[u8]) -> Result<String> {
    ensure!(before.len() == after.len(), "the file has {} bytes now", after.len());
    let claims: Vec<Claim> = lines.iter().filter_map(|line| Claim::parse(line)).collect();
    // The second half as a checksum: what is in it the guest decides.
    let (mut second, mut writes) = (crc32fast::hash(&before[before.len() / 2..]), 0);
    let half = before.len() / 2;
    for claim in &claims {
        let (first, len) = (claim.first * 512, claim.sectors * 512);
        let expected = match (claim.verb.as_str(), first, len) {
            ("read", 0, len) if len == before.len() => {
                let mut all = Hasher::new();
                all.update(&before[..half]);
                all.combine(&Hasher::new_with_initial_len(second, (before.len() - half) as u64));
                all.finalize()
            }
            ("wrote", first, len) if first == half && first + len == before.len() => {
                writes += 1;
                second = claim.checksum;
                second
            }
            _ => bail!("the guest claims something else: {claim:?}"),
        };
        ensure!(claim.checksum == expected, "{claim:?}, and the file says {expected:08x}");
    }
    ensure!(writes == 2 && claims.len() == 4, "the guest says too little: {claims:?}");
    ensure!(before[..half] == after[..half], "the first half of the file has changed");
    let found = crc32fast::hash(&after[half..]);
    ensure!(found == second, "the guest wrote {second:08x}, the file holds {found:08x}");
    let sectors = claims.first().context("no claim")?.sectors;
    Ok(format!("({sectors} sectors, {second:08x} on both sides)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(read: u32, wrote: u32, again: u32) -> Vec<String> {
        let line = |verb, first, sectors, sum: u32| {
            format!("PVMMU-DISK {verb} {first} {sectors} {sum:08x}")
        };
        vec![
            line("read", 0, 4, read),
            line("wrote", 2, 2, wrote),
            line("read", 0, 4, again),
            line("wrote", 2, 2, wrote),
        ]
    }

    #[test]
    fn a_disk_is_right_only_if_every_checksum_is() {
        let before = [vec![1; 1024], vec![2; 1024]].concat();
        let after = [vec![1; 1024], vec![3; 1024]].concat();
        let sum = crc32fast::hash;
        let right = lines(sum(&before), sum(&after[1024..]), sum(&after));
        assert!(compare(&right, &before, &after).is_ok());
        let wrong = lines(sum(&before) ^ 1, sum(&after[1024..]), sum(&after));
        assert!(compare(&wrong, &before, &after).is_err(), "read something else");
        let wrong = lines(sum(&before), sum(&after[1024..]), sum(&before));
        assert!(compare(&wrong, &before, &after).is_err(), "does not see what it wrote");
        assert!(compare(&right, &before, &before).is_err(), "the file has something else");
        assert!(compare(&right[..2], &before, &after).is_err(), "says too little");
        let changed = [vec![9; 1024], vec![3; 1024]].concat();
        assert!(compare(&right, &before, &changed).is_err(), "changed what it should not");
    }
}
