//! Child processes that end when we do. Ctrl-C, SIGTERM and SIGHUP set a flag; whoever waits for a
//! child looks at it ten times a second and ends the child.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// How often a waiting loop looks at the flag.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(100);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on a signal ends the children first, and then us.
///
/// # Errors
///
/// The handler cannot be installed.
pub(crate) fn handle_signals() -> Result<()> {
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::SeqCst)).context("handling Ctrl-C")
}

/// Returns whether a signal asked us to end.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Ends and reaps a child when dropped, whatever happened in between.
#[derive(Debug)]
pub(crate) struct Ended(pub(crate) Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Fails only if the child is gone already, which is what we want.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command with the terminal as its output.
///
/// # Errors
///
/// It cannot be started, or a signal asked us to end.
pub(crate) fn run_visibly(command: &mut Command) -> Result<ExitStatus> {
    let child = command.stdin(Stdio::null()).spawn().with_context(|| starting(command))?;
    let mut child = Ended(child);
    loop {
        if interrupted() {
            bail!("interrupted");
        }
        if let Some(status) = child.0.try_wait()? {
            return Ok(status);
        }
        thread::sleep(LOOK_AGAIN / 4);
    }
}

/// Runs a command that must succeed, and hands over each line of its output as it comes, standard
/// error included. Returns all of it.
///
/// # Errors
///
/// It cannot be started, it fails (with its last lines), or a signal asked us to end.
pub(crate) fn run_quietly(command: &mut Command, mut on_line: impl FnMut(&str)) -> Result<String> {
    let (status, output) = run_captured(command, &mut on_line)?;
    if !status.success() {
        let lines: Vec<&str> = output.lines().collect();
        let last = lines[lines.len().saturating_sub(8)..].join("\n  ");
        bail!("{:?} failed ({status}):\n  {last}", command.get_program());
    }
    Ok(output)
}

/// Runs a command and collects its output and its standard error, line by line.
///
/// # Errors
///
/// It cannot be started, or a signal asked us to end.
pub(crate) fn run_captured(
    command: &mut Command,
    mut on_line: impl FnMut(&str),
) -> Result<(ExitStatus, String)> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().with_context(|| starting(command))?;
    let mut child = Ended(child);
    let (sender, receiver) = mpsc::channel();
    if let Some(stdout) = child.0.stdout.take() {
        send_lines(stdout, sender.clone());
    }
    if let Some(stderr) = child.0.stderr.take() {
        send_lines(stderr, sender);
    }
    let mut output = String::new();
    loop {
        match receiver.recv_timeout(LOOK_AGAIN) {
            Ok(line) => {
                on_line(&line);
                output.push_str(&line);
                output.push('\n');
            }
            Err(RecvTimeoutError::Disconnected) => return Ok((child.0.wait()?, output)),
            Err(RecvTimeoutError::Timeout) if interrupted() => bail!("interrupted"),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

fn send_lines(stream: impl Read + Send + 'static, sender: Sender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
}

fn starting(command: &Command) -> String {
    format!("starting {}", command.get_program().display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_is_an_error_that_quotes_its_last_lines() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo to stdout; echo to stderr >&2; exit 3"]);
        let error = run_quietly(&mut command, |_| {}).unwrap_err().to_string();
        for part in ["exit status: 3", "to stdout", "to stderr"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_dropped_child_is_gone() {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = std::path::PathBuf::from(format!("/proc/{}", child.id()));
        assert!(process.exists());
        drop(Ended(child));
        assert!(!process.exists());
    }
}
