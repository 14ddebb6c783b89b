//! The sequences of crate `prove` on the model: whatever they do, counts add up, what is observed
//! depends on nothing but the seed, and what real Xen was once seen to answer is what the model
//! answers.

use std::fs;
use std::path::Path;

use arbtest::arbtest;
use hypercall::start_info::BootInfo;
use hypercall::{Assist, GuestVa, Hypercalls as _, Pfn};
use prove::{Arena, ArenaFrame, Digest, Executor, Generator, Landmarks, Step};
use xen_model::{BootMapping, Builder, Flavour, Model, Release, Role};

const FRAMES: usize = 64;
const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;

fn builder() -> Builder {
    Model::builder().pages(1024).boot_mapping(BootMapping::AllPages).flavour(Flavour::Release)
}

fn build(builder: Builder) -> Model {
    let model = builder.build().expect("a machine");
    model.enable_assist(Assist::WritablePageTables).expect("every release has it");
    model
}

/// Pages that nothing lies in, and what is around them.
fn arena(model: &Model) -> Arena {
    let guest = model.guest();
    let boot = BootInfo::parse(&guest.start_info().expect("built")).expect("valid");
    let first = guest.first_free_page().raw() + 1;
    let frame = |pfn: u64| {
        let va = GuestVa::new(VIRT_BASE + (pfn << 12)).expect("the guest's");
        let (direct, pte) = guest.l1_slot(va.raw()).expect("mapped");
        ArenaFrame { pfn: Pfn::new(pfn), mfn: pte.mfn(), direct, va }
    };
    let landmarks = Landmarks {
        shared_info: boot.shared_info,
        running_root: guest.kernel_root().expect("it runs"),
        running_l1: guest.l1_slot(boot.root.raw()).expect("mapped").0.table,
    };
    Arena::new((first..first + FRAMES as u64).map(frame).collect(), landmarks)
}

fn check(model: &Model, what: &dyn std::fmt::Display) {
    model.audit().unwrap_or_else(|error| panic!("{what}:\n{error}"));
    assert_eq!(model.take_violations(), [""; 0], "{what}");
}

/// Runs `groups` groups of a seed, auditing now and then.
fn run(builder: Builder, seed: u64, groups: u64, preempt: u64) -> u64 {
    let model = build(builder);
    model.preempt_every(preempt);
    let mut executor = Executor::new(arena(&model));
    let mut generator = Generator::new(seed, FRAMES);
    let mut digest = Digest::default();
    for number in 0..groups {
        generator.step(&model, &mut executor, &mut |_, observation| digest.add(observation));
        if number % 64 == 0 {
            check(&model, &format_args!("seed {seed}, group {number}"));
        }
    }
    digest.add(executor.apply(&model, &generator.last()));
    assert!(executor.is_clean(), "seed {seed}");
    check(&model, &format_args!("seed {seed}"));
    digest.value()
}

#[test]
fn counts_add_up_for_every_seed_release_and_role() {
    for seed in 0..2 {
        for release in [Release::V4_14, Release::V4_17, Release::V4_20] {
            for role in [Role::DomU, Role::Dom0] {
                run(builder().role(role).release(release), seed, 1500, 0);
            }
        }
    }
}

#[test]
fn what_is_observed_does_not_depend_on_which_frames_there_are() {
    let digest = run(builder().seed(1), 42, 2000, 0);
    for seed in 2..5 {
        assert_eq!(run(builder().seed(seed), 42, 2000, 0), digest);
    }
    assert_ne!(run(builder().seed(1), 43, 2000, 0), digest);
}

#[test]
fn what_is_observed_does_not_depend_on_interruptions() {
    let digest = run(builder(), 7, 1500, 0);
    for every in [1, 2, 3, 7] {
        assert_eq!(run(builder(), 7, 1500, every), digest, "every {every}");
    }
}

#[test]
fn steps_chosen_byte_by_byte_leave_counts_that_add_up() {
    arbtest(|u| {
        let bytes: Vec<u8> = u.arbitrary()?;
        let model = build(builder());
        let mut executor = Executor::new(arena(&model));
        let steps: Vec<Step> = Step::from_bytes(&bytes).collect();
        let mut rest = &steps[..];
        while !rest.is_empty() {
            let (group, others) = rest.split_at(Executor::group_len(rest));
            rest = others;
            executor.apply(&model, group);
        }
        check(&model, &"bytes");
        Ok(())
    });
}

/// Replays a kept divergence: steps, and after `O` the words that real Xen answered.
fn replay(file: &Path, text: &str) {
    let role = if text.contains("as dom0") { Role::Dom0 } else { Role::DomU };
    let model = build(builder().role(role));
    let mut executor = Executor::new(arena(&model));
    let mut group: Vec<Step> = Vec::new();
    let mut groups = 0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some(words) = line.strip_prefix("O ") else {
            group.push(line.parse().unwrap_or_else(|error| panic!("{line}: {error}")));
            continue;
        };
        let seen = executor.apply(&model, &group).words().iter().map(|word| format!("{word:x}"));
        let seen = seen.collect::<Vec<_>>().join(" ");
        assert_eq!(seen, words, "{}: {group:?}", file.display());
        group.clear();
        groups += 1;
    }
    assert!(groups > 0, "{} has no group", file.display());
    check(&model, &file.display());
}

#[test]
fn every_divergence_that_was_ever_found_is_mended() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/divergences");
    let files = fs::read_dir(&folder).expect("tests/divergences");
    let mut count = 0;
    for file in files.map(|entry| entry.expect("readable").path()) {
        replay(&file, &fs::read_to_string(&file).expect("text"));
        count += 1;
    }
    assert!(count > 0);
}
