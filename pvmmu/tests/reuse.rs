//! Frames that come back from an address space are in no TLB any more: what flushed them is the
//! operation itself, or the load of another root, which drops global translations too.
#![expect(unsafe_code, reason = "loads roots; no Rust object lives in the model's test")]

use hypercall::{Cpu as _, FrameSource as _, GuestVa, PteFlags};
use pv_tests::guest::{TestGuest, Work};
use pvmmu::{Pages, Pgd, Pinned, Tools, load_root};

/// Uses a page of an address space, leaves it, lets `end` take the page out, and uses the page at
/// the same address in another space. What the vCPU's TLB still had of the first one.
fn stale_after(end: impl FnOnce(Pgd<Pinned>, &mut Work)) -> Vec<String> {
    let page = Pages::one(GuestVa::new(0x40_0000).expect("canonical"));
    let (first, mut tools) = TestGuest::with_pinned(page);
    let guest = tools.guest;
    let second = Pgd::new(&mut Tools::new(guest, tools.frames.source)).expect("frames");
    let mut second = second.pin(&guest, &mut tools.batch).expect("pinned");
    second.map_pages(&mut tools, page, PteFlags::USER_RW).expect("mapped");
    // SAFETY: no Rust object lives in the user half of the model's test.
    unsafe { first.load(&guest) }.expect("loaded");
    guest.machine().load(page.start).expect("mapped");
    // SAFETY: as above.
    unsafe { load_root(&guest, guest.kernel_root()) }.expect("loaded");
    end(first, &mut tools);
    // The frames that came back stay aside, as if a heap had them.
    let aside: Vec<_> = (0..8).map(|_| tools.frames.take()).collect();
    // SAFETY: as above.
    unsafe { second.load(&guest) }.expect("loaded");
    guest.machine().load(page.start).expect("mapped");
    drop(aside);
    guest.machine().take_violations()
}

#[test]
fn nothing_is_stale_after_the_space_is_destroyed() {
    let stale = stale_after(|pgd, tools| pgd.destroy(tools).expect("destroyed"));
    assert_eq!(stale, [""; 0]);
}

#[test]
fn nothing_is_stale_after_a_page_is_taken_out_of_the_unpinned_space() {
    let stale = stale_after(|pgd, tools| {
        let page = Pages::one(GuestVa::new(0x40_0000).expect("canonical"));
        let mut loose = pgd.unpin(&tools.guest, &mut tools.batch).expect("unpinned");
        loose.unmap(tools, page).expect("unmapped");
    });
    assert_eq!(stale, [""; 0]);
}

#[test]
fn nothing_is_stale_after_the_unpinned_space_is_destroyed() {
    let stale = stale_after(|pgd, tools| {
        let loose = pgd.unpin(&tools.guest, &mut tools.batch).expect("unpinned");
        assert!(loose.destroy(tools).is_ok());
    });
    assert_eq!(stale, [""; 0]);
}

#[test]
fn nothing_is_stale_after_a_page_is_taken_out_of_the_pinned_space() {
    let stale = stale_after(|mut pgd, tools| {
        let page = Pages::one(GuestVa::new(0x40_0000).expect("canonical"));
        pgd.unmap(tools, page).expect("unmapped");
    });
    assert_eq!(stale, [""; 0]);
}

#[test]
fn two_spaces_need_no_flush_between_them_but_the_load() {
    let stale = stale_after(|_, _| ());
    assert_eq!(stale, [""; 0]);
}
