//! What the operations of the sweep by pairs begin with, and what must be so behind each of them:
//! every frame in one place, the flags as they were or were to be, and nothing stale that is free.
#![expect(unsafe_code, reason = "loads roots of a test that exists only in the model")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use crate::common::tables::check_counts;
use crate::common::{Pool, TestGuest, guest, tools};
use hypercall::middleware::{FailEach, Refusals};
use hypercall::{
    BatchStorage, Frame, FrameAccess as _, FrameSource, GuestVa, Level, Mfn, MmuExtOp, Pfn, Pte,
    PteFlags, Refused, Uncertain,
};
use p2m::Guest;
use pv_tests::account::Account;
use pv_tests::pairs::{self, around};
use pvmmu::{
    DestroyError, Loose, MapError, Mapped, Mapping, Pages, Pgd, PinFailure, Pinned, PooledTable,
    Presence, Shares, TablePool, Tools,
};
use x86_64::structures::paging::PageTableIndex;
use xen_model::{Mode, Model};

pub(crate) const READ_ONLY: PteFlags = PteFlags::USER_RW.difference(PteFlags::WRITABLE);
/// Of a page that can be written and is clean.
pub(crate) const CLEAN: PteFlags =
    PteFlags::USER_RW.difference(PteFlags::ACCESSED).difference(PteFlags::DIRTY);

/// Frames, and those that are in doubt.
pub(crate) struct Kept {
    pool: Pool,
    doubtful: Vec<Uncertain>,
}

impl FrameSource for Kept {
    fn take(&mut self) -> Option<Frame> {
        self.pool.take()
    }

    fn give(&mut self, frame: Frame) {
        self.pool.give(frame);
    }

    fn give_uncertain(&mut self, frames: Uncertain) {
        self.doubtful.push(frames);
    }
}

pub(crate) type Machine<'r, 'm> = FailEach<'r, &'m Model>;
pub(crate) type Work<'a, 't, 'r, 'm> = Tools<'a, 't, Machine<'r, 'm>, Kept>;

/// The address spaces that there are, and the test that they are in.
pub(crate) struct Spaces<'g> {
    pub(crate) test: &'g TestGuest,
    pub(crate) pinned: Vec<Pgd<Pinned>>,
    pub(crate) loose: Vec<Pgd<Loose>>,
    /// What a fork of the first one has left that was not taken back.
    pub(crate) left: Option<Pgd<Loose>>,
}

impl Spaces<'_> {
    /// The first one, for an operation that keeps it.
    pub(crate) fn first(&mut self) -> &mut Pgd<Pinned> {
        self.pinned.first_mut().expect("there is one")
    }

    /// Forks the first one.
    pub(crate) fn fork(&mut self, with: &mut Work<'_, '_, '_, '_>) {
        match self.first().fork(with) {
            Ok(child) => self.pinned.push(child),
            Err(error) => self.left = error.left.map(|child| child.value),
        }
    }

    /// Those that are no pinned ones.
    fn not_pinned(&self) -> impl Iterator<Item = &Pgd<Loose>> {
        self.loose.iter().chain(&self.left)
    }

    /// The first one, which no vCPU runs on any more.
    pub(crate) fn take(&mut self) -> Pgd<Pinned> {
        self.leave();
        self.pinned.remove(0)
    }

    /// The second vCPU runs on the kernel's own root, and knows nothing of another one.
    pub(crate) fn leave(&self) {
        let (p2m, second) = (self.test.p2m(), self.test.second());
        let guest = guest(self.test, &second, &p2m);
        // SAFETY: the model's test has no Rust objects.
        unsafe { pvmmu::load_root(&guest, self.test.root) }.expect("left");
        let mut storage = BatchStorage::<0, 1>::new();
        let mut batch = storage.batch();
        batch.op(MmuExtOp::tlb_flush_local()).expect("room");
        // SAFETY: as above.
        unsafe { batch.submit(&second) }.expect("flushed");
    }
}

/// What is swept. It says nothing of how it went: each refusal may be of any of its requests.
pub(crate) type Operation = fn(&mut Spaces<'_>, &mut Work<'_, '_, '_, '_>);

pub(crate) fn va(gib: u64, mib: u64, page: u64) -> GuestVa {
    GuestVa::new((gib << 30) + (mib << 20) + (page << 12)).expect("user half")
}

/// Pages that can be written and are clean.
pub(crate) fn few() -> Pages {
    Pages { start: va(1, 2, 510), count: 3 }
}

/// So many of one table that it is changed as a whole.
pub(crate) fn many() -> Pages {
    Pages { start: va(1, 8, 7), count: 100 }
}

/// What the address space maps beside [`few`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    Few,
    Many,
}

/// How the operation is done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variant {
    pub(crate) pooled: bool,
    pub(crate) roots: usize,
    pub(crate) presence: Presence,
}

pub(crate) fn variants() -> impl Iterator<Item = Variant> {
    [false, true].into_iter().flat_map(|pooled| {
        [1, 2].into_iter().flat_map(move |roots| {
            [Presence::Steady, Presence::MayVanish].into_iter().map(move |presence| Variant {
                pooled,
                roots,
                presence,
            })
        })
    })
}

/// Sweeps the operation: in every variant if all pairs are tried, or one by name; otherwise in one
/// variant, another one from each operation to the next.
pub(crate) fn sweep(name: &str, layout: Layout, operation: Operation) {
    let all = std::env::var_os("PVMMU_PAIRS").is_some_and(|scope| scope == "all")
        || std::env::var_os("PVMMU_PAIRS_ONLY").is_some();
    let letters = name.bytes().map(usize::from).sum::<usize>();
    let chosen = variants().enumerate().filter(|(at, _)| all || (at + letters) % 8 == 0);
    for (_, variant) in chosen {
        let Variant { pooled, roots, presence } = variant;
        let pool = if pooled { "pool" } else { "no_pool" };
        let name = format!("{name}_{pool}_{roots}_{presence:?}");
        let known = RefCell::new(Known::new());
        let _ = pairs::run("pvmmu", &name, |plan| live(plan, layout, variant, operation, &known));
    }
}

/// What flags each page may have: those before the operation, and those behind it if nothing is
/// refused.
pub(crate) type Known = BTreeMap<GuestVa, BTreeSet<u64>>;

/// What all address spaces say of the pages that no two of them share: what may be done with each.
pub(crate) fn flags_of(spaces: &Spaces<'_>, guest: &Guest<'_, Model>) -> Vec<(GuestVa, u64)> {
    let chosen = PteFlags::WRITABLE | PteFlags::USER | PteFlags::NO_EXECUTE;
    let mut seen = Vec::new();
    let mut note = |page: Mapping| {
        if let Mapped::Own(_) = page.frame {
            seen.push((page.va, (page.flags & chosen).bits()));
        }
    };
    let all = Pages { start: va(0, 0, 0), count: 1 << 35 };
    for pgd in &spaces.pinned {
        pgd.translate_pages(guest, all, &mut note).expect("readable");
    }
    for pgd in spaces.not_pinned() {
        pgd.translate_pages(guest, all, &mut note).expect("readable");
    }
    seen
}

/// With all put right, no page has other flags than it had `before` or was to have.
pub(crate) fn check_flags(
    spaces: &mut Spaces<'_>,
    known: &RefCell<Known>,
    before: Vec<(GuestVa, u64)>,
    plan: &Refusals<'_>,
    plain: &Guest<'_, Model>,
    with: &mut Work<'_, '_, '_, '_>,
) {
    // No other refusal is to come: what is in doubt can be put right without one that it missed.
    if plan.refused() == 2 {
        let mut with = with.on_machine(plain.machine());
        if let Some(child) = spaces.left.take() {
            spaces.first().take_back_fork(&mut with, child).expect("taken back");
        }
        for pgd in &mut spaces.pinned {
            pgd.edit(&mut with, |edit| edit.submit()).expect("put right");
        }
    }
    let (mut known, after) = (known.borrow_mut(), flags_of(spaces, plain));
    if plan.refused() == 0 {
        for (va, flags) in before.into_iter().chain(after) {
            known.entry(va).or_default().insert(flags);
        }
        return;
    }
    // A pair that is tried alone has nothing to be compared with.
    for (va, flags) in after.into_iter().filter(|_| !known.is_empty()) {
        let as_known = known.get(&va).is_some_and(|known| known.contains(&flags));
        assert!(as_known, "{va} has flags {flags:#x}, and neither had nor was to have them");
    }
}

/// A life around the operation.
pub(crate) fn live(
    plan: &Refusals<'_>,
    layout: Layout,
    variant: Variant,
    operation: Operation,
    known: &RefCell<Known>,
) {
    let test = TestGuest::small();
    let p2m = test.p2m();
    let plain = guest(&test, &test.model, &p2m);
    let mut kept = Kept { pool: test.pool(), doubtful: Vec::new() };
    let mut account = Account::of(kept.pool.pfns());
    let mut counts = vec![0; test.list.len()];
    let mut shares = Shares::new(&mut counts);
    let mut places = [const { None::<PooledTable> }; 12];
    let (l1, rest) = places.split_at_mut(6);
    let (l2, l3) = rest.split_at_mut(3);
    let mut tables = TablePool::new([l1, l2, l3]);
    let mut storage = BatchStorage::<256, 12>::new();
    let mut batch = storage.batch();
    if variant.pooled {
        for (level, count) in [(Level::L1, 3), (Level::L2, 2), (Level::L3, 1)] {
            tables.fill(&plain, level, count, &mut kept, &mut batch).expect("filled");
        }
    }
    let pgd = start(&mut Tools::new(plain, &mut kept), layout, variant);
    let pgd = pgd.pin(&plain, &mut batch).expect("pinned");
    let second = test.second();
    second.initialise(test.model.guest().kernel_root().expect("it runs"), None).expect("started");
    // SAFETY: the model's test has no Rust objects.
    unsafe { pgd.load(&guest(&test, &second, &p2m)) }.expect("loaded");
    touch(&test, layout);

    let machine = around(&test.model, plan);
    let refusing = guest(&test, &machine, &p2m);
    let mut with = tools(&refusing, &mut batch, &mut tables, &mut kept).with_shares(&mut shares);
    with.presence = variant.presence;
    let mut spaces = Spaces { test: &test, pinned: vec![pgd], loose: Vec::new(), left: None };
    let before = flags_of(&spaces, &plain);
    operation(&mut spaces, &mut with);
    check_free(&spaces, &plain, layout, &with.frames.source.pool);
    check_flags(&mut spaces, known, before, plan, &plain, &mut with);
    spaces.leave();
    end(&mut spaces, &mut with);
    for level in [Level::L1, Level::L2, Level::L3] {
        // A table that Xen has not let go of stays in the pool, or is in doubt.
        let _ = with.drain_pool(level, 99);
        with.on_machine(&test.model).drain_pool(level, 99).expect("drained");
    }
    check_counts(&tables, 0);
    account.found("free", kept.pool.pfns());
    for run in &kept.doubtful {
        account.found_run("in doubt", run.start(), run.count());
    }
    for run in &kept.doubtful {
        // A table that could not be read keeps what it maps.
        let tables = (0..run.count()).filter_map(|at| run.start().checked_add(at));
        account.found_rest("in a table in doubt", tables.flat_map(|table| mapped(&plain, table)));
    }
    account.assert_balanced();
    let refused = plan.refused();
    assert!(refused == 2 || kept.doubtful.is_empty(), "after one refusal nothing is in doubt");
    assert!(counts.iter().all(|count| *count == 0), "shares that nobody has");
    test.model.audit().expect("every reference has its holder");
}

pub(crate) fn start(
    with: &mut Tools<'_, '_, Model, impl FrameSource>,
    layout: Layout,
    variant: Variant,
) -> Pgd<Loose> {
    let pgd = match variant.roots {
        1 => Pgd::new(with),
        _ => Pgd::with_user_root(with),
    };
    let mut pgd = pgd.expect("roots");
    pgd.map_pages(with, few(), CLEAN).expect("mapped");
    if layout == Layout::Many {
        pgd.map_pages(with, many(), PteFlags::USER_RW).expect("mapped");
    }
    pgd
}

/// Takes back a fork that was not taken back at once. Until then neither of the two can be used.
pub(crate) fn take_back(spaces: &mut Spaces<'_>, with: &mut Work<'_, '_, '_, '_>) {
    for attempt in 1.. {
        let Some(child) = spaces.left.take() else { break };
        let parent = spaces.first();
        let refused = parent.edit(with, |edit| edit.submit()).expect_err("half forked");
        assert_eq!(refused.error, MapError::HalfForked);
        let Refused { value: child, error } = child.destroy(with).expect_err("half forked");
        assert_eq!(error, MapError::HalfForked);
        let child = child.pin(&with.guest, &mut with.batch).expect_err("half forked");
        assert_eq!(child.failure, PinFailure::HalfForked);
        spaces.left = match parent.take_back_fork(with, child.pgd) {
            Ok(()) => None,
            Err(left) => {
                assert!(attempt < 3, "it cannot be taken back: {left}");
                Some(left.value)
            }
        };
    }
}

/// What the entries of a frame name, were it a table.
fn mapped(guest: &Guest<'_, Model>, table: Pfn) -> Vec<Pfn> {
    let mut entries = [Pte::ABSENT; 512];
    let first = PageTableIndex::new(0);
    guest.machine().read_entries(table, first, &mut entries).expect("it is memory");
    let present = entries.iter().filter(|pte| pte.is_present());
    present.filter_map(|pte| guest.pfn(pte.mfn()).ok()).collect()
}

/// Takes all address spaces apart. Of three attempts two are refused at most.
pub(crate) fn end(spaces: &mut Spaces<'_>, with: &mut Work<'_, '_, '_, '_>) {
    take_back(spaces, with);
    for mut pgd in spaces.pinned.drain(..) {
        for attempt in 1.. {
            pgd = match pgd.destroy(with) {
                Ok(()) => break,
                Err(DestroyError::Loose(pgd, _)) => {
                    spaces.loose.push(pgd);
                    break;
                }
                Err(error) => {
                    let reason = error.to_string();
                    assert!(attempt < 3, "it cannot be destroyed: {reason}");
                    error.into_pgd().expect(&reason)
                }
            };
        }
    }
    for mut pgd in spaces.loose.drain(..) {
        for attempt in 1.. {
            pgd = match pgd.destroy(with) {
                Ok(()) => break,
                Err(refused) => {
                    assert!(attempt < 3, "it cannot be destroyed: {refused}");
                    refused.value
                }
            };
        }
    }
}

/// The second vCPU uses every page, so that its TLB knows them.
pub(crate) fn touch(test: &TestGuest, layout: Layout) {
    let second = test.second();
    let others = if layout == Layout::Many { many() } else { Pages { count: 0, ..many() } };
    for pages in [few(), others, Pages { start: va(9, 0, 0), count: 3 }] {
        for at in 0..pages.count {
            let va = pages.at(at).expect("user half").raw();
            let mut byte = [0];
            // Where nothing is mapped it faults.
            let _ = second.load(va, &mut byte, Mode::Kernel);
            let _ = second.load(va, &mut byte, Mode::User);
        }
    }
}

/// No frame that is free is a table, is mapped, or is known to a TLB.
pub(crate) fn check_free(
    spaces: &Spaces<'_>,
    guest: &Guest<'_, Model>,
    layout: Layout,
    pool: &Pool,
) {
    let free: BTreeSet<Pfn> = pool.pfns().collect();
    let is_free = |pfn: Pfn| free.contains(&pfn);
    let all = Pages { start: va(0, 0, 0), count: 1 << 35 };
    let check = |va: GuestVa, frame: Mapped| {
        assert!(!frame.pfn().is_some_and(is_free), "{va} maps {frame:?}, which is free");
    };
    let roots = spaces.pinned.iter().map(|pgd| [Some(pgd.root()), pgd.user_root()]);
    let roots = roots.chain(spaces.not_pinned().map(|pgd| [Some(pgd.root()), pgd.user_root()]));
    for root in roots.flatten().flatten() {
        assert!(!is_free(root), "a root is free");
        for table in crate::common::tables::tables(spaces.test, root) {
            let pfn = guest.p2m().pfn(&spaces.test.model, table.mfn).expect("the test's");
            assert!(!is_free(pfn), "table {pfn} is free: {table:?}");
        }
    }
    for pgd in &spaces.pinned {
        pgd.translate_pages(guest, all, &mut |page| check(page.va, page.frame)).expect("readable");
    }
    for pgd in spaces.not_pinned() {
        pgd.translate_pages(guest, all, &mut |page| check(page.va, page.frame)).expect("readable");
    }
    let _ = spaces.test.model.take_violations();
    touch(spaces.test, layout);
    for stale in spaces.test.model.take_violations() {
        let (_, mfn) = stale.rsplit_once("reach mfn ").expect(&stale);
        let mfn = u64::from_str_radix(mfn.trim_start_matches("0x"), 16).expect(&stale);
        let pfn = guest.p2m().pfn(&spaces.test.model, Mfn::new(mfn)).expect("the test's");
        assert!(!is_free(pfn), "{stale}, which is free");
    }
}
