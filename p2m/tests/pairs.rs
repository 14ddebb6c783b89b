//! Every pair of refusals on whatever asks Xen for something: the window opened, grown and
//! reserved in, and others' grants mapped and unmapped. Whatever is refused, each page has one
//! owner, the map says what it said, and the next attempt succeeds.
#![expect(unsafe_code, reason = "the guest exists only in the model")]
#![cfg(not(loom))]

mod common;

use std::collections::BTreeSet;

use common::{Storage, audit, opened, split};
use hypercall::grants::{GrantAccess, GrantRef};
use hypercall::middleware::{FailEach, Refusals};
use hypercall::{BatchStorage, DomId, FrameAccess as _, Pfn};
use p2m::grants::{GrantError, GrantMaps, MapRequest, MappedGrant, NotMapped};
use p2m::window::WindowError;
use p2m::{Guest, P2m, P2mEntry, Pfns, Window};
use pv_tests::account::Account;
use pv_tests::guest::TestGuest;
use pv_tests::pairs;
use pv_tests::window::{CAPACITY, GIB, LEAF, WindowMachine, WindowPool};
use xen_model::{GrantEntry, Model};

/// So few updates in a batch that what changes many pages takes several.
type Small = BatchStorage<4, 2>;

/// The guest on a machine that refuses.
type Refusing<'a> = Guest<'a, FailEach<'a, &'a WindowMachine>>;

/// Each page is free, in the window, or in doubt; and what is free can be written to.
fn account(machine: &WindowMachine, p2m: &P2m<'_>, pages: &BTreeSet<Pfn>, pool: &WindowPool) {
    let doubt: BTreeSet<Pfn> = pool.uncertain.iter().copied().collect();
    let mut account = Account::of(pages.iter().copied());
    account.found("free", pool.iter());
    account.found("in doubt", pool.uncertain.iter().copied());
    let used = machine.pages_in_window(p2m).into_iter();
    account.found("in the window", used.filter(|it| pages.contains(it) && !doubt.contains(it)));
    account.assert_balanced();
    for pfn in pool.iter() {
        // SAFETY: the guest exists only in the model.
        unsafe { machine.write_bytes(pfn, 8, &[1; 8]) }.expect("free, and so writable");
    }
    machine.check();
}

/// Does `change` in a window whose map has room for 4 GiB, under every pair of refusals, and once
/// more without any. Of `pfns` each stands for nothing or for `target` after the first time, and
/// for `target` after the second.
fn window(
    name: &str,
    pfns: &[Pfns],
    target: P2mEntry,
    change: impl Fn(&Refusing<'_>, &mut Window, Pfns, &mut WindowPool) -> Result<(), WindowError>,
) {
    pairs::run("p2m", name, |plan: &Refusals<'_>| {
        let machine = WindowMachine::of(1024, 21);
        let (frames, mut pool) = split(&machine);
        let (p2m, mut window) = opened(&machine, frames);
        let mut storage = Storage::new();
        window
            .grow(&machine.guest(&machine, &p2m), None, CAPACITY, &mut storage.batch())
            .expect("it has room");
        let pages: BTreeSet<Pfn> = pool.iter().collect();
        let refusing = pairs::around(&machine, plan);
        let guest = machine.guest(&refusing, &p2m);
        for attempt in 1..=3 {
            let mut done = Ok(());
            for pfns in pfns {
                done = done.and_then(|()| change(&guest, &mut window, *pfns, &mut pool));
            }
            account(&machine, &p2m, &pages, &pool);
            // One in each page of words, and the last.
            let some =
                |run: &Pfns| (run.start.raw()..run.end()).step_by(509).chain([run.end() - 1]);
            for pfn in pfns.iter().flat_map(some).map(Pfn::new) {
                let entry = p2m.entry(pfn).expect("in the map");
                assert!(entry == target || done.is_err() && entry == P2mEntry::Absent, "{entry:?}");
            }
            if done.is_ok() {
                break;
            }
            assert!(attempt <= plan.refused(), "{done:?}, and nothing was refused");
        }
        if plan.refused() == 0 {
            audit(&machine, &p2m);
        }
    });
}

#[test]
fn words_that_get_pages_of_their_own() {
    // In a GiB that has a table, in one that has none, and over their border.
    let of = |start: u64, leaves: u64| Pfns::new(Pfn::new(start), leaves * LEAF);
    let parts = [of(GIB - 9 * LEAF, 6), of(2 * GIB - LEAF, 3), of(3 * GIB, 2)];
    window("reserve", &parts, P2mEntry::Absent, |guest, window, pfns, pool| {
        let storage = &mut Small::new();
        window.reserve(guest, None, pfns, pool, &mut storage.batch())
    });
}

#[test]
fn holes_that_become_identity() {
    let of = |start: u64, count: u64| Pfns::new(Pfn::new(start), count);
    let parts = [of(GIB - 3 * LEAF, 3 * LEAF), of(GIB, GIB), of(3 * GIB - 7, LEAF + 11)];
    window("identity", &parts, P2mEntry::Identity, |guest, window, pfns, pool| {
        if guest.p2m().entry(pfns.start) == Ok(P2mEntry::Identity) {
            // What was marked before the refusal stays marked.
            let rest = pfns.iter().find(|pfn| guest.p2m().entry(*pfn) == Ok(P2mEntry::Absent));
            let Some(start) = rest else { return Ok(()) };
            let rest = Pfns::new(start, pfns.end() - start.raw());
            // SAFETY: nothing will map the frames.
            return unsafe {
                let storage = &mut Small::new();
                window.reserve_identity(guest, None, rest, pool, &mut storage.batch())
            };
        }
        let storage = &mut Small::new();
        // SAFETY: nothing will map the frames.
        unsafe { window.reserve_identity(guest, None, pfns, pool, &mut storage.batch()) }
    });
}

#[test]
fn a_map_that_grows() {
    pairs::run("p2m", "grow", |plan| {
        let machine = WindowMachine::of(1024, 22);
        let (frames, pool) = split(&machine);
        let (p2m, mut window) = opened(&machine, frames);
        let (built, pages) = (p2m.len(), pool.iter().collect());
        let refusing = pairs::around(&machine, plan);
        let mut storage = BatchStorage::<1, 1>::new();
        while p2m.len() < CAPACITY {
            let (before, guest) = (plan.refused(), machine.guest(&refusing, &p2m));
            let grown = window.grow(&guest, None, CAPACITY, &mut storage.batch());
            account(&machine, &p2m, &pages, &pool);
            assert_eq!(grown.is_ok(), before == plan.refused(), "{grown:?}");
            assert_eq!(p2m.len(), if grown.is_ok() { CAPACITY } else { built });
        }
        assert_eq!(p2m.entry(Pfn::new(CAPACITY - 1)), Ok(P2mEntry::Absent));
    });
}

#[test]
fn a_window_that_is_opened() {
    pairs::run("p2m", "open", |plan| {
        let machine = WindowMachine::of(1024, 23);
        let (frames, pool) = split(&machine);
        let run = frames.start().raw()..frames.start().raw() + frames.count();
        let pages: BTreeSet<Pfn> = pool.iter().collect();
        let refusing = pairs::around(&machine, plan);
        let mut frames = Some(frames);
        while let Some(given) = frames.take() {
            let before = plan.refused();
            match machine.open(&refusing, given, &mut Storage::new().batch()) {
                Ok((p2m, _)) => account(&machine, &p2m, &pages, &pool),
                Err(error) => {
                    assert!(before < plan.refused(), "{error}");
                    let undone = error.error.undo.is_ok();
                    assert_eq!(error.value.is_ok(), undone, "{error}");
                    let map = machine.builder_map();
                    if let Ok(back) = &error.value {
                        assert_eq!(machine.pages_in_window(&map), BTreeSet::new(), "{error}");
                        for pfn in run.clone().map(Pfn::new) {
                            // SAFETY: the guest exists only in the model.
                            let stored = unsafe { machine.write_bytes(pfn, 8, &[1; 8]) };
                            stored.expect("it is nobody's, and writable");
                        }
                        assert_eq!(
                            (back.start().raw(), back.count()),
                            (run.start, run.end - run.start)
                        );
                    }
                    machine.check();
                    frames = error.value.ok();
                }
            }
        }
    });
}

/// Grants that domain 1 gives, from 8 on, and one more that it does not.
const GRANTS: u32 = 4;

/// dom0 with pfns that have no memory, and what is granted to it.
struct Granting {
    guest: TestGuest,
    requests: Vec<MapRequest>,
}

impl Granting {
    fn new() -> Self {
        let mut guest = TestGuest::dom0();
        let neighbour = guest.model.vcpu(1, 0).expect("it is there");
        let requests = (8..8 + GRANTS).map(|reference| {
            let frame = neighbour.built_mfn(Pfn::new(reference.into())).expect("it has memory");
            let entry = GrantEntry { flags: 1, domain: 0, frame };
            neighbour.write_grant(reference, entry).expect("the table has it");
            let pfn = hypercall::FrameSource::take(&mut guest.frames).expect("16 MiB").pfn();
            // SAFETY: the frame's token is gone, and nothing uses its memory.
            unsafe { guest.p2m.depopulate(pfn) }.expect("it had memory");
            let va = guest.model.direct_map(pfn).expect("an address");
            let (domain, reference) = (DomId(1), GrantRef(reference));
            MapRequest { pfn, va, domain, reference, access: GrantAccess::ReadWrite }
        });
        let requests = requests.collect();
        Self { guest, requests }
    }

    /// The list, the map, the tables and Xen say the same of each grant; and Xen's counts add up.
    fn check(&self, maps: &GrantMaps<'_>) {
        let TestGuest { model, p2m, .. } = &self.guest;
        let neighbour = model.vcpu(1, 0).expect("it is there");
        let mut account = Account::of(self.requests.iter().map(|request| request.pfn));
        account.found("the list", maps.iter().map(|mapped| mapped.request.pfn));
        for request in &self.requests {
            let MapRequest { pfn, va, domain: owner, reference, .. } = *request;
            let mapped = maps.iter().find(|mapped| mapped.request == *request);
            let entry = match mapped {
                Some(MappedGrant { mfn, .. }) => P2mEntry::Foreign { owner, mfn: *mfn },
                None => P2mEntry::Absent,
            };
            assert_eq!(p2m.entry(pfn), Ok(entry));
            if entry == P2mEntry::Absent {
                account.found("nobody's", [pfn]);
            }
            let in_use = neighbour.read_grant(reference.0).expect("there").flags & 0x18 != 0;
            assert_eq!(in_use, mapped.is_some(), "by Xen's own marks of grant {reference:?}");
            let there = model.guest().l1_slot(va.raw()).map(|(_, pte)| pte.mfn());
            let granted = neighbour.built_mfn(Pfn::new(reference.0.into()));
            assert_eq!(there == granted, mapped.is_some());
        }
        account.assert_balanced();
        model.audit().expect("every reference has its holder");
        assert_eq!(model.take_violations(), Vec::<String>::new());
    }
}

/// Does `change` with what is granted under every pair of refusals, and then ends everything.
fn grants(
    name: &str,
    change: impl Fn(
        &Guest<'_, FailEach<'_, &Model>>,
        &Granting,
        &mut GrantMaps<'_>,
    ) -> Result<(), String>,
) {
    pairs::run("p2m", name, |plan| {
        let scene = Granting::new();
        let mut places = [None; GRANTS as usize];
        let mut maps = GrantMaps::new(&mut places);
        let machine = pairs::around(scene.guest.model, plan);
        let guest = scene.guest.guest.with_machine(&machine);
        for attempt in 1..=3 {
            let done = change(&guest, &scene, &mut maps);
            scene.check(&maps);
            if done.is_ok() {
                break;
            }
            assert!(attempt <= plan.refused(), "{done:?}, and nothing was refused");
        }
        for pfn in maps.iter().map(|mapped| mapped.request.pfn).collect::<Vec<_>>() {
            // SAFETY: nobody uses the mapping.
            unsafe { maps.unmap(&scene.guest.guest, pfn) }.expect("nothing is refused any more");
        }
        assert_eq!(maps.iter().count(), 0);
        scene.check(&maps);
    });
}

const NOTHING: Result<MappedGrant, NotMapped> =
    Err(NotMapped { error: GrantError::NoPlace(Pfn::new(0)), undo: Ok(()) });

#[test]
fn grants_that_are_mapped_one_by_one_and_unmapped() {
    grants("map_and_unmap", |guest, scene, maps| {
        let left = |maps: &GrantMaps<'_>| {
            let mapped: Vec<_> = maps.iter().map(|it| it.request).collect();
            let left = scene.requests.iter().filter(|request| !mapped.contains(request));
            left.copied().collect::<Vec<_>>()
        };
        let mut results = [NOTHING; GRANTS as usize];
        // SAFETY: the addresses are the test's, and nothing is mapped there.
        unsafe { maps.map(guest, &left(maps), &mut results) };
        scene.check(maps);
        if maps.iter().count() < scene.requests.len() {
            return Err(format!("{results:?}"));
        }
        for request in &scene.requests {
            // SAFETY: nobody uses the mapping.
            unsafe { maps.unmap(guest, request.pfn) }.map_err(|error| error.to_string())?;
            scene.check(maps);
        }
        Ok(())
    });
}
