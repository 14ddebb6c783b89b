//! An address space that a second vCPU runs on, which uses its pages before, during and after an
//! operation: what its TLB has must never be what the tables no longer say.

use hypercall::middleware::FailEach;
use hypercall::middleware::{Refusal, Refusals};
use hypercall::{Assist, BatchStorage, Errno, GuestVa, Hypercalls as _, Level, Machine, PteFlags};
use p2m::Guest;
use pv_tests::meanwhile::Meanwhile;
use pvmmu::{Pages, Pgd, Pinned, PooledTable, Presence, Shares, TablePool, Tools, load_root};
use xen_model::{Mode, Model};

use crate::common::{Pool, TestGuest, guest, tools};

/// The machine that an operation runs on: refuses what it is told, and lets the second vCPU use its
/// pages between any two requests.
pub(crate) type Outer<'m> = Meanwhile<'m, FailEach<'m, &'m Model>>;
/// What an operation works with.
pub(crate) type With<'a, 't> = Tools<'a, 't, Outer<'a>, Pool>;
/// An operation; an error is told in words.
pub(crate) type Operation<'o> =
    &'o dyn Fn(&mut Pgd<Pinned>, &mut With<'_, '_>) -> Result<(), String>;

/// Pages that are mapped: the end of one table, a whole one, the beginning of a third.
pub(crate) const MAPPED: Pages = Pages { start: va(0x3f_c000), count: 4 + 512 + 4 };
/// Where nothing is mapped: what moves goes there.
pub(crate) const ELSEWHERE: GuestVa = va(0x7000_0000);
/// Where nothing is mapped, in a table in which something is.
pub(crate) const BESIDE: GuestVa = va(0x60_4000);
/// The table that is full.
pub(crate) const TABLE: Pages = Pages { start: va(0x40_0000), count: 512 };

pub(crate) const READ_ONLY: PteFlags = PteFlags::USER_RW.difference(PteFlags::WRITABLE);

const fn va(address: u64) -> GuestVa {
    match GuestVa::new(address) {
        Ok(va) => va,
        Err(_) => panic!("a test address"),
    }
}

/// Whether the tables come from the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Pool,
    /// Those of pages; the ones above them are as from the frames.
    PoolOfLowest,
    Frames,
}

/// When the second vCPU uses its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Uses {
    /// Before and after: whatever the operation has left out is stale.
    Around,
    /// Between any two requests, too: what it may see for a moment must not stay.
    Between,
    /// After each trap, too, where everything is paid for that went to Xen. It only reads before,
    /// so that the pages are clean.
    AfterTraps,
}

/// A run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) presence: Presence,
    pub(crate) from: From,
    pub(crate) uses: Uses,
    pub(crate) refusal: Option<Refusal>,
}

impl Setup {
    pub(crate) const PLAIN: Self =
        Self { presence: Presence::Steady, from: From::Frames, uses: Uses::Around, refusal: None };
}

/// Addresses of everything that is, or may be, mapped.
fn watched() -> impl Iterator<Item = u64> {
    let few = |at: &u64| *at < 12 || *at + 12 >= MAPPED.count || at.is_multiple_of(37);
    let pages =
        move |start: GuestVa| (0..MAPPED.count).filter(few).map(move |at| start.raw() + at * 4096);
    let beside = (0..12).map(|at| BESIDE.raw() + at * 4096);
    [MAPPED.start, ELSEWHERE].into_iter().flat_map(pages).chain(beside)
}

/// The second vCPU.
pub(crate) struct Second<'g> {
    model: &'g Model,
    vcpu: xen_model::Vcpu<'g>,
}

impl Second<'_> {
    /// Loads and stores at addresses of everything that is, or may be, mapped.
    pub(crate) fn use_pages(&self) {
        for va in watched() {
            for mode in [Mode::User, Mode::Kernel] {
                // A fault is fine, what is stale is written down by the model.
                let _ = self.vcpu.load(va, &mut [0], mode);
                let _ = self.vcpu.store(va, &[1], mode);
            }
        }
    }

    /// Loads from there.
    fn read_pages(&self) {
        for va in watched() {
            let _ = self.vcpu.load(va, &mut [0], Mode::User);
        }
    }

    /// Whether it can write to a page.
    pub(crate) fn writes(&self, va: GuestVa) -> bool {
        self.vcpu.store(va.raw(), &[1], Mode::User).is_ok()
    }

    /// Whether its TLB has something for a page.
    pub(crate) fn holds(&self, va: GuestVa) -> bool {
        self.vcpu.holds_translation(va.raw())
    }

    /// What it has used that was stale.
    pub(crate) fn stale(&self) -> Vec<String> {
        self.model.take_violations()
    }
}

/// Runs `operation` in every way: with pages that may vanish and with steady ones, tables from the
/// pool and from frames, the second vCPU in between or not, nothing refused, and each request
/// refused in turn.
pub(crate) fn in_every_way(operation: Operation<'_>) {
    for presence in [Presence::Steady, Presence::MayVanish] {
        for from in [From::Frames, From::Pool] {
            for uses in [Uses::Around, Uses::Between, Uses::AfterTraps] {
                let setup = Setup { presence, from, uses, refusal: None };
                never_stale(setup, operation);
            }
        }
    }
    each_refused(Setup { from: From::Pool, ..Setup::PLAIN }, operation);
    each_refused(Setup { presence: Presence::MayVanish, ..Setup::PLAIN }, operation);
}

fn each_refused(setup: Setup, operation: Operation<'_>) {
    let asked = vec![std::cell::Cell::new(None); 200];
    play(setup, &Refusals::new(&[], &asked), &|pgd, with, _| operation(pgd, with));
    let lengths = asked.iter().map_while(|asked| asked.get()).map(|asked| asked.elements);
    for (request, length) in (0..).zip(lengths) {
        let mut dones = vec![0, 1, length / 2, length - 1];
        dones.retain(|done| *done < length);
        dones.dedup();
        for done in dones {
            let refusal = Some(Refusal { request, errno: Errno::ENOMEM, done });
            never_stale(Setup { uses: Uses::Between, refusal, ..setup }, operation);
        }
    }
}

/// Runs `operation`, after which the second vCPU must find nothing that is stale.
pub(crate) fn never_stale(setup: Setup, operation: Operation<'_>) {
    let refusals: Vec<Refusal> = setup.refusal.into_iter().collect();
    let plan = Refusals::new(&refusals, &[]);
    play(setup, &plan, &|pgd, with, second| {
        let outcome = operation(pgd, with);
        if setup.uses == Uses::Between {
            // What it saw in between may have been on its way out.
            let _ = second.stale();
        }
        second.use_pages();
        let stale = second.stale();
        assert!(stale.is_empty(), "{setup:?}: {} such as {}", stale.len(), stale[0]);
        assert_eq!(plan.refused(), refusals.len(), "{setup:?}");
        if refusals.is_empty() { outcome } else { Ok(()) }
    });
}

/// What is done on a stage.
pub(crate) type Play<'p> =
    &'p dyn Fn(&mut Pgd<Pinned>, &mut With<'_, '_>, &Second<'_>) -> Result<(), String>;

/// Sets the stage and lets `act` go on.
pub(crate) fn play(setup: Setup, plan: &Refusals<'_>, act: Play<'_>) {
    let test = TestGuest::new();
    let p2m = test.p2m();
    let plain = guest(&test, &test.model, &p2m);
    let mut pool = test.pool();
    let mut counts = vec![0; test.list.len()];
    let mut shares = Shares::new(&mut counts);
    let mut places = [const { None::<PooledTable> }; 24];
    let (l1, rest) = places.split_at_mut(12);
    let (l2, l3) = rest.split_at_mut(6);
    let mut tables = TablePool::new([l1, l2, l3]);
    let mut storage = BatchStorage::<64, 12>::new();
    let mut batch = storage.batch();
    let counts = match setup.from {
        From::Frames => [0, 0, 0],
        From::PoolOfLowest => [8, 0, 0],
        From::Pool => [8, 4, 4],
    };
    for (level, count) in [Level::L1, Level::L2, Level::L3].into_iter().zip(counts) {
        tables.fill(&plain, level, count, &mut pool, &mut batch).expect("filled");
    }
    let pgd = Pgd::with_user_root(&mut Tools::new(plain, &mut pool)).expect("two roots");
    let mut pgd = pgd.pin(&plain, &mut batch).expect("pinned");
    let mut with = tools(&plain, &mut batch, &mut tables, &mut pool).with_shares(&mut shares);
    let clean = PteFlags::USER_RW - PteFlags::DIRTY;
    pgd.map_pages(&mut with, MAPPED, clean).expect("mapped");

    test.model.enable_assist(Assist::WritablePageTables).expect("known");
    let second = Second { model: &test.model, vcpu: test.second() };
    second.vcpu.initialise(test.model.guest().kernel_root().expect("it runs"), None).expect("new");
    let on_second = guest(&test, &second.vcpu, &p2m);
    run_on(&on_second, &pgd);
    match setup.uses {
        Uses::Around | Uses::Between => second.use_pages(),
        Uses::AfterTraps => second.read_pages(),
    }
    assert_eq!(second.stale(), Vec::<String>::new(), "{setup:?}");

    let uses = || second.use_pages();
    let refusing = FailEach::new(&test.model, plan);
    let machine = match setup.uses {
        Uses::Around => Meanwhile::new(refusing, &|| {}),
        Uses::Between => Meanwhile::new(refusing, &uses),
        Uses::AfterTraps => Meanwhile::after_traps(refusing, &uses),
    };
    let around = guest(&test, &machine, &p2m);
    let mut with = tools(&around, &mut batch, &mut tables, &mut pool).with_shares(&mut shares);
    with.presence = setup.presence;
    let outcome = act(&mut pgd, &mut with, &second);
    assert_eq!(outcome, Ok(()), "{setup:?}");
    test.model.audit().expect("every reference has its holder");
    leave(&on_second);
}

/// Lets a vCPU run on an address space.
#[expect(unsafe_code, reason = "the model runs no code")]
pub(crate) fn run_on<M: Machine>(guest: &Guest<'_, M>, pgd: &Pgd<Pinned>) {
    // SAFETY: no Rust object lives in the model's test.
    unsafe { pgd.load(guest) }.expect("loaded");
}

#[expect(unsafe_code, reason = "the model runs no code")]
fn leave<M: Machine>(guest: &Guest<'_, M>) {
    // SAFETY: as above.
    unsafe { load_root(guest, guest.kernel_root()) }.expect("the kernel's own");
}
