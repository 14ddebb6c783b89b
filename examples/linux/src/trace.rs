//! The kernel's own trace (tracefs), with the time-stamp counter as its clock.

use std::fs;
use std::io::{BufRead as _, BufReader};

use anyhow::{Context as _, Result, bail};

/// Room for the events of one measurement, for the one CPU.
const BUFFER_KIB: &str = "65536";

/// Multicalls that a measurement took. Requests that Linux makes alone, and writes that Xen
/// emulates, are not among them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Counted {
    /// Multicalls sent.
    pub(crate) multicalls: u64,
    /// Entries in them.
    pub(crate) entries: u64,
}

/// A trace that runs.
#[derive(Debug)]
pub(crate) struct Trace(());

fn set(file: &str, value: &str) -> Result<()> {
    fs::write(format!("/trace/{file}"), value).with_context(|| format!("tracefs: {file}={value}"))
}

fn begin() -> Result<Trace> {
    set("tracing_on", "0")?;
    set("trace_clock", "x86-tsc")?;
    set("buffer_size_kb", BUFFER_KIB)?;
    set("trace", "")?;
    Ok(Trace(()))
}

impl Trace {
    /// Counts multicalls.
    pub(crate) fn counting() -> Result<Self> {
        let trace = begin()?;
        set("events/xen/xen_mc_flush/enable", "1")?;
        set("events/xen/xen_mc_entry/enable", "1")?;
        set("tracing_on", "1")?;
        Ok(trace)
    }

    /// What was counted.
    pub(crate) fn counted(self) -> Result<Counted> {
        set("tracing_on", "0")?;
        let mut counted = Counted::default();
        each_line(|line| {
            counted.multicalls += u64::from(line.contains(" xen_mc_flush: "));
            counted.entries += u64::from(line.contains(" xen_mc_entry: "));
        })?;
        set("events/enable", "0")?;
        Ok(counted)
    }

    /// Notes when these functions are entered and left.
    pub(crate) fn probing(functions: &[(&str, &str)]) -> Result<Self> {
        let trace = begin()?;
        let probes = functions.iter().map(|(name, function)| {
            format!("p:probes/{name}_begins {function}\nr:probes/{name}_ends {function}\n")
        });
        set("kprobe_events", &probes.collect::<String>())?;
        set("events/probes/enable", "1")?;
        set("tracing_on", "1")?;
        Ok(trace)
    }

    /// The ticks of each call of the function called `name`.
    pub(crate) fn calls(&self, name: &str) -> Result<Vec<u64>> {
        let (begins, ends) = (format!(" {name}_begins: "), format!(" {name}_ends: "));
        let mut calls = Vec::new();
        let mut began = None;
        each_line(|line| {
            if line.contains(&begins) {
                began = time_of(line);
            } else if line.contains(&ends) {
                calls.push((began.take(), time_of(line)));
            }
        })?;
        let ticks = calls.into_iter().map(|(began, ended)| Some(ended? - began?));
        ticks.collect::<Option<_>>().with_context(|| format!("the trace of {name} has holes"))
    }

    /// Forgets what was noted, and goes on.
    pub(crate) fn clear(&self) -> Result<()> {
        set("trace", "")
    }

    /// Takes the probes away.
    pub(crate) fn end(self) -> Result<()> {
        set("tracing_on", "0")?;
        set("events/probes/enable", "0")?;
        set("kprobe_events", "")
    }
}

fn each_line(mut f: impl FnMut(&str)) -> Result<()> {
    let file = fs::File::open("/trace/trace").context("reading the trace")?;
    for line in BufReader::new(file).lines() {
        let line = line.context("reading the trace")?;
        if line.contains("LOST") {
            bail!("the trace lost events: {line}");
        }
        f(&line);
    }
    Ok(())
}

/// The time in a line of the trace: the last word before the event's name, with a colon.
fn time_of(line: &str) -> Option<u64> {
    let words = line.split_whitespace().filter_map(|word| word.strip_suffix(':'));
    words.filter_map(|word| word.parse().ok()).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_an_event_is_the_number_before_its_name() {
        let line = "  init-1  [000] d..1.  7012345: pin_begins: (__xen_pgd_pin+0x4/0x20)";
        assert_eq!(time_of(line), Some(7_012_345));
        assert_eq!(time_of("# tracer: nop"), None);
    }
}
