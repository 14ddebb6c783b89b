//! System calls, and the clock.
#![expect(unsafe_code, reason = "system calls, and memory that they map")]

use std::ffi::CString;
use std::fs;
use std::io::Error;
use std::ptr::NonNull;

use anyhow::{Context as _, Result, bail};

/// Bytes in a page.
pub(crate) const PAGE: usize = 4096;
/// Pages that one L1 table maps.
pub(crate) const TABLE_PAGES: usize = 512;

/// The time-stamp counter.
pub(crate) fn ticks() -> u64 {
    // SAFETY: every x86-64 CPU has it, and Xen lets PV guests read it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Mounts what the kernel tells of itself.
pub(crate) fn mount_all() -> Result<()> {
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("tracefs", "/trace")] {
        let (name, folder) = (CString::new(kind)?, CString::new(place)?);
        let (name, folder) = (name.as_ptr(), folder.as_ptr());
        // SAFETY: the strings end with a zero and live until the call returns.
        let failed = unsafe { libc::mount(name, folder, name, 0, core::ptr::null()) };
        if failed != 0 {
            return Err(Error::last_os_error()).with_context(|| format!("mounting {place}"));
        }
    }
    // Areas larger than memory: most of them is never touched, or only read.
    fs::write("/proc/sys/vm/overcommit_memory", "1").context("overcommit")
}

/// Restarts the machine, which ends the emulator.
pub(crate) fn end() -> ! {
    loop {
        // SAFETY: this is the only program, and it has nothing left to lose.
        unsafe { libc::reboot(libc::RB_AUTOBOOT) };
    }
}

/// Private memory of this process, from an address that a table begins at.
#[derive(Debug)]
pub(crate) struct Area {
    mapped: NonNull<u8>,
    mapped_bytes: usize,
    start: NonNull<u8>,
    pages: usize,
}

/// How an area comes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fill {
    /// Without any page.
    Empty,
    /// With all its pages, which the same system call maps.
    Populated,
}

impl Area {
    /// Maps an area of so many pages.
    pub(crate) fn map(pages: usize, fill: Fill) -> Result<Self> {
        // An area longer by a table holds an address where a table begins.
        let spare = match fill {
            Fill::Empty => TABLE_PAGES,
            Fill::Populated => 0,
        };
        let mapped_bytes = (pages + spare) * PAGE;
        let populate = if fill == Fill::Populated { libc::MAP_POPULATE } else { 0 };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | populate;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let nowhere = core::ptr::null_mut();
        // SAFETY: a new area at an address that the kernel chooses.
        let mapped = unsafe { libc::mmap(nowhere, mapped_bytes, access, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            bail!("mmap of {pages} pages: {}", Error::last_os_error());
        }
        let mapped = NonNull::new(mapped.cast::<u8>()).context("mmap gave nothing")?;
        let offset = match fill {
            Fill::Empty => mapped.as_ptr().align_offset(TABLE_PAGES * PAGE),
            Fill::Populated => 0,
        };
        // SAFETY: less than the spare table, so inside the area.
        let start = unsafe { mapped.add(offset) };
        Ok(Self { mapped, mapped_bytes, start, pages })
    }

    /// Writes to one page in every `step`.
    pub(crate) fn touch(&self, step: usize) {
        self.touch_some(0..self.pages, step);
    }

    /// Writes to one page in every `step` of these.
    pub(crate) fn touch_some(&self, pages: core::ops::Range<usize>, step: usize) {
        assert!(pages.end <= self.pages, "{pages:?} of {}", self.pages);
        for page in pages.step_by(step) {
            let word = self.start.as_ptr().wrapping_add(page * PAGE);
            // SAFETY: in a page of the area, which nothing else uses and no reference is into.
            unsafe { word.write_volatile(1) };
        }
    }

    /// Lets the kernel map pages `from..to` to be read: each to the page of zeroes.
    pub(crate) fn populate_read(&self, from: usize, to: usize) -> Result<()> {
        const MADV_POPULATE_READ: libc::c_int = 22;
        let (address, bytes) = (self.start.as_ptr().wrapping_add(from * PAGE), (to - from) * PAGE);
        // SAFETY: changes no content.
        match unsafe { libc::madvise(address.cast(), bytes, MADV_POPULATE_READ) } {
            0 => Ok(()),
            _ => Err(Error::last_os_error()).context("populating"),
        }
    }

    /// Gives all pages this access.
    pub(crate) fn protect(&self, access: libc::c_int) -> Result<()> {
        // SAFETY: no reference is into the area.
        match unsafe { libc::mprotect(self.start.as_ptr().cast(), self.pages * PAGE, access) } {
            0 => Ok(()),
            _ => Err(Error::last_os_error()).context("mprotect"),
        }
    }

    /// Unmaps the pages.
    pub(crate) fn unmap(self) -> Result<()> {
        // SAFETY: no reference is into the area, and nobody has its address any more.
        match unsafe { libc::munmap(self.mapped.as_ptr().cast(), self.mapped_bytes) } {
            0 => Ok(()),
            _ => Err(Error::last_os_error()).context("munmap"),
        }
    }
}

/// Forks a child that ends at once, and waits for its end.
pub(crate) fn fork_exit_wait() -> Result<()> {
    // SAFETY: this process has one thread; the child does nothing but end.
    match unsafe { libc::fork() } {
        -1 => Err(Error::last_os_error()).context("fork"),
        // SAFETY: runs nothing of this process's any more.
        0 => unsafe { libc::_exit(0) },
        child => {
            let mut status = 0;
            // SAFETY: the child was just made, and `status` is this function's.
            let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
            if ended != child || status != 0 {
                bail!("waiting for {child}: {ended}, status {status}");
            }
            Ok(())
        }
    }
}
