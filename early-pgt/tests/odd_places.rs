//! Things that begin or end within a page, and things that lie over one another: no page of theirs
//! is ever free, and what would be given away twice is refused.

use arbtest::arbitrary::{Result, Unstructured};
use early_pgt::{
    BootMemory, BootRegion, EarlyError, FrameUse, MapPlace, Plan, RegionKind, UseKind,
};
use hypercall::start_info::{BootInfo, BootInfoError, Module, StartInfo};
use hypercall::{GuestVa, Pfn};
use p2m::Pfns;
use pv_tests::booting::Booting;
use xen_model::Role;

/// What else a page may be used for.
const KINDS: [UseKind; 12] = [
    UseKind::KernelText,
    UseKind::KernelConstants,
    UseKind::KernelData,
    UseKind::BuilderTables,
    UseKind::List,
    UseKind::ListAndTables,
    UseKind::EarlyTables,
    UseKind::TableBuffer,
    UseKind::StartInfo,
    UseKind::Ring,
    UseKind::Module,
    UseKind::Reserved,
];

/// Those that go to an allocator when the builder's tables are replaced and its list has moved.
const GIVEN: [UseKind; 3] = [UseKind::BuilderTables, UseKind::List, UseKind::ListAndTables];

fn pfns(start: u64, count: u64) -> Pfns {
    Pfns::new(Pfn::new(start), count)
}

/// The first byte of page `pfn` of the kernel's mapping, and `offset` bytes more.
fn byte(booting: &Booting, pfn: u64, offset: u64) -> GuestVa {
    GuestVa::new(booting.place.kernel.raw() + (pfn << 12) + offset).expect("the guest's")
}

#[test]
fn a_module_that_begins_anywhere_keeps_each_page_that_a_byte_of_it_is_in() {
    let booting = Booting::new(Role::DomU, 1 << 14);
    let kept = |offset, len_bytes| {
        let module = Module::Mapped { start: byte(&booting, 0x300, offset), len_bytes };
        let uses = booting.place.builder_uses(&BootInfo { module, ..booting.boot });
        uses.map(|[.., module]| module.map(|module| module.pfns))
    };
    assert_eq!(kept(0x800, 0x1000), Ok(Some(pfns(0x300, 2))));
    assert_eq!(kept(0xfff, 1), Ok(Some(pfns(0x300, 1))));
    assert_eq!(kept(0xfff, 2), Ok(Some(pfns(0x300, 2))));
    assert_eq!(kept(1, 0x1fff), Ok(Some(pfns(0x300, 2))));
    assert_eq!(kept(1, 0x2000), Ok(Some(pfns(0x300, 3))));
}

#[test]
fn the_last_page_of_a_module_that_begins_within_one_is_never_free() {
    let mut booting = Booting::new(Role::DomU, 1 << 14);
    let module = Module::Mapped { start: byte(&booting, 0x300, 0x800), len_bytes: 0x1000 };
    let boot = BootInfo { module, ..booting.boot };
    let [.., module] = booting.place.builder_uses(&boot).expect("in the mapping");
    booting.uses.extend(module);
    for run in booting.build() {
        let run = pfns(run.start().raw(), run.count());
        assert!(run.iter().all(|pfn| !(0x300..=0x301).contains(&pfn.raw())), "{run:?}");
    }
    booting.check();
}

#[test]
fn a_list_that_begins_within_a_page_is_refused_by_its_address_or_keeps_its_last_page() {
    let booting = Booting::new(Role::DomU, 1 << 14); // its list is 32 pages
    let info = booting.model.guest().start_info().expect("built");
    let mfn_list = info.mfn_list + 8;
    let refused = BootInfo::parse(&StartInfo { mfn_list, ..info });
    assert_eq!(refused, Err(BootInfoError::Unaligned("mfn_list", mfn_list)));
    // A port that finds its list elsewhere.
    let p2m_list = GuestVa::new(mfn_list).expect("the guest's");
    let uses = booting.place.builder_uses(&BootInfo { p2m_list, ..booting.boot });
    let [_, list, _] = uses.expect("in the mapping");
    assert_eq!(list.map(|list| list.pfns.count), Some(33), "the words reach into a 33rd page");
}

#[test]
fn what_leaves_the_builders_mapping_is_refused_with_the_first_address_outside() {
    let booting = Booting::new(Role::DomU, 1 << 14);
    let pages = booting.place.kernel_pages;
    let behind = byte(&booting, pages, 0);
    let refused = |boot: BootInfo| booting.place.builder_uses(&boot).map(drop);
    let module =
        |start, len_bytes| BootInfo { module: Module::Mapped { start, len_bytes }, ..booting.boot };
    assert_eq!(refused(module(byte(&booting, pages - 1, 0xff0), 0x10)), Ok(()));
    let outside = Err(EarlyError::NotInKernelMapping(behind));
    assert_eq!(refused(module(byte(&booting, pages - 1, 0xff0), 0x11)), outside);
    assert_eq!(refused(module(byte(&booting, pages - 1, 0xff0), u64::MAX)), outside);
    let below = GuestVa::new(booting.place.kernel.raw() - 0x1000).expect("the guest's");
    assert_eq!(refused(module(below, 0x2000)), Err(EarlyError::NotInKernelMapping(below)));
    let boot = BootInfo { table_frames: 1 << 20, ..booting.boot };
    assert_eq!(refused(boot), outside);
    let boot = BootInfo { pages: u64::MAX, ..booting.boot };
    assert_eq!(refused(boot), outside);
}

/// What is said of these two uses.
fn overlap(
    booting: &Booting,
    one: FrameUse,
    other: FrameUse,
) -> core::result::Result<(), EarlyError> {
    BootMemory::new(&booting.regions, &[one, other], booting.place).map(drop)
}

#[test]
fn what_an_allocator_gets_later_is_in_no_other_use_of_any_kind() {
    let booting = Booting::new(Role::DomU, 1 << 14);
    for given in GIVEN {
        let used = FrameUse { pfns: pfns(0x100, 0x40), kind: given };
        for kind in KINDS {
            for place in [pfns(0x13f, 0x10), pfns(0xf0, 0x11), pfns(0x110, 1), used.pfns] {
                let other = FrameUse { pfns: place, kind };
                for (first, second) in [(used, other), (other, used)] {
                    match overlap(&booting, first, second) {
                        Err(EarlyError::UseOverlap { used: one, other: two }) => {
                            assert!(GIVEN.contains(&one.kind), "{one:?}");
                            assert!([(used, other), (other, used)].contains(&(one, two)));
                        }
                        accepted => panic!("{first:?} and {second:?}: {accepted:?}"),
                    }
                }
            }
            for beside in [pfns(0x140, 0x10), pfns(0xf0, 0x10)] {
                assert_eq!(overlap(&booting, used, FrameUse { pfns: beside, kind }), Ok(()));
            }
        }
    }
}

#[test]
fn what_stays_in_use_may_share_pages() {
    let booting = Booting::new(Role::DomU, 1 << 14);
    let stays = KINDS.into_iter().filter(|kind| !GIVEN.contains(kind));
    for (one, other) in stays.clone().flat_map(|one| stays.clone().map(move |two| (one, two))) {
        let one = FrameUse { pfns: pfns(0x100, 0x40), kind: one };
        assert_eq!(overlap(&booting, one, FrameUse { pfns: pfns(0x13f, 2), kind: other }), Ok(()));
    }
    // A module that shares its first page with `start_info`.
    let mut booting = booting;
    let start_info = booting.uses.iter().find(|used| used.kind == UseKind::StartInfo);
    let shared = pfns(start_info.expect("there is one").pfns.start.raw(), 1);
    booting.uses.push(FrameUse { pfns: shared, kind: UseKind::Module });
    assert!(Plan::new(&booting.memory()).is_ok());
}

/// A number that catches mistakes, or one near it.
fn odd_number(random: &mut Unstructured<'_>) -> Result<u64> {
    const ODD: [u64; 12] = [
        0,
        1,
        8,
        0x200,
        0x400,
        0x1000,
        1 << 27,
        1 << 36,
        1 << 40,
        0xffff_8800_0000_0000,
        0xffff_ffff_8000_0000,
        u64::MAX,
    ];
    let near = random.int_in_range(0..=0x1002)?;
    let base = *random.choose(&ODD)?;
    Ok(if random.arbitrary()? { base.wrapping_add(near) } else { base.wrapping_sub(near) })
}

/// A number, most often the given one.
fn or_odd(random: &mut Unstructured<'_>, right: u64) -> Result<u64> {
    if random.ratio(3, 4)? { Ok(right) } else { odd_number(random) }
}

#[test]
fn whatever_start_info_says_it_is_refused_or_every_byte_is_in_a_page_that_is_in_use() {
    let booting = Booting::new(Role::DomU, 1 << 14);
    let good = booting.model.guest().start_info().expect("built");
    arbtest::arbtest(|random| {
        let mut info = good.clone();
        info.nr_pages = or_odd(random, info.nr_pages)?;
        info.nr_pt_frames = or_odd(random, info.nr_pt_frames)?;
        info.pt_base = or_odd(random, info.pt_base)?;
        info.mfn_list = or_odd(random, info.mfn_list)?;
        info.mod_start = or_odd(random, byte(&booting, 0x300, 0x123).raw())?;
        info.mod_len = or_odd(random, 0x1234)?;
        info.flags = random.int_in_range(0..=15)?;
        info.first_p2m_pfn = or_odd(random, 0x400)?;
        info.nr_p2m_frames = or_odd(random, 0)?;
        let Ok(boot) = BootInfo::parse(&info) else { return Ok(()) };
        let Ok(uses) = booting.place.builder_uses(&boot) else { return Ok(()) };
        let uses: Vec<FrameUse> = uses.into_iter().flatten().collect();
        let holds = |va: u64| {
            let pfn = (va - booting.place.kernel.raw()) >> 12;
            uses.iter().any(|used| used.pfns.start.raw() <= pfn && pfn < used.pfns.end())
        };
        if let Module::Mapped { start, len_bytes } = boot.module {
            assert!(holds(start.raw()) && holds(start.raw() + len_bytes - 1), "{boot:?}");
        }
        if boot.p2m_frames.is_none() {
            let list = boot.p2m_list.raw();
            assert!(holds(list) && holds(list + boot.pages * 8 - 1), "{boot:?}");
        }
        let Ok(memory) = BootMemory::new(&booting.regions, &uses, booting.place) else {
            return Ok(());
        };
        for free in memory.free() {
            let is_used = |used: &FrameUse| {
                free.start.raw() < used.pfns.end() && used.pfns.start.raw() < free.end()
            };
            assert!(!uses.iter().any(is_used), "{free:?} of {uses:?}");
        }
        let _ = Plan::new(&memory);
        Ok(())
    });
}

#[test]
fn a_memory_of_odd_numbers_is_refused_or_planned() {
    arbtest::arbtest(|random| {
        let run = |random: &mut Unstructured<'_>, right: Pfns| {
            Ok::<_, arbtest::arbitrary::Error>(Pfns::new(
                Pfn::new(or_odd(random, right.start.raw())?),
                or_odd(random, right.count)?,
            ))
        };
        let mut regions = Vec::new();
        for right in [pfns(0, 0x2000), pfns(0x3000, 0x1000)] {
            let kind = *random.choose(&[RegionKind::Ram, RegionKind::Ram, RegionKind::Identity])?;
            regions.push(BootRegion { pfns: run(random, right)?, kind });
        }
        let mut uses = Vec::new();
        for right in [pfns(0x100, 0x200), pfns(0x300, 5), pfns(0x3000, 0x40)] {
            uses.push(FrameUse { pfns: run(random, right)?, kind: *random.choose(&KINDS)? });
        }
        let direct_map = GuestVa::new(or_odd(random, 0xffff_8800_0000_0000)?);
        let kernel = GuestVa::new(or_odd(random, 0xffff_ffff_8000_0000)?);
        let (Ok(direct_map), Ok(kernel)) = (direct_map, kernel) else { return Ok(()) };
        let kernel_pages = or_odd(random, 0x400)?;
        let place = MapPlace { kernel, kernel_pages, direct_map };
        if let Ok(memory) = BootMemory::new(&regions, &uses, place)
            && let Ok(plan) = Plan::new(&memory)
        {
            assert!(plan.tables() > 0 && memory.own_tables() > 0);
            assert!(plan.updates_max() >= plan.tables() / plan.rounds().len() as u64);
        }
        Ok(())
    });
}
