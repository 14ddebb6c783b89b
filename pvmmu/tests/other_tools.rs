//! An address space is changed with other tools than those with which it became what it is.

mod common;

use common::{Pool, TestGuest, guest, no_pool, page, tools};
use hypercall::middleware::{FailEach, Refusal, Refusals};
use hypercall::{BatchStorage, Errno, FrameSource as _, PteFlags};
use pvmmu::{DestroyError, ForkFailure, MapError, Pages, Pgd, Shares, Tools};
use xen_model::Model;

/// Tools that count sharers elsewhere, or nowhere.
fn with_other<'a, 't>(
    with: Tools<'a, 't, Model, Pool>,
    other: Option<&'a mut Shares<'_>>,
) -> Tools<'a, 't, Model, Pool> {
    match other {
        Some(other) => with.with_shares(other),
        None => with,
    }
}

/// A fork is refused, and not taken back since an access failed, too. That is tried again with
/// tools that count elsewhere, or nowhere. Whether there was something to be taken back.
fn taken_back_elsewhere(access: u64, is_counted: usize) -> bool {
    let test = TestGuest::small();
    let (p2m, mut pool) = (test.p2m(), test.pool());
    let free = pool.len();
    let plain = guest(&test, &test.model, &p2m);
    let mut counts = [0, 1].map(|_| vec![0; test.list.len()]);
    let [mut shares, mut other] = counts.each_mut().map(|counts| Shares::new(counts));
    let mut tables = no_pool();
    let mut storage = BatchStorage::<40, 8>::new();
    let mut batch = storage.batch();
    let pages = Pages::one(page(0));
    let mut with = Tools::new(plain, &mut pool);
    let mut parent = Pgd::new(&mut with).expect("a root");
    parent.map_pages(&mut with, pages, PteFlags::USER_RW).expect("mapped");
    let mut parent = parent.pin(&plain, &mut batch).expect("pinned");

    let refusals = [Refusal { request: 0, errno: Errno::ENOMEM, done: 0 }];
    let failing = [access];
    let plan = Refusals::new(&refusals, &[]).and_accesses(&failing, &[]);
    let machine = FailEach::new(&test.model, &plan);
    let around = guest(&test, &machine, &p2m);
    let mut with = tools(&around, &mut batch, &mut tables, &mut pool).with_shares(&mut shares);
    let left = parent.fork(&mut with).expect_err("refused").left;
    let is_left = left.is_some();
    if let Some(child) = left {
        let with = tools(&plain, &mut batch, &mut tables, &mut pool);
        let other = (is_counted > 0).then_some(&mut other);
        let refused = parent.take_back_fork(&mut with_other(with, other), child.value);
        let kept = refused.expect_err("not counted");
        assert_eq!(kept.error, MapError::OtherShares);
        let with = tools(&plain, &mut batch, &mut tables, &mut pool);
        parent.take_back_fork(&mut with.with_shares(&mut shares), kept.value).expect("taken back");
    }
    assert_eq!(pool.len() + 5, free, "a page and four tables");
    let mut with = tools(&plain, &mut batch, &mut tables, &mut pool).with_shares(&mut shares);
    let child = parent.fork(&mut with).expect("its page is counted nowhere else");
    for pgd in [parent, child] {
        pgd.destroy(&mut with).expect("destroyed");
    }
    assert_eq!(pool.len(), free, "each frame came back once");
    test.check();
    is_left
}

#[test]
fn a_fork_is_taken_back_by_those_alone_who_count_what_it_shared() {
    let places = (0..80).flat_map(|access| [0, 1].map(|is_counted| (access, is_counted)));
    let left = places.filter(|(access, is_counted)| taken_back_elsewhere(*access, *is_counted));
    assert!(left.count() > 10, "there is nothing to be taken back");
}

/// Everything that would end a share is refused, and then done with the tools that count it.
fn shares_end_elsewhere(is_counted: usize) {
    let test = TestGuest::small();
    let (p2m, mut pool) = (test.p2m(), test.pool());
    let free = pool.len();
    let plain = guest(&test, &test.model, &p2m);
    let mut counts = [0, 1].map(|_| vec![0; test.list.len()]);
    let [mut shares, mut other] = counts.each_mut().map(|counts| Shares::new(counts));
    let mut tables = no_pool();
    let mut storage = BatchStorage::<40, 8>::new();
    let mut batch = storage.batch();
    let pages = Pages { start: page(4), count: 8 };
    let at = |index| Pages::one(pages.at(index).expect("user half"));
    let mut with = tools(&plain, &mut batch, &mut tables, &mut pool).with_shares(&mut shares);
    let mut parent = Pgd::new(&mut with).expect("a root");
    parent.map_pages(&mut with, pages, PteFlags::USER_RW).expect("mapped");
    let mut parent = parent.pin(&plain, &mut with.batch).expect("pinned");
    let child = parent.fork(&mut with).expect("forked");
    parent.edit(&mut with, |edit| edit.make_own(at(7).start)).expect("a copy");

    let with = tools(&plain, &mut batch, &mut tables, &mut pool);
    let mut with = with_other(with, (is_counted > 0).then_some(&mut other));
    let before = with.frames.source.len();
    let refused = parent.unmap(&mut with, at(0)).expect_err("it is shared");
    assert_eq!((refused.done, refused.error), (0, MapError::OtherShares));
    let frame = with.frames.take().expect("a frame");
    let replaced =
        parent.edit(&mut with, |edit| edit.replace(at(0).start, PteFlags::USER_RW, frame));
    assert_eq!(replaced.expect_err("it is shared").error, MapError::OtherShares);
    let owned = parent.edit(&mut with, |edit| edit.make_own(at(0).start));
    assert_eq!(owned.expect_err("it is shared").error, MapError::OtherShares);
    let forked = parent.fork(&mut with).expect_err("its pages are shared");
    assert_eq!(forked.failure, ForkFailure::Map(MapError::OtherShares));
    let Err(DestroyError::Pinned(parent, MapError::OtherShares)) = parent.destroy(&mut with) else {
        panic!("its pages are shared")
    };
    let mut child = child.unpin(&plain, &mut with.batch).expect("unpinned");
    let refused = child.unmap(&mut with, at(0)).expect_err("it is shared");
    assert_eq!((refused.done, refused.error), (0, MapError::OtherShares));
    let frame = with.frames.take().expect("a frame");
    let replaced = child.replace(&mut with, at(0).start, PteFlags::USER_RW, frame);
    assert_eq!(replaced, Err(MapError::OtherShares));
    let kept = child.destroy(&mut with).expect_err("its pages are shared");
    assert_eq!((kept.error, with.frames.source.len()), (MapError::OtherShares, before));
    // What is its own it may lose.
    let mut parent = parent;
    parent.unmap(&mut with, at(7)).expect("it is shared no more");

    let mut with = tools(&plain, &mut batch, &mut tables, &mut pool).with_shares(&mut shares);
    parent.destroy(&mut with).expect("destroyed");
    kept.value.destroy(&mut with).expect("destroyed");
    assert_eq!(pool.len(), free, "each frame came back once");
    assert!(counts.iter().flatten().all(|count| *count == 0), "shares that nobody has");
    test.check();
}

#[test]
fn shares_end_with_those_alone_who_count_them() {
    shares_end_elsewhere(0);
    shares_end_elsewhere(1);
}

/// Forks, ends the child, and makes the parent's pages its own again. Then other tools end the
/// parent, or fork it.
fn counted_no_more(is_counted: usize) {
    let test = TestGuest::small();
    let (p2m, mut pool) = (test.p2m(), test.pool());
    let free = pool.len();
    let plain = guest(&test, &test.model, &p2m);
    let mut counts = [0, 1].map(|_| vec![0; test.list.len()]);
    let [mut shares, mut other] = counts.each_mut().map(|counts| Shares::new(counts));
    let mut tables = no_pool();
    let mut storage = BatchStorage::<40, 8>::new();
    let mut batch = storage.batch();
    let pages = Pages { start: page(4), count: 2 };
    let mut with = tools(&plain, &mut batch, &mut tables, &mut pool).with_shares(&mut shares);
    let mut parent = Pgd::new(&mut with).expect("a root");
    parent.map_pages(&mut with, pages, PteFlags::USER_RW).expect("mapped");
    let mut parent = parent.pin(&plain, &mut with.batch).expect("pinned");
    parent.fork(&mut with).expect("forked").destroy(&mut with).expect("destroyed");
    for index in 0..pages.count {
        let va = pages.at(index).expect("user half");
        parent.edit(&mut with, |edit| edit.make_own(va)).expect("its own");
    }

    let with = tools(&plain, &mut batch, &mut tables, &mut pool);
    let mut with = with_other(with, (is_counted > 0).then_some(&mut other));
    if is_counted > 0 {
        parent.fork(&mut with).expect("forked").destroy(&mut with).expect("destroyed");
    }
    parent.destroy(&mut with).expect("nothing is shared with anybody");
    assert_eq!(pool.len(), free, "each frame came back once");
    test.check();
}

#[test]
fn who_shares_no_page_any_more_needs_no_counts() {
    counted_no_more(0);
    counted_no_more(1);
}

#[test]
fn a_refused_fork_leaves_the_parent_with_the_tools_that_it_had() {
    let test = TestGuest::small();
    let (p2m, mut pool) = (test.p2m(), test.pool());
    let free = pool.len();
    let plain = guest(&test, &test.model, &p2m);
    let (mut short, mut whole) = ([], vec![0; test.list.len()]);
    let (mut short, mut whole) = (Shares::new(&mut short), Shares::new(&mut whole));
    let mut tables = no_pool();
    let mut storage = BatchStorage::<40, 8>::new();
    let mut batch = storage.batch();
    let mut with = tools(&plain, &mut batch, &mut tables, &mut pool);
    let mut parent = Pgd::new(&mut with).expect("a root");
    parent.map_pages(&mut with, Pages::one(page(4)), PteFlags::USER_RW).expect("mapped");
    let mut parent = parent.pin(&plain, &mut with.batch).expect("pinned");
    let before = format!("{parent:?}");
    let refused = parent.fork(&mut with.with_shares(&mut short)).expect_err("no place for a pfn");
    assert!(refused.left.is_none(), "{refused}");
    assert_eq!(format!("{parent:?}"), before);

    let mut with = tools(&plain, &mut batch, &mut tables, &mut pool).with_shares(&mut whole);
    let child = parent.fork(&mut with).expect("its page is counted nowhere else");
    for pgd in [parent, child] {
        pgd.destroy(&mut with).expect("destroyed");
    }
    assert_eq!(pool.len(), free, "each frame came back once");
    test.check();
}
