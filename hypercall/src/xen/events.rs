//! Events, the timer that raises one, and suspending: `event_channel_op`, `sched_op`,
//! `set_timer_op`.
//!
//! As in `platform`, nothing here crosses the seam.

use super::platform::{SCHEDOP_SHUTDOWN, ask};
use super::trap::hypercall;
use super::{Xen, number};
use crate::error::Error;
use crate::frame::Mfn;

const SCHEDOP_BLOCK: u64 = 1;
const SCHEDOP_POLL: u64 = 3;
const EVTCHNOP_BIND_VIRQ: u64 = 1;
const EVTCHNOP_SEND: u64 = 4;
const EVTCHNOP_UNMASK: u64 = 9;
const CALLBACKOP_REGISTER: u64 = 0;
const CALLBACKTYPE_EVENT: u16 = 0;
const VCPUOP_STOP_PERIODIC_TIMER: u64 = 7;
const VIRQ_TIMER: u32 = 0;
const SHUTDOWN_SUSPEND: u32 = 2;

/// `struct callback_register`.
#[repr(C)]
struct CallbackRegister {
    kind: u16,
    flags: u16,
    address: u64,
}

/// `struct sched_poll`.
#[repr(C)]
struct SchedPoll {
    ports: *const u32,
    count: u32,
    timeout: u64,
}

const _: () = assert!(size_of::<SchedPoll>() == size_of::<xen_sys::sched_poll>());

/// How the guest came back from a suspend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumed {
    /// In a new domain: every frame, port and clock is another one.
    Restored,
    /// In the same place: the save was given up, or was only a checkpoint.
    Cancelled,
}

impl Xen {
    /// Makes Xen call `handler` on the calling vCPU when an event is pending there and upcalls are
    /// not masked (`CALLBACKOP_register`). Every vCPU registers its own.
    ///
    /// # Errors
    /// `EFAULT` if the address is not one the guest may use.
    ///
    /// # Safety
    /// The handler can take an upcall as Xen delivers it, on the interrupted stack.
    pub unsafe fn set_event_callback(handler: u64) -> Result<(), Error> {
        let register = CallbackRegister { kind: CALLBACKTYPE_EVENT, flags: 0, address: handler };
        let arguments = [CALLBACKOP_REGISTER, &raw const register as u64, 0, 0, 0];
        // SAFETY: Xen reads the structure; the caller vouches for the handler.
        unsafe { ask(number::CALLBACK_OP, "callback_op(register)", arguments) }.map(drop)
    }

    /// Wakes the other side of an event channel (`EVTCHNOP_send`).
    ///
    /// # Errors
    /// `EINVAL` if the guest has no such port.
    pub fn notify(port: u32) -> Result<(), Error> {
        Self::event_channel_op(EVTCHNOP_SEND, "event_channel_op(send)", &mut [port]).map(drop)
    }

    /// Unmasks `port`, and raises the event that came meanwhile (`EVTCHNOP_unmask`).
    ///
    /// # Errors
    /// `EINVAL` if there is no such port.
    pub fn unmask(port: u32) -> Result<(), Error> {
        Self::event_channel_op(EVTCHNOP_UNMASK, "event_channel_op(unmask)", &mut [port]).map(drop)
    }

    /// Returns the port on which vCPU 0's timer raises its events (`EVTCHNOP_bind_virq`).
    ///
    /// # Errors
    /// `EEXIST` if it has one already, `ENOSPC` if there is no port left.
    pub fn bind_timer() -> Result<u32, Error> {
        let name = "event_channel_op(bind_virq)";
        Self::event_channel_op(EVTCHNOP_BIND_VIRQ, name, &mut [VIRQ_TIMER, 0, 0])
            .map(|[.., port]| port)
    }

    fn event_channel_op<const WORDS: usize>(
        command: u64,
        name: &'static str,
        words: &mut [u32; WORDS],
    ) -> Result<[u32; WORDS], Error> {
        let arguments = [command, words.as_mut_ptr() as u64, 0, 0, 0];
        // SAFETY: Xen reads and writes the words, which are those of this command.
        unsafe { ask(number::EVENT_CHANNEL_OP, name, arguments) }.map(|_| *words)
    }

    /// Makes the timer raise an event at `deadline`, in nanoseconds of Xen's clock; 0 stops it
    /// (`set_timer_op`).
    ///
    /// # Errors
    /// As Xen says; no release refuses it.
    pub fn set_timer(deadline: u64) -> Result<(), Error> {
        // SAFETY: Xen raises an event, and does nothing else.
        unsafe { ask(number::SET_TIMER_OP, "set_timer_op", [deadline, 0, 0, 0, 0]) }.map(drop)
    }

    /// Stops vCPU 0's periodic timer, a hundred events a second, with which every vCPU begins
    /// (`VCPUOP_stop_periodic_timer`).
    ///
    /// # Errors
    /// As Xen says; no release refuses it.
    pub fn stop_periodic_timer() -> Result<(), Error> {
        let arguments = [VCPUOP_STOP_PERIODIC_TIMER, 0, 0, 0, 0];
        // SAFETY: events stay away, and nothing else changes.
        unsafe { ask(number::VCPU_OP, "vcpu_op(stop_periodic_timer)", arguments) }.map(drop)
    }

    /// Unmasks events and sleeps until one is pending (`SCHEDOP_block`).
    pub fn block() {
        // SAFETY: nothing of the guest's changes but by its own handler.
        let _ = unsafe { hypercall(number::SCHED_OP, [SCHEDOP_BLOCK, 0, 0, 0, 0]) };
    }

    /// Sleeps until an event of `port` is pending, masked or not, or until `deadline` in
    /// nanoseconds of Xen's clock; 0 means no deadline (`SCHEDOP_poll`).
    ///
    /// # Errors
    /// `EINVAL` if there is no such port.
    pub fn poll(port: u32, deadline: u64) -> Result<(), Error> {
        let poll = SchedPoll { ports: &raw const port, count: 1, timeout: deadline };
        let arguments = [SCHEDOP_POLL, &raw const poll as u64, 0, 0, 0];
        // SAFETY: Xen reads the structure and the port.
        unsafe { ask(number::SCHED_OP, "sched_op(poll)", arguments) }.map(drop)
    }

    /// Stops the guest until a toolstack resumes it, here or in another domain (`SCHEDOP_shutdown`,
    /// `SHUTDOWN_suspend`). `start_info` is the frame of that page.
    ///
    /// # Errors
    /// As Xen says; then the guest never stopped.
    ///
    /// # Safety
    /// Nothing that the guest does afterwards relies on a frame number, a port or a time from
    /// before.
    pub unsafe fn suspend(start_info: Mfn) -> Result<Resumed, Error> {
        let reason = SHUTDOWN_SUSPEND;
        let arguments = [SCHEDOP_SHUTDOWN, &raw const reason as u64, start_info.raw(), 0, 0];
        // SAFETY: Xen reads the reason; the toolstack rewrites frame numbers in tables, in the
        // frame map and in start_info, for which the caller is prepared.
        unsafe { ask(number::SCHED_OP, "sched_op(shutdown)", arguments) }.map(|answer| match answer
        {
            0 => Resumed::Restored,
            _ => Resumed::Cancelled,
        })
    }
}
