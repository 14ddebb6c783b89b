//! The seam's grants: requests as slices, answered by the functions that serve `grant_table_op`.
#![expect(unsafe_code, reason = "the seam's methods are declared unsafe; nothing here is")]

use hypercall::grants::{GrantMap, GrantUnmap, Grants};
use hypercall::{Errno, Error, Hypercall, Mfn, PAGE_SHIFT};

use crate::grant::MapGrant;
use crate::model::{Model, Vcpu};

const DOMID_SELF: u16 = 0x7ff0;

impl Vcpu<'_> {
    /// Keeps a request in mind for a sweep of failures, unless it asks for nothing.
    fn note_grants(&self, name: &'static str, elements: usize) -> Hypercall {
        let hypercall = Hypercall::GrantTableOp(name);
        if elements > 0 {
            self.run().note(hypercall, elements);
        }
        hypercall
    }
}

// SAFETY: the model answers for its own memory alone, as Xen would.
unsafe impl Grants for Vcpu<'_> {
    unsafe fn grant_map(&self, maps: &mut [GrantMap]) -> Result<(), Error> {
        self.note_grants("map_grant_ref", maps.len());
        let mut state = self.run();
        for map in maps {
            let GrantMap { host_addr: host_address, flags, reference, domain: granter, .. } = *map;
            match state.map_grant(MapGrant { host_address, flags, reference, granter }) {
                Ok((handle, frame)) => {
                    map.status = 0;
                    map.handle = handle;
                    map.dev_bus_addr = frame.raw() << PAGE_SHIFT;
                }
                Err(status) => map.status = status,
            }
        }
        Ok(())
    }

    unsafe fn grant_unmap(&self, unmaps: &mut [GrantUnmap]) -> Result<(), Error> {
        self.note_grants("unmap_grant_ref", unmaps.len());
        let mut state = self.run();
        for unmap in unmaps {
            let mut answer = state.unmap_grant(unmap.host_addr, unmap.handle, None);
            if unmap.dev_bus_addr != 0 && answer.is_ok() {
                state.unmap_device_grant(unmap.handle);
                answer = Ok(());
            }
            unmap.status = answer.err().unwrap_or(0);
        }
        Ok(())
    }

    fn grant_table(&self, frames: &mut [Mfn]) -> Result<(), Error> {
        let hypercall = self.note_grants("setup_table", 1);
        let count = u32::try_from(frames.len()).unwrap_or(u32::MAX);
        let table = self.run().setup_grants(DOMID_SELF, count);
        let table = table.map_err(|_| Error { hypercall, errno: Errno::EINVAL, done: 0 })?;
        frames.copy_from_slice(&table);
        Ok(())
    }
}

// SAFETY: the model answers for its own memory alone, as Xen would.
unsafe impl Grants for Model {
    unsafe fn grant_map(&self, maps: &mut [GrantMap]) -> Result<(), Error> {
        // SAFETY: the promise is handed on, to a method that needs none.
        unsafe { self.guest().grant_map(maps) }
    }

    unsafe fn grant_unmap(&self, unmaps: &mut [GrantUnmap]) -> Result<(), Error> {
        // SAFETY: as above.
        unsafe { self.guest().grant_unmap(unmaps) }
    }

    fn grant_table(&self, frames: &mut [Mfn]) -> Result<(), Error> {
        self.guest().grant_table(frames)
    }
}
