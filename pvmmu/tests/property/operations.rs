//! The operations on whole address spaces in a random life, and what each makes of what is known.
#![expect(unsafe_code, reason = "loads roots; the test is a model")]

use std::collections::BTreeSet;

use arbtest::arbitrary::{Result, Unstructured};
use hypercall::middleware::Refusal;
use hypercall::{Errno, Mfn};
use pvmmu::{DestroyError, Loose, MapError, Pgd, Pinned, Presence};

use crate::changes::change;
use crate::common::tables::pooled;
use crate::world::{Hindrance, Known, Life, Page, Space, Whose, World};

pub(crate) type Input<'a, 'u> = &'a mut Unstructured<'u>;

/// Some of the choices.
const UNPIN: u8 = 0;
const DESTROY: u8 = 1;
pub(crate) const REPLACE: u8 = 8;

const SPACES_MAX: usize = 4;
/// Frames that tables may need beside the pages of an operation.
pub(crate) const TABLES: u64 = 24;

fn hindrance(input: Input<'_, '_>) -> Result<Hindrance> {
    let mut by = Hindrance::none();
    by.presence = *input.choose(&[Presence::Steady, Presence::MayVanish])?;
    if input.ratio(1, 3)? {
        let request = input.int_in_range(0..=7)?;
        let errno = *input.choose(&[Errno::ENOMEM, Errno::EBUSY, Errno::EINVAL])?;
        let done = *input.choose(&[0, 1, 2, 3, 5, 17, 600])?;
        by.refusal = Refusal { request, errno, done };
    }
    if input.ratio(1, 10)? {
        by.frames = input.int_in_range(0..=40)?;
    }
    Ok(by)
}

/// One operation.
pub(crate) fn step(input: Input<'_, '_>, world: &mut World<'_, '_, '_, '_>) -> Result<()> {
    if world.spaces.is_empty() || world.spaces.len() < SPACES_MAX && input.ratio(1, 8)? {
        return create(input, world);
    }
    let at = input.choose_index(world.spaces.len())?;
    let mut space = world.spaces.swap_remove(at);
    let mut by = hindrance(input)?;
    let choice = input.int_in_range(0..=17)?;
    let has_foreign = space.known.values().any(|page| page.whose == Whose::Foreign);
    if has_foreign && [UNPIN, DESTROY, REPLACE].contains(&choice) {
        // To undo these, Xen would have to take a whole table with another domain's frame in it, or
        // to change an entry in the name of two.
        by.refusal = Hindrance::none().refusal;
    }
    world.story.push(format!("operation {choice} on root {:?} by {by:?}", space.pgd.root()));
    let Space { pgd, known } = space;
    space = match (pgd, choice) {
        (Life::Loose(pgd), 0..=3) => pin(world, pgd, known, by),
        (Life::Pinned(pgd), UNPIN) => unpin(world, pgd, known, by),
        (pgd, DESTROY) => match destroy(world, Space { pgd, known }, by) {
            Some(space) => space,
            None => return Ok(()),
        },
        (pgd, choice) => {
            let mut space = Space { pgd, known };
            match (choice, &space.pgd) {
                (2, Life::Pinned(_)) => fork(world, &mut space, by),
                (3, Life::Pinned(_)) => hold(world, &mut space, by),
                (4, Life::Pinned(_)) => load(world, &space, by),
                _ => change(input, world, &mut space, choice, by)?,
            }
            space
        }
    };
    world.spaces.push(space);
    Ok(())
}

fn create(input: Input<'_, '_>, world: &mut World<'_, '_, '_, '_>) -> Result<()> {
    world.story.push("create".to_owned());
    let has_user_root = input.ratio(1, 2)?;
    let pgd = world.quietly(
        |with| {
            if has_user_root { Pgd::with_user_root(with) } else { Pgd::new(with) }
        },
    );
    if let Ok(pgd) = pgd {
        world.spaces.push(Space { pgd: Life::Loose(pgd), known: Known::new() });
    }
    Ok(())
}

fn pin(world: &mut World<'_, '_, '_, '_>, pgd: Pgd<Loose>, known: Known, by: Hindrance) -> Space {
    let has_foreign = known.values().any(|page| page.whose == Whose::Foreign);
    // Xen may refuse it anyway: a second refusal would be that of the undo.
    let by = if has_foreign { Hindrance::none() } else { by };
    let (pinned, refused) = world.run(by, |with| pgd.pin(&with.guest, &mut with.batch));
    let pgd = match pinned {
        Ok(pgd) => Life::Pinned(pgd),
        Err(error) => {
            assert!(refused || has_foreign, "{error}: {:#?}", world.story);
            assert_eq!(error.undo, Ok(()));
            Life::Loose(error.pgd)
        }
    };
    Space { pgd, known }
}

fn is_loaded(world: &World<'_, '_, '_, '_>, pgd: &Pgd<Pinned>) -> bool {
    !world.vcpus.on(pgd).is_empty()
}

fn unpin(
    world: &mut World<'_, '_, '_, '_>,
    pgd: Pgd<Pinned>,
    known: Known,
    by: Hindrance,
) -> Space {
    let loaded = is_loaded(world, &pgd);
    // Xen refuses part of it anyway: a second refusal would be that of the undo.
    let by = if loaded { Hindrance::none() } else { by };
    let of_pool = pooled(world.test, pgd.root());
    let (unpinned, refused) = world.run(by, |with| pgd.unpin(&with.guest, &mut with.batch));
    let pgd = match unpinned {
        Ok(pgd) => {
            world.plain += of_pool;
            assert!(!loaded && !refused, "{:#?}", world.story);
            Life::Loose(pgd)
        }
        Err(error) => {
            assert!(refused || loaded, "{error}: {:#?}", world.story);
            assert_eq!(error.undo, Ok(()));
            Life::Pinned(error.pgd)
        }
    };
    Space { pgd, known }
}

fn destroy(world: &mut World<'_, '_, '_, '_>, space: Space, by: Hindrance) -> Option<Space> {
    let Space { pgd, mut known } = space;
    let pgd = match pgd {
        Life::Loose(pgd) => {
            let ended = world.quietly(|with| pgd.destroy(with));
            ended.expect("readable");
            None
        }
        Life::Pinned(pgd) => {
            let (loaded, vcpus) = (is_loaded(world, &pgd), world.vcpus);
            let (ended, refused) = world.run(by, |with| vcpus.destroy(pgd, with));
            match ended {
                Ok(()) => {
                    assert!(!loaded && !refused);
                    None
                }
                Err(DestroyError::Running(pgd, _)) => {
                    assert!(loaded);
                    Some(pgd)
                }
                Err(error) => {
                    assert!(refused, "{error}: {:#?}", world.story);
                    error.into_pgd()
                }
            }
        }
    };
    let Some(pgd) = pgd else {
        check_told(world, known.values());
        return None;
    };
    // Part of it may be gone already; the rest is as it was.
    let mut space = Space { pgd: Life::Pinned(pgd), known: Known::new() };
    let is_gone = |page: &u64| world.read(&space, *page).is_none();
    let gone: BTreeSet<u64> = known.keys().copied().filter(is_gone).collect();
    check_told(world, known.iter().filter(|(page, _)| gone.contains(page)).map(|(_, page)| page));
    known.retain(|page, _| !gone.contains(page));
    space.known = known;
    Some(space)
}

/// Checks that the frames of others among `gone`, and no others, were told of.
pub(crate) fn check_told<'k>(
    world: &mut World<'_, '_, '_, '_>,
    gone: impl Iterator<Item = &'k Page>,
) {
    let foreign = gone.filter(|page| page.whose == Whose::Foreign).map(|page| page.mfn);
    let (mut told, mut expected) = (world.told_of(), foreign.collect::<Vec<Mfn>>());
    told.sort_unstable();
    expected.sort_unstable();
    assert_eq!(told, expected, "{:#?}", world.story);
}

/// What an operation may fail for.
pub(crate) struct Excuse {
    /// A request was refused.
    pub(crate) refused: bool,
    /// There were fewer frames than it may need.
    pub(crate) few_frames: bool,
}

impl Excuse {
    pub(crate) fn covers(&self, error: &MapError) -> bool {
        match error {
            MapError::OutOfFrames => self.few_frames,
            _ => self.refused,
        }
    }
}

fn fork(world: &mut World<'_, '_, '_, '_>, space: &mut Space, by: Hindrance) {
    world.story.push("fork".to_owned());
    let few_frames = world.lacks(4 * TABLES, by);
    let Life::Pinned(pgd) = &mut space.pgd else { return };
    let (child, refused) = world.run(by, |with| pgd.fork(with));
    let child = match child {
        Ok(child) => child,
        Err(error) => {
            assert!(error.left.is_none(), "{error}: {:#?}", world.story);
            assert!(refused || few_frames, "{error}: {:#?}", world.story);
            return;
        }
    };
    assert!(!refused, "{:#?}", world.story);
    for page in space.known.values_mut().filter(|page| page.whose == Whose::Own) {
        page.whose = Whose::Shared;
    }
    let known = space.known.iter().filter(|(_, page)| page.whose == Whose::Shared);
    let known = known.map(|(number, page)| (*number, *page)).collect();
    world.spaces.push(Space { pgd: Life::Pinned(child), known });
}

fn hold(world: &mut World<'_, '_, '_, '_>, space: &mut Space, by: Hindrance) {
    world.story.push("hold".to_owned());
    let Life::Pinned(pgd) = &mut space.pgd else { return };
    let (held, refused) = world.run(by, |with| pgd.hold_l1_tables(&with.guest, &mut with.batch));
    if let Err(not_held) = held {
        assert!(refused, "{not_held}: {:#?}", world.story);
        assert_eq!(not_held.value, Ok(()));
    }
}

fn load(world: &mut World<'_, '_, '_, '_>, space: &Space, by: Hindrance) {
    world.story.push("load or leave".to_owned());
    let Life::Pinned(pgd) = &space.pgd else { return };
    let (vcpus, loaded) = (world.vcpus, is_loaded(world, pgd));
    let (answer, refused) = world.run(by, |with| {
        if loaded {
            // SAFETY: the model runs no code.
            unsafe { vcpus.leave(&with.guest, 0) }
        } else {
            // SAFETY: as above.
            unsafe { vcpus.load(&with.guest, 0, pgd) }
        }
    });
    assert_eq!(answer.is_err(), refused, "{answer:?}: {:#?}", world.story);
    if loaded && refused {
        // Xen may have taken one of the roots: a vCPU on its way out counts as one that runs.
        // SAFETY: as above.
        world.quietly(|with| unsafe { vcpus.leave(&with.guest, 0) }).expect("left");
    }
}
