//! Ranges of pages in both states of an address space: what a loose one does by plain stores, a
//! live one does by requests, and the tables say the same afterwards.
#![expect(unsafe_code, reason = "maps frames of a device that the model alone has")]

mod common;

use common::{Pool, TestGuest, destroy, guest, tools};
use hypercall::middleware::{Counting, FailNth, Refusal};
use hypercall::{
    BatchStorage, DomId, Errno, Frame, FrameSource as _, GuestVa, Level, Machine, Mfn, PteFlags,
};
use p2m::Guest;
use pvmmu::{
    Loose, MapError, Mapped, Mapping, Pages, Pgd, Pinned, RangeError, Shares, TablePool, Tools,
};

const READ_ONLY: PteFlags = PteFlags::USER_RW.difference(PteFlags::WRITABLE);

type Storage = BatchStorage<40, 8>;

fn va(address: u64) -> GuestVa {
    GuestVa::new(address).expect("user half")
}

fn pages(start: u64, count: u64) -> Pages {
    Pages { start: va(start), count }
}

/// Across the border of two tables, with a whole table behind it.
const START: u64 = (1 << 30) - 0x3000;
const COUNT: u64 = 3 + 512 + 5;

/// An address space in either state, with the same vocabulary.
enum Space {
    Loose(Pgd<Loose>),
    Pinned(Pgd<Pinned>),
}

/// Everything that an operation needs.
struct Scene<'g, M> {
    guest: Guest<'g, M>,
    pool: Pool,
    storage: Storage,
}

impl<'g, M: Machine> Scene<'g, M> {
    fn new(test: &'g TestGuest, guest: Guest<'g, M>) -> Self {
        Self { guest, pool: test.pool(), storage: Storage::new() }
    }

    /// Two spaces with the same pages, one in each state.
    fn both(&mut self) -> [Space; 2] {
        let [loose, pinned] = [(); 2].map(|()| {
            let mut pgd = Pgd::with_user_root(&mut Tools::new(self.guest, &mut self.pool))
                .expect("two roots");
            let pages = pages(START, COUNT);
            pgd.map_pages(&mut Tools::new(self.guest, &mut self.pool), pages, PteFlags::USER_RW)
                .expect("mapped");
            pgd
        });
        let pinned = pinned.pin(&self.guest, &mut self.storage.batch()).expect("pinned");
        [Space::Loose(loose), Space::Pinned(pinned)]
    }

    fn unmap(&mut self, space: &mut Space, pages: Pages) -> Result<(), RangeError> {
        match space {
            Space::Loose(pgd) => pgd.unmap(&mut Tools::new(self.guest, &mut self.pool), pages),
            Space::Pinned(pgd) => {
                let (mut batch, mut tables) = (self.storage.batch(), no_tables());
                pgd.unmap(&mut tools(&self.guest, &mut batch, &mut tables, &mut self.pool), pages)
            }
        }
    }

    fn protect(&mut self, space: &mut Space, pages: Pages) -> Result<(), RangeError> {
        match space {
            Space::Loose(pgd) => {
                pgd.protect(&mut Tools::new(self.guest, &mut self.pool), pages, READ_ONLY)
            }
            Space::Pinned(pgd) => {
                let (mut batch, mut tables) = (self.storage.batch(), no_tables());
                let with = &mut tools(&self.guest, &mut batch, &mut tables, &mut self.pool);
                pgd.protect(with, pages, READ_ONLY)
            }
        }
    }

    fn remap(&mut self, space: &mut Space, pages: Pages, to: GuestVa) -> Result<(), RangeError> {
        match space {
            Space::Loose(pgd) => pgd.remap(&mut Tools::new(self.guest, &mut self.pool), pages, to),
            Space::Pinned(pgd) => {
                let (mut batch, mut tables) = (self.storage.batch(), no_tables());
                let with = &mut tools(&self.guest, &mut batch, &mut tables, &mut self.pool);
                pgd.remap(with, pages, to)
            }
        }
    }

    fn move_table(&mut self, space: &mut Space, from: u64, to: u64) -> Result<(), MapError> {
        match space {
            Space::Loose(pgd) => {
                pgd.move_table(&mut Tools::new(self.guest, &mut self.pool), va(from), va(to))
            }
            Space::Pinned(pgd) => {
                let (mut batch, mut tables) = (self.storage.batch(), no_tables());
                let with = &mut tools(&self.guest, &mut batch, &mut tables, &mut self.pool);
                pgd.edit(with, |edit| edit.move_table(va(from), va(to))).map_err(|it| it.error)
            }
        }
    }

    fn replace(&mut self, space: &mut Space, at: u64, frame: Frame) -> Result<(), MapError> {
        match space {
            Space::Loose(pgd) => {
                pgd.replace(&mut Tools::new(self.guest, &mut self.pool), va(at), READ_ONLY, frame)
            }
            Space::Pinned(pgd) => {
                let (mut batch, mut tables) = (self.storage.batch(), no_tables());
                let with = &mut tools(&self.guest, &mut batch, &mut tables, &mut self.pool);
                pgd.edit(with, |edit| edit.replace(va(at), READ_ONLY, frame))
                    .map_err(|refused| refused.error)
            }
        }
    }

    fn translate(&self, space: &Space, pages: Pages) -> Vec<Mapping> {
        let mut all = Vec::new();
        match space {
            Space::Loose(pgd) => pgd.translate_pages(&self.guest, pages, &mut |it| all.push(it)),
            Space::Pinned(pgd) => pgd.translate_pages(&self.guest, pages, &mut |it| all.push(it)),
        }
        .expect("readable");
        all
    }

    fn end<const N: usize>(&mut self, spaces: [Space; N]) {
        for space in spaces {
            let loose = match space {
                Space::Loose(pgd) => pgd,
                Space::Pinned(pgd) => {
                    pgd.unpin(&self.guest, &mut self.storage.batch()).expect("unpinned")
                }
            };
            destroy(&self.guest, loose, &mut self.pool);
        }
    }
}

fn no_tables<'t>() -> TablePool<'t> {
    TablePool::new([&mut [], &mut [], &mut []])
}

/// Addresses and write access, without the frames, which differ from space to space.
fn shape(mappings: &[Mapping]) -> Vec<(u64, bool)> {
    let writable = |mapping: &Mapping| mapping.flags.contains(PteFlags::WRITABLE);
    mappings.iter().map(|mapping| (mapping.va.raw(), writable(mapping))).collect()
}

fn frames(mappings: &[Mapping]) -> Vec<Mapped> {
    mappings.iter().map(|mapping| mapping.frame).collect()
}

const ALL: u64 = 1 << 34;

#[test]
fn both_states_have_the_same_vocabulary_and_say_the_same_afterwards() {
    let test = TestGuest::new();
    let p2m = test.p2m();
    let mut scene = Scene::new(&test, guest(&test, &test.model, &p2m));
    let free = scene.pool.len();
    let mut spaces = scene.both();
    let shapes = spaces.each_mut().map(|space| {
        let before = scene.translate(space, pages(0, ALL >> 12));
        assert_eq!(before.len() as u64, COUNT);
        scene.protect(space, pages(START + 0x1000, 100)).expect("protected");
        scene.unmap(space, pages(START + 0x2000, 40)).expect("unmapped");
        // To free pages of the same table, of another one, and of one that is not there.
        for (from, to) in [(0x1000, 0x2000), (0x50_000, 0x3000), (0x60_000, 3 << 39)] {
            let to = if to < 1 << 39 { START + to } else { to };
            scene.remap(space, pages(START + from, 1), va(to)).expect("moved");
        }
        scene.move_table(space, 1 << 30, 5 << 30).expect("moved");
        let frame = scene.pool.take().expect("a frame");
        let new = frame.pfn();
        scene.replace(space, START, frame).expect("replaced");
        let after = scene.translate(space, pages(0, 1 << 30));
        assert_eq!(after.first().map(|first| first.frame), Some(Mapped::Own(new)));
        let (mut now, known) = (frames(&after), frames(&before));
        assert!(now[1..].iter().all(|frame| known.contains(frame)), "the frames that were there");
        now.sort_unstable_by_key(|frame| frame.pfn());
        assert!(now.is_sorted_by(|one, next| one.pfn() < next.pfn()), "each once");
        test.check();
        shape(&after)
    });
    assert_eq!(shapes[0], shapes[1]);
    assert_eq!(shapes[0].len() as u64, COUNT - 40);
    scene.end(spaces);
    assert_eq!(scene.pool.len(), free);
    test.check();
}

#[test]
fn what_cannot_be_is_refused_alike_in_both_states() {
    let test = TestGuest::new();
    let p2m = test.p2m();
    let machine = Counting::new(&test.model);
    let mut scene = Scene::new(&test, guest(&test, &machine, &p2m));
    let mut spaces = scene.both();
    let (behind, kernel) = (START + COUNT * 0x1000, va(0xffff_ffff_8000_0000));
    for space in &mut spaces {
        let before = scene.translate(space, pages(0, ALL >> 12));
        let counts = machine.counts();
        let refused = |error| Err(RangeError { done: 0, error });
        let missing = refused(MapError::NotMapped(va(behind)));
        assert_eq!(scene.unmap(space, pages(behind, 1)), missing);
        assert_eq!(scene.protect(space, pages(behind, 1)), missing);
        assert_eq!(scene.remap(space, pages(behind, 1), va(1 << 35)), missing);
        let overlap = refused(MapError::Overlap(va(START + 0x1000)));
        assert_eq!(scene.remap(space, pages(START, 2), va(START + 0x1000)), overlap);
        let in_kernel = refused(MapError::KernelHalf(kernel));
        assert_eq!(scene.remap(space, pages(START, 1), kernel), in_kernel);
        let taken = scene.remap(space, pages(START, 2), va(START + 0x5000)).expect_err("taken");
        assert!(matches!(taken.error, MapError::Occupied { va, .. } if va.raw() == START + 0x5000));
        let table = scene.move_table(space, 1 << 30, (1 << 30) + (1 << 21)).expect_err("taken");
        assert!(matches!(table, MapError::Occupied { .. }), "{table}");
        assert_eq!(scene.move_table(space, START, 1 << 35), Err(MapError::Unaligned(va(START))));
        let frame = scene.pool.take().expect("a frame");
        let nowhere = Err(MapError::NotMapped(va(behind)));
        assert_eq!(scene.replace(space, behind, frame), nowhere);
        assert_eq!(machine.counts(), counts, "Xen was not asked");
        assert_eq!(scene.translate(space, pages(0, ALL >> 12)), before);
    }
    scene.end(spaces);
    test.check();
}

#[test]
fn a_range_is_moved_in_few_traps_and_a_whole_table_in_one() {
    let test = TestGuest::new();
    let p2m = test.p2m();
    let machine = Counting::new(&test.model);
    let mut scene = Scene::new(&test, guest(&test, &machine, &p2m));
    let mut spaces = scene.both();
    let before = scene.translate(&spaces[1], pages(START, COUNT));
    // Tables above the new place, so that only what moves is counted.
    let to = 6 << 30;
    let frame = scene.pool.take().expect("a frame");
    if let Space::Pinned(pgd) = &mut spaces[1] {
        let (mut batch, mut tables) = (scene.storage.batch(), no_tables());
        let with = &mut tools(&scene.guest, &mut batch, &mut tables, &mut scene.pool);
        pgd.map(with, va(to - 0x4000), READ_ONLY, frame).expect("mapped");
        pgd.map_pages(with, pages(to + (8 << 21), 1), READ_ONLY).expect("mapped");
    }
    let counts = machine.counts();
    scene.remap(&mut spaces[1], pages(START, COUNT), va(to - 0x3000)).expect("moved");
    let cost = machine.counts() - counts;
    // Three pages; the table; one more, and five pages into it.
    assert_eq!((cost.hypercalls, cost.entries), (4, (6 + 3) + 2 + 2 + (10 + 5)));
    let after = scene.translate(&spaces[1], pages(to - 0x3000, COUNT));
    assert_eq!(frames(&after), frames(&before));
    assert_eq!(scene.translate(&spaces[1], pages(START, COUNT)), []);
    scene.end(spaces);
    test.check();
}

#[test]
fn a_refused_move_leaves_every_page_at_one_place() {
    let mut refusals = 0;
    for request in 0..20 {
        for done in [0, 1, 4, 30] {
            let test = TestGuest::new();
            let p2m = test.p2m();
            let plain = guest(&test, &test.model, &p2m);
            let mut scene = Scene::new(&test, plain);
            let mut spaces = scene.both();
            let before = scene.translate(&spaces[1], pages(START, COUNT));
            let refusal = Refusal { request, errno: Errno::ENOMEM, done };
            let machine = FailNth::new(&test.model, refusal);
            let around = guest(&test, &machine, &p2m);
            let Space::Pinned(pgd) = &mut spaces[1] else { panic!("pinned") };
            let (mut batch, mut tables) = (scene.storage.batch(), no_tables());
            let with = &mut tools(&around, &mut batch, &mut tables, &mut scene.pool);
            let moved = pgd.remap(with, pages(START, 100), va((6 << 30) - 0x3000));
            assert_eq!(moved.is_err(), machine.has_refused(), "{refusal:?}: {moved:?}");
            let done = moved.map_or_else(|error| error.done, |()| 100);
            refusals += u64::from(machine.has_refused());
            let there = scene.translate(&spaces[1], pages((6 << 30) - 0x3000, 100));
            let here = scene.translate(&spaces[1], pages(START, COUNT));
            let all = frames(&[there.as_slice(), &here].concat());
            assert_eq!((there.len() as u64, all), (done, frames(&before)), "{refusal:?}");
            scene.end(spaces);
            test.check();
        }
    }
    assert!(refusals > 12, "{refusals}");
}

#[test]
fn a_walk_meets_every_table_once_and_what_is_missing_not_at_all() {
    let test = TestGuest::new();
    let p2m = test.p2m();
    let mut scene = Scene::new(&test, guest(&test, &test.model, &p2m));
    let spaces = scene.both();
    let Space::Pinned(pgd) = &spaces[1] else { panic!("pinned") };
    let walked = |pages| {
        let mut met: Vec<(u64, Level)> = Vec::new();
        let note = &mut |place: pvmmu::audit::Place| met.push((place.va.raw(), place.level));
        pgd.walk(&scene.guest, pages, note).expect("readable");
        met
    };
    let met = walked(pages(0, 1 << 35));
    let of =
        |level| met.iter().filter(|(_, at)| *at == level).map(|(va, _)| *va).collect::<Vec<_>>();
    assert_eq!(of(Level::L4), [0]);
    assert_eq!(of(Level::L3), [0, 1 << 30]);
    assert_eq!(of(Level::L2), [(1 << 30) - (1 << 21), 1 << 30, (1 << 30) + (1 << 21)]);
    let pages_met: Vec<u64> = (0..COUNT).map(|page| START + page * 0x1000).collect();
    assert_eq!(of(Level::L1), pages_met);
    assert!(met.is_sorted_by_key(|(va, _)| *va), "in order of address");
    let one = walked(pages(START + 0x3000, 1));
    assert_eq!(one.iter().map(|(_, level)| *level).collect::<Vec<_>>(), Level::TOP_DOWN);
    assert_eq!(walked(pages(START, 0)), []);
    let inside = pgd.translate(&scene.guest, va(START + 0x1234)).expect("readable");
    assert_eq!(inside.map(|mapping| mapping.va.raw()), Some(START + 0x1000));
    assert_eq!(pgd.translate(&scene.guest, va(START - 1)), Ok(None));
    scene.end(spaces);
}

#[test]
fn a_loose_tree_takes_registers_of_devices_and_no_frame_of_a_domain() {
    let test = TestGuest::dom0();
    let p2m = test.p2m();
    let mut scene = Scene::new(&test, guest(&test, &test.model, &p2m));
    let free = scene.pool.len();
    let mut pgd = Pgd::new(&mut Tools::new(scene.guest, &mut scene.pool)).expect("a root");
    let registers = Mfn::new(test.model.ram_end().raw() + 0x100);
    let own = p2m.mfn(hypercall::Pfn::new(9)).expect("RAM");
    let mut map = |frame, domain| {
        let (pages, flags) = (pages(START, 5), PteFlags::USER_RW);
        // SAFETY: no Rust object lives in the model's test.
        unsafe {
            pgd.map_foreign(
                &mut Tools::new(scene.guest, &mut scene.pool),
                pages,
                flags,
                frame,
                domain,
            )
        }
        .map_err(|it| it.error)
    };
    assert_eq!(map(registers, DomId(1)), Err(MapError::OnlyLive(DomId(1))));
    assert_eq!(map(own, DomId::IO), Err(MapError::Own(hypercall::Pfn::new(9))));
    map(registers, DomId::IO).expect("mapped");
    assert!(matches!(map(registers, DomId::IO), Err(MapError::Occupied { .. })));
    let pgd = pgd.pin(&scene.guest, &mut scene.storage.batch()).expect("dom0 may");
    let mapping = pgd.translate(&scene.guest, va(START + 0x2000)).expect("readable");
    let frame = mapping.expect("mapped").frame;
    assert_eq!((frame, frame.pfn()), (Mapped::Foreign(Mfn::new(registers.raw() + 2)), None));
    let loose = pgd.unpin(&scene.guest, &mut scene.storage.batch()).expect("unpinned");
    destroy(&scene.guest, loose, &mut scene.pool);
    assert_eq!(scene.pool.len(), free);
    test.check();
}

#[test]
fn a_tables_flags_hold_for_all_its_pages_in_both_states() {
    let test = TestGuest::new();
    let p2m = test.p2m();
    let mut scene = Scene::new(&test, guest(&test, &test.model, &p2m));
    let mut spaces = scene.both();
    for space in &mut spaces {
        for level in [Level::L2, Level::L3, Level::L4] {
            let (at, flags) = (va(1 << 30), PteFlags::PRESENT);
            match space {
                Space::Loose(pgd) => pgd.set_table_flags(
                    &mut Tools::new(scene.guest, &mut scene.pool),
                    level,
                    at,
                    flags,
                ),
                Space::Pinned(pgd) => {
                    let (mut batch, mut tables) = (scene.storage.batch(), no_tables());
                    let with = &mut tools(&scene.guest, &mut batch, &mut tables, &mut scene.pool);
                    let set = pgd.edit(with, |edit| edit.set_table_flags(level, at, flags));
                    set.map_err(|refused| refused.error)
                }
            }
            .expect("set");
            let roots = match space {
                Space::Loose(pgd) => [Some(pgd.root()), pgd.user_root()],
                Space::Pinned(pgd) => [Some(pgd.root()), pgd.user_root()],
            };
            for root in roots.into_iter().flatten() {
                let walk = p2m::walk(&scene.guest, root, va(1 << 30)).expect("readable");
                let step = walk.at(level).expect("a table");
                assert!(step.pte.is_present() && !step.pte.is_writable(), "{level}: {walk}");
            }
        }
    }
    let Space::Loose(loose) = &mut spaces[0] else { panic!("loose") };
    let mut with = Tools::new(scene.guest, &mut scene.pool);
    let absent = loose.set_table_flags(&mut with, Level::L3, va(1 << 39), PteFlags::TABLE);
    assert_eq!(absent, Err(MapError::NotMapped(va(1 << 39))));
    let empty = loose.set_table_flags(&mut with, Level::L3, va(0), PteFlags::empty());
    assert_eq!(empty, Err(MapError::Flags { va: va(0), flags: PteFlags::empty() }));
    scene.end(spaces);
    test.check();
}

#[test]
fn a_child_inherits_what_its_parents_tables_forbid() {
    let test = TestGuest::new();
    let p2m = test.p2m();
    let mut scene = Scene::new(&test, guest(&test, &test.model, &p2m));
    let mut counts = vec![0; test.list.len()];
    let mut shares = Shares::new(&mut counts);
    let [loose, mut space] = scene.both();
    let Space::Pinned(pgd) = &mut space else { panic!("pinned") };
    let (mut batch, mut tables) = (scene.storage.batch(), no_tables());
    let with =
        &mut tools(&scene.guest, &mut batch, &mut tables, &mut scene.pool).with_shares(&mut shares);
    let forbidden = PteFlags::PRESENT | PteFlags::NO_EXECUTE;
    pgd.edit(with, |edit| edit.set_table_flags(Level::L2, va(1 << 30), forbidden)).expect("set");
    let child = pgd.fork(with).expect("forked");
    for (address, is_writable) in [(1 << 30, false), (START, true)] {
        for root in [pgd.root(), child.root(), child.user_root().expect("it has one")] {
            let walk = p2m::walk(&scene.guest, root, va(address)).expect("readable");
            let pte = walk.at(Level::L2).expect("a table").pte;
            let can = (pte.is_writable(), !pte.flags().contains(PteFlags::NO_EXECUTE));
            assert_eq!(can, (is_writable, is_writable), "{walk}");
        }
    }
    child.destroy(with).expect("destroyed");
    if let Space::Pinned(pgd) = space {
        pgd.destroy(with).expect("destroyed");
    }
    scene.end([loose]);
    assert!(counts.iter().all(|count| *count == 0));
    test.check();
}
