//! The changes of mappings in a random life, and what each makes of what is known.
#![expect(unsafe_code, reason = "maps frames of a device that the model alone has")]

use std::collections::BTreeSet;

use arbtest::arbitrary::Result;
use hypercall::{DomId, FrameSource as _, GuestVa, Mfn, Pfn, PteFlags};
use pvmmu::{Edit, MapError, Pages, RangeError};

use crate::moves::{move_table, remap};
use crate::operations::{Excuse, Input, REPLACE, TABLES, check_told};
use crate::world::{Hindrance, Life, Page, Refusing, Scarce, Space, Whose, World, visible};

const READ_ONLY: PteFlags = PteFlags::USER_RW.difference(PteFlags::WRITABLE);
/// Regions in which pages are mapped: neighbours under one L1 table, under one L2 table, and apart.
pub(crate) const REGIONS: [u64; 4] = [0x3_fe00, 0x4_0000, 0x4_0200, 0x700_0000];

pub(crate) fn address(page: u64) -> GuestVa {
    GuestVa::new(page << 12).expect("user half")
}

pub(crate) fn number(va: GuestVa) -> u64 {
    va.raw() >> 12
}

pub(crate) fn pages(input: Input<'_, '_>) -> Result<Pages> {
    let start = *input.choose(&REGIONS)? + *input.choose(&[0, 1, 250, 300, 511])?;
    let count = *input.choose(&[1, 2, 7, 30, 100, 512, 600])?;
    Ok(Pages { start: address(start), count })
}

pub(crate) fn numbers(pages: Pages) -> impl Iterator<Item = u64> + Clone {
    let first = number(pages.start);
    first..first + pages.count
}

fn flags(input: Input<'_, '_>) -> Result<PteFlags> {
    let executable = PteFlags::USER_RW.difference(PteFlags::NO_EXECUTE);
    let noted = READ_ONLY | PteFlags::AVAILABLE;
    Ok(*input.choose(&[PteFlags::USER_RW, READ_ONLY, executable, noted])?)
}

/// A change of mappings, in either state.
pub(crate) fn change(
    input: Input<'_, '_>,
    world: &mut World<'_, '_, '_, '_>,
    space: &mut Space,
    choice: u8,
    by: Hindrance,
) -> Result<()> {
    match (choice, &space.pgd) {
        (5 | 6, Life::Pinned(_)) => make_own(input, world, space, by),
        (7, Life::Pinned(_)) => section(input, world, space, by),
        (REPLACE, _) => replace(input, world, space, by),
        (9, _) => move_table(input, world, space, by),
        (10, _) => map_foreign(input, world, space, by),
        (11 | 12, _) => unmap(input, world, space, by),
        (13 | 14, _) => protect(input, world, space, by),
        (15 | 16, _) => remap(input, world, space, by),
        _ => map(input, world, space, by),
    }
}

fn map(
    input: Input<'_, '_>,
    world: &mut World<'_, '_, '_, '_>,
    space: &mut Space,
    by: Hindrance,
) -> Result<()> {
    let (pages, flags) = (pages(input)?, flags(input)?);
    world.story.push(format!("map {pages:x?} {flags:?}"));
    let few_frames = world.lacks(pages.count + TABLES, by);
    let occupied = numbers(pages).find(|page| space.known.contains_key(page));
    let (mapped, refused) = world.run(by, |with| match &mut space.pgd {
        Life::Loose(pgd) => pgd.map_pages(with, pages, flags),
        Life::Pinned(pgd) => pgd.map_pages(with, pages, flags),
    });
    let excuse = Excuse { refused, few_frames };
    let done = mapped_of(world, pages, occupied, mapped, excuse);
    let done = Pages { count: done, ..pages };
    assert!(numbers(done).all(|page| !space.known.contains_key(&page)), "{:#?}", world.story);
    world.note(space, numbers(done), flags);
    Ok(())
}

/// How many pages are mapped, by the answer of an operation on pages that must not be: all, or
/// those before the one that is `occupied`.
fn mapped_of(
    world: &World<'_, '_, '_, '_>,
    pages: Pages,
    occupied: Option<u64>,
    answer: std::result::Result<(), RangeError>,
    excuse: Excuse,
) -> u64 {
    match answer {
        Ok(()) => {
            assert!(occupied.is_none() && !excuse.refused, "{:#?}", world.story);
            pages.count
        }
        Err(RangeError { done, error: MapError::Occupied { va, .. } }) => {
            assert_eq!(Some(number(va)), occupied, "{:#?}", world.story);
            done
        }
        Err(RangeError { done, error }) => {
            assert!(excuse.covers(&error), "{error}: {:#?}", world.story);
            done
        }
    }
}

/// The pages for which an operation on pages that must be mapped was to be in effect, by its
/// answer: all, or the first ones.
fn done_of(
    world: &World<'_, '_, '_, '_>,
    space: &Space,
    pages: Pages,
    answer: std::result::Result<(), RangeError>,
    excuse: Excuse,
) -> BTreeSet<u64> {
    let missing = numbers(pages).find(|page| !space.known.contains_key(page));
    let done = match answer {
        Ok(()) => {
            assert!(missing.is_none() && !excuse.refused, "{:#?}", world.story);
            pages.count
        }
        Err(RangeError { done, error: MapError::NotMapped(va) }) => {
            assert_eq!(Some(number(va)), missing, "{:#?}", world.story);
            done
        }
        Err(RangeError { done, error }) => {
            assert!(excuse.refused, "{error}: {:#?}", world.story);
            done
        }
    };
    numbers(Pages { count: done, ..pages }).collect()
}

fn unmap(
    input: Input<'_, '_>,
    world: &mut World<'_, '_, '_, '_>,
    space: &mut Space,
    by: Hindrance,
) -> Result<()> {
    let (pages, reads_ad) = (pages(input)?, input.ratio(1, 4)?);
    world.story.push(format!("unmap {pages:x?}, reading A and D: {reads_ad}"));
    let (answer, refused) = world.run(by, |with| match &mut space.pgd {
        Life::Pinned(pgd) if reads_ad => {
            pgd.edit(with, |edit| edit.unmap_reading_ad(pages, &mut |_, _| {}))
        }
        Life::Pinned(pgd) => pgd.unmap(with, pages),
        Life::Loose(pgd) => pgd.unmap(with, pages),
    });
    let done = done_of(world, space, pages, answer, Excuse { refused, few_frames: false });
    check_told(world, done.iter().filter_map(|page| space.known.get(page)));
    space.known.retain(|page, _| !done.contains(page));
    Ok(())
}

fn protect(
    input: Input<'_, '_>,
    world: &mut World<'_, '_, '_, '_>,
    space: &mut Space,
    by: Hindrance,
) -> Result<()> {
    let (pages, flags) = (pages(input)?, flags(input)?);
    world.story.push(format!("protect {pages:x?} {flags:?}"));
    let (answer, refused) = world.run(by, |with| match &mut space.pgd {
        Life::Pinned(pgd) => pgd.protect(with, pages, flags),
        Life::Loose(pgd) => pgd.protect(with, pages, flags),
    });
    for page in done_of(world, space, pages, answer, Excuse { refused, few_frames: false }) {
        space.known.entry(page).and_modify(|page| page.flags = flags);
    }
    Ok(())
}

fn sharers(world: &World<'_, '_, '_, '_>, space: &Space, mfn: Mfn) -> usize {
    let all = world.spaces.iter().chain([space]).flat_map(|space| space.known.values());
    all.filter(|page| page.mfn == mfn).count()
}

fn make_own(
    input: Input<'_, '_>,
    world: &mut World<'_, '_, '_, '_>,
    space: &mut Space,
    by: Hindrance,
) -> Result<()> {
    let page = number(pages(input)?.start);
    world.story.push(format!("make {page:#x} own"));
    let Life::Pinned(pgd) = &mut space.pgd else { return Ok(()) };
    let few_frames = world.lacks(1, by);
    let made = world.run(by, |with| pgd.edit(with, |edit| edit.make_own(address(page))));
    let known = space.known.get(&page).copied();
    let (Err(RangeError { error, .. }), refused) = made else {
        let known = known.filter(|page| page.whose == Whose::Shared).expect("shared before");
        assert!(known.flags.contains(PteFlags::WRITABLE) && !made.1, "{:#?}", world.story);
        let is_last = sharers(world, space, known.mfn) == 1;
        let mfn = world.read(space, page).expect("it stays mapped").mfn();
        assert_eq!(mfn == known.mfn, is_last, "{:#?}", world.story);
        space.known.insert(page, Page { mfn, whose: Whose::Own, ..known });
        return Ok(());
    };
    let is_right = match (error, known) {
        (MapError::NotMapped(_), None) => true,
        (MapError::NotShared { .. }, Some(page)) => {
            page.whose != Whose::Shared || !page.flags.contains(PteFlags::WRITABLE)
        }
        (error, _) => Excuse { refused, few_frames }.covers(&error),
    };
    assert!(is_right, "{error}: {:#?}", world.story);
    Ok(())
}

fn replace(
    input: Input<'_, '_>,
    world: &mut World<'_, '_, '_, '_>,
    space: &mut Space,
    by: Hindrance,
) -> Result<()> {
    let (page, flags) = (number(pages(input)?.start), flags(input)?);
    world.story.push(format!("replace {page:#x} {flags:?}"));
    let va = address(page);
    let (answer, refused) = world.run(by, |with| {
        let frame = with.frames.take()?;
        let mfn = with.guest.p2m().mfn(frame.pfn()).expect("RAM");
        let replaced = match &mut space.pgd {
            Life::Loose(pgd) => pgd.replace(with, va, flags, frame),
            Life::Pinned(pgd) => {
                pgd.edit(with, |edit| edit.replace(va, flags, frame)).map_err(|error| error.error)
            }
        };
        Some((mfn, replaced))
    });
    let Some((mfn, answer)) = answer else { return Ok(()) };
    let known = space.known.get(&page).copied();
    match answer {
        Ok(()) => {
            check_told(world, known.iter());
            assert!(known.is_some() && !refused, "{:#?}", world.story);
            space.known.insert(page, Page { mfn, flags, whose: Whose::Own });
        }
        Err(MapError::NotMapped(_)) => assert_eq!(known, None),
        Err(error) => assert!(refused, "{error}: {:#?}", world.story),
    }
    Ok(())
}

/// A run of machine frames that the neighbour has, and nothing of it that is a table.
fn neighbours(world: &World<'_, '_, '_, '_>) -> Option<(Mfn, u64)> {
    if world.test.model.guest().domain() != 0 {
        return None;
    }
    let neighbour = world.test.model.vcpu(1, 0)?;
    let mfns: BTreeSet<u64> =
        (0..1024).filter_map(|pfn| neighbour.built_mfn(Pfn::new(pfn))).map(Mfn::raw).collect();
    let run = |first: &u64| (*first..).take_while(|mfn| mfns.contains(mfn)).count() as u64;
    let first = mfns.iter().max_by_key(|first| run(first))?;
    Some((Mfn::new(*first), run(first).min(12)))
}

fn map_foreign(
    input: Input<'_, '_>,
    world: &mut World<'_, '_, '_, '_>,
    space: &mut Space,
    by: Hindrance,
) -> Result<()> {
    let (mut pages, flags) = (pages(input)?, flags(input)?);
    let Some((first, count)) = neighbours(world) else { return Ok(()) };
    pages.count = pages.count.min(count);
    world.story.push(format!("map foreign {pages:x?} {flags:?}"));
    let few_frames = world.lacks(TABLES, by);
    let occupied = numbers(pages).find(|page| space.known.contains_key(page));
    // A tree is validated with registers of devices in it, and with no frame of another domain.
    let registers = Mfn::new(world.test.model.ram_end().raw() + 0x100);
    let (answer, refused) = world.run(by, |with| match &mut space.pgd {
        // SAFETY: no memory stands behind the frames.
        Life::Loose(pgd) => unsafe { pgd.map_foreign(with, pages, flags, registers, DomId::IO) },
        Life::Pinned(pgd) => pgd.edit(with, |edit| edit.map_foreign(pages, flags, first, DomId(1))),
    });
    let excuse = Excuse { refused, few_frames };
    let done = mapped_of(world, pages, occupied, answer, excuse);
    world.note(space, numbers(Pages { count: done, ..pages }), flags);
    // Nobody is told of a frame whose mapping was taken back.
    check_told(world, [].iter());
    Ok(())
}

/// Gives one page new flags, or unmaps it for want of any.
fn one_of_section(
    edit: &mut Edit<'_, '_, '_, Refusing<'_>, Scarce>,
    is_mapped: &mut BTreeSet<u64>,
    page: u64,
    flags: Option<PteFlags>,
) -> std::result::Result<(), MapError> {
    let one = Pages::one(address(page));
    match (flags, is_mapped.contains(&page)) {
        (Some(flags), true) => edit.protect(one, flags),
        (Some(flags), false) => {
            edit.map_pages(one, flags)?;
            is_mapped.insert(page);
            Ok(())
        }
        (None, true) => {
            edit.unmap(one)?;
            is_mapped.remove(&page);
            Ok(())
        }
        // The section reads what it has written.
        (None, false) => match edit.unmap(one) {
            Err(MapError::NotMapped(va)) if va == one.start => Ok(()),
            Err(error) => Err(error),
            Ok(()) => panic!("page {page:#x} is mapped in the middle of a section"),
        },
    }
}

/// Several changes of pages in one section. After a refusal the first changes of it are in effect,
/// as many as the batches before held: each page is in one of the states that it went through.
fn section(
    input: Input<'_, '_>,
    world: &mut World<'_, '_, '_, '_>,
    space: &mut Space,
    by: Hindrance,
) -> Result<()> {
    let mut changes: Vec<(u64, Option<PteFlags>)> = Vec::new();
    for _ in 0..input.int_in_range(2..=5)? {
        let flags = *input.choose(&[Some(PteFlags::USER_RW), Some(READ_ONLY), None])?;
        changes.push((number(pages(input)?.start), flags));
    }
    world.story.push(format!("section {changes:x?}"));
    let touched: BTreeSet<u64> = changes.iter().map(|(page, _)| *page).collect();
    if touched.iter().filter_map(|page| space.known.get(page)).any(|it| it.whose != Whose::Own) {
        return Ok(());
    }
    let few_frames = world.lacks(TABLES, by);
    let mut is_mapped = space.known.keys().copied().collect();
    let Life::Pinned(pgd) = &mut space.pgd else { return Ok(()) };
    let (answer, refused) = world.run(by, |with| {
        pgd.edit(with, |edit| {
            let mut one = |(page, flags)| one_of_section(edit, &mut is_mapped, page, flags);
            changes.iter().copied().try_for_each(&mut one)
        })
    });
    if let Err(RangeError { error, .. }) = answer {
        assert!(Excuse { refused, few_frames }.covers(&error), "{error}: {:#?}", world.story);
    } else {
        assert!(!refused, "{:#?}", world.story);
    }
    for page in touched {
        let before = space.known.remove(&page);
        let mut last = changes.iter().filter(|(at, _)| *at == page).map(|(_, flags)| *flags);
        let now = world.read(space, page);
        let is =
            |flags: Option<PteFlags>| flags.map(visible) == now.map(|pte| visible(pte.flags()));
        let mut states = [before.map(|page| page.flags)].into_iter().chain(last.clone());
        let flags = match answer {
            Ok(()) => last.next_back().filter(|flags| is(*flags)),
            Err(_) => states.find(|flags| is(*flags)),
        };
        let flags = flags.unwrap_or_else(|| panic!("{page:#x} is {now:?}: {:#?}", world.story));
        if let (Some(pte), Some(flags)) = (now, flags) {
            space.known.insert(page, Page { mfn: pte.mfn(), flags, whose: Whose::Own });
        }
    }
    Ok(())
}
