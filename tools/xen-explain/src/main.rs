//! `xen-explain`: says what Xen's and Linux's lines about the memory of PV guests mean.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anstream::{AutoStream, ColorChoice};
use anyhow::{Context as _, Result};
use clap::Parser;
use xen_explain::{Colour, Explainer};

/// Explains what Xen says about the memory of PV guests: "Bad type", "Error while pinning" and
/// all that comes with them. Reads a serial capture, xl dmesg, dmesg or a journal.
///
/// Exit status: 0 nothing was refused, 1 something was and is explained, 2 the input could not be
/// read.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    /// Logs, read one after the other as one; standard input if there is none, or for "-"
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Write JSON for programs instead of text for people
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut explainer = Explainer::new();
    if arguments.files.is_empty() {
        if io::stdin().is_terminal() {
            eprintln!("reading standard input; end with Ctrl-D");
        }
        explainer.read(io::stdin().lock()).context("reading standard input")?;
    }
    for file in &arguments.files {
        if file.as_os_str() == "-" {
            explainer.read(io::stdin().lock()).context("reading standard input")?;
            continue;
        }
        let reading = || format!("reading {}", file.display());
        explainer.read(File::open(file).with_context(reading)?).with_context(reading)?;
    }
    let explanation = explainer.finish();
    let mut output = io::stdout().lock();
    let written = if arguments.json {
        let text = serde_json::to_string_pretty(&explanation).context("writing JSON")?;
        writeln!(output, "{text}")
    } else {
        let colour = match AutoStream::choice(&io::stdout()) {
            ColorChoice::Never => Colour::Never,
            _ => Colour::Always,
        };
        output.write_all(explanation.text(colour).as_bytes())
    };
    match written.and_then(|()| output.flush()) {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        written => written.context("writing the explanation")?,
    }
    Ok(ExitCode::from(u8::from(!explanation.problems.is_empty())))
}
