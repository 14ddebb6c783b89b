//! Makes the direct mapping of all memory, and the allocator of all that is free: the same lines on
//! Xen and on the model.
#![expect(unsafe_code, reason = "takes over every free frame of the guest")]

use alloc::string::String;
use alloc::vec::Vec;

use early_pgt::{
    Access, BootMemory, Build, BuildContext, MapPlace, Mapped, Plan, Region, RegionKind, RoundPlan,
    Use, UseKind, builder_uses, set_access,
};
use hypercall::{Batch, BootInfo, Console, Counting, Cpu, GuestVa, Machine, MmuUpdate, Pfn, Timed};
use p2m::{P2m, Pfns};

use crate::guest::Pool;

/// Where the direct mapping begins: the first root slot behind Xen's.
pub(crate) const DIRECT_MAP: u64 = hypercall::XEN_HOLE_END;
/// The most updates that go to Xen at once: a round of some 12 GiB. Larger ones take a hypercall
/// more for each further 16 GiB.
const UPDATES_MAX: usize = 8192;

/// What came of it.
pub(crate) struct Built {
    /// All free frames.
    pub(crate) pool: Pool,
    /// The others.
    pub(crate) made: Made,
}

/// What frames are that are not free.
#[derive(Default)]
pub(crate) struct Made {
    /// Tables of the direct mapping.
    pub(crate) tables: Vec<Pfns>,
    /// In use before there was an allocator.
    pub(crate) uses: Vec<Use>,
    /// Hypercalls that the mapping took.
    pub(crate) hypercalls: u64,
    /// Ticks that the mapping took, and those of them in Xen.
    pub(crate) ticks: [u64; 2],
}

/// Where pfn 0 is mapped at first (the linker script and the ELF notes say so too).
pub(crate) const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;

/// Where the kernel is.
pub(crate) struct Image {
    /// How many pfns the builder mapped at [`VIRT_BASE`].
    pub(crate) mapped: u64,
    /// Code and constants.
    pub(crate) text: Pfns,
    /// The rest of the image.
    pub(crate) data: Pfns,
    /// The page of `start_info`.
    pub(crate) start_info: Pfn,
}

/// Maps all memory of the guest, and gives all of it that is free. `mapped` is told after each
/// round how far the mapping reaches.
///
/// # Errors
/// A sentence.
///
/// # Safety
/// This is called once, and nobody uses a frame but those that `image` and `boot` name.
pub(crate) unsafe fn build<M: Machine + Cpu>(
    (machine, p2m): (&M, &P2m<'_>),
    (boot, image): (&BootInfo, &Image),
    mut mapped: impl FnMut(Mapped),
) -> Result<Built, String> {
    let say = |error: &dyn core::fmt::Display| alloc::format!("direct mapping: {error}");
    let address = |va| GuestVa::new(va).map_err(|error| say(&error));
    let (kernel, direct_map) = (address(VIRT_BASE)?, address(DIRECT_MAP)?);
    let place = MapPlace { kernel, kernel_pages: image.mapped, direct_map };
    let uses = uses((machine, p2m), (boot, image), place).map_err(|error| say(&error))?;
    let ram = Region { pfns: p2m.all(), kind: RegionKind::Ram };
    let regions = [ram];
    let memory = BootMemory::new(&regions, &uses, place).map_err(|error| say(&error))?;
    let plan = Plan::new(&memory).map_err(|error| say(&error))?;
    let room = usize::try_from(plan.updates_max()).unwrap_or(UPDATES_MAX).min(UPDATES_MAX);
    let (mut updates, mut old) = (alloc::vec![MmuUpdate::EMPTY; room], alloc::vec![0; room]);
    let mut batch = Batch::within(&mut updates, &mut old, &mut []);
    let timed = Timed::new(machine);
    let machine = Counting::new(&timed);
    let root = Pfn::new((boot.root.raw() - VIRT_BASE) >> hypercall::PAGE_SHIFT);
    let context = BuildContext { machine: &machine, p2m, root };
    let begun = timed.ticks();
    // SAFETY: the caller gives all frames that nothing names.
    let mut build = unsafe { Build::begin(&memory, plan) };
    while let Some(reach) = build.round(context, &mut batch).map_err(|error| say(&error))? {
        mapped(reach);
    }
    let ticks = [timed.ticks().wrapping_sub(begun), timed.ticks_in_requests()];
    let hypercalls = machine.counts().hypercalls;
    let mut pool = Pool::of_pages(memory.end());
    build.finish(|frames| pool.give_run(frames));
    // SAFETY: nothing writes the kernel's code and constants, which are one entry each in both
    // mappings.
    unsafe { set_access(context, (image.text, Access::ReadOnly), &mut batch) }
        .map_err(|error| say(&error))?;
    let tables = plan.rounds().iter().map(RoundPlan::used).collect();
    Ok(Built { pool, made: Made { tables, uses, hypercalls, ticks } })
}

/// The frames in use.
fn uses<M: Machine>(
    (machine, p2m): (&M, &P2m<'_>),
    (boot, image): (&BootInfo, &Image),
    place: MapPlace,
) -> Result<Vec<Use>, early_pgt::EarlyError> {
    let one = |pfn, kind| Use { pfns: Pfns::new(pfn, 1), kind };
    let mut uses = alloc::vec![
        Use { pfns: image.text, kind: UseKind::KernelText },
        Use { pfns: image.data, kind: UseKind::KernelData },
        one(image.start_info, UseKind::StartInfo),
    ];
    uses.extend(builder_uses(boot, place)?.into_iter().flatten());
    let store = boot.store.map(|(mfn, _)| mfn);
    let console = match boot.console {
        Console::Hypervisor => None,
        Console::Ring { mfn, .. } => Some(mfn),
    };
    for mfn in store.into_iter().chain(console) {
        uses.push(one(p2m.pfn(machine, mfn)?, UseKind::Ring));
    }
    Ok(uses)
}
