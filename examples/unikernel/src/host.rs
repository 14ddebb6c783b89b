//! The same programs on a model of Xen, on this host: what a machine without QEMU can do.
#![expect(unsafe_code, reason = "claims the frames of a guest that exists only in the model")]

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use clap::Parser;
use early_pgt::MapExtent;
use hypercall::middleware::Counting;
use hypercall::shared_info::ArchSharedInfo;
use hypercall::start_info::{BootInfo, StartInfo};
use hypercall::{Assist, Errno, Frames, GuestVa, Hypercalls as _, PAGE_SHIFT, Pfn};
use p2m::{Guest, P2m, Pfns};
use xen_model::{DomainConfig, Flavour, Model, PageType, Release, Role};

use crate::direct_map::{self, Image, Takeover, VIRT_BASE};
use crate::life::Life;
use crate::program::{Kernel, Platform, Ports, Second, Work};
use crate::programs;
use crate::report::{Verdict, print_verdict};

/// Where the real kernel is linked, and where its frames for programs would be.
const IMAGE_START: u64 = 0x100;
/// Pages of the dom0 beside a domU.
const DOM0_PAGES: u64 = 1024;
/// Pages of it, heap and stack included.
const IMAGE_PAGES: u64 = 1200;
/// Pages of its code.
const TEXT_PAGES: u64 = 100;
/// Pages of its constants.
const CONSTANT_PAGES: u64 = 20;

/// Runs a program of the unikernel on a model of Xen.
#[derive(Debug, Parser)]
#[command(name = "unikernel")]
struct Arguments {
    /// Release of Xen: 4.14, 4.17 or 4.20
    #[arg(long, default_value = "4.17", value_parser = release)]
    xen: Release,
    /// The guest's role: dom0 or domu
    #[arg(long = "as", default_value = "dom0", value_parser = role)]
    role: Role,
    /// Memory of the guest
    #[arg(long, value_name = "MIB", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(8..=1 << 20))]
    mem: u32,
    /// Virtual CPUs of the guest
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=32))]
    vcpus: u8,
    /// Decides which machine frames the guest has
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A CPU without NX
    #[arg(long)]
    no_nx: bool,
    /// A file that the guest gets as boot module
    #[arg(long, value_name = "FILE")]
    module: Option<PathBuf>,
    /// Program, and its arguments
    #[arg(value_name = "PROGRAM", default_value = "demo", trailing_var_arg = true)]
    program: Vec<String>,
}

fn release(word: &str) -> Result<Release, String> {
    match word {
        "4.14" => Ok(Release::V4_14),
        "4.17" => Ok(Release::V4_17),
        "4.20" => Ok(Release::V4_20),
        _ => Err("there are 4.14, 4.17 and 4.20".into()),
    }
}

fn role(word: &str) -> Result<Role, String> {
    match word {
        "dom0" => Ok(Role::Dom0),
        "domu" => Ok(Role::DomU),
        _ => Err("there are dom0 and domu".into()),
    }
}

/// Prints what the program prints; exit status 0 if it passed, 1 if not, 2 if it could not be run.
pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let module = match arguments.module.as_ref().map(std::fs::read).transpose() {
        Ok(module) => module,
        Err(error) => {
            eprintln!("error: reading the module: {error}");
            return ExitCode::from(2);
        }
    };
    let mut console = Stdout(String::new());
    let platform = ModelPlatform::default();
    let verdict = run(&arguments, module.as_deref(), &platform, &mut console);
    let written = print_verdict(&mut console, &verdict);
    print!("{}", console.0);
    ExitCode::from(u8::from(verdict.is_err() || written.is_err()))
}

/// What is printed, in one piece at the end.
struct Stdout(String);

impl core::fmt::Write for Stdout {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.0.push_str(text);
        if self.0.len() > 1 << 16 {
            print!("{}", self.0);
            self.0.clear();
        }
        Ok(())
    }
}

fn run(
    arguments: &Arguments,
    module: Option<&[u8]>,
    platform: &dyn Platform,
    console: &mut Stdout,
) -> Verdict {
    let say = |error: &dyn core::fmt::Display| error.to_string();
    let name = arguments.program.first().map_or("demo", String::as_str);
    let program = programs::named::<xen_model::Vcpu<'_>>(name)?;
    let rest = arguments.program.get(1..).unwrap_or_default().join(" ");

    let mut config = DomainConfig::new(arguments.role, u64::from(arguments.mem) * 256);
    config.kernel_pages = IMAGE_START + IMAGE_PAGES;
    let mut builder = Model::builder().release(arguments.xen).flavour(Flavour::Release);
    if arguments.role == Role::DomU {
        builder = builder.other(DomainConfig::new(Role::Dom0, DOM0_PAGES));
    }
    if arguments.no_nx {
        builder = builder.no_nx();
    }
    config.vcpus = arguments.vcpus.into();
    let model = builder.seed(arguments.seed).guest(config).build().map_err(|error| say(&error))?;
    model.enable_assist(Assist::WritablePageTables).map_err(|error| say(&error))?;

    let start_info: StartInfo = model.guest().start_info().ok_or("the model has no start_info")?;
    let boot = BootInfo::parse(&start_info).map_err(|error| say(&error))?;
    let list: Vec<AtomicU64> = (0..boot.pages)
        .map(|pfn| model.guest().built_mfn(Pfn::new(pfn)).map_or(u64::MAX, |mfn| mfn.raw()))
        .map(AtomicU64::new)
        .collect();
    // SAFETY: the model's builder made the list, and nobody else writes it.
    let p2m = unsafe { P2m::adopt(&list) }.map_err(|error| say(&error))?;
    let first = model.guest();
    let second = (arguments.vcpus > 1).then_some(ModelSecond { first });
    let pfn = |va: u64| Pfn::new((va - VIRT_BASE) >> PAGE_SHIFT);
    let mapped = |pages: u64| {
        pages < boot.pages && model.guest().l1_slot(VIRT_BASE + (pages << PAGE_SHIFT)).is_some()
    };
    let image = Image {
        mapped: (0..).find(|pages| !mapped(*pages)).unwrap_or(0),
        text: Pfns::new(Pfn::new(IMAGE_START), TEXT_PAGES),
        constants: Pfns::new(Pfn::new(IMAGE_START + TEXT_PAGES), CONSTANT_PAGES),
        data: Pfns::new(
            Pfn::new(IMAGE_START + TEXT_PAGES + CONSTANT_PAGES),
            IMAGE_PAGES - TEXT_PAGES - CONSTANT_PAGES,
        ),
        start_info: pfn(model.guest().start_info_address()),
        boot: programs::boot_of(name),
    };
    let takeover = ModelTakeover { guest: model.guest(), p2m: &p2m };
    let root = pfn(boot.root.raw());
    // SAFETY: the model's guest, its frame map, and the root that its builder made.
    let guest = unsafe { Guest::new(&model, &p2m, root) };
    // SAFETY: frames of the model's guest, taken over once; no Rust object is ever in them (I-1).
    let built = unsafe { direct_map::build(&guest, &boot, &image, &takeover) }?;
    let root = built.made.root.ok_or("the kernel has no root")?;
    let machine = Counting::new(&first);
    // SAFETY: the same guest, on a root of its own.
    let guest = unsafe { Guest::new(&machine, &p2m, root) };
    let mut kernel = Kernel {
        guest,
        cpu: &first,
        boot,
        pool: built.pool,
        made: built.made,
        arguments: &rest,
        module,
        console,
        platform,
        second: second.as_ref().map(|second| second as _),
    };
    kernel.say_what_is_missing()?;
    let verdict = program(&mut kernel);
    if name == "prove" {
        print_transitions(console, &model).map_err(|error| say(&error))?;
    }
    verdict
}

/// The model's guest as it takes over its memory. Its list is the host's, and stays there.
struct ModelTakeover<'k> {
    guest: xen_model::Vcpu<'k>,
    p2m: &'k P2m<'k>,
}

impl<'k> Takeover<'k> for ModelTakeover<'k> {
    fn mapped(&self, reach: MapExtent) {
        self.guest.set_direct_map(reach.start, reach.end);
    }

    fn move_list(&self, _: Pfns) -> Result<&'k P2m<'k>, String> {
        Ok(self.p2m)
    }
}

/// What the model's guest has besides memory: words that no toolstack reads.
#[derive(Default)]
struct ModelPlatform {
    shared_info: ArchSharedInfo,
}

impl Platform for ModelPlatform {
    fn shared_info(&self) -> Result<&ArchSharedInfo, String> {
        Ok(&self.shared_info)
    }

    fn words(&self, _: GuestVa) -> Option<NonNull<AtomicU64>> {
        None
    }

    fn wait(&self) {
        std::thread::yield_now();
    }

    fn pfn_at(&self, _: usize) -> Option<Pfn> {
        None
    }

    fn ports(&self) -> Result<&dyn Ports, String> {
        Err("the model has no devices".into())
    }

    fn life(&self) -> Result<Box<dyn Life>, String> {
        Err("the model has no toolstack: run this on Xen, with --as domu".into())
    }

    // The heap is this host's.
    fn extend_heap(&self, frames: Frames) -> Result<(), Frames> {
        Err(frames)
    }

    fn shrink_heap(&self) -> Option<Frames> {
        None
    }

    /// Programs that grow end before this: they have no window here.
    unsafe fn direct_map_reaches(&self, _: u64) {}
}

/// The model's second vCPU. There is one thread: what goes on side by side takes turns.
struct ModelSecond<'m> {
    first: xen_model::Vcpu<'m>,
}

impl<'m> ModelSecond<'m> {
    fn vcpu(&self) -> Option<xen_model::Vcpu<'m>> {
        self.first.model().vcpu(self.first.domain(), 1)
    }
}

impl<'m> Second<xen_model::Vcpu<'m>> for ModelSecond<'m> {
    fn start(&self) -> Result<(), String> {
        let vcpu = self.vcpu().ok_or("the model has no vCPU 1")?;
        let root = self.first.kernel_root().ok_or("the first vCPU has no root")?;
        match vcpu.initialise(root, None) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(format!("vCPU 1: {errno}")),
        }
    }

    fn stop(&self) -> Result<(), String> {
        Ok(())
    }

    fn once(&self, work: &mut Work<'_, xen_model::Vcpu<'m>>) {
        self.vcpu().iter().for_each(work);
    }

    fn beside(&self, work: &mut Work<'_, xen_model::Vcpu<'m>>, meanwhile: &mut dyn FnMut()) {
        self.once(work);
        meanwhile();
        self.once(work);
    }
}

/// How often frames went from one type to another: Xen does not tell, the model does. Descriptor
/// tables are left out, no program makes any.
fn print_transitions(console: &mut Stdout, model: &Model) -> core::fmt::Result {
    let counts = model.statistics().transitions;
    let types = PageType::ALL.into_iter().filter(|kind| *kind != PageType::SegDesc);
    for from in types.clone() {
        for to in types.clone().filter(|to| *to != PageType::None) {
            let count = counts[from as usize][to as usize];
            writeln!(console, "T {} {} {count}", from.name(), to.name())?;
        }
    }
    Ok(())
}

/// Runs a program as a domU of 16 MiB on the model, under `platform`, after further options; also
/// what it printed.
#[cfg(test)]
pub(crate) fn run_under(platform: &dyn Platform, words: &[&str]) -> (Verdict, String) {
    let words = ["unikernel", "--as", "domu", "--mem", "16"].iter().chain(words);
    let mut console = Stdout(String::new());
    let verdict = run(&Arguments::parse_from(words), None, platform, &mut console);
    (verdict, console.0)
}
