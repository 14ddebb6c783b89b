//! Every assertion on the model, as every release and in both roles; and the table of all numbers.

use hypercall::{
    BootInfo, FrameAccess as _, GuestVa, Hypercalls as _, Level, PAGE_SHIFT, Pfn, Slot, StartInfo,
};
use prove::ArenaFrame;
use xen_model::{BootMapping, DomainConfig, Flavour, Model, Release, Role};

use conformance::{Applies, Assertion, Env, Outcome, assertions, run};

/// Where the guest sees page 0.
const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;
/// Pages of the guest, and those of them to play with.
const PAGES: u64 = 8192;
const ARENA: core::ops::Range<u64> = 6000..6700;

fn machine(release: Release, role: Role) -> Model {
    let all = BootMapping::AllPages;
    let builder = Model::builder().release(release).flavour(Flavour::Release).role(role);
    let builder = builder.pages(PAGES).boot_mapping(all);
    let builder = match role {
        Role::Dom0 => builder,
        Role::DomU => builder.other(DomainConfig::new(Role::Dom0, 1024)),
    };
    let model = builder.build().expect("a machine");
    model.enable_assist(hypercall::Assist::WritablePageTables).expect("an assist");
    model
}

/// The page and the entry that maps it.
fn arena_frame(model: &Model, root: Pfn, pfn: Pfn) -> ArenaFrame {
    let va = GuestVa::new(VIRT_BASE + (pfn.raw() << PAGE_SHIFT)).expect("an address");
    let mut table = root;
    for level in [Level::L4, Level::L3, Level::L2] {
        let entry = model.read_entry(table, level.index_of(va)).expect("a table");
        table = model.machine_to_phys(entry.mfn()).expect("a table");
    }
    let mfn = |pfn| model.guest().built_mfn(pfn).expect("a frame");
    let direct = Slot { table: mfn(table), index: Level::L1.index_of(va) };
    ArenaFrame { pfn, mfn: mfn(pfn), direct, va }
}

fn env(model: &Model) -> Env<'_, Model> {
    let start_info: StartInfo = model.guest().start_info().expect("start_info");
    let boot = BootInfo::parse(&start_info).expect("a good start_info");
    let root = Pfn::new((boot.root.raw() - VIRT_BASE) >> PAGE_SHIFT);
    let frames = ARENA.map(|pfn| arena_frame(model, root, Pfn::new(pfn))).collect();
    let mfn = model.guest().built_mfn(root).expect("a root");
    Env::new(model, boot, (root, mfn), frames).expect("an environment")
}

/// Makes every assertion on a machine; after each the model recounts all references (number 17).
fn all_hold_on(model: &Model, (release, role): (Release, Role)) {
    let mut env = env(model);
    for assertion in assertions() {
        let here = match assertion.applies {
            Applies::Everywhere => true,
            Applies::Dom0 => role == Role::Dom0,
            Applies::DomU => role == Role::DomU,
        };
        let outcome = run(&assertion, &mut env);
        let wanted = if here { outcome == Outcome::Holds } else { outcome != Outcome::Holds };
        assert!(wanted, "{release:?} {role:?} {}: {outcome:?}", assertion.name);
        let audit = if release == Release::V4_17 { model.audit() } else { Ok(()) };
        assert!(audit.is_ok(), "{release:?} {role:?} after {}: {audit:?}", assertion.name);
    }
}

fn all_hold(release: Release, role: Role) {
    all_hold_on(&machine(release, role), (release, role));
}

#[test]
fn all_hold_on_4_14() {
    all_hold(Release::V4_14, Role::Dom0);
    all_hold(Release::V4_14, Role::DomU);
}

#[test]
fn all_hold_on_4_17() {
    all_hold(Release::V4_17, Role::Dom0);
    all_hold(Release::V4_17, Role::DomU);
}

#[test]
fn all_hold_on_4_20() {
    all_hold(Release::V4_20, Role::Dom0);
    all_hold(Release::V4_20, Role::DomU);
}

#[test]
fn all_hold_when_hypercalls_are_interrupted() {
    for every in [2, 3, 7] {
        let model = machine(Release::V4_17, Role::DomU);
        model.preempt_every(every);
        all_hold_on(&model, (Release::V4_17, Role::DomU));
    }
}

#[test]
fn the_table_of_numbers_says_which_there_are() {
    let table = include_str!("../../docs/testing-assertions.md");
    let all: Vec<Assertion<Model>> = assertions();
    let mut group = ' ';
    for number in 1..=116 {
        let line = table.lines().find(|line| line.starts_with(&format!("| {number} |")));
        let line = line.unwrap_or_else(|| panic!("no line for {number}"));
        let made: Vec<_> = all.iter().filter(|assertion| assertion.number == number).collect();
        assert_eq!(made.len(), usize::from(line.contains("| conformance |")), "{line}");
        for assertion in made {
            let letter = assertion.name.chars().next().expect("a name");
            assert_eq!(letter.to_ascii_uppercase(), assertion.group, "{}", assertion.name);
            assert!(assertion.group >= group, "{}", assertion.name);
            group = assertion.group;
        }
    }
}
