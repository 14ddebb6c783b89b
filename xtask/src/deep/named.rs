//! Named mutants: changes of the code, each of which one test has to notice, for a reason that is
//! said. They stand in `tests/mutants/*.toml`:
//!
//! ```toml
//! [[mutant]]
//! name = "unmap_without_a_flush"      # what is wrong then
//! file = "pvmmu/src/edit/mod.rs"      # where
//! text = "self.owe_flush(pages);"     # stands there exactly once
//! replacement = ""                    # what stands there instead
//! package = "pvmmu"                   # whose test notices
//! test = "stale"                      # in tests/; or "lib"; or "loom": lib in every order
//! filter = "unmap"                    # which of its tests; all if there is none
//! fails_with = "a stale translation"  # a part of what it writes: the reason
//! ```
//!
//! The mutants are tried in a copy of the workspace under `target/mutants-named`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::cargo::{cargo, packages};
use crate::paths;
use crate::process::run_captured;
use crate::progress::Step;

/// Where they are listed.
const LISTS: &str = "tests/mutants";
/// What is not copied, besides what begins with a dot.
const NOT_COPIED: &str = "target";
/// What begins with a dot and is copied all the same.
const COPIED: &str = ".cargo";
/// The last lines of a test that are shown.
const LINES_SHOWN: usize = 25;

/// A change that a test has to notice.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    name: String,
    file: PathBuf,
    text: String,
    replacement: String,
    package: String,
    test: String,
    filter: Option<String>,
    fails_with: String,
}

/// A file of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutant: Vec<Mutant>,
}

/// What became of a mutant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fate {
    Noticed,
    Survived,
    OtherReason,
    DoesNotBuild,
}

impl Fate {
    const fn words(self) -> &'static str {
        match self {
            Self::Noticed => "noticed",
            Self::Survived => "SURVIVED",
            Self::OtherReason => "FAILED FOR ANOTHER REASON",
            Self::DoesNotBuild => "DOES NOT BUILD",
        }
    }
}

/// Tries those whose name contains a word of `pattern`, or that are of a package so named; commas
/// are between words.
///
/// # Errors
///
/// A list or the workspace cannot be read or copied, or a signal asked us to end.
pub(super) fn check(pattern: &str) -> Result<bool> {
    let workspace = paths::workspace();
    let mutants = read_lists(&workspace.join(LISTS))?;
    let wrong = faults(&mutants, &workspace);
    if !wrong.is_empty() {
        bail!("{LISTS}:\n{}", wrong.join("\n"));
    }
    let fits = |mutant: &Mutant, word| mutant.name.contains(word) || mutant.package == word;
    let is_chosen = |mutant: &&Mutant| pattern.split(',').any(|word| fits(mutant, word));
    let chosen: Vec<_> = mutants.iter().filter(is_chosen).collect();
    if chosen.is_empty() {
        let all = mutants.len();
        bail!(
            "none of the {all} mutants has {pattern:?} in its name, nor is of a package so named"
        );
    }
    let bench = Bench::new(&workspace)?;
    let tests: BTreeSet<_> = chosen.iter().map(|mutant| mutant.command_words()).collect();
    for words in &tests {
        let step = Step::begin(&format!("{} as it is", words.join(" ")));
        let (fate, output) = bench.test(words, None)?;
        if fate != Fate::Survived {
            step.end("failed");
            bail!("without a mutant the test does not pass:\n{}", last_lines(&output));
        }
        step.end("passes");
    }
    let mut counts = [0; 4];
    for mutant in chosen {
        let (fate, output) = bench.try_out(mutant)?;
        counts[fate as usize] += 1;
        println!("{:8} {}: {}", fate.words(), mutant.package, mutant.name);
        if fate != Fate::Noticed {
            println!("{}", last_lines(&output));
        }
    }
    let [noticed, survived, other, broken] = counts;
    println!(
        "named mutants: {noticed} noticed, {survived} survived, {other} failed for another reason, \
         {broken} do not build"
    );
    Ok(survived + other + broken == 0)
}

/// Returns whether every mutant can still be applied.
///
/// # Errors
///
/// With all that cannot.
pub(crate) fn check_texts() -> Result<String> {
    let workspace = paths::workspace();
    let mutants = read_lists(&workspace.join(LISTS))?;
    let wrong = faults(&mutants, &workspace);
    if !wrong.is_empty() {
        bail!("{LISTS}:\n{}", wrong.join("\n"));
    }
    Ok(format!("{} can be applied", mutants.len()))
}

fn read_lists(folder: &Path) -> Result<Vec<Mutant>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        files.push(entry?.path());
    }
    files.sort();
    let mut mutants = Vec::new();
    for file in files.iter().filter(|file| file.extension().is_some_and(|it| it == "toml")) {
        let text = fs::read_to_string(file)?;
        let list: List = basic_toml::from_str(&text).with_context(|| file.display().to_string())?;
        mutants.extend(list.mutant);
    }
    Ok(mutants)
}

/// Returns what is wrong with the lists, mutant by mutant.
fn faults(mutants: &[Mutant], workspace: &Path) -> Vec<String> {
    let packages = packages().unwrap_or_default();
    let mut names = BTreeSet::new();
    let mut faults = Vec::new();
    for mutant in mutants {
        let Mutant { name, file, package, test, .. } = mutant;
        let mut fault = |what: String| faults.push(format!("{name}: {what}"));
        if !names.insert(name) {
            fault("there are two of this name".to_owned());
        }
        let text = fs::read_to_string(workspace.join(file)).unwrap_or_default();
        match text.matches(&mutant.text).count() {
            1 if mutant.text == mutant.replacement => fault("it changes nothing".to_owned()),
            1 => {}
            count => fault(format!("its text occurs {count} times in {}", file.display())),
        }
        if mutant.fails_with.is_empty() {
            fault("it gives no reason".to_owned());
        }
        let places = [format!("tests/{test}.rs"), format!("tests/{test}/main.rs")];
        match packages.iter().find(|known| known.name == *package) {
            Some(_) if matches!(test.as_str(), "lib" | "loom") => {}
            Some(package) if places.iter().any(|place| package.has(place)) => {}
            Some(_) => fault(format!("{package} has no test {test}")),
            None => fault(format!("there is no package {package}")),
        }
    }
    faults
}

impl Mutant {
    /// Returns what cargo is given, and what decides how it is built.
    fn command_words(&self) -> Vec<String> {
        let mut words = vec!["--package", &self.package];
        match self.test.as_str() {
            "lib" => words.push("--lib"),
            "loom" => words.extend(["--release", "--lib"]),
            test => words.extend(["--test", test]),
        }
        words.extend(self.filter.as_deref());
        words.into_iter().map(str::to_owned).collect()
    }

    fn is_applied_to(&self, text: &str) -> String {
        text.replacen(&self.text, &self.replacement, 1)
    }
}

/// A copy of the workspace in which mutants are tried.
struct Bench {
    copy: PathBuf,
    target: PathBuf,
}

impl Bench {
    fn new(workspace: &Path) -> Result<Self> {
        let folder = paths::target()?.join("mutants-named");
        let (copy, target) = (folder.join("workspace"), folder.join("target"));
        update(workspace, &copy)?;
        Ok(Self { copy, target })
    }

    fn try_out(&self, mutant: &Mutant) -> Result<(Fate, String)> {
        let step = Step::begin(&mutant.name);
        let changed = self.copy.join(&mutant.file);
        let text = fs::read_to_string(&changed)?;
        fs::write(&changed, mutant.is_applied_to(&text))?;
        let result = self.test(&mutant.command_words(), Some(mutant));
        // Whatever became of the test, the copy is as the workspace again.
        fs::write(&changed, text)?;
        step.vanish();
        result
    }

    /// Runs a test, of a mutant or of the code as it is.
    fn test(&self, words: &[String], mutant: Option<&Mutant>) -> Result<(Fate, String)> {
        let mut command: Command = cargo();
        command.current_dir(&self.copy).args(["test", "--quiet"]).args(words);
        let is_loom = words.iter().any(|word| word == "--release");
        let target = if is_loom { self.target.join("loom") } else { self.target.clone() };
        command.arg("--target-dir").arg(target);
        if is_loom {
            command.env("RUSTFLAGS", "--cfg loom");
        }
        let (status, output) = run_captured(&mut command, |_| {})?;
        let reason = mutant.map_or("", |mutant| &mutant.fails_with);
        let fate = match status.success() {
            true => Fate::Survived,
            false if output.contains("error: could not compile") => Fate::DoesNotBuild,
            false if output.contains(reason) => Fate::Noticed,
            false => Fate::OtherReason,
        };
        Ok((fate, output))
    }
}

/// Makes `copy` the same as `from`. Files that are the same are left alone, so that cargo does not
/// build them again.
fn update(from: &Path, copy: &Path) -> Result<()> {
    paths::make_folder(copy)?;
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        let hidden = name.to_string_lossy().starts_with('.') && name != *COPIED;
        if hidden || name == *NOT_COPIED {
            continue;
        }
        let (source, place) = (entry.path(), copy.join(&name));
        if source.is_dir() {
            update(&source, &place)?;
        } else {
            let content = fs::read(&source)?;
            if fs::read(&place).is_ok_and(|old| old == content) {
                // As it should be.
            } else {
                fs::write(&place, content)?;
            }
        }
        names.insert(name);
    }
    for entry in fs::read_dir(copy)? {
        let entry = entry?;
        if names.contains(&entry.file_name()) {
            continue;
        }
        let gone = entry.path();
        if gone.is_dir() { fs::remove_dir_all(gone) } else { fs::remove_file(gone) }?;
    }
    Ok(())
}

fn last_lines(output: &str) -> String {
    let lines: Vec<&str> = output.lines().collect();
    lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutant(text: &str) -> Mutant {
        let list = format!(
            "[[mutant]]\nname = 'n'\nfile = 'a.rs'\ntext = '''{text}'''\nreplacement = 'x'\n\
             package = 'xtask'\ntest = 'bad_input'\nfails_with = 'because'\n"
        );
        let mut list: List = basic_toml::from_str(&list).unwrap();
        list.mutant.pop().unwrap()
    }

    #[test]
    fn a_mutant_whose_text_is_gone_or_stands_twice_cannot_be_applied() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.rs"), "once twice\ntwice\n").unwrap();
        let faults = |text| faults(&[mutant(text)], folder.path());
        assert_eq!(faults("once"), Vec::<String>::new());
        assert_eq!(faults("twice"), ["n: its text occurs 2 times in a.rs"]);
        assert_eq!(faults("gone"), ["n: its text occurs 0 times in a.rs"]);
    }

    #[test]
    fn a_test_that_does_not_exist_a_second_name_and_a_missing_reason_are_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.rs"), "once").unwrap();
        let first = mutant("once");
        let mut second = Mutant { test: "absent".to_owned(), ..first.clone() };
        second.fails_with.clear();
        let found = faults(&[first, second], folder.path()).join("\n");
        for words in ["two of this name", "no reason", "xtask has no test absent"] {
            assert!(found.contains(words), "{found}");
        }
    }

    #[test]
    fn what_is_mistyped_in_a_list_is_an_error() {
        assert!(basic_toml::from_str::<List>("[[mutant]]\nname = 'n'\nfails_wth = 'x'\n").is_err());
    }

    #[test]
    fn a_copy_follows_its_original_and_leaves_alone_what_is_the_same() {
        let [from, copy] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let (from, copy) = (from.path(), copy.path());
        let write = |name: &str, text: &str| {
            let file = from.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        for name in ["a/b.rs", "a/c.rs", "d.rs", "target/x", ".git/y", ".cargo/config.toml"] {
            write(name, "old");
        }
        update(from, copy).unwrap();
        let time = |name: &str| fs::metadata(copy.join(name)).unwrap().modified().unwrap();
        let before = time("a/b.rs");
        write("a/b.rs", "old");
        write("a/c.rs", "new");
        fs::remove_file(from.join("d.rs")).unwrap();
        update(from, copy).unwrap();
        assert_eq!(time("a/b.rs"), before);
        assert_eq!(fs::read_to_string(copy.join("a/c.rs")).unwrap(), "new");
        let exists = |name: &str| copy.join(name).exists();
        assert!(exists(".cargo/config.toml") && !exists("d.rs"));
        assert!(!exists("target") && !exists(".git"));
    }

    #[test]
    fn a_mutant_knows_its_test() {
        let mut mutant = mutant("once");
        assert_eq!(mutant.command_words(), ["--package", "xtask", "--test", "bad_input"]);
        mutant.test = "loom".to_owned();
        mutant.filter = Some("one".to_owned());
        assert_eq!(mutant.command_words(), ["--package", "xtask", "--release", "--lib", "one"]);
        assert_eq!(mutant.is_applied_to("once twice"), "x twice");
    }
}
