//! One vCPU writes to pages all the time, at every address they may have, while the other one moves
//! them, forks them and changes what may be done with them: no write goes unnoticed.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use hypercall::middleware::Counting;
use hypercall::{Cpu, FrameAccess as _, GuestVa, Machine, PteFlags};
use pvmmu::{Pages, Pgd, Pinned, Presence, Shares, Tools};

use super::{OrSay, READ_ONLY, Scene, TURNS, With};
use crate::pool::Pool;
use crate::program::Work;

/// The same with frames that can be shared.
type Sharing<'a, 't, 'm, M> = Tools<'a, 't, Counting<&'m M>, Pool>;

/// What was found of the pages, over all turns.
#[derive(Default)]
struct Found {
    looked: u64,
    written: u64,
    unnoticed: u64,
}

/// What a page holds, and whether its entry says that it was written.
#[derive(Clone, Copy)]
struct Seen {
    word: u64,
    dirty: bool,
}

/// Runs the step: with pages that are present throughout.
pub(super) fn written_beside_changes<M: Machine + Cpu>(
    scene: &Scene<'_, M>,
    pgd: &mut Pgd<Pinned>,
    with: &mut With<'_, '_, '_, M>,
) -> Result<String, String> {
    let there = Pages { start: GuestVa::new(3 << 30).or_say("address")?, ..scene.pages };
    let places = [scene.pages, there];
    let mut counts = vec![0; usize::try_from(scene.guest.p2m().len()).or_say("pfns")?];
    let mut shares = Shares::new(&mut counts);
    let machine = with.guest.machine();
    let mut sharing = with.on_machine(machine).with_shares(&mut shares);
    sharing.presence = Presence::Steady;
    let mut number = 0;
    let work: &mut Work<'_, M> = &mut |machine| {
        number += 1;
        for pages in places {
            for va in (0..pages.count).filter_map(|at| pages.at(at).ok()) {
                // SAFETY: the pages are the program's own. Where none is, or none that can be
                // written, the store faults.
                let _ = unsafe { machine.store(va, number) };
            }
        }
    };
    let mut found = Ok(Found::default());
    scene.second.beside(work, &mut || found = turns(places, pgd, &mut sharing));
    let Found { looked, written, unnoticed } = found?;
    match unnoticed {
        0 => Ok(format!(
            "{written} of {looked} pages were written while they moved, were forked or protected, \
             and each says so"
        )),
        _ => {
            Err(format!("{unnoticed} of {written} pages were written, and their entries are clean"))
        }
    }
}

/// The changes, one after the other; in the end the pages are where they were, and can be written.
fn turns<M: Machine + Cpu>(
    [mut here, mut there]: [Pages; 2],
    pgd: &mut Pgd<Pinned>,
    with: &mut Sharing<'_, '_, '_, M>,
) -> Result<Found, String> {
    let mut found = Found::default();
    let home = here.start;
    let mut turn = 0;
    while turn < TURNS || here.start != home {
        // Nobody writes: what the pages hold now is what they hold when all are clean.
        pgd.protect(with, here, READ_ONLY).or_say("to read-only")?;
        pgd.edit(with, |edit| edit.clear_reading_ad(here, &mut |_, _| {})).or_say("clear")?;
        let before = look(pgd, with, here)?;
        pgd.protect(with, here, PteFlags::USER_RW).or_say("to writable")?;
        match turn % 3 {
            0 => {
                pgd.remap(with, here, there.start).or_say("remap beside stores")?;
                core::mem::swap(&mut here, &mut there);
            }
            1 => fork_and_end(&before, &mut found, pgd, with, here)?,
            _ => {}
        }
        pgd.protect(with, here, READ_ONLY).or_say("to read-only again")?;
        found.compare(&before, &look(pgd, with, here)?);
        turn += 1;
    }
    pgd.protect(with, here, PteFlags::USER_RW).or_say("to writable again")?;
    Ok(found)
}

/// Forks, compares what the child says of its pages, ends it, and makes the pages the parent's own.
fn fork_and_end<M: Machine + Cpu>(
    before: &[Seen],
    found: &mut Found,
    pgd: &mut Pgd<Pinned>,
    with: &mut Sharing<'_, '_, '_, M>,
    here: Pages,
) -> Result<(), String> {
    let child = pgd.fork(with).or_say("fork beside stores")?;
    let childs = look(&child, with, here);
    child.destroy(with).or_say("destroy the child")?;
    found.compare(before, &childs?);
    for at in 0..here.count {
        let va = here.at(at).or_say("address")?;
        pgd.edit(with, |edit| edit.make_own(va)).or_say("make own beside stores")?;
    }
    Ok(())
}

impl Found {
    fn compare(&mut self, before: &[Seen], after: &[Seen]) {
        for (before, after) in before.iter().zip(after) {
            let is_written = before.word != after.word;
            self.looked += 1;
            self.written += u64::from(is_written);
            self.unnoticed += u64::from(is_written && !after.dirty);
        }
    }
}

/// What the pages hold, which nobody can write now.
fn look<M: Machine>(
    pgd: &Pgd<Pinned>,
    with: &Sharing<'_, '_, '_, M>,
    pages: Pages,
) -> Result<Vec<Seen>, String> {
    let guest = with.guest;
    let one = |at| {
        let va = pages.at(at).or_say("address")?;
        let page = pgd.translate(&guest, va).or_say("translate")?.ok_or("a page is missing")?;
        let pfn = page.frame.pfn().ok_or("a page that is not the guest's")?;
        let mut word = [0; 8];
        guest.machine().read_bytes(pfn, 0, &mut word).or_say("read")?;
        let dirty = page.flags.contains(PteFlags::DIRTY);
        Ok(Seen { word: u64::from_le_bytes(word), dirty })
    };
    (0..pages.count).map(one).collect()
}
