//! Every command of this project: `cargo xtask run` boots a guest on real Xen, `cargo xtask test`
//! runs all tests. `cargo xtask help` lists them.
//!
//! | module | what it knows |
//! |---|---|
//! | `cli` | the words a person may type |
//! | `run` | the main job: one guest, one boot, one verdict |
//! | `test` | all tests: the checks that need no machine, then real Xen |
//! | `bench` | what every operation costs, against Linux, the floor and the targets |
//! | `deep` | checks on demand: mutants, Miri, fuzzing, packages, licences |
//! | `provision` | how to get QEMU, Xen and Rust's bare-metal target |
//! | `boot` | how to start QEMU, watch it, judge what happened, and end it |
//! | `initramfs` | how to make the file system of a Linux dom0 |
//! | `guest` | how to build the guest and check that Xen can load it |
//! | `cargo`, `process` | cargo, and other child processes |
//! | `picture` | draws a run for the README |
//! | `progress`, `paths` | what the terminal shows, where files go |
//!
//! Exit status: 0 the guest passed; 1 it failed, crashed, hung or gave no verdict; 2 the command
//! was wrong or this machine lacks something; 130 interrupted.

mod bench;
mod boot;
mod cargo;
mod cli;
mod deep;
mod guest;
mod initramfs;
mod paths;
mod picture;
mod process;
mod progress;
mod prove;
mod provision;
mod release;
mod run;
mod station;
mod test;

use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = process::handle_signals().and_then(|()| match &cli.command {
        Command::Run(arguments) => run::run(arguments),
        Command::Prove(arguments) => prove::prove(arguments),
        Command::Bench(arguments) => bench::bench(arguments),
        Command::Test(arguments) => test::test(arguments),
        Command::Picture => picture::picture(),
        Command::Check(arguments) => deep::check(arguments),
        Command::Host(arguments) => test::on_host(arguments),
    });
    match result {
        Ok(status) => status.into(),
        Err(_) if process::interrupted() => ExitStatus::Interrupted.into(),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitStatus::Environment.into()
        }
    }
}

/// What a command tells the shell.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ExitStatus {
    /// Everything that was asked for works.
    Pass,
    /// The guest, or a test, did not pass.
    Fail,
    /// Wrong usage, or this machine lacks something.
    Environment,
    /// Ended by Ctrl-C or a signal.
    Interrupted,
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(match status {
            ExitStatus::Pass => 0,
            ExitStatus::Fail => 1,
            ExitStatus::Environment => 2,
            ExitStatus::Interrupted => 130,
        })
    }
}
