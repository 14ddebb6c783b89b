//! The porting guide, word by word: its files are written where it says, its commands are run, and
//! what it shows of their output must be in their output.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::paths;
use crate::process::run_captured;
use crate::provision::rust_target;

/// The guide.
const GUIDE: &str = "docs/porting.md";
/// Where it tells its reader to put the guest.
const GUEST: &str = "target/guest";
/// The most lines that its reader types before the first command: it boots a pinned address space.
const FIRST_LINES_MAX: usize = 120;

/// A block of the guide.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Block {
    /// A file of the guest.
    File { name: String, text: String },
    /// A command, and lines that it prints.
    Command { line: String, prints: Vec<String> },
}

/// Which commands are run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Depth {
    /// Those that need nothing but cargo.
    Code,
    /// Those that boot real Xen, and those that build what is booted.
    RealXen,
}

impl Depth {
    fn includes(self, line: &str) -> bool {
        match self {
            Self::Code => !boots(line),
            Self::RealXen => boots(line) || line.contains("cargo build"),
        }
    }
}

/// Does what the guide says, as far as `depth` goes.
///
/// # Errors
///
/// A command fails, or does not print what the guide shows.
pub(super) fn follow(depth: Depth) -> Result<String> {
    rust_target::require()?;
    let workspace = paths::workspace();
    let text = fs::read_to_string(workspace.join(GUIDE)).with_context(|| GUIDE)?;
    let guest = workspace.join(GUEST);
    let blocks = blocks(&text)?;
    check_first_lines(&text, &blocks)?;
    // The guide begins with an empty crate, and so does this, whatever the last time left.
    for sources in [guest.join("src"), guest.join("tests")].iter().filter(|path| path.exists()) {
        fs::remove_dir_all(sources).with_context(|| GUEST)?;
    }
    let build = guest.join("build.rs");
    if build.exists() {
        fs::remove_file(build).with_context(|| GUEST)?;
    }
    let (mut files, mut commands) = (0, 0);
    for block in blocks {
        match block {
            Block::File { name, text } => {
                let file = guest.join(&name);
                paths::make_folder(file.parent().context("a file has a folder")?)?;
                // What is the same already is not built again.
                if fs::read_to_string(&file).ok().as_ref() != Some(&text) {
                    fs::write(&file, text).with_context(|| name)?;
                }
                files += 1;
            }
            Block::Command { line, prints } => {
                if depth.includes(&line) {
                    run(&line, &prints)?;
                    commands += 1;
                }
            }
        }
    }
    if files == 0 || commands == 0 {
        bail!("{GUIDE} has {files} files and {commands} commands to run");
    }
    Ok(format!("{files} files, {commands} commands"))
}

/// Checks that the files before the first command have as many lines as the guide says, and no more
/// than allowed.
fn check_first_lines(text: &str, blocks: &[Block]) -> Result<()> {
    let files = blocks.iter().map_while(|block| match block {
        Block::File { text, .. } => Some(text.lines().count()),
        Block::Command { .. } => None,
    });
    let lines: usize = files.sum();
    if lines > FIRST_LINES_MAX || !text.contains(&format!("In {lines} lines")) {
        bail!("{GUIDE} takes {lines} lines to the first command ({FIRST_LINES_MAX} at most)");
    }
    Ok(())
}

fn boots(line: &str) -> bool {
    line.contains("cargo xtask run")
}

fn run(line: &str, prints: &[String]) -> Result<()> {
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).current_dir(paths::workspace());
    // The guide's reader has none of what cargo tells a program that it runs.
    shell.env_remove("CARGO_MANIFEST_DIR").env("CARGO_TERM_COLOR", "never");
    let (status, output) = run_captured(&mut shell, |_| {})?;
    if !status.success() {
        bail!("`{line}`: {status}\n{output}");
    }
    let mut lines = output.lines();
    for wanted in prints {
        if !lines.any(|line| shows(line.trim_end(), wanted)) {
            bail!("`{line}` does not print `{wanted}`, or not in that place:\n{output}");
        }
    }
    Ok(())
}

/// Returns whether `line` is what the guide shows, where `...` at the beginning stands for
/// anything.
fn shows(line: &str, wanted: &str) -> bool {
    match wanted.strip_prefix("...") {
        Some(end) => line.ends_with(end),
        None => line == wanted,
    }
}

/// Returns the blocks of a guide: those with a file name, and consoles.
fn blocks(text: &str) -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let inside: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        if let Some(name) = info.split(' ').find_map(|word| word.strip_prefix("file=")) {
            let text = inside.iter().map(|line| format!("{line}\n")).collect();
            blocks.push(Block::File { name: name.to_owned(), text });
        } else if info == "console" {
            for line in inside {
                match (line.strip_prefix("$ "), blocks.last_mut()) {
                    (Some(command), _) => {
                        let line = command.to_owned();
                        blocks.push(Block::Command { line, prints: Vec::new() });
                    }
                    (None, Some(Block::Command { prints, .. })) => prints.push(line.to_owned()),
                    (None, _) => bail!("{GUIDE}: output without a command: {line}"),
                }
            }
        }
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::cargo::rust_files;

    #[test]
    fn files_and_commands_are_told_from_other_blocks() {
        let text = "x\n```rust file=src/a.rs\nfn a() {}\n```\n```text\nno\n```\n\
                    ```console\n$ one\nprints\n$ two\n```\n";
        let command = |line: &str, prints: &[&str]| Block::Command {
            line: line.to_owned(),
            prints: prints.iter().map(|line| (*line).to_owned()).collect(),
        };
        let file = Block::File { name: "src/a.rs".to_owned(), text: "fn a() {}\n".to_owned() };
        let expected = [file, command("one", &["prints"]), command("two", &[])];
        assert_eq!(blocks(text).unwrap(), expected);
    }

    #[test]
    fn output_that_no_command_prints_is_an_error() {
        assert!(blocks("```console\noutput\n```\n").is_err());
        assert!(run("echo a; echo b", &["b".to_owned(), "a".to_owned()]).is_err());
        run("echo a; echo b", &["a".to_owned(), "b".to_owned()]).unwrap();
        run("echo 12 b", &["... b".to_owned()]).unwrap();
        assert!(run("exit 3", &[]).is_err());
    }

    #[test]
    fn a_boot_is_of_what_was_built_for_it() {
        let both = |line: &str| [Depth::Code, Depth::RealXen].map(|depth| depth.includes(line));
        assert_eq!(both("cargo test"), [true, false]);
        assert_eq!(both("cargo build --release"), [true, true]);
        assert_eq!(both("cargo xtask run --kernel x"), [false, true]);
    }

    /// The last part of each name in the middle column of the tables for people from Linux.
    fn names_of_ours(text: &str) -> Vec<&str> {
        let (_, tables) = text.split_once("\n## If you come from Linux").unwrap();
        let rows = tables.lines().filter(|line| line.starts_with("| "));
        let cells = rows.filter_map(|row| row.split(" | ").nth(1));
        let names = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
        names.filter_map(|name| name.rsplit("::").next()).collect()
    }

    /// What is defined in Rust code: items, and variants at the beginning of a line.
    fn defined(code: &str) -> BTreeSet<&str> {
        let is_part = |letter: char| letter.is_alphanumeric() || letter == '_';
        let is_item = |word| matches!(word, "fn" | "struct" | "enum" | "trait" | "const" | "mod");
        let mut names = BTreeSet::new();
        for line in code.lines().map(str::trim_start).filter(|line| !line.starts_with("//")) {
            let words: Vec<&str> = line.split(|letter| !is_part(letter)).collect();
            names.extend(words.windows(2).filter(|pair| is_item(pair[0])).map(|pair| pair[1]));
            names.extend(words[0].starts_with(char::is_uppercase).then_some(words[0]));
        }
        names
    }

    #[test]
    fn every_name_of_ours_in_the_tables_for_people_from_linux_exists() {
        let text = fs::read_to_string(paths::workspace().join(GUIDE)).unwrap();
        let crates = ["hypercall", "p2m", "early-pgt", "pvmmu", "swiotlb", "balloon"];
        let is_of_a_crate = |file: &PathBuf| {
            let name = file.strip_prefix(paths::workspace()).unwrap();
            crates.iter().any(|package| name.starts_with(Path::new(package).join("src")))
        };
        let files = rust_files().unwrap().into_iter().filter(is_of_a_crate);
        let code: String = files.map(|file| fs::read_to_string(file).unwrap()).collect();
        let names = names_of_ours(&text);
        assert!(names.len() > 80, "{} names", names.len());
        let defined = defined(&code);
        let missing: Vec<_> = names.into_iter().filter(|name| !defined.contains(name)).collect();
        assert_eq!(missing, Vec::<&str>::new());
        assert!(!defined.contains("xen_mc_flush"));
    }

    #[test]
    fn the_guide_has_files_commands_and_a_boot() {
        let text = fs::read_to_string(paths::workspace().join(GUIDE)).unwrap();
        let blocks = blocks(&text).unwrap();
        let boots = |block: &&Block| matches!(block, Block::Command { line, .. } if boots(line));
        assert!(blocks.iter().filter(boots).count() >= 4 && blocks.len() > 20);
        check_first_lines(&text, &blocks).unwrap();
        check_first_lines("In 1 lines", &blocks).unwrap_err();
    }
}
