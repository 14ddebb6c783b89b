//! Pages of a running process: mapped, touched, protected, unmapped.

use anyhow::Result;

use crate::row::{Rows, measure};
use crate::system::{Area, Fill};

/// Pages that a row works on, side by side: the sizes of the unikernel's rows.
const SIZES: [usize; 9] = [1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536];

/// The rows of this file.
pub(crate) fn run(rows: &mut Rows) -> Result<()> {
    // The first use of everything costs more than the later ones.
    one_size(&mut Rows::silent(), 65_536)?;
    for pages in SIZES {
        one_size(rows, pages)?;
    }
    Ok(())
}

fn one_size(rows: &mut Rows, pages: usize) -> Result<()> {
    let touched = || {
        let area = Area::map(pages, Fill::Empty)?;
        area.touch(1);
        Ok(area)
    };
    let (took, counted) = measure(|| Ok(()), |()| Area::map(pages, Fill::Populated), Area::unmap)?;
    rows.print("mmap and populate", "pages", pages, took, counted);
    let (took, counted) = measure(
        || Area::map(pages, Fill::Empty),
        |area| {
            area.touch(1);
            Ok(area)
        },
        Area::unmap,
    )?;
    rows.print("first touch", "pages", pages, took, counted);
    let protect = |access| move |area: Area| area.protect(access).map(|()| area);
    let (took, counted) = measure(touched, protect(libc::PROT_READ), Area::unmap)?;
    rows.print("mprotect to read-only", "pages", pages, took, counted);
    let read_only = || {
        let area = touched()?;
        area.protect(libc::PROT_READ)?;
        Ok(area)
    };
    let (took, counted) =
        measure(read_only, protect(libc::PROT_READ | libc::PROT_WRITE), Area::unmap)?;
    rows.print("mprotect to writable", "pages", pages, took, counted);
    let (took, counted) = measure(touched, Area::unmap, Ok)?;
    rows.print("munmap", "pages", pages, took, counted);
    Ok(())
}
