//! Pages and tables that move in a random life.

use std::ops::Range;

use arbtest::arbitrary::Result;
use pvmmu::{MapError, Pages, RangeError};

use crate::changes::{REGIONS, address, number, numbers, pages};
use crate::operations::{Excuse, Input, TABLES};
use crate::world::{Hindrance, Known, Life, Space, World};

pub(crate) fn move_table(
    input: Input<'_, '_>,
    world: &mut World<'_, '_, '_, '_>,
    space: &mut Space,
    by: Hindrance,
) -> Result<()> {
    let mut place = || -> Result<u64> {
        Ok(input.choose(&REGIONS)? + 0x200 * *input.choose(&[0, 1, 7, 0x4_0000])?)
    };
    let (from, to) = (place()?, place()?);
    world.story.push(format!("move table {from:#x} to {to:#x}"));
    let few_frames = world.lacks(TABLES, by);
    let moved = world.run(by, |with| match &mut space.pgd {
        Life::Loose(pgd) => pgd.move_table(with, address(from), address(to)),
        Life::Pinned(pgd) => {
            let moved = pgd.edit(with, |edit| edit.move_table(address(from), address(to)));
            moved.map_err(|error| error.error)
        }
    });
    let count = |known: &Known, start: u64| known.range(start..start + 512).count();
    match moved {
        (Ok(()), refused) => {
            assert!(count(&space.known, to) == 0 && !refused, "{:#?}", world.story);
            move_known(&mut space.known, from..from + 512, to);
        }
        (Err(MapError::NotMapped(_)), _) => {
            assert_eq!(count(&space.known, from), 0, "{:#?}", world.story);
        }
        // There is a table, which may be empty.
        (Err(MapError::Occupied { .. }), _) => {}
        (Err(error), refused) => {
            assert!(Excuse { refused, few_frames }.covers(&error), "{error}: {:#?}", world.story);
        }
    }
    Ok(())
}

/// What was known of the pages `from` is known of those from `to` on.
fn move_known(known: &mut Known, from: Range<u64>, to: u64) {
    let start = from.start;
    let moved: Vec<_> = from.filter_map(|page| Some((page, known.remove(&page)?))).collect();
    known.extend(moved.into_iter().map(|(page, entry)| (page - start + to, entry)));
}

pub(crate) fn remap(
    input: Input<'_, '_>,
    world: &mut World<'_, '_, '_, '_>,
    space: &mut Space,
    by: Hindrance,
) -> Result<()> {
    let (pages, to) = (pages(input)?, pages(input)?.start);
    world.story.push(format!("remap {pages:x?} to {to:x?}"));
    let few_frames = world.lacks(TABLES, by);
    let (answer, refused) = world.run(by, |with| match &mut space.pgd {
        Life::Loose(pgd) => pgd.remap(with, pages, to),
        Life::Pinned(pgd) => pgd.remap(with, pages, to),
    });
    let there = Pages { start: to, ..pages };
    let overlap = number(pages.start).abs_diff(number(to)) < pages.count;
    let missing = numbers(pages).find(|page| !space.known.contains_key(page));
    let occupied = numbers(there).find(|page| space.known.contains_key(page));
    let done = match answer {
        Ok(()) => {
            let was_right = !overlap && missing.is_none() && occupied.is_none() && !refused;
            assert!(was_right, "{:#?}", world.story);
            pages.count
        }
        Err(RangeError { done, error }) => {
            let is_right = match error {
                MapError::Overlap(_) => overlap && done == 0,
                MapError::NotMapped(va) => Some(number(va)) == missing,
                MapError::Occupied { va, .. } => Some(number(va)) == occupied,
                error => Excuse { refused, few_frames }.covers(&error),
            };
            assert!(is_right, "{error}: {:#?}", world.story);
            done
        }
    };
    let first = number(pages.start);
    move_known(&mut space.known, first..first + done, number(to));
    Ok(())
}
