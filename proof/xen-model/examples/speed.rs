//! How fast the model is: `cargo run --release -p xen-model --example speed`.
#![expect(unsafe_code, reason = "submits requests of a guest that exists only in the model")]

use std::hint::black_box;
use std::time::Instant;

use hypercall::{Call, DomId, Hypercalls, MmuUpdate, Pfn, Pte, Request};
use xen_model::{BootMapping, DomainConfig, Model, Role};

/// Memory this process occupies, in MiB, where the system tells.
fn resident_mib() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages / 256)
}

fn issue(model: &Model, updates: &[MmuUpdate]) -> bool {
    let mut calls = [Call::new(Request::MmuUpdate(updates, DomId::SELF))];
    // SAFETY: the guest exists only in the model.
    unsafe { model.issue(&mut calls) }.is_ok() && calls[0].result().is_ok()
}

fn updates(rounds: u64) -> Result<(), Box<dyn std::error::Error>> {
    let model = Model::builder().pages(65536).boot_mapping(BootMapping::AllPages).build()?;
    let guest = model.guest();
    let first = guest.first_free_page().raw();
    let slots = (first..first + 512).filter_map(|pfn| {
        guest.l1_slot(0xffff_ffff_8000_0000 + (pfn << 12)).map(|(slot, pte)| (slot, pte.mfn()))
    });
    let slots: Vec<_> = slots.collect();
    let batch = |flags: u64| -> Vec<MmuUpdate> {
        let pte = |mfn: hypercall::Mfn| Pte::from_raw(mfn.raw() << 12 | flags);
        slots.iter().map(|(slot, mfn)| MmuUpdate::set(*slot, pte(*mfn))).collect()
    };
    let (read_only, writable) = (batch(0x21), batch(0x23));
    for (name, size) in [("one at a time", 1), ("512 in a call", 512)] {
        let start = Instant::now();
        let mut done = 0;
        for round in 0..rounds {
            let list = if round % 2 == 0 { &read_only } else { &writable };
            for part in list.chunks(size) {
                assert!(issue(&model, part), "refused");
                done += part.len();
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        println!("RW <-> RO, {name}: {:.1} million a second", done as f64 / seconds / 1e6);
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    updates(4000)?;
    let start = Instant::now();
    for seed in 0..100 {
        black_box(Model::builder().pages(65536).seed(seed).build()?);
    }
    println!("a guest of 256 MiB boots in {:?}", start.elapsed() / 100);
    let before = resident_mib();
    let start = Instant::now();
    let config = DomainConfig {
        init_p2m: Some(0xffff_8900_0000_0000),
        ..DomainConfig::new(Role::DomU, 1 << 28)
    };
    let model = Model::builder().guest(config).build()?;
    println!("a guest of 1 TiB boots in {:?}", start.elapsed());
    let guest = model.guest();
    let start = Instant::now();
    let mut sum = 0;
    for k in 0..100_000u64 {
        // Touch pages all over it.
        let mfn = guest.built_mfn(Pfn::new(k.wrapping_mul(2_654_435_761) % (1 << 28)));
        if let Some(mfn) = mfn {
            model.poke(mfn, 1, k);
            sum += model.word(mfn, 1).unwrap_or(0);
        }
    }
    black_box(sum);
    println!("100,000 pages of it written in {:?}", start.elapsed());
    if let (Some(before), Some(after)) = (before, resident_mib()) {
        println!("memory for all that: {} MiB", after - before);
    }
    Ok(())
}
