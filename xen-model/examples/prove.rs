//! The model's side of a proof: `cargo run --release -p xen-model --example prove -- SEED OPERATIONS [dom0]`.
//!
//! Prints the record after every 1000 operations, as the unikernel does on real Xen, and a table of what was answered.
#![expect(unsafe_code, reason = "the guest exists only in the model")]

use std::time::Instant;

use hypercall::{Extent, Hypercalls, MemoryOp, Pfn};
use prove::{Arena, ArenaFrame, Garbage, Prover};
use xen_model::{BootMapping, Flavour, Model, Role};

const FRAMES: u64 = 64;
const REPORT_EVERY: u64 = 1000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let seed = arguments.next().map_or(Ok(1), |word| word.parse())?;
    let operations: u64 = arguments.next().map_or(Ok(20_000), |word| word.parse())?;
    let role = if arguments.next().as_deref() == Some("dom0") { Role::Dom0 } else { Role::DomU };
    let builder = Model::builder().pages(2048).role(role).boot_mapping(BootMapping::AllPages);
    let model = builder.flavour(Flavour::Release).build()?;
    let guest = model.guest();
    let first = guest.first_free_page().raw();
    let frame = |pfn: u64| {
        let (slot, pte) = guest.l1_slot(0xffff_ffff_8000_0000 + (pfn << 12))?;
        let table = Pfn::new(model.frame(slot.table)?.m2p);
        Some(ArenaFrame { pfn: Pfn::new(pfn), mfn: pte.mfn(), slot, table })
    };
    let mut frames: Vec<ArenaFrame> = (first..first + FRAMES).filter_map(frame).collect();
    let mut m2p = [Extent::default()];
    // SAFETY: it only reports.
    unsafe { model.memory_op(&mut MemoryOp::MachphysMfnList(&mut m2p)) }?;
    let arena = Arena { frames: &mut frames, foreign: m2p[0].mfn(), garbage: Garbage::Any };
    let mut prover = Prover::new(seed, arena);
    let start = Instant::now();
    for number in 1..=operations {
        // SAFETY: the guest exists only in the model.
        let _ = unsafe { prover.step(&model) };
        if number % REPORT_EVERY == 0 {
            println!("{number} {:016x}", prover.record().value());
            model.audit()?;
        }
    }
    eprintln!("{:.0} operations a second", operations as f64 / start.elapsed().as_secs_f64());
    eprint!("{}", prover.coverage());
    if let Some(violation) = model.take_violations().first() {
        return Err(violation.clone().into());
    }
    Ok(())
}
