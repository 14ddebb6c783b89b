//! Xen refuses a fork, and a table cannot be reached while that is taken back: until it is, neither
//! side is used.

mod common;

use common::{TestGuest, guest, tools};
use hypercall::middleware::{FailEach, Refusal, Refusals};
use hypercall::{BatchStorage, Errno, GuestVa, PteFlags, Refused};
use pvmmu::{
    DestroyError, ForkFailure, MapError, Pages, Pgd, PinFailure, Shares, TablePool, Tools,
};

type Storage = BatchStorage<40, 12>;

const fn refuse(request: u64, done: usize) -> Refusal {
    Refusal { request, errno: Errno::ENOMEM, done }
}

fn va(raw: u64) -> GuestVa {
    GuestVa::new(raw).expect("user half")
}

/// A fork of which the first request is refused, and then one access while it is taken back: the
/// child's entries say that it shares the parent's frames, the parent's do not. How many
/// more attempts took it back.
fn half_forked(access: u64) -> u64 {
    let test = TestGuest::small();
    let (p2m, mut pool) = (test.p2m(), test.pool());
    let free = pool.len();
    let plain = guest(&test, &test.model, &p2m);
    let mut counts = vec![0; test.list.len()];
    let mut shares = Shares::new(&mut counts);
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut storage = Storage::new();
    let mut batch = storage.batch();
    let pages = Pages { start: va(0x3f_f000), count: 3 };
    let [mut parent, mut other] = [0, 1].map(|_| {
        let mut with = Tools::new(plain, &mut pool);
        let mut pgd = Pgd::new(&mut with).expect("a root");
        pgd.map_pages(&mut with, pages, PteFlags::USER_RW).expect("mapped");
        pgd.pin(&plain, &mut batch).expect("pinned")
    });
    let entries = |pgd: &Pgd<pvmmu::Pinned>| {
        let entries = (0..3).map(|at| pgd.translate(&plain, pages.at(at).expect("user half")));
        entries.collect::<Result<Vec<_>, _>>().expect("readable")
    };
    let before = entries(&parent);
    let (refusals, failing) = ([refuse(0, 0)], [access]);
    let plan = Refusals::new(&refusals, &[]).and_accesses(&failing, &[]);
    let machine = FailEach::new(&test.model, &plan);
    let around = guest(&test, &machine, &p2m);
    let refused = parent
        .fork(&mut tools(&around, &mut batch, &mut tables, &mut pool).with_shares(&mut shares));
    let mut left = refused.expect_err("refused").left.map(|child| child.value);
    let mut attempts = 0;
    while let Some(child) = left {
        let mut with = tools(&plain, &mut batch, &mut tables, &mut pool).with_shares(&mut shares);
        let refused = parent.unmap(&mut with, pages).expect_err("its frames may be the child's");
        assert_eq!((refused.done, refused.error), (0, MapError::HalfForked));
        let refused = parent.fork(&mut with).expect_err("it has a child already");
        assert_eq!(refused.failure, ForkFailure::Map(MapError::HalfForked));
        let Err(DestroyError::Pinned(same, MapError::HalfForked)) = parent.destroy(&mut with)
        else {
            panic!("its frames may be the child's")
        };
        parent = same;
        let not_pinned =
            child.pin(&plain, &mut with.batch).expect_err("its frames are the parent's");
        assert_eq!(not_pinned.failure, PinFailure::HalfForked);
        let kept = not_pinned.pgd.destroy(&mut with).expect_err("the same");
        assert_eq!(kept.error, MapError::HalfForked);
        let kept = other.take_back_fork(&mut with, kept.value).expect_err("not its fork");
        let Refused { value: child, error } = kept;
        assert_eq!(error, MapError::NotItsFork(child.root()));
        // One attempt after the other gets one access further.
        let failing = [attempts];
        let plan = Refusals::new(&[], &[]).and_accesses(&failing, &[]);
        let machine = FailEach::new(&test.model, &plan);
        let around = guest(&test, &machine, &p2m);
        let mut with = tools(&around, &mut batch, &mut tables, &mut pool).with_shares(&mut shares);
        left = parent.take_back_fork(&mut with, child).err().map(|child| child.value);
        attempts += 1;
    }
    assert_eq!(entries(&parent), before, "access {access}");
    let mut with = tools(&plain, &mut batch, &mut tables, &mut pool).with_shares(&mut shares);
    for pgd in [parent, other] {
        pgd.destroy(&mut with).expect("nobody runs on it");
    }
    assert!(counts.iter().all(|count| *count == 0), "shares that nobody has");
    assert_eq!(pool.len(), free, "each frame came back once");
    test.check();
    attempts
}

#[test]
fn neither_side_of_a_fork_that_was_not_taken_back_is_used_until_it_is() {
    let attempts: Vec<u64> = (0..80).map(half_forked).collect();
    let left = attempts.iter().filter(|attempts| **attempts > 0).count();
    assert!(left > 10 && attempts.iter().max() > Some(&20), "{attempts:?}");
}
