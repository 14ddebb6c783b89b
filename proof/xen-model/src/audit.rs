//! The conservation law, checked: every reference has a holder, every holder a reference.
//!
//! Section 1.4 of the specification. The audit knows nothing of how references are taken and
//! dropped: it reads the tables, the pins and the roots, adds up, and compares.

use core::fmt;
use std::collections::HashMap;

use hypercall::{Level, Mfn};

use crate::l1e::{PRESENT, RW, frame_of};
use crate::page::{DOM_IO, DOM_XEN, NOBODY, Page, WORDS};
use crate::state::State;
use crate::types::{CountFlags, PageType, TypeFlags};
use crate::upper::held_by_link;
use crate::xen_slots;

/// What an audit found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contradictions {
    /// One sentence for each contradiction.
    pub findings: Vec<String>,
}

impl fmt::Display for Contradictions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.findings.join("\n"))
    }
}

impl core::error::Error for Contradictions {}

/// What the holders of a frame add up to.
#[derive(Debug, Default, Clone, Copy)]
struct Held {
    refs: u32,
    uses: u32,
    /// The type of the uses; `None` before the first.
    kind: Option<PageType>,
    linear: i16,
    conflicting: bool,
}

#[derive(Debug, Default)]
struct Ledger(HashMap<u64, Held>);

impl Ledger {
    fn reference(&mut self, mfn: Mfn) {
        self.0.entry(mfn.raw()).or_default().refs += 1;
    }

    fn use_as(&mut self, mfn: Mfn, kind: PageType) {
        let held = self.0.entry(mfn.raw()).or_default();
        held.refs += 1;
        held.uses += 1;
        held.conflicting |= held.kind.is_some_and(|other| other != kind);
        held.kind = Some(kind);
    }
}

impl State {
    /// Recomputes all counts from their holders.
    pub(crate) fn audit(&self) -> Result<(), Contradictions> {
        let mut ledger = Ledger::default();
        let known: Vec<Mfn> = self.frames.known().collect();
        for mfn in &known {
            let Some(page) = self.frames.peek(*mfn) else { continue };
            if page.kind.flags.contains(TypeFlags::PINNED) {
                ledger.use_as(*mfn, page.kind.kind);
            }
            if let Some(level) = page.kind.live_level() {
                self.enter_table(&mut ledger, *mfn, level);
            }
        }
        self.enter_vcpus(&mut ledger);
        for (mfn, writable) in self.device_grants() {
            if writable {
                ledger.use_as(mfn, PageType::Writable);
            } else {
                ledger.reference(mfn);
            }
        }
        let mut findings = Vec::new();
        for mfn in known {
            if let Some(page) = self.frames.peek(mfn) {
                let held = ledger.0.remove(&mfn.raw()).unwrap_or_default();
                compare(mfn, &page, held, &mut findings);
            }
        }
        for (mfn, held) in ledger.0 {
            // Held, but never touched: it is what its plan says.
            if let Some(page) = self.frames.peek(Mfn::new(mfn)) {
                compare(Mfn::new(mfn), &page, held, &mut findings);
            }
        }
        for domain in &self.domains {
            for (k, vcpu) in domain.vcpus.iter().enumerate() {
                if !vcpu.parked.is_empty() {
                    findings.push(format!("d{}v{k} has a table left to tear down", domain.id));
                }
            }
        }
        if findings.is_empty() { Ok(()) } else { Err(Contradictions { findings }) }
    }

    fn enter_table(&self, ledger: &mut Ledger, table: Mfn, level: Level) {
        for index in 0..WORDS {
            let entry = self.frames.word(table, index);
            if entry & PRESENT == 0 || level == Level::L4 && xen_slots::is_xens(index) {
                continue;
            }
            let mfn = frame_of(entry);
            if let Some(below) = level.below() {
                let Some(target) = held_by_link(entry, table) else { continue };
                let same_level = self.frames.peek(target).map(|page| page.kind.kind)
                    == Some(PageType::table(level));
                if same_level {
                    ledger.use_as(target, PageType::table(level));
                    ledger.0.entry(target.raw()).or_default().linear -= 1;
                    ledger.0.entry(table.raw()).or_default().linear += 1;
                } else {
                    ledger.use_as(target, PageType::table(below));
                }
            } else if self.frames.peek(mfn).is_some_and(|page| page.owner != DOM_IO) {
                if entry & RW != 0 {
                    ledger.use_as(mfn, PageType::Writable);
                } else {
                    ledger.reference(mfn);
                }
            }
        }
    }

    fn enter_vcpus(&self, ledger: &mut Ledger) {
        for vcpu in self.domains.iter().flat_map(|domain| &domain.vcpus) {
            for root in vcpu.kernel_root.into_iter().chain(vcpu.user_root) {
                ledger.use_as(root, PageType::L4);
            }
            let ldt = vcpu.ldt.iter().map(|(_, mfn)| mfn);
            for mfn in vcpu.gdt.iter().chain(ldt) {
                ledger.use_as(*mfn, PageType::SegDesc);
            }
        }
    }
}

fn compare(mfn: Mfn, page: &Page, held: Held, findings: &mut Vec<String>) {
    let xens =
        matches!(page.owner, DOM_IO | DOM_XEN) || page.count.flags.contains(CountFlags::XEN_HEAP);
    let own = u32::from(page.count.flags.contains(CountFlags::ALLOCATED));
    // A page of Xen's carries a use that no table shows.
    let own_use = u32::from(xens);
    let (refs, uses) = (held.refs + own, held.uses + own_use);
    if page.count.refs != refs {
        let counted = page.count.refs;
        findings.push(format!("mfn {mfn} counts {counted} references and has {refs} holders"));
    }
    if page.kind.count != uses {
        let (counted, kind) = (page.kind.count, page.kind.kind);
        findings.push(format!("mfn {mfn} counts {counted} uses as {kind} and has {uses}"));
    }
    if held.conflicting || held.kind.is_some_and(|kind| kind != page.kind.kind) {
        let (kind, used) = (page.kind.kind, held.kind.unwrap_or_default());
        findings.push(format!("mfn {mfn} has type {kind} and is used as {used}"));
    }
    if page.kind.flags.intersects(TypeFlags::LOCKED | TypeFlags::PARTIAL) {
        findings.push(format!("mfn {mfn} is left {:?}", page.kind.flags));
    }
    if page.kind.count > 0 && page.kind.kind.level().is_some() && page.linear != held.linear {
        let (counted, linear) = (page.linear, held.linear);
        findings.push(format!("mfn {mfn} counts {counted} linear uses and has {linear}"));
    }
    if page.owner == NOBODY && page.count.refs > 0 {
        findings.push(format!("mfn {mfn} is referenced and belongs to nobody"));
    }
}
