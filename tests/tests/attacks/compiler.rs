//! What the compiler says of these files when no duty is taken.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// An error at a line of a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Refusal {
    file: PathBuf,
    line: u64,
    code: String,
}

/// The folder of this package, and what its files are named from.
const PACKAGE: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn safe_code_is_refused_where_the_lines_say_and_for_the_reason_that_they_say() {
    let expected = expected();
    assert!(expected.len() >= 40, "{} lines are to be refused", expected.len());
    let refused = &refused("attack") | &refused("liar");
    let missing: Vec<_> = expected.difference(&refused).collect();
    let more: Vec<_> = refused.difference(&expected).collect();
    assert!(missing.is_empty() && more.is_empty(), "not refused: {missing:#?}\nbut: {more:#?}");
}

/// What the lines say.
fn expected() -> BTreeSet<Refusal> {
    let mut expected = BTreeSet::new();
    let folder = Path::new(PACKAGE).join("tests/attacks");
    for entry in fs::read_dir(folder).expect("this folder") {
        let path = entry.expect("a file").path();
        let name = Path::new("tests/attacks").join(path.file_name().expect("a file"));
        let text = fs::read_to_string(&path).expect("a text");
        for (number, line) in (1..).zip(text.lines()) {
            if let Some((code, "")) = line.split_once("//~ ").map(|(_, code)| code.split_at(5)) {
                expected.insert(Refusal {
                    file: name.clone(),
                    line: number,
                    code: code.to_owned(),
                });
            }
        }
    }
    expected
}

/// What the compiler says.
fn refused(way: &str) -> BTreeSet<Refusal> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(PACKAGE).args(["rustc", "--quiet", "--package", "pv-tests"]);
    command.args(["--test", "attacks", "--message-format", "json", "--", "--cfg", way]);
    let output = command.output().expect("cargo runs");
    assert!(!output.status.success(), "everything compiles with --cfg {way}");
    let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let lines = lines.map(|line| serde_json::from_slice::<Value>(line).expect("a line of JSON"));
    lines.filter(|line| line["reason"] == "compiler-message").filter_map(refusal).collect()
}

/// The place and the code of an error; nothing of a warning, and of the last word, which has none.
fn refusal(line: Value) -> Option<Refusal> {
    let message = &line["message"];
    if message["level"] != "error" || message["spans"].as_array()?.is_empty() {
        return None;
    }
    let code = message["code"]["code"].as_str().unwrap_or("no code");
    let span = message["spans"].as_array()?.iter().find(|span| span["is_primary"] == true)?;
    let file = Path::new(span["file_name"].as_str()?);
    let file = file.strip_prefix("tests").unwrap_or(file);
    let line = span["line_start"].as_u64()?;
    Some(Refusal { file: file.to_owned(), line, code: code.to_owned() })
}
