//! An executable model of Xen's x86-64 PV memory management.
//!
//! It accepts and refuses what Xen 4.14, 4.17 and 4.20 accept and refuse, answers the same numbers,
//! leaves the same words in page tables, and prints the lines that a debug Xen prints: on any
//! machine, in microseconds, without root. The guest-side crates run on it by the same source lines
//! as on real Xen, through the two traits of crate `hypercall`.
//!
//! # Main types
//! * [`Model`]: a machine with Xen and its domains, made by a [`Builder`].
//! * [`Vcpu`]: one vCPU of one domain, which calls Xen and touches memory.
//! * [`FrameInfo`], [`TypeInfo`], [`CountInfo`]: what Xen knows of a frame.
//! * [`Release`], [`Flavour`], [`Layout`]: which Xen.
//! * [`for_each_failure`]: a scenario, with each of its requests refused in turn.
//! * [`Image`]: a saved guest.
//! * [`replay`]: repeats a trace of real Xen and compares every answer.
//! * [`Contradictions`]: what [`Model::audit`] finds when references and holders do not add up.
//!
//! # What it assumes
//! 64-bit PV guests, no shadow paging, no IOMMU, no XSM policy. One hypercall at a time: what real
//! Xen does on several CPUs at once happens here in some order.
//!
//! # What it prevents, and what not
//! Nonsense from a guest is answered, never a panic. A direct store to a live table, a stale
//! translation that the guest uses, and a reference without holder are reported. Time, interrupts
//! and devices do not exist.
//!
//! ```
//! use hypercall::{Call, DomId, Hypercalls, Level, MmuExtOp, Outcome, Request};
//! use xen_model::Model;
//!
//! let model = Model::builder().pages(2048).seed(1).build()?;
//! let page = model.guest().first_free_page();
//! let mfn = model.guest().built_mfn(page).expect("a page of the guest's");
//! // The page is mapped writable, so it cannot become a page table.
//! let pin = [MmuExtOp::pin(Level::L1, mfn)];
//! let mut calls = [Call::new(Request::MmuExt(&pin, DomId::SELF))];
//! unsafe { model.issue(&mut calls) }?;
//! assert!(matches!(calls[0].outcome, Outcome::Refused { done: 0, .. }));
//! let line = model.take_log().remove(0);
//! assert!(line.contains("Bad type (saw e400000000000001 != exp 2000000000000000)"));
//! model.audit()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod access;
mod audit;
mod build;
mod cpu;
mod cpu_features;
mod descriptor;
mod domain;
mod emulate;
mod exchange;
mod frames;
mod grant;
mod heap;
mod inject;
mod l1e;
mod log;
mod memory_info;
mod memory_op;
mod mmu_update;
mod mmuext;
mod model;
mod page;
mod platform;
mod random;
mod raw;
mod raw_cpu;
mod raw_memory;
mod refs;
mod release;
mod replay;
mod restore;
mod save;
mod scatter;
mod seam;
mod seam_grants;
mod state;
mod tlb;
mod toolstack;
mod types;
mod upper;
mod va_mapping;
mod validate;
mod vcpu;
mod xen_slots;

pub use access::PageFault;
pub use audit::Contradictions;
pub use build::{BootMapping, BuildError, Builder, DomainConfig, Placement};
pub use cpu_features::SelfSnoop;
pub use hypercall::middleware::Asked;
pub use inject::{Failing, Failure, Sweep, SweepError, for_each_failure};
pub use log::{Verbosity, text_of};
pub use model::{FrameInfo, GrantEntry, Model, Vcpu};
pub use raw::number;
pub use release::{Flavour, Layout, Release, Role};
pub use replay::{ReplayError, ReplayFault, replay};
pub use restore::RestoreError;
pub use save::{Image, LostTable, SaveError};
pub use state::Statistics;
pub use tlb::Mode;
pub use types::{CountFlags, CountInfo, PageType, TypeFlags, TypeInfo};
