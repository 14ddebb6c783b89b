//! Lowers requests to Xen's words.

use core::mem::offset_of;

use super::trap::hypercall;
use super::{Xen, number};
use crate::call::{CALLS_MAX, Call, Outcome, Request};
use crate::error::{Errno, Error, Hypercall};
use crate::machine::{Assist, Hypercalls};
use crate::memory::{MemoryOp, Reservation};
use crate::op::DomId;

/// `struct multicall_entry` (public/xen.h), 64 bytes. A debug build of Xen fills all of it but
/// `result` with 0xAA when the entry has run, so nothing else is ever read back.
#[derive(Clone, Copy)]
#[repr(C)]
struct MulticallEntry {
    op: u64,
    result: i64,
    arguments: [u64; 6],
}

const _: () = assert!(size_of::<MulticallEntry>() == size_of::<xen_sys::multicall_entry>());

impl MulticallEntry {
    const EMPTY: Self = Self { op: 0, result: 0, arguments: [0; 6] };
}

/// `VMASST_CMD_enable`.
const ASSIST_ENABLE: u64 = 0;

/// Returns the hypercall number and arguments of a request; Xen writes how much it did to `done`.
fn lower(request: &Request<'_>, done: *mut u32) -> (u32, [u64; 5]) {
    match request {
        Request::MmuUpdate(updates, domain) => (
            number::MMU_UPDATE,
            [updates.as_ptr() as u64, updates.len() as u64, done as u64, u64::from(domain.0), 0],
        ),
        Request::MmuExt(ops, domain) => (
            number::MMUEXT_OP,
            [ops.as_ptr() as u64, ops.len() as u64, done as u64, u64::from(domain.0), 0],
        ),
        Request::VaMapping(mapping) => (
            number::UPDATE_VA_MAPPING,
            [mapping.va.as_u64(), mapping.pte.raw(), mapping.flush.raw(), 0, 0],
        ),
    }
}

fn outcome(rax: i64, done: u32) -> Outcome {
    match Errno::check(rax) {
        Ok(_) => Outcome::Done,
        Err(errno) => Outcome::Refused { errno, done },
    }
}

/// Issues at most `MAX` requests in one trap.
///
/// # Safety
/// As for [`Hypercalls::issue`].
unsafe fn multicall<const MAX: usize>(calls: &mut [Call<'_>]) -> Result<(), Error> {
    let refused = |errno, done| Error { hypercall: Hypercall::Multicall, errno, done };
    if calls.len() > MAX {
        return Err(refused(Errno::E2BIG, 0));
    }
    let mut entries = [MulticallEntry::EMPTY; MAX];
    let mut done = [0u32; MAX];
    for (k, call) in calls.iter().enumerate() {
        let (op, arguments) = lower(&call.request, &raw mut done[k]);
        entries[k].op = u64::from(op);
        entries[k].arguments[..5].copy_from_slice(&arguments);
        // If Xen does not get to this entry, it must not look like a success.
        entries[k].result = i64::MIN;
    }
    let arguments = [entries.as_mut_ptr() as u64, calls.len() as u64, 0, 0, 0];
    // SAFETY: the caller vouches for what each request does; their pointers are to live arrays of
    // the ABI's element types and to `done`; the array lives on this stack until Xen is done.
    let whole = Errno::check(unsafe { hypercall(number::MULTICALL, arguments) });
    for ((call, entry), done) in calls.iter_mut().zip(&entries).zip(&done) {
        if entry.result != i64::MIN {
            call.outcome = outcome(entry.result, *done);
        }
    }
    whole.map(drop).map_err(|errno| refused(errno, 0))
}

// SAFETY: the requests go to Xen as they are, and the outcomes are Xen's.
unsafe impl Hypercalls for Xen {
    unsafe fn issue(&self, calls: &mut [Call<'_>]) -> Result<(), Error> {
        match calls {
            [] => Ok(()),
            [call] => {
                let mut done = 0;
                let (number, arguments) = lower(&call.request, &raw mut done);
                // SAFETY: the caller vouches for what the request does; its pointers are to live
                // arrays of the ABI's element types and to `done`.
                call.outcome = outcome(unsafe { hypercall(number, arguments) }, done);
                Ok(())
            }
            // SAFETY: the caller vouches for what the requests do.
            [_, _] => unsafe { multicall::<2>(calls) },
            // SAFETY: as above.
            _ => unsafe { multicall::<CALLS_MAX>(calls) },
        }
    }

    unsafe fn memory_op(&self, op: &mut MemoryOp<'_>) -> Result<u64, Error> {
        let mut done = 0;
        let command = op.number();
        let hypercall = Hypercall::MemoryOp(op.name());
        // SAFETY: the caller vouches for the frames.
        unsafe { lower_memory(op, command, &mut done) }.map_err(|errno| Error {
            hypercall,
            errno,
            done,
        })
    }

    unsafe fn memory_op_counted(
        &self,
        op: &mut MemoryOp<'_>,
    ) -> (Result<u64, Error>, Result<u64, Error>) {
        let command = op.number();
        let mut count = MemoryOp::CurrentReservation(DomId::SELF);
        let (MemoryOp::Increase(list) | MemoryOp::Decrease(list) | MemoryOp::Populate(list)) = op
        else {
            // SAFETY: the caller vouches for the frames.
            let answer = unsafe { self.memory_op(op) };
            // SAFETY: it only reports.
            return (answer, unsafe { self.memory_op(&mut count) });
        };
        let mut reservation = raw(list);
        let mut domain = DomId::SELF;
        let entry = |command: u32, argument: u64| {
            let op = u64::from(number::MEMORY_OP);
            let arguments = [u64::from(command), argument, 0, 0, 0, 0];
            // If Xen does not get to this entry, it must not look like a success.
            MulticallEntry { op, result: i64::MIN, arguments }
        };
        let mut entries = [
            entry(command, (&raw mut reservation) as u64),
            entry(count.number(), (&raw mut domain) as u64),
        ];
        let arguments = [entries.as_mut_ptr() as u64, entries.len() as u64, 0, 0, 0];
        // SAFETY: the caller vouches for the frames, the count only reports; the arguments of both
        // live on this stack until Xen is done.
        let whole = Errno::check(unsafe { hypercall(number::MULTICALL, arguments) });
        let names = [op.name(), count.name()];
        let [answer, counted] = [0, 1].map(|at| {
            let hypercall = Hypercall::MemoryOp(names[at]);
            let result = whole.and_then(|_| Errno::check(entries[at].result));
            result.map_err(|errno| Error { hypercall, errno, done: 0 })
        });
        (answer, counted)
    }

    fn enable_assist(&self, assist: Assist) -> Result<(), Error> {
        let arguments = [ASSIST_ENABLE, assist as u64, 0, 0, 0];
        // SAFETY: an assist changes how Xen treats faults of this guest, not what is mapped.
        let rax = unsafe { hypercall(number::VM_ASSIST, arguments) };
        let refused = |errno| Error { hypercall: Hypercall::VmAssist, errno, done: 0 };
        Errno::check(rax).map(drop).map_err(refused)
    }
}

/// `struct xen_memory_reservation`, 32 bytes.
#[repr(C)]
struct RawReservation {
    extent_start: u64,
    nr_extents: u64,
    extent_order: u32,
    mem_flags: u32,
    domid: u16,
}

/// `struct xen_memory_exchange`, 72 bytes.
#[repr(C)]
struct RawExchange {
    give: RawReservation,
    take: RawReservation,
    nr_exchanged: u64,
}

/// `struct xen_memory_map`.
#[repr(C)]
struct RawMemoryMap {
    nr_entries: u32,
    buffer: u64,
}

/// `struct xen_machphys_mfn_list`.
#[repr(C)]
struct RawMachphysList {
    max_extents: u32,
    extent_start: u64,
    nr_extents: u32,
}

const _: () = {
    assert!(size_of::<RawReservation>() == 32);
    assert!(offset_of!(RawReservation, nr_extents) == 8);
    assert!(offset_of!(RawReservation, extent_order) == 16);
    assert!(offset_of!(RawReservation, mem_flags) == 20);
    assert!(offset_of!(RawReservation, domid) == 24);
    assert!(size_of::<RawExchange>() == 72);
    assert!(offset_of!(RawExchange, take) == 32);
    assert!(offset_of!(RawExchange, nr_exchanged) == 64);
    assert!(size_of::<RawMemoryMap>() == 16);
    assert!(offset_of!(RawMemoryMap, buffer) == 8);
    assert!(size_of::<RawMachphysList>() == 24);
    assert!(offset_of!(RawMachphysList, extent_start) == 8);
    assert!(offset_of!(RawMachphysList, nr_extents) == 16);
};

fn raw(list: &mut Reservation<'_>) -> RawReservation {
    RawReservation {
        extent_start: list.extents.as_mut_ptr() as u64,
        nr_extents: list.extents.len() as u64,
        extent_order: list.order,
        mem_flags: list.flags,
        domid: list.domain.0,
    }
}

/// Returns the length of the caller's buffer, as Xen counts it.
fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// Issues `command` with the argument that `op` stands for.
///
/// # Safety
/// As for [`Hypercalls::memory_op`].
unsafe fn lower_memory(op: &mut MemoryOp<'_>, command: u32, done: &mut u32) -> Result<u64, Errno> {
    /// Makes the call.
    ///
    /// # Safety
    ///
    /// `argument` is what `command` expects.
    unsafe fn call<T>(command: u32, argument: &mut T) -> Result<u64, Errno> {
        let arguments = [u64::from(command), core::ptr::from_mut(argument) as u64, 0, 0, 0];
        // SAFETY: the argument lives across the call, and the caller vouches for its type.
        Errno::check(unsafe { hypercall(number::MEMORY_OP, arguments) })
    }
    match op {
        MemoryOp::Increase(list) | MemoryOp::Decrease(list) | MemoryOp::Populate(list) => {
            // SAFETY: a reservation, with a list as long as it says.
            unsafe { call(command, &mut raw(list)) }
        }
        MemoryOp::Exchange(exchange) => {
            let (give, take) = (raw(&mut exchange.give), raw(&mut exchange.take));
            let mut argument = RawExchange { give, take, nr_exchanged: 0 };
            // SAFETY: an exchange, with lists as long as it says.
            let result = unsafe { call(command, &mut argument) };
            *done = u32::try_from(argument.nr_exchanged).unwrap_or(u32::MAX);
            result.map(|_| argument.nr_exchanged)
        }
        // SAFETY: takes no argument.
        MemoryOp::MaximumRamPage => unsafe { call(command, &mut ()) },
        MemoryOp::CurrentReservation(domain)
        | MemoryOp::MaximumReservation(domain)
        // SAFETY: a domid is all they read.
        | MemoryOp::MaximumGpfn(domain) => unsafe { call(command, domain) },
        // SAFETY: the structure they fill.
        MemoryOp::MachphysMapping(mapping) => unsafe { call(command, *mapping) },
        MemoryOp::MachphysMfnList(list) => {
            let extent_start = list.as_mut_ptr() as u64;
            let max_extents = count(list.len());
            let mut argument = RawMachphysList { max_extents, extent_start, nr_extents: 0 };
            // SAFETY: a list as long as it says.
            unsafe { call(command, &mut argument) }.map(|_| u64::from(argument.nr_extents))
        }
        MemoryOp::MemoryMap(map) | MemoryOp::MachineMemoryMap(map) => {
            let buffer = map.as_mut_ptr() as u64;
            let mut argument = RawMemoryMap { nr_entries: count(map.len()), buffer };
            // SAFETY: a buffer as long as it says.
            unsafe { call(command, &mut argument) }.map(|_| u64::from(argument.nr_entries))
        }
    }
}
