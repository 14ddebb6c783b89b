//! E: `mmuext_op`.

use alloc::vec::Vec;

use hypercall::Level::{self, L1, L2, L3, L4};
use hypercall::commands::ext;

use crate::check::Check;
use crate::env::{Answer, Env, HOLE, KERNEL_RW, NON_RAM, NOWHERE, Page, SELF, TABLE};
use crate::errno::{EACCES, EBUSY, EINVAL, ENOSYS, EOPNOTSUPP};
use crate::{Assertion, Target};

pub(super) fn all<M: Target>() -> Vec<Assertion<M>> {
    assertions![
        Everywhere:
            e051_a_table_is_pinned_once_and_at_its_level,
            e052_only_pinned_tables_of_ones_own_are_unpinned,
            e053_an_unpinned_root_in_use_stays_a_table,
            e054_a_root_need_not_be_pinned_to_be_loaded,
            e055_only_a_root_can_be_loaded,
            e056_a_root_that_is_left_is_released_at_once,
            e057_the_user_root_may_be_none,
            e058_pin_and_roots_hold_the_table_each,
            e059_a_deep_refusal_leaves_nothing,
            e060_clear_and_copy_spare_live_tables,
            e061_cache_flushes_are_for_domains_with_devices,
            e062_an_ldt_is_checked_for_its_shape_only,
            e063_ldt_pages_are_checked_at_first_use,
            e064_a_flush_of_xens_addresses_does_nothing,
            e065_a_run_stops_at_the_first_refusal;
    ]
}

fn e051_a_table_is_pinned_once_and_at_its_level<M: Target>(env: &mut Env<'_, M>) -> Check {
    for level in Level::TOP_DOWN {
        let table = env.table(level, &[])?;
        for other in Level::TOP_DOWN {
            want!(env.pin(other, table), EINVAL, "{level} as {other}");
        }
        want!(env.unpin(table), 0);
        want!(env.try_rw(table)?, 0, "{level}: no count has changed");
        want!(env.try_exchange(table)?, 0, "{level}: no count has changed");
    }
    Ok(())
}

fn e052_only_pinned_tables_of_ones_own_are_unpinned<M: Target>(env: &mut Env<'_, M>) -> Check {
    let child = env.loose(&[])?;
    let table = env.table(L2, &[(5, env.entry(child, TABLE))])?;
    want!(env.unpin(child), EINVAL, "a table");
    let data = env.take()?;
    want!(env.unpin(data), EINVAL, "data");
    let mut others = alloc::vec![NON_RAM];
    others.extend(env.facts().foreign);
    for mfn in others {
        want!(env.ext(ext::UNPIN_TABLE, mfn, 0), EINVAL, "{mfn:#x}");
        want!(env.ext(ext::PIN_L1_TABLE, mfn, 0), EINVAL, "{mfn:#x}");
        want!(env.update(mfn << 12, 0), EINVAL, "{mfn:#x}");
    }
    want!(env.unpin(table), 0);
    Ok(())
}

fn e053_an_unpinned_root_in_use_stays_a_table<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (kernel, user) = (env.root_copy()?, env.table(L4, &[])?);
    want!(env.pin(L4, kernel), 0);
    want!(env.load_root(env.mfn(kernel)), 0);
    want!(env.load_user_root(env.mfn(user)), 0);
    for root in [kernel, user] {
        want!(env.unpin(root), 0);
        want!(env.try_rw(root)?, EBUSY);
        want!(env.unpin(root), EINVAL);
    }
    Ok(())
}

fn e054_a_root_need_not_be_pinned_to_be_loaded<M: Target>(env: &mut Env<'_, M>) -> Check {
    let root = env.root_copy()?;
    want!(env.load_root(env.mfn(root)), 0);
    want!(env.load_root(env.mfn(root)), 0, "the same again");
    want!(env.try_rw(root)?, EBUSY);
    want!(env.load_root(env.facts().root.1.raw()), 0);
    // Loading it twice has counted once.
    want!(env.try_exchange(root)?, 0);
    Ok(())
}

fn e055_only_a_root_can_be_loaded<M: Target>(env: &mut Env<'_, M>) -> Check {
    want!(env.load_root(0), EINVAL);
    for level in [L1, L2, L3] {
        let table = env.table(level, &[])?;
        want!(env.load_root(env.mfn(table)), EINVAL, "{level}");
        want!(env.load_user_root(env.mfn(table)), EINVAL, "{level}");
    }
    let writable = env.take()?;
    want!(env.load_root(env.mfn(writable)), EINVAL);
    want!(env.load_root(NON_RAM), EINVAL);
    Ok(())
}

fn e056_a_root_that_is_left_is_released_at_once<M: Target>(env: &mut Env<'_, M>) -> Check {
    let root = env.root_copy()?;
    let l1 = env.loose(&[])?;
    let l2 = env.loose(&[(5, env.entry(l1, TABLE))])?;
    let l3 = env.loose(&[(5, env.entry(l2, TABLE))])?;
    want!(env.load_root(env.mfn(root)), 0);
    want!(env.set(root, 5, env.entry(l3, TABLE)), 0);
    want!(env.load_root(env.facts().root.1.raw()), 0);
    for page in [root, l3, l2, l1] {
        want!(env.try_rw(page)?, 0);
        want!(env.try_exchange(page)?, 0);
    }
    Ok(())
}

fn e057_the_user_root_may_be_none<M: Target>(env: &mut Env<'_, M>) -> Check {
    want!(env.load_user_root(0), 0);
    let root = env.loose(&[])?;
    want!(env.load_user_root(env.mfn(root)), 0);
    want!(env.load_user_root(env.mfn(root)), 0, "the same again");
    want!(env.try_rw(root)?, EBUSY);
    want!(env.load_user_root(0), 0);
    want!(env.try_rw(root)?, 0);
    want!(env.try_exchange(root)?, 0);
    Ok(())
}

fn e058_pin_and_roots_hold_the_table_each<M: Target>(env: &mut Env<'_, M>) -> Check {
    // In each order of letting go, it is a table until the last.
    for order in [[0, 1, 2], [1, 2, 0], [2, 0, 1]] {
        let root = env.root_copy()?;
        want!(env.pin(L4, root), 0);
        want!(env.load_root(env.mfn(root)), 0);
        want!(env.load_user_root(env.mfn(root)), 0);
        for holder in order {
            want!(env.try_rw(root)?, EBUSY, "before {holder} of {order:?} let go");
            let rax = match holder {
                0 => env.unpin(root),
                1 => env.load_root(env.facts().root.1.raw()),
                _ => env.load_user_root(0),
            };
            want!(rax, 0);
        }
        want!(env.try_rw(root)?, 0);
        want!(env.try_exchange(root)?, 0);
    }
    Ok(())
}

fn e059_a_deep_refusal_leaves_nothing<M: Target>(env: &mut Env<'_, M>) -> Check {
    let [l4, data] = [env.take()?, env.take()?];
    let l1 = env.loose(&[(1, env.entry(data, KERNEL_RW)), (7, env.entry(l4, KERNEL_RW))])?;
    let l2 = env.loose(&[(5, env.entry(l1, TABLE))])?;
    let l3 = env.loose(&[(5, env.entry(l2, TABLE))])?;
    env.fill(l4, 5, env.entry(l3, TABLE))?;
    env.ro(l4)?;
    let pin = [(ext::PIN_L4_TABLE, env.mfn(l4), 0)];
    want!(env.exts(&pin, SELF), Answer::of(EBUSY, 0));
    for page in [l4, l3, l2, l1, data] {
        want!(env.try_rw(page)?, 0);
        want!(env.try_exchange(page)?, 0);
    }
    Ok(())
}

fn e060_clear_and_copy_spare_live_tables<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (source, data) = (env.table(L1, &[(3, 0xabc0)])?, env.loose(&[(3, 0x1234)])?);
    let mut live: Vec<Page> = Vec::new();
    for level in Level::TOP_DOWN {
        live.push(env.table(level, &[])?);
    }
    let gdt = env.loose(&[])?;
    want!(env.set_gdt(&[env.mfn(gdt)], 512), 0);
    live.push(gdt);
    let into: Vec<u64> = live.iter().map(|page| env.mfn(*page)).collect();
    let foreign = env.facts().foreign;
    for mfn in into.into_iter().chain(foreign).chain([NON_RAM]) {
        want!(env.ext(ext::CLEAR_PAGE, mfn, 0), EINVAL, "{mfn:#x}");
        want!(env.ext(ext::COPY_PAGE, mfn, env.mfn(data)), EINVAL, "{mfn:#x}");
    }
    for mfn in foreign.into_iter().chain([NON_RAM]) {
        want!(env.ext(ext::COPY_PAGE, env.mfn(data), mfn), EINVAL, "from {mfn:#x}");
    }
    want!(env.ext(ext::COPY_PAGE, env.mfn(data), env.mfn(source)), 0, "from a live table");
    same!(env.get(data, 3)?, 0xabc0);
    want!(env.ext(ext::CLEAR_PAGE, env.mfn(data), 0), 0);
    same!(env.get(data, 3)?, 0);
    want!(env.pin(L1, data), 0, "no count is left");
    Ok(())
}

fn e061_cache_flushes_are_for_domains_with_devices<M: Target>(env: &mut Env<'_, M>) -> Check {
    want!(env.ext(ext::FLUSH_CACHE, 0, 0), env.by_role(0, EACCES));
    let refused = env.by_release(EINVAL, EACCES);
    want!(env.ext(ext::FLUSH_CACHE_GLOBAL, 0, 0), env.by_role(0, refused));
    let data = env.take()?;
    for command in [ext::MARK_SUPER, ext::UNMARK_SUPER] {
        want!(env.ext(command, env.mfn(data), 0), EOPNOTSUPP, "command {command}");
    }
    for command in [14, 21, 22, 99, u32::MAX] {
        want!(env.ext(command, env.mfn(data), 0), ENOSYS, "command {command}");
    }
    Ok(())
}

fn e062_an_ldt_is_checked_for_its_shape_only<M: Target>(env: &mut Env<'_, M>) -> Check {
    want!(env.ext(ext::SET_LDT, NOWHERE + 8, 1), EINVAL, "unaligned");
    want!(env.ext(ext::SET_LDT, NOWHERE, 8193), EINVAL, "too long");
    want!(env.ext(ext::SET_LDT, HOLE, 1), EINVAL, "in Xen's range");
    want!(env.ext(ext::SET_LDT, NOWHERE, 8192), 0, "not mapped");
    want!(env.ext(ext::SET_LDT, NOWHERE + 8, 0), 0, "none");
    Ok(())
}

/// A writable data segment for user mode, and a present TSS.
const DATA_SEGMENT: u64 = 0x00cf_f300_0000_ffff;
const TSS: u64 = 0x0000_8900_0000_0067;

/// The first descriptor of the LDT, at user's privilege.
const FIRST_OF_LDT: u16 = 7;

fn e063_ldt_pages_are_checked_at_first_use<M: Target>(env: &mut Env<'_, M>) -> Check {
    let page = env.take()?;
    env.fill(page, 0, DATA_SEGMENT)?;
    want!(env.ext(ext::SET_LDT, env.va(page), 512), 0);
    want!(env.load_selector(FIRST_OF_LDT).is_ok(), false, "while mapped writable");
    env.fill(page, 1, TSS)?;
    env.ro(page)?;
    want!(env.load_selector(FIRST_OF_LDT).is_ok(), false, "with a TSS beside it");
    env.rw(page)?;
    env.fill(page, 1, 0)?;
    env.ro(page)?;
    want!(env.load_selector(FIRST_OF_LDT).is_ok(), true);
    want!(env.load_selector(0).is_ok(), true);
    want!(env.try_rw(page)?, EBUSY);
    want!(env.ext(ext::SET_LDT, 0, 0), 0);
    want!(env.try_rw(page)?, 0);
    Ok(())
}

fn e064_a_flush_of_xens_addresses_does_nothing<M: Target>(env: &mut Env<'_, M>) -> Check {
    for command in [ext::INVLPG_LOCAL, ext::INVLPG_ALL] {
        want!(env.ext(command, HOLE, 0), 0, "command {command}");
        want!(env.ext(command, 0x8000_0000_0000, 0), 0, "command {command}");
    }
    let mask = env.put(2, 512, &[1, 0]);
    for command in [ext::TLB_FLUSH_MULTI, ext::INVLPG_MULTI] {
        want!(env.ext(command, NOWHERE, mask), 0, "command {command}");
        want!(env.ext(command, NOWHERE, NOWHERE), EINVAL, "command {command}");
    }
    Ok(())
}

fn e065_a_run_stops_at_the_first_refusal<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (a, b) = (env.loose(&[])?, env.loose(&[])?);
    let run = [
        (ext::PIN_L1_TABLE, env.mfn(a), 0),
        (ext::UNPIN_TABLE, env.mfn(b), 0),
        (ext::PIN_L1_TABLE, env.mfn(b), 0),
    ];
    want!(env.exts(&run, SELF), Answer::of(EINVAL, 1));
    want!(env.unpin(a), 0);
    want!(env.unpin(b), EINVAL);
    Ok(())
}
