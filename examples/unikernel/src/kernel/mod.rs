//! The bare metal half: from Xen's builder to a program, and out.
#![expect(unsafe_code, reason = "a kernel's entry, faults and memory")]

mod boot;
mod console;
mod entry;
mod events;
mod heap;
mod life;
mod lock;
mod panic;
mod platform;
mod ports;
mod shared_page;
mod stack;
mod traps;
mod vcpus;

use hypercall::middleware::Counting;
use hypercall::start_info::StartInfo;
use hypercall::xen::Xen;
use hypercall::{Assist, Hypercalls};

use crate::direct_map::Boot;
use crate::program::Kernel;
use crate::programs;
use crate::report::{Verdict, print_verdict};
use boot::Early;
use console::Console;
use platform::RealPlatform;
use vcpus::SecondVcpu;

/// Called by the entry code, once, on the boot stack.
extern "C" fn kernel_main(start_info: *const StartInfo) -> ! {
    let early = boot::parse(start_info);
    console::open(&early.boot, early.direct_map);
    traps::install();
    heap::init();
    // Fails only if there is a logger already.
    let _ = log::set_logger(&console::LOGGER);
    log::set_max_level(log::LevelFilter::Info);

    let line = early.built.command_line().trim();
    let (name, arguments) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    match name {
        "hang" => loop {
            Xen::yield_now();
        },
        "fault" if arguments == "call" => traps::call_on_purpose(),
        "fault" if arguments == "overflow" => end(&overflow(early)),
        "fault" => traps::fault_on_purpose(),
        "silent" => Xen::shutdown(console::shutdown_reason()),
        "panic" => panic!("as asked"),
        "" => end(&run(early, "demo", "")),
        _ => end(&run(early, name, arguments)),
    }
}

/// Runs the program called `name`.
fn run(early: &'static Early, name: &str, arguments: &str) -> Verdict {
    let program = programs::named(name)?;
    let xen = boot::machine(early);
    xen.enable_assist(Assist::WritablePageTables).map_err(|error| alloc::format!("{error}"))?;
    let mut console = Console;
    let platform = RealPlatform::new(early, &xen);
    let second = SecondVcpu::find(early, &xen);
    let boot = programs::boot_of(name);
    let mut built = boot::map_memory(early, &xen, boot)?;
    if boot != Boot::OnBuilderTables {
        built.made.guards = stack::guard(&xen)?;
    }
    let machine = Counting::new(&xen);
    let mut kernel = Kernel {
        guest: early.guest(&machine),
        cpu: &xen,
        boot: early.boot,
        pool: built.pool,
        made: built.made,
        arguments,
        module: boot::module(&early.boot),
        console: &mut console,
        platform: &platform,
        second: second.as_ref().map(|second| second as _),
    };
    kernel.say_what_is_missing()?;
    program(&mut kernel)
}

/// Overflows the stack, with all else as a program finds it.
fn overflow(early: &'static Early) -> Verdict {
    let xen = boot::machine(early);
    let _built = boot::map_memory(early, &xen, Boot::Whole)?;
    stack::guard(&xen)?;
    stack::overflow_on_purpose()
}

/// Prints the verdict and ends the guest.
fn end(verdict: &Verdict) -> ! {
    // A console that refuses the verdict refuses its own error too.
    let _ = print_verdict(&mut Console, verdict);
    Xen::shutdown(console::shutdown_reason())
}
