//! H, the rest: `memory_op`, what it tells and what is not for PV guests.

use alloc::vec::Vec;

use crate::check::Check;
use crate::env::{Env, NOBODY, NOWHERE, SELF, number, op};
use crate::errno::{EACCES, EFAULT, EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ESRCH};
use crate::{Assertion, Target};

pub(super) fn all<M: Target>() -> Vec<Assertion<M>> {
    assertions![
        Everywhere:
            h090_where_m2p_is_and_where_ram_ends,
            h091_what_is_not_for_pv_guests_is_refused;
    ]
}

const MEMORY_MAP: u64 = 9;
const ADD_TO_PHYSMAP: u64 = 7;
const MACHINE_MEMORY_MAP: u64 = 10;
const MACHPHYS_MAPPING: u64 = 12;
const SET_MEMORY_MAP: u64 = 13;
const REMOVE_FROM_PHYSMAP: u64 = 15;
const ADD_TO_PHYSMAP_BATCH: u64 = 23;

fn h090_where_m2p_is_and_where_ram_ends<M: Target>(env: &mut Env<'_, M>) -> Check {
    let end = env.memory_op(op::MAXIMUM_RAM_PAGE, &[]).cast_unsigned();
    for pfn in 0..env.facts().boot.pages {
        let mfn = env.p2m(pfn).ok_or("a hole in the P2M list")?;
        want!(mfn < end, true, "mfn {mfn:#x} lies behind the end {end:#x}");
    }
    want!(env.memory_op(MACHPHYS_MAPPING, &[0, 0, 0]), 0);
    let mapping = env.structure(3);
    same!(mapping[0], 0xffff_8000_0000_0000);
    same!(mapping[1], 0xffff_8040_0000_0000);
    // dom0 is told the real end, everyone else one that fits every machine.
    same!(mapping[2], env.by_role(end - 1, 0x7_ffff_ffff));
    Ok(())
}

fn h091_what_is_not_for_pv_guests_is_refused<M: Target>(env: &mut Env<'_, M>) -> Check {
    let page = env.take()?;
    let (mfn, pfn) = (env.mfn(page), env.pfn(page));
    for space in 0..4 {
        let add = [SELF | space << 32, mfn, pfn];
        want!(env.memory_op(ADD_TO_PHYSMAP, &add), EACCES, "space {space}");
    }
    let add = [SELF | 4 << 32, mfn, pfn];
    want!(env.memory_op(ADD_TO_PHYSMAP, &add), ENOSYS, "a foreign frame");
    want!(env.memory_op(REMOVE_FROM_PHYSMAP, &[SELF, pfn]), EACCES);
    for (space, refused) in [(0, EACCES), (2, EACCES), (3, EOPNOTSUPP)] {
        let (lists, size) = (env.put(1, 0, &[mfn, pfn, 0]), 1 << 32);
        let batch = [SELF | space << 16 | size, lists, lists + 8, lists + 16];
        want!(env.memory_op(ADD_TO_PHYSMAP_BATCH, &batch), refused, "space {space}");
    }
    for op in [40, 63] {
        want!(env.memory_op(op, &[SELF]), ENOSYS, "op {op}");
    }
    for op in [op::CURRENT_RESERVATION, op::MAXIMUM_RESERVATION] {
        want!(env.memory_op(op, &[NOBODY]), ESRCH, "op {op}");
        want!(env.call(number::MEMORY_OP, [op, NOWHERE, 0, 0, 0]), EFAULT, "op {op}");
        want!(env.memory_op(op | 1 << 6, &[SELF]), EINVAL, "op {op}, continued");
        if !env.facts().boot.is_dom0 {
            want!(env.memory_op(op, &[0]), EPERM, "op {op} of dom0");
        }
    }
    memory_maps(env)
}

fn memory_maps<M: Target>(env: &Env<'_, M>) -> Check {
    let buffer = env.put(1, 0, &[0; 4]);
    want!(env.memory_op(MACHINE_MEMORY_MAP, &[100, buffer]), env.by_role(0, EPERM));
    // Unlike one's own map it is not cut to the buffer.
    want!(env.memory_op(MACHINE_MEMORY_MAP, &[0, buffer]), env.by_role(EINVAL, EPERM));
    // One region of RAM, 20 bytes.
    let (start, length) = (0, env.facts().boot.pages << 12);
    let region = env.put(1, 0, &[start, length, 1]);
    want!(env.memory_op(SET_MEMORY_MAP, &[SELF, 1, region]), 0);
    want!(env.memory_op(SET_MEMORY_MAP, &[SELF, 0x1_0000, region]), EINVAL);
    let buffer = env.put(1, 0, &[0; 4]);
    want!(env.memory_op(MEMORY_MAP, &[100, buffer]), 0);
    same!(env.structure(1)[0] & 0xffff_ffff, 1);
    want!(env.got(1, 0, 3), [start, length, 1]);
    Ok(())
}
