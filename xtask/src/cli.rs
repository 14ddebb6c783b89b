//! The words a person may type after `cargo xtask`.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::boot::Device;
use crate::release::{Release, Releases};

/// Every command of pvmmu.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Boot a guest on real Xen under QEMU and show what it does
    Run(RunArguments),
    /// Compare real Xen with the model: random operations on both, every answer
    Prove(ProveArguments),
    /// Measure what every operation costs on real Xen, and judge it
    Bench(BenchArguments),
    /// Run all tests: format, lints, unit, documentation, then real Xen
    Test(TestArguments),
    /// Run checks that take long or need more tools: mutants, Miri, fuzzing, packages, licences
    Check(CheckArguments),
    /// Run the guests' tests on a real dom0, by ssh
    Host(HostArguments),
    /// Draw a run on real Xen as docs/run.svg
    Picture,
}

/// What to boot, and on what.
#[derive(Args, Debug)]
pub(crate) struct RunArguments {
    /// Real Xen under QEMU, or the executable model on this host
    #[arg(long, value_enum, default_value_t = Machine::Xen)]
    pub(crate) on: Machine,
    /// The guest's role on real Xen
    #[arg(long = "as", value_enum, default_value_t = Role::Dom0)]
    pub(crate) role: Role,
    /// Release of Xen
    #[arg(long, value_enum, default_value_t = Release::Xen4_17)]
    pub(crate) xen: Release,
    /// Memory of the guest
    #[arg(long, value_name = "MIB", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(4..=1 << 20))]
    pub(crate) mem: u32,
    /// What the guest may grow to, as domU [default: as --mem]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(4..=1 << 20))]
    pub(crate) maxmem: Option<u32>,
    /// Virtual CPUs of the guest
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=32))]
    pub(crate) vcpus: u32,
    /// Processors of the machine [default: as many as dom0 needs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8))]
    pub(crate) processors: Option<u32>,
    /// Model of the machine's CPU, as for QEMU's -cpu; on the model of Xen, only ",-nx" matters: no
    /// NX [default: the most complete one]
    #[arg(long, value_name = "MODEL")]
    pub(crate) cpu: Option<String>,
    /// Let the clock count instructions, guest's and Xen's together: the same on every run
    #[arg(long)]
    pub(crate) icount: bool,
    /// Ask the builder to map the P2M list outside of the kernel's mapping (ELF note INIT_P2M)
    #[arg(long)]
    pub(crate) init_p2m: bool,
    /// How long the guest may take before it counts as hung; as dom0, half as long without a line.
    /// A slow or busy machine may need more [default: 300]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: Option<u64>,
    /// Show the whole console, with the lines of Xen and of a Linux dom0
    #[arg(long)]
    pub(crate) show_console: bool,
    /// Boot this ELF instead of the project's unikernel
    #[arg(long, value_name = "ELF")]
    pub(crate) kernel: Option<PathBuf>,
    /// File to give the guest as boot module
    #[arg(long, value_name = "FILE")]
    pub(crate) module: Option<PathBuf>,
    /// Additional devices of the machine
    #[arg(long, value_enum, value_name = "DEVICES", value_delimiter = ',')]
    pub(crate) device: Vec<DeviceName>,
    /// Image file of a virtio disk; the guest may change it
    #[arg(long, value_name = "FILE")]
    pub(crate) disk: Option<PathBuf>,
    /// Program of the guest, and its arguments
    #[arg(value_name = "PROGRAM", default_value = "demo", trailing_var_arg = true)]
    pub(crate) program: Vec<String>,
}

impl RunArguments {
    /// Returns the devices of the machine.
    pub(crate) fn devices(&self) -> Vec<Device> {
        let named = self.device.iter().map(|name| match name {
            DeviceName::Edu => Device::Edu,
            DeviceName::Net => Device::Net,
        });
        named.chain(self.disk.clone().map(Device::Disk)).collect()
    }

    /// Returns whether the CPU that is asked for has no NX.
    pub(crate) fn lacks_nx(&self) -> bool {
        let features = self.cpu.as_deref().into_iter().flat_map(|cpu| cpu.split(',').skip(1));
        features.into_iter().any(|feature| matches!(feature, "-nx" | "nx=off"))
    }

    /// Returns what is run: the program, of our unikernel or of a kernel of someone's, by its
    /// file's name.
    pub(crate) fn what(&self) -> String {
        let kernel = self.kernel.as_ref().and_then(|kernel| kernel.file_name());
        kernel.map_or_else(|| self.program.join(" "), |name| name.display().to_string())
    }

    /// Returns how long the guest may take, once it is started.
    pub(crate) fn time_limit(&self) -> Duration {
        Duration::from_secs(self.timeout.unwrap_or(300))
    }
}

/// What to compare.
#[derive(Args, Debug)]
pub(crate) struct ProveArguments {
    /// Operations in all, for each release and role
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pub(crate) ops: u64,
    /// First seed
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub(crate) seed: u64,
    /// How many seeds share the operations
    #[arg(long, value_name = "K", default_value_t = 1)]
    pub(crate) seeds: u64,
    /// Releases of Xen
    #[arg(long, value_enum, value_delimiter = ',', value_name = "RELEASES",
          default_values_t = [Release::Xen4_17])]
    pub(crate) xen: Vec<Release>,
    /// The guest's roles
    #[arg(long = "as", value_enum, value_delimiter = ',', value_name = "ROLES",
          default_values_t = [Role::Dom0])]
    pub(crate) role: Vec<Role>,
    /// Run the steps in this file instead
    #[arg(long, value_name = "FILE")]
    pub(crate) replay: Option<PathBuf>,
}

/// Percent that a count may be above its baseline, if nobody says how many.
pub(crate) const WITHIN: u64 = 2;

/// What to measure, and where to write it.
#[derive(Args, Debug)]
pub(crate) struct BenchArguments {
    /// Releases of Xen, or all
    #[arg(long, value_name = "RELEASES", default_value = "4.17")]
    pub(crate) xen: Releases,
    /// Count the pure parts on this host under valgrind instead
    #[arg(long, conflicts_with_all = ["vs", "html"])]
    pub(crate) host: bool,
    /// Also measure this system on the same Xen, and compare
    #[arg(long, value_enum)]
    pub(crate) vs: Option<Rival>,
    /// Fail if a count is above the baseline by more than `--within` says
    #[arg(long)]
    pub(crate) check: bool,
    /// Percent that a count may be above the baseline
    #[arg(long, value_name = "PERCENT", requires = "check", default_value_t = WITHIN)]
    pub(crate) within: u64,
    /// Take this file for the baseline, instead of the one in the repository
    #[arg(long, value_name = "FILE", requires = "check")]
    pub(crate) baseline: Option<PathBuf>,
    /// Make what is measured the baseline
    #[arg(long, conflicts_with = "check")]
    pub(crate) update: bool,
    /// Write everything to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write an HTML page with plots to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

/// What to test.
#[derive(Args, Debug)]
pub(crate) struct TestArguments {
    /// Stop before real Xen
    #[arg(long)]
    pub(crate) quick: bool,
    /// Releases of Xen, or "all", whose toolstacks lead guests through their whole lives;
    /// takes minutes for each [default: all, with the lives on 4.17 alone]
    #[arg(long, value_name = "RELEASES")]
    xen: Option<Releases>,
    /// Boot this ELF instead of the project's unikernel
    #[arg(long, value_name = "ELF")]
    pub(crate) kernel: Option<PathBuf>,
}

impl TestArguments {
    /// Returns the releases to test.
    pub(crate) fn releases(&self) -> &[Release] {
        self.xen.as_ref().map_or(Release::value_variants(), |named| &named.0)
    }

    /// Returns whether the whole life of a guest is tested on a release of them.
    pub(crate) fn has_lives(&self, release: Release) -> bool {
        self.xen.is_some() || release == Release::Xen4_17
    }
}

/// A device that the machine can have.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum DeviceName {
    /// QEMU's teaching device, with a DMA engine of 28 address bits
    Edu,
    /// A virtio network card in a network that reaches nobody
    Net,
}

/// What the unikernel is compared with.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Rival {
    /// Debian's Linux as PV guest
    Linux,
}

/// Which checks.
#[derive(Args, Debug)]
pub(crate) struct CheckArguments {
    /// The checks, in the order in which they are run
    #[arg(value_enum, required = true)]
    pub(crate) what: Vec<What>,
    /// Only this part of the mutants: k/n, k from 0
    #[arg(long, value_name = "K/N")]
    pub(crate) shard: Option<String>,
    /// Only the mutants in tests/mutants
    #[arg(long, conflicts_with = "shard")]
    named: bool,
    /// Only the mutants in tests/mutants with one of these words in their name or as their
    /// package
    #[arg(long, value_name = "WORDS", conflicts_with = "shard")]
    name: Option<String>,
    /// Compare the interfaces with this revision's [default: the last tag]
    #[arg(long, value_name = "REVISION")]
    pub(crate) since: Option<String>,
}

impl CheckArguments {
    /// Returns what the names of mutants have to contain, if only those with a name are tried.
    pub(crate) fn named(&self) -> Option<&str> {
        self.name.as_deref().or_else(|| self.named.then_some(""))
    }
}

/// A check on demand.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum What {
    /// Each crate can be packaged and built from its package
    Package,
    /// Licences, sources and duplicates of dependencies
    Licences,
    /// The version says what changed since the last release
    Semver,
    /// Every operation under every pair of refusals: an hour
    Pairs,
    /// The same with each access to a frame that fails beside a refusal: many hours
    Accesses,
    /// Properties of random input, half a minute each
    Properties,
    /// Whether tests notice wrong code: random changes in hypercall, p2m and early-pgt, and
    /// those in tests/mutants
    Mutants,
    /// Unit tests in an interpreter that checks the language's rules
    Miri,
    /// Tests with AddressSanitizer
    Asan,
    /// A short run of each fuzz target
    Fuzz,
}

/// Where to test.
#[derive(Args, Debug)]
pub(crate) struct HostArguments {
    /// The dom0: xl must work there, for root or with sudo
    #[arg(long, value_name = "USER@DOM0", value_parser = host,
          required_unless_present = "rehearse")]
    pub(crate) host: Option<String>,
    /// Use an emulated machine instead, over loopback
    #[arg(long, conflicts_with_all = ["host", "ssh"])]
    pub(crate) rehearse: bool,
    /// The ssh to use, with its options
    #[arg(long, value_name = "COMMAND", default_value = "ssh")]
    pub(crate) ssh: String,
    /// Boot this ELF instead of the project's unikernel
    #[arg(long, value_name = "ELF")]
    pub(crate) kernel: Option<PathBuf>,
}

/// Returns a word that ssh takes as a host, and not as an option.
fn host(word: &str) -> Result<String, String> {
    let is_host = !word.is_empty() && !word.starts_with('-') && !word.contains(char::is_whitespace);
    is_host.then(|| word.to_owned()).ok_or_else(|| "not a host: expected USER@DOM0".to_owned())
}

/// What the guest runs on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Machine {
    /// Real Xen under QEMU
    Xen,
    /// The executable model of Xen, on this host
    Model,
}

/// The guest's role on real Xen. What works as one only is not done.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Role {
    /// Xen boots the guest itself (seconds)
    Dom0,
    /// A Linux dom0 creates the guest with xl
    Domu,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Dom0 => "dom0",
            Self::Domu => "domU",
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn run_arguments(words: &[&str]) -> Result<RunArguments, clap::Error> {
        let words = ["cargo xtask", "run"].iter().chain(words);
        Cli::try_parse_from(words).map(|cli| match cli.command {
            Command::Run(arguments) => arguments,
            other => panic!("not a run: {other:?}"),
        })
    }

    #[test]
    fn releases_are_named_or_all() {
        let all = Release::value_variants();
        assert_eq!("all".parse(), Ok(Releases(all.to_vec())));
        assert_eq!("4.20,4.14".parse(), Ok(Releases(vec![Release::Xen4_20, Release::Xen4_14])));
        assert!("4.17,".parse::<Releases>().is_err());
        assert!("4.18".parse::<Releases>().is_err());
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_bare_run_is_the_demo_as_dom0_on_4_17() {
        let run = run_arguments(&[]).unwrap();
        assert_eq!((run.on, run.role, run.xen), (Machine::Xen, Role::Dom0, Release::Xen4_17));
        assert_eq!((run.mem, run.vcpus, run.program), (256, 1, vec!["demo".to_owned()]));
    }

    #[test]
    fn words_after_the_program_belong_to_the_guest() {
        let run = run_arguments(&["--mem", "33", "bench", "--mem", "5", "-x"]).unwrap();
        assert_eq!(run.mem, 33);
        assert_eq!(run.program, ["bench", "--mem", "5", "-x"]);
        assert_eq!(run.what(), "bench --mem 5 -x");
        assert_eq!(run_arguments(&["--kernel", "a/guest"]).unwrap().what(), "guest");
    }

    #[test]
    fn an_unknown_xen_release_is_refused_and_the_known_ones_are_named() {
        let error = run_arguments(&["--xen", "4.99"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        for word in ["4.99", "4.14", "4.17", "4.20"] {
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn a_cpu_is_named_as_qemu_names_it() {
        assert_eq!(run_arguments(&[]).unwrap().cpu, None);
        let run = run_arguments(&["--cpu", "qemu64,-nx", "rights"]).unwrap();
        assert_eq!((run.cpu.as_deref(), run.lacks_nx()), (Some("qemu64,-nx"), true));
        let run = run_arguments(&["--cpu=Nehalem", "--as", "domu"]).unwrap();
        assert_eq!((run.cpu.as_deref(), run.lacks_nx()), (Some("Nehalem"), false));
    }

    #[test]
    fn instructions_are_counted_on_request_only() {
        assert!(!run_arguments(&[]).unwrap().icount);
        assert!(run_arguments(&["--icount", "bench"]).unwrap().icount);
    }

    #[test]
    fn a_bench_is_checked_within_two_percent_or_as_many_as_are_named() {
        let within = |words: &[&str]| {
            let words = ["cargo xtask", "bench"].iter().chain(words);
            match Cli::try_parse_from(words)?.command {
                Command::Bench(arguments) => Ok::<_, clap::Error>(arguments.within),
                other => panic!("not a bench: {other:?}"),
            }
        };
        assert_eq!(within(&[]).unwrap(), 2);
        assert_eq!(within(&["--check"]).unwrap(), 2);
        assert_eq!(within(&["--check", "--within", "1"]).unwrap(), 1);
        for wrong in [&["--within", "1"][..], &["--check", "--within", "-1"], &["--baseline", "x"]]
        {
            assert!(within(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn all_releases_are_tested_unless_some_are_named_and_on_named_ones_lives_are() {
        let releases = |words: &[&str]| {
            let words = ["cargo xtask", "test"].iter().chain(words);
            let arguments = match Cli::try_parse_from(words)?.command {
                Command::Test(arguments) => arguments,
                other => panic!("not a test: {other:?}"),
            };
            let all = arguments.releases().iter();
            Ok::<_, clap::Error>(all.map(|it| (*it, arguments.has_lives(*it))).collect::<Vec<_>>())
        };
        let [old, middle, new] = [Release::Xen4_14, Release::Xen4_17, Release::Xen4_20];
        assert_eq!(releases(&[]).unwrap(), [(old, false), (middle, true), (new, false)]);
        let all = [(old, true), (middle, true), (new, true)];
        assert_eq!(releases(&["--xen", "all"]).unwrap(), all);
        assert_eq!(releases(&["--xen", "4.20,4.14"]).unwrap(), [(new, true), (old, true)]);
        for wrong in ["4.99", "", "4.14,all"] {
            assert!(releases(&["--xen", wrong]).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_host_is_never_taken_for_an_option_of_ssh() {
        let parsed = |host: &str| Cli::try_parse_from(["cargo xtask", "host", "--host", host]);
        assert!(parsed("root@dom0").is_ok());
        for word in ["", "-oProxyCommand=x", "a b"] {
            assert!(parsed(word).is_err(), "{word:?}");
        }
    }

    #[test]
    fn zero_virtual_cpus_are_refused() {
        assert!(run_arguments(&["--vcpus", "0"]).is_err());
    }
}
