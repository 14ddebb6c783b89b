//! What the audit of tables finds, and that it finds nothing in tables that this crate made.
#![expect(unsafe_code, reason = "makes forbidden mappings on purpose; the guest is a model")]

mod common;

use common::{Guest, build, context, destroy, page, tools};
use hypercall::{
    BatchStorage, Call, FrameAccess as _, Hypercalls as _, Level, Pfn, Pte, PteFlags, Request,
    VaFlush, VaMapping,
};
use pvmmu::audit::{AuditError, Finding, Tree, audit, audit_words, writable_mappings};
use pvmmu::{Context, FrameSource as _, Pages, Pgd, TablePool, walk};
use xen_model::Model;

fn findings(context: &Context<'_, Model>, trees: &[Tree]) -> Vec<Finding> {
    let mut memory = vec![0; usize::try_from(audit_words(context.p2m.len())).expect("small")];
    let mut findings = Vec::new();
    audit(context, trees, &mut memory, &mut |finding| findings.push(finding)).expect("readable");
    findings
}

/// Lets the direct mapping of `window` show what `pte` says.
fn remap(context: &Context<'_, Model>, window: Pfn, pte: Pte) {
    let va = context.machine.direct_map(window).expect("mapped").addr();
    let mapping = VaMapping { va, pte, flush: VaFlush::PageAll };
    let mut calls = [Call::new(Request::VaMapping(mapping))];
    // SAFETY: the guest exists only in the model.
    unsafe { context.machine.issue(&mut calls) }.expect("issued");
    calls[0].result().expect("Xen allows it");
}

#[test]
fn nothing_is_wrong_with_tables_that_this_crate_made() {
    let guest = Guest::new();
    let p2m = guest.p2m();
    let context = context(&guest, &guest.model, &p2m);
    let mut pool = guest.pool();
    let mut storage = BatchStorage::<700, 8>::new();
    let mut batch = storage.batch();
    let mut pgd = Pgd::with_user_root(&context, &mut pool).expect("two roots");
    let pages = Pages { start: page(0), count: 600 };
    pgd.map_pages(&context, (pages, PteFlags::USER_RW), &mut pool).expect("mapped");
    let mut pgd = pgd.pin(&context, &mut batch).expect("pinned");
    let mut tables = TablePool::new([&mut [], &mut [], &mut []]);
    let mut with = tools(&context, &mut batch, &mut tables, &mut pool);
    pgd.unmap(&mut with, Pages { start: page(100), count: 450 }).expect("unmapped");
    assert_eq!(findings(&context, &[pgd.tree()]), []);
    let loose = pgd.unpin(&context, &mut batch).expect("unpinned");
    destroy(&context, loose, &mut pool);
}

#[test]
fn a_table_that_is_mapped_writable_is_found_with_everyone_who_maps_it() {
    let guest = Guest::new();
    let p2m = guest.p2m();
    let context = context(&guest, &guest.model, &p2m);
    let mut pool = guest.pool();
    let pgd = build(&context, 4, &mut pool);
    let table = walk(&context, pgd.root(), page(0)).expect("readable").at(Level::L1);
    let table = table.expect("a table").table;
    let window = pool.take().expect("a frame");
    let mfn = p2m.mfn(table).expect("RAM");
    remap(&context, window.pfn(), Pte::new(mfn, PteFlags::KERNEL_RW));
    let mut found = Vec::new();
    writable_mappings(&context, &[pgd.tree()], table, &mut |va| found.push(va)).expect("readable");
    let direct = |pfn| guest.model.direct_map(pfn).expect("mapped");
    let mut expected = [direct(table), direct(window.pfn())];
    expected.sort_unstable();
    assert_eq!(found, expected);
    let wrong = findings(&context, &[pgd.tree()]);
    let aliases = wrong.iter().filter(
        |finding| matches!(finding, Finding::WritableTable { table: named, .. } if *named == table),
    );
    assert_eq!(aliases.count(), 2, "the table is loose, so its own mapping counts too");
    let words = wrong[0].to_string();
    assert!(words.contains("a frame has one type at a time"), "{words}");
}

#[test]
fn a_kernel_mapping_with_user_set_and_a_frame_left_behind_are_found() {
    let guest = Guest::new();
    let p2m = guest.p2m();
    let context = context(&guest, &guest.model, &p2m);
    let mut pool = guest.pool();
    let window = pool.take().expect("a frame");
    let mfn = p2m.mfn(window.pfn()).expect("RAM");
    let va = guest.model.direct_map(window.pfn()).expect("mapped").raw();

    remap(&context, window.pfn(), Pte::new(mfn, PteFlags::USER_RW));
    let found = findings(&context, &[]);
    assert!(matches!(found[..], [Finding::UserInKernelHalf(place)] if place.va == va), "{found:?}");
    remap(&context, window.pfn(), Pte::new(mfn, PteFlags::WRITABLE));
    let found = findings(&context, &[]);
    assert!(matches!(found[..], [Finding::FrameBitsLeft(place)] if place.va == va), "{found:?}");
    remap(&context, window.pfn(), Pte::new(mfn, PteFlags::KERNEL_RW));
    assert_eq!(findings(&context, &[]), []);
}

#[test]
fn an_audit_says_how_much_memory_it_needs() {
    let guest = Guest::new();
    let p2m = guest.p2m();
    let context = context(&guest, &guest.model, &p2m);
    let needed = audit_words(p2m.len());
    let refused = audit(&context, &[], &mut [0; 3], &mut |_| {});
    assert_eq!(refused, Err(AuditError::Memory(needed)));
}
