//! B: entries of L1 tables.

use alloc::vec::Vec;

use hypercall::Level::{self, L1};
use hypercall::commands::mmu;

use crate::check::Check;
use crate::env::{
    Answer, Env, GUEST_KERNEL, INVALID, IO, KERNEL_RO, KERNEL_RW, NON_RAM, OUT_OF_RANGE, WAYS,
};
use crate::errno::{EBUSY, EINVAL, EPERM};
use crate::{Assertion, Target};

pub(super) fn all<M: Target>() -> Vec<Assertion<M>> {
    assertions![
        Everywhere:
            b018_cache_bits_are_for_domains_with_devices,
            b019_present_entries_are_adjusted,
            b020_absent_entries_are_stored_verbatim,
            b021_bit_62_is_an_ordinary_bit_of_a_release_build,
            b022_a_frame_that_is_no_ram_is_not_permitted,
            b023_a_frame_of_nobody_or_somebody_else_is_busy,
            b024_a_live_table_is_never_mapped_writable,
            b026_accessed_and_dirty_are_kept_on_demand,
            b027_own_ram_is_not_dom_ios,
            b029_an_entry_is_replaced_new_before_old,
            b030_a_frame_is_writable_until_its_last_writable_mapping_goes;
    ]
}

fn b018_cache_bits_are_for_domains_with_devices<M: Target>(env: &mut Env<'_, M>) -> Check {
    let data = env.take()?;
    for way in WAYS {
        for bits in [0x80, 0x08, 0x10, 0x18] {
            let value = env.entry(data, KERNEL_RO | bits);
            let (rax, seen) = env.by(way, value)?;
            want!(rax, env.by_role(0, way.refusal(EINVAL)), "by {way:?}, bits {bits:#x}");
            if rax == 0 {
                same!(seen & !0x20, (value | GUEST_KERNEL | 4) & !0x20, "by {way:?}");
            }
        }
    }
    Ok(())
}

fn b019_present_entries_are_adjusted<M: Target>(env: &mut Env<'_, M>) -> Check {
    let adjusted = [
        (0x63, GUEST_KERNEL | 0x67),
        (0x61, GUEST_KERNEL | 0x65),
        (0x01, GUEST_KERNEL | 0x05),
        (0x103, GUEST_KERNEL | 0x107),
        (0x163, GUEST_KERNEL | 0x167),
        (0x67, 0x167),
        (0x05, 0x105),
        (GUEST_KERNEL | 0x67, GUEST_KERNEL | 0x67),
        (GUEST_KERNEL | 0x167, GUEST_KERNEL | 0x167),
    ];
    let data = env.take()?;
    for way in WAYS {
        for (written, read) in adjusted {
            let (rax, seen) = env.by(way, env.entry(data, written))?;
            want!(rax, 0, "by {way:?}, flags {written:#x}");
            same!(seen, env.entry(data, read), "by {way:?}, flags {written:#x}");
        }
    }
    Ok(())
}

fn b020_absent_entries_are_stored_verbatim<M: Target>(env: &mut Env<'_, M>) -> Check {
    let data = env.take()?;
    env.hide(data)?;
    for way in WAYS {
        for value in [0x1_2345_6789_0ab0, 0xdea_dbee_f1fe, env.entry(data, KERNEL_RW & !1)] {
            want!(env.by(way, value)?, (0, value), "by {way:?}");
        }
    }
    // It holds no reference.
    let bed = env.bed()?;
    want!(env.set(bed, 1, env.entry(data, KERNEL_RW & !1)), 0);
    want!(env.exchange(data)?, 0);
    Ok(())
}

fn b021_bit_62_is_an_ordinary_bit_of_a_release_build<M: Target>(env: &mut Env<'_, M>) -> Check {
    let data = env.take()?;
    let bit = 1 << 62;
    for way in WAYS {
        let (rax, seen) = env.by(way, env.entry(data, KERNEL_RO | bit))?;
        want!(rax, 0, "by {way:?}");
        same!(seen, env.entry(data, GUEST_KERNEL | bit | 0x65), "by {way:?}");
    }
    Ok(())
}

/// Frames of the local APIC, and of the window for messages of interrupts, up to 4.17.
const XENS_OWN: [u64; 3] = [0xfee00, 0xfeec2, 0xfeeff];
/// The frame of the IO-APIC.
const IO_APIC: u64 = 0xfec00;

fn b022_a_frame_that_is_no_ram_is_not_permitted<M: Target>(env: &mut Env<'_, M>) -> Check {
    for way in WAYS {
        for flags in [KERNEL_RO, KERNEL_RW] {
            let (rax, _) = env.by(way, INVALID << 12 | flags)?;
            want!(rax, way.refusal(EINVAL), "by {way:?}, the all-ones frame");
            let (rax, _) = env.by(way, OUT_OF_RANGE << 12 | flags)?;
            want!(rax, way.refusal(EPERM), "by {way:?}, beyond the bus");
            for frame in env.by_release(&XENS_OWN[..], &XENS_OWN[..1]).iter().copied() {
                let (rax, _) = env.by(way, frame << 12 | flags)?;
                want!(rax, way.refusal(EPERM), "by {way:?}, {frame:#x}, in any role");
            }
            for frame in [NON_RAM, 0xa0, IO_APIC] {
                let (rax, seen) = env.by(way, frame << 12 | flags)?;
                want!(rax, env.by_role(0, way.refusal(EPERM)), "by {way:?}, {frame:#x}");
                if rax == 0 {
                    // dom0 may, uncached, and the IO-APIC for reading alone.
                    let flags = if frame == IO_APIC { flags & !2 } else { flags };
                    let read = frame << 12 | GUEST_KERNEL | flags | 4 | 0x18;
                    same!(seen, read, "by {way:?}");
                }
            }
        }
    }
    Ok(())
}

fn b023_a_frame_of_nobody_or_somebody_else_is_busy<M: Target>(env: &mut Env<'_, M>) -> Check {
    let page = env.take()?;
    env.hide(page)?;
    let freed = env.mfn(page);
    want!(env.decrease(&[freed]), 1);
    env.gone(page);
    for way in WAYS {
        for flags in [KERNEL_RO, KERNEL_RW] {
            let (rax, _) = env.by(way, freed << 12 | flags)?;
            want!(rax, way.refusal(EBUSY), "by {way:?}, freed, flags {flags:#x}");
            let Some(foreign) = env.facts().foreign else { continue };
            let (rax, _) = env.by(way, foreign << 12 | flags)?;
            want!(rax, way.refusal(EBUSY), "by {way:?}, foreign, flags {flags:#x}");
        }
    }
    Ok(())
}

fn b024_a_live_table_is_never_mapped_writable<M: Target>(env: &mut Env<'_, M>) -> Check {
    let mut live = Vec::new();
    for level in Level::TOP_DOWN {
        live.push(env.table(level, &[])?);
    }
    let gdt = env.loose(&[])?;
    want!(env.set_gdt(&[env.mfn(gdt)], 512), 0);
    live.push(gdt);
    for way in WAYS {
        for page in &live {
            let (rax, _) = env.by(way, env.entry(*page, KERNEL_RW))?;
            want!(rax, way.refusal(EBUSY), "by {way:?}");
            let (rax, _) = env.by(way, env.entry(*page, KERNEL_RO))?;
            want!(rax, 0, "by {way:?}, read-only");
        }
    }
    Ok(())
}

fn b026_accessed_and_dirty_are_kept_on_demand<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (bed, data) = (env.bed()?, env.take()?);
    want!(env.set(bed, 1, env.entry(data, 0x61)), 0);
    let target = env.slot(bed, 1) | mmu::PRESERVE_AD;
    want!(env.update(target, env.entry(data, 0x01)), 0);
    same!(env.get(bed, 1)?, env.entry(data, GUEST_KERNEL | 0x65));
    let target = env.slot(bed, 1) | mmu::NO_TRANSLATE;
    want!(env.update(target, env.entry(data, 0x21)), 0);
    same!(env.get(bed, 1)?, env.entry(data, GUEST_KERNEL | 0x25));
    want!(env.set(bed, 1, env.entry(data, 0x01)), 0);
    same!(env.get(bed, 1)?, env.entry(data, GUEST_KERNEL | 0x05));
    Ok(())
}

fn b027_own_ram_is_not_dom_ios<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (bed, data) = (env.bed()?, env.take()?);
    let at = env.slot(bed, 1);
    let element = [(at, env.entry(data, KERNEL_RO))];
    want!(env.updates(&element, IO), Answer::of(EBUSY, 0));
    want!(env.set(bed, 1, env.entry(data, KERNEL_RO)), 0);
    // The same frame with other unimportant bits is not looked at.
    let element = [(at, env.entry(data, 0x01))];
    want!(env.updates(&element, IO), Answer::of(0, 1));
    same!(env.get(bed, 1)?, env.entry(data, GUEST_KERNEL | 0x05));
    let element = [(at, env.entry(data, 0x03))];
    want!(env.updates(&element, IO), Answer::of(EBUSY, 0));
    Ok(())
}

fn b029_an_entry_is_replaced_new_before_old<M: Target>(env: &mut Env<'_, M>) -> Check {
    let (bed, data, table) = (env.bed()?, env.take()?, env.table(L1, &[])?);
    env.hide(data)?;
    for flags in [KERNEL_RO, KERNEL_RW, KERNEL_RO, KERNEL_RW, KERNEL_RW] {
        want!(env.set(bed, 1, env.entry(data, flags)), 0, "flags {flags:#x}");
    }
    let before = env.get(bed, 1)?;
    want!(env.set(bed, 1, env.entry(table, KERNEL_RW)), EBUSY);
    same!(env.get(bed, 1)?, before);
    // The old mapping is still counted, as writable.
    want!(env.pin(L1, data), EINVAL);
    want!(env.exchange(data)?, EINVAL);
    want!(env.set(bed, 1, 0), 0);
    want!(env.exchange(data)?, 0);
    Ok(())
}

fn b030_a_frame_is_writable_until_its_last_writable_mapping_goes<M: Target>(
    env: &mut Env<'_, M>,
) -> Check {
    let (bed, data) = (env.bed()?, env.take()?);
    env.hide(data)?;
    want!(env.set(bed, 1, env.entry(data, KERNEL_RW)), 0);
    want!(env.set(bed, 2, env.entry(data, KERNEL_RW)), 0);
    want!(env.set(bed, 1, 0), 0);
    want!(env.pin(L1, data), EINVAL);
    want!(env.set(bed, 2, 0), 0);
    want!(env.pin(L1, data), 0);
    Ok(())
}
