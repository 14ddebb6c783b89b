//! A: what a frame is, and what changes that.

use alloc::vec::Vec;

use hypercall::Level::{self, L1, L2, L3, L4};

use crate::check::Check;
use crate::env::{Answer, Env, Extents, GUEST_KERNEL, KERNEL_RO, KERNEL_RW, Page, SELF, TABLE, op};
use crate::errno::{EBUSY, EINVAL};
use crate::{Assertion, Target};

pub(super) fn all<M: Target>() -> Vec<Assertion<M>> {
    assertions![
        Everywhere:
            a001_a_populated_frame_is_known_by_its_pfn,
            a002_an_increased_frame_is_not_in_m2p,
            a003_each_writable_mapping_holds_the_frame,
            a004_a_frame_without_mappings_may_become_a_table,
            a005_a_frame_of_any_type_can_be_mapped_read_only,
            a006_a_mapping_made_read_only_gives_the_type_back,
            a007_a_zero_frame_mapped_read_only_can_be_pinned,
            a008_pin_refuses_a_writable_frame,
            a010_a_pinned_table_cannot_be_mapped_writable,
            a011_unpin_gives_the_type_back_and_keeps_the_adjustments,
            a012_an_update_of_an_unused_frame_is_stored_unchecked,
            a013_such_a_frame_is_refused_as_a_table,
            a014_a_refused_table_lets_go_of_all_it_gathered,
            a015_a_table_cannot_map_itself_writable;
    ]
}

/// The levels whose entries point to tables.
const UPPER: [(Level, Level); 3] = [(L2, L1), (L3, L2), (L4, L3)];

fn a001_a_populated_frame_is_known_by_its_pfn<M: Target>(env: &mut Env<'_, M>) -> Check {
    let page = env.take()?;
    env.hide(page)?;
    want!(env.decrease(&[env.mfn(page)]), 1);
    env.gone(page);
    let mfn = env.populate(page)?;
    want!(env.m2p(mfn), Some(env.pfn(page)));
    // Nothing but its allocation holds it.
    want!(env.exchange(page)?, 0);
    Ok(())
}

fn a002_an_increased_frame_is_not_in_m2p<M: Target>(env: &mut Env<'_, M>) -> Check {
    let page = env.take()?;
    env.hide(page)?;
    want!(env.decrease(&[env.mfn(page)]), 1);
    env.gone(page);
    let (rax, list) = env.extents(op::INCREASE, Extents::single(&[0]));
    want!(rax, 1);
    env.adopt(page, list[0]);
    want!(env.m2p(list[0]), None);
    want!(env.exchange(page)?, 0);
    Ok(())
}

fn a003_each_writable_mapping_holds_the_frame<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (bed, page) = (env.bed()?, env.take()?);
    env.hide(page)?;
    want!(env.set(bed, 1, env.entry(page, KERNEL_RW)), 0);
    want!(env.set(bed, 2, env.entry(page, KERNEL_RW)), 0);
    want!(env.exchange(page)?, EINVAL, "with two mappings");
    want!(env.set(bed, 1, 0), 0);
    want!(env.exchange(page)?, EINVAL, "with one mapping");
    want!(env.set(bed, 2, 0), 0);
    want!(env.exchange(page)?, 0, "without a mapping");
    Ok(())
}

fn a004_a_frame_without_mappings_may_become_a_table<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (bed, page) = (env.bed()?, env.take()?);
    env.hide(page)?;
    want!(env.set(bed, 1, env.entry(page, KERNEL_RW)), 0);
    want!(env.pin(L1, page), EINVAL);
    want!(env.set(bed, 1, 0), 0);
    want!(env.pin(L1, page), 0);
    want!(env.unpin(page), 0);
    // And a writable one again.
    want!(env.try_rw(page)?, 0);
    want!(env.pin(L1, page), 0);
    Ok(())
}

fn a005_a_frame_of_any_type_can_be_mapped_read_only<M: Target>(env: &mut Env<'_, M>) -> Check {
    let bed = env.bed()?;
    for level in Level::TOP_DOWN {
        let table = env.table(level, &[])?;
        want!(env.set(bed, 1, env.entry(table, KERNEL_RO)), 0, "for {level}");
        want!(env.try_rw(table)?, EBUSY, "for {level}");
        want!(env.unpin(table), 0);
        want!(env.try_rw(table)?, 0, "for {level}: the mapping has no part in the type");
        want!(env.try_exchange(table)?, EINVAL, "for {level}: the mapping holds the frame");
        want!(env.set(bed, 1, 0), 0);
        want!(env.exchange(table)?, 0, "for {level}");
    }
    let gdt = env.loose(&[])?;
    want!(env.set_gdt(&[env.mfn(gdt)], 512), 0);
    want!(env.set(bed, 1, env.entry(gdt, KERNEL_RO)), 0);
    want!(env.try_rw(gdt)?, EBUSY);
    want!(env.set_gdt(&[], 0), 0);
    want!(env.try_rw(gdt)?, 0);
    want!(env.try_exchange(gdt)?, EINVAL);
    Ok(())
}

fn a006_a_mapping_made_read_only_gives_the_type_back<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (bed, page) = (env.bed()?, env.take()?);
    env.hide(page)?;
    want!(env.set(bed, 1, env.entry(page, KERNEL_RW)), 0);
    want!(env.pin(L1, page), EINVAL);
    want!(env.set(bed, 1, env.entry(page, KERNEL_RO)), 0);
    want!(env.pin(L1, page), 0);
    want!(env.unpin(page), 0);
    want!(env.exchange(page)?, EINVAL, "still mapped");
    want!(env.set(bed, 1, 0), 0);
    want!(env.exchange(page)?, 0);
    Ok(())
}

fn a007_a_zero_frame_mapped_read_only_can_be_pinned<M: Target>(env: &mut Env<'_, M>) -> Check {
    let page = env.take()?;
    env.ro(page)?;
    want!(env.pin(L1, page), 0);
    want!(env.try_rw(page)?, EBUSY);
    Ok(())
}

fn a008_pin_refuses_a_writable_frame<M: Target>(env: &mut Env<'_, M>) -> Check {
    let page = env.take()?;
    for level in 0..4 {
        let pin = [(level, env.mfn(page), 0)];
        want!(env.exts(&pin, SELF), Answer::of(EINVAL, 0), "at level {}", level + 1);
    }
    want!(env.unpin(page), EINVAL);
    env.fill(page, 1, 5)?;
    Ok(())
}

fn a010_a_pinned_table_cannot_be_mapped_writable<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (bed, table) = (env.bed()?, env.table(L1, &[])?);
    want!(env.set(bed, 1, env.entry(table, KERNEL_RW)), EBUSY);
    same!(env.get(bed, 1)?, 0);
    Ok(())
}

fn a011_unpin_gives_the_type_back_and_keeps_the_adjustments<M: Target>(
    env: &mut Env<'_, M>,
) -> Check {
    let data = env.take()?;
    let table = env.table(L1, &[(3, env.entry(data, KERNEL_RO))])?;
    want!(env.unpin(table), 0);
    same!(env.get(table, 3)?, env.entry(data, GUEST_KERNEL | 0x65));
    want!(env.try_rw(table)?, 0);
    // Nor does it hold what it maps.
    want!(env.try_exchange(data)?, 0);
    Ok(())
}

/// A word that no table may hold.
const NO_ENTRY: u64 = 0xffff_ffff_ffff_f0ff;

/// Three frames without a type count: fresh from Xen, writable before, a table before.
fn untyped<M: Target>(env: &mut Env<'_, M>) -> Check<[Page; 3]> {
    let pages = [env.take()?, env.take()?, env.take()?];
    for page in pages {
        env.ro(page)?;
    }
    want!(env.try_exchange(pages[0])?, 0);
    env.ro(pages[0])?;
    want!(env.pin(L1, pages[2]), 0);
    want!(env.unpin(pages[2]), 0);
    Ok(pages)
}

fn a012_an_update_of_an_unused_frame_is_stored_unchecked<M: Target>(env: &mut Env<'_, M>) -> Check {
    for page in untyped(env)? {
        want!(env.set(page, 1, NO_ENTRY), 0);
        same!(env.get(page, 1)?, NO_ENTRY);
    }
    Ok(())
}

fn a013_such_a_frame_is_refused_as_a_table<M: Target>(env: &mut Env<'_, M>) -> Check {
    for page in untyped(env)? {
        want!(env.set(page, 1, NO_ENTRY), 0);
        let pin = [(0, env.mfn(page), 0)];
        want!(env.exts(&pin, SELF), Answer::of(EINVAL, 0));
        same!(env.get(page, 1)?, NO_ENTRY);
        want!(env.try_rw(page)?, 0);
    }
    Ok(())
}

fn a014_a_refused_table_lets_go_of_all_it_gathered<M: Target>(env: &mut Env<'_, M>) -> Check {
    for (level, below) in UPPER {
        for bad in [0, 7] {
            let child = env.loose(&[])?;
            // Superpages are not for guests.
            let entries = [(3, env.entry(child, TABLE)), (bad, env.entry(child, TABLE | 0x80))];
            let table = env.loose(&entries)?;
            want!(env.pin(level, table), EINVAL, "for {level} bad at {bad}");
            want!(env.try_rw(table)?, 0, "for {level} bad at {bad}");
            want!(env.try_rw(child)?, 0, "for {below} under {level} bad at {bad}");
            want!(env.try_exchange(child)?, 0, "for {below} under {level} bad at {bad}");
            want!(env.try_exchange(table)?, 0, "for {level} bad at {bad}");
        }
    }
    Ok(())
}

fn a015_a_table_cannot_map_itself_writable<M: Target>(env: &mut Env<'_, M>) -> Check {
    let table = env.table(L1, &[])?;
    want!(env.set(table, 5, env.entry(table, KERNEL_RW)), EBUSY);
    same!(env.get(table, 5)?, 0);
    want!(env.set(table, 5, env.entry(table, KERNEL_RO)), 0);
    want!(env.set(table, 5, 0), 0);
    Ok(())
}
