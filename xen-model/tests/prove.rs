//! The generator of crate `prove`, on the model: whatever it does, counts add up, and its record
//! depends on nothing but its seed.
#![expect(unsafe_code, reason = "the guest exists only in the model")]

use hypercall::{Extent, Hypercalls, MemoryOp, Mfn, Pfn};
use prove::{Answer, Arena, ArenaFrame, Garbage, KINDS, Kind, Op, Prover};
use xen_model::{BootMapping, Builder, Flavour, Model, Release, Role};

const FRAMES: u64 = 48;

fn builder() -> Builder {
    Model::builder().pages(1024).boot_mapping(BootMapping::AllPages).flavour(Flavour::Release)
}

/// The arena: pages that nothing lies in.
fn frames(model: &Model) -> (Vec<ArenaFrame>, Mfn) {
    let guest = model.guest();
    let info = guest.start_info().expect("start_info");
    let first = guest.first_free_page().raw() + 1;
    let frames = (first..first + FRAMES).map(|pfn| {
        let va = 0xffff_ffff_8000_0000 + (pfn << 12);
        let (slot, _) = guest.l1_slot(va).expect("mapped");
        let table = model.frame(slot.table).expect("RAM").m2p;
        let mfn = guest.built_mfn(Pfn::new(pfn)).expect("a page");
        ArenaFrame { pfn: Pfn::new(pfn), mfn, slot, table: Pfn::new(table) }
    });
    let mut m2p = [Extent::default()];
    // SAFETY: only reports.
    unsafe { model.memory_op(&mut MemoryOp::MachphysMfnList(&mut m2p)) }.expect("a list");
    assert!(info.nr_pages > first + FRAMES);
    (frames.collect(), m2p[0].mfn())
}

/// Runs `steps` operations, auditing every so often.
fn run(builder: Builder, seed: u64, steps: u64, preempt: u64) -> u64 {
    let model = builder.build().expect("a machine");
    model.preempt_every(preempt);
    let (mut frames, foreign) = frames(&model);
    let arena = Arena { frames: &mut frames, foreign, garbage: Garbage::Any };
    let mut prover = Prover::new(seed, arena);
    for number in 0..steps {
        // SAFETY: the guest exists only in the model.
        let step = unsafe { prover.step(&model) };
        if number % 64 == 0 {
            model.audit().unwrap_or_else(|error| panic!("seed {seed}, {step:?}:\n{error}"));
        }
    }
    model.audit().unwrap_or_else(|error| panic!("seed {seed}:\n{error}"));
    let violations = model.take_violations();
    assert_eq!(violations, [""; 0], "seed {seed}");
    prover.record().value()
}

#[test]
fn counts_add_up_for_every_seed_and_release() {
    for seed in 0..2 {
        for release in [Release::V4_14, Release::V4_17, Release::V4_20] {
            for role in [Role::DomU, Role::Dom0] {
                run(builder().role(role).release(release), seed, 1500, 0);
            }
        }
    }
}

#[test]
fn the_record_does_not_depend_on_which_frames_there_are() {
    let record = run(builder().seed(1), 42, 2000, 0);
    for seed in 2..5 {
        assert_eq!(run(builder().seed(seed), 42, 2000, 0), record);
    }
    assert_ne!(run(builder().seed(1), 43, 2000, 0), record);
}

#[test]
fn the_record_does_not_depend_on_interruptions() {
    let record = run(builder(), 7, 1500, 0);
    for every in [1, 2, 3, 7] {
        assert_eq!(run(builder(), 7, 1500, every), record, "every {every}");
    }
}

#[test]
fn the_record_is_the_same_on_all_three_releases_for_a_domu() {
    // Nothing that the generator does as a domU is answered differently by another release, but for
    // cache flushes.
    let records =
        [Release::V4_14, Release::V4_17].map(|release| run(builder().release(release), 9, 1500, 0));
    assert_eq!(records[0], records[1]);
}

#[test]
fn every_kind_of_operation_succeeds_and_is_refused() {
    let model = builder().build().expect("a machine");
    let (mut frames, foreign) = frames(&model);
    let arena = Arena { frames: &mut frames, foreign, garbage: Garbage::Any };
    let mut prover = Prover::new(1, arena);
    for _ in 0..20_000 {
        // SAFETY: the guest exists only in the model.
        let _ = unsafe { prover.step(&model) };
    }
    let coverage = prover.coverage();
    println!("{coverage}");
    for kind in KINDS {
        let never_done = matches!(kind, Kind::BadRoot | Kind::ExchangeUsed);
        assert_eq!(coverage.of(*kind, Answer::Done) == 0, never_done, "{kind:?}\n{coverage}");
    }
    for kind in [Kind::Pin, Kind::Set, Kind::Unpin, Kind::Batch] {
        assert!(coverage.of(kind, Answer::Refused(hypercall::Errno::EINVAL)) > 50, "{coverage}");
    }
}

#[test]
fn a_list_of_operations_replays_to_the_same_record() {
    let play = |ops: Option<&[Op]>| {
        let model = builder().build().expect("a machine");
        let (mut frames, foreign) = frames(&model);
        let arena = Arena { frames: &mut frames, foreign, garbage: Garbage::Any };
        let mut prover = Prover::new(5, arena);
        let mut made = Vec::new();
        for k in 0..500 {
            let op = ops.map_or_else(|| prover.next_op(), |ops| ops[k]);
            made.push(op.to_string().parse().expect("survives being written down"));
            // SAFETY: the guest exists only in the model.
            let _ = unsafe { prover.replay(&model, op) };
        }
        (prover.record(), made)
    };
    let (record, ops) = play(None);
    assert_eq!(play(Some(&ops)).0, record);
}
