//! J: stores to live L1 tables, which Xen emulates.

use alloc::vec::Vec;

use hypercall::Level::{L1, L2, L3, L4};
use hypercall::raw::RawWrite;

use crate::check::Check;
use crate::env::{Env, GUEST_KERNEL, INVALID, KERNEL_RO, KERNEL_RW, TABLE};
use crate::errno::EINVAL;
use crate::{Assertion, Target};

pub(super) fn all<M: Target>() -> Vec<Assertion<M>> {
    assertions![
        Everywhere:
            j098_a_store_to_a_live_l1_table_is_an_update,
            j099_other_read_only_pages_are_not_written,
            j100_a_store_of_a_refused_entry_faults,
            j101_narrow_stores_are_merged_and_wide_ones_fault,
            j102_exchanges_are_validated_if_they_match;
    ]
}

/// `VMASST_TYPE_writable_pagetables`.
const WRITABLE_PAGE_TABLES: u64 = 2;

fn j098_a_store_to_a_live_l1_table_is_an_update<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (bed, data) = (env.bed()?, env.take()?);
    env.hide(data)?;
    env.fill(bed, 1, env.entry(data, KERNEL_RW))?;
    same!(env.get(bed, 1)?, env.entry(data, GUEST_KERNEL | 0x67));
    want!(env.pin(L1, data), EINVAL);
    want!(env.exchange(data)?, EINVAL);
    env.fill(bed, 1, 0)?;
    want!(env.exchange(data)?, 0);
    // Without the assist dom0's are emulated all the same.
    want!(env.assist(1, WRITABLE_PAGE_TABLES), 0);
    let stored = env.fill(bed, 1, 0x1230).is_ok();
    want!(env.assist(0, WRITABLE_PAGE_TABLES), 0);
    want!(stored, env.by_role(true, false));
    same!(env.get(bed, 1)?, env.by_role(0x1230, 0));
    Ok(())
}

fn j099_other_read_only_pages_are_not_written<M: Target>(env: &mut Env<'_, M>) -> Check {
    let loose = env.loose(&[])?;
    want!(env.fill(loose, 1, 0).is_ok(), false, "no table yet");
    want!(env.pin(L1, loose), 0);
    want!(env.fill(loose, 1, 0).is_ok(), true, "an L1 table");
    want!(env.unpin(loose), 0);
    want!(env.fill(loose, 1, 0).is_ok(), false, "no table any more");
    for level in [L2, L3, L4] {
        let table = env.table(level, &[])?;
        want!(env.fill(table, 1, 0).is_ok(), false, "{level}");
    }
    let gdt = env.loose(&[])?;
    want!(env.set_gdt(&[env.mfn(gdt)], 512), 0);
    want!(env.fill(gdt, 1, 0).is_ok(), false, "a GDT");
    Ok(())
}

fn j100_a_store_of_a_refused_entry_faults<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (bed, data, table) = (env.bed()?, env.take()?, env.table(L1, &[])?);
    env.fill(bed, 1, env.entry(data, KERNEL_RO))?;
    let before = env.get(bed, 1)?;
    for value in [env.entry(table, KERNEL_RW), INVALID << 12 | KERNEL_RO] {
        want!(env.fill(bed, 1, value).is_ok(), false, "{value:#x}");
        same!(env.get(bed, 1)?, before);
    }
    want!(env.try_exchange(data)?, EINVAL, "still mapped");
    Ok(())
}

fn j101_narrow_stores_are_merged_and_wide_ones_fault<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (bed, data, table) = (env.bed()?, env.take()?, env.table(L1, &[])?);
    env.hide(data)?;
    let at = env.va(bed) + 8;
    env.store(at, env.entry(data, env.nx() | KERNEL_RO))?;
    let before = env.get(bed, 1)?;
    same!(before, env.entry(data, env.nx() | GUEST_KERNEL | 0x65));
    // The low half: the frame goes, the high half stays.
    env.write(at, RawWrite::Store4, 0)?;
    same!(env.get(bed, 1)?, before & !0xffff_ffff);
    want!(env.exchange(data)?, 0);
    env.write(at, RawWrite::Store2, 0x1230)?;
    same!(env.get(bed, 1)?, before & !0xffff_ffff | 0x1230);
    // One byte is enough to ask for write access.
    want!(env.set(bed, 1, env.entry(data, KERNEL_RO)), 0);
    env.write(at, RawWrite::Store1, 0x63)?;
    same!(env.get(bed, 1)?, env.entry(data, GUEST_KERNEL | 0x67));
    want!(env.pin(L1, data), EINVAL);
    want!(env.set(bed, 1, env.entry(table, KERNEL_RO)), 0);
    want!(env.write(at, RawWrite::Store1, 0x63).is_ok(), false, "of a live table");
    same!(env.get(bed, 1)?, env.entry(table, GUEST_KERNEL | 0x65));
    for offset in [1, 2, 4] {
        let stored = env.write(at + offset, RawWrite::Store8, 0);
        want!(stored.is_ok(), false, "eight bytes at offset {offset}");
    }
    want!(env.write(at + 3, RawWrite::Store2, 0).is_ok(), false, "two bytes at offset 3");
    want!(env.set(bed, 2, 0), 0);
    want!(env.set(bed, 3, 0), 0);
    let pair = env.va(bed) + 16;
    want!(env.write(pair, RawWrite::CompareExchange16, 0x1230).is_ok(), false, "16 bytes");
    same!(env.get(bed, 2)?, 0);
    Ok(())
}

fn j102_exchanges_are_validated_if_they_match<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (bed, data, table) = (env.bed()?, env.take()?, env.table(L1, &[])?);
    env.hide(data)?;
    let at = env.va(bed) + 8;
    let value = env.entry(data, KERNEL_RW);
    want!(env.compare_exchange(at, 0x40, value)?, 0, "no match");
    same!(env.get(bed, 1)?, 0);
    want!(env.exchange(data)?, 0, "no match, no reference");
    let value = env.entry(data, KERNEL_RW);
    want!(env.compare_exchange(at, 0, value)?, 0, "a match");
    let stored = env.entry(data, GUEST_KERNEL | 0x67);
    same!(env.get(bed, 1)?, stored);
    want!(env.exchange(data)?, EINVAL);
    // What does not match is not looked at.
    let bad = env.entry(table, KERNEL_RW);
    want!(env.compare_exchange(at, 0x40, bad)?, stored, "no match, and an entry to refuse");
    want!(env.compare_exchange(at, stored, bad).is_ok(), false, "a refused entry");
    same!(env.get(bed, 1)?, stored);
    same!(env.write(at, RawWrite::Exchange, env.entry(data, KERNEL_RO))?, stored);
    same!(env.get(bed, 1)?, env.entry(data, GUEST_KERNEL | 0x65));
    want!(env.write(at, RawWrite::Exchange, bad).is_ok(), false, "a refused entry");
    env.write(at, RawWrite::Or, 2)?;
    same!(env.get(bed, 1)?, stored);
    want!(env.pin(L1, data), EINVAL);
    want!(env.set(bed, 1, env.entry(table, KERNEL_RO)), 0);
    want!(env.write(at, RawWrite::Or, 2).is_ok(), false, "a table made writable");
    // What is not present is stored as it is.
    same!(env.write(at, RawWrite::Exchange, TABLE & !1)? & 0xfff, 0x65);
    same!(env.get(bed, 1)?, TABLE & !1);
    want!(env.exchange(data)?, 0);
    Ok(())
}
