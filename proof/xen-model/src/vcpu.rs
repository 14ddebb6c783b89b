//! Further vCPUs.
//!
//! Section 6.4 of the specification, as far as memory goes (`arch_set_info_guest`,
//! arch/x86/domain.c).

use hypercall::{Errno, Mfn, PAGE_SHIFT};

use crate::domain::{ASSIST_M2P_STRICT, Holds, Parked};
use crate::model::Vcpu;
use crate::state::{Answer, State};
use crate::types::PageType;
use crate::xen_slots;

impl Vcpu<'_> {
    /// Starts this vCPU on a root of its own, or on one that others run on too
    /// (`VCPUOP_initialise`).
    ///
    /// # Errors
    /// `EEXIST` if it runs already; `EINVAL`, or what the validation of the root answers.
    pub fn initialise(&self, root: Mfn, user_root: Option<Mfn>) -> Result<(), Errno> {
        self.run().initialise(root, user_root)
    }

    /// Whether this vCPU's TLB holds a translation for the page at `va`: it has used it, and
    /// nothing has flushed it since.
    ///
    /// ```
    /// use xen_model::{Mode, Model};
    ///
    /// let model = Model::builder().build()?;
    /// let (guest, va) = (model.guest(), model.guest().start_info_address());
    /// assert!(!guest.holds_translation(va));
    /// guest.load(va, &mut [0], Mode::Kernel).map_err(|_| "not mapped")?;
    /// assert!(guest.holds_translation(va));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn holds_translation(&self, va: u64) -> bool {
        self.run().vcpu().tlb.get(va >> PAGE_SHIFT).is_some()
    }
}

impl State {
    fn initialise(&mut self, root: Mfn, user_root: Option<Mfn>) -> Answer {
        if self.vcpu().kernel_root.is_some() {
            return Err(Errno::EEXIST);
        }
        self.take_root(root)?;
        if let Some(user_root) = user_root
            && let Err(errno) = self.take_root(user_root)
        {
            self.park(Parked { table: root, container: None, holds: Holds::Both });
            self.finish_teardown();
            return Err(errno);
        }
        if !self.domain().has_assist(ASSIST_M2P_STRICT) {
            self.frames.words(root)[xen_slots::M2P_SLOT] = xen_slots::m2p_entry();
        }
        self.vcpu().kernel_root = Some(root);
        self.vcpu().user_root = user_root;
        Ok(())
    }

    /// Takes a use as root, however often that is interrupted.
    fn take_root(&mut self, root: Mfn) -> Answer {
        let caller = self.caller();
        loop {
            let answer = self.get_page_and_type(root, PageType::L4, caller);
            if answer == Err(Errno::ERESTART) {
                self.interrupted();
                continue;
            }
            self.finish_teardown();
            return answer;
        }
    }
}
