//! G: multicalls.

use alloc::vec::Vec;

use hypercall::Level::L1;
use hypercall::PAGE_SIZE;

use crate::check::Check;
use crate::env::{ENTRY_WORDS, Entry, Env, HOLE, KERNEL_RO, KERNEL_RW, NOWHERE, number, words};
use crate::errno::{EBUSY, EFAULT, EINVAL, ENOSYS};
use crate::{Assertion, Target};

pub(super) fn all<M: Target>() -> Vec<Assertion<M>> {
    assertions![
        Everywhere:
            g076_a_refused_entry_stops_nothing,
            g077_a_release_build_writes_the_result_only,
            g078_a_list_is_read_entry_by_entry;
    ]
}

fn g076_a_refused_entry_stops_nothing<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (bed, data, table) = (env.bed()?, env.take()?, env.table(L1, &[])?);
    let entries = [
        env.update_entry(0, env.slot(bed, 1), env.entry(table, KERNEL_RW)),
        env.update_entry(1, env.slot(bed, 2), env.entry(data, KERNEL_RO)),
        Entry { number: 99, arguments: [0; 5] },
        Entry { number: number::MULTICALL, arguments: [NOWHERE, 1, 0, 0, 0] },
        env.update_entry(2, env.slot(bed, 3), 0x1230),
    ];
    let (rax, left) = env.multicall(&entries);
    want!(rax, 0);
    let results: Vec<i64> = left.chunks(ENTRY_WORDS).map(|entry| entry[1].cast_signed()).collect();
    want!(results, [EBUSY, 0, ENOSYS, EINVAL, 0]);
    same!(env.get(bed, 1)?, 0);
    same!(env.get(bed, 2)? & !0xfff & !(1 << 52), env.entry(data, 0));
    same!(env.get(bed, 3)?, 0x1230);
    Ok(())
}

fn g077_a_release_build_writes_the_result_only<M: Target>(env: &mut Env<'_, M>) -> Check {
    let bed = env.bed()?;
    let unknown = Entry { number: 99, arguments: [1, 2, 3, 4, 5] };
    let entries = [env.update_entry(0, env.slot(bed, 3), 0x1230), unknown];
    let (_, left) = env.multicall(&entries);
    for (at, (seen, before)) in left.iter().zip(words(&entries)).enumerate() {
        if at % ENTRY_WORDS != 1 {
            same!(*seen, before, "at word {at}");
        }
    }
    Ok(())
}

fn g078_a_list_is_read_entry_by_entry<M: Target>(env: &mut Env<'_, M>) -> Check {
    want!(env.multicall_at(HOLE, 1), EFAULT, "in Xen's range");
    want!(env.multicall_at(NOWHERE, 1), EFAULT, "unmapped");
    want!(env.multicall_at(NOWHERE, 0), 0, "none");
    let (bed, pages) = (env.bed()?, env.take_neighbours()?);
    let first = words(&[env.update_entry(0, env.slot(bed, 3), 0x1230)]);
    let start = env.va(pages[0]) + (PAGE_SIZE - first.len() * 8) as u64;
    for (at, word) in first.iter().enumerate() {
        env.store(start + at as u64 * 8, *word)?;
    }
    env.hide(pages[1])?;
    want!(env.multicall_at(start, 2), EFAULT, "the second entry unmapped");
    same!(env.get(bed, 3)?, 0x1230);
    same!(env.load(start + 8)?, 0, "as the result of the first");
    // Where the result cannot be written the call was made all the same.
    let second = words(&[env.update_entry(0, env.slot(bed, 3), 0x4560)]);
    for (at, word) in second.iter().enumerate() {
        env.store(start + at as u64 * 8, *word)?;
    }
    env.ro(pages[0])?;
    want!(env.multicall_at(start, 1), EFAULT, "read-only");
    same!(env.get(bed, 3)?, 0x4560);
    Ok(())
}
