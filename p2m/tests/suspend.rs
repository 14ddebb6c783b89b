//! A guest of the model that is suspended, saved and restored again and again: what it must publish
//! each time, and what becomes of it if it does not.
#![cfg(not(loom))]
#![expect(unsafe_code, reason = "the guest exists only in the model")]

use std::sync::atomic::AtomicU64;

use hypercall::shared_info::ArchSharedInfo;
use hypercall::{Frame, FrameSource, Mfn, PAGE_SHIFT, Pfn};
use p2m::{BuilderList, FrameList, Guest, P2m, Toolstack};
use xen_model::{BootMapping, DomainConfig, Mode, Model, Role, number};

const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;
const PAGES: u64 = 4096;
/// Words of the `shared_info` page (public/xen.h).
const MAX_PFN: usize = 386;
const FRAME_LIST: usize = 387;
/// Words of `start_info` (public/xen.h): where `shared_info` and the list are, the rings' frames.
const SHARED_INFO: usize = 5;
const MFN_LIST: usize = 13;
const RINGS: [usize; 2] = [7, 9];
const SUSPEND: u64 = 2;

/// The frame list's pages, and one that holds something: pfns behind what the builder made.
const TOP: u64 = 10;
const MIDDLE: u64 = 11;
const CONTENT: u64 = 12;

struct Suspended {
    model: Model,
    list: Vec<AtomicU64>,
    shared: ArchSharedInfo,
}

/// The pages of the frame list, one after the other.
struct Pages(Vec<Frame>);

impl FrameSource for Pages {
    fn take(&mut self) -> Option<Frame> {
        self.0.pop()
    }

    fn give(&mut self, frame: Frame) {
        self.0.push(frame);
    }
}

impl Suspended {
    /// The guest on a machine: just built, or restored.
    fn on(model: Model) -> Self {
        let mfn = |pfn| model.guest().built_mfn(Pfn::new(pfn)).expect("populated").raw();
        let list = (0..PAGES).map(|pfn| AtomicU64::new(mfn(pfn))).collect();
        Self { model, list, shared: ArchSharedInfo::default() }
    }

    fn built() -> Self {
        let mut config = DomainConfig::new(Role::DomU, PAGES);
        config.boot_mapping = BootMapping::AllPages;
        let guest = Self::on(Model::builder().guest(config).seed(1).build().expect("a guest"));
        let base = hypercall::GuestVa::new(VIRT_BASE).expect("the guest's");
        guest.model.guest().set_direct_map(base, PAGES);
        guest
    }

    fn p2m(&self) -> P2m<'_> {
        // SAFETY: the guest exists only in the model.
        unsafe { P2m::adopt(&self.list) }.expect("not empty")
    }

    /// A pfn behind what the builder made.
    fn free(&self, number: u64) -> Pfn {
        Pfn::new(self.model.guest().first_free_page().raw() + number)
    }

    fn frame(&self, number: u64) -> Frame {
        // SAFETY: the guest exists only in the model, where nobody else uses these frames.
        unsafe { Frame::claim(self.free(number)) }
    }

    /// A word of `start_info`.
    fn told(&self, word: usize) -> u64 {
        self.model.word(self.start_info(), word).expect("RAM")
    }

    fn shared_page(&self) -> Mfn {
        Mfn::new(self.told(SHARED_INFO) >> PAGE_SHIFT)
    }

    fn start_info(&self) -> Mfn {
        let address = self.model.guest().start_info_address();
        self.p2m().mfn(Pfn::new((address - VIRT_BASE) >> PAGE_SHIFT)).expect("RAM")
    }

    /// Writes the frame list and tells the toolstack.
    fn publish(&self) {
        let p2m = self.p2m();
        let first = Pfn::new((self.told(MFN_LIST) - VIRT_BASE) >> PAGE_SHIFT);
        // SAFETY: the builder says so.
        let leaves = unsafe { BuilderList::new(first) };
        let mut middles = [None];
        let mut list = FrameList::new(self.frame(TOP), &mut middles);
        let mut pages = Pages(vec![self.frame(MIDDLE)]);
        let root = self.model.guest().kernel_root().expect("it runs");
        let root = p2m.pfn(&self.model, root).expect("the guest's");
        // SAFETY: the guest exists only in the model.
        let guest = unsafe { Guest::new(&self.model, &p2m, root) };
        list.build(&guest, &leaves, &mut pages).expect("a frame list");
        let top = list.top(&p2m).expect("RAM");
        let toolstack = Toolstack::new(&self.shared);
        // SAFETY: it was built of the guest's own list, whose pages stay where they are.
        unsafe { toolstack.publish_frame_list(&p2m, Some(top)) };
        let published = toolstack.read();
        self.model.poke(self.shared_page(), MAX_PFN, published.max_pfn);
        self.model.poke(self.shared_page(), FRAME_LIST, published.frame_list);
    }

    /// Names the rings by pfns and stops.
    fn suspend(&self) {
        for word in RINGS {
            let mfn = Mfn::new(self.told(word));
            let pfn = self.p2m().pfn(&self.model, mfn).expect("the guest's");
            self.model.poke(self.start_info(), word, pfn.raw());
        }
        let reason = VIRT_BASE + (self.free(0).raw() << PAGE_SHIFT);
        self.model.guest().store(reason, &SUSPEND.to_le_bytes(), Mode::Kernel).expect("mapped");
        let arguments = [SUSPEND, reason, self.start_info().raw(), 0, 0];
        assert_eq!(self.model.guest().hypercall(number::SCHED_OP, arguments), 0);
    }

    /// Saved and restored, on frames by `seed`.
    fn moved(&self, seed: u64) -> Self {
        let image = self.model.guest().save().expect("saved");
        assert_eq!(image.lost_tables(), [], "every table arrives");
        let restored = Self::on(image.restore(seed).expect("restored"));
        let base = hypercall::GuestVa::new(VIRT_BASE).expect("the guest's");
        restored.model.guest().set_direct_map(base, PAGES);
        restored
    }

    fn content(&self) -> Mfn {
        self.p2m().mfn(self.free(CONTENT)).expect("RAM")
    }
}

#[test]
fn a_guest_that_publishes_each_time_lives_through_save_after_save() {
    let mut guest = Suspended::built();
    guest.model.poke(guest.content(), 5, 0x1234_5678);
    for seed in 2..12 {
        guest.publish();
        guest.suspend();
        let before = guest.content();
        guest = guest.moved(seed);
        guest.model.audit().expect("counts add up");
        assert_ne!(guest.content(), before, "other frames");
        assert_eq!(guest.model.word(guest.content(), 5), Some(0x1234_5678));
        for pfn in guest.p2m().all().iter() {
            let mfn = guest.p2m().mfn(pfn).expect("RAM");
            assert_eq!(guest.p2m().pfn(&guest.model, mfn), Ok(pfn), "M2P agrees");
        }
    }
}

#[test]
fn a_restored_guest_that_does_not_write_its_frame_list_again_cannot_be_saved() {
    let guest = Suspended::built();
    guest.publish();
    guest.suspend();
    let restored = guest.moved(7);
    restored.suspend();
    assert!(restored.model.guest().save().is_err(), "nothing is published");
    // The pointer alone is not enough: the pages hold the frames of before.
    let top = restored.p2m().mfn(restored.free(TOP)).expect("RAM");
    restored.model.poke(restored.shared_page(), FRAME_LIST, top.raw());
    assert!(restored.model.guest().save().is_err(), "its pages are stale");
}

#[test]
fn a_suspend_that_was_in_vain_changes_nothing() {
    let guest = Suspended::built();
    guest.publish();
    guest.model.poke(guest.content(), 0, 77);
    let rings = RINGS.map(|word| guest.told(word));
    guest.suspend();
    guest.model.guest().resume();
    assert_eq!(guest.model.guest().shutdown_reason(), None);
    for (word, mfn) in RINGS.into_iter().zip(rings) {
        guest.model.poke(guest.start_info(), word, mfn);
    }
    // Published once is enough here: no frame has moved.
    guest.suspend();
    let moved = guest.moved(3);
    assert_eq!(moved.model.word(moved.content(), 0), Some(77));
}
