//! K: descriptor tables.

use alloc::vec::Vec;

use hypercall::Level::L1;

use crate::check::Check;
use crate::env::{Env, HOLE, NON_RAM, NOWHERE, number};
use crate::errno::{EBUSY, EFAULT, EINVAL};
use crate::{Assertion, Target};

pub(super) fn all<M: Target>() -> Vec<Assertion<M>> {
    assertions![
        Everywhere:
            k103_a_gdt_frame_is_read_only_and_for_user_mode,
            k104_a_live_gdt_is_changed_by_descriptor_only,
            k105_a_former_gdt_frame_is_an_ordinary_one;
    ]
}

/// A code segment of the kernel's, and what Xen makes of it; a present TSS.
const CODE: u64 = 0x00af_9b00_0000_ffff;
const USER_CODE: u64 = 0x00af_fb00_0000_ffff;
const TSS: u64 = 0x0000_8900_0000_0067;

/// Issues `update_descriptor`.
fn update_descriptor<M: Target>(env: &Env<'_, M>, address: u64, descriptor: u64) -> i64 {
    env.call(number::UPDATE_DESCRIPTOR, [address, descriptor, 0, 0, 0])
}

fn k103_a_gdt_frame_is_read_only_and_for_user_mode<M: Target>(env: &mut Env<'_, M>) -> Check {
    let page = env.take()?;
    env.fill(page, 3, CODE)?;
    want!(env.set_gdt(&[env.mfn(page)], 512), EINVAL, "writable");
    env.ro(page)?;
    want!(env.set_gdt(&[env.mfn(page)], 512), 0);
    same!(env.get(page, 3)?, USER_CODE);
    // All frames or none.
    want!(env.set_gdt(&[env.mfn(page), NON_RAM], 1024), EINVAL);
    want!(env.try_rw(page)?, EBUSY);
    want!(env.set_gdt(&[env.mfn(page); 2], 1024), 0, "the same frame twice");
    want!(env.set_gdt(&[], 0), 0);
    want!(env.try_rw(page)?, 0);
    want!(env.try_exchange(page)?, 0);
    Ok(())
}

fn k104_a_live_gdt_is_changed_by_descriptor_only<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (page, table, data) = (env.loose(&[])?, env.table(L1, &[])?, env.take()?);
    want!(env.set_gdt(&[env.mfn(page)], 512), 0);
    want!(env.try_rw(page)?, EBUSY);
    want!(env.set(page, 3, CODE), EINVAL);
    want!(update_descriptor(env, env.slot(page, 3), CODE), 0);
    same!(env.get(page, 3)?, USER_CODE);
    want!(update_descriptor(env, env.slot(page, 4), TSS), EINVAL);
    want!(update_descriptor(env, env.slot(page, 4) + 4, CODE), EINVAL, "misaligned");
    want!(update_descriptor(env, NON_RAM << 12, CODE), EINVAL);
    want!(update_descriptor(env, env.slot(table, 4), 0), EINVAL, "a live table");
    same!(env.get(page, 4)?, 0);
    want!(update_descriptor(env, env.slot(data, 4), CODE), 0, "a writable page");
    same!(env.get(data, 4)?, USER_CODE);
    let list = env.put(0, 0, &[env.mfn(page); 15]);
    want!(env.call(number::SET_GDT, [list, 7169, 0, 0, 0]), EINVAL, "too many");
    want!(env.call(number::SET_GDT, [list, 7168, 0, 0, 0]), 0);
    want!(env.call(number::SET_GDT, [NOWHERE, 512, 0, 0, 0]), EFAULT);
    want!(env.call(number::SET_GDT, [HOLE, 512, 0, 0, 0]), EFAULT);
    // What was refused has replaced nothing.
    want!(env.try_rw(page)?, EBUSY);
    want!(env.set_gdt(&[], 0), 0);
    want!(env.try_exchange(page)?, 0);
    Ok(())
}

fn k105_a_former_gdt_frame_is_an_ordinary_one<M: Target>(env: &mut Env<'_, M>) -> Check {
    let page = env.loose(&[])?;
    want!(env.set_gdt(&[env.mfn(page)], 512), 0);
    want!(env.set_gdt(&[], 0), 0);
    want!(env.set(page, 3, TSS), 0);
    same!(env.get(page, 3)?, TSS);
    want!(env.set_gdt(&[env.mfn(page)], 512), EINVAL, "with a TSS");
    want!(env.set(page, 3, 0), 0);
    want!(env.set_gdt(&[env.mfn(page)], 512), 0);
    Ok(())
}
