//! `cargo xtask picture`: draws what a run shows in a terminal, from a real run, as docs/run.svg.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::ExitStatus;
use crate::boot::verdict::Verdict;
use crate::paths;
use crate::process::run_captured;

/// Where the picture is.
const PICTURE: &str = "docs/run.svg";
/// What is typed.
const TYPED: &str = "$ cargo xtask run";
/// Pixels.
const MARGIN: usize = 16;
const LINE: usize = 18;
const CHARACTER: usize = 8;

/// Runs the demo on real Xen and draws it.
///
/// # Errors
///
/// The run does not pass, or the picture cannot be written.
pub(crate) fn picture() -> Result<ExitStatus> {
    let mut run = Command::new(paths::OWN_IMAGE);
    let (status, output) = run_captured(run.arg("run"), |_| {})?;
    if !status.success() {
        bail!("the run did not pass, so there is nothing to show:\n{output}");
    }
    let shown: Vec<&str> = output.lines().filter(|line| !line.contains("; log: ")).collect();
    let file = paths::workspace().join(PICTURE);
    fs::write(&file, svg(&shown)).with_context(|| PICTURE)?;
    println!("{} lines drawn in {}", shown.len(), file.display());
    Ok(ExitStatus::Pass)
}

/// Lines of a terminal as an SVG: text, so that a difference can be read.
fn svg(lines: &[&str]) -> String {
    let all = || std::iter::once(TYPED).chain(lines.iter().copied());
    let width = all().map(|line| line.chars().count()).max().unwrap_or(0) * CHARACTER + 2 * MARGIN;
    let height = all().count() * LINE + 2 * MARGIN;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"monospace\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#1b1f24\"/>\n"
    );
    for (number, line) in (1..).zip(all()) {
        let colour = match Verdict::parse(line) {
            Some(Verdict::Pass(_)) => "#6fdd8b",
            Some(Verdict::Fail(_)) => "#ff7b72",
            None if line == TYPED => "#79c0ff",
            None => "#d0d7de",
        };
        let line = line.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let y = MARGIN + number * LINE - 4;
        text += &format!(
            "<text x=\"{MARGIN}\" y=\"{y}\" fill=\"{colour}\" \
             xml:space=\"preserve\">{line}</text>\n"
        );
    }
    text + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_in_the_picture_and_nothing_in_it_is_markup() {
        let drawn = svg(&["a <b> & c", "PVMMU-VERDICT pass 1 step"]);
        assert_eq!(drawn.matches("<text ").count(), 3);
        assert!(drawn.contains("a &lt;b&gt; &amp; c") && !drawn.contains("<b>"), "{drawn}");
        assert!(drawn.contains("#6fdd8b"), "a verdict is green: {drawn}");
    }
}
