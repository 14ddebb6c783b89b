//! The rules of the house that neither rustfmt nor clippy knows: files stay short enough to be read
//! in one sitting and begin with a word on what and why, lines fit the page, no test is switched
//! off, nothing is left to do, no link of a document leads nowhere.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::begins_tests;
use crate::cargo::rust_files;
use crate::paths;

/// Lines of code before the tests. Comments and empty lines are free.
const CODE_LINES_MAX: usize = 400;

/// Characters, not bytes.
const LINE_CHARACTERS_MAX: usize = 100;

/// Broken rules that are shown at once.
const PLACES_SHOWN: usize = 40;

/// What may not stand in a file, and why. In two pieces, so that this file keeps the rules too.
const FORBIDDEN: [([&str; 2], &str); 5] = [
    (["#[ign", "ore"], "a test that does not run is no test: make it fast or remove it"),
    (["to", "do!("], "finish it or leave it out"),
    (["unimple", "mented!("], "finish it or leave it out"),
    (["FIX", "ME"], "fix it"),
    (["#[expect(dead", "_code"], "code that nobody calls is no code: remove it"),
];

/// Checks every Rust file of the project.
///
/// # Errors
///
/// A file breaks a rule: each place is named, with the rule.
pub(crate) fn check() -> Result<String> {
    let workspace = paths::workspace();
    let files = rust_files()?;
    let mut broken = Vec::new();
    for file in &files {
        let name = file.strip_prefix(&workspace).unwrap_or(file).display().to_string();
        let text = fs::read_to_string(file)?;
        broken.extend(broken_rules(&text).into_iter().map(|rule| format!("{name}{rule}")));
    }
    for document in documents(&workspace)? {
        let text = fs::read_to_string(&document)?;
        let folder = document.parent().unwrap_or(&workspace);
        let name = document.strip_prefix(&workspace).unwrap_or(&document).display();
        let dead = dead_links(&text, &|link| folder.join(link).exists());
        broken.extend(dead.into_iter().map(|link| format!("{name}: {link} leads nowhere")));
    }
    if !broken.is_empty() {
        let places = broken.len();
        broken.truncate(PLACES_SHOWN);
        bail!("{places} places, the first of them:\n{}", broken.join("\n"));
    }
    Ok(format!("{} files", files.len()))
}

/// Returns what people read: the documents at the top and those of `docs`.
fn documents(workspace: &Path) -> Result<Vec<PathBuf>> {
    let mut documents = Vec::new();
    for folder in [workspace.to_owned(), workspace.join("docs")] {
        for entry in fs::read_dir(folder)? {
            documents.push(entry?.path());
        }
    }
    documents.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    documents.sort();
    Ok(documents)
}

/// Links of a document to files that do not exist. Other sites are not looked at.
fn dead_links<'t>(text: &'t str, exists: &dyn Fn(&str) -> bool) -> Vec<&'t str> {
    let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let files = links.map(|link| link.split('#').next().unwrap_or_default());
    let ours = files.filter(|file| !file.is_empty() && !file.contains("://"));
    ours.filter(|file| !exists(file)).collect()
}

/// One line for each broken rule: where in the file, and what is wrong.
fn broken_rules(text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    if !text.starts_with("//!") {
        broken.push(":1: the file does not begin with a comment on what it is and why".to_owned());
    }
    let code = code_lines(text);
    if code > CODE_LINES_MAX {
        broken.push(format!(": {code} lines of code before the tests, {CODE_LINES_MAX} at most"));
    }
    for (number, line) in (1..).zip(text.lines()) {
        let length = line.chars().count();
        if length > LINE_CHARACTERS_MAX {
            broken.push(format!(":{number}: {length} characters, {LINE_CHARACTERS_MAX} at most"));
        }
        for (pieces, reason) in FORBIDDEN {
            let word = pieces.concat();
            if line.contains(&word) {
                broken.push(format!(":{number}: `{word}`: {reason}"));
            }
        }
    }
    broken
}

fn code_lines(text: &str) -> usize {
    let lines = text.lines().map(str::trim);
    let before_tests = lines.take_while(|line| !begins_tests(line));
    before_tests.filter(|line| !line.is_empty() && !line.starts_with("//")).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cargo::cargo;
    use crate::process::run_captured;

    /// Code that breaks a rule, and the lint that says so.
    const PLANTED: [(&str, &str); 12] = [
        ("unsafe_code", "/// D.\npub fn a() { unsafe {} }"),
        ("undocumented_unsafe_blocks", "/// D.\npub fn b() { unsafe { c() } }"),
        ("missing_safety_doc", "/// D.\npub unsafe fn c() {}"),
        ("missing_docs", "pub fn d() {}"),
        ("missing_errors_doc", "/// D.\npub fn e() -> Result<(), u8> { Ok(()) }"),
        ("missing_panics_doc", "/// D.\npub fn f() { panic!() }"),
        ("unwrap_used", "/// D.\npub fn g(x: Option<u8>) -> u8 { x.unwrap() }"),
        (
            "too_many_arguments",
            "/// D.\npub fn h(_: u8, _: u8, _: u8, _: u8, _: u8, _: u8, _: u8, _: u8) {}",
        ),
        ("fn_params_excessive_bools", "/// D.\npub fn i(_: bool) {}"),
        ("allow_attributes_without_reason", "#[allow(dead_code)]\nfn j() {}"),
        ("cast_possible_truncation", "/// D.\npub fn k(x: u64) -> u8 { x as u8 }"),
        ("dead_code", "fn nobody_calls_this() {}"),
    ];

    #[test]
    fn each_lint_of_the_house_fires_on_code_that_was_planted() {
        let folder = tempfile::tempdir().unwrap();
        let workspace = paths::workspace();
        let manifest = fs::read_to_string(workspace.join("Cargo.toml")).unwrap();
        let (_, lints) = manifest.split_once("[workspace.lints.rust]").unwrap();
        let lints = lints.split("\n[profile").next().unwrap().replace("[workspace.", "[");
        let head = "[package]\nname = \"planted\"\nedition = \"2024\"\n[workspace]\n[lints.rust]";
        fs::write(folder.path().join("Cargo.toml"), format!("{head}{lints}")).unwrap();
        fs::copy(workspace.join("clippy.toml"), folder.path().join("clippy.toml")).unwrap();
        fs::create_dir(folder.path().join("src")).unwrap();
        let long = "    let _ = 1;\n".repeat(71);
        let mut code = format!("//! D.\n/// D.\npub fn long() {{\n{long}}}\n");
        for (_, planted) in PLANTED {
            code += &format!("{planted}\n");
        }
        fs::write(folder.path().join("src/lib.rs"), code).unwrap();
        let mut clippy = cargo();
        clippy.args(["clippy", "--offline", "--", "-D", "warnings"]).current_dir(folder.path());
        clippy.env("CARGO_TARGET_DIR", folder.path().join("target"));
        let (status, output) = run_captured(&mut clippy, |_| {}).unwrap();
        assert!(!status.success(), "{output}");
        let silent: Vec<_> = PLANTED
            .iter()
            .map(|(lint, _)| *lint)
            .chain(["too_many_lines"])
            .filter(|lint| !output.contains(lint) && !output.contains(&lint.replace('_', "-")))
            .collect();
        assert_eq!(silent, Vec::<&str>::new(), "{output}");
    }

    #[test]
    fn a_good_file_breaks_no_rule() {
        assert_eq!(broken_rules("//! What and why.\n\nfn x() {}\n"), Vec::<String>::new());
    }

    #[test]
    fn only_code_before_the_tests_counts_for_the_length() {
        let code = "x();\n".repeat(CODE_LINES_MAX);
        let comments = "\n// why\n".repeat(1000);
        let tests = "#[cfg(test)]\n".to_owned() + &"x();\n".repeat(1000);
        assert_eq!(broken_rules(&format!("//! W\n{code}{comments}{tests}")).len(), 0);
        assert_eq!(broken_rules(&format!("//! W\n{code}x();\n{tests}")).len(), 1);
    }

    #[test]
    fn each_forbidden_word_is_found_with_its_line() {
        for (pieces, _) in FORBIDDEN {
            let text = format!("//! What.\n  {}\n", pieces.concat());
            let broken = broken_rules(&text);
            assert!(broken.len() == 1 && broken[0].starts_with(":2:"), "{broken:?}");
        }
    }

    #[test]
    fn a_link_to_a_file_that_is_gone_is_found() {
        let text = "[a](there.md#x) [b](gone.md) ![c](#here) [d](https://x.y/z)";
        assert_eq!(dead_links(text, &|link| link == "there.md"), ["gone.md"]);
        let readme = paths::workspace().join("README.md");
        assert!(documents(&paths::workspace()).unwrap().contains(&readme));
    }

    #[test]
    fn long_lines_and_missing_essays_are_found() {
        let line = "é".repeat(LINE_CHARACTERS_MAX);
        assert_eq!(broken_rules(&format!("//! What.\n{line}\n")).len(), 0);
        assert_eq!(broken_rules(&format!("//! What.\n{line}é\n")).len(), 1);
        assert_eq!(broken_rules("fn x() {}\n").len(), 1);
    }
}
