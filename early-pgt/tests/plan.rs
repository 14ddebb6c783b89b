//! The plan is a pure function, and right for any guest: 16 MiB to 16 TiB, with holes, with the
//! builder's list inside or outside of the kernel's mapping.

use std::collections::BTreeSet;

use arbtest::arbitrary::{Result, Unstructured};
use early_pgt::{
    Access, BootMemory, BootRegion, FrameUse, MapPlace, Plan, RegionKind, RoundPlan, UseKind,
    mask_rw,
};
use hypercall::{GuestVa, Level, Mfn, Pfn, Pte, PteFlags};
use p2m::Pfns;

const MIB: u64 = 256;
const GIB: u64 = 1024 * MIB;
const TIB: u64 = 1024 * GIB;

/// Where the builder's list is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum List {
    /// In the kernel's mapping.
    Inside,
    /// Where the ELF note INIT_P2M says, in frames behind the kernel's mapping.
    Outside,
}

/// A guest's memory, as numbers.
#[derive(Debug)]
struct Numbers {
    regions: Vec<BootRegion>,
    uses: Vec<FrameUse>,
    place: MapPlace,
}

fn pfns(start: u64, count: u64) -> Pfns {
    Pfns::new(Pfn::new(start), count)
}

impl Numbers {
    /// A guest of `pages` in the given runs behind the first one.
    fn new(first: u64, more: &[(u64, u64)], list_at: List) -> Self {
        let ram = |pfns| BootRegion { pfns, kind: RegionKind::Ram };
        let more_regions = more.iter().map(|(start, count)| ram(pfns(*start, *count)));
        let regions: Vec<BootRegion> =
            [ram(pfns(0, first))].into_iter().chain(more_regions).collect();
        let pages: u64 = regions.iter().map(|region| region.pfns.count).sum();
        let list = pages.div_ceil(512);
        let image = 0x100 + 0x600;
        let inside = if list_at == List::Outside { 0 } else { list };
        let tables = image + inside + 1;
        // As many tables as the mapping needs, and 4 MiB behind the last piece at most.
        let count = 8 + tables / 512;
        let kernel_pages = (tables + count + 1 + 128).next_multiple_of(1024);
        let mut uses = vec![
            FrameUse { pfns: pfns(0x100, 0x600), kind: UseKind::KernelData },
            FrameUse { pfns: pfns(image + inside, 1), kind: UseKind::StartInfo },
            FrameUse { pfns: pfns(tables, count), kind: UseKind::BuilderTables },
        ];
        uses.push(if list_at == List::Outside {
            let outside = list + list.div_ceil(512) + 3;
            FrameUse { pfns: pfns(kernel_pages, outside), kind: UseKind::ListAndTables }
        } else {
            FrameUse { pfns: pfns(image, list), kind: UseKind::List }
        });
        let va = |va| GuestVa::new(va).expect("the guest's");
        let place = MapPlace {
            // Low enough for the largest list inside of the mapping.
            kernel: va(0xffff_ff80_0000_0000),
            kernel_pages,
            direct_map: va(0xffff_8800_0000_0000),
        };
        Self { regions, uses, place }
    }

    fn memory(&self) -> BootMemory<'_> {
        BootMemory::new(&self.regions, &self.uses, self.place).expect("good numbers")
    }
}

fn holds(run: &Pfns, pfn: Pfn) -> bool {
    (run.start.raw()..run.end()).contains(&pfn.raw())
}

/// Checks every table of a plan, one by one.
fn check(numbers: &Numbers, plan: &Plan) {
    let memory = numbers.memory();
    let free: Vec<Pfns> = memory.free().collect();
    let is_free = |pfn: Pfn| free.iter().any(|run| holds(run, pfn));
    let mut seen = BTreeSet::new();
    let mut live: BTreeSet<(Level, u64)> = BTreeSet::new();
    let mut mapped = vec![pfns(0, numbers.place.kernel_pages)];
    let mut leaves = BTreeSet::new();
    for (round, steps) in plan.rounds().iter().zip(plan.steps(&memory)) {
        let mut loose = BTreeSet::new();
        let mut made = BTreeSet::new();
        for table in steps {
            let Some(frame) = table.frame else {
                let (parent, number) = (table.parent.expect("a new L2"), table.number);
                assert!(loose.contains(&parent) && number * 512 < numbers.place.kernel_pages);
                assert!(leaves.insert(number), "the builder's L1 {number} is shared once");
                assert_eq!(table.level, Level::L1);
                continue;
            };
            assert!(seen.insert(frame), "{table:?}: a frame is one table");
            let is_mapped = mapped.iter().any(|run| holds(run, frame));
            assert!(is_mapped, "{table:?}: a table is mapped before it is one");
            assert!(is_free(frame), "{table:?}: nobody uses it");
            assert!(holds(&round.used(), frame), "{table:?}: of the buffer");
            match (table.parent, table.level) {
                (Some(parent), _) => assert!(loose.contains(&parent), "{table:?}"),
                (None, Level::L1) => {
                    assert!(live.contains(&(Level::L2, table.number / 512)), "{table:?}");
                }
                (None, Level::L2) => {
                    assert!(live.contains(&(Level::L3, table.number / 512)), "{table:?}");
                }
                // It hangs in the root.
                (None, level) => assert_eq!(level, Level::L3),
            }
            if table.level == Level::L1 {
                assert!(leaves.insert(table.number), "{table:?}: nothing is mapped twice");
            }
            loose.insert(frame);
            assert!(made.insert((table.level, table.number)), "{table:?}");
            assert!(!live.contains(&(table.level, table.number)), "{table:?}: made once");
        }
        assert_eq!(loose.len() as u64, round.tables, "the formula counts what there is");
        live.append(&mut made);
        mapped.push(round.maps);
    }
    for region in &numbers.regions {
        let chunks = region.pfns.start.raw() / 512..region.pfns.end().div_ceil(512);
        assert!(chunks.clone().all(|chunk| leaves.contains(&chunk)), "{region:?} is mapped");
    }
}

/// A guest with up to three holes, of a size on every scale.
fn guest(u: &mut Unstructured<'_>, largest: u32) -> Result<Numbers> {
    let pages = |u: &mut Unstructured<'_>| {
        let scale = u.int_in_range(12..=largest)?;
        u.int_in_range(1 << scale..=(2 << scale) - 1)
    };
    let first = pages(u)?.max(0x2000);
    let (mut end, mut more) = (first, Vec::new());
    for _ in 0..u.int_in_range(0..=3)? {
        let start = end + u.int_in_range(1..=1 << 20)?;
        let count = pages(u)? / 8 + 1;
        more.push((start, count));
        end = start + count;
    }
    // A list inside has to fit into the first run with the kernel.
    let total: u64 = first + more.iter().map(|(_, count)| count).sum::<u64>();
    let outside = total / 512 + 0x1000 > first || u.arbitrary()?;
    let list = if outside { List::Outside } else { List::Inside };
    let room = first > total / 256 + 0x2000;
    Ok(Numbers::new(first.max(if room { 0 } else { total / 256 + 0x2000 }), &[], list))
        .map(|small| if room { Numbers::new(first, &more, list) } else { small })
}

#[test]
fn every_table_is_mapped_before_it_is_one_and_every_page_gets_an_entry() {
    arbtest::arbtest(|u| {
        let numbers = guest(u, 16)?;
        let plan = Plan::new(&numbers.memory()).expect("a plan");
        check(&numbers, &plan);
        Ok(())
    });
}

#[test]
fn any_guest_up_to_16_tib_is_planned_in_few_rounds() {
    arbtest::arbtest(|u| {
        let numbers = guest(u, 31)?;
        let memory = numbers.memory();
        let plan = Plan::new(&memory).expect("a plan");
        assert!(plan.rounds().len() <= Plan::ROUNDS_MAX, "{plan:?}");
        let free: u64 = memory.free().map(|run| run.count).sum();
        assert!(plan.tables() < free, "{plan:?}");
        let maps: u64 = plan.rounds().iter().map(|round| round.maps.count).sum();
        assert_eq!(maps, memory.end(), "everything once");
        Ok(())
    });
}

#[test]
fn sizes_that_catch_mistakes_are_planned_table_by_table() {
    for pages in [16 * MIB, 32 * MIB, 33 * MIB, 256 * MIB, GIB - 1, GIB + 1, 8 * GIB] {
        for list in [List::Inside, List::Outside] {
            let numbers = Numbers::new(pages, &[], list);
            let plan = Plan::new(&numbers.memory()).expect("a plan");
            check(&numbers, &plan);
        }
    }
}

#[test]
fn sixteen_tib_take_five_rounds() {
    let numbers = Numbers::new(16 * TIB, &[], List::Outside);
    let plan = Plan::new(&numbers.memory()).expect("a plan");
    // 2 MiB for an L1, 1 GiB for an L2, 512 GiB for an L3; the builder's own L1s are shared.
    let shared = numbers.place.kernel_pages / 512;
    assert_eq!(plan.tables(), 16 * TIB / 512 - shared + 16 * 1024 + 32);
    assert_eq!(plan.rounds().len(), 5);
}

#[test]
fn an_e820_hole_below_4_gib_costs_no_table() {
    let whole = Numbers::new(8 * GIB, &[], List::Outside);
    let split = Numbers::new(3 * GIB, &[(4 * GIB, 5 * GIB)], List::Outside);
    let tables = |numbers: &Numbers| Plan::new(&numbers.memory()).expect("a plan").tables();
    assert_eq!(tables(&whole), tables(&split));
}

#[test]
fn what_is_read_only_follows_from_its_use() {
    let table = [
        (UseKind::KernelText, Access::ReadOnly),
        (UseKind::KernelData, Access::Writable),
        (UseKind::BuilderTables, Access::ReadOnly),
        (UseKind::List, Access::Writable),
        (UseKind::ListAndTables, Access::ReadOnly),
        (UseKind::EarlyTables, Access::ReadOnly),
        (UseKind::TableBuffer, Access::ReadOnly),
        (UseKind::StartInfo, Access::Writable),
        (UseKind::Ring, Access::Writable),
        (UseKind::Module, Access::Writable),
        (UseKind::Reserved, Access::Writable),
    ];
    let entry = Pte::new(Mfn::new(0x203), PteFlags::KERNEL_RW);
    for (kind, access) in table {
        let uses = [FrameUse { pfns: pfns(0x40, 2), kind }];
        for (pfn, wanted) in [(0x3f, Access::Writable), (0x40, access), (0x41, access)] {
            let pfn = Pfn::new(pfn);
            assert_eq!(Access::of(pfn, &uses), wanted, "{kind:?} at {pfn}");
            let masked = mask_rw(entry, pfn, &uses);
            assert_eq!(masked.is_writable(), wanted == Access::Writable, "{kind:?} at {pfn}");
            assert_eq!(masked.mfn(), entry.mfn());
        }
        let past = Pfn::new(0x42);
        assert_eq!(mask_rw(entry, past, &uses), entry);
        assert_eq!(mask_rw(Pte::ABSENT, Pfn::new(0x40), &uses), Pte::ABSENT);
        let read_only = entry.read_only();
        assert_eq!(mask_rw(read_only, Pfn::new(0x40), &uses), read_only);
    }
}

#[test]
fn a_round_says_what_its_buffer_holds() {
    let numbers = Numbers::new(2 * GIB, &[], List::Inside);
    let plan = Plan::new(&numbers.memory()).expect("a plan");
    for RoundPlan { buffer, tables, .. } in plan.rounds() {
        assert!(*tables > 0 && *tables <= buffer.count);
    }
    assert!(plan.updates_max() > plan.tables() / 2);
}
