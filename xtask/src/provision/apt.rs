//! apt with everything of its own: sources, lists, cache, and a machine on which nothing is
//! installed. So a package's whole closure is downloaded, down to the C library, and runs here
//! whatever this machine has. apt checks signatures and checksums as always.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::mirror::Mirror;
use crate::paths::{HostFolder, find_program, make_folder};
use crate::process::run_quietly;
use crate::progress::Step;

/// apt for one release of Debian.
#[derive(Debug)]
pub(crate) struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Prepares apt's folders and fetches the list of packages.
    ///
    /// # Errors
    ///
    /// There is no apt, no mirror in its configuration, or the mirror does not answer.
    pub(crate) fn open(host: &HostFolder, suite: &str, step: &Step) -> Result<Self> {
        for program in ["apt-get", "apt-cache", "dpkg-deb", "tar"] {
            if find_program(program).is_none() {
                bail!("there is no {program} on this machine");
            }
        }
        let mirror = Mirror::of_this_machine()?;
        let apt = Self { folder: host.join("apt").join(suite) };
        for part in ["state/lists/partial", "cache/archives/partial", "none"] {
            make_folder(&apt.folder.join(part))?;
        }
        fs::write(apt.folder.join("status"), "")?;
        fs::write(apt.folder.join("sources.list"), mirror.sources_list(suite))?;
        fs::write(apt.folder.join("apt.conf"), configuration(&apt.folder))?;
        step.at(format!("reading the package list of {suite}"));
        let failed = || format!("the package list of Debian {suite} cannot be read");
        let words = run_quietly(apt.command("apt-get").arg("update"), |_| {});
        let words = words.with_context(failed)?;
        // apt is content with no list at all, as it may still have an old one.
        let lists = fs::read_dir(apt.folder.join("state/lists"))?.flatten();
        if !lists.into_iter().any(|list| file_name(&list.path()).contains("_Packages")) {
            let reason = words.lines().find(|line| line.contains("Failed to fetch"));
            bail!("{}: {}", failed(), reason.unwrap_or("no reason given").trim());
        }
        Ok(apt)
    }

    /// Downloads packages with everything that they depend on.
    ///
    /// # Errors
    ///
    /// A package does not exist or cannot be downloaded.
    pub(crate) fn download_with_dependencies(
        &self,
        packages: &[&str],
        step: &Step,
    ) -> Result<Vec<PathBuf>> {
        let archives = self.folder.join("cache/archives");
        for old in packages_in(&archives)? {
            fs::remove_file(old)?;
        }
        let mut command = self.command("apt-get");
        command.args(["install", "--download-only", "--yes", "-o", "APT::Status-Fd=1"]);
        run_quietly(command.args(packages), |line| show_download(line, step))?;
        packages_in(&archives)
    }

    /// Downloads one package alone into a folder.
    ///
    /// # Errors
    ///
    /// The package does not exist or cannot be downloaded.
    pub(crate) fn download(&self, package: &str, into: &Path, step: &Step) -> Result<PathBuf> {
        let mut command = self.command("apt-get");
        command.args(["download", "-o", "APT::Status-Fd=1", package]).current_dir(into);
        run_quietly(&mut command, |line| show_download(line, step))?;
        let mut found = packages_in(into)?;
        found.retain(|file| file_name(file).starts_with(&format!("{package}_")));
        found.pop().with_context(|| format!("apt downloaded no {package}"))
    }

    /// Returns the first package that a package depends on.
    ///
    /// # Errors
    ///
    /// The package does not exist or depends on nothing.
    pub(crate) fn first_dependency(&self, package: &str) -> Result<String> {
        let mut command = self.command("apt-cache");
        let output = run_quietly(command.args(["depends", package]), |_| {})?;
        let mut names = output.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        names.next().map(str::to_owned).with_context(|| format!("{package} depends on nothing"))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(self.folder.join("apt.conf"));
        command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        command
    }
}

/// Unpacks a package, or only the files that match the given patterns of tar.
///
/// # Errors
///
/// `dpkg-deb` or `tar` fails, for example because a pattern matches nothing.
pub(crate) fn unpack(package: &Path, into: &Path, patterns: &[&str]) -> Result<()> {
    if patterns.is_empty() {
        let mut command = Command::new("dpkg-deb");
        run_quietly(command.arg("--extract").arg(package).arg(into), |_| {})?;
        return Ok(());
    }
    // A file between the two programs costs little and keeps each one's exit status.
    let tar_file = tempfile::NamedTempFile::new_in(into)?;
    let status = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(tar_file.reopen()?)
        .status()?;
    if !status.success() {
        bail!("{} cannot be unpacked ({status})", package.display());
    }
    let mut command = Command::new("tar");
    command.arg("-x").arg("-f").arg(tar_file.path()).arg("-C").arg(into).arg("--wildcards");
    run_quietly(command.args(patterns), |_| {})?;
    Ok(())
}

/// `dlstatus:NUMBER:PERCENT:TEXT` is what apt writes while it downloads.
fn show_download(line: &str, step: &Step) {
    let mut fields = line.split(':');
    if fields.next() == Some("dlstatus")
        && let Some(percent) = fields.nth(1).and_then(|percent| percent.parse::<f64>().ok())
    {
        step.at(format!("downloading {percent:.0} %"));
    }
}

fn packages_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    let mut files = entries.collect::<Result<Vec<_>>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "deb"));
    files.sort();
    Ok(files)
}

fn file_name(file: &Path) -> String {
    file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "Dir::State \"{folder}/state\";\n\
         Dir::State::status \"{folder}/status\";\n\
         Dir::Cache \"{folder}/cache\";\n\
         Dir::Etc::SourceList \"{folder}/sources.list\";\n\
         Dir::Etc::SourceParts \"{folder}/none\";\n\
         Dir::Etc::Preferences \"{folder}/none/preferences\";\n\
         Dir::Etc::PreferencesParts \"{folder}/none\";\n\
         #clear APT::Update::Post-Invoke;\n\
         #clear APT::Update::Post-Invoke-Success;\n\
         #clear DPkg::Post-Invoke;\n\
         APT::Architecture \"amd64\";\n\
         APT::Architectures {{ \"amd64\"; }};\n\
         APT::Sandbox::User \"root\";\n\
         APT::Install-Recommends \"false\";\n\
         APT::Get::List-Cleanup \"true\";\n\
         Debug::NoLocking \"true\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::Retries \"3\";\n"
    )
}
