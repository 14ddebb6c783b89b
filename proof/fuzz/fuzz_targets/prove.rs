//! Steps of crate `prove`, chosen by the fuzzer: the model never panics and its counts add up.
#![no_main]

use hypercall::{Assist, GuestVa, Hypercalls as _, Pfn};
use hypercall::start_info::BootInfo;
use libfuzzer_sys::fuzz_target;
use prove::{Arena, ArenaFrame, Executor, Landmarks, Step};
use xen_model::{BootMapping, Model};

const FRAMES: u64 = 24;
const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;

/// A small machine's free pages, and what is around them.
fn arena(model: &Model) -> Option<Arena> {
    let guest = model.guest();
    let boot = BootInfo::parse(&guest.start_info()?).ok()?;
    let first = guest.first_free_page().raw() + 1;
    let frame = |pfn: u64| {
        let va = GuestVa::new(VIRT_BASE + (pfn << 12)).ok()?;
        let (direct, pte) = guest.l1_slot(va.raw())?;
        Some(ArenaFrame { pfn: Pfn::new(pfn), mfn: pte.mfn(), direct, va })
    };
    let landmarks = Landmarks {
        shared_info: boot.shared_info,
        running_root: guest.kernel_root()?,
        running_l1: guest.l1_slot(boot.root.raw())?.0.table,
    };
    Some(Arena::new((first..first + FRAMES).filter_map(frame).collect(), landmarks))
}

fuzz_target!(|bytes: &[u8]| {
    let mapping = BootMapping::AllPages;
    let Ok(model) = Model::builder().pages(256).boot_mapping(mapping).build() else { return };
    let Ok(()) = model.enable_assist(Assist::WritablePageTables) else { return };
    let Some(arena) = arena(&model) else { return };
    let mut executor = Executor::new(arena);
    let steps: Vec<Step> = Step::from_bytes(bytes).collect();
    let mut rest = &steps[..];
    while !rest.is_empty() {
        let (group, others) = rest.split_at(Executor::group_len(rest));
        rest = others;
        executor.apply(&model, group);
    }
    if let Err(error) = model.audit() {
        panic!("{error}");
    }
});
