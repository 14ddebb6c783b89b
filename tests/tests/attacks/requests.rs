//! What only shows when it runs: safe code asks for what would break an invariant, and is refused.

use hypercall::{DomId, FrameSource as _, GuestVa, Pfn, PteFlags};
use p2m::Pfns;
use pv_tests::guest::{TestGuest, Work};
use pvmmu::primitive::WriteMode;
use pvmmu::{MapError, Pages, Pgd, Pinned, Shares};
use swiotlb::DmaMask;
use swiotlb::region::Region;

/// The page that these tests map.
fn page() -> Pages {
    Pages::one(GuestVa::new(0x40_0000).expect("an address of the user half"))
}

/// The guest's frame behind it.
fn frame_of(pgd: &Pgd<Pinned>, tools: &Work) -> Option<Pfn> {
    let mapping = pgd.translate(&tools.guest, page().start).expect("tables are read");
    mapping.and_then(|mapping| mapping.frame.pfn())
}

/// I-10.
#[test]
fn frames_that_do_not_lie_together_are_no_region() {
    let mut guest = TestGuest::new();
    let frames = guest.frames.take_run(64);
    let pfns = Pfns::new(frames.start(), 64);
    let mut mfns = pfns.iter().map(|pfn| guest.p2m.mfn(pfn).expect("it has memory").raw());
    let first = mfns.next().expect("some");
    assert!(mfns.zip(first + 1..).any(|(mfn, next)| mfn != next), "they lie in no order");
    let refused = Region::adopt(guest.p2m, frames, 6, DmaMask::ALL);
    assert!(refused.is_err_and(|refused| refused.value.count() == 64), "they come back");
}

/// I-4.
#[test]
fn own_frames_without_a_pfn_are_not_mapped_as_anothers() {
    let guest = TestGuest::new();
    let shared_info = guest.boot.shared_info;
    let mut tools = guest.tools();
    let pgd = Pgd::new(&mut tools).expect("a root");
    let mut pgd = pgd.pin(&tools.guest, &mut tools.batch).expect("pinned");
    for domain in [DomId::SELF, DomId(1)] {
        let refused = pgd.edit(&mut tools, |edit| {
            edit.map_foreign(page(), PteFlags::USER_RW, shared_info, domain)
        });
        let reason = refused.expect_err("it is the guest's own").error;
        assert_eq!(reason == MapError::NotForeign(shared_info), domain == DomId::SELF, "{reason}");
        assert_eq!(pgd.translate(&tools.guest, page().start), Ok(None));
    }
}

/// I-4.
#[test]
fn other_counts_of_shares_make_no_second_owner() {
    let (mut parent, mut tools) = TestGuest::with_pinned(page());
    let mut child = parent.fork(&mut tools).expect("two share the page");
    let shared = frame_of(&parent, &tools);
    let guest = tools.guest;
    // Of these counts the page has one owner, or nobody counts it.
    let mut counts = vec![0; 4096];
    let mut other = Shares::new(&mut counts);
    let mut lying = tools.on_machine(guest.machine()).with_shares(&mut other);
    for pgd in [&mut parent, &mut child] {
        let _ = pgd.edit(&mut lying, |edit| edit.make_own(page().start));
    }
    let writable = [&parent, &child].map(|pgd| {
        let mapping = pgd.translate(&guest, page().start).expect("read").expect("mapped");
        mapping.frame.pfn() == shared && mapping.flags.contains(PteFlags::WRITABLE)
    });
    assert!(!writable[0] && !writable[1], "pfn {shared:?} is shared, and written by one alone");
    let _ = parent.unmap(&mut lying, page());
    let free =
        std::iter::from_fn(|| lying.frames.take()).filter(|frame| Some(frame.pfn()) == shared);
    assert_eq!(free.count(), 0, "the child maps it still");
}

/// I-4.
#[test]
fn a_page_that_is_shared_is_not_shared_again_where_nobody_counts_it() {
    let (mut parent, mut tools) = TestGuest::with_pinned(page());
    let _child = parent.fork(&mut tools).expect("two share the page");
    let mut counts = vec![0; 4096];
    let (machine, mut other) = (tools.guest.machine(), Shares::new(&mut counts));
    let mut lying = tools.on_machine(machine).with_shares(&mut other);
    let _ = parent.fork(&mut lying).expect_err("its entry says that it is counted elsewhere");
}

/// I-4.
#[test]
fn flags_of_an_address_space_that_does_not_run_change_there_and_nowhere_else() {
    let (mut one, mut tools) = TestGuest::with_pinned(page());
    let other = Pgd::new(&mut tools).expect("a root");
    let mut other = other.pin(&tools.guest, &mut tools.batch).expect("pinned");
    other.map_pages(&mut tools, page(), PteFlags::USER_RW).expect("mapped");
    let (in_one, in_other) = (frame_of(&one, &tools), frame_of(&other, &tools));
    owed!(other.load(&tools.guest)).expect("it is pinned"); //~ E0133
    let (va, read_only) = (page().start, PteFlags::USER_RW - PteFlags::WRITABLE);
    let _ = one.set_flags(&tools.guest, va, read_only, WriteMode::Set, None).expect("it is mapped");
    assert_eq!([frame_of(&one, &tools), frame_of(&other, &tools)], [in_one, in_other]);
}
