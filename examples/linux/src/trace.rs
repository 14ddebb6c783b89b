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

    /// Notes when a thread of this name gets the CPU and when it loses it.
    pub(crate) fn switching(name: &str) -> Result<Self> {
        let trace = begin()?;
        let filter = format!("prev_comm == \"{name}\" || next_comm == \"{name}\"");
        set("events/sched/sched_switch/filter", &filter)?;
        set("events/sched/sched_switch/enable", "1")?;
        set("tracing_on", "1")?;
        Ok(trace)
    }

    /// The ticks for which it had it.
    pub(crate) fn had_cpu(self, name: &str) -> Result<u64> {
        set("tracing_on", "0")?;
        let mut turns = Turns::default();
        each_line(|line| turns.line(line, name))?;
        set("events/enable", "0")?;
        turns.ticks.with_context(|| format!("the trace of {name} has holes"))
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

/// The turns of a thread on the CPU.
#[derive(Debug, PartialEq, Eq)]
struct Turns {
    began: Option<u64>,
    ticks: Option<u64>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { began: None, ticks: Some(0) }
    }
}

impl Turns {
    fn line(&mut self, line: &str, name: &str) {
        if line.contains(&format!(" next_comm={name} ")) {
            self.began = time_of(line);
        } else if line.contains(&format!(" prev_comm={name} ")) {
            let turn = time_of(line).zip(self.began.take()).map(|(end, begin)| end - begin);
            self.ticks = self.ticks.zip(turn).map(|(all, turn)| all + turn);
        }
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

    #[test]
    fn turns_on_the_cpu_are_added_and_one_without_a_beginning_is_noticed() {
        let on = |at: u64| format!(" idle-0 [000] d..2. {at}: sched_switch: x ==> next_comm=b y");
        let off = |at: u64| format!(" b-9 [000] d..2. {at}: sched_switch: prev_comm=b x ==> y");
        let mut turns = Turns::default();
        for line in [on(10), off(15), on(20), off(100)] {
            turns.line(&line, "b");
        }
        assert_eq!(turns.ticks, Some(85));
        turns.line(&off(200), "b");
        assert_eq!(turns.ticks, None);
    }
}
