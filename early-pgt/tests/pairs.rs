//! Every pair of refusals on everything that asks Xen: each request, each element of it, the
//! undoing of the first refusal included. At the end every page of the guest is in one place: free
//! and writable, a table, in use, or in doubt and nobody's.
#![expect(unsafe_code, reason = "claims frames of a guest that exists only in the model")]

use early_pgt::{
    Access, Build, Change, EarlyError, OldList, Plan, ReplaceError, RoundError, RoundPlan,
    TableBuffer, TableRound, replace_tables, set_access,
};
use hypercall::middleware::Refusals;
use hypercall::{
    Batch, BatchStorage, Frames, GuestVa, Level, Machine, Pfn, Pte, PteFlags, Refused, Slot,
    Uncertain,
};
use p2m::{Guest, P2m, Pfns, WalkError, walk};
use pv_tests::account::Account;
use pv_tests::booting::{Booting, DIRECT_MAP};
use pv_tests::pairs::{self, around};
use x86_64::structures::paging::PageTableIndex;
use xen_model::{DomainConfig, Model, Role};

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

/// Frames that somebody gets are no tables, and writable wherever they are mapped.
fn check_free<'f>(booting: &Booting, free: impl Iterator<Item = &'f Frames>) {
    for pfn in free.flat_map(frames) {
        assert!(!booting.is_table(pfn), "pfn {pfn} is given away and a table");
        for start in [booting.place.kernel.raw(), DIRECT_MAP] {
            let pte = booting.entry(start, pfn).map_or(Pte::ABSENT, |(_, pte)| pte);
            assert!(!pte.is_present() || pte.is_writable(), "pfn {pfn} is given away: {pte}");
        }
    }
}

/// Builds the direct map; a round that is refused and undone is made again. The error that ended
/// it, if one did.
fn build<M: Machine>(
    booting: &Booting,
    guest: &Guest<'_, M>,
    batch: &mut Batch<'_>,
) -> Option<RoundError> {
    let memory = booting.memory();
    let plan = Plan::new(&memory).expect("a plan");
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
        assert!(run(round.used()).all(|pfn| booting.is_table(pfn)));
    }
    booting.check();
    failed
}

#[test]
fn a_direct_map_of_two_rounds_is_made_whichever_two_requests_are_refused() {
    pairs::run("early-pgt", "two_rounds", |plan: &Refusals<'_>| {
        let booting = Booting::new(Role::DomU, PAGES).in_two_rounds();
        let (p2m, machine) = (booting.p2m(), around(&booting.model, plan));
        // Room for a part of a round, so that it takes several requests.
        let mut storage = BatchStorage::<7, 1>::new();
        let failed = build(&booting, &booting.guest(&machine, &p2m), &mut storage.batch());
        assert!(failed.is_none() || plan.refused() == 2, "{failed:?}");
    });
}

#[test]
fn the_machines_own_pages_are_mapped_whichever_two_requests_are_refused() {
    pairs::run("early-pgt", "identity", |plan: &Refusals<'_>| {
        let isa = Pfns::new(Pfn::new(0xa0), 5);
        let booting = Booting::with_identity(DomainConfig::new(Role::Dom0, PAGES), isa);
        let (p2m, machine) = (booting.p2m(), around(&booting.model, plan));
        booting.give_up(&p2m, isa);
        let mut storage = BatchStorage::<40, 1>::new();
        let failed = build(&booting, &booting.guest(&machine, &p2m), &mut storage.batch());
        assert!(failed.is_none() || plan.refused() == 2, "{failed:?}");
    });
}

/// A guest whose direct map is built, with code and constants in its image, and its free frames.
fn built() -> (Booting, Vec<Frames>) {
    let booting = Booting::with_code(Model::builder(), DomainConfig::new(Role::DomU, PAGES));
    let free = booting.build();
    (booting, free)
}

#[test]
fn the_builders_tables_are_replaced_whichever_two_requests_are_refused() {
    pairs::run("early-pgt", "replace_tables", |plan: &Refusals<'_>| {
        let (booting, mut free) = built();
        let (p2m, memory) = (booting.p2m(), booting.memory());
        let machine = around(&booting.model, plan);
        let list = OldList::LeftAt(booting.boot.p2m_list);
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
                unsafe { replace_tables(&guest, &memory, list, own, &mut storage.batch(), owner) };
            match replaced {
                Ok(replaced) => {
                    account.found("own tables", run(replaced.tables));
                    assert!(run(replaced.tables).all(|pfn| booting.is_table(pfn)));
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
    let last = GuestVa::new(DIRECT_MAP + ((PAGES - 1) << 12)).expect("the guest's");
    let path = walk(&booting.guest(&booting.model, p2m), booting.root, last).expect("mapped");
    let Slot { table, index } = path.at(Level::L2).expect("mapped").slot;
    Slot { table, index: PageTableIndex::new(u16::from(index) + 1) }
}

/// Takes two tables out of the buffer, and links the first.
fn fill<M: Machine>(
    booting: &Booting,
    guest: &Guest<'_, M>,
    mut round: TableRound<'_>,
    batch: &mut Batch<'_>,
) -> Result<Pfns, RoundError> {
    let (first, second) = (round.take()?, round.take()?);
    for table in [first, second] {
        // SAFETY: the frames exist only in the model, and are loose.
        let cleared = unsafe {
            guest.machine().write_entries(table, PageTableIndex::new(0), &[Pte::ABSENT; 512])
        };
        if let Err(error) = cleared {
            round.abandon();
            return Err(EarlyError::from(WalkError::from(error)).into());
        }
    }
    let new = Pte::new(guest.mfn(first).expect("RAM"), PteFlags::TABLE);
    let change = Change { slot: free_slot(booting, guest.p2m()), old: Pte::ABSENT, new };
    // SAFETY: the frames are filled, and the slot is nobody's.
    unsafe { round.finish(guest, || [Ok(change)].into_iter(), batch) }
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
            match fill(&booting, &booting.guest(&machine, &p2m), round, batch) {
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
            Err(Refused { value: buffer, error }) => {
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
                let set = unsafe { set_access(&guest, pfns, access, &mut storage.batch()) };
                let changed = |pfn| {
                    let (_, pte) = booting.entry(kernel, pfn).expect("mapped");
                    pte.is_writable() == (access == Access::Writable)
                };
                match set {
                    Ok(()) => break assert!(pfns.iter().all(changed)),
                    Err(EarlyError::Protect { frame, .. }) => {
                        let before = frame.offset_from(pfns.start).expect("one of them");
                        assert!(Pfns::new(pfns.start, before).iter().all(changed));
                    }
                    Err(EarlyError::Walk(WalkError::Access(_))) => {
                        let in_front = pfns.iter().take_while(|pfn| changed(*pfn)).count();
                        assert!(!pfns.iter().skip(in_front).any(changed));
                    }
                    Err(error) => panic!("{error}"),
                }
                booting.check();
            }
        }
        booting.check();
    });
}
