//! The inventory of unsafe code: every file that has some is named in docs/soundness.md with what
//! it is for, and every file that is named there has some.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::begins_tests;
use crate::cargo::rust_files;
use crate::paths;

/// The list.
const LIST: &str = "docs/soundness.md";
/// Under which heading it stands there.
const HEADING: &str = "## Where unsafe code is";
/// How unsafe code begins. In two pieces, so that this file has none.
const BEGINNINGS: [[&str; 2]; 5] = [
    ["uns", "afe {"],
    ["uns", "afe fn"],
    ["uns", "afe impl"],
    ["uns", "afe trait"],
    ["uns", "afe extern"],
];
/// Folders, and files, of tests, and a crate's examples, which are short host programs: they may do
/// what they like to a model. Inside a package only: at the top, these are packages themselves.
const EXEMPT: [&str; 4] = ["tests", "tests.rs", "benches", "examples"];
/// A package of tests.
const FUZZ: &str = "proof/fuzz";

/// Compares the list with the files.
///
/// # Errors
///
/// A file is missing in the list, or one of the list has no unsafe code.
pub(super) fn check() -> Result<String> {
    let workspace = paths::workspace();
    let text = fs::read_to_string(workspace.join(LIST)).with_context(|| LIST)?;
    let listed = listed(&text, &|path| workspace.join(path).exists())?;
    let mut found = BTreeSet::new();
    for file in rust_files()? {
        let name = file.strip_prefix(&workspace).unwrap_or(&file);
        let within = || name.iter().skip(1);
        let exempt = name.starts_with(FUZZ)
            || within().any(|part| EXEMPT.iter().any(|folder| part == *folder));
        if !exempt && has_unsafe(&fs::read_to_string(&file)?) {
            found.insert(name.display().to_string());
        }
    }
    let differences = differences(&listed, &found);
    if !differences.is_empty() {
        bail!("{LIST}, {HEADING}:\n{}", differences.join("\n"));
    }
    Ok(format!("{} files with unsafe code", found.len()))
}

/// Files that have unsafe code and are not listed, and paths of the list that have none.
fn differences(listed: &[String], found: &BTreeSet<String>) -> Vec<String> {
    let covers = |path: &String, file: &String| {
        file == path || path.ends_with('/') && file.starts_with(path.as_str())
    };
    let missing = found.iter().filter(|file| !listed.iter().any(|path| covers(path, file)));
    let stale = listed.iter().filter(|path| !found.iter().any(|file| covers(path, file)));
    let missing = missing.map(|file| format!("{file} is not listed"));
    missing.chain(stale.map(|path| format!("{path} has no unsafe code"))).collect()
}

/// Returns whether code before the tests has unsafe parts; comments and texts do not count.
fn has_unsafe(text: &str) -> bool {
    let lines = text.lines().map(str::trim_start).take_while(|line| !begins_tests(line));
    let code = lines.filter(|line| !line.starts_with("//"));
    let is_unsafe = |line: &str| BEGINNINGS.iter().any(|pieces| line.contains(&pieces.concat()));
    code.into_iter().any(is_unsafe)
}

/// Returns the paths of the list. The first of a row is from the workspace's root, the others of
/// the row are from the same folder or from the same `src`.
fn listed(text: &str, exists: &dyn Fn(&Path) -> bool) -> Result<Vec<String>> {
    let (_, list) = text.split_once(HEADING).with_context(|| format!("{LIST} lacks {HEADING}"))?;
    let list = list.split("\n## ").next().unwrap_or_default();
    let mut paths = Vec::new();
    for row in list.lines().filter(|line| line.starts_with("| `")) {
        let cell = row.split('|').nth(1).unwrap_or_default();
        let mut first: Option<&str> = None;
        for name in cell.split('`').skip(1).step_by(2) {
            let first = *first.get_or_insert(name);
            let folder = first.rsplit_once('/').map_or("", |(folder, _)| folder);
            let sources = first.split_once("src/").map_or("", |(package, _)| package);
            let places =
                [name.to_owned(), format!("{folder}/{name}"), format!("{sources}src/{name}")];
            match places.into_iter().find(|place| exists(Path::new(place))) {
                Some(place) => paths.push(place),
                None => bail!("{LIST}: `{name}` of the row of `{first}` does not exist"),
            }
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_row_may_leave_out_what_the_first_has() {
        let text = format!("{HEADING}\n| `a/src/b/c.rs`, `d.rs`, `e/` | why |\n\n## Next\n| `x` |");
        let known = ["a/src/b/c.rs", "a/src/b/d.rs", "a/src/e/"];
        let exists = |path: &Path| known.iter().any(|known| Path::new(known) == path);
        assert_eq!(listed(&text, &exists).unwrap(), known);
        let text = text.replace("d.rs", "gone.rs");
        assert!(listed(&text, &exists).unwrap_err().to_string().contains("gone.rs"));
    }

    #[test]
    fn a_file_that_is_not_listed_and_a_row_that_is_stale_are_found() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let listed: Vec<String> = names(&["a/src/b.rs", "a/src/c/"]);
        let compare = |found: &[&str]| {
            let found: Vec<String> = names(found);
            differences(&listed, &found.into_iter().collect())
        };
        assert_eq!(compare(&["a/src/b.rs", "a/src/c/d.rs"]), Vec::<String>::new());
        let found = compare(&["a/src/b.rs", "a/src/planted.rs"]);
        assert_eq!(found, ["a/src/planted.rs is not listed", "a/src/c/ has no unsafe code"]);
    }

    #[test]
    fn comments_and_tests_have_no_unsafe_code() {
        let block = BEGINNINGS[0].concat();
        assert!(has_unsafe(&format!("fn x() {{ {block} }} }}")));
        assert!(!has_unsafe(&format!("// {block}\n#[cfg(test)]\n{block} }}")));
    }
}
