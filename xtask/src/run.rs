//! `cargo xtask run`: one guest, one boot, one verdict.
//!
//! Standard output carries the guest's lines and nothing else, its verdict last; what the harness
//! has to say goes to standard error.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::ExitStatus;
use crate::boot::outcome::{Outcome, Report};
use crate::boot::verdict::Verdict;
use crate::boot::{Clock, Guest, Host, Line, dom0, domu};
use crate::cli::{Machine, Role, RunArguments};
use crate::guest;
use crate::paths::HostFolder;
use crate::process::run_visibly;
use crate::progress::{Step, seconds};
use crate::provision::linux::{self, Linux};
use crate::provision::qemu::Qemu;
use crate::provision::xen;
use crate::station::model_program;

/// Boots what the arguments say and reports what came of it.
///
/// # Errors
///
/// This machine lacks something, or the guest does not build.
pub(crate) fn run(arguments: &RunArguments) -> Result<ExitStatus> {
    if arguments.on == Machine::Model {
        return run_on_model(arguments);
    }
    if arguments.icount && arguments.vcpus > 1 {
        bail!("--icount counts for a guest with one virtual CPU only");
    }
    if let Some(kernel) = &arguments.kernel {
        guest::check(kernel)?;
    }
    let host = HostFolder::open()?;
    let lock = host.lock()?;
    let qemu = Qemu::require(&host)?;
    let xen = xen::require(&host, arguments.xen)?;
    let linux = match arguments.role {
        Role::Domu => Some(linux::require(&host, arguments.xen)?),
        Role::Dom0 => None,
    };
    drop(lock);
    let built = guest::kernel(arguments.kernel.as_deref())?;
    let changed = match arguments.init_p2m {
        true => Some(guest::with_list_outside(&built)?),
        false => None,
    };
    let kernel = changed.as_ref().map_or(built, |file| file.path().to_owned());
    let cpu = arguments.cpu.as_ref().map_or(String::new(), |cpu| format!(", CPU {cpu}"));
    let title = format!(
        "Xen {}, {}, {} MiB, QEMU {}{cpu}: {}",
        arguments.xen,
        arguments.role,
        arguments.mem,
        qemu.version(),
        arguments.what()
    );
    let name = format!("{}-{}-{}", arguments.role, arguments.xen, arguments.program[0]);
    let log = host.new_log(&name.replace('/', "_"))?;
    let mut view =
        View { booting: Some(Step::begin(&title)), title, whole: arguments.show_console };
    let guest = Guest {
        kernel,
        arguments: arguments.program.join(" "),
        module: arguments.module.clone(),
        memory_mib: arguments.mem,
        maximum_mib: arguments.maxmem.unwrap_or(0).max(arguments.mem),
        vcpus: arguments.vcpus,
        limit: arguments.time_limit(),
    };
    let clock = if arguments.icount { Clock::Instructions } else { Clock::Time };
    // A Linux dom0 takes its turns on the guest's processor: instructions are counted in a row.
    let one = (arguments.icount && arguments.role == Role::Domu).then_some(1);
    let real = Host {
        cpu: arguments.cpu.clone(),
        processors: arguments.processors.or(one),
        devices: arguments.devices(),
        ..Host::new(&qemu, xen, clock)
    };
    let report = match &linux {
        None => dom0::boot(&real, &guest, log, |line| view.line(line))?,
        Some(linux) => {
            let first = as_domu(&real, linux, &guest, log, &mut view)?;
            if matches!(first.outcome, Outcome::HostFailed { .. }) {
                eprintln!("\n{first}\nonce more, in a fresh boot:");
                as_domu(&real, linux, &guest, host.new_log(&name.replace('/', "_"))?, &mut view)?
            } else {
                first
            }
        }
    };
    view.end(&report);
    Ok(report.outcome.status())
}

fn as_domu(
    host: &Host<'_>,
    linux: &Linux,
    guest: &Guest,
    log: PathBuf,
    view: &mut View,
) -> Result<Report> {
    let guests = std::slice::from_ref(guest);
    let mut reports = domu::boot(host, linux, guests, log, |line| view.line(line))?;
    reports.pop().context("one guest, one report")
}

fn run_on_model(arguments: &RunArguments) -> Result<ExitStatus> {
    let step = Step::begin("building the model");
    let mut program = Command::new(model_program()?);
    step.vanish();
    let role = arguments.role.to_string().to_lowercase();
    program.args(["--xen", &arguments.xen.to_string(), "--as", &role]);
    program.args(["--mem", &arguments.mem.to_string()]);
    program.args(["--vcpus", &arguments.vcpus.to_string()]);
    match &arguments.cpu {
        Some(_) if arguments.lacks_nx() => drop(program.arg("--no-nx")),
        Some(cpu) => bail!("the model of Xen has no CPU {cpu:?}: it knows a CPU by \",-nx\" alone"),
        None => {}
    }
    if let Some(module) = &arguments.module {
        program.arg("--module").arg(module);
    }
    let status = run_visibly(program.args(&arguments.program))?;
    Ok(if status.success() { ExitStatus::Pass } else { ExitStatus::Fail })
}

/// What the terminal shows of a boot.
#[derive(Debug)]
struct View {
    booting: Option<Step>,
    title: String,
    whole: bool,
}

impl View {
    fn line(&mut self, line: Line<'_>) {
        match line {
            Line::Guest(text) => {
                self.boot_is_over();
                // The verdict is the last line, so it waits until all is known.
                if Verdict::parse(text).is_none() {
                    println!("{text}");
                }
            }
            Line::Other(text) if self.whole => {
                self.boot_is_over();
                println!("{text}");
            }
            Line::Other(text) => {
                if let Some(step) = &self.booting {
                    step.at(text);
                }
            }
        }
    }

    fn boot_is_over(&mut self) {
        if let Some(step) = self.booting.take() {
            let time = step.vanish();
            eprintln!("{} (booted in {})", self.title, seconds(time));
        }
    }

    fn end(mut self, report: &Report) {
        self.boot_is_over();
        match &report.outcome {
            Outcome::Verdict(verdict) => {
                eprintln!("ended after {}; log: {}", seconds(report.time), report.log.display());
                println!("{verdict}");
            }
            _ => eprintln!("\nerror: {report}"),
        }
    }
}
