//! F: how calls take their arguments and report how far they came.

use alloc::vec::Vec;

use hypercall::Level::L1;
use hypercall::PAGE_SIZE;
use hypercall::commands::{ext, mmu};

use crate::check::Check;
use crate::env::{
    Answer, Env, GUEST_KERNEL, HOLE, IO, KERNEL_RO, KERNEL_RW, NOBODY, NON_RAM, NOWHERE, Page,
    SELF, number,
};
use crate::errno::{EBUSY, EFAULT, EINVAL, ENOSYS, EPERM, ESRCH};
use crate::{Assertion, Target};

pub(super) fn all<M: Target>() -> Vec<Assertion<M>> {
    assertions![
        Everywhere:
            f066_ones_own_number_is_not_a_foreign_domain,
            f067_other_domains_are_refused_before_any_element,
            f068_lists_that_cannot_be_read_are_refused_where_they_end,
            f069_the_low_three_bits_are_a_command,
            f070_elements_before_a_refused_one_stay,
            f071_m2p_takes_any_value_for_ones_own_frames,
            f072_update_va_mapping_needs_an_l1_table,
            f073_dom_io_is_for_dom0,
            f075_unknown_hypercalls_are_unknown;
    ]
}

/// Issues `update_va_mapping_otherdomain` without a flush.
fn otherdomain<M: Target>(env: &Env<'_, M>, va: u64, value: u64, domain: u64) -> i64 {
    env.call(number::UPDATE_VA_MAPPING_OTHERDOMAIN, [va, value, 0, domain, 0])
}

/// Returns what the three calls that name a domain answer for `domain`.
fn answers<M: Target>(env: &mut Env<'_, M>, domain: u64) -> Check<(Answer, Answer, i64)> {
    let (bed, window) = (env.bed()?, env.take()?);
    let update = env.updates(&[(env.slot(bed, 1), 0)], domain);
    let ext = env.exts(&[(ext::PIN_L1_TABLE, env.mfn(window), 0)], domain);
    let value = env.entry(window, KERNEL_RW);
    Ok((update, ext, otherdomain(env, env.va(window), value, domain)))
}

fn f066_ones_own_number_is_not_a_foreign_domain<M: Target>(env: &mut Env<'_, M>) -> Check {
    let own = env.facts().domain;
    want!(answers(env, own)?, (Answer::of(ESRCH, 0), Answer::untold(ESRCH), ESRCH));
    // As the owner of the tables it may be named.
    let bed = env.bed()?;
    let element = [(env.slot(bed, 1), 0x1000)];
    want!(env.updates(&element, ((own + 1) << 16) | SELF), Answer::of(0, 1));
    want!(env.current_reservation(own), env.current_reservation(SELF));
    Ok(())
}

fn f067_other_domains_are_refused_before_any_element<M: Target>(env: &mut Env<'_, M>) -> Check {
    want!(answers(env, NOBODY)?, (Answer::of(ESRCH, 0), Answer::untold(ESRCH), ESRCH));
    let bed = env.bed()?;
    let element = [(env.slot(bed, 1), 0)];
    want!(env.updates(&element, ((NOBODY + 1) << 16) | SELF), Answer::untold(ESRCH));
    if !env.facts().boot.is_dom0 {
        want!(answers(env, 0)?, (Answer::of(EPERM, 0), Answer::untold(EPERM), EPERM));
        want!(env.updates(&element, (1 << 16) | SELF), Answer::of(EPERM, 0));
    }
    Ok(())
}

/// Puts `first` at the end of a page, so that what follows is in a page that is not mapped. Says
/// where it is.
fn at_the_edge<M: Target>(env: &Env<'_, M>, pages: [Page; 2], first: &[u64]) -> Check<u64> {
    let start = env.va(pages[0]) + (PAGE_SIZE - first.len() * 8) as u64;
    for (at, word) in first.iter().enumerate() {
        env.store(start + at as u64 * 8, *word)?;
    }
    env.hide(pages[1])?;
    Ok(start)
}

fn f068_lists_that_cannot_be_read_are_refused_where_they_end<M: Target>(
    env: &mut Env<'_, M>,
) -> Check {
    let pages = env.take_neighbours()?;
    let (bed, table) = (env.bed()?, env.loose(&[])?);
    let raw = |env: &Env<'_, M>, call: u32, list: u64, count: u64| {
        let rax = env.call(call, [list, count, env.done_at(), SELF, 0]);
        env.done(rax)
    };
    for call in [number::MMU_UPDATE, number::MMUEXT_OP] {
        want!(raw(env, call, HOLE, 1), Answer::untold(EFAULT), "hypercall {call}, Xen's range");
        want!(raw(env, call, NOWHERE, 1), Answer::of(EFAULT, 0), "hypercall {call}, unmapped");
        want!(raw(env, call, NOWHERE, 0), Answer::of(0, 0), "hypercall {call}, none");
    }
    let list = at_the_edge(env, pages, &[env.slot(bed, 1), 0x1230])?;
    want!(raw(env, number::MMU_UPDATE, list, 2), Answer::of(EFAULT, 1));
    same!(env.get(bed, 1)?, 0x1230);
    let list = at_the_edge(env, pages, &[u64::from(ext::PIN_L1_TABLE), env.mfn(table), 0])?;
    want!(raw(env, number::MMUEXT_OP, list, 2), Answer::of(EFAULT, 1));
    want!(env.unpin(table), 0);
    // Nobody has to ask how many were done.
    let list = env.put(0, 0, &[env.slot(bed, 1), 0x4560]);
    want!(env.call(number::MMU_UPDATE, [list, 1, 0, SELF, 0]), 0);
    same!(env.get(bed, 1)?, 0x4560);
    Ok(())
}

fn f069_the_low_three_bits_are_a_command<M: Target>(env: &mut Env<'_, M>) -> Check {
    let bed = env.bed()?;
    for command in 4..8 {
        let element = [(env.slot(bed, 1) | command, 0x1230)];
        want!(env.updates(&element, SELF), Answer::of(ENOSYS, 0), "command {command}");
    }
    same!(env.get(bed, 1)?, 0);
    Ok(())
}

fn f070_elements_before_a_refused_one_stay<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (bed, data, table) = (env.bed()?, env.take()?, env.table(L1, &[])?);
    let run = [
        (env.slot(bed, 1), env.entry(data, KERNEL_RO)),
        (env.slot(bed, 2), env.entry(table, KERNEL_RW)),
        (env.slot(bed, 3), env.entry(data, KERNEL_RO)),
    ];
    want!(env.updates(&run, SELF), Answer::of(EBUSY, 1));
    same!(env.get(bed, 1)?, env.entry(data, GUEST_KERNEL | 0x65));
    same!(env.get(bed, 2)?, 0);
    same!(env.get(bed, 3)?, 0);
    Ok(())
}

fn f071_m2p_takes_any_value_for_ones_own_frames<M: Target>(env: &mut Env<'_, M>) -> Check {
    let page = env.take()?;
    let target = |mfn: u64| mfn << 12 | mmu::MACHPHYS;
    for value in [0x777, 0, 0x1234_5678_9abc] {
        want!(env.update(target(env.mfn(page)), value), 0);
        want!(env.m2p(env.mfn(page)), Some(value));
        // The rest of the address is not looked at.
        want!(env.update(target(env.mfn(page)) | 0xff8, env.pfn(page)), 0);
        want!(env.m2p(env.mfn(page)), Some(env.pfn(page)));
    }
    want!(env.update(target(env.mfn(page)), u64::MAX), 0);
    want!(env.m2p(env.mfn(page)), None);
    for mfn in env.facts().foreign.into_iter().chain([NON_RAM]) {
        want!(env.update(target(mfn), 0x777), EINVAL, "{mfn:#x}");
    }
    Ok(())
}

fn f072_update_va_mapping_needs_an_l1_table<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (window, data) = (env.take()?, env.take()?);
    let value = env.entry(data, KERNEL_RO);
    want!(env.va_mapping(NOWHERE, value), EINVAL, "no tables");
    want!(env.va_mapping(HOLE, value), EINVAL, "Xen's range");
    want!(env.va_mapping(NOWHERE, 0), EINVAL, "no tables, and nothing to map");
    // A mask of vCPUs that cannot be read is noticed too late.
    let flush = NOWHERE | 1;
    let arguments = [env.va(window), value, flush, 0, 0];
    want!(env.call(number::UPDATE_VA_MAPPING, arguments), EFAULT);
    same!(env.direct(window)? & !0x60, env.entry(data, GUEST_KERNEL | 0x05));
    Ok(())
}

fn f073_dom_io_is_for_dom0<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (window, data) = (env.take()?, env.take()?);
    env.hide(window)?;
    let (va, own) = (env.va(window), env.entry(data, KERNEL_RO));
    want!(otherdomain(env, va, 0, IO), env.by_role(0, EPERM));
    want!(otherdomain(env, va, NON_RAM << 12 | KERNEL_RO, IO), env.by_role(0, EPERM));
    want!(otherdomain(env, va, own, IO), env.by_role(EBUSY, EPERM));
    want!(otherdomain(env, va, own, SELF), 0);
    Ok(())
}

fn f075_unknown_hypercalls_are_unknown<M: Target>(env: &mut Env<'_, M>) -> Check {
    for number in [47, 56, 63, 64, 1000, u32::MAX] {
        want!(env.call(number, [0; 5]), ENOSYS, "hypercall {number}");
    }
    Ok(())
}
