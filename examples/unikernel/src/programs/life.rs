//! The life of an address space, from the first frame to the last, and what is done when a step is
//! refused.
#![expect(unsafe_code, reason = "loads roots; the user half holds no Rust object")]

use alloc::format;
use alloc::string::String;

use hypercall::middleware::{Counting, FailNth, Refusal};
use hypercall::{
    Batch, BatchStorage, Cpu, Errno, FrameSource, GuestVa, Machine, PAGE_SIZE, PteFlags,
};
use p2m::Guest;
use pvmmu::{Loose, Pages, Pgd, Pinned, Presence, TablePool, Tools, load_root};

use super::OrSay;
use crate::pool::Pool;
use crate::program::Kernel;

/// Pages of the demonstration: enough for whole runs in one batch.
pub(super) const PAGES: u64 = 64;

/// The pages lie across the border of two L1 tables, which is also one of two L2 tables.
pub(super) fn pages(count: u64) -> Result<Pages, String> {
    let border = 1 << 30;
    let start = GuestVa::new(border - count / 2 * PAGE_SIZE as u64).or_say("the demo's address")?;
    Ok(Pages { start, count })
}

/// The address of page `index`.
pub(super) fn page(pages: Pages, index: u64) -> Result<GuestVa, String> {
    pages.start.checked_add_pages(index).or_say("the demo's address")
}

/// Maps a frame of the pool at each page; on failure everything is back in the pool.
pub(super) fn build<M: Machine>(
    guest: &Guest<'_, M>,
    pages: Pages,
    pool: &mut Pool,
) -> Result<Pgd<Loose>, String> {
    let mut pgd = Pgd::new(&mut Tools::new(*guest, pool)).or_say("new")?;
    for index in 0..pages.count {
        let mapped = page(pages, index).and_then(|va| map_one(guest, &mut pgd, va, pool));
        if let Err(reason) = mapped {
            destroy(guest, pgd, pool)?;
            return Err(reason);
        }
    }
    Ok(pgd)
}

fn map_one<M: Machine>(
    guest: &Guest<'_, M>,
    pgd: &mut Pgd<Loose>,
    va: GuestVa,
    pool: &mut Pool,
) -> Result<(), String> {
    let frame = pool.take().ok_or("the pool is empty")?;
    pgd.map(&mut Tools::new(*guest, pool), va, PteFlags::USER_RW, frame).map_err(|failed| {
        let reason = format!("map: {failed}");
        failed.value.into_iter().for_each(|frame| pool.give(frame));
        reason
    })
}

/// Takes the address space apart, everything back into the pool.
pub(super) fn destroy<M: Machine>(
    guest: &Guest<'_, M>,
    pgd: Pgd<Loose>,
    pool: &mut Pool,
) -> Result<(), String> {
    pgd.destroy(&mut Tools::new(*guest, pool)).map_err(|error| format!("destroy: {error}"))
}

/// Runs on the address space.
pub(super) fn load<M: Machine>(guest: &Guest<'_, M>, pgd: &Pgd<Pinned>) -> Result<(), String> {
    // SAFETY: the kernel half is a copy of the running one, and no Rust object lives in a user
    // half.
    unsafe { pgd.load(guest) }.or_say("load")
}

/// Runs on the kernel's own root again.
pub(super) fn load_kernel<M: Machine>(guest: &Guest<'_, M>) -> Result<(), String> {
    // SAFETY: the tree the kernel booted on; no Rust object lives in a user half.
    unsafe { load_root(guest, guest.kernel_root()) }.or_say("load the kernel's root")
}

/// Refuses each request of a whole life in turn, and checks each time that nothing is lost. How
/// many there were.
pub(super) fn refuse_each<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Result<u64, String> {
    let (guest, pool) = (kernel.guest, &mut kernel.pool);
    let free = pool.len();
    for request in 0..1000 {
        for done in 0..2 {
            let refusal = Refusal { request, errno: Errno::EBUSY, done };
            let machine = FailNth::new(guest.machine(), refusal);
            let around = guest.with_machine(&machine);
            let lived = live(&around, pool);
            if pool.len() != free {
                let lost = free - pool.len();
                return Err(format!("request {request} refused: {lost} frames lost ({lived:?})"));
            }
            match (lived, machine.has_refused()) {
                (Ok(()), false) => return Ok(request),
                (Ok(()), true) => {
                    return Err(format!("the refusal of request {request} was not told"));
                }
                (Err(reason), false) => return Err(reason),
                (Err(_), true) => {}
            }
        }
    }
    Err("a life of more than 1000 requests".into())
}

type Through<'a, M> = FailNth<&'a Counting<&'a M>>;

/// A short life. Each step that is refused is answered by taking back the ones before it; since
/// only one request is ever refused, the way back is open.
fn live<M: Machine>(guest: &Guest<'_, Through<'_, M>>, pool: &mut Pool) -> Result<(), String> {
    let pages = pages(4)?;
    let mut storage = BatchStorage::<5, 4>::new();
    let mut batch = storage.batch();
    let loose = build(guest, pages, pool)?;
    let mut pinned = match loose.pin(guest, &mut batch) {
        Ok(pinned) => pinned,
        Err(error) => {
            let reason = format!("{error}");
            destroy(guest, error.pgd, pool)?;
            return Err(reason);
        }
    };
    let lived = use_pinned(guest, &mut pinned, pages, &mut batch, pool);
    let away = again(|| load_kernel(guest));
    let loose = match pinned.unpin(guest, &mut batch) {
        Ok(loose) => (loose, Ok(())),
        Err(error) => {
            let reason = format!("{error}");
            (error.pgd.unpin(guest, &mut batch).or_say("second unpin")?, Err(reason))
        }
    };
    destroy(guest, loose.0, pool)?;
    lived.and(away).and(loose.1)
}

fn use_pinned<M: Machine>(
    guest: &Guest<'_, Through<'_, M>>,
    pinned: &mut Pgd<Pinned>,
    pages: Pages,
    batch: &mut Batch<'_>,
    pool: &mut Pool,
) -> Result<(), String> {
    load(guest, pinned)?;
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut tools = tools(guest, batch, &mut tables, pool);
    let read_only = PteFlags::USER_RW & !PteFlags::WRITABLE;
    pinned.protect(&mut tools, pages, read_only).or_say("protect")?;
    pinned.protect(&mut tools, pages, PteFlags::USER_RW).or_say("protect again")?;
    pinned.unmap(&mut tools, Pages::one(pages.start)).or_say("unmap")?;
    let frame = tools.frames.take().ok_or("the unmapped frame is missing")?;
    match pinned.map(&mut tools, pages.start, PteFlags::USER_RW, frame) {
        Ok(()) => Ok(()),
        Err(failed) => {
            let reason = format!("{failed}");
            let frame = failed.value.ok_or("the frame did not come back")?;
            // The refused request was the one above.
            pinned.map(&mut tools, pages.start, PteFlags::USER_RW, frame).or_say("second map")?;
            Err(reason)
        }
    }
}

/// The tools of a program that has one vCPU and cares for nobody else.
pub(super) fn tools<'a, 'b, 't, M>(
    guest: &Guest<'a, M>,
    batch: &'a mut Batch<'b>,
    tables: &'a mut TablePool<'t>,
    frames: &'a mut Pool,
) -> Tools<'a, 't, M, Pool> {
    let mut tools = Tools::new(*guest, frames).with_batch(batch.lend()).with_pool(tables);
    tools.presence = Presence::MayVanish;
    tools
}

/// Does a step that must succeed for the kernel to go on: a second time if the first is refused.
fn again(step: impl Fn() -> Result<(), String>) -> Result<(), String> {
    step().or_else(|reason| step().and(Err(reason)))
}
