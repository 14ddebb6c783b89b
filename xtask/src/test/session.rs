//! Keeps the score of a test run and shows it.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::ExitStatus;
use crate::process::interrupted;
use crate::progress::{Step, seconds};

/// What was run so far.
#[derive(Debug, Default)]
pub(crate) struct Session {
    done: Vec<Done>,
}

#[derive(Debug)]
struct Done {
    group: String,
    name: String,
    time: Duration,
    passed: Passed,
}

/// How a step went.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Passed {
    /// As it should.
    Yes,
    /// Not as it should.
    No,
}

impl Session {
    /// Runs a step. What it returns is a word or two on how it went.
    ///
    /// # Errors
    ///
    /// Only if a signal asked us to end; a failing step is kept and shown.
    pub(crate) fn step(
        &mut self,
        group: &str,
        name: &str,
        work: impl FnOnce() -> Result<String>,
    ) -> Result<Passed> {
        let started = Instant::now();
        let progress = Step::begin(name);
        let result = work();
        progress.vanish();
        self.record(group, name, started.elapsed(), result)
    }

    /// Keeps the result of a step that ran elsewhere.
    ///
    /// # Errors
    ///
    /// As [`Session::step`].
    pub(crate) fn record(
        &mut self,
        group: &str,
        name: &str,
        time: Duration,
        result: Result<String>,
    ) -> Result<Passed> {
        if interrupted() {
            bail!("interrupted");
        }
        let (word, passed) = match result {
            Ok(_) => ("ok", Passed::Yes),
            Err(_) => ("FAILED", Passed::No),
        };
        let detail = result.as_ref().map_or("", String::as_str);
        let line = format!("{:>8}  {word:6}  {group:8}  {name}  {detail}", seconds(time));
        println!("{}", line.trim_end());
        if let Err(error) = result {
            for line in format!("{error:#}").lines() {
                println!("            {line}");
            }
        }
        self.done.push(Done { group: group.to_owned(), name: name.to_owned(), time, passed });
        Ok(passed)
    }

    /// Shows the table and the closing line.
    pub(crate) fn close(&self) -> ExitStatus {
        print!("\n{}", self.summary());
        match self.all_passed() {
            Passed::Yes => ExitStatus::Pass,
            Passed::No => ExitStatus::Fail,
        }
    }

    /// Returns whether every step went as it should, and there was one.
    pub(crate) fn all_passed(&self) -> Passed {
        let all = self.done.iter().all(|done| done.passed == Passed::Yes);
        if all && !self.done.is_empty() { Passed::Yes } else { Passed::No }
    }

    fn summary(&self) -> String {
        let mut groups: Vec<&str> = Vec::new();
        for done in &self.done {
            if !groups.contains(&done.group.as_str()) {
                groups.push(&done.group);
            }
        }
        let mut text = format!("{:10} {:>6} {:>6} {:>9}\n", "group", "passed", "failed", "time");
        for group in groups {
            let of_group = || self.done.iter().filter(|done| done.group == group);
            let passed = of_group().filter(|done| done.passed == Passed::Yes).count();
            let failed = of_group().count() - passed;
            let time = seconds(of_group().map(|done| done.time).sum());
            text += &format!("{group:10} {passed:>6} {failed:>6} {time:>9}\n");
        }
        let failures = || self.done.iter().filter(|done| done.passed == Passed::No);
        for done in failures() {
            text += &format!("failed: {} {}\n", done.group, done.name);
        }
        let failed = failures().count();
        text += &format!("pvmmu: {} passed, {failed} failed\n", self.done.len() - failed);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_names_failures_and_ends_with_the_line_that_tools_read() {
        let mut session = Session::default();
        let second = Duration::from_secs(1);
        for (group, name, result) in [
            ("code", "format", Ok(String::new())),
            ("dom0", "demo", Err(anyhow::anyhow!("no"))),
            ("dom0", "alias", Ok("typed".to_owned())),
        ] {
            session.record(group, name, second, result).unwrap();
        }
        let expected = "group      passed failed      time\n\
                        code            1      0     1.0 s\n\
                        dom0            1      1     2.0 s\n\
                        failed: dom0 demo\n\
                        pvmmu: 2 passed, 1 failed\n";
        assert_eq!(session.summary(), expected);
        assert_eq!(session.close(), ExitStatus::Fail);
    }

    #[test]
    fn a_step_that_fails_does_not_end_the_session() {
        let mut session = Session::default();
        let passed = session.step("code", "x", || bail!("no")).unwrap();
        assert_eq!(passed, Passed::No);
        assert_eq!(session.step("code", "y", || Ok(String::new())).unwrap(), Passed::Yes);
    }
}
