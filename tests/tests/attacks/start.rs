//! I-13, I-14: who takes over the boot memory and the builder's tables vouches for it.
#![expect(dead_code, reason = "what the compiler refuses is not run")]

use early_pgt::{
    Access, BootMemory, Build, BuildContext, BuilderList, Plan, replace_tables, set_access,
};
use hypercall::{Batch, Frames, Machine, Pfn};
use p2m::{P2m, Pfns};

fn a_boot_is_described_by_unsafe_code_alone<'a, M>(
    machine: &'a M,
    p2m: &'a P2m<'a>,
) -> BuildContext<'a, M> {
    owed!(BuildContext::new(machine, p2m, Pfn::new(1))) //~ E0133
}

fn a_build_begins_by_unsafe_code_alone<'m>(memory: &'m BootMemory<'m>, plan: Plan) -> Build<'m> {
    owed!(Build::begin(memory, plan)) //~ E0133
}

fn access_changes_by_unsafe_code_alone(
    context: BuildContext<'_, impl Machine>,
    batch: &mut Batch<'_>,
) {
    let part = (Pfns::new(Pfn::new(1), 1), Access::Writable);
    let _ = owed!(set_access(context, part, batch)); //~ E0133
}

fn tables_are_replaced_by_unsafe_code_alone(
    context: BuildContext<'_, impl Machine>,
    memory: &BootMemory<'_>,
    frames: Frames,
    batch: &mut Batch<'_>,
) {
    let part = (memory, BuilderList::Stays);
    let _ = owed!(replace_tables(context, part, frames, batch, drop)); //~ E0133
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
