//! Running the guest's program `prove` on both sides.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use super::record::Record;
use crate::boot::Clock;
use crate::boot::outcome::{Outcome, Report};
use crate::cli::Role;
use crate::progress::Step;
use crate::release::Release;
use crate::station::{Boot, Station, model_program};

/// Memory of the guest, on either side.
const MEMORY_MIB: u32 = 64;
/// How long a guest may take: sequences can be long.
const LIMIT: Duration = Duration::from_secs(1800);

/// A Xen and a role on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Where {
    pub(crate) release: Release,
    pub(crate) role: Role,
}

impl fmt::Display for Where {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Xen {} as {}", self.release, self.role)
    }
}

/// A run of the program.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) place: Where,
    /// Its arguments.
    pub(super) words: String,
    /// The steps that it gets as boot module.
    pub(super) steps: Option<Vec<String>>,
}

/// Real Xen and the model.
#[derive(Debug)]
pub(crate) struct Machines {
    station: Station,
    model: PathBuf,
    folder: TempDir,
}

impl Machines {
    /// Both, ready to run.
    ///
    /// # Errors
    ///
    /// This machine lacks something, or a program does not build.
    pub(crate) fn open() -> Result<Self> {
        let step = Step::begin("building the guest and the model");
        let model = model_program()?;
        step.vanish();
        Ok(Self { station: Station::open()?, model, folder: tempfile::tempdir()? })
    }

    /// Runs the program on real Xen and on the model.
    pub(super) fn both(&mut self, run: &Run) -> Result<(Record, Record)> {
        let module = match &run.steps {
            None => None,
            Some(steps) => {
                let file = self.folder.path().join("steps");
                fs::write(&file, steps.join("\n") + "\n").context("writing the steps")?;
                Some(file)
            }
        };
        let real = self.real(run, module.clone())?;
        let model = self.model(run, module.as_deref())?;
        Ok((real, model))
    }

    fn real(&mut self, run: &Run, module: Option<PathBuf>) -> Result<Record> {
        let boot = Boot {
            release: run.place.release,
            role: run.place.role,
            memory_mib: MEMORY_MIB,
            vcpus: 1,
            arguments: format!("prove {}", run.words),
            module,
            limit: LIMIT,
            clock: Clock::Time,
        };
        let (record, report) = self.boot(run, &boot)?;
        if record.has_verdict() {
            return Ok(record);
        }
        if !matches!(report.outcome, Outcome::HostFailed { .. }) {
            bail!("{report}");
        }
        eprintln!("once more: {}", report.outcome);
        let (record, report) = self.boot(run, &boot)?;
        if record.has_verdict() { Ok(record) } else { bail!("{report}") }
    }

    fn boot(&mut self, run: &Run, boot: &Boot) -> Result<(Record, Report)> {
        let progress = Step::begin(&format!("{}: {}", run.place, run.words));
        let mut record = Record::default();
        let report = self.station.boot(boot, |line| {
            if line.starts_with("D ") {
                progress.at(line.to_owned());
            }
            record.line(line);
        })?;
        progress.vanish();
        Ok((record, report))
    }

    fn model(&self, run: &Run, module: Option<&Path>) -> Result<Record> {
        let Where { release, role } = run.place;
        let mut program = Command::new(&self.model);
        program.args(["--xen", &release.to_string(), "--as", &role.to_string().to_lowercase()]);
        program.args(["--mem", &MEMORY_MIB.to_string()]);
        if let Some(module) = module {
            program.arg("--module").arg(module);
        }
        let output = program.arg("prove").args(run.words.split(' ')).output()?;
        let mut record = Record::default();
        String::from_utf8_lossy(&output.stdout).lines().for_each(|line| record.line(line));
        if !record.has_verdict() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("the program gave no verdict on the model ({}): {said}", output.status);
        }
        Ok(record)
    }
}
