//! I-8, I-9, I-15: the frame map says what Xen has, in words that are there.
#![expect(dead_code, reason = "what the compiler refuses is not run")]

use std::sync::atomic::{AtomicU64, Ordering};

use hypercall::shared_info::ArchSharedInfo;
use hypercall::{Batch, DomId, Frames, GuestVa, Machine, Mfn, Pfn};
use p2m::toolstack::UnalignedList;
use p2m::window::WindowPlace;
use p2m::{BuilderList, Guest, P2m, P2mError, Pfns, Toolstack, Window};

fn a_list_is_adopted_by_unsafe_code_alone(list: &[AtomicU64]) -> Result<P2m<'_>, P2mError> {
    owed!(P2m::adopt(list)) //~ E0133
}

fn a_pfn_gets_memory_by_unsafe_code_alone(p2m: &P2m<'_>) {
    let _ = owed!(p2m.populate(Pfn::new(1), Mfn::new(2))); //~ E0133
    let _ = owed!(p2m.populate_run(Pfns::new(Pfn::new(1), 2), Mfn::new(2))); //~ E0133
}

fn a_pfn_loses_its_memory_by_unsafe_code_alone(p2m: &P2m<'_>) {
    let _ = owed!(p2m.depopulate(Pfn::new(1))); //~ E0133
}

fn a_pfn_gets_another_frame_by_unsafe_code_alone(p2m: &P2m<'_>) {
    let _ = owed!(p2m.replace(Pfn::new(1), Mfn::new(2))); //~ E0133
}

fn a_pfn_is_called_foreign_by_unsafe_code_alone(p2m: &P2m<'_>) {
    let _ = owed!(p2m.set_foreign(Pfn::new(1), DomId(1), Mfn::new(2))); //~ E0133
    let _ = owed!(p2m.clear_foreign(Pfn::new(1))); //~ E0133
}

fn a_pfn_is_called_the_machines_own_by_unsafe_code_alone(p2m: &P2m<'_>) {
    let _ = owed!(p2m.set_identity(Pfns::new(Pfn::new(1), 2))); //~ E0133
    let _ = owed!(p2m.clear_identity(Pfns::new(Pfn::new(1), 2))); //~ E0133
}

fn a_window_is_opened_by_unsafe_code_alone(
    guest: &Guest<'_, impl Machine>,
    list: BuilderList,
    place: WindowPlace,
    frames: Frames,
    batch: &mut Batch<'_>,
) {
    let _ = owed!(Window::open(guest, list, place, frames, batch)); //~ E0133
}

fn a_list_is_said_to_be_somewhere_by_unsafe_code_alone() -> BuilderList {
    owed!(BuilderList::new(Pfn::new(1))) //~ E0133
}

fn a_list_is_published_by_unsafe_code_alone(
    toolstack: Toolstack<'_>,
    p2m: &P2m<'_>,
    list: GuestVa,
) -> Result<(), UnalignedList> {
    owed!(toolstack.publish_frame_list(p2m, Some(Mfn::new(1)))); //~ E0133
    owed!(toolstack.publish_list(p2m, list, Mfn::new(1))) //~ E0133
}

fn what_toolstacks_read_is_stored_by_unsafe_code_alone(arch: &ArchSharedInfo) {
    owed!(arch.map_words()).frame_list_list.store(1, Ordering::Relaxed); //~ E0133
}

hidden! {
    fn what_toolstacks_read_is_not_stored_past_it(arch: &ArchSharedInfo, told: &Toolstack<'_>) {
        arch.0.p2m_cr3.store(1, Ordering::Relaxed); //~ E0616
        told.words.p2m_cr3.store(1, Ordering::Relaxed); //~ E0616
    }

    fn a_list_is_nowhere_else(list: &mut BuilderList) {
        list.first = Pfn::new(1); //~ E0616
    }

    fn a_map_has_no_other_list(p2m: &mut P2m<'_>, other: P2m<'_>) {
        p2m.list = other.list; //~ E0616
    }

    fn a_window_stays_where_it_is(window: &mut Window) {
        window.capacity = u64::MAX; //~ E0616
    }
}
