//! Group M: suspend, save and restore.

use hypercall::{Mfn, Pfn};
use xen_model::{Model, SaveError, Vcpu, number};

use crate::support::{Bench, P, RW};

const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;

/// Which list the guest publishes.
#[derive(Clone, Copy, PartialEq)]
enum List {
    Tree,
    Linear,
}

fn shared(model: &Model, word: usize) -> u64 {
    let info = model.guest().start_info().map_or(0, |info| info.shared_info);
    model.word(Mfn::new(info >> 12), word).expect("RAM")
}

fn info_frame(guest: &Vcpu<'_>) -> Mfn {
    guest.built_mfn(Pfn::new((guest.start_info_address() - VIRT_BASE) >> 12)).expect("a page")
}

/// Publishes the P2M list, puts pfns for the rings into `start_info`, and suspends with `rdx`.
fn suspend(bench: &Bench, list: List, rdx: Option<u64>) -> i64 {
    let guest = bench.guest();
    let info = guest.start_info().expect("start_info");
    let page = Mfn::new(info.shared_info >> 12);
    bench.model.poke(page, 386, info.nr_pages);
    if list == List::Linear {
        let root = guest.kernel_root().expect("root");
        for (word, value) in [(389, root.raw() << 12), (390, info.mfn_list), (391, 2)] {
            bench.model.poke(page, word, value);
        }
    } else {
        // Pages 100 and 101 hold the lists; unused tails repeat the last page.
        bench.model.poke(page, 387, bench.mfn(100));
        for k in 0..512 {
            bench.model.poke(Mfn::new(bench.mfn(100)), k, bench.mfn(101));
            let leaf = (k as u64).min(info.nr_pages.div_ceil(512) - 1);
            let (_, entry) = guest.l1_slot(info.mfn_list + (leaf << 12)).expect("mapped");
            bench.model.poke(Mfn::new(bench.mfn(101)), k, entry.mfn().raw());
        }
    }
    let frame = info_frame(&guest);
    for (word, mfn) in [(7, info.store_mfn), (9, info.console_mfn)] {
        bench.model.poke(frame, word, bench.m2p(mfn));
    }
    let reason = bench.scratch(7);
    bench.put(reason, &[2]);
    bench.call(number::SCHED_OP, [2, reason, rdx.unwrap_or(frame.raw()), 0, 0])
}

#[test]
fn m110_a_restored_guest_finds_its_world_renumbered() {
    for list in [List::Tree, List::Linear] {
        let bench = Bench::new();
        assert_eq!(suspend(&bench, list, None), 0);
        let restored = bench.guest().save().expect("saved").restore(99).expect("restored");
        restored.audit().expect("counts add up");
        let (old, new) = (bench.guest(), restored.guest());
        let frame = info_frame(&new);
        let word = |k| restored.word(frame, k).expect("RAM");
        let moved =
            (0..2048).filter(|pfn| old.built_mfn(Pfn::new(*pfn)) != new.built_mfn(Pfn::new(*pfn)));
        assert!(moved.count() > 2000);
        let info = old.start_info().expect("start_info");
        assert_eq!(word(6) & 0xffff_ffff, 0, "flags");
        for (k, before) in [(7, info.store_mfn), (9, info.console_mfn)] {
            let pfn = Pfn::new(bench.m2p(before));
            assert_eq!(Some(Mfn::new(word(k))), new.built_mfn(pfn));
        }
        let page = Mfn::new(word(5) >> 12);
        let shared_new = |k| restored.word(page, k).expect("RAM");
        assert_eq!(shared_new(387), 0, "frame_list_list");
        for k in [386, 389, 390, 391] {
            // Also p2m_cr3, which names a frame of the old machine.
            assert_eq!(shared_new(k), shared(&bench.model, k));
        }
        for vcpu in 0..32 {
            assert_eq!(shared_new(vcpu * 8) & 0xffff, 0x100, "masked, nothing pending");
            assert_eq!(shared_new(vcpu * 8 + 1), 0, "pending_sel");
        }
        // The list the guest reads holds the new frames.
        for pfn in [0, 5, 600, 2047] {
            let mut bytes = [0; 8];
            let va = info.mfn_list + pfn * 8;
            new.load(va, &mut bytes, xen_model::Mode::Kernel).expect("mapped");
            assert_eq!(Some(Mfn::new(u64::from_le_bytes(bytes))), new.built_mfn(Pfn::new(pfn)));
        }
    }
}

#[test]
fn m111_tables_are_moved_and_pinned_as_they_were() {
    let bench = Bench::new();
    let garbage = 0xdead_beef_dead_beee;
    bench.pinned(0, 1, &[(1, bench.to(3, RW)), (2, garbage)]);
    bench.contents(1, &[(4, bench.to(3, P))]);
    bench.pinned(2, 2, &[(1, bench.to(1, RW))]);
    let data = bench.to(3, RW);
    bench.put(bench.va(4), &[data]);
    assert_eq!(bench.call(number::VM_ASSIST, [0, 2, 0, 0, 0]), 0);
    assert_eq!(suspend(&bench, List::Linear, None), 0);
    let restored = bench.guest().save().expect("saved").restore(5).expect("restored");
    let new = |page| restored.guest().built_mfn(Pfn::new(bench.pfn(page))).expect("a page");
    let taf = |page| restored.frame(new(page)).expect("RAM").words(restored.release()).1;
    assert_eq!(taf(0), 0x2c00_0000_0000_0001);
    assert_eq!(taf(1), 0x2400_0000_0000_0001, "held by the L2 alone");
    assert_eq!(taf(2), 0x4c00_0000_0000_0001);
    let word = |page, index| restored.word(new(page), index).expect("RAM");
    assert_eq!(word(0, 1), new(3).raw() << 12 | 0x0010_0000_0000_0007);
    assert_eq!(word(0, 2), garbage);
    assert_eq!(word(4, 0), data, "data is not translated");
    // The assist is still on: a store to the table is emulated.
    let va = bench.va(0) + 8;
    assert!(restored.guest().store(va, &[0; 8], xen_model::Mode::Kernel).is_ok());
}

#[test]
fn m112_a_table_that_leads_out_of_the_guest_is_lost() {
    let bench = Bench::new();
    bench.pinned(0, 1, &[(1, bench.to(3, RW))]);
    let info = bench.guest().start_info().expect("start_info");
    assert_eq!(bench.set(0, 2, info.shared_info | RW), 0);
    assert_eq!(suspend(&bench, List::Linear, None), 0);
    let image = bench.guest().save().expect("the toolstack sees no error");
    let [lost] = image.lost_tables() else { panic!("{:?}", image.lost_tables()) };
    assert_eq!((lost.table.raw(), lost.index), (bench.pfn(0), 2));
    assert_eq!(bench.model.take_violations(), [lost.to_string()]);
    let restored = image.restore(5).expect("restored");
    let table = restored.guest().built_mfn(lost.table).expect("a page");
    assert_eq!(restored.word(table, 1), Some(0));
}

#[test]
fn m113_a_checkpointed_guest_goes_on_as_it_was() {
    let bench = Bench::new();
    assert_eq!(suspend(&bench, List::Linear, None), 0);
    let guest = bench.guest();
    let frame = info_frame(&guest);
    let words = || (0..12).map(|k| bench.model.word(frame, k)).collect::<Vec<_>>();
    let before = (words(), shared(&bench.model, 389), bench.words(bench.mfn(0)));
    let _ = guest.save().expect("saved");
    guest.resume();
    assert_eq!(guest.shutdown_reason(), None);
    assert_eq!((words(), shared(&bench.model, 389), bench.words(bench.mfn(0))), before);
    let info = guest.start_info().expect("start_info");
    assert_eq!(bench.model.word(frame, 7), Some(bench.m2p(info.store_mfn)), "still the pfn");
}

#[test]
fn m114_contexts_that_cannot_be_saved() {
    let bench = Bench::new();
    assert_eq!(bench.guest().save().expect_err("running"), SaveError::NotSuspended);
    assert_eq!(suspend(&bench, List::Linear, Some(0x12_3456)), 0);
    assert_eq!(bench.guest().save().expect_err("rdx"), SaveError::StartInfo(0x12_3456));
    // A GDT frame that the P2M list does not know.
    let bench = Bench::new();
    bench.contents(1, &[]);
    bench.put(bench.scratch(3), &[bench.mfn(1)]);
    assert_eq!(bench.call(number::SET_GDT, [bench.scratch(3), 1, 0, 0, 0]), 0);
    assert_eq!(bench.mmu(&[(bench.mfn(1) << 12 | 1, 0x777)]).0, 0);
    assert_eq!(suspend(&bench, List::Linear, None), 0);
    let gdt = Mfn::new(bench.mfn(1));
    assert_eq!(bench.guest().save().expect_err("GDT"), SaveError::Context(gdt));
}
