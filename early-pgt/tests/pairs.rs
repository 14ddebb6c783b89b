//! Every pair of refusals on everything that asks Xen: each request, each element of it, the
//! undoing of the first refusal included. At the end every page of the guest is in one place: free
//! and writable, a table, in use, or in doubt and nobody's.
#![expect(unsafe_code, reason = "claims frames of a guest that exists only in the model")]

use early_pgt::{
    Access, Build, BuilderList, Change, Direction, EarlyError, Plan, Region, RegionKind,
    ReplaceError, RoundError, RoundPlan, TableBuffer, TableRound, Use, UseKind, replace_tables,
    set_access,
};
use hypercall::{
    Batch, BatchStorage, FrameAccess as _, Frames, Level, Machine, MmuUpdate, Pfn, Pte, PteFlags,
    Slot, Uncertain,
};
use p2m::{P2m, Pfns};
use pv_tests::account::Account;
use pv_tests::booting::{Booting, DIRECT_MAP};
use pv_tests::pairs::{self, Plan as Refusals, around};
use x86_64::structures::paging::PageTableIndex;
use xen_model::{DomainConfig, Role};

const PAGES: u64 = 0x2000;

fn run(pfns: Pfns) -> impl Iterator<Item = Pfn> {
    pfns.iter()
}

fn frames(frames: &Frames) -> impl Iterator<Item = Pfn> {
    run(Pfns::new(frames.start(), frames.count()))
}

fn doubtful(doubtful: &Uncertain) -> impl Iterator<Item = Pfn> {
    run(Pfns::new(doubtful.start(), doubtful.count()))
}

/// Whether Xen has the frame as a table.
fn is_table(booting: &Booting, pfn: Pfn) -> bool {
    let mfn = booting.model.guest().built_mfn(pfn).expect("RAM");
    let kind = booting.model.frame(mfn).expect("a frame").kind;
    kind.count > 0 && format!("{:?}", kind.kind).starts_with('L')
}

/// The entry for `pfn` in a mapping that begins at `start`.
fn entry(booting: &Booting, start: u64, pfn: Pfn) -> Pte {
    booting.model.guest().l1_slot(start + (pfn.raw() << 12)).map_or(Pte::ABSENT, |(_, pte)| pte)
}

/// Frames that somebody gets are no tables, and writable wherever they are mapped.
fn check_free<'f>(booting: &Booting, free: impl Iterator<Item = &'f Frames>) {
    for pfn in free.flat_map(frames) {
        assert!(!is_table(booting, pfn), "pfn {pfn} is given away and a table");
        for start in [booting.place.kernel.raw(), DIRECT_MAP] {
            let pte = entry(booting, start, pfn);
            assert!(!pte.is_present() || pte.is_writable(), "pfn {pfn} is given away: {pte}");
        }
    }
}

/// Builds the direct map; a round that is refused and undone is made again. The error that ended
/// it, if one did.
fn build<M: Machine>(
    booting: &Booting,
    (machine, p2m): (&M, &P2m<'_>),
    batch: &mut Batch<'_>,
) -> Option<RoundError> {
    let memory = booting.memory();
    let plan = Plan::new(&memory).expect("a plan");
    let guest = booting.guest(machine, p2m);
    // SAFETY: the frames exist only in the model; nobody else claims any.
    let mut build = unsafe { Build::begin(&memory, plan) };
    let mut done = 0;
    let failed = loop {
        match build.round(guest, batch) {
            Ok(Some(mapped)) => {
                booting.model.guest().set_direct_map(mapped.start, mapped.end);
                done += 1;
            }
            Ok(None) => break None,
            Err(error) if error.undo.is_err() => break Some(error),
            Err(_) => booting.check(),
        }
    };
    let round = plan.rounds().get(done).map(RoundPlan::used);
    if failed.is_some() {
        let again = build.round(guest, batch).map_err(|error| error.failure);
        let shut = EarlyError::RoundUnfinished { buffer: round.expect("it failed") };
        assert_eq!(again, Err(shut), "what is in doubt is not tried again");
    }
    let mut free = Vec::new();
    let in_doubt = build.finish(|frames| free.push(frames));
    assert_eq!(in_doubt.is_some(), failed.is_some());

    let ram =
        memory.free().flat_map(run).chain(booting.uses.iter().flat_map(|used| run(used.pfns)));
    let mut account = Account::of(ram);
    account.found("in use", booting.uses.iter().flat_map(|used| run(used.pfns)));
    account.found("free", free.iter().flat_map(frames));
    account.found("tables", plan.rounds()[..done].iter().flat_map(|round| run(round.used())));
    account.found("in doubt", in_doubt.iter().flat_map(doubtful));
    if failed.is_some() {
        // What is not mapped yet is nobody's.
        let mapped = plan.rounds()[..done].iter().map(|round| round.maps.end()).max();
        let end = mapped.unwrap_or(0).max(booting.place.kernel_pages);
        account.found("not mapped", memory.free().flat_map(run).filter(|pfn| pfn.raw() >= end));
    }
    account.assert_balanced();
    check_free(booting, free.iter());
    for round in &plan.rounds()[..done] {
        assert!(run(round.used()).all(|pfn| is_table(booting, pfn)));
    }
    booting.check();
    failed
}

/// A guest of whose mapped pages all but six are in use, so that it takes two rounds.
fn two_rounds() -> Booting {
    let mut booting = Booting::new(Role::DomU, PAGES);
    let mapped = booting.place.kernel_pages;
    let free = booting.memory().free().map(|run| (run.start.raw(), run.end().min(mapped)));
    let free: Vec<_> = free.filter(|(start, end)| start < end).collect();
    let largest = free.iter().copied().max_by_key(|(start, end)| end - start).expect("some");
    let reserved = |(start, end): (u64, u64)| {
        let end = if (start, end) == largest { end - 6 } else { end };
        let pfns = Pfns::new(Pfn::new(start), end - start);
        Use { pfns, kind: UseKind::Reserved }
    };
    let reserved: Vec<_> = free.into_iter().map(reserved).collect();
    booting.uses.extend(reserved);
    assert_eq!(Plan::new(&booting.memory()).expect("a plan").rounds().len(), 2);
    booting
}

#[test]
fn a_direct_map_of_two_rounds_is_made_whichever_two_requests_are_refused() {
    pairs::run("early-pgt", "two_rounds", |plan: &Refusals<'_>| {
        let booting = two_rounds();
        let (p2m, machine) = (booting.p2m(), around(&booting.model, plan));
        // Room for a part of a round, so that it takes several requests.
        let mut storage = BatchStorage::<7, 1>::new();
        let failed = build(&booting, (&machine, &p2m), &mut storage.batch());
        assert!(failed.is_none() || plan.refused() == 2, "{failed:?}");
    });
}

#[test]
fn the_machines_own_pages_are_mapped_whichever_two_requests_are_refused() {
    pairs::run("early-pgt", "identity", |plan: &Refusals<'_>| {
        let isa = Pfns::new(Pfn::new(0xa0), 5);
        let mut booting = Booting::of(DomainConfig::new(Role::Dom0, PAGES));
        let image = booting.uses.iter_mut().find(|used| used.kind == UseKind::KernelData);
        image.expect("there is one").pfns = Pfns::new(Pfn::new(0x100), 1);
        let region = |start: u64, end: u64, kind| Region {
            pfns: Pfns::new(Pfn::new(start), end - start),
            kind,
        };
        booting.regions = vec![
            region(0, isa.start.raw(), RegionKind::Ram),
            region(isa.start.raw(), isa.end(), RegionKind::Identity),
            region(isa.end(), PAGES, RegionKind::Ram),
        ];
        let (p2m, machine) = (booting.p2m(), around(&booting.model, plan));
        let mut storage = BatchStorage::<40, 1>::new();
        let mut batch = storage.batch();
        for pfn in isa.iter() {
            let va = booting.place.kernel.raw() + (pfn.raw() << 12);
            let (slot, pte) = booting.model.guest().l1_slot(va).expect("mapped");
            batch.update(MmuUpdate::set(slot, Pte::ABSENT), pte.raw()).expect("room");
            // SAFETY: only the model's memory is at stake.
            unsafe { p2m.depopulate(pfn) }.expect("memory");
        }
        // SAFETY: as above.
        unsafe { batch.submit(&booting.model) }.expect("not refused");
        // SAFETY: as above.
        unsafe { p2m.set_identity(isa) }.expect("absent");
        let failed = build(&booting, (&machine, &p2m), &mut batch);
        assert!(failed.is_none() || plan.refused() == 2, "{failed:?}");
    });
}

/// A guest whose direct map is built, with code and constants in its image, and its free frames.
fn built() -> (Booting, Vec<Frames>) {
    let mut config = DomainConfig::new(Role::DomU, PAGES);
    config.kernel_pages = 0x200;
    let mut booting = Booting::of(config);
    booting.uses.retain(|used| used.kind != UseKind::KernelData);
    let used = |start, count, kind| Use { pfns: Pfns::new(Pfn::new(start), count), kind };
    booting.uses.extend([
        used(0x101, 9, UseKind::KernelText),
        used(0x10a, 3, UseKind::KernelConstants),
        used(0x10d, 0xf3, UseKind::KernelData),
    ]);
    let free = booting.build();
    (booting, free)
}

#[test]
fn the_builders_tables_are_replaced_whichever_two_requests_are_refused() {
    pairs::run("early-pgt", "replace_tables", |plan: &Refusals<'_>| {
        let (booting, mut free) = built();
        let (p2m, memory) = (booting.p2m(), booting.memory());
        let machine = around(&booting.model, plan);
        let list = BuilderList::Moved(booting.boot.p2m_list);
        let before = booting.model.guest().kernel_root();
        let needed = memory.own_tables();
        let mut storage = BatchStorage::<9, 3>::new();
        // Three more than it takes.
        let all = free.pop().expect("memory");
        let (mut own, rest) = all.split(needed + 3).expect("so many");
        free.push(rest);
        let mut account = Account::of((0..PAGES).map(Pfn::new));
        let rounds = Plan::new(&memory).expect("a plan");
        account.found("tables", rounds.rounds().iter().flat_map(|round| run(round.used())));
        account.found("in use", memory.kept_uses(list).flat_map(|used| run(used.pfns)));
        let builders = || memory.replaced_uses(list).flat_map(|used| run(used.pfns));
        loop {
            let guest = booting.guest(&machine, &p2m);
            let owner = |frames| free.push(frames);
            // SAFETY: the frames exist only in the model, and nothing is executed.
            let replaced =
                unsafe { replace_tables(guest, (&memory, list), own, &mut storage.batch(), owner) };
            match replaced {
                Ok(replaced) => {
                    account.found("own tables", run(replaced.tables));
                    assert!(run(replaced.tables).all(|pfn| is_table(&booting, pfn)));
                    break;
                }
                Err(ReplaceError { undo: Ok(()), frames: Ok(frames), .. }) => {
                    assert_eq!(booting.model.guest().kernel_root(), before);
                    assert_eq!(frames.count(), needed + 3, "all of them come back");
                    check_free(&booting, [&frames].into_iter());
                    own = frames;
                }
                Err(ReplaceError { undo: Err(_), frames: Err(in_doubt), .. }) => {
                    assert_eq!((plan.refused(), in_doubt.count()), (2, needed));
                    account.found("in doubt", doubtful(&in_doubt));
                    account.found("in use", builders());
                    break;
                }
                Err(error) => panic!("frames that are in doubt and not: {error:?}"),
            }
            booting.check();
        }
        account.found("free", free.iter().flat_map(frames));
        account.assert_balanced();
        check_free(&booting, free.iter());
        booting.check();
    });
}

/// The first empty slot behind those of the direct map, in the L2 table that leads to its end.
fn free_slot(booting: &Booting, p2m: &P2m<'_>) -> Slot {
    let last = hypercall::GuestVa::new(DIRECT_MAP + ((PAGES - 1) << 12)).expect("the guest's");
    let mut table = booting.root;
    for level in [Level::L4, Level::L3] {
        let pte = booting.model.read_entry(table, level.index_of(last)).expect("mapped");
        table = p2m.pfn(&booting.model, pte.mfn()).expect("the guest's");
    }
    let index = PageTableIndex::new(u16::from(Level::L2.index_of(last)) + 1);
    Slot { table: p2m.mfn(table).expect("RAM"), index }
}

/// Takes two tables out of the buffer, and links the first.
fn fill<M: Machine>(
    booting: &Booting,
    (machine, p2m): (&M, &P2m<'_>),
    mut round: TableRound<'_>,
    batch: &mut Batch<'_>,
) -> Result<Pfns, RoundError> {
    let (first, second) = (round.take()?, round.take()?);
    for table in [first, second] {
        // SAFETY: the frames exist only in the model, and are loose.
        unsafe { machine.write_entries(table, PageTableIndex::new(0), &[Pte::ABSENT; 512]) }
            .expect("writable");
    }
    let link = Pte::new(p2m.mfn(first).expect("RAM"), PteFlags::TABLE);
    let slot = free_slot(booting, p2m);
    let links = |direction| {
        let change: Change = Ok(match direction {
            Direction::Forth => (MmuUpdate::set(slot, link), Pte::ABSENT),
            Direction::Back => (MmuUpdate::set(slot, Pte::ABSENT), link),
        });
        [change].into_iter()
    };
    // SAFETY: the frames are filled, and the slot is nobody's.
    unsafe { round.finish(booting.guest(machine, p2m), links, batch) }
}

#[test]
fn a_table_buffer_shuts_rather_than_hand_out_a_table_whichever_two_requests_are_refused() {
    pairs::run("early-pgt", "table_buffer", |plan: &Refusals<'_>| {
        let (booting, mut free) = built();
        let (p2m, machine) = (booting.p2m(), around(&booting.model, plan));
        let (own, rest) = free.pop().expect("memory").split(4).expect("so many");
        free.push(rest);
        let mut account = Account::of(frames(&own));
        let mut buffer = TableBuffer::new(own);
        let mut storage = BatchStorage::<2, 1>::new();
        loop {
            let round = buffer.begin().expect("closed");
            let batch = &mut storage.batch();
            match fill(&booting, (&machine, &p2m), round, batch) {
                Ok(tables) => {
                    account.found("tables", run(tables));
                    break;
                }
                Err(RoundError { undo: Ok(()), .. }) => booting.check(),
                Err(RoundError { .. }) => break,
            }
        }
        match buffer.into_parts() {
            Ok((tables, unused)) => {
                assert!(tables.count == 2 && plan.refused() <= 2);
                account.found("free", frames(&unused));
                check_free(&booting, [&unused].into_iter());
            }
            Err((buffer, error)) => {
                assert!(matches!(error, EarlyError::RoundUnfinished { .. }), "{error}");
                account.found("in doubt", doubtful(&buffer.into_uncertain()));
            }
        }
        account.assert_balanced();
        booting.check();
    });
}

#[test]
fn pages_become_read_only_and_writable_again_whichever_two_requests_are_refused() {
    pairs::run("early-pgt", "set_access", |plan: &Refusals<'_>| {
        let booting = Booting::new(Role::DomU, PAGES);
        let (p2m, machine) = (booting.p2m(), around(&booting.model, plan));
        let pfns = Pfns::new(booting.model.guest().first_free_page(), 5);
        let mut storage = BatchStorage::<3, 1>::new();
        let kernel = booting.place.kernel.raw();
        for access in [Access::ReadOnly, Access::Writable] {
            loop {
                let guest = booting.guest(&machine, &p2m);
                // SAFETY: nobody uses the pages.
                let set = unsafe { set_access(guest, (pfns, access), &mut storage.batch()) };
                let changed = |pfn| {
                    entry(&booting, kernel, pfn).is_writable() == (access == Access::Writable)
                };
                match set {
                    Ok(()) => break assert!(pfns.iter().all(changed)),
                    Err(EarlyError::Protect { table, .. }) => {
                        let before = table.offset_from(pfns.start).expect("one of them");
                        assert!(Pfns::new(pfns.start, before).iter().all(changed));
                    }
                    Err(error) => panic!("{error}"),
                }
                booting.check();
            }
        }
        booting.check();
    });
}
