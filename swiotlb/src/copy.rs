//! Copies between frames, through the seam. A device or another vCPU may change the bytes, so none
//! of them is ever a Rust reference.
#![expect(unsafe_code, reason = "writes frames that belong to the pool or the mapping (I-1)")]

use hypercall::{AccessError, FrameAccess, PAGE_SIZE, Pfn};

use crate::contiguous::GuestBytes;

/// Bytes on the stack at once.
const CHUNK: usize = 512;

/// Copies bytes from one place to another of the same length.
///
/// # Errors
/// [`AccessError`]; some bytes may have been copied.
///
/// # Safety
/// The caller owns the bytes written (I-1).
pub(crate) unsafe fn copy<M: FrameAccess + ?Sized>(
    machine: &M,
    from: GuestBytes,
    to: GuestBytes,
) -> Result<(), AccessError> {
    let mut chunk = [0; CHUNK];
    let len_bytes = from.len_bytes.min(to.len_bytes);
    let mut done = 0;
    while done < len_bytes {
        let (source, source_offset) = from.byte(done);
        let (target, target_offset) = to.byte(done);
        let in_frames = PAGE_SIZE - source_offset.max(target_offset);
        let count = (len_bytes - done).min(in_frames).min(CHUNK);
        machine.read_bytes(source, source_offset, &mut chunk[..count])?;
        // SAFETY: the caller's promise is passed on.
        unsafe { machine.write_bytes(target, target_offset, &chunk[..count]) }?;
        done += count;
    }
    Ok(())
}

/// Fills bytes with zeroes, in a frame and those that follow it.
///
/// # Errors
/// [`AccessError`]; some bytes may be zero.
///
/// # Safety
/// As for [`copy`].
pub(crate) unsafe fn zero<M: FrameAccess + ?Sized>(
    machine: &M,
    pfn: Pfn,
    offset: usize,
    len_bytes: usize,
) -> Result<(), AccessError> {
    const ZEROES: [u8; PAGE_SIZE] = [0; PAGE_SIZE];
    let place = GuestBytes { pfn, offset, len_bytes };
    let mut done = 0;
    while done < len_bytes {
        let (pfn, offset) = place.byte(done);
        let count = (len_bytes - done).min(PAGE_SIZE - offset);
        // SAFETY: the caller's promise is passed on.
        unsafe { machine.write_bytes(pfn, offset, &ZEROES[..count]) }?;
        done += count;
    }
    Ok(())
}
