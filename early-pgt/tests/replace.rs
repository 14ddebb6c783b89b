//! The builder's tables are replaced: what the copies say, what becomes free, and what happens if
//! Xen refuses.
#![expect(unsafe_code, reason = "claims frames of a guest that exists only in the model")]

use early_pgt::{EarlyError, OldList, Plan, ReplaceError, Replaced, replace_tables};
use hypercall::middleware::{FailNth, Refusal};
use hypercall::{
    BatchStorage, Errno, FrameAccess as _, Frames, GuestVa, Level, Machine, Pfn, Pte, PteFlags,
};
use p2m::Pfns;
use pv_tests::booting::{Booting, CONSTANTS, DIRECT_MAP, TEXT};
use x86_64::structures::paging::PageTableIndex;
use xen_model::{Builder, DomainConfig, Model, Role};

type Storage = BatchStorage<6000, 3>;

const LIST_VA: u64 = 0xffff_b000_0000_0000;

/// A guest whose direct map is built, with code and constants in its image, and its free frames.
fn built(config: DomainConfig) -> (Booting, Vec<Frames>) {
    built_on(Model::builder(), config)
}

fn built_on(builder: Builder, config: DomainConfig) -> (Booting, Vec<Frames>) {
    let booting = Booting::with_code(builder, config);
    let free = booting.build();
    (booting, free)
}

/// Frames for the tables: the end of the largest run, which is not in the builder's mapping; or its
/// beginning, which is.
fn frames(booting: &Booting, free: Vec<Frames>, place: Place) -> (Frames, Vec<Frames>) {
    let needed = booting.memory().own_tables() + 1;
    let (mut fit, mut rest): (Vec<_>, Vec<_>) =
        free.into_iter().partition(|run| run.count() >= needed);
    let run = match place {
        Place::Low => fit.remove(0),
        Place::High => fit.pop().expect("room"),
    };
    rest.append(&mut fit);
    let keep = if place == Place::Low { needed } else { run.count() - needed };
    let (low, high) = run.split(keep).expect("so many");
    let (frames, other) = if place == Place::Low { (low, high) } else { (high, low) };
    rest.push(other);
    (frames, rest)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Low,
    High,
}

fn replace<M: Machine>(
    booting: &Booting,
    machine: &M,
    list: OldList,
    frames: Frames,
    owner: impl FnMut(Frames),
) -> Result<Replaced, ReplaceError> {
    let p2m = booting.p2m();
    let mut storage = Box::new(Storage::new());
    let guest = booting.guest(machine, &p2m);
    let memory = booting.memory();
    // SAFETY: the frames exist only in the model, nobody else claims any, and nothing is executed.
    unsafe { replace_tables(&guest, &memory, list, frames, &mut storage.batch(), owner) }
}

/// The entries on the way to `va` in the tree that the vCPU runs on.
fn path(booting: &Booting, va: u64) -> Vec<Pte> {
    let va = GuestVa::new(va).expect("the guest's");
    let mut table = booting.model.guest().kernel_root().expect("a root");
    let mut path = Vec::new();
    for level in Level::TOP_DOWN {
        let pfn = booting.model.machine_to_phys(table).expect("a frame");
        let pte = booting.model.read_entry(pfn, level.index_of(va)).expect("mapped");
        path.push(pte);
        if !pte.is_present() {
            break;
        }
        table = pte.mfn();
    }
    path
}

/// Whether a page can be written, and executed; `None` if it is not mapped.
fn rights(booting: &Booting, va: u64) -> Option<(bool, bool)> {
    let path = path(booting, va);
    let last = path.last()?;
    last.is_present().then(|| {
        let executable = !path.iter().any(|pte| pte.flags().contains(PteFlags::NO_EXECUTE));
        (path.iter().all(|pte| pte.is_writable()), executable)
    })
}

fn holds(pfns: Pfns, pfn: Pfn) -> bool {
    pfns.start <= pfn && pfn.raw() < pfns.end()
}

/// Every page of the kernel's mapping and of the direct map has the rights it should.
fn check_rights(booting: &Booting, replaced: Replaced) {
    let rounds: Vec<Pfns> =
        Plan::new(&booting.memory()).expect("planned").rounds().iter().map(|r| r.used()).collect();
    let all_executable = booting.model.missing_flags().contains(PteFlags::NO_EXECUTE);
    for pfn in (0..booting.boot.pages).map(Pfn::new) {
        let table = holds(replaced.tables, pfn) || rounds.iter().any(|run| holds(*run, pfn));
        let writable = !(table || holds(TEXT, pfn) || holds(CONSTANTS, pfn));
        let direct = rights(booting, DIRECT_MAP + (pfn.raw() << 12));
        assert_eq!(direct, Some((writable, all_executable)), "pfn {pfn} in the direct map");
        if pfn.raw() < booting.place.kernel_pages {
            let kernel = rights(booting, booting.place.kernel.raw() + (pfn.raw() << 12));
            let executable = all_executable || holds(TEXT, pfn);
            assert_eq!(kernel, Some((writable, executable)), "pfn {pfn} at VIRT_BASE");
        }
    }
}

#[test]
fn only_code_is_executable_and_the_builders_pages_are_free() {
    for place in [Place::Low, Place::High] {
        for (role, pages) in [(Role::DomU, 0x2000), (Role::Dom0, 0x2100), (Role::DomU, 0x2_0000)] {
            let (booting, free) = built(DomainConfig::new(role, pages));
            let before: u64 = free.iter().map(Frames::count).sum();
            let (frames, rest) = frames(&booting, free, place);
            let mut given: u64 = rest.iter().map(Frames::count).sum();
            let moved = OldList::LeftAt(booting.boot.p2m_list);
            let owner = |frames: Frames| given += frames.count();
            let replaced = replace(&booting, &booting.model, moved, frames, owner);
            let replaced = replaced.expect("nothing is refused");
            let gone: u64 = booting.memory().replaced_uses(moved).map(|used| used.pfns.count).sum();
            assert_eq!(gone, booting.boot.table_frames + pages.div_ceil(512));
            assert_eq!(given, before + gone - replaced.tables.count, "{place:?} {role:?}");
            let root = booting.model.guest().kernel_root().expect("a root");
            assert_eq!(booting.model.machine_to_phys(root), Some(replaced.root));
            check_rights(&booting, replaced);
            for used in booting.memory().replaced_uses(moved) {
                for pfn in used.pfns.iter() {
                    assert!(!booting.is_table(pfn), "pfn {pfn} is a table");
                }
            }
            booting.check();
        }
    }
}

#[test]
fn without_nx_all_is_executable_and_the_code_is_read_only_all_the_same() {
    let (booting, free) = built_on(Model::builder().no_nx(), DomainConfig::new(Role::DomU, 0x2000));
    let (frames, _) = frames(&booting, free, Place::High);
    let moved = OldList::LeftAt(booting.boot.p2m_list);
    let replaced = replace(&booting, &booting.model, moved, frames, |_| ());
    check_rights(&booting, replaced.expect("nothing is refused"));
    booting.check();
}

#[test]
fn a_list_in_a_root_slot_of_its_own_goes_if_it_has_moved_and_only_then() {
    for moves in [true, false] {
        let mut config = DomainConfig::new(Role::DomU, 0x2_0000);
        config.init_p2m = Some(LIST_VA);
        let (booting, free) = built(config);
        let list = match moves {
            true => OldList::LeftAt(booting.boot.p2m_list),
            false => OldList::InUse,
        };
        let (frames, _) = frames(&booting, free, Place::High);
        let mut given = Vec::new();
        let owner = |frames: Frames| given.push((frames.start(), frames.count()));
        let replaced = replace(&booting, &booting.model, list, frames, owner);
        assert!(replaced.is_ok(), "{replaced:?}");
        assert_eq!(rights(&booting, LIST_VA).is_none(), moves);
        let (first, count) = booting.boot.p2m_frames.expect("the builder says where");
        assert_eq!(given.contains(&(first, count)), moves);
        for pfn in Pfns::new(first, count).iter() {
            let direct = rights(&booting, DIRECT_MAP + (pfn.raw() << 12));
            assert_eq!(direct, Some((moves, false)), "pfn {pfn}");
        }
        booting.check();
    }
}

/// All tables, read-only pages and the root: what a failed replacement must not change.
fn state(booting: &Booting) -> (Option<hypercall::Mfn>, Vec<u64>) {
    let kernel = (0..booting.place.kernel_pages).map(|pfn| booting.place.kernel.raw() + pfn * 4096);
    let direct = (0..booting.boot.pages).map(|pfn| DIRECT_MAP + pfn * 4096);
    let entry = |va| booting.model.guest().l1_slot(va).map_or(0, |(_, pte)| pte.raw() & !0x60);
    (booting.model.guest().kernel_root(), kernel.chain(direct).map(entry).collect())
}

#[test]
fn each_element_of_each_request_can_be_refused_and_it_can_be_done_again() {
    let (booting, free) = built(DomainConfig::new(Role::DomU, 0x2000));
    let (mut frames, _) = frames(&booting, free, Place::Low);
    let before = state(&booting);
    let tables = usize::try_from(booting.memory().own_tables()).expect("few");
    let cases =
        [(0, vec![0, 1, tables - 1, tables, tables + 1]), (1, vec![0, 1, 2]), (2, vec![0, 1, 4])];
    for (request, dones) in cases {
        for done in dones {
            let refusal = Refusal { request, errno: Errno::ENOMEM, done };
            let machine = FailNth::new(&booting.model, refusal);
            let moved = OldList::LeftAt(booting.boot.p2m_list);
            let refused = replace(&booting, &machine, moved, frames, |_| ());
            let error = refused.expect_err("refused");
            assert_eq!(error.undo, Ok(()), "request {request} after {done}: {error}");
            assert!(error.to_string().contains("ENOMEM"), "{error}");
            let switch = matches!(error.failure, EarlyError::Switch { .. });
            assert_eq!(switch, request == 1, "{error}");
            let after = state(&booting);
            let changed = before.1.iter().zip(&after.1).find(|(before, after)| before != after);
            assert!(after == before, "request {request} after {done}: {changed:x?}");
            booting.check();
            frames = error.frames.expect("they come back");
        }
    }
    let moved = OldList::LeftAt(booting.boot.p2m_list);
    let replaced = replace(&booting, &booting.model, moved, frames, |_| ());
    check_rights(&booting, replaced.expect("nothing is refused"));
}

#[test]
fn tables_whose_undo_is_refused_are_given_to_nobody_and_the_builders_stay_in_use() {
    for (request, done) in [(0, 3), (1, 2), (2, 1)] {
        let (booting, free) = built(DomainConfig::new(Role::DomU, 0x2000));
        let (frames, _) = frames(&booting, free, Place::Low);
        let (start, needed) = (frames.start(), booting.memory().own_tables());
        let refusal = |request, done| Refusal { request, errno: Errno::ENOMEM, done };
        let undo = FailNth::new(&booting.model, refusal(request + 1, 0));
        let machine = FailNth::new(&undo, refusal(request, done));
        let moved = OldList::LeftAt(booting.boot.p2m_list);
        let mut given = Vec::new();
        let owner = |frames: Frames| given.push((frames.start(), frames.count()));
        let refused = replace(&booting, &machine, moved, frames, owner);
        let error = refused.expect_err("refused twice");
        assert!(error.undo.is_err(), "{error}");
        let doubtful = error.frames.expect_err("the tables");
        assert_eq!((doubtful.start(), doubtful.count()), (start, needed));
        assert_eq!(given, [(Pfn::new(start.raw() + needed), 1)], "only what was not needed");
        booting.check();
    }
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_changed() {
    let (booting, free) = built(DomainConfig::new(Role::DomU, 0x2000));
    let before = state(&booting);
    let (frames, _) = frames(&booting, free, Place::High);
    let (few, frames) = frames.split(2).expect("more than two");
    let refused = replace(&booting, &booting.model, OldList::InUse, few, |_| ());
    let error = refused.expect_err("too few");
    let needed = booting.memory().own_tables();
    assert_eq!(error.failure, EarlyError::TooFewFrames { given: 2, needed });
    assert_eq!(error.frames.map(|frames| frames.count()), Ok(2));
    let p2m = booting.p2m();
    let guest = booting.guest(&booting.model, &p2m);
    let mut storage = Box::new(BatchStorage::<6000, 2>::new());
    let (memory, mut batch) = (booting.memory(), storage.batch());
    let list = OldList::InUse;
    // A frame short because two were split off: the run above had one to spare.
    let few = frames.count() < needed;
    // SAFETY: as in `replace`.
    let refused = unsafe { replace_tables(&guest, &memory, list, frames, &mut batch, |_| ()) };
    let failure = refused.map_err(|error| error.failure);
    let wanted = match few {
        true => EarlyError::TooFewFrames { given: needed - 1, needed },
        false => EarlyError::NoStorage,
    };
    assert_eq!(failure, Err(wanted));
    assert!(state(&booting) == before);
    let root = booting.model.read_entry(booting.root, PageTableIndex::new(511)).expect("the root");
    assert!(root.is_present());
    booting.check();
}
