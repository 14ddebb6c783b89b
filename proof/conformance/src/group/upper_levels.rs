//! C: entries of L2, L3 and L4 tables.

use alloc::vec::Vec;

use hypercall::Level::{self, L1, L2, L3, L4};

use crate::check::Check;
use crate::env::{
    Answer, Env, GUEST_KERNEL, INVALID, IO, KERNEL_RO, KERNEL_RW, NON_RAM, TABLE, TABLE_RO,
};
use crate::errno::{EBUSY, EINVAL};
use crate::{Assertion, Target};

pub(super) fn all<M: Target>() -> Vec<Assertion<M>> {
    assertions![
        Everywhere:
            c033_page_size_global_and_cache_bits_are_refused,
            c034_entries_get_user_and_roots_accessed,
            c035_xens_slots_of_a_root_are_closed,
            c036_xens_slots_of_a_root_are_filled_when_it_is_validated,
            c037_m2p_appears_in_a_root_that_is_loaded,
            c038_a_former_root_keeps_xens_entries,
            c039_a_writable_frame_is_no_table,
            c040_a_frame_that_is_not_ones_own_is_no_table,
            c041_a_table_of_another_level_is_refused,
            c042_an_l1_table_is_refused_for_what_it_maps,
            c043_a_shared_l1_table_lives_as_long_as_its_last_entry,
            c045_upper_tables_are_changed_for_oneself_only,
            c046_xens_slots_hold_nothing_of_the_guests;
    ]
}

const UPPER: [(Level, Level); 3] = [(L2, L1), (L3, L2), (L4, L3)];

fn c033_page_size_global_and_cache_bits_are_refused<M: Target>(env: &mut Env<'_, M>) -> Check {
    for (level, _) in UPPER {
        let (table, child) = (env.table(level, &[])?, env.loose(&[])?);
        for bits in [0x80, 0x100, 0x10, 0x08] {
            let value = env.entry(child, TABLE | bits);
            want!(env.set(table, 5, value), EINVAL, "{level}, bits {bits:#x}");
            same!(env.get(table, 5)?, 0);
            let loose = env.loose(&[(5, value)])?;
            want!(env.pin(level, loose), EINVAL, "{level} as a whole, bits {bits:#x}");
        }
        // Absent ones may have them.
        let value = env.entry(child, 0x198);
        want!(env.set(table, 5, value), 0);
        same!(env.get(table, 5)?, value);
    }
    Ok(())
}

fn c034_entries_get_user_and_roots_accessed<M: Target>(env: &mut Env<'_, M>) -> Check {
    for (level, _) in UPPER {
        let child = env.loose(&[])?;
        let value = env.entry(child, 0x03);
        let read = env.entry(child, if level == L4 { 0x27 } else { 0x07 });
        let table = env.table(level, &[])?;
        want!(env.set(table, 5, value), 0, "{level}");
        same!(env.get(table, 5)?, read, "{level}");
        let table = env.table(level, &[(6, value)])?;
        same!(env.get(table, 6)?, read, "{level} as a whole");
    }
    Ok(())
}

fn c035_xens_slots_of_a_root_are_closed<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (root, child) = (env.table(L4, &[])?, env.loose(&[])?);
    for index in 256..272 {
        want!(env.set(root, index, 0), EINVAL, "slot {index}");
        want!(env.set(root, index, env.entry(child, TABLE)), EINVAL, "slot {index}");
    }
    for index in [255, 272] {
        want!(env.set(root, index, env.entry(child, TABLE)), 0, "slot {index}");
    }
    Ok(())
}

/// Words that are no entries, for each of Xen's slots.
fn junk() -> Vec<(u64, u64)> {
    (256..272).map(|index| (index, 0xdead_beef_f00d_0fff ^ (index << 20))).collect()
}

fn c036_xens_slots_of_a_root_are_filled_when_it_is_validated<M: Target>(
    env: &mut Env<'_, M>,
) -> Check {
    let root = env.table(L4, &junk())?;
    same!(env.get(root, 256)?, 0);
    same!(env.get(root, 258)?, env.entry(root, env.nx() | KERNEL_RW));
    same!(env.get(root, 259)?, 0);
    for index in 256..272 {
        let value = env.get(root, index)?;
        want!(junk().contains(&(index, value)), false, "slot {index} holds {value:#x}");
    }
    want!(env.assist(0, 32), 0);
    let strict = env.table(L4, &[])?;
    want!(env.get(strict, 256)? & 1, 1, "with m2p_strict");
    want!(env.assist(1, 32), 0);
    Ok(())
}

fn c037_m2p_appears_in_a_root_that_is_loaded<M: Target>(env: &mut Env<'_, M>) -> Check {
    let root = env.root_copy()?;
    want!(env.pin(L4, root), 0);
    same!(env.get(root, 256)?, 0);
    want!(env.load_root(env.mfn(root)), 0);
    let value = env.get(root, 256)?;
    same!(value & 0xfff & !0x60, 0x25 & !0x60, "of {value:#x}");
    Ok(())
}

fn c038_a_former_root_keeps_xens_entries<M: Target>(env: &mut Env<'_, M>) -> Check {
    let root = env.table(L4, &[])?;
    let own = env.get(root, 258)?;
    want!(env.unpin(root), 0);
    same!(env.get(root, 258)?, own);
    want!(env.pin(L1, root), EBUSY);
    env.rw(root)?;
    for index in 256..272 {
        env.fill(root, index, 0)?;
    }
    env.ro(root)?;
    want!(env.pin(L1, root), 0);
    Ok(())
}

fn c039_a_writable_frame_is_no_table<M: Target>(env: &mut Env<'_, M>) -> Check {
    let writable = env.take()?;
    for (level, _) in UPPER {
        let table = env.table(level, &[])?;
        for flags in [TABLE, TABLE_RO] {
            let value = env.entry(writable, flags);
            want!(env.set(table, 5, value), EINVAL, "{level}, flags {flags:#x}");
            same!(env.get(table, 5)?, 0);
        }
    }
    Ok(())
}

fn c040_a_frame_that_is_not_ones_own_is_no_table<M: Target>(env: &mut Env<'_, M>) -> Check {
    let page = env.take()?;
    env.hide(page)?;
    let freed = env.mfn(page);
    want!(env.decrease(&[freed]), 1);
    env.gone(page);
    let mut frames = alloc::vec![freed, NON_RAM, INVALID, 0xa0];
    frames.extend(env.facts().foreign);
    for (level, _) in UPPER {
        let table = env.table(level, &[])?;
        for mfn in &frames {
            for flags in [TABLE, TABLE_RO] {
                let value = mfn << 12 | flags;
                want!(env.set(table, 5, value), EINVAL, "{level}, {value:#x}");
            }
        }
    }
    Ok(())
}

fn c041_a_table_of_another_level_is_refused<M: Target>(env: &mut Env<'_, M>) -> Check {
    let [l4, l3] = [env.table(L4, &[])?, env.table(L3, &[])?];
    let [l2, other] = [env.table(L2, &[])?, env.table(L2, &[])?];
    let l1 = env.bed()?;
    for flags in [TABLE, TABLE_RO] {
        want!(env.set(l2, 5, env.entry(l3, flags)), EINVAL, "L3 in L2");
        want!(env.set(l2, 5, env.entry(l4, flags)), EINVAL, "L4 in L2");
        want!(env.set(l3, 5, env.entry(l4, flags)), EINVAL, "L4 in L3");
        want!(env.set(l3, 5, env.entry(l1, flags)), EINVAL, "L1 in L3");
        want!(env.set(l4, 5, env.entry(l2, flags)), EINVAL, "L2 in L4");
    }
    want!(env.set(l2, 5, env.entry(other, TABLE)), EINVAL, "L2 in L2, writable");
    want!(env.set(l2, 5, env.entry(other, TABLE_RO)), 0, "L2 in L2");
    Ok(())
}

fn c042_an_l1_table_is_refused_for_what_it_maps<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (data, l4, l2) = (env.take()?, env.table(L4, &[])?, env.table(L2, &[])?);
    let entries = [(0, env.entry(data, KERNEL_RO)), (3, env.entry(l4, KERNEL_RW))];
    let l1 = env.loose(&entries)?;
    want!(env.set(l2, 5, env.entry(l1, TABLE)), EBUSY);
    same!(env.get(l2, 5)?, 0);
    want!(env.try_rw(l1)?, 0);
    same!(env.get(l1, 0)?, env.entry(data, GUEST_KERNEL | 0x65));
    same!(env.get(l1, 3)?, env.entry(l4, KERNEL_RW));
    want!(env.try_exchange(data)?, 0);
    Ok(())
}

fn c043_a_shared_l1_table_lives_as_long_as_its_last_entry<M: Target>(
    env: &mut Env<'_, M>,
) -> Check {
    let data = env.take()?;
    let l1 = env.loose(&[(0, env.entry(data, KERNEL_RO))])?;
    let (one, two) = (env.table(L2, &[])?, env.table(L2, &[])?);
    want!(env.set(one, 5, env.entry(l1, TABLE)), 0);
    want!(env.set(two, 6, env.entry(l1, TABLE)), 0);
    want!(env.set(one, 5, 0), 0);
    want!(env.try_rw(l1)?, EBUSY);
    want!(env.set(two, 6, 0), 0);
    want!(env.try_rw(l1)?, 0);
    same!(env.get(l1, 0)?, env.entry(data, GUEST_KERNEL | 0x65));
    want!(env.try_exchange(data)?, 0);
    Ok(())
}

fn c045_upper_tables_are_changed_for_oneself_only<M: Target>(env: &mut Env<'_, M>) -> Check {
    for (level, _) in UPPER {
        let (table, child) = (env.table(level, &[])?, env.loose(&[])?);
        for value in [0, env.entry(child, TABLE)] {
            let element = [(env.slot(table, 5), value)];
            want!(env.updates(&element, IO), Answer::of(EINVAL, 0), "{level}, {value:#x}");
        }
    }
    let (bed, data) = (env.bed()?, env.take()?);
    want!(env.set(bed, 1, env.entry(data, KERNEL_RO)), 0);
    want!(env.updates(&[(env.slot(bed, 1), 0)], IO), Answer::of(0, 1));
    same!(env.get(bed, 1)?, 0);
    Ok(())
}

fn c046_xens_slots_hold_nothing_of_the_guests<M: Target>(env: &mut Env<'_, M>) -> Check {
    let child = env.take()?;
    env.hide(child)?;
    let root = env.table(L4, &[(260, env.entry(child, TABLE)), (271, env.entry(child, TABLE))])?;
    want!(env.exchange(child)?, 0, "while the root lives");
    want!(env.unpin(root), 0);
    want!(env.try_exchange(root)?, 0);
    Ok(())
}
