//! Makes the direct mapping of all memory, puts the kernel on tables of its own, and gives the
//! allocator all that is free: the same lines on Xen and on the model.
#![expect(unsafe_code, reason = "takes over every free frame of the guest")]

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Display;

use early_pgt::{
    Access, BootMemory, BootRegion, Build, FrameUse, MapExtent, MapPlace, OldList, Plan,
    RegionKind, RoundPlan, UseKind, replace_tables, set_access,
};
use hypercall::middleware::{Counting, Counts, Timed};
use hypercall::start_info::{BootInfo, Console};
use hypercall::{Batch, BatchRuns, Cpu, GuestVa, Machine, MmuExtOp, MmuUpdate, Pfn};
use p2m::{Guest, P2m, Pfns};

use crate::identity;
use crate::pool::Pool;

/// Where the direct mapping begins: the first root slot behind Xen's.
pub(crate) const DIRECT_MAP: u64 = hypercall::XEN_HOLE_END;
/// The most updates that go to Xen at once: a round of some 12 GiB. Larger ones take a hypercall
/// more for each further 16 GiB.
const UPDATES_MAX: usize = 8192;
/// Pfns that a page of the list describes.
const PFNS_PER_PAGE: u64 = 512;

/// How a guest takes over its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Boot {
    /// All of it, on tables of its own.
    Whole,
    /// On the builder's tables, and with its list, which stay in use.
    OnBuilderTables,
    /// All of it, but for the ISA area, where it gives its memory back and maps the machine's own,
    /// as it does with the last 256 KiB below 4 GiB.
    WithIdentity,
}

/// What came of it.
pub(crate) struct Built {
    /// All free frames.
    pub(crate) pool: Pool,
    /// The others.
    pub(crate) made: Made,
}

/// What frames are that are not free, and what all of this took.
#[derive(Default)]
pub(crate) struct Made {
    /// Tables of the direct mapping, and those that were made instead of the builder's.
    pub(crate) tables: Vec<Pfns>,
    /// In use before there was an allocator, and still; and the list.
    pub(crate) uses: Vec<FrameUse>,
    /// Pages below the stacks, which nothing maps.
    pub(crate) guards: Vec<Pfn>,
    /// What the builder made and is free now.
    pub(crate) given_back: Vec<FrameUse>,
    /// What went to Xen for the mapping, and for the kernel's own tables.
    pub(crate) counts: [Counts; 2],
    /// Ticks that the mapping took, and those of them in Xen.
    pub(crate) ticks: [u64; 2],
    /// The same for the kernel's own tables.
    pub(crate) own_ticks: [u64; 2],
    /// The root that the kernel runs on.
    pub(crate) root: Option<Pfn>,
}

impl Made {
    /// Where the frame map's list is.
    pub(crate) fn list(&self) -> Option<Pfns> {
        self.uses.iter().find(|used| is_list(used)).map(|used| used.pfns)
    }
}

fn is_list(used: &FrameUse) -> bool {
    matches!(used.kind, UseKind::List | UseKind::ListAndTables)
}

/// Where pfn 0 is mapped at first (the linker script and the ELF notes say so too).
pub(crate) const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;

/// Where the kernel is.
pub(crate) struct Image {
    /// How many pfns the builder mapped at [`VIRT_BASE`].
    pub(crate) mapped: u64,
    /// Code.
    pub(crate) text: Pfns,
    /// Constants.
    pub(crate) constants: Pfns,
    /// The rest of the image.
    pub(crate) data: Pfns,
    /// The page of `start_info`.
    pub(crate) start_info: Pfn,
    /// What is to become of the memory.
    pub(crate) boot: Boot,
}

/// What a kernel does in the course of it.
pub(crate) trait Takeover<'k> {
    /// Is told after each round how far the mapping reaches.
    fn mapped(&self, reach: MapExtent);

    /// Copies the list into these frames, and gives the frame map that reads it there.
    ///
    /// # Errors
    /// A sentence.
    fn move_list(&self, to: Pfns) -> Result<&'k P2m<'k>, String>;
}

/// What is known of the memory, and room for what goes to Xen.
struct Room<'a> {
    memory: BootMemory<'a>,
    batch: Batch<'a>,
}

/// Maps all memory of the guest, and gives all of it that is free.
///
/// # Errors
/// A sentence.
///
/// # Safety
/// This is called once, and nobody uses a frame but those that `image` and `boot` name. Of those,
/// nothing but code is executed, and neither code nor constants are written.
pub(crate) unsafe fn build<'k, M: Machine + Cpu>(
    guest: &Guest<'_, M>,
    boot: &BootInfo,
    image: &Image,
    takeover: &impl Takeover<'k>,
) -> Result<Built, String> {
    let p2m = guest.p2m();
    let address = |va| GuestVa::new(va).map_err(|error| say(&error));
    let (virt_base, direct_map) = (address(VIRT_BASE)?, address(DIRECT_MAP)?);
    let place = MapPlace { kernel: virt_base, kernel_pages: image.mapped, direct_map };
    let uses = uses(guest, boot, image, place).map_err(|error| say(&error))?;
    let regions = match image.boot {
        Boot::WithIdentity => identity::regions(p2m),
        Boot::Whole | Boot::OnBuilderTables => {
            alloc::vec![BootRegion { pfns: p2m.all(), kind: RegionKind::Ram }]
        }
    };
    let memory = BootMemory::new(&regions, &uses, place).map_err(|error| say(&error))?;
    let plan = Plan::new(&memory).map_err(|error| say(&error))?;
    let room = usize::try_from(plan.updates_max()).unwrap_or(UPDATES_MAX).min(UPDATES_MAX);
    let (mut updates, mut old) = (alloc::vec![MmuUpdate::EMPTY; room], alloc::vec![0; room]);
    let (mut ops, mut runs) = ([MmuExtOp::EMPTY; 3], BatchRuns::new());
    let batch = Batch::within(&mut updates, &mut old, &mut ops, &mut runs);
    let mut room = Room { memory, batch };
    if image.boot == Boot::WithIdentity {
        if !boot.is_dom0 {
            return Err("the machine's frames are dom0's to map: run this with --as dom0".into());
        }
        identity::give_up(guest, virt_base, &mut room.batch)?;
    }
    // SAFETY: the caller gives all frames that nothing names.
    let mut built = unsafe { map(guest, plan, &mut room, takeover) }?;
    if image.boot == Boot::OnBuilderTables {
        for constant in [image.text, image.constants] {
            // SAFETY: nothing writes the kernel's code and constants.
            unsafe { set_access(guest, constant, Access::ReadOnly, &mut room.batch) }
                .map_err(|error| say(&error))?;
        }
        built.made.root = Some(guest.kernel_root());
        built.made.uses.clone_from(&uses);
        return Ok(built);
    }
    let list =
        built.pool.take_run(p2m.len().div_ceil(PFNS_PER_PAGE)).ok_or("no room for a list")?;
    let list = Pfns::new(list.start(), list.count());
    let p2m = takeover.move_list(list)?;
    // SAFETY: it is the same map, in another place.
    let guest = unsafe { Guest::new(guest.machine(), p2m, guest.kernel_root()) };
    // SAFETY: the list has just moved; the rest is the caller's promise.
    unsafe { own_tables(&guest, boot.p2m_list, &mut room, &mut built) }?;
    built.made.uses.push(FrameUse { pfns: list, kind: UseKind::List });
    Ok(built)
}

/// Makes the direct mapping.
///
/// # Safety
/// All frames that nothing names are given.
unsafe fn map<'k, M: Machine + Cpu>(
    guest: &Guest<'_, M>,
    plan: Plan,
    room: &mut Room<'_>,
    takeover: &impl Takeover<'k>,
) -> Result<Built, String> {
    let timed = Timed::new(guest.machine());
    let machine = Counting::new(&timed);
    let guest = guest.with_machine(&machine);
    let begun = timed.ticks();
    // SAFETY: the caller gives all frames that nothing names.
    let mut build = unsafe { Build::begin(&room.memory, plan) };
    while let Some(reach) = build.round(&guest, &mut room.batch).map_err(|error| say(&error))? {
        takeover.mapped(reach);
    }
    let ticks = [timed.ticks().wrapping_sub(begun), timed.ticks_in_requests()];
    let counts = [machine.counts(), Counts::default()];
    let mut pool = Pool::of_pages(room.memory.end());
    if let Some(doubtful) = build.finish(|frames| pool.give_run(frames)) {
        return Err(alloc::format!("direct mapping: {doubtful} may be tables"));
    }
    let tables = plan.rounds().iter().map(RoundPlan::used).collect();
    Ok(Built { pool, made: Made { tables, counts, ticks, ..Made::default() } })
}

/// Puts the kernel on tables of its own.
///
/// # Safety
/// Nobody uses the builder's list, which was at `list`, any more; and as for [`build`].
unsafe fn own_tables<M: Machine + Cpu>(
    guest: &Guest<'_, M>,
    list: GuestVa,
    room: &mut Room<'_>,
    built: &mut Built,
) -> Result<(), String> {
    let Built { pool, made } = built;
    let list = OldList::LeftAt(list);
    let timed = Timed::new(guest.machine());
    let machine = Counting::new(&timed);
    let guest = guest.with_machine(&machine);
    let memory = &room.memory;
    let begun = timed.ticks();
    let frames = pool.take_run(memory.own_tables()).ok_or("no room for tables")?;
    // SAFETY: the frames come from the pool, the list has moved; the rest is the caller's promise.
    let replaced = unsafe {
        replace_tables(&guest, memory, list, frames, &mut room.batch, |run| pool.give_run(run))
    };
    let replaced = replaced.map_err(|error| say(&error))?;
    made.own_ticks = [timed.ticks().wrapping_sub(begun), timed.ticks_in_requests()];
    made.counts[1] = machine.counts();
    made.root = Some(replaced.root);
    made.tables.push(replaced.tables);
    made.given_back = memory.replaced_uses(list).collect();
    made.uses = memory.kept_uses(list).collect();
    Ok(())
}

fn say(error: &dyn Display) -> String {
    alloc::format!("direct mapping: {error}")
}

/// The frames in use.
fn uses<M: Machine>(
    guest: &Guest<'_, M>,
    boot: &BootInfo,
    image: &Image,
    place: MapPlace,
) -> Result<Vec<FrameUse>, early_pgt::EarlyError> {
    let one = |pfn, kind| FrameUse { pfns: Pfns::new(pfn, 1), kind };
    let mut uses = alloc::vec![
        FrameUse { pfns: image.text, kind: UseKind::KernelText },
        FrameUse { pfns: image.constants, kind: UseKind::KernelConstants },
        FrameUse { pfns: image.data, kind: UseKind::KernelData },
        one(image.start_info, UseKind::StartInfo),
    ];
    uses.extend(place.builder_uses(boot)?.into_iter().flatten());
    let store = boot.store.map(|(mfn, _)| mfn);
    let console = match boot.console {
        Console::Hypervisor => None,
        Console::Ring { mfn, .. } => Some(mfn),
    };
    for mfn in store.into_iter().chain(console) {
        uses.push(one(guest.pfn(mfn)?, UseKind::Ring));
    }
    Ok(uses)
}
