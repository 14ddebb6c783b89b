//! Grants on real Xen.

use super::trap::hypercall;
use super::{Xen, number};
use crate::error::{Errno, Error, Hypercall};
use crate::frame::Mfn;
use crate::grants::{GrantMap, GrantStatus, GrantUnmap, Grants};
use crate::op::DomId;

/// An operation of `grant_table_op`.
#[derive(Clone, Copy)]
struct Operation {
    number: u64,
    name: &'static str,
}

const MAP_GRANT_REF: Operation = Operation { number: 0, name: "map_grant_ref" };
const UNMAP_GRANT_REF: Operation = Operation { number: 1, name: "unmap_grant_ref" };
const SETUP_TABLE: Operation = Operation { number: 2, name: "setup_table" };

/// `struct gnttab_setup_table`, 24 bytes.
#[repr(C)]
struct RawSetupTable {
    domain: u16,
    nr_frames: u32,
    status: i16,
    frame_list: u64,
}

const _: () = assert!(size_of::<RawSetupTable>() == 24);

/// Puts `count` elements from `first` on to Xen.
///
/// # Safety
/// The elements are what the operation expects, and the caller may ask for what they ask for.
unsafe fn grant_table_op<T>(
    operation: Operation,
    first: *mut T,
    count: usize,
) -> Result<(), Error> {
    if count == 0 {
        return Ok(());
    }
    let arguments = [operation.number, first as u64, count as u64, 0, 0];
    // SAFETY: the caller vouches for the elements.
    let rax = unsafe { hypercall(number::GRANT_TABLE_OP, arguments) };
    let hypercall = Hypercall::GrantTableOp(operation.name);
    Errno::check(rax).map(drop).map_err(|errno| Error { hypercall, errno, done: 0 })
}

// SAFETY: the requests go to Xen as they are, and the outcomes are Xen's.
unsafe impl Grants for Xen {
    unsafe fn grant_map(&self, maps: &mut [GrantMap]) -> Result<(), Error> {
        // SAFETY: the caller vouches for the addresses.
        unsafe { grant_table_op(MAP_GRANT_REF, maps.as_mut_ptr(), maps.len()) }
    }

    unsafe fn grant_unmap(&self, unmaps: &mut [GrantUnmap]) -> Result<(), Error> {
        // SAFETY: the caller vouches for the mappings.
        unsafe { grant_table_op(UNMAP_GRANT_REF, unmaps.as_mut_ptr(), unmaps.len()) }
    }

    fn grant_table(&self, frames: &mut [Mfn]) -> Result<(), Error> {
        let mut setup = RawSetupTable {
            domain: DomId::SELF.0,
            nr_frames: u32::try_from(frames.len()).unwrap_or(u32::MAX),
            status: GrantStatus::NOT_ISSUED.0,
            frame_list: frames.as_mut_ptr() as u64,
        };
        // SAFETY: Xen fills the list, whose words are mfns, and the status.
        unsafe { grant_table_op(SETUP_TABLE, &raw mut setup, 1) }?;
        match setup.status {
            0 => Ok(()),
            _ => {
                let hypercall = Hypercall::GrantTableOp(SETUP_TABLE.name);
                Err(Error { hypercall, errno: Errno::EINVAL, done: 0 })
            }
        }
    }
}
