//! Cargo, as this project calls it, and what the workspace consists of.

use std::env;
use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::paths;
use crate::process::run_captured;

/// Returns the cargo that runs us, in the workspace, with colours if a person watches.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(paths::workspace());
    let colour = if std::io::stderr().is_terminal() { "always" } else { "never" };
    command.env("CARGO_TERM_COLOR", colour);
    command
}

/// Returns the cargo of the nightly toolchain, with these components of it.
///
/// # Errors
///
/// There is no nightly toolchain, or a component cannot be had.
pub(crate) fn nightly(components: &[&str]) -> Result<Command> {
    let rustup = |arguments: &[&str]| {
        let mut rustup = Command::new("rustup");
        run_captured(rustup.args(arguments), |_| {}).is_ok_and(|(status, _)| status.success())
    };
    if !rustup(&["run", "nightly", "cargo", "--version"]) {
        bail!("this check needs a nightly toolchain: rustup toolchain install nightly");
    }
    for component in components {
        if !rustup(&["component", "add", "--toolchain", "nightly", component]) {
            bail!("the nightly toolchain has no {component} today: try one of a few days ago");
        }
    }
    let mut command = Command::new("cargo");
    command.arg("+nightly").current_dir(paths::workspace());
    // What the stable cargo that runs us says of itself is wrong for another one.
    for name in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(name);
    }
    Ok(command)
}

/// A package of the workspace.
#[derive(Clone, Debug)]
pub(crate) struct Package {
    /// Its name for cargo.
    pub(crate) name: String,
    folder: PathBuf,
    /// The text of its root file.
    root: String,
    library: bool,
    published: bool,
}

impl Package {
    /// Returns whether it has this file.
    pub(crate) fn has(&self, file: &str) -> bool {
        self.folder.join(file).is_file()
    }

    /// Returns whether others can depend on it.
    pub(crate) fn is_library(&self) -> bool {
        self.library
    }

    /// Returns whether it is meant for others.
    pub(crate) fn is_published(&self) -> bool {
        self.published
    }

    /// Returns whether it is also built for Xen, where there is no standard library.
    pub(crate) fn is_for_bare_metal(&self) -> bool {
        self.root.lines().any(|line| line.starts_with("#![") && line.contains("no_std"))
    }
}

/// Returns the packages of the workspace.
///
/// # Errors
///
/// The workspace's Cargo.toml or a member's cannot be read.
pub(crate) fn packages() -> Result<Vec<Package>> {
    let workspace = paths::workspace();
    let manifest = read(&workspace.join("Cargo.toml"))?;
    members(&manifest)
        .map(|member| {
            let folder = workspace.join(member);
            let manifest = read(&folder.join("Cargo.toml"))?;
            let mut values = manifest.lines().filter_map(|line| line.strip_prefix("name = "));
            let name = values.next().with_context(|| format!("{member} has no name"))?;
            let library = folder.join("src/lib.rs").is_file();
            let roots = ["src/lib.rs", "src/main.rs"].map(|root| folder.join(root));
            let root = roots.iter().find_map(|root| fs::read_to_string(root).ok());
            let name = name.trim_matches('"').to_owned();
            let published = !manifest.lines().any(|line| line == "publish = false");
            Ok(Package { name, folder, root: root.unwrap_or_default(), library, published })
        })
        .collect()
}

/// Returns the quoted words of `members = [...]`.
fn members(manifest: &str) -> impl Iterator<Item = &str> {
    let list = manifest.split_once("\nmembers = [").and_then(|(_, rest)| rest.split_once(']'));
    let list = list.map_or("", |(list, _)| list);
    list.split(',').map(|word| word.trim().trim_matches('"')).filter(|word| !word.is_empty())
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}

/// Every Rust file of the project, in order.
///
/// # Errors
///
/// A folder cannot be read.
pub(crate) fn rust_files() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![paths::workspace()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if path.is_file() && name.ends_with(".rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_has_this_package_and_it_needs_the_standard_library() {
        let packages = packages().unwrap();
        let xtask = packages.iter().find(|package| package.name == "xtask").unwrap();
        assert!(!xtask.is_library() && !xtask.is_for_bare_metal() && !xtask.is_published());
        assert!(packages.iter().any(|package| package.name == "pvmmu" && package.is_published()));
    }

    #[test]
    fn members_may_stand_in_one_line_or_in_many() {
        for manifest in
            ["\nmembers = [\"a\", \"b/c\"]\n", "\nmembers = [\n  \"a\",\n  \"b/c\",\n]\n"]
        {
            assert_eq!(members(manifest).collect::<Vec<_>>(), ["a", "b/c"]);
        }
    }

    #[test]
    fn this_file_is_among_the_rust_files_and_nothing_built_is() {
        let files = rust_files().unwrap();
        assert!(files.iter().any(|file| file.ends_with("xtask/src/cargo.rs")));
        assert!(!files.iter().any(|file| file.iter().any(|part| part == "target")));
    }
}
