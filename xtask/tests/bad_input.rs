//! What a person sees who gives the harness something that it cannot work with: one clear
//! paragraph, exit status 2, and no wait. The bad input that needs a machine (guests that hang,
//! fault or say nothing, a Xen that panics) is part of `cargo xtask test`.

use std::path::Path;
use std::process::{Command, Output};

/// Runs the harness on a machine with nothing in `PATH` and nothing provisioned.
fn bare_machine(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(arguments).env("PATH", folder).env("PVMMU_HOST_DIR", folder.join("host"));
    command.env_remove("PVMMU_QEMU").output().expect("the harness starts")
}

/// Standard error of a run that must end with status 2 and leave standard output to the guest.
fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    text
}

fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is missing in:\n{text}");
    }
}

#[test]
fn without_qemu_and_apt_the_missing_part_and_the_way_out_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let text = complaint(&bare_machine(folder.path(), &["run"]));
    assert_says(&text, &["QEMU", "apt-get", "Install", "qemu-system-x86", "--on model"]);
}

#[test]
fn an_unknown_release_of_xen_is_refused_and_the_known_ones_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for command in ["run", "test", "bench"] {
        let text = complaint(&bare_machine(folder.path(), &[command, "--xen", "4.99"]));
        assert_says(&text, &["4.99", "4.14", "4.17", "4.20"]);
    }
}

#[test]
fn a_baseline_of_one_release_is_not_held_against_another() {
    let folder = tempfile::tempdir().unwrap();
    let words = ["bench", "--xen", "all", "--check", "--baseline", "old.json"];
    assert_says(&complaint(&bare_machine(folder.path(), &words)), &["one release", "--xen"]);
}

#[test]
fn a_guest_without_xen_notes_is_refused_before_anything_is_fetched() {
    let folder = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_xtask");
    let text = complaint(&bare_machine(folder.path(), &["run", "--kernel", program]));
    assert_says(&text, &["cannot boot", program, "PV guest"]);
    assert!(!folder.path().join("host").exists());
}

#[test]
fn a_guest_that_does_not_exist_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let text = complaint(&bare_machine(folder.path(), &["run", "--kernel", "/no/such/file"]));
    assert_says(&text, &["/no/such/file"]);
}

#[test]
fn a_chosen_qemu_that_is_none_is_an_error_and_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.arg("run").env("PVMMU_HOST_DIR", folder.path()).env("PVMMU_QEMU", "/no/such/qemu");
    assert_says(&complaint(&command.output().unwrap()), &["/no/such/qemu"]);
}
