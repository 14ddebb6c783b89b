//! Lists of the generator's operations, chosen by the fuzzer: the model never panics and its counts
//! add up.
#![no_main]

use hypercall::{Mfn, Pfn};
use libfuzzer_sys::fuzz_target;
use prove::{Arena, ArenaFrame, Garbage, KINDS, Op, Prover};
use xen_model::{BootMapping, Model};

const FRAMES: u64 = 24;
/// Bytes that make an operation.
const OP: usize = 13;

fn op(bytes: &[u8]) -> Op {
    let mut flags = [0; 8];
    flags.copy_from_slice(&bytes[5..13]);
    Op {
        kind: KINDS[usize::from(bytes[0]) % KINDS.len()],
        a: bytes[1],
        b: bytes[2],
        index: u16::from_le_bytes([bytes[3], bytes[4]]) & 0x1fff,
        flags: u64::from_le_bytes(flags),
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mapping = BootMapping::AllPages;
    let Ok(model) = Model::builder().pages(256).boot_mapping(mapping).build() else { return };
    let guest = model.guest();
    let first = guest.first_free_page().raw() + 1;
    let frame = |pfn: u64| {
        let (slot, pte) = guest.l1_slot(0xffff_ffff_8000_0000 + (pfn << 12))?;
        let table = Pfn::new(model.frame(slot.table)?.m2p);
        Some(ArenaFrame { pfn: Pfn::new(pfn), mfn: pte.mfn(), slot, table })
    };
    let mut frames: Vec<ArenaFrame> = (first..first + FRAMES).filter_map(frame).collect();
    let foreign = Mfn::new(0x200);
    let arena = Arena { frames: &mut frames, foreign, garbage: Garbage::Any };
    let mut prover = Prover::new(0, arena);
    for bytes in bytes.chunks_exact(OP) {
        // SAFETY: the guest exists only in the model.
        let _ = unsafe { prover.replay(&model, op(bytes)) };
    }
    if let Err(error) = model.audit() {
        panic!("{error}");
    }
});
