//! `mapper`: a program written for the `x86_64` crate's `OffsetPageTable`, which flushes whatever
//! it changes itself, on the address space that runs. Its `invlpg` is an exception to a kernel
//! under Xen, which goes on behind it; its loads of CR3 are emulated. Either way what it has
//! changed is in effect.
#![expect(
    unsafe_code,
    clippy::disallowed_types,
    reason = "uses the unsafe methods and the frames of the x86_64 crate, as such programs do"
)]

use alloc::format;
use alloc::string::String;

use hypercall::{BatchStorage, Cpu, FrameSource, GuestVa, Machine};
use pvmmu::mapper::LiveMapper;
use pvmmu::{Pgd, TablePool, Tools};
use x86_64::structures::paging::mapper::{Mapper, MapperFlush, MapperFlushAll, Translate};
use x86_64::structures::paging::{FrameAllocator, Page, PageTableFlags, PhysFrame, Size4KiB};
use x86_64::{PhysAddr, VirtAddr};

use super::life::{load, load_kernel, tools};
use super::{OrSay, all_are_back};
use crate::pool::Pool;
use crate::program::{Kernel, Platform};
use crate::report::Verdict;

const READ_ONLY: PageTableFlags = PageTableFlags::PRESENT.union(PageTableFlags::NO_EXECUTE);
const WRITABLE: PageTableFlags = READ_ONLY.union(PageTableFlags::WRITABLE);
const START: u64 = 1 << 34;
/// Under tables of its own.
const APART: u64 = START + (1 << 30);

/// Runs the program.
pub(super) fn run<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Verdict {
    let free = kernel.pool.len();
    let (cpu, platform) = (kernel.cpu, kernel.platform);
    let (guest, pool) = (kernel.guest, &mut kernel.pool);
    let mut storage = BatchStorage::<64, 16>::new();
    let mut batch = storage.batch();
    let pgd = Pgd::new(&mut Tools::new(guest, pool)).or_say("new")?;
    let mut pgd = pgd.pin(&guest, &mut batch).or_say("pin")?;
    load(&guest, &pgd)?;
    let mapper = LiveMapper::new(guest, &mut pgd, &mut batch);
    let flushes = Flushes { platform, exceptions: 0, privileged: true };
    let told = Program { mapper, frames: Frames(&mut *pool), cpu, flushes }.run();
    load_kernel(&guest)?;
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    pgd.destroy(&mut tools(&guest, &mut batch, &mut tables, pool)).or_say("destroy")?;
    let told = told?;
    all_are_back(kernel, free)?;
    Ok(told)
}

/// Frames of the pool, by their pseudo-physical addresses.
struct Frames<'p>(&'p mut Pool);

// SAFETY: every frame leaves the pool once.
unsafe impl FrameAllocator<Size4KiB> for Frames<'_> {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        let pfn = FrameSource::take(self.0)?.pfn();
        Some(PhysFrame::containing_address(PhysAddr::new(pfn.raw() * 4096)))
    }
}

/// Flushes as the program asks for them, where there is a CPU that it runs on.
struct Flushes<'p> {
    platform: &'p dyn Platform,
    exceptions: u64,
    privileged: bool,
}

impl Flushes<'_> {
    fn page(&mut self, flush: MapperFlush<Size4KiB>) {
        self.run(|| flush.flush());
    }

    fn all(&mut self, flush: MapperFlushAll) {
        self.run(|| flush.flush_all());
    }

    fn run(&mut self, flush: impl FnOnce()) {
        let mut flush = Some(flush);
        let exceptions = self.platform.privileged(&mut || {
            flush.take().into_iter().for_each(|flush| flush());
        });
        self.privileged &= exceptions.is_some();
        self.exceptions += exceptions.unwrap_or(0);
    }
}

fn page(start: u64, number: u64) -> Page {
    Page::containing_address(VirtAddr::new(start + number * 4096))
}

/// What the CPU may do in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum May {
    Fault,
    Load,
    Store,
}

/// The program, and how it is watched.
struct Program<'p, M, T> {
    mapper: T,
    frames: Frames<'p>,
    cpu: &'p M,
    flushes: Flushes<'p>,
}

impl<M: Cpu, T: Mapper<Size4KiB> + Translate> Program<'_, M, T> {
    fn run(mut self) -> Verdict {
        for number in 0..4 {
            self.map(page(START, number), WRITABLE, WRITABLE)?;
            self.expect(page(START, number), May::Store, "a new page")?;
        }
        self.protect_and_unmap()?;
        self.change_tables()?;
        let Flushes { exceptions, privileged, .. } = self.flushes;
        match (privileged, exceptions) {
            (true, 0) => Err("no flush of a page was an exception".into()),
            (true, count) => Ok(format!("whatever it flushes: {count} times invlpg was skipped")),
            (false, _) => Ok("with its flushes left out".into()),
        }
    }

    fn map(
        &mut self,
        page: Page,
        flags: PageTableFlags,
        parents: PageTableFlags,
    ) -> Result<(), String> {
        let frame = self.frames.allocate_frame().ok_or("the pool is empty")?;
        self.map_frame(page, frame, flags, parents)
    }

    fn map_frame(
        &mut self,
        page: Page,
        frame: PhysFrame,
        flags: PageTableFlags,
        parents: PageTableFlags,
    ) -> Result<(), String> {
        // SAFETY: the frame is free.
        let mapped = unsafe {
            self.mapper.map_to_with_table_flags(page, frame, flags, parents, &mut self.frames)
        };
        self.flushes.page(mapped.map_err(|error| format!("map: {error:?}"))?);
        match self.mapper.translate_addr(page.start_address()) {
            Some(address) if address == frame.start_address() => Ok(()),
            other => Err(format!("{page:?} is translated to {other:?}, not {frame:?}")),
        }
    }

    /// Whether loads and stores in a page do what they may.
    fn expect(&self, page: Page, may: May, what: &str) -> Result<(), String> {
        let va = GuestVa::new(page.start_address().as_u64()).or_say("address")?;
        let loads = self.cpu.load(va).is_ok();
        // SAFETY: what the page maps is the program's own.
        let stores = unsafe { self.cpu.store(va, va.raw()) }.is_ok();
        if (loads, stores) == (may != May::Fault, may == May::Store) {
            return Ok(());
        }
        Err(format!("{what}: loads {loads}, stores {stores}"))
    }

    fn protect_and_unmap(&mut self) -> Result<(), String> {
        // SAFETY: nobody writes to the page but to try.
        let flush = unsafe { self.mapper.update_flags(page(START, 1), READ_ONLY) };
        self.flushes.page(flush.map_err(|error| format!("update_flags: {error:?}"))?);
        self.expect(page(START, 1), May::Load, "a page that was made read-only")?;
        let unmapped = self.mapper.unmap(page(START, 2));
        let (frame, flush) = unmapped.map_err(|error| format!("unmap: {error:?}"))?;
        self.flushes.page(flush);
        self.expect(page(START, 2), May::Fault, "a page that was unmapped")?;
        self.map_frame(page(START, 5), frame, WRITABLE, WRITABLE)?;
        self.expect(page(START, 5), May::Store, "its frame elsewhere")
    }

    fn change_tables(&mut self) -> Result<(), String> {
        for flags in [READ_ONLY, WRITABLE.difference(PageTableFlags::NO_EXECUTE)] {
            // SAFETY: nobody uses the pages but to try.
            let flush = unsafe { self.mapper.set_flags_p2_entry(page(START, 0), flags) };
            self.flushes.all(flush.map_err(|error| format!("set_flags_p2_entry: {error:?}"))?);
            let writable = flags.contains(PageTableFlags::WRITABLE);
            let may = if writable { May::Store } else { May::Load };
            self.expect(page(START, 0), may, "a table's flags")?;
        }
        // Tables that are made for a page get the flags that are asked for, and more later.
        self.map(page(APART, 0), WRITABLE, PageTableFlags::PRESENT)?;
        self.expect(page(APART, 0), May::Load, "a page under new tables that are read-only")?;
        let writable = PageTableFlags::PRESENT | PageTableFlags::WRITABLE;
        self.map(page(APART, 1), WRITABLE, writable)?;
        self.expect(page(APART, 1), May::Store, "a page whose tables became writable")?;
        self.expect(page(APART, 0), May::Store, "a page beside it")
    }
}
