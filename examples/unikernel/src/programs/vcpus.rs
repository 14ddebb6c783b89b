//! `vcpus`: one address space, two vCPUs. What one changes, the other must see after the flush;
//! what one takes away, the other must not be running on.
#![expect(unsafe_code, reason = "loads roots, writes to pages of its own; no Rust object is there")]

mod dirty;

use alloc::format;
use alloc::string::{String, ToString as _};
use core::sync::atomic::{AtomicU64, Ordering};

use hypercall::middleware::Counting;
use hypercall::{Batch, BatchStorage, Cpu, GuestVa, Level, Machine, PteFlags, VcpuSet};
use p2m::{Guest, walk};
use pvmmu::flush::{Flush, Reach};
use pvmmu::{
    DestroyError, Pages, Pgd, PinFailure, Pinned, PooledTable, Running, TablePool, Tools, Vcpus,
};

use super::{OrSay, all_are_back};
use crate::pool::Pool;
use crate::program::{Kernel, Platform, Second, Work};
use crate::report::Verdict;

const SECOND: usize = 1;
pub(super) const THE_SECOND: VcpuSet = VcpuSet::one(1);
const READ_ONLY: PteFlags = PteFlags::USER_RW.difference(PteFlags::WRITABLE);
/// How often what one vCPU uses is changed by the other.
const TURNS: u64 = 50;

/// What both vCPUs know.
pub(super) struct Scene<'a, M> {
    /// The guest on no machine: each vCPU has one of its own.
    pub(super) guest: Guest<'a, ()>,
    pub(super) vcpus: Vcpus<'a>,
    pub(super) second: &'a dyn Second<M>,
    pub(super) platform: &'a dyn Platform,
    pub(super) pages: Pages,
}

/// What changes of a live tree work with.
type With<'a, 't, 'm, M> = Tools<'a, 't, Counting<&'m M>, Pool>;

impl<'a, M: Machine + Cpu> Scene<'a, M> {
    /// What the second vCPU answers to one piece of work.
    pub(super) fn ask<T: Send>(
        &self,
        mut question: impl FnMut(&M) -> T + Send,
    ) -> Result<T, String> {
        let mut answer = None;
        self.second.once(&mut |machine| answer = Some(question(machine)));
        answer.ok_or_else(|| "the second vCPU did nothing".into())
    }

    /// Lets the second vCPU run on `pgd`.
    pub(super) fn enter(&self, pgd: &Pgd<Pinned>) -> Result<(), String> {
        let (vcpus, guest) = (self.vcpus, self.guest);
        // SAFETY: the kernel half is a copy of the running one, and no Rust object lives in a user
        // half; this runs on the second vCPU.
        let load = |machine: &M| unsafe { vcpus.load(&guest.with_machine(machine), SECOND, pgd) };
        let loaded = self.ask(load)?;
        loaded.or_say("load on the second vCPU")
    }

    /// Lets the second vCPU run on the kernel's own root again.
    pub(super) fn leave(&self) -> Result<(), String> {
        let (vcpus, guest) = (self.vcpus, self.guest);
        // SAFETY: as for `enter`.
        let leave = |machine: &M| unsafe { vcpus.leave(&guest.with_machine(machine), SECOND) };
        let left = self.ask(leave)?;
        left.or_say("leave on the second vCPU")
    }

    /// Whether the second vCPU can write to a page.
    fn writes(&self, va: GuestVa) -> Result<bool, String> {
        // SAFETY: the pages are the program's own.
        self.ask(|machine| unsafe { machine.store(va, 1) }.is_ok())
    }
}

/// Runs the program.
pub(super) fn run<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Verdict {
    let free = kernel.pool.len();
    let second = kernel.second.ok_or("the guest has one vCPU: start it with --vcpus 2")?;
    second.start()?;
    let places = [const { Running::nowhere() }; 2];
    let scene = Scene {
        guest: kernel.guest.with_machine(&()),
        // SAFETY: the program loads its address spaces through these places alone.
        vcpus: unsafe { Vcpus::new(&places) },
        second,
        platform: kernel.platform,
        pages: Pages { start: GuestVa::new((1 << 30) - 8 * 4096).or_say("address")?, count: 16 },
    };
    let guest = kernel.guest;
    let mut storage = BatchStorage::<64, 16>::new();
    let mut batch = storage.batch();
    let mut places = [const { None::<PooledTable> }; 4];
    let (l1, upper) = places.split_at_mut(2);
    let (l2, l3) = upper.split_at_mut(1);
    let mut tables = TablePool::new([l1, l2, l3]);
    for (level, count) in [(Level::L1, 2), (Level::L2, 1), (Level::L3, 1)] {
        tables.fill(&guest, level, count, &mut kernel.pool, &mut batch).or_say("fill")?;
    }
    let pgd = validated_beside_a_walk(&scene, &guest, &mut kernel.pool, &mut batch)?;
    let mut with =
        Tools::new(guest, &mut kernel.pool).with_batch(batch.lend()).with_pool(&mut tables);
    let told = together(&scene, pgd, &mut with)?;
    for level in [Level::L1, Level::L2, Level::L3] {
        tables.drain(&guest, level, 9, &mut kernel.pool).or_say("drain the pool")?;
    }
    scene.second.stop()?;
    scene.second.start()?;
    scene.ask(|_| ())?;
    scene.second.stop()?;
    writeln!(kernel.console, "{told}").or_say("console")?;
    all_are_back(kernel, free)?;
    Ok(format!("two vCPUs on one address space, {TURNS} changes beside each kind of use"))
}

/// The first vCPU pins and unpins a tree while the second one walks it, as a program would that
/// looks at tables in memory.
fn validated_beside_a_walk<M: Machine + Cpu>(
    scene: &Scene<'_, M>,
    guest: &Guest<'_, Counting<&M>>,
    pool: &mut Pool,
    batch: &mut Batch<'_>,
) -> Result<Pgd<Pinned>, String> {
    let mut pgd = Pgd::new(&mut Tools::new(*guest, pool)).or_say("new")?;
    pgd.map_pages(&mut Tools::new(*guest, pool), scene.pages, PteFlags::USER_RW).or_say("map")?;
    let (root, va) = (pgd.root(), scene.pages.start);
    let on_no_machine = scene.guest;
    let frame = move |machine: &M| {
        let path = walk(&on_no_machine.with_machine(machine), root, va).ok()?;
        path.leaf().map(|(_, pte)| pte.mfn())
    };
    let first = scene.ask(frame)?.ok_or("the second vCPU sees no tree")?;
    let (mut walks, mut wrong) = (0u64, 0u64);
    let mut ended = Err("nothing was pinned".to_string());
    let mut left = Some(pgd);
    scene.second.beside(
        &mut |machine| {
            walks += 1;
            wrong += u64::from(frame(machine) != Some(first));
        },
        &mut || ended = pin_and_unpin(guest, &mut left, batch),
    );
    match wrong {
        0 => ended,
        _ => Err(format!("{wrong} of {walks} walks beside a pin or unpin found another page")),
    }
}

fn pin_and_unpin<M: Machine>(
    guest: &Guest<'_, M>,
    left: &mut Option<Pgd<pvmmu::Loose>>,
    batch: &mut Batch<'_>,
) -> Result<Pgd<Pinned>, String> {
    let mut pgd = left.take().ok_or("no address space")?.pin(guest, batch).or_say("pin")?;
    for _ in 0..TURNS {
        let loose = pgd.unpin(guest, batch).or_say("unpin")?;
        pgd = loose.pin(guest, batch).or_say("pin again")?;
    }
    Ok(pgd)
}

/// Both vCPUs on one address space, to its end.
fn together<M: Machine + Cpu>(
    scene: &Scene<'_, M>,
    mut pgd: Pgd<Pinned>,
    with: &mut With<'_, '_, '_, M>,
) -> Result<String, String> {
    let guest = with.guest;
    // SAFETY: the kernel half is a copy of the running one, and no Rust object lives in a user
    // half; this runs on the first vCPU.
    unsafe { scene.vcpus.load(&guest, 0, &pgd) }.or_say("load")?;
    scene.enter(&pgd)?;
    let both = VcpuSet::one(0).union(THE_SECOND);
    if scene.vcpus.on(&pgd) != both {
        return Err(format!("vCPUs {} run on it, not {both}", scene.vcpus.on(&pgd)));
    }
    let stale = flushed(scene, &mut pgd, with)?;
    // SAFETY: both vCPUs run on it, and no other is there.
    unsafe { with.set_reach(Reach::Vcpus(both)) };
    let protected = protected_beside_stores(scene, &mut pgd, with)?;
    let held = held_beside_use(scene, &mut pgd, with)?;
    let noticed = dirty::written_beside_changes(scene, &mut pgd, with)?;

    // SAFETY: the tree the kernel booted on; this runs on the first vCPU.
    unsafe { scene.vcpus.leave(&guest, 0) }.or_say("leave")?;
    let (pgd, told) = kept_while_it_runs(scene, pgd, with)?;
    scene.leave()?;
    scene.vcpus.destroy(pgd, with).or_say("destroy")?;
    Ok(format!("{stale}\n{protected}\n{held}\n{noticed}\n{told}"))
}

/// A page that was made read-only without a flush may still be written to by the other vCPU; after
/// each kind of flush it may not.
fn flushed<M: Machine + Cpu>(
    scene: &Scene<'_, M>,
    pgd: &mut Pgd<Pinned>,
    with: &mut With<'_, '_, '_, M>,
) -> Result<String, String> {
    let page = Pages::one(scene.pages.start);
    let kinds = [
        (Flush::page(page.start), Reach::Vcpus(THE_SECOND)),
        (Flush::page(page.start), Reach::Everywhere),
        (Flush::ALL, Reach::Vcpus(THE_SECOND)),
        (Flush::ALL, Reach::Everywhere),
    ];
    let mut stale = 0;
    for (flush, reach) in kinds {
        // SAFETY: every vCPU is flushed.
        unsafe { with.set_reach(Reach::Everywhere) };
        pgd.protect(with, page, PteFlags::USER_RW).or_say("to writable")?;
        if !scene.writes(page.start)? {
            return Err("the second vCPU cannot write".into());
        }
        // SAFETY: none, on purpose: the page and its frame stay, so that a stale translation shows.
        unsafe { with.set_reach(Reach::Local) };
        pgd.protect(with, page, READ_ONLY).or_say("to read-only")?;
        stale += u64::from(scene.writes(page.start)?);
        with.batch.clear();
        flush.push(&mut with.batch, reach).or_say("flush")?;
        // SAFETY: a flush changes no entry.
        unsafe { with.batch.submit(with.guest.machine()) }.or_say("flush")?;
        if scene.writes(page.start)? {
            return Err(format!("the second vCPU still writes after {flush:?} on {reach:?}"));
        }
    }
    // SAFETY: every vCPU is flushed.
    unsafe { with.set_reach(Reach::Everywhere) };
    pgd.protect(with, page, PteFlags::USER_RW).or_say("to writable")?;
    Ok(format!(
        "{stale} of {} times a translation was stale on the other vCPU after a local flush, none \
         after a flush that names it",
        kinds.len()
    ))
}

/// What a store of the second vCPU must come to: the lowest bits of a word that counts changes.
const UNKNOWN: u64 = 0;
const MUST_WRITE: u64 = 1;
const MUST_FAULT: u64 = 2;

/// The second vCPU writes all the time, the first one takes the right away and gives it back.
fn protected_beside_stores<M: Machine + Cpu>(
    scene: &Scene<'_, M>,
    pgd: &mut Pgd<Pinned>,
    with: &mut With<'_, '_, '_, M>,
) -> Result<String, String> {
    let va = scene.pages.start;
    let rule = AtomicU64::new(MUST_WRITE);
    let (mut stores, mut wrong) = (0u64, 0u64);
    let work: &mut Work<'_, M> = &mut |machine| {
        let before = rule.load(Ordering::SeqCst);
        // SAFETY: the page is the program's own.
        let wrote = unsafe { machine.store(va, before) }.is_ok();
        // What has changed meanwhile says nothing.
        if rule.load(Ordering::SeqCst) != before || before % 4 == UNKNOWN {
            return;
        }
        stores += 1;
        wrong += u64::from(wrote != (before % 4 == MUST_WRITE));
    };
    let mut changed = Ok(());
    scene.second.beside(work, &mut || {
        let kinds = [(READ_ONLY, MUST_FAULT), (PteFlags::USER_RW, MUST_WRITE)];
        for (turn, (flags, then)) in (1..=TURNS).zip(kinds.into_iter().cycle()) {
            rule.store(turn * 4 + UNKNOWN, Ordering::SeqCst);
            changed = pgd.protect(with, scene.pages, flags).or_say("protect beside stores");
            if changed.is_err() {
                return;
            }
            rule.store(turn * 4 + then, Ordering::SeqCst);
            scene.platform.wait();
        }
    });
    changed?;
    match wrong {
        0 => Ok(format!("{stores} stores beside {TURNS} changes of access were as they must be")),
        _ => Err(format!("{wrong} of {stores} stores came to something else than they must")),
    }
}

/// The second vCPU writes and reads a page all the time, while the first one pins the L1 tables by
/// themselves, the page's own among them, and changes all their other pages.
fn held_beside_use<M: Machine + Cpu>(
    scene: &Scene<'_, M>,
    pgd: &mut Pgd<Pinned>,
    with: &mut With<'_, '_, '_, M>,
) -> Result<String, String> {
    let (first, last) = (scene.pages.start, scene.pages.at(scene.pages.count - 1).or_say("va")?);
    let (mut uses, mut wrong) = (0u64, 0u64);
    let others = Pages { start: first, count: scene.pages.count - 1 };
    let work: &mut Work<'_, M> = &mut |machine| {
        uses += 1;
        // SAFETY: the page is the program's own.
        let wrote = unsafe { machine.store(last, uses) };
        wrong += u64::from(wrote.is_err() || machine.load(last) != Ok(uses));
    };
    let mut changed = Err("nothing was done".to_string());
    let mut held = 0;
    scene.second.beside(work, &mut || {
        changed = pgd
            .hold_l1_tables(&with.guest, &mut with.batch)
            .map_err(|error| format!("hold: {error}"))
            .and_then(|count| {
                held = count;
                (0..TURNS).try_for_each(|_| {
                    pgd.unmap(with, others).or_say("unmap beside use")?;
                    pgd.map_pages(with, others, PteFlags::USER_RW).or_say("map beside use")
                })
            });
    });
    changed?;
    match wrong {
        0 => Ok(format!(
            "{uses} times a page was used while {held} L1 tables, its own too, were pinned and \
             changed, no fault"
        )),
        _ => Err(format!("{wrong} of {uses} uses failed while the L1 tables were pinned")),
    }
}

/// What becomes of an attempt to end an address space that the other vCPU runs on: refused by us if
/// we are asked, by Xen if we are not; and undone.
fn kept_while_it_runs<M: Machine + Cpu>(
    scene: &Scene<'_, M>,
    pgd: Pgd<Pinned>,
    with: &mut With<'_, '_, '_, M>,
) -> Result<(Pgd<Pinned>, String), String> {
    let before = with.guest.machine().counts().hypercalls;
    let refused = scene.vcpus.destroy(pgd, with).err().ok_or("a tree in use was destroyed")?;
    let ours = refused.to_string();
    let asked = with.guest.machine().counts().hypercalls - before;
    let DestroyError::Running(pgd, THE_SECOND) = refused else { return Err(ours) };
    if asked != 0 {
        return Err(format!("{asked} hypercalls before: {ours}"));
    }
    let error =
        pgd.unpin(&with.guest, &mut with.batch).err().ok_or("a tree in use was unpinned")?;
    let xens = error.to_string();
    if error.undo.is_err() || !matches!(error.failure, PinFailure::Protect { .. }) {
        return Err(xens);
    }
    if !scene.writes(scene.pages.start)? {
        return Err(format!("the second vCPU cannot write after: {xens}"));
    }
    Ok((error.pgd, format!("{ours}\n{xens}")))
}
