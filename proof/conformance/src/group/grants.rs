//! I: grants, as far as they are entries of page tables. The guest grants to itself.

use alloc::vec::Vec;

use hypercall::Level::L1;

use crate::check::Check;
use crate::env::grant::{
    APPLICATION, CONTAINS_PTE, GrantTable, HOST, MAP_READ_ONLY, Mapping, PERMIT, READ_ONLY,
    READING, WRITING,
};
use crate::env::{Env, GUEST_KERNEL, KERNEL_RO, KERNEL_RW, NOBODY, NOWHERE, Page, SELF};
use crate::errno::{EFAULT, EINVAL};
use crate::{Assertion, Target};

pub(super) fn all<M: Target>() -> Vec<Assertion<M>> {
    assertions![
        Everywhere:
            i092_a_mapped_grant_is_an_entry_like_others,
            i093_a_grant_counts_like_a_mapping,
            i094_what_cannot_be_mapped_is_told_by_the_status,
            i095_an_overwritten_grant_entry_must_be_put_back,
            i096_a_handle_is_good_once,
            i097_the_grant_table_has_no_pfn_and_can_be_mapped;
    ]
}

/// The first reference that neither console nor xenstore uses.
const FIRST: u64 = 8;

/// No such reference, not permitted, no such domain, no such handle: statuses of grant operations.
const GENERAL_ERROR: i64 = -1;
const BAD_DOMAIN: i64 = -2;
const BAD_REFERENCE: i64 = -3;
const BAD_HANDLE: i64 = -4;

/// Returns a page granted to the guest itself, mapped nowhere.
fn granted<M: Target>(env: &mut Env<'_, M>, table: GrantTable, flags: u64) -> Check<Page> {
    let page = env.take()?;
    env.hide(page)?;
    env.grant(table, FIRST, flags, env.facts().domain, env.mfn(page))?;
    Ok(page)
}

/// Returns the mapping of that grant in an entry.
fn into<M: Target>(env: &Env<'_, M>, bed: Page, index: u64, flags: u64) -> Mapping {
    let flags = HOST | CONTAINS_PTE | flags;
    Mapping { host_addr: env.slot(bed, index), flags, reference: FIRST, domain: env.facts().domain }
}

fn i092_a_mapped_grant_is_an_entry_like_others<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (table, bed) = (env.grant_table()?, env.bed()?);
    let page = granted(env, table, PERMIT)?;
    let kinds = [
        (0, env.nx() | GUEST_KERNEL | 0x67, READING | WRITING),
        (MAP_READ_ONLY, env.nx() | GUEST_KERNEL | 0x65, READING),
        (APPLICATION, env.nx() | 0x167, READING | WRITING),
        (APPLICATION | MAP_READ_ONLY, env.nx() | 0x165, READING),
    ];
    for (flags, entry, used) in kinds {
        let mapping = into(env, bed, 1, flags);
        let (status, handle) = env.map_grant(mapping)?;
        want!(status, 0, "flags {flags:#x}");
        same!(env.get(bed, 1)?, env.entry(page, entry), "flags {flags:#x}");
        same!(env.grant_flags(table, FIRST)?, PERMIT | used);
        want!(env.unmap_grant(mapping.host_addr, handle)?, 0, "flags {flags:#x}");
        same!(env.get(bed, 1)?, 0);
        same!(env.grant_flags(table, FIRST)?, PERMIT);
    }
    // By address, in the running tables; what was mapped there goes.
    let window = env.take()?;
    let mapping = Mapping { host_addr: env.va(window), ..into(env, bed, 1, 0) };
    let mapping = Mapping { flags: HOST, ..mapping };
    let (status, handle) = env.map_grant(mapping)?;
    want!(status, 0);
    let used = 0x60;
    let entry = env.entry(page, env.nx() | GUEST_KERNEL | 0x67);
    same!(env.direct(window)? & !used, entry & !used);
    want!(env.exchange(window)?, 0);
    want!(env.unmap_grant(mapping.host_addr, handle)?, 0);
    same!(env.direct(window)?, 0);
    want!(env.exchange(page)?, 0);
    Ok(())
}

fn i093_a_grant_counts_like_a_mapping<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (table, bed) = (env.grant_table()?, env.bed()?);
    let page = granted(env, table, PERMIT)?;
    let (writable, readable) = (into(env, bed, 1, 0), into(env, bed, 2, MAP_READ_ONLY));
    let (status, handle) = env.map_grant(writable)?;
    want!(status, 0);
    want!(env.pin(L1, page), EINVAL);
    want!(env.exchange(page)?, EINVAL);
    want!(env.unmap_grant(writable.host_addr, handle)?, 0);
    env.rw(page)?;
    for index in 0..512 {
        env.fill(page, index, 0)?;
    }
    env.ro(page)?;
    want!(env.pin(L1, page), 0);
    want!(env.map_grant(writable)?.0, GENERAL_ERROR, "of a live table");
    same!(env.get(bed, 1)?, 0);
    let (status, handle) = env.map_grant(readable)?;
    want!(status, 0, "of a live table, read-only");
    want!(env.unpin(page), 0);
    want!(env.try_exchange(page)?, EINVAL);
    want!(env.unmap_grant(readable.host_addr, handle)?, 0);
    want!(env.exchange(page)?, 0);
    Ok(())
}

fn i094_what_cannot_be_mapped_is_told_by_the_status<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (table, bed, loose) = (env.grant_table()?, env.bed()?, env.loose(&[])?);
    let page = granted(env, table, PERMIT)?;
    let good = into(env, bed, 1, 0);
    let refused = [
        ("misaligned", Mapping { host_addr: good.host_addr + 4, ..good }, GENERAL_ERROR),
        ("no table", Mapping { host_addr: env.slot(loose, 1), ..good }, GENERAL_ERROR),
        ("no tables there", Mapping { host_addr: NOWHERE, flags: HOST, ..good }, GENERAL_ERROR),
        ("a far reference", Mapping { reference: 0x10_0000, ..good }, BAD_REFERENCE),
        ("no map flag", Mapping { flags: CONTAINS_PTE, ..good }, BAD_REFERENCE),
        ("no domain", Mapping { domain: NOBODY, ..good }, BAD_DOMAIN),
        ("oneself by DOMID_SELF", Mapping { domain: SELF, ..good }, BAD_DOMAIN),
    ];
    for (what, mapping, status) in refused {
        want!(env.map_grant(mapping)?.0, status, "{what}");
        same!(env.grant_flags(table, FIRST)?, PERMIT, "{what}");
    }
    let (domain, mfn) = (env.facts().domain, env.mfn(page));
    env.grant(table, FIRST, PERMIT | READ_ONLY, domain, mfn)?;
    want!(env.map_grant(good)?.0, GENERAL_ERROR, "writable of a read-only one");
    env.grant(table, FIRST, PERMIT, NOBODY, mfn)?;
    want!(env.map_grant(good)?.0, GENERAL_ERROR, "granted to another");
    env.grant(table, FIRST, 0, domain, mfn)?;
    want!(env.map_grant(good)?.0, GENERAL_ERROR, "granted to nobody");
    same!(env.get(bed, 1)?, 0);
    want!(env.exchange(page)?, 0);
    Ok(())
}

fn i095_an_overwritten_grant_entry_must_be_put_back<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (table, bed) = (env.grant_table()?, env.bed()?);
    let page = granted(env, table, PERMIT)?;
    let mapping = into(env, bed, 1, MAP_READ_ONLY);
    let (status, handle) = env.map_grant(mapping)?;
    want!(status, 0);
    want!(env.set(bed, 1, 0), 0);
    for _ in 0..2 {
        want!(env.unmap_grant(mapping.host_addr, handle)?, GENERAL_ERROR, "overwritten");
        same!(env.grant_flags(table, FIRST)?, PERMIT | READING);
    }
    want!(env.set(bed, 1, env.entry(page, KERNEL_RW)), 0);
    want!(env.unmap_grant(mapping.host_addr, handle)?, GENERAL_ERROR, "writable now");
    want!(env.set(bed, 1, env.entry(page, KERNEL_RO)), 0);
    want!(env.unmap_grant(mapping.host_addr, handle)?, 0);
    same!(env.grant_flags(table, FIRST)?, PERMIT);
    same!(env.get(bed, 1)?, 0);
    want!(env.exchange(page)?, 0);
    Ok(())
}

fn i096_a_handle_is_good_once<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (table, bed) = (env.grant_table()?, env.bed()?);
    let page = granted(env, table, PERMIT)?;
    let mapping = into(env, bed, 1, 0);
    let (status, handle) = env.map_grant(mapping)?;
    want!(status, 0);
    let entry = env.get(bed, 1)?;
    want!(env.unmap_grant(0, handle)?, 0, "of no address");
    same!(env.get(bed, 1)?, entry);
    want!(env.unmap_grant(mapping.host_addr, handle)?, 0);
    want!(env.unmap_grant(mapping.host_addr, handle)?, BAD_HANDLE);
    want!(env.unmap_grant(mapping.host_addr, 0x1234_5678)?, BAD_HANDLE);
    want!(env.map_grants_at(NOWHERE, 1), EFAULT);
    want!(env.map_grants_at(NOWHERE, 1 << 31), EINVAL);
    want!(env.map_grants_at(NOWHERE, 0), 0);
    want!(env.exchange(page)?, 0);
    Ok(())
}

fn i097_the_grant_table_has_no_pfn_and_can_be_mapped<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (table, bed) = (env.grant_table()?, env.bed()?);
    want!(env.m2p(table.mfn), None);
    want!(env.set(bed, 1, table.mfn << 12 | KERNEL_RW), 0);
    env.grant(table, FIRST, PERMIT, NOBODY, 0)?;
    same!(env.grant_flags(table, FIRST)?, PERMIT);
    env.grant(table, FIRST, 0, 0, 0)?;
    Ok(())
}
