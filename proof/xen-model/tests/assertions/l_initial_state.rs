//! Group L: what a domain finds when it starts.

use hypercall::{Mfn, Pfn, StartInfo};
use xen_model::{Mode, Model, Role, number};

use crate::support::{Bench, EINVAL, ENOSYS, EPERM, PIN_L4, RW, UNPIN};

const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;

/// A domain just as its builder leaves it.
fn built(role: Role) -> Bench {
    Bench::of(Model::builder().role(role).pages(4096).seed(11))
}

fn info(bench: &Bench) -> StartInfo {
    bench.guest().start_info().expect("start_info")
}

#[test]
fn l106_the_boot_mapping_shows_every_page_once() {
    for role in [Role::DomU, Role::Dom0] {
        let bench = built(role);
        let guest = bench.guest();
        let info = info(&bench);
        for pfn in 0..info.nr_pages {
            let mfn = guest.built_mfn(Pfn::new(pfn)).expect("a page");
            assert_eq!(bench.m2p(mfn.raw()), pfn);
            assert_eq!(bench.word_at(info.mfn_list + pfn * 8), mfn.raw());
        }
        let first = (info.pt_base - VIRT_BASE) >> 12;
        let tables = first..first + info.nr_pt_frames;
        let mapped = (0..info.nr_pages).take_while(|pfn| {
            let entry = guest.l1_slot(VIRT_BASE + (pfn << 12)).map(|(_, entry)| entry);
            let Some(entry) = entry.filter(|entry| entry.is_present()) else { return false };
            assert_eq!(entry.is_writable(), !tables.contains(pfn), "page {pfn}");
            true
        });
        let end = mapped.count() as u64;
        let stack = tables.end;
        assert!((end << 12).is_multiple_of(4 << 20), "v_end {end:x}");
        assert!(end - (stack + 1) >= 128, "slack");
    }
}

#[test]
fn l107_entries_types_and_shared_pages() {
    let bench = built(Role::DomU);
    let guest = bench.guest();
    let info = info(&bench);
    let root = guest.kernel_root().expect("root");
    assert_eq!(bench.model.word(root, 511).map(|entry| entry & 0xfff), Some(0x67));
    let flags = |va| guest.l1_slot(va).map(|(_, entry)| entry.raw() & 0xfff0_0000_0000_0f9f);
    // Accessed and dirty bits come and go.
    assert_eq!(flags(VIRT_BASE), Some(0x0010_0000_0000_0007));
    assert_eq!(flags(info.pt_base), Some(0x0010_0000_0000_0005));
    assert_eq!(bench.words(root.raw()), (0x8000_0000_0000_0004, 0x8c00_0000_0000_0002));
    assert_eq!(bench.ext(PIN_L4, root.raw()), EINVAL);
    let (slot, _) = guest.l1_slot(VIRT_BASE).expect("mapped");
    let l1 = bench.words(slot.table.raw());
    assert_eq!(l1, (0x8000_0000_0000_0003, 0x2400_0000_0000_0001));
    let l2 = guest.built_mfn(Pfn::new((info.pt_base - VIRT_BASE) / 4096 + 2)).expect("L2").raw();
    assert_eq!(bench.words(l2).1, 0x4400_0000_0000_0001);
    assert_eq!(bench.ext(UNPIN, l2), EINVAL);
    let page = guest.built_mfn(Pfn::new(1)).expect("a page").raw();
    assert_eq!(bench.words(page), (0x8000_0000_0000_0002, 0xe400_0000_0000_0001));
    let outside = guest.built_mfn(Pfn::new(info.nr_pages - 1)).expect("a page").raw();
    assert_eq!(bench.words(outside), (0x8000_0000_0000_0001, 0));
    let shared = info.shared_info >> 12;
    assert_eq!(bench.m2p(shared), u64::MAX);
    assert_eq!(bench.mmu(&[(bench.slot(0), shared << 12 | RW)]).0, 0);
    // M2P can be read, not written.
    let entry = 0xffff_8000_0000_0000 + page * 8;
    assert_eq!(bench.word_at(entry), 1);
    assert_eq!(guest.store(entry, &[0; 8], Mode::Kernel).map_err(|fault| fault.code), Err(3));
}

#[test]
fn l108_pieces_in_the_builders_order() {
    let bench = built(Role::DomU);
    let info = info(&bench);
    assert_eq!(info.flags, 0);
    let page = |k: u64| bench.guest().built_mfn(Pfn::new(k)).expect("a page").raw();
    let start = (bench.guest().start_info_address() - VIRT_BASE) >> 12;
    assert_eq!((info.store_mfn, info.console_mfn), (page(start + 1), page(start + 2)));
    assert_eq!(info.pt_base, VIRT_BASE + ((start + 3) << 12));
    assert_eq!(bench.guest().kernel_root(), Some(Mfn::new(page(start + 3))));
    let stack = start + 3 + info.nr_pt_frames;
    assert_eq!(bench.guest().stack_top(), VIRT_BASE + ((stack + 1) << 12));
    assert_eq!(bench.memory(4, [0x7ff0]).0, 4096 + 256);
    let dom0 = built(Role::Dom0);
    let info = dom0.guest().start_info().expect("start_info");
    assert_eq!((info.flags, info.store_mfn, info.console_mfn), (3, 0, 0));
}

#[test]
fn l109_features_console_and_assists() {
    let features = |bench: &Bench| {
        let at = bench.scratch(3);
        bench.put(at, &[0]);
        assert_eq!(bench.call(number::XEN_VERSION, [6, at, 0, 0, 0]), 0);
        bench.word_at(at) >> 32
    };
    let bench = Bench::new();
    assert_eq!(features(&bench), 0x2_20e0);
    let dom0 = Bench::dom0();
    assert_eq!(dom0.call(number::VM_ASSIST, [0, 3, 0, 0, 0]), 0);
    assert_eq!(features(&dom0), 0x2_28f0);
    bench.put(bench.scratch(3), &[1]);
    assert_eq!(bench.call(number::XEN_VERSION, [6, bench.scratch(3), 0, 0, 0]), EINVAL);
    let write = |bench: &Bench| {
        bench.put(bench.scratch(3), &[u64::from_le_bytes(*b"a line\n\0")]);
        bench.call(number::CONSOLE_IO, [0, 7, bench.scratch(3), 0, 0])
    };
    assert_eq!(write(&Bench::release_build()), EPERM);
    assert_eq!(write(&bench), 0);
    assert_eq!(bench.model.take_console(), ["(d1) a line"]);
    let assist = |command, kind| bench.call(number::VM_ASSIST, [command, kind, 0, 0, 0]);
    assert_eq!((assist(0, 6), assist(0, 64), assist(2, 2)), (EINVAL, EINVAL, ENOSYS));
    assert_eq!(bench.call(number::XEN_VERSION, [0; 5]), 0x4_0011);
}
