//! A model with a guest on it, and the environment of assertions.

use conformance::{Env, Target};
use hypercall::start_info::{BootInfo, StartInfo};
use hypercall::{FrameAccess as _, GuestVa, Hypercalls as _, Level, PAGE_SHIFT, Pfn, Slot};
use prove::ArenaFrame;
use xen_model::{BootMapping, DomainConfig, Flavour, Model, Release, Role};

/// Where the guest sees page 0.
const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;
/// Pages of the guest, and those of them to play with.
const PAGES: u64 = 8192;
const ARENA: core::ops::Range<u64> = 6000..6700;

/// A guest of release and role.
pub(crate) fn machine(release: Release, role: Role) -> Model {
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

/// The environment of assertions on `machine`, which is `model` or something around it.
pub(crate) fn env<'a, M: Target>(machine: &'a M, model: &Model) -> Env<'a, M> {
    let start_info: StartInfo = model.guest().start_info().expect("start_info");
    let boot = BootInfo::parse(&start_info).expect("a good start_info");
    let root = Pfn::new((boot.root.raw() - VIRT_BASE) >> PAGE_SHIFT);
    let frames = ARENA.map(|pfn| arena_frame(model, root, Pfn::new(pfn))).collect();
    let mfn = model.guest().built_mfn(root).expect("a root");
    Env::new(machine, boot, root, mfn, frames).expect("an environment")
}
