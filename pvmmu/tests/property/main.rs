//! Random lives of several address spaces, loose and pinned, with requests refused in between and
//! batches of every size, against maps from page to frame and flags.
//!
//! After every operation each space is read entry by entry and must be what its map says: after a
//! success all of the operation, after a refusal the part that the error names, and nothing else.
//! Frames and shares must add up, and so must Xen's counts.

mod changes;
#[path = "../common/mod.rs"]
mod common;
mod moves;
mod operations;
mod world;

use arbtest::arbitrary::{Result, Unstructured};
use common::TestGuest;
use hypercall::{Batch, BatchStorage, Level};
use pvmmu::{PooledTable, Running, Shares, TablePool};
use world::World;

/// A whole life: batches, a pool of tables, and a number of operations.
fn property(input: &mut Unstructured<'_>) -> Result<()> {
    match input.int_in_range(0..=3)? {
        0 => life(input, &mut BatchStorage::<2, 1>::new().batch()),
        1 => life(input, &mut BatchStorage::<6, 3>::new().batch()),
        2 => life(input, &mut BatchStorage::<33, 8>::new().batch()),
        _ => life(input, &mut BatchStorage::<700, 16>::new().batch()),
    }
}

fn life(input: &mut Unstructured<'_>, batch: &mut Batch<'_>) -> Result<()> {
    let test = if input.ratio(1, 3)? { TestGuest::dom0() } else { TestGuest::new() };
    let p2m = test.p2m();
    let mut counts = vec![0; test.list.len()];
    let mut places = [const { None::<PooledTable> }; 12];
    let (l1, rest) = places.split_at_mut(6);
    let (l2, l3) = rest.split_at_mut(3);
    let running = [Running::nowhere()];
    let mut world = World {
        test: &test,
        p2m: &p2m,
        batch,
        tables: TablePool::new([l1, l2, l3]),
        frames: world::Scarce::new(&test),
        neighbours: world::Neighbours::new(&test),
        shares: Shares::new(&mut counts),
        spaces: Vec::new(),
        vcpus: world::vcpus(&running),
        plain: 0,
        story: Vec::new(),
    };
    let free = world.frames.len();
    for level in [Level::L1, Level::L2, Level::L3] {
        let count = input.int_in_range(0..=4)?;
        world.quietly(|with| {
            let filled = with.fill_pool(level, count);
            filled.expect("filled");
        });
    }
    for _ in 0..input.int_in_range(1..=24)? {
        operations::step(input, &mut world)?;
        world.check();
    }
    world.end();
    assert_eq!(world.frames.len(), free, "frames were lost: {:#?}", world.story);
    drop(world);
    assert!(counts.iter().all(|count| *count == 0), "shares were lost");
    test.check();
    Ok(())
}

#[test]
fn address_spaces_are_maps_from_page_to_frame_and_flags_whatever_is_refused() {
    arbtest::arbtest(property).size_min(1024);
}
