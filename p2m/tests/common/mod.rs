//! How tests of the window begin.
#![allow(dead_code, reason = "each test program uses a part of it")]

use hypercall::{BatchStorage, Frames};
use p2m::audit::Audit;
use p2m::{P2m, Window};
use pv_tests::window::{WindowMachine, WindowPool};

pub(crate) type Storage = BatchStorage<512, 4>;

/// Frames for the window, and a pool of the rest.
pub(crate) fn split(machine: &WindowMachine) -> (Frames, WindowPool) {
    let needed = Window::frames_needed(machine.boot.pages, machine.capacity);
    let (window, rest) = machine.frames().split(needed).expect("enough frames");
    (window, WindowPool::new(rest))
}

pub(crate) fn opened<'a>(machine: &'a WindowMachine, frames: Frames) -> (P2m<'a>, Window) {
    machine.open(machine, frames, &mut Storage::new().batch()).expect("open")
}

/// Nothing is wrong with the map.
pub(crate) fn audit(machine: &WindowMachine, p2m: &P2m<'_>) {
    let mut findings = [None; 4];
    let mut audit = Audit::begin(&mut findings);
    audit.run(&machine.guest(machine, p2m));
    assert!(audit.report().is_clean(), "{}", audit.report());
}
