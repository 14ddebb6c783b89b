//! A guest of 2 GiB on the model, from its builder's mapping to a direct map of all memory and to
//! tables of its own; and the plans of larger ones, or of those whose GiB are named.
//! `cargo run --release -p early-pgt --example boot_mapping`
#![expect(unsafe_code, reason = "claims frames of a guest that exists only in the model")]

use std::error::Error;
use std::time::Instant;

use early_pgt::{
    BootMemory, BootRegion, Build, FrameUse, MapPlace, OldList, Plan, RegionKind, UseKind,
    replace_tables,
};
use hypercall::middleware::Counting;
use hypercall::start_info::BootInfo;
use hypercall::{BatchStorage, Frames, GuestVa, Mfn, PAGE_SHIFT, Pfn, Pte, PteFlags};
use p2m::{Guest, P2m, Pfns};
use xen_model::{DomainConfig, Model, Role};

const PAGES: u64 = 2 << 18;

fn pfns(start: u64, count: u64) -> Pfns {
    Pfns::new(Pfn::new(start), count)
}

fn main() -> Result<(), Box<dyn Error>> {
    let named: Vec<u64> = std::env::args().filter_map(|word| word.parse().ok()).collect();
    if !named.is_empty() {
        return named.into_iter().try_for_each(|gib| plan(gib << 18));
    }
    boot()?;
    [8, 64, 1024, 16 * 1024].into_iter().try_for_each(|gib: u64| plan(gib << 18))
}

/// Boots a guest on the model.
fn boot() -> Result<(), Box<dyn Error>> {
    let config = DomainConfig::new(Role::Dom0, PAGES);
    let (virt_base, image) = (config.virt_base, config.kernel_pages);
    let model = Model::builder().guest(config).build()?;
    let start_info = model.guest().start_info().ok_or("the builder left nothing")?;
    let boot = BootInfo::parse(&start_info)?;
    let list = model.guest().built_list();
    // SAFETY: the guest exists only in the model.
    let p2m = unsafe { P2m::adopt(&list) }?;

    // What is known: where RAM is, how far the builder's mapping goes, and what is in use.
    let kernel_pages = (0..boot.pages)
        .find(|pfn| model.guest().l1_slot(virt_base + (pfn << PAGE_SHIFT)).is_none())
        .unwrap_or(boot.pages);
    let kernel = GuestVa::new(virt_base)?;
    let place = MapPlace { kernel, kernel_pages, direct_map: GuestVa::new(0xffff_8800_0000_0000)? };
    let regions = [BootRegion { pfns: p2m.all(), kind: RegionKind::Ram }];
    let at = (model.guest().start_info_address() - virt_base) >> PAGE_SHIFT;
    let mut uses = vec![
        FrameUse { pfns: pfns(0, image), kind: UseKind::KernelData },
        FrameUse { pfns: pfns(at, 1), kind: UseKind::StartInfo },
    ];
    uses.extend(place.builder_uses(&boot)?.into_iter().flatten());
    let memory = BootMemory::new(&regions, &uses, place)?;
    let plan = Plan::new(&memory)?;
    println!("{PAGES} pages, of which the builder mapped {kernel_pages}");
    for round in plan.rounds() {
        let (maps, buffer) = (round.maps, round.buffer);
        println!(
            "  pfns {}..{:x} by {} tables from {}..{:x}",
            maps.start,
            maps.end(),
            round.tables,
            buffer.start,
            buffer.end()
        );
    }

    // Doing it: one request for each round, if the batch has room for all of its updates.
    let machine = Counting::new(&model);
    let root = Pfn::new((boot.root.raw() - virt_base) >> PAGE_SHIFT);
    // SAFETY: the guest's frame map, and the root that its kernel runs on.
    let guest = unsafe { Guest::new(&machine, &p2m, root) };
    let mut storage = Box::new(BatchStorage::<3000, 3>::new());
    // SAFETY: the frames exist only in the model, and this is the only claim.
    let mut build = unsafe { Build::begin(&memory, plan) };
    while let Some(mapped) = build.round(&guest, &mut storage.batch())? {
        model.guest().set_direct_map(mapped.start, mapped.end);
    }
    let mut free: Vec<Frames> = Vec::new();
    if let Some(doubtful) = build.finish(|frames| free.push(frames)) {
        return Err(format!("{doubtful} may be tables").into());
    }
    let count = |free: &[Frames]| free.iter().map(Frames::count).sum::<u64>();
    let used: u64 = uses.iter().map(|used| used.pfns.count).sum();
    let (tables, hypercalls) = (plan.tables(), machine.counts().hypercalls);
    let now = count(&free);
    println!("  {hypercalls} hypercalls; {now} free + {used} in use + {tables} tables = {PAGES}");

    // The kernel on tables of its own. Its list stays in this example, since it is the host's.
    let frames = free.pop().ok_or("no memory")?;
    let (own, rest) = frames.split(memory.own_tables()).map_err(|_| "too little memory")?;
    free.push(rest);
    let (list, batch) = (OldList::InUse, &mut storage.batch());
    // SAFETY: as above; nothing is executed on the model.
    let replaced =
        unsafe { replace_tables(&guest, &memory, list, own, batch, |frames| free.push(frames)) }?;
    let hypercalls = machine.counts().hypercalls - hypercalls;
    let own = replaced.tables.count;
    println!(
        "  {hypercalls} hypercalls; {own} tables of its own, {} of the builder's are free",
        boot.table_frames
    );
    model.audit()?;
    let all = count(&free) + used - boot.table_frames + tables + own;
    if all == PAGES { Ok(()) } else { Err("pages were lost".into()) }
}

/// Plans a guest of `pages`, with its list outside the kernel's mapping, and walks over every table
/// of the plan.
fn plan(pages: u64) -> Result<(), Box<dyn Error>> {
    let place = MapPlace {
        kernel: GuestVa::new(0xffff_ffff_8000_0000)?,
        kernel_pages: 0x800,
        direct_map: GuestVa::new(0xffff_8800_0000_0000)?,
    };
    let regions = [BootRegion { pfns: pfns(0, pages), kind: RegionKind::Ram }];
    let list = pages / 512;
    let uses = [
        FrameUse { pfns: pfns(0x100, 0x600), kind: UseKind::KernelData },
        FrameUse { pfns: pfns(0x700, 8), kind: UseKind::BuilderTables },
        FrameUse { pfns: pfns(0x800, list + list / 512 + 3), kind: UseKind::ListAndTables },
    ];
    let begun = Instant::now();
    let memory = BootMemory::new(&regions, &uses, place)?;
    let plan = Plan::new(&memory)?;
    let planned = begun.elapsed();
    // All entries above the L1s, where a table of this round leads to another, filled as a build
    // does it: the entries of the L1s themselves are 8 bytes for each page of the guest.
    let (mut count, mut links) = (0, 0);
    let mut entries = [Pte::ABSENT; 512];
    for table in plan.steps(&memory).flatten() {
        let Some(frame) = table.frame else { continue };
        let mfn = Mfn::new(frame.raw());
        let at = usize::try_from(table.number % 512)?;
        entries[at] = Pte::new(mfn, PteFlags::TABLE.union(PteFlags::NO_EXECUTE));
        links += u64::from(table.parent.is_none());
        count += 1;
    }
    std::hint::black_box(&entries);
    let walked = begun.elapsed() - planned;
    println!(
        "{:>6} GiB: {} rounds, {count} tables, {links} linked by Xen; planned in {planned:?}, all \
         tables named and their entries above made in {walked:?}",
        pages >> 18,
        plan.rounds().len()
    );
    if count == plan.tables() { Ok(()) } else { Err("the plan has miscounted".into()) }
}

#[test]
fn every_page_is_accounted_for() {
    assert!(main().is_ok());
}
