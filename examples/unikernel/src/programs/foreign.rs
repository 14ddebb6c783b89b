//! `foreign`: frames that are not the guest's own in an address space of its own. dom0 may map
//! those of devices, and read Xen's M2P; a domU may map none; nobody may call its own frames
//! somebody else's.

use alloc::format;
use alloc::string::String;

use hypercall::memory::{Extent, MemoryOp};
use hypercall::start_info::Console;
use hypercall::{BatchStorage, Cpu, DomId, Errno, GuestVa, Machine, Mfn, PAGE_SIZE, Pfn, PteFlags};
use pvmmu::{ForeignFrames, MapError, Pages, Pgd, Pinned, Tools};

use super::life::{load, load_kernel};
use super::{OrSay, all_are_back};
use crate::pool::Pool;
use crate::program::Kernel;
use crate::report::Verdict;

const READ_ONLY: PteFlags = PteFlags::USER_RW.difference(PteFlags::WRITABLE);
/// Words in a page, and pages of M2P in 2 MiB.
const WORDS: u64 = PAGE_SIZE as u64 / 8;
/// The page with the last 4 KiB below 1 MiB, where a PC's firmware is.
const FIRMWARE: Mfn = Mfn::new(0xff);
/// Where in that page the CPU begins after a reset: a far jump.
const RESET: (u64, u64) = (0xff0, 0xea);

/// How many frames of others are gone again.
struct Gone(u64);

impl ForeignFrames for Gone {
    fn give_foreign(&mut self, _: Mfn) {
        self.0 += 1;
    }

    /// No flags of theirs are changed here.
    fn domain_of(&self, _: Mfn) -> DomId {
        DomId::SELF
    }
}

type With<'a, M> = Tools<'a, 'a, M, Pool>;

/// Runs the program.
#[expect(unsafe_code, reason = "asks Xen where M2P is, which changes nothing")]
pub(super) fn run<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Verdict {
    let free = kernel.pool.len();
    let is_dom0 = kernel.boot.console == Console::Hypervisor;
    let cpu = kernel.cpu;
    let mut m2p = [Extent::from_mfn(Mfn::new(0)); 1];
    // SAFETY: Xen fills the list.
    let listed = unsafe { cpu.memory_op(&mut MemoryOp::MachphysMfnList(&mut m2p)) };
    let [m2p] = m2p;
    let (guest, pool) = (kernel.guest, &mut kernel.pool);
    let mut storage = BatchStorage::<64, 16>::new();
    let mut batch = storage.batch();
    let pgd = Pgd::new(&mut Tools::new(guest, pool)).or_say("new")?;
    let mut pgd = pgd.pin(&guest, &mut batch).or_say("pin")?;
    load(&guest, &pgd)?;
    let mut gone = Gone(0);
    let mut with = Tools::new(guest, pool).with_batch(batch.lend()).with_foreign(&mut gone);
    let own = own_is_refused(&mut pgd, &mut with);
    let lived = own.and_then(|()| match (is_dom0, listed) {
        (true, Ok(_)) => as_dom0(cpu, &mut pgd, &mut with, m2p.mfn()),
        (true, Err(error)) => Err(format!("where M2P is: {error}")),
        (false, _) => as_domu(&mut pgd, &mut with),
    });
    load_kernel(&guest)?;
    pgd.destroy(&mut with).or_say("destroy")?;
    let (told, mapped) = lived?;
    if gone.0 != mapped {
        return Err(format!("{mapped} foreign frames were mapped, {} returned", gone.0));
    }
    writeln!(kernel.console, "{told}").or_say("console")?;
    all_are_back(kernel, free)?;
    Ok(format!("{mapped} frames of others were mapped and are gone again"))
}

fn page() -> Result<GuestVa, String> {
    GuestVa::new(1 << 32).or_say("address")
}

fn map<M: Machine>(
    pgd: &mut Pgd<Pinned>,
    with: &mut With<'_, M>,
    flags: PteFlags,
    mfn: Mfn,
    domain: DomId,
) -> Result<(), MapError> {
    let pages = Pages::one(page().map_err(|_| MapError::OutOfFrames)?);
    let mapped = pgd.edit(with, |edit| edit.map_foreign(pages, flags, mfn, domain));
    mapped.map_err(|error| error.error)
}

/// The errno with which Xen refuses a mapping.
fn refusal<M: Machine>(
    pgd: &mut Pgd<Pinned>,
    with: &mut With<'_, M>,
    flags: PteFlags,
    mfn: Mfn,
    domain: DomId,
) -> Result<Errno, String> {
    match map(pgd, with, flags, mfn, domain) {
        Err(MapError::Refused { error, .. } | MapError::RefusedCall(error)) => {
            Ok(error.error.errno)
        }
        Err(error) => Err(format!("mfn {mfn} of {domain:?}: {error}")),
        Ok(()) => Err(format!("mfn {mfn} of {domain:?} was mapped")),
    }
}

fn own_is_refused<M: Machine>(pgd: &mut Pgd<Pinned>, with: &mut With<'_, M>) -> Result<(), String> {
    let pfn = Pfn::new(1);
    let mfn = with.guest.p2m().mfn(pfn).or_say("P2M")?;
    for domain in [DomId::SELF, DomId::IO, DomId(0), DomId(1)] {
        if map(pgd, with, READ_ONLY, mfn, domain) != Err(MapError::Own(pfn)) {
            return Err(format!("pfn {pfn} was taken for a frame of {domain:?}"));
        }
    }
    Ok(())
}

/// Firmware, and the M2P entry of a frame of its own, each read through a mapping of its own.
fn as_dom0<M: Machine>(
    cpu: &impl Cpu,
    pgd: &mut Pgd<Pinned>,
    with: &mut With<'_, M>,
    m2p: Mfn,
) -> Result<(String, u64), String> {
    let va = page()?;
    map(pgd, with, READ_ONLY, FIRMWARE, DomId::IO).or_say("firmware")?;
    let at = va.raw() + RESET.0;
    let word = cpu.load(GuestVa::new(at).or_say("address")?).or_say("firmware")?;
    // The model has device frames, and nothing in them.
    if word & 0xff != RESET.1 && word != 0 {
        return Err(format!("where the CPU begins is {word:#x}, no far jump"));
    }
    pgd.unmap(with, Pages::one(va)).or_say("unmap firmware")?;

    let pfn = Pfn::new(1);
    let mfn = with.guest.p2m().mfn(pfn).or_say("P2M")?;
    let frame = m2p.checked_add(mfn.raw() / WORDS).ok_or("M2P is at the end of memory")?;
    let to_write = refusal(pgd, with, PteFlags::USER_RW, frame, DomId::XEN)?;
    map(pgd, with, READ_ONLY, frame, DomId::XEN).or_say("M2P")?;
    let at = va.raw() + mfn.raw() % WORDS * 8;
    let word = cpu.load(GuestVa::new(at).or_say("address")?).or_say("M2P")?;
    if word != pfn.raw() {
        return Err(format!("M2P of mfn {mfn} says {word:#x}, not pfn {pfn}"));
    }
    pgd.unmap(with, Pages::one(va)).or_say("unmap M2P")?;
    let nobody = refusal(pgd, with, READ_ONLY, frame, DomId(77))?;
    Ok((
        format!(
            "firmware read as DOMID_IO's, M2P as DOMID_XEN's; M2P writable: {to_write}; a domain \
             that is not there: {nobody}"
        ),
        2,
    ))
}

fn as_domu<M: Machine>(
    pgd: &mut Pgd<Pinned>,
    with: &mut With<'_, M>,
) -> Result<(String, u64), String> {
    let io = refusal(pgd, with, READ_ONLY, FIRMWARE, DomId::IO)?;
    let xen = refusal(pgd, with, READ_ONLY, FIRMWARE, DomId::XEN)?;
    let dom0 = refusal(pgd, with, READ_ONLY, FIRMWARE, DomId(0))?;
    Ok((format!("frames of DOMID_IO: {io}; of DOMID_XEN: {xen}; of dom0: {dom0}"), 0))
}
