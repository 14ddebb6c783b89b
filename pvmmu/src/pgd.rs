//! The root of an address space and its two states.

use core::marker::PhantomData;

use hypercall::{Frame, Machine, MmuExtOp, Pfn};

use crate::context::Context;
use crate::error::{LoadError, WalkError};
use crate::tables::visit;

/// State of an address space that is plain memory: it is changed by stores, and cannot be loaded.
#[derive(Debug)]
pub enum Loose {}

/// State of an address space that Xen has validated and holds: it is changed by requests, and can
/// be loaded.
#[derive(Debug)]
pub enum Pinned {}

/// An address space: a root table, the tables of its user half, and a kernel half shared with the
/// running root.
///
/// # Invariants
/// * I-4: every table reached through slots 0 to 255 of the root belongs to this address space
///   alone, and so does every frame that they map as the guest's own.
/// * I-5: if `S` is [`Loose`], no frame of the tree is a live table, except what the kernel half
///   leads to; if `S` is [`Pinned`], the root is pinned and every table of the tree is read-only in
///   the direct mapping.
///
/// Dropping an address space leaks its frames: take it apart with [`Pgd::destroy`].
#[derive(Debug)]
#[must_use = "an address space that is dropped leaks its frames"]
pub struct Pgd<S> {
    pub(crate) root: Frame,
    pub(crate) state: PhantomData<S>,
}

impl<S> Pgd<S> {
    /// The frame of the root table.
    #[must_use]
    pub const fn root(&self) -> Pfn {
        self.root.pfn()
    }

    /// How many tables the address space has, with the root.
    ///
    /// # Errors
    /// If they cannot be read.
    ///
    /// # Hypercalls
    /// None.
    pub fn tables<M: Machine>(&self, context: &Context<'_, M>) -> Result<u64, WalkError> {
        let mut count = 0;
        visit(context, self.root(), &mut |_, _| {
            count += 1;
            Ok::<_, WalkError>(true)
        })?;
        Ok(count)
    }
}

impl Pgd<Pinned> {
    /// Runs on this address space (`MMUEXT_NEW_BASEPTR`).
    ///
    /// # Errors
    /// Xen's refusal; the old root stays.
    ///
    /// # Hypercalls
    /// One `mmuext_op`.
    ///
    /// # Safety
    /// From here on the user half means what this tree says: no reference into the user half of the
    /// old one is used any more. The tree's kernel half maps what is running, as it does if the
    /// running root was `context.kernel_root` when the tree was made and has kept its upper
    /// slots.
    #[expect(unsafe_code, reason = "changes what user addresses mean")]
    pub unsafe fn load<M: Machine>(&self, context: &Context<'_, M>) -> Result<(), LoadError> {
        // SAFETY: the caller's promise is the one that `load_root` asks for.
        unsafe { load_root(context, self.root()) }
    }
}

/// Runs on the tree under `root`, whoever owns it: how a kernel goes back to the tree it booted on.
///
/// # Errors
/// Xen's refusal; the old root stays.
///
/// # Hypercalls
/// One `mmuext_op`.
///
/// # Safety
/// As for [`Pgd::load`].
#[expect(unsafe_code, reason = "changes what user addresses mean")]
pub unsafe fn load_root<M: Machine>(context: &Context<'_, M>, root: Pfn) -> Result<(), LoadError> {
    let mfn = context.mfn(root).map_err(LoadError::Walk)?;
    // SAFETY: the caller vouches for what the new root maps.
    unsafe { context.submit_op(MmuExtOp::new_baseptr(mfn)) }.map_err(LoadError::Refused)
}
