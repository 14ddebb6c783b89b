//! I-13, I-14: who takes over the boot memory and the builder's tables vouches for it.
#![expect(dead_code, reason = "what the compiler refuses is not run")]

use early_pgt::{Access, BootMemory, Build, OldList, Plan, replace_tables, set_access};
use hypercall::{Batch, Frames, Machine, Pfn};
use p2m::{Guest, Pfns};

fn a_build_begins_by_unsafe_code_alone<'m>(memory: &'m BootMemory<'m>, plan: Plan) -> Build<'m> {
    owed!(Build::begin(memory, plan)) //~ E0133
}

fn access_changes_by_unsafe_code_alone(guest: &Guest<'_, impl Machine>, batch: &mut Batch<'_>) {
    let page = Pfns::new(Pfn::new(1), 1);
    let _ = owed!(set_access(guest, page, Access::Writable, batch)); //~ E0133
}

fn tables_are_replaced_by_unsafe_code_alone(
    guest: &Guest<'_, impl Machine>,
    memory: &BootMemory<'_>,
    frames: Frames,
    batch: &mut Batch<'_>,
) {
    let list = OldList::InUse;
    let _ = owed!(replace_tables(guest, memory, list, frames, batch, drop)); //~ E0133
}

hidden! {
    use early_pgt::TableBuffer;

    fn a_table_buffer_keeps_its_frames(buffer: &mut TableBuffer, frames: Frames) {
        buffer.frames = frames; //~ E0616
    }

    fn a_build_is_not_of_other_memory(build: &mut Build<'_>, plan: Plan) {
        build.plan = plan; //~ E0616
    }
}
