//! Examples in the documentation: how many public functions of each library have none. What is
//! called on the way to something else needs none; what someone calls first does.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use super::begins_tests;
use crate::cargo::rust_files;
use crate::paths;

/// Libraries, and how many of their public functions may be without an example.
const WITHOUT: [(&str, usize); 10] = [
    ("balloon", 16),
    ("early-pgt", 26),
    ("hypercall", 139),
    ("p2m", 54),
    ("proof/conformance", 4),
    ("proof/prove", 19),
    ("proof/xen-model", 73),
    ("pvmmu", 36),
    ("swiotlb", 37),
    ("tools/xen-explain", 11),
];

/// Counts them.
///
/// # Errors
///
/// A library has more.
pub(super) fn check() -> Result<String> {
    let workspace = paths::workspace();
    let mut counts = WITHOUT.map(|(library, _)| (library, 0));
    let mut with = 0;
    for file in rust_files()? {
        let name = file.strip_prefix(&workspace).unwrap_or(&file);
        let is_in = |library: &str| name.starts_with(Path::new(library).join("src"));
        if let Some((_, without)) = counts.iter_mut().find(|(library, _)| is_in(library)) {
            let (some, none) = count(&fs::read_to_string(&file)?);
            with += some;
            *without += none;
        }
    }
    let wrong = beyond(&counts);
    if !wrong.is_empty() {
        bail!("{}\nWhat somebody calls first needs an example.", wrong.join("\n"));
    }
    Ok(format!("{with} functions have one"))
}

/// Libraries that have more than above.
fn beyond(counts: &[(&str, usize)]) -> Vec<String> {
    let pairs = counts.iter().zip(WITHOUT);
    let wrong = pairs.filter(|((_, without), (_, allowed))| without > allowed);
    wrong
        .map(|((library, without), (_, allowed))| {
            format!("{library}: {without} public functions without an example, {allowed} at most")
        })
        .collect()
}

/// Public functions with an example, and those without.
fn count(text: &str) -> (usize, usize) {
    let (mut with, mut without, mut has_example) = (0, 0, false);
    let lines = text.lines().map(str::trim_start).take_while(|line| !begins_tests(line));
    for line in lines {
        if line.starts_with("///") {
            has_example |= line.starts_with("/// ```");
        } else if !line.starts_with("#[") {
            let words = line.split_once('(').map_or(line, |(signature, _)| signature);
            if words.starts_with("pub ") && words.contains("fn ") {
                *if has_example { &mut with } else { &mut without } += 1;
            }
            has_example = false;
        }
    }
    (with, without)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_counts_for_the_function_that_it_stands_before() {
        let text = "/// One.\n/// ```\n/// ```\n#[must_use]\npub const fn one() {}\n\
                    /// Two.\npub fn two() {}\nfn three() {}\npub(crate) fn four() {}\n";
        assert_eq!(count(text), (1, 1));
        assert_eq!(count("#[cfg(test)]\npub fn five() {}\n"), (0, 0));
    }

    #[test]
    fn one_more_is_found() {
        let mut counts = WITHOUT;
        counts[1].1 -= 1;
        assert_eq!(beyond(&counts), Vec::<String>::new());
        counts[0].1 += 1;
        assert_eq!(beyond(&counts).len(), 1);
    }
}
