//! I-2, I-3: who asks Xen for a change, or writes a frame, vouches for it.
#![expect(dead_code, reason = "what the compiler refuses is not run")]

use hypercall::grants::{GrantMap, Grants};
use hypercall::memory::MemoryOp;
use hypercall::{
    Batch, BatchError, Call, Cpu, FrameAccess, GuestVa, Hypercalls, Machine, Pfn, Pte,
};
use x86_64::structures::paging::PageTableIndex;

fn a_request_is_issued_by_unsafe_code_alone(machine: &impl Hypercalls, calls: &mut [Call<'_>]) {
    let _ = owed!(machine.issue(calls)); //~ E0133
}

fn memory_changes_hands_by_unsafe_code_alone(machine: &impl Hypercalls, op: &mut MemoryOp<'_>) {
    let _ = owed!(machine.memory_op(op)); //~ E0133
}

fn a_batch_is_submitted_by_unsafe_code_alone(
    machine: &impl Machine,
    batch: &mut Batch<'_>,
) -> Result<(), BatchError> {
    owed!(batch.submit(machine)) //~ E0133
}

fn an_entry_is_written_by_unsafe_code_alone(machine: &impl FrameAccess, at: PageTableIndex) {
    let _ = owed!(machine.write_entry(Pfn::new(1), at, Pte::ABSENT)); //~ E0133
}

fn a_frame_is_written_by_unsafe_code_alone(machine: &impl FrameAccess) {
    let _ = owed!(machine.write_bytes(Pfn::new(1), 0, &[1])); //~ E0133
}

fn an_address_is_written_by_unsafe_code_alone(cpu: &impl Cpu, va: GuestVa) {
    let _ = owed!(cpu.store(va, 1)); //~ E0133
}

fn a_grant_is_mapped_by_unsafe_code_alone(machine: &impl Grants, maps: &mut [GrantMap]) {
    let _ = owed!(machine.grant_map(maps)); //~ E0133
}
