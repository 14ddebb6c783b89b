//! The life of a domU on real Xen: sleeping and waking, the xenstore ring, and being suspended.

use alloc::format;
use alloc::string::String;
use core::mem::offset_of;
use core::ptr::NonNull;

use hypercall::shared_info::{ArchSharedInfo, SharedInfo};
use hypercall::start_info::{BootInfo, Console, StartInfo};
use hypercall::xen::{Resumed, ShutdownReason, Xen};
use hypercall::{Cpu as _, GuestVa, Mfn, PAGE_SHIFT, Pfn};
use p2m::P2m;

use super::boot::{self, Early};
use super::{console, events, shared_page, traps};
use crate::life::{Away, Life, Nanoseconds, Return, SuspendError, Way};
use crate::store::ring::StoreRing;

/// Everything of a running domU that a suspend takes away.
struct Connected {
    /// Mapped but for the time of a suspend, so no reference: they are made for as long as `Life`
    /// is borrowed, and a suspend borrows it exclusively.
    shared: NonNull<SharedInfo>,
    store_port: u32,
    console_port: u32,
    timer_port: u32,
}

/// A domU with its events on.
pub(super) struct RealLife<'a> {
    early: &'a Early,
    xen: &'a Xen,
    ring: &'static StoreRing,
    connected: Connected,
    away: Away,
}

/// The two rings in `start_info`: frames while the guest runs, pfns while it is suspended.
#[derive(Clone, Copy)]
struct Rings<T> {
    store: T,
    console: T,
}

impl<'a> RealLife<'a> {
    /// Turns events on.
    ///
    /// # Errors
    /// A sentence: a guest without a toolstack has no life.
    pub(super) fn begin(early: &'a Early, xen: &'a Xen) -> Result<Self, String> {
        let Some((store, _)) = early.boot.store else {
            return Err("dom0 has no toolstack above it: run this with --as domu".into());
        };
        let va = boot::builder_page(store, early.direct_map).ok_or("the xenstore ring is lost")?;
        let ring: *const StoreRing = va.addr().as_ptr();
        // SAFETY: the builder mapped the page, which stays; it is larger than the ring, all of
        // which is atomic.
        let ring = unsafe { &*ring };
        traps::install_events().map_err(|error| format!("events: {error}"))?;
        let timer_port = Xen::bind_timer().map_err(|error| format!("timer: {error}"))?;
        let connected = connect(xen, &early.boot, timer_port)?;
        Ok(Self { early, xen, ring, connected, away: Away::default() })
    }

    fn shared(&self) -> &SharedInfo {
        // SAFETY: the page is mapped whenever `suspend` does not run, and that has `&mut self`.
        unsafe { self.connected.shared.as_ref() }
    }

    fn p2m(&self) -> &P2m<'static> {
        self.early.p2m()
    }

    /// The pfn of the page that the toolstack rewrites.
    fn start_info_pfn(&self) -> Result<Pfn, String> {
        let va = GuestVa::new(self.early.start_info as u64).map_err(|error| format!("{error}"))?;
        boot::image_pfn(va).ok_or_else(|| "start_info is outside the image".into())
    }

    /// The page as it is now.
    fn boot_info(&self) -> Result<(BootInfo, Rings<Mfn>), String> {
        // SAFETY: the address comes from the guest's entry.
        let info = unsafe { boot::start_info(self.early.start_info) };
        let boot = BootInfo::parse(&info).map_err(|error| format!("{error}"))?;
        let rings = Rings { store: Mfn::new(info.store_mfn), console: Mfn::new(info.console_mfn) };
        Ok((boot, rings))
    }

    /// Writes the two words of `start_info` that say where the rings are.
    fn put_rings(&self, rings: Rings<u64>) {
        let page = self.early.start_info.cast_mut().cast::<u64>();
        let store = page.wrapping_byte_add(offset_of!(StartInfo, store_mfn));
        let console = page.wrapping_byte_add(offset_of!(StartInfo, console_mfn));
        // SAFETY: the page is the guest's own, mapped writable, and nobody has a reference to it.
        unsafe { store.write_volatile(rings.store) };
        // SAFETY: as above.
        unsafe { console.write_volatile(rings.console) };
    }

    /// The rings' pfns.
    fn ring_pfns(&self, rings: Rings<Mfn>) -> Result<Rings<Pfn>, String> {
        let pfn = |mfn| self.p2m().pfn(self.xen, mfn).map_err(|error| format!("ring: {error}"));
        Ok(Rings { store: pfn(rings.store)?, console: pfn(rings.console)? })
    }

    /// Takes away all that must not be there while the guest is suspended, asks Xen, and says what
    /// became of it.
    fn stop(&mut self) -> Result<Resumed, String> {
        let (_, rings) = self.boot_info()?;
        let pfns = self.ring_pfns(rings)?;
        let start_info = self.p2m().mfn(self.start_info_pfn()?);
        let start_info = start_info.map_err(|error| format!("start_info: {error}"))?;
        events::deafen();
        // SAFETY: `&mut self`: nobody has a reference into the page.
        unsafe { shared_page::unmap(self.xen, self.p2m()) }?;
        self.put_rings(Rings { store: pfns.store.raw(), console: pfns.console.raw() });
        self.away.from = self.xen.ticks();
        // SAFETY: the rings are named by pfns, nothing of Xen's is mapped, and no value with a
        // frame in it is used below: all are asked for again.
        let resumed = unsafe { Xen::suspend(start_info) };
        self.away.until = self.xen.ticks();
        if !matches!(resumed, Ok(Resumed::Restored)) {
            // Same domain, same frames.
            self.put_rings(Rings { store: rings.store.raw(), console: rings.console.raw() });
        }
        resumed.map_err(|error| format!("{error}"))
    }

    /// Connects with what `start_info` names now.
    fn reconnect(&mut self, resumed: Option<Resumed>) -> Result<(), String> {
        let mut timer_port = self.connected.timer_port;
        if resumed == Some(Resumed::Restored) {
            self.xen.remeasure().map_err(|error| format!("{error}"))?;
            // A domain that was resumed where it was still has the timer's port.
            timer_port = Xen::bind_timer().unwrap_or(timer_port);
        }
        let (boot, _) = self.boot_info()?;
        self.connected = connect(self.xen, &boot, timer_port)?;
        console::moved_to(self.connected.console_port);
        Ok(())
    }
}

/// Maps `shared_info` and listens.
fn connect(xen: &Xen, boot: &BootInfo, timer_port: u32) -> Result<Connected, String> {
    let Console::Ring { port: console_port, .. } = boot.console else {
        return Err("start_info names no console ring".into());
    };
    let (_, store_port) = boot.store.ok_or("start_info names no xenstore ring")?;
    Xen::stop_periodic_timer().map_err(|error| format!("timer: {error}"))?;
    let shared = shared_page::map(xen, boot.shared_info)?;
    // SAFETY: a suspend deafens first, and nothing else unmaps the page.
    let listening = unsafe { events::listen(shared, &[store_port, console_port, timer_port]) };
    listening.map_err(|error| format!("events: {error}"))?;
    Ok(Connected { shared, store_port, console_port, timer_port })
}

impl Life for RealLife<'_> {
    fn shared_info(&self) -> &ArchSharedInfo {
        &self.shared().arch
    }

    fn ring(&self) -> &StoreRing {
        self.ring
    }

    fn notify_store(&self) {
        // A port that Xen refuses means that nobody listens; the answer that never comes says so.
        let _ = Xen::notify(self.connected.store_port);
    }

    fn now(&self) -> Nanoseconds {
        Nanoseconds(events::now(self.shared()).unwrap_or_default())
    }

    fn wait(&self, deadline: Nanoseconds) {
        if events::wait(deadline.0.max(1)).is_err() {
            Xen::yield_now();
        }
    }

    fn suspend(&mut self) -> Result<Return, SuspendError> {
        self.away.begun = self.xen.ticks();
        let stopped = self.stop();
        let resumed = stopped.as_ref().ok().copied();
        self.reconnect(resumed).map_err(SuspendError::Lost)?;
        match stopped {
            Ok(Resumed::Restored) => Ok(Return::Restored),
            Ok(Resumed::Cancelled) => Ok(Return::Cancelled),
            Err(reason) => Err(SuspendError::NotSuspended(reason)),
        }
    }

    fn away(&self) -> Away {
        self.away
    }

    fn end(&self, way: Way) {
        console::end_with(match way {
            Way::Poweroff => ShutdownReason::Poweroff,
            Way::Reboot => ShutdownReason::Reboot,
            Way::Crash => ShutdownReason::Crash,
        });
    }
}

const _: () = assert!(size_of::<StoreRing>() <= 1 << PAGE_SHIFT);
