//! `xen-explain` as a program: inputs, outputs and exit status.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

/// Runs the program with `arguments`, and `input` as standard input.
fn run(arguments: &[&str], input: &[u8]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_xen-explain"));
    program.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = program.spawn().expect("the program runs");
    child.stdin.take().expect("piped").write_all(input).expect("it reads to the end");
    child.wait_with_output().expect("it ends")
}

const LOG: &str = "tests/data/host-crash-pinning.log";

#[test]
fn a_file_standard_input_and_both_give_the_same_and_no_colour_without_a_terminal() {
    let file = run(&[LOG], b"");
    let input = std::fs::read(format!("{}/{LOG}", env!("CARGO_MANIFEST_DIR"))).expect("test data");
    assert_eq!(file.status.code(), Some(1), "something was refused");
    assert_eq!(run(&[], &input).stdout, file.stdout);
    assert_eq!(run(&["-"], &input).stdout, file.stdout);
    assert!(!file.stdout.contains(&0x1b), "no escape sequences in a pipe");
}

#[test]
fn json_is_whole_and_says_what_the_text_says() {
    let output = run(&["--json", LOG], b"");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["problems"][0]["mfn"], "8df82b");
    assert_eq!(json["problems"][0]["follow_ups"], 3);
    assert_eq!(json["problems"][0]["causes"][0]["name"], "AliasLeft");
    assert_eq!(json["lines"]["suppressed"], 54);
    assert_eq!(json["xen"], "4.5 to 4.6");
}

#[test]
fn nothing_refused_is_0_and_an_unreadable_input_is_2() {
    assert_eq!(run(&[], b"all is well\n").status.code(), Some(0));
    let missing = run(&["no such file"], b"");
    assert_eq!(missing.status.code(), Some(2));
    let words = String::from_utf8(missing.stderr).expect("text");
    assert!(words.contains("no such file"), "{words}");
    assert_eq!(run(&["--no-such-option"], b"").status.code(), Some(2));
    assert_eq!(run(&["tests"], b"").status.code(), Some(2), "a folder is no log");
}
