//! What the audit of tables finds, and that it finds nothing in tables that this crate made.
#![expect(unsafe_code, reason = "makes forbidden mappings on purpose; the test is a model")]

#[macro_use]
mod common;

use common::{TestGuest, build, destroy, guest, page, tools};
use hypercall::{
    BatchStorage, Call, DomId, FrameAccess as _, FrameSource as _, Hypercalls as _, Level, Mfn,
    Pfn, Pte, PteFlags, Request, VaFlush, VaMapping,
};
use p2m::{Guest, walk};
use pvmmu::audit::{AuditError, Finding, Place, Tree, audit, audit_words, writable_mappings};
use pvmmu::{Pages, Pgd, TablePool, Tools};
use x86_64::structures::paging::PageTableIndex;
use xen_model::Model;

fn findings(guest: &Guest<'_, Model>, trees: &[Tree]) -> Vec<Finding> {
    let mut memory = vec![0; usize::try_from(audit_words(guest.p2m().len())).expect("small")];
    let mut findings = Vec::new();
    audit(guest, trees, &mut memory, &mut |finding| findings.push(finding)).expect("readable");
    findings
}

/// Lets the direct mapping of `window` show what `pte` says.
fn remap(guest: &Guest<'_, Model>, window: Pfn, pte: Pte) {
    let va = guest.machine().direct_map(window).expect("mapped").addr();
    let mapping = VaMapping { va, pte, flush: VaFlush::PageAll };
    let mut calls = [Call::new(Request::VaMapping(mapping))];
    // SAFETY: the test exists only in the model.
    unsafe { guest.machine().issue(&mut calls) }.expect("issued");
    calls[0].result().expect("Xen allows it");
}

#[test]
fn nothing_is_wrong_with_tables_that_this_crate_made() {
    scene!(test, guest, pool);
    let mut storage = BatchStorage::<700, 8>::new();
    let mut batch = storage.batch();
    let mut pgd = Pgd::with_user_root(&mut Tools::new(guest, &mut pool)).expect("two roots");
    let pages = Pages { start: page(0), count: 600 };
    pgd.map_pages(&mut Tools::new(guest, &mut pool), pages, PteFlags::USER_RW).expect("mapped");
    let mut pgd = pgd.pin(&guest, &mut batch).expect("pinned");
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut with = tools(&guest, &mut batch, &mut tables, &mut pool);
    pgd.unmap(&mut with, Pages { start: page(100), count: 450 }).expect("unmapped");
    assert_eq!(findings(&guest, &[pgd.tree()]), []);
    let loose = pgd.unpin(&guest, &mut batch).expect("unpinned");
    destroy(&guest, loose, &mut pool);
}

#[test]
fn a_table_that_is_mapped_writable_is_found_with_everyone_who_maps_it() {
    let test = TestGuest::new();
    let p2m = test.p2m();
    let guest = guest(&test, &test.model, &p2m);
    let mut pool = test.pool();
    let pgd = build(&guest, 4, &mut pool);
    let table = walk(&guest, pgd.root(), page(0)).expect("readable").at(Level::L1);
    let table = table.expect("a table").table;
    let window = pool.take().expect("a frame");
    let mfn = p2m.mfn(table).expect("RAM");
    remap(&guest, window.pfn(), Pte::new(mfn, PteFlags::KERNEL_RW));
    let mut found = Vec::new();
    writable_mappings(&guest, &[pgd.tree()], table, &mut |va| found.push(va)).expect("readable");
    let direct = |pfn| test.model.direct_map(pfn).expect("mapped");
    let mut expected = [direct(table), direct(window.pfn())];
    expected.sort_unstable();
    assert_eq!(found, expected);
    let wrong = findings(&guest, &[pgd.tree()]);
    let aliases = wrong.iter().filter(
        |finding| matches!(finding, Finding::WritableTable { table: named, .. } if *named == table),
    );
    assert_eq!(aliases.count(), 2, "the table is loose, so its own mapping counts too");
    let words = wrong[0].to_string();
    assert!(words.contains("a frame has one type at a time"), "{words}");
}

#[test]
fn a_kernel_mapping_with_user_set_and_a_frame_left_behind_are_found() {
    let test = TestGuest::new();
    let p2m = test.p2m();
    let guest = guest(&test, &test.model, &p2m);
    let mut pool = test.pool();
    let window = pool.take().expect("a frame");
    let mfn = p2m.mfn(window.pfn()).expect("RAM");
    let va = test.model.direct_map(window.pfn()).expect("mapped");

    remap(&guest, window.pfn(), Pte::new(mfn, PteFlags::USER_RW));
    let found = findings(&guest, &[]);
    assert!(matches!(found[..], [Finding::UserInKernelHalf(place)] if place.va == va), "{found:?}");
    remap(&guest, window.pfn(), Pte::new(mfn, PteFlags::WRITABLE));
    let found = findings(&guest, &[]);
    assert!(matches!(found[..], [Finding::FrameBitsLeft(place)] if place.va == va), "{found:?}");
    remap(&guest, window.pfn(), Pte::new(mfn, PteFlags::KERNEL_RW));
    assert_eq!(findings(&guest, &[]), []);
}

/// Stores an entry into a table of a loose tree.
fn plant(guest: &Guest<'_, Model>, table: Pfn, index: u16, pte: Pte) {
    let index = PageTableIndex::new(index);
    // SAFETY: the test exists only in the model, and the tree is loose.
    unsafe { guest.machine().write_entry(table, index, pte) }.expect("writable");
}

#[test]
fn an_entry_of_only_one_root_is_found_and_what_xen_adds_to_either_is_none() {
    scene!(test, guest, pool);
    let mut pgd = Pgd::with_user_root(&mut Tools::new(guest, &mut pool)).expect("two roots");
    let pages = Pages { start: page(0), count: 9 };
    pgd.map_pages(&mut Tools::new(guest, &mut pool), pages, PteFlags::USER_RW).expect("mapped");
    let user = pgd.user_root().expect("it has one");
    let of_roots = |found: &[Finding]| {
        let differ = |finding: &&Finding| matches!(finding, Finding::RootsDiffer { .. });
        found.iter().filter(differ).copied().collect::<Vec<_>>()
    };
    let entry = guest.machine().read_entry(user, PageTableIndex::new(0)).expect("readable");
    let adjusted = entry.with_flags(entry.flags() & !PteFlags::ACCESSED & !PteFlags::DIRTY);
    plant(&guest, user, 0, adjusted);
    assert_eq!(of_roots(&findings(&guest, &[pgd.tree()])), []);
    // A mapping that the kernel has and user code has not; one that user code may only read.
    for user_entry in [Pte::ABSENT, entry.read_only()] {
        plant(&guest, user, 0, user_entry);
        let found = of_roots(&findings(&guest, &[pgd.tree()]));
        let [finding @ Finding::RootsDiffer { slot: 0, user, .. }] = found[..] else {
            panic!("{found:?}")
        };
        assert_eq!(user, user_entry);
        let words = finding.to_string();
        assert!(words.contains("user code sees other pages than the kernel"), "{words}");
    }
    plant(&guest, user, 0, entry);
    destroy(&guest, pgd, &mut pool);
}

#[test]
fn a_frame_that_p2m_does_not_know_is_found_unless_it_is_marked_as_anothers() {
    let test = TestGuest::dom0();
    let p2m = test.p2m();
    let guest = guest(&test, &test.model, &p2m);
    let mut pool = test.pool();
    let mut pgd = build(&guest, 4, &mut pool);
    let registers = Mfn::new(test.model.ram_end().raw() + 0x100);
    let behind = Pages { start: page(20), count: 1 };
    // SAFETY: no memory stands behind the frames.
    unsafe {
        pgd.map_foreign(
            &mut Tools::new(guest, &mut pool),
            behind,
            PteFlags::USER_RW,
            registers,
            DomId::IO,
        )
    }
    .expect("mapped");
    let unknown = |found: Vec<Finding>| {
        let of = |finding: Finding| match finding {
            Finding::UnknownFrame(place) => Some((place, finding)),
            _ => None,
        };
        found.into_iter().filter_map(of).collect::<Vec<_>>()
    };
    assert_eq!(unknown(findings(&guest, &[pgd.tree()])), []);
    // A leaf, and a table.
    let walk = walk(&guest, pgd.root(), page(21)).expect("readable");
    for (level, flags) in [(Level::L1, PteFlags::USER_RW), (Level::L2, PteFlags::TABLE)] {
        let (table, index) = match level {
            Level::L1 => (walk.at(Level::L1).expect("a table").table, Level::L1.index_of(page(21))),
            _ => (walk.at(Level::L2).expect("a table").table, PageTableIndex::new(99)),
        };
        plant(&guest, table, index.into(), Pte::new(registers, flags));
        let found = unknown(findings(&guest, &[pgd.tree()]));
        let [(place, finding)] = found[..] else { panic!("{found:?}") };
        assert_eq!((place.level, place.table), (level, table));
        let words = finding.to_string();
        assert!(words.contains("which P2M does not know"), "{words}");
        assert!(words.contains("EBUSY"), "what Xen would say: {words}");
        plant(&guest, table, index.into(), Pte::ABSENT);
    }
    destroy(&guest, pgd, &mut pool);
}

#[test]
fn each_finding_says_what_xen_would_say_and_why() {
    let place = Place {
        va: page(1),
        level: Level::L1,
        table: Pfn::new(7),
        pte: Pte::new(Mfn::new(9), PteFlags::USER_RW),
    };
    let (kernel, user) = (place.pte, Pte::ABSENT);
    let findings = [
        (Finding::WritableTable { place, table: Pfn::new(8) }, "EINVAL", "one type at a time"),
        (Finding::UserInKernelHalf(place), "makes it global", "user code may find it in the TLB"),
        (Finding::UnknownFrame(place), "EBUSY", "the frame map is wrong"),
        (Finding::FrameBitsLeft(place), "shadows or crashes", "L1TF"),
        (Finding::RootsDiffer { slot: 3, kernel, user }, "slot 3", "user code sees other pages"),
    ];
    for (finding, says, why) in findings {
        let words = finding.to_string();
        assert!(words.contains(says) && words.contains(why), "{words}");
    }
}

#[test]
fn an_audit_says_how_much_memory_it_needs() {
    let test = TestGuest::new();
    let p2m = test.p2m();
    let guest = guest(&test, &test.model, &p2m);
    let needed = audit_words(p2m.len());
    let refused = audit(&guest, &[], &mut [0; 3], &mut |_| {});
    assert_eq!(refused, Err(AuditError::Memory(needed)));
}
