//! Prints the map: lines of text, and a strip in SVG.

use core::fmt::{self, Write};

use hypercall::Mfn;

use crate::entry::P2mEntry;
use crate::map::{P2m, Pfns};
use crate::runs::{Census, Grain, Run};

/// Writes `pfn START..END  KIND  mfn START..END`, both in hexadecimal, without the end itself.
impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pfns, first } = self;
        let kind = match first {
            P2mEntry::Ram(_) => "ram",
            P2mEntry::Absent => "absent",
            P2mEntry::Identity => "identity",
            P2mEntry::Foreign { .. } => "foreign",
        };
        write!(f, "pfn {}..{:05x}  {kind}", pfns.start, pfns.end())?;
        let end = |mfn: &Mfn| mfn.raw().saturating_add(pfns.count);
        match first {
            P2mEntry::Ram(mfn) => write!(f, "  mfn {mfn}..{:05x}", end(mfn)),
            P2mEntry::Foreign { owner, mfn } => {
                write!(f, "  mfn {mfn}..{:05x} of domain {}", end(mfn), owner.0)
            }
            P2mEntry::Absent | P2mEntry::Identity => Ok(()),
        }
    }
}

impl P2m<'_> {
    /// Writes a line for each run of frames, and the census.
    ///
    /// # Errors
    /// Errors of `out`.
    ///
    /// ```
    /// # use core::sync::atomic::AtomicU64;
    /// # use p2m::P2m;
    /// let list = [0x203, 0x204, u64::MAX].map(AtomicU64::new);
    /// let p2m = unsafe { P2m::adopt(&list) }?;
    /// let mut text = String::new();
    /// p2m.dump(&mut text)?;
    /// assert_eq!(text.lines().count(), 3); // two runs, and the census
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn dump(&self, out: &mut (impl Write + ?Sized)) -> fmt::Result {
        for run in self.runs(self.all(), Grain::Frames) {
            writeln!(out, "{run}")?;
        }
        writeln!(out, "{}", Census::of(self, self.all()))
    }

    /// Writes a picture of the guest's memory: a strip with a stretch for each run, and a legend.
    ///
    /// # Errors
    /// Errors of `out`.
    ///
    /// ```
    /// # use core::sync::atomic::AtomicU64;
    /// # use p2m::P2m;
    /// let list = [0x203, 0x204, u64::MAX].map(AtomicU64::new);
    /// let p2m = unsafe { P2m::adopt(&list) }?;
    /// let mut picture = String::new();
    /// p2m.svg(&mut picture)?;
    /// assert!(picture.starts_with("<svg"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn svg(&self, out: &mut (impl Write + ?Sized)) -> fmt::Result {
        let (all, census) = (self.all(), Census::of(self, self.all()));
        writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 1000 90\" \
             font-family=\"monospace\" font-size=\"14\">"
        )?;
        writeln!(out, "<title>{census}</title>")?;
        for run in self.runs(all, Grain::Kind) {
            let (x, end) = (place(run.pfns.start.raw(), all), place(run.pfns.end(), all));
            // A single page must be visible, too.
            let width = end.saturating_sub(x).max(500);
            writeln!(
                out,
                "<rect x=\"{}\" y=\"10\" width=\"{}\" height=\"40\" fill=\"{}\">\
                 <title>{} pfns from {}</title></rect>",
                Thousandths(x),
                Thousandths(width),
                colour(run.first),
                run.pfns.count,
                run.pfns.start
            )?;
        }
        writeln!(out, "<text x=\"0\" y=\"75\">0</text>")?;
        writeln!(
            out,
            "<text x=\"1000\" y=\"75\" text-anchor=\"end\">{:#x} pfns</text>",
            self.len()
        )?;
        legend(out, &census)?;
        writeln!(out, "</svg>")
    }
}

const RAM: &str = "#4c9f70";
const ABSENT: &str = "#dddddd";
const IDENTITY: &str = "#e0a030";
const FOREIGN: &str = "#b0413e";

const fn colour(entry: P2mEntry) -> &'static str {
    match entry {
        P2mEntry::Ram(_) => RAM,
        P2mEntry::Absent => ABSENT,
        P2mEntry::Identity => IDENTITY,
        P2mEntry::Foreign { .. } => FOREIGN,
    }
}

fn legend(out: &mut (impl Write + ?Sized), census: &Census) -> fmt::Result {
    let kinds = [
        ("ram", census.ram, RAM),
        ("absent", census.absent, ABSENT),
        ("identity", census.identity, IDENTITY),
        ("foreign", census.foreign, FOREIGN),
    ];
    for (k, (name, count, fill)) in kinds.into_iter().enumerate() {
        let x = 120 + 180 * k;
        writeln!(
            out,
            "<rect x=\"{x}\" y=\"64\" width=\"12\" height=\"12\" fill=\"{fill}\"/>\
             <text x=\"{}\" y=\"75\">{name} {count}</text>",
            x + 18
        )?;
    }
    Ok(())
}

/// Returns the place of `pfn` in a strip of a million thousandths.
fn place(pfn: u64, all: Pfns) -> u64 {
    let place = u128::from(pfn) * 1_000_000 / u128::from(all.count.max(1));
    u64::try_from(place).unwrap_or(1_000_000)
}

struct Thousandths(u64);

impl fmt::Display for Thousandths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

#[cfg(all(test, not(loom)))]
#[path = "dump/tests.rs"]
mod tests;
