//! What Linux takes to map its memory at boot: the time that its own log says between two lines
//! around `init_mem_mapping`, in two sizes of memory. The difference is the cost of the memory that
//! the larger one has more, and of nothing else that depends on it.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::row::Row;
use crate::boot::{Guest, Host, Line, dom0};
use crate::paths::HostFolder;
use crate::progress::Step;
use crate::provision::linux::Linux;

/// The two sizes, in MiB; the difference is the size of our guest in the bench.
const SIZES: [u32; 2] = [512, 1024];
/// Pages in a MiB.
const PAGES: u64 = 256;
/// What Linux 6.1 says in front of the mapping, and behind it.
const MARKS: [&str; 2] = ["last_pfn = ", "ACPI: Early table checksum"];

/// Returns the row.
///
/// # Errors
///
/// Linux cannot be booted, or does not say what it should.
pub(super) fn measure(host: &Host<'_>, linux: &Linux, folder: &HostFolder) -> Result<Row> {
    let [mut small, mut large] = [0; 2];
    for (memory_mib, nanoseconds) in SIZES.into_iter().zip([&mut small, &mut large]) {
        let step = Step::begin(&format!("Linux maps {memory_mib} MiB"));
        // There is no file system: Linux panics when it has booted, and that ends it.
        let guest = Guest {
            kernel: linux.kernel.clone(),
            arguments: "console=hvc0 earlyprintk=xen panic=1 norandmaps".to_owned(),
            module: None,
            memory_mib,
            maximum_mib: memory_mib,
            vcpus: 1,
            limit: Duration::from_secs(900),
        };
        let log = folder.new_log(&format!("linux-boot-{memory_mib}"))?;
        let mut stamps = Stamps::default();
        dom0::boot(host, &guest, log, |line| {
            if let Line::Guest(text) = line {
                stamps.line(text);
            }
        })?;
        step.vanish();
        let between = stamps.between();
        *nanoseconds = between.context("Linux does not say when it maps its memory")?;
    }
    Ok(Row {
        operation: "boot mapping".to_owned(),
        unit: "pages".to_owned(),
        size: u64::from(SIZES[1] - SIZES[0]) * PAGES,
        // Under instruction counting one passes in a nanosecond.
        instructions: large - small,
        in_xen: None,
        traps: 0,
        entries: 0,
        floor: None,
    })
}

/// When the marks were said, in nanoseconds.
#[derive(Debug, Default)]
struct Stamps([Option<u64>; 2]);

impl Stamps {
    fn line(&mut self, text: &str) {
        let Some((stamp, words)) = text.strip_prefix('[').and_then(|rest| rest.split_once("] "))
        else {
            return;
        };
        for (mark, place) in MARKS.into_iter().zip(&mut self.0) {
            if words.starts_with(mark) && place.is_none() {
                *place = nanoseconds(stamp.trim());
            }
        }
    }

    fn between(&self) -> Option<u64> {
        let [start, end] = self.0;
        end?.checked_sub(start?)
    }
}

/// Returns `seconds.microseconds`.
fn nanoseconds(stamp: &str) -> Option<u64> {
    let (seconds, micros) = stamp.split_once('.')?;
    let micros: u64 = micros.parse().ok()?;
    Some((seconds.parse::<u64>().ok()? * 1_000_000 + micros) * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_between_the_marks_is_read_from_the_log() {
        let mut stamps = Stamps::default();
        assert_eq!(stamps.between(), None);
        for line in [
            "[    0.000000] Linux version 6.1.0",
            "[    0.049117] last_pfn = 0x40061 max_arch_pfn = 0x400000000",
            "no stamp",
            "[    1.216212] ACPI: Early table checksum verification disabled",
            "[    2.000000] last_pfn = 0x7 max_arch_pfn = 0x400000000",
        ] {
            stamps.line(line);
        }
        assert_eq!(stamps.between(), Some(1_167_095_000));
    }
}
