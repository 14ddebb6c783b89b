//! Extended operations that go to Xen by themselves, without a batch.
#![expect(unsafe_code, reason = "hands the promise on to the seam")]

use hypercall::{Call, DomId, Error, Hypercalls, MmuExtOp, Request};

/// Submits extended operations in one request.
///
/// # Safety
/// As for [`Hypercalls::issue`].
pub(crate) unsafe fn submit_ops<M: Hypercalls>(machine: &M, ops: &[MmuExtOp]) -> Result<(), Error> {
    let mut calls = [Call::new(Request::MmuExt(ops, DomId::SELF))];
    // SAFETY: the caller's promise is the one that `issue` demands.
    unsafe { machine.issue(&mut calls) }?;
    calls[0].result()
}
