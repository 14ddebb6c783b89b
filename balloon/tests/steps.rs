//! What steps do when nothing is in the way, and what they cost.

mod common;

use balloon::{Balloon, Moved, Next, Retarget, Wipe, WorkStorage};
use common::{FREE, Guest, PAGES, SPAN, settle, step, words};

type Storage = WorkStorage<600>;

#[test]
fn frames_go_out_and_come_back() {
    let guest = Guest::new();
    let p2m = guest.p2m();
    let (mut words, mut stack) = (words(), guest.stack());
    let (mut balloon, accounts) =
        Balloon::new((&guest.model, &p2m), &mut words, 500, Wipe::Always).expect("asked");
    assert_eq!((accounts.populated, accounts.xen), (PAGES, Some(PAGES)));
    balloon.leave_out(SPAN - PAGES);

    assert_eq!(balloon.set_target(PAGES - 2000), Retarget::Step);
    let mut storage = Storage::new();
    let around = (&guest, &guest.model, &p2m);
    let first = step(around, &mut balloon, &mut stack, &mut storage);
    assert_eq!((first.moved, first.next), (Moved::Out(563), Next::Again));
    assert!(first.accounts.is_balanced(), "{}", first.accounts);
    let last = settle(around, &mut balloon, &mut stack, &mut storage);
    assert_eq!((last.moved, last.next), (Moved::Out(311), Next::Idle));
    let line = "1000 populated + 2000 ballooned + 72 reserved == 3072 pfns, Xen agrees";
    assert_eq!(last.accounts.to_string(), line);
    assert_eq!(stack.0.len() as u64, FREE - 2000);
    guest.check();

    assert_eq!(balloon.set_target(PAGES), Retarget::Step);
    let last = settle(around, &mut balloon, &mut stack, &mut storage);
    assert_eq!(last.next, Next::Idle);
    assert!(last.accounts.is_balanced(), "{}", last.accounts);
    assert_eq!((balloon.ballooned(), stack.0.len() as u64), (0, FREE));
    guest.check();
}
