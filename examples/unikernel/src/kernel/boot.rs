//! From `start_info` to a guest that programs can work with.
//!
//! All that is mapped at first is what the builder mapped: from VIRT_BASE on, one page for each
//! pfn, up to the 4 MiB behind its boot stack. Crate early-pgt makes the direct mapping of all
//! memory from there.

use core::sync::atomic::{AtomicU64, Ordering};

use alloc::string::String;

use early_pgt::MapExtent;
use hypercall::start_info::{BootInfo, Module, StartInfo};
use hypercall::xen::{Xen, try_load};
use hypercall::{FrameAccess as _, GuestVa, Level, Mfn, PAGE_SHIFT, Pfn};
use p2m::{Guest, P2m, Pfns, walk};
use spin::Once;
use x86_64::VirtAddr;

use crate::direct_map::{self, Boot, Built, DIRECT_MAP, Image, Takeover, VIRT_BASE};

/// Where Xen lets every guest read M2P (`HYPERVISOR_VIRT_START`, 64-bit).
const M2P_START: u64 = 0xffff_8000_0000_0000;

/// The pfn of a page of the image.
pub(super) fn image_pfn(va: GuestVa) -> Option<Pfn> {
    va.raw().checked_sub(VIRT_BASE).map(|offset| Pfn::new(offset >> PAGE_SHIFT))
}

/// What is known before the machine is.
pub(super) struct Early {
    /// The page that the builder filled, and a toolstack fills again after a restore.
    pub(super) start_info: *const StartInfo,
    /// What was in it at first.
    pub(super) built: StartInfo,
    pub(super) boot: BootInfo,
    pub(super) direct_map: GuestVa,
    /// The builder's list, until it has moved.
    built_list: &'static [AtomicU64],
    /// The same as a frame map.
    built_p2m: P2m<'static>,
    /// Of the same list in frames of the kernel's.
    moved_p2m: Once<P2m<'static>>,
    /// What the clock showed when the kernel was entered.
    pub(super) entered: u64,
}

// SAFETY: the pointer is only ever read from by the code that suspends, which is one vCPU's.
unsafe impl Send for Early {}
// SAFETY: as above.
unsafe impl Sync for Early {}

static KNOWN: Once<Early> = Once::new();

impl Early {
    /// The root that the kernel runs on: its own, once there is one.
    pub(super) fn root(&self) -> Pfn {
        match ROOT.load(Ordering::Acquire) {
            BUILDERS => Pfn::new((self.boot.root.raw() - VIRT_BASE) >> PAGE_SHIFT),
            own => Pfn::new(own),
        }
    }

    /// The frame map, wherever its list is now.
    pub(super) fn p2m(&self) -> &P2m<'static> {
        self.moved_p2m.get().unwrap_or(&self.built_p2m)
    }

    /// The guest as it is now, on `machine`: Xen, or something around it.
    pub(super) fn guest<'a, M>(&'a self, machine: &'a M) -> Guest<'a, M> {
        // SAFETY: the guest's frame map, and the root that its kernel runs on.
        unsafe { Guest::new(machine, self.p2m(), self.root()) }
    }
}

/// What [`parse`] found, if it has run.
pub(super) fn known() -> Option<&'static Early> {
    KNOWN.get()
}

/// Reads what the builder left, once.
///
/// # Panics
/// If it makes no sense: then this is no PV guest, and there is nothing to run in.
pub(super) fn parse(start_info: *const StartInfo) -> &'static Early {
    KNOWN.call_once(|| read(start_info))
}

/// What the builder, or a toolstack that restored the guest, wrote into the page.
///
/// # Safety
/// `page` is the page that Xen named at the guest's entry.
pub(super) unsafe fn start_info(page: *const StartInfo) -> StartInfo {
    // SAFETY: the page stays mapped, is aligned and has no values that are none; nobody writes it
    // while the guest runs.
    unsafe { page.read_volatile() }
}

fn read(page: *const StartInfo) -> Early {
    // SAFETY: reading the time-stamp counter has no other effect, and Xen allows it.
    let entered = unsafe { core::arch::x86_64::_rdtsc() };
    // SAFETY: the address comes from the guest's entry.
    let start_info = unsafe { start_info(page) };
    let boot = match BootInfo::parse(&start_info) {
        Ok(boot) => boot,
        Err(error) => panic!("{error}"),
    };
    let Ok(direct_map) = GuestVa::new(VIRT_BASE) else { panic!("VIRT_BASE is Xen's") };
    let list: *const AtomicU64 = boot.p2m_list.addr().as_ptr();
    let Ok(len) = usize::try_from(boot.pages) else { panic!("more pages than addresses") };
    // SAFETY: the builder mapped `nr_pages` words there (public/xen.h), which stay until
    // `move_list`, behind which nobody reads them; whoever changes them does so by atomic stores.
    let list = unsafe { core::slice::from_raw_parts(list, len) };
    // SAFETY: the builder's own list of this domain, for the Xen that runs it; nobody writes it but
    // through this map.
    match unsafe { P2m::adopt(list) } {
        Ok(built_p2m) => {
            let moved_p2m = Once::new();
            Early {
                start_info: page,
                built: start_info,
                boot,
                direct_map,
                entered,
                built_list: list,
                built_p2m,
                moved_p2m,
            }
        }
        Err(error) => panic!("{error}"),
    }
}

/// The address of a page that the builder made and mapped, by its mfn.
pub(super) fn builder_page(mfn: Mfn, direct_map: GuestVa) -> Option<GuestVa> {
    let pfn = try_load(VirtAddr::try_new(M2P_START + mfn.raw() * 8).ok()?)?;
    direct_map.checked_add_pages(pfn).ok()
}

/// The machine, with the direct mapping as far as it goes: at first, as far as the builder's tables
/// do.
///
/// # Panics
/// If Xen does not say where M2P is, or the builder's own tables cannot be read.
pub(super) fn machine(early: &Early) -> Xen {
    let surely_mapped = early.root().raw() + early.boot.table_frames;
    // SAFETY: the builder mapped everything from pfn 0 to its tables at VIRT_BASE, in this order
    // (spec 6.2, 6.3); the trap table is installed.
    let xen = match unsafe { Xen::new(early.direct_map, surely_mapped) } {
        Ok(xen) => xen,
        Err(error) => panic!("{error}"),
    };
    let reach = REACH.load(Ordering::Acquire);
    if let (1.., Ok(start)) = (reach, GuestVa::new(DIRECT_MAP)) {
        // SAFETY: the mapping is there: `map_memory` says how far.
        unsafe { xen.set_direct_map(start, reach) };
        return xen;
    }
    let mut end = surely_mapped;
    while end < early.boot.pages && maps(&xen, early, Pfn::new(end)) {
        end += 1;
    }
    // SAFETY: each of these pages has just been seen to map its pfn.
    unsafe { xen.set_mapped_frames(end) };
    xen
}

/// Whether the builder's tables map `pfn` at its place in the direct mapping.
fn maps(xen: &Xen, early: &Early, pfn: Pfn) -> bool {
    let guest = early.guest(xen);
    let Ok(va) = early.direct_map.checked_add_pages(pfn.raw()) else { return false };
    let entry = walk(&guest, guest.kernel_root(), va).ok().and_then(|walk| walk.at(Level::L1));
    entry.is_some_and(|step| step.pte.is_present() && early.p2m().mfn(pfn) == Ok(step.pte.mfn()))
}

/// Maps all memory, and gives all of it that is free to an allocator.
///
/// # Errors
/// A sentence.
pub(super) fn map_memory(early: &'static Early, xen: &Xen, boot: Boot) -> Result<Built, String> {
    let pfn = |va: u64| Pfn::new((va - VIRT_BASE) >> PAGE_SHIFT);
    let [start, constants, data, end] = [
        &raw const kernel_start,
        &raw const kernel_rodata_start,
        &raw const kernel_data_start,
        &raw const kernel_end,
    ]
    .map(|symbol| pfn(symbol as u64));
    let run = |start: Pfn, end: Pfn| Pfns::new(start, end.offset_from(start).unwrap_or(0));
    let image = Image {
        mapped: xen.mapped_frames(),
        text: run(start, constants),
        constants: run(constants, data),
        data: run(data, end),
        start_info: pfn(early.start_info as u64),
        boot,
    };
    // SAFETY: this is called once. What the builder made is in `start_info`; its stack is not used
    // any more, no Rust object is in memory that the image does not hold (I-1), and the linker
    // script has all code in front of the constants and those in front of the rest.
    let built = unsafe {
        direct_map::build(&early.guest(xen), &early.boot, &image, &Booting { early, xen })
    }?;
    if boot != Boot::OnBuilderTables {
        ROOT.store(built.made.root.map_or(BUILDERS, Pfn::raw), Ordering::Release);
    }
    Ok(built)
}

/// The kernel while it takes over its memory.
struct Booting<'a> {
    early: &'static Early,
    xen: &'a Xen,
}

impl Takeover<'static> for Booting<'_> {
    fn mapped(&self, reach: MapExtent) {
        REACH.store(reach.end, Ordering::Release);
        // SAFETY: early-pgt has just linked the tables that map all of this (I-3).
        unsafe { self.xen.set_direct_map(reach.start, reach.end) };
    }

    fn move_list(&self, to: Pfns) -> Result<&'static P2m<'static>, String> {
        let early = self.early;
        let start =
            self.xen.direct_map(to.start).map_err(|error| alloc::format!("list: {error}"))?;
        let words = start.addr().as_mut_ptr::<u64>();
        for (at, word) in early.built_list.iter().enumerate() {
            // SAFETY: the frames have just left the pool, and hold a word for each pfn (I-1); the
            // direct mapping shows them one after the other.
            unsafe { words.wrapping_add(at).write(word.load(Ordering::Relaxed)) };
        }
        // SAFETY: these are the words, aligned to a page; nothing else uses the frames, which keep
        // their place in the direct mapping, and from here on all writes are atomic (I-8).
        let list = unsafe {
            core::slice::from_raw_parts(words.cast::<AtomicU64>(), early.built_list.len())
        };
        // SAFETY: a true copy of the builder's list, which nothing has changed since.
        let p2m = unsafe { P2m::adopt(list) }.map_err(|error| alloc::format!("list: {error}"))?;
        Ok(early.moved_p2m.call_once(|| p2m))
    }
}

unsafe extern "C" {
    /// First byte of the image (linker script).
    static kernel_start: u8;
    /// First byte after its code.
    static kernel_rodata_start: u8;
    /// First byte of it that may be written.
    static kernel_data_start: u8;
    /// First byte after it.
    static kernel_end: u8;
}

/// How far the direct mapping reaches, once there is one.
static REACH: AtomicU64 = AtomicU64::new(0);

/// The kernel runs on the builder's root: no pfn, as every one can be that of a root.
const BUILDERS: u64 = u64::MAX;

/// The pfn of the kernel's own root, once it runs on it.
static ROOT: AtomicU64 = AtomicU64::new(BUILDERS);

/// The boot module, if it is mapped.
pub(super) fn module(boot: &BootInfo) -> Option<&'static [u8]> {
    let Module::Mapped { start, len_bytes } = boot.module else { return None };
    let len = usize::try_from(len_bytes).ok()?;
    // SAFETY: the builder mapped the module there (public/xen.h), in frames that nothing else uses.
    Some(unsafe { core::slice::from_raw_parts(start.addr().as_ptr(), len) })
}
