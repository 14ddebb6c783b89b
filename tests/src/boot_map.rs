//! The plan of the boot mapping, for guests of any size.

use early_pgt::{
    BootMemory, BootRegion, EarlyError, FrameUse, MapPlace, Plan, RegionKind, UseKind,
};
use hypercall::{GuestVa, Pfn};
use p2m::Pfns;

/// A guest's memory before anything was planned.
#[derive(Debug)]
pub struct Numbers {
    regions: [BootRegion; 1],
    uses: [FrameUse; 3],
    place: MapPlace,
}

/// Returns a guest of so many pages, whose list the builder put outside of the kernel's mapping.
///
/// # Panics
/// Never: the addresses are constants.
#[must_use]
pub fn memory(pages: u64) -> Numbers {
    let run = |start, count| Pfns::new(Pfn::new(start), count);
    let va = |raw| GuestVa::new(raw).expect("an address of the kernel half");
    let list = pages.div_ceil(512);
    Numbers {
        regions: [BootRegion { pfns: run(0, pages), kind: RegionKind::Ram }],
        uses: [
            FrameUse { pfns: run(0x100, 0x600), kind: UseKind::KernelData },
            FrameUse { pfns: run(0x700, 8), kind: UseKind::BuilderTables },
            FrameUse {
                pfns: run(0x800, list + list.div_ceil(512) + 3),
                kind: UseKind::ListAndTables,
            },
        ],
        place: MapPlace {
            kernel: va(0xffff_ffff_8000_0000),
            kernel_pages: 0x800,
            direct_map: va(0xffff_8800_0000_0000),
        },
    }
}

/// Plans the mapping. How many tables it takes.
///
/// # Errors
/// [`EarlyError`].
pub fn plan(numbers: &Numbers) -> Result<u64, EarlyError> {
    let memory = BootMemory::new(&numbers.regions, &numbers.uses, numbers.place)?;
    Plan::new(&memory).map(|plan| plan.tables())
}

/// Plans it, and names every table. How many there are.
///
/// # Errors
/// [`EarlyError`].
pub fn steps(numbers: &Numbers) -> Result<u64, EarlyError> {
    let memory = BootMemory::new(&numbers.regions, &numbers.uses, numbers.place)?;
    let plan = Plan::new(&memory)?;
    let made = plan.steps(&memory).map(|steps| steps.filter(|table| table.frame.is_some()).count());
    Ok(made.map(|count| count as u64).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_of_the_plan_is_named() {
        for pages in [1 << 14, 1 << 18, 1 << 24] {
            let numbers = memory(pages);
            let planned = plan(&numbers).expect("a plan");
            assert_eq!(steps(&numbers), Ok(planned), "{pages} pages");
            // The builder's own tables map the first of them.
            let builders = numbers.place.kernel_pages / 512;
            assert!(planned + builders > pages / 512, "an L1 table for each 512 pages, and more");
        }
    }
}
