//! Loads address spaces.
#![expect(unsafe_code, reason = "changes what user addresses mean; the caller vouches for that")]

use core::fmt;

use hypercall::{Error, Machine, MmuExtOp, Pfn};

use crate::ops::submit_ops;
use crate::pgd::{Pgd, Pinned, Roots};
use crate::vcpus::Vcpus;
use p2m::{Guest, WalkError};

/// Why a root was not loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// The frame map does not have it.
    Walk(WalkError),
    /// Xen refused it.
    Refused {
        /// The pfn of the kernel root.
        root: Pfn,
        /// The refusal. Its `done` is 1 if only the root for user code was refused.
        error: Error,
    },
    /// There is no place for this vCPU.
    NoSuchVcpu(usize),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Walk(error) => error.fmt(f),
            Self::Refused { root, error } if error.done > 0 => {
                write!(f, "root pfn {root} is loaded, but not its root for user code: {error}")
            }
            Self::Refused { root, error } => write!(f, "root pfn {root} is not loaded: {error}"),
            Self::NoSuchVcpu(vcpu) => {
                write!(f, "there is no place for vCPU {vcpu}: give Vcpus one for each, at most 32")
            }
        }
    }
}

impl core::error::Error for LoadError {}

impl Vcpus<'_> {
    /// Makes vCPU `vcpu`, which must be the one that runs this, run on `pgd`: both roots, in one
    /// request.
    ///
    /// # Errors
    /// [`LoadError::NoSuchVcpu`]. [`LoadError::Refused`]: the vCPU runs where it ran before, or on
    /// the kernel's own root if that was no address space. Only if Xen took the kernel root,
    /// refused the user root, and then refused the way back, `error.done` is 1: the vCPU has this
    /// kernel root and its old user root, and counts for both address spaces.
    ///
    /// # Hypercalls
    /// One `mmuext_op` of two elements; one more if the second is refused.
    ///
    /// # Safety
    /// As for [`Pgd::load`]; and `vcpu` is the running one.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let (pgd, mut tools) = TestGuest::with_pinned(Pages::one(GuestVa::new(0x40_0000)?));
    /// let running = [Running::nowhere()];
    /// let vcpus = unsafe { Vcpus::new(&running) };
    /// // What runs here uses no address of the user half meanwhile.
    /// unsafe { vcpus.load(&tools.guest, 0, &pgd) }?;
    /// let refused = vcpus.destroy(pgd, &mut tools).unwrap_err();
    /// println!("{refused}"); // vCPU 0 runs on it
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn load<M: Machine>(
        self,
        guest: &Guest<'_, M>,
        vcpu: usize,
        pgd: &Pgd<Pinned>,
    ) -> Result<(), LoadError> {
        let place = self.place(vcpu).ok_or(LoadError::NoSuchVcpu(vcpu))?;
        let before = place.ask(pgd.root());
        // SAFETY: the caller's promise is the one that `load` demands.
        let result = unsafe { pgd.load(guest) };
        match result {
            Ok(()) => place.loaded(pgd.root()),
            Err(LoadError::Refused { root, error }) if error.done > 0 => {
                let back = before.unwrap_or(guest.kernel_root());
                // SAFETY: the vCPU ran there until just now, and still has its user root.
                if unsafe { load_kernel_root(guest, back) }.is_err() {
                    place.loaded_half(pgd.root());
                    return Err(LoadError::Refused { root, error });
                }
                place.refused(before);
                return Err(LoadError::Refused { root, error: Error { done: 0, ..error } });
            }
            Err(_) => place.refused(before),
        }
        result
    }

    /// Makes vCPU `vcpu`, which must be the one that runs this, run on the kernel's own root again,
    /// with none for user code.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    ///
    /// # Hypercalls
    /// One `mmuext_op` of two elements.
    ///
    /// # Safety
    /// As for [`load_root`]; and `vcpu` is the running one.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let (pgd, mut tools) = TestGuest::with_pinned(Pages::one(GuestVa::new(0x40_0000)?));
    /// let running = [Running::nowhere()];
    /// let vcpus = unsafe { Vcpus::new(&running) };
    /// unsafe { vcpus.load(&tools.guest, 0, &pgd) }?;
    /// unsafe { vcpus.leave(&tools.guest, 0) }?; // on the kernel's own root again
    /// vcpus.destroy(pgd, &mut tools)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn leave<M: Machine>(
        self,
        guest: &Guest<'_, M>,
        vcpu: usize,
    ) -> Result<(), LoadError> {
        let place = self.place(vcpu).ok_or(LoadError::NoSuchVcpu(vcpu))?;
        let roots = Roots { kernel: guest.kernel_root(), user: None };
        // SAFETY: the caller's promise is the one that `load_roots` demands.
        unsafe { load_roots(guest, roots) }?;
        place.left();
        Ok(())
    }
}

impl Pgd<Pinned> {
    /// Runs on this address space (`MMUEXT_NEW_BASEPTR`, `MMUEXT_NEW_USER_BASEPTR`).
    ///
    /// # Errors
    /// Xen's refusal. The old roots stay, unless `error.done` is 1: then only the user root was
    /// refused.
    ///
    /// # Hypercalls
    /// One `mmuext_op` of two elements.
    ///
    /// # Safety
    /// * From here on the user half means what this tree says: nobody uses a reference into the
    ///   user half of the old one any more.
    /// * The tree's kernel half maps what is running. It does if `guest.kernel_root()` was the
    ///   running root when the tree was made, and has kept its upper slots.
    ///
    /// ```
    /// # use pv_tests::examples::*;
    /// let (pgd, tools) = TestGuest::with_pinned(Pages::one(GuestVa::new(0x40_0000)?));
    /// unsafe { pgd.load(&tools.guest) }?;
    /// let loaded = tools.guest.machine().guest().kernel_root();
    /// assert_eq!(loaded, tools.guest.mfn(pgd.root()).ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn load<M: Machine>(&self, guest: &Guest<'_, M>) -> Result<(), LoadError> {
        // SAFETY: the caller's promise is the one that `load_roots` demands.
        unsafe { load_roots(guest, self.roots()) }
    }
}

/// Runs on the tree under `root`, whoever owns it, and on none for user code. A kernel returns to
/// the tree it booted on in this way.
///
/// # Errors
/// Xen's refusal. The old root stays.
///
/// # Hypercalls
/// One `mmuext_op` of two elements.
///
/// # Safety
/// As for [`Pgd::load`].
///
/// ```
/// # use pv_tests::examples::*;
/// # use pvmmu::{Pages, load_root};
/// let (pgd, mut tools) = TestGuest::with_pinned(Pages::one(GuestVa::new(0x40_0000)?));
/// unsafe { pgd.load(&tools.guest) }?;
/// // Back to the kernel's own: now the address space can end.
/// unsafe { load_root(&tools.guest, tools.guest.kernel_root()) }?;
/// pgd.destroy(&mut tools)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub unsafe fn load_root<M: Machine>(guest: &Guest<'_, M>, root: Pfn) -> Result<(), LoadError> {
    // SAFETY: the caller's promise is the one that `load_roots` demands.
    unsafe { load_roots(guest, Roots { kernel: root, user: None }) }
}

/// # Safety
/// As for [`Pgd::load`].
unsafe fn load_roots<M: Machine>(guest: &Guest<'_, M>, roots: Roots) -> Result<(), LoadError> {
    let kernel = guest.mfn(roots.kernel).map_err(WalkError::from).map_err(LoadError::Walk)?;
    let user = roots
        .user
        .map(|pfn| guest.mfn(pfn))
        .transpose()
        .map_err(WalkError::from)
        .map_err(LoadError::Walk)?;
    let ops = [MmuExtOp::new_baseptr(kernel), MmuExtOp::new_user_baseptr(user)];
    // SAFETY: the caller vouches for what the new roots map.
    unsafe { submit_ops(guest.machine(), &ops) }
        .map_err(|error| LoadError::Refused { root: roots.kernel, error })
}

/// Runs on the tree under `root` in the kernel. The root for user code stays.
///
/// # Safety
/// As for [`Pgd::load`].
unsafe fn load_kernel_root<M: Machine>(guest: &Guest<'_, M>, root: Pfn) -> Result<(), LoadError> {
    let kernel = guest.mfn(root).map_err(WalkError::from).map_err(LoadError::Walk)?;
    // SAFETY: the caller vouches for what the root maps.
    unsafe { submit_ops(guest.machine(), &[MmuExtOp::new_baseptr(kernel)]) }
        .map_err(|error| LoadError::Refused { root, error })
}
