//! Where the project's files are, and where the harness keeps its own: all of it under the target
//! directory, so that `cargo clean` removes it and a CI cache can keep it.

use std::env;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};

/// Logs kept before the oldest ones are removed.
const LOGS_MAX: usize = 60;

/// How the names of temporary folders begin.
const WORK: &str = "work-";

/// Returns the folder of the workspace.
pub(crate) fn workspace() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map_or_else(|| package.clone(), Path::to_path_buf)
}

/// Cargo's target directory: two levels above this program, wherever cargo was told to build it.
///
/// # Errors
///
/// The operating system does not say where this program is.
pub(crate) fn target() -> Result<PathBuf> {
    let program = env::current_exe().context("this program cannot find its own file")?;
    let target = program.parent().and_then(Path::parent);
    Ok(target.context("this program is not inside a cargo target directory")?.to_path_buf())
}

/// This program's own image, which stays readable when cargo has put another file in its place: the
/// workspace's tests build this package too. Only this program can use the name.
pub(crate) const OWN_IMAGE: &str = "/proc/self/exe";

/// The harness's own folder, `target/xen-host`, or what `PVMMU_HOST_DIR` names.
#[derive(Clone, Debug)]
pub(crate) struct HostFolder(PathBuf);

impl HostFolder {
    /// Finds the folder and makes it if need be.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub(crate) fn open() -> Result<Self> {
        let folder = match env::var_os("PVMMU_HOST_DIR") {
            Some(folder) => std::path::absolute(folder)?,
            None => target()?.join("xen-host"),
        };
        make_folder(&folder)?;
        Ok(Self(folder))
    }

    /// Returns a path inside.
    pub(crate) fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.0.join(path)
    }

    /// Returns a new empty folder inside, removed when the returned guard is dropped.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub(crate) fn temporary(&self) -> Result<tempfile::TempDir> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(WORK).tempdir_in(&self.0).context("making a temporary folder")
    }

    /// Waits until no other run changes this folder; holds off others until the file is dropped.
    ///
    /// # Errors
    ///
    /// The lock file cannot be made or locked.
    pub(crate) fn lock(&self) -> Result<File> {
        let file = File::create(self.join("lock"))?;
        file.lock().context("locking target/xen-host")?;
        // A run that was killed left its work behind; nobody works here now.
        for entry in fs::read_dir(&self.0)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(WORK) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(file)
    }

    /// Returns a file for the console log of one boot. Removes the oldest logs if there are many.
    ///
    /// # Errors
    ///
    /// The folder for logs cannot be made or read.
    pub(crate) fn new_log(&self, name: &str) -> Result<PathBuf> {
        let folder = self.join("logs");
        make_folder(&folder)?;
        let mut logs: Vec<(SystemTime, PathBuf)> = fs::read_dir(&folder)?
            .filter_map(|entry| {
                let entry = entry.ok()?;
                Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
            })
            .collect();
        logs.sort();
        for (_, old) in logs.iter().rev().skip(LOGS_MAX) {
            // Another run may have removed it first.
            let _ = fs::remove_file(old);
        }
        for number in 1_u32.. {
            let log = folder.join(format!("{name}-{number}.log"));
            match File::create_new(&log) {
                Ok(_) => return Ok(log),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).context(format!("making {}", log.display())),
            }
        }
        bail!("there are too many logs in {}", folder.display())
    }
}

/// Makes a folder and the ones above it.
///
/// # Errors
///
/// With the folder's name, if it cannot be made.
pub(crate) fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("making the folder {}", folder.display()))
}

/// Returns the program of this name in `PATH`.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let folders = env::var_os("PATH")?;
    env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> (tempfile::TempDir, HostFolder) {
        let folder = tempfile::tempdir().unwrap();
        let host = HostFolder(folder.path().to_path_buf());
        (folder, host)
    }

    #[test]
    fn every_boot_has_a_log_of_its_own_and_old_logs_go() {
        let (_folder, host) = host();
        let mut last = host.new_log("demo").unwrap();
        for _ in 0..2 * LOGS_MAX {
            let next = host.new_log("demo").unwrap();
            assert_ne!(next, last);
            last = next;
        }
        let logs = fs::read_dir(host.join("logs")).unwrap().count();
        assert!((LOGS_MAX..=LOGS_MAX + 1).contains(&logs), "{logs}");
    }

    #[test]
    fn what_a_killed_run_left_behind_is_removed_and_nothing_else() {
        let (_folder, host) = host();
        let left = host.temporary().unwrap().keep();
        fs::write(host.join("xen-4.17"), "").unwrap();
        let _lock = host.lock().unwrap();
        assert!(!left.exists() && host.join("xen-4.17").exists());
    }
}
