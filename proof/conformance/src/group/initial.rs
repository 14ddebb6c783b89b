//! L: what a guest finds when it boots.

use alloc::format;
use alloc::vec::Vec;

use hypercall::Level::{L1, L4};
use hypercall::commands::ext;
use hypercall::raw::RawWrite;
use hypercall::start_info::Console;
use hypercall::{GuestVa, Level, PAGE_SIZE};

use crate::check::Check;
use crate::env::{Env, GUEST_KERNEL, HOLE, KERNEL_RO, KERNEL_RW, SELF, number, op};
use crate::errno::{EINVAL, ENOSYS, EPERM};
use crate::{Assertion, Target};

pub(super) fn all<M: Target>() -> Vec<Assertion<M>> {
    assertions![
        Everywhere:
            l106_all_is_mapped_writable_but_the_tables,
            l107_the_builders_tables_are_as_xen_leaves_them,
            l108_the_builders_pages_come_in_order,
            l109_features_console_and_assists_by_role;
    ]
}

/// Where every guest may read M2P.
const M2P: u64 = 0xffff_8000_0000_0000;

/// Entries that an address goes through in the running tables, from the root down, and the table of
/// the last.
fn entries<M: Target>(env: &Env<'_, M>, va: u64) -> Check<Vec<(Level, u64)>> {
    let va = GuestVa::new(va).map_err(|error| format!("{error}"))?;
    let (_, mut table) = env.facts().root;
    let mut found = Vec::new();
    for level in Level::TOP_DOWN {
        let pfn = env.m2p(table.raw()).ok_or_else(|| format!("mfn {table} has no pfn"))?;
        let at = env.direct_va(pfn)? + u64::from(level.index_of(va)) * 8;
        let entry = hypercall::Pte::from_raw(env.load(at)?);
        found.push((level, entry.raw()));
        if !entry.is_present() {
            break;
        }
        table = entry.mfn();
    }
    Ok(found)
}

/// Returns the entry of an L1 table that maps an address; 0 if none does.
fn leaf<M: Target>(env: &Env<'_, M>, va: u64) -> Check<u64> {
    match entries(env, va)?.last() {
        Some((L1, entry)) => Ok(*entry),
        _ => Ok(0),
    }
}

/// Returns the pfns of the builder's tables.
fn table_pfns<M: Target>(env: &Env<'_, M>) -> core::ops::Range<u64> {
    let first = env.facts().root.0.raw();
    first..first + env.facts().boot.table_frames
}

fn l106_all_is_mapped_writable_but_the_tables<M: Target>(env: &mut Env<'_, M>) -> Check {
    let boot = env.facts().boot;
    for pfn in (0..boot.pages).filter(|pfn| !env.is_changed(*pfn)) {
        let mfn = env.p2m(pfn).ok_or("a hole in the P2M list")?;
        want!(env.m2p(mfn), Some(pfn), "for mfn {mfn:#x}");
    }
    let (tables, start) = (table_pfns(env), env.kernel_va());
    let mut pfn = 0;
    loop {
        let entry = leaf(env, start + pfn * PAGE_SIZE as u64)?;
        if entry & 1 == 0 {
            break;
        }
        if !env.is_changed(pfn) {
            want!(Some(entry >> 12 & 0xff_ffff_ffff), env.p2m(pfn), "for pfn {pfn:#x}");
            let writable = entry & 2 != 0;
            want!(writable, !tables.contains(&pfn), "whether pfn {pfn:#x} is writable");
        }
        pfn += 1;
    }
    let end = start + pfn * PAGE_SIZE as u64;
    same!(end % (4 << 20), 0, "of {end:#x}");
    // Behind the tables comes the stack, and behind that some room.
    let used = start + (tables.end + 1) * PAGE_SIZE as u64;
    want!(end - used >= 512 << 10, true, "{used:#x}..{end:#x} is too little room");
    Ok(())
}

fn l107_the_builders_tables_are_as_xen_leaves_them<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (boot, root) = (env.facts().boot, env.facts().root.1.raw());
    // What the CPU sets does not matter.
    let used = 0x60;
    for (level, entry) in entries(env, boot.root.raw())? {
        let flags = entry & !0x000f_ffff_ffff_f000 & !used;
        let wanted = if level == L1 { GUEST_KERNEL | 0x05 } else { 0x07 };
        same!(flags, wanted, "of the {level} entry above the root's page");
    }
    let data = leaf(env, boot.p2m_list.raw())?;
    same!(data & !0x000f_ffff_ffff_f000 & !used, GUEST_KERNEL | 0x07, "of a data page");
    want!(env.ext(ext::PIN_L4_TABLE, root, 0), EINVAL, "the root is pinned");
    for (level, entry) in &entries(env, boot.root.raw())?[..3] {
        let below = entry >> 12 & 0xff_ffff_ffff;
        want!(env.ext(ext::UNPIN_TABLE, below, 0), EINVAL, "below the {level} entry");
    }
    let shared_info = boot.shared_info.raw();
    want!(env.m2p(shared_info), None);
    let bed = env.bed()?;
    for flags in [KERNEL_RO, KERNEL_RW] {
        want!(env.set(bed, 1, shared_info << 12 | flags), 0);
    }
    want!(env.m2p(root), Some(env.facts().root.0.raw()));
    for address in [M2P + root * 8, HOLE] {
        want!(env.write(address, RawWrite::Store8, 0).is_ok(), false, "to {address:#x}");
    }
    Ok(())
}

fn l108_the_builders_pages_come_in_order<M: Target>(env: &mut Env<'_, M>) -> Check {
    let boot = env.facts().boot;
    want!(boot.is_privileged, env.by_role(true, false));
    let start = env.kernel_va();
    let pfn_of = |va: u64| (va - start) / PAGE_SIZE as u64;
    let list_end = pfn_of(boot.p2m_list.raw() + boot.pages * 8 + PAGE_SIZE as u64 - 1);
    let tables = table_pfns(env).start;
    match (boot.store, boot.console) {
        (Some((store, _)), Console::Ring { mfn, .. }) => {
            // P2M list, start_info, xenstore's ring, the console's ring, tables.
            want!(env.m2p(store.raw()), Some(list_end + 1));
            want!(env.m2p(mfn.raw()), Some(list_end + 2));
            want!(tables, list_end + 3);
        }
        (None, Console::Hypervisor) => want!(tables, list_end + 1),
        (store, console) => return Err(format!("store {store:?}, console {console:?}")),
    }
    // What dom0 may have follows from Xen's command line: here, no more than it has.
    let limit = env.memory_op(op::MAXIMUM_RESERVATION, &[SELF]).cast_unsigned();
    want!(limit, env.by_role(boot.pages, boot.pages + 256));
    let root = entries(env, boot.root.raw())?;
    want!(root.len(), 4);
    want!(root[0].0, L4);
    Ok(())
}

fn l109_features_console_and_assists_by_role<M: Target>(env: &mut Env<'_, M>) -> Check {
    const GET_FEATURES: u64 = 6;
    const PAE_EXTENDED_CR3: u64 = 3;
    let features = |env: &Env<'_, M>, submap: u64| {
        let at = env.put(2, 512, &[submap]);
        let rax = env.call(number::XEN_VERSION, [GET_FEATURES, at, 0, 0, 0]);
        (rax, env.got(2, 512, 1)[0] >> 32)
    };
    let base = match env.facts().release {
        (4, ..=14) => 0x20e0,
        (4, ..=17) => 0x2_20e0,
        _ => 0x1e_20e0,
    };
    let word = base | env.by_role(0x800, 0);
    want!(env.assist(1, PAE_EXTENDED_CR3), 0);
    let (rax, seen) = features(env, 0);
    want!(rax, 0);
    same!(seen, word);
    want!(env.assist(0, PAE_EXTENDED_CR3), 0);
    let (_, seen) = features(env, 0);
    same!(seen, word | 0x10);
    want!(features(env, 1).0, EINVAL);
    let text = env.put(2, 512, &[0]);
    let printed = env.call(number::CONSOLE_IO, [0, 0, text, 0, 0]);
    want!(printed, env.by_role(0, EPERM), "a release build, from a domU");
    for kind in [6, 31, 33, 63, 64, 1 << 20] {
        want!(env.assist(0, kind), EINVAL, "assist {kind}");
    }
    for command in [2, 100] {
        want!(env.assist(command, PAE_EXTENDED_CR3), ENOSYS, "command {command}");
    }
    Ok(())
}
