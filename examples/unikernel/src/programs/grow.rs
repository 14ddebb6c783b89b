//! `grow`: the frame map moves into its window and grows there, with every kind of entry, on the
//! machine it runs on; what each step costs, and an audit at the end. With `stay` the guest then
//! waits to be examined from outside, as `dump` does; `pfns=N` grows by so many and not by 1 GiB.
#![expect(unsafe_code, reason = "changes mappings of frames and addresses that are the program's")]

use alloc::format;
use alloc::string::String;

use hypercall::memory::{Extent, MemoryOp, Reservation};
use hypercall::{
    Batch, BatchStorage, Call, Cpu, DomId, Frame, FrameAccess as _, FrameSource as _, GuestVa,
    Machine, Mfn, Pfn, Pte, Request, VaFlush, VaMapping,
};
use p2m::kexec::KexecState;
use p2m::window::WindowPlace;
use p2m::{FrameList, Guest, P2m, P2mError, Pfns, Toolstack, Window};

use super::OrSay;
use super::audit::{Published, audit};
use super::dump::wait_to_be_examined;
use super::publish::{builder_list, places};
use crate::program::{Kernel, number};
use crate::report::{Steps, Verdict};

/// Where the window is: the first address of a root slot that no builder uses.
const WINDOW: u64 = 0xffff_9000_0000_0000;
/// Pfns in a GiB.
const GIB: u64 = 1 << 18;
/// How far the map can grow: 2 TiB.
const CAPACITY: u64 = 2048 * GIB;
/// How far it grows in the end.
const TERABYTE: u64 = 1024 * GIB;
/// The most hypercalls that growth by 1 GiB may take.
const GROWTH_MAX: u64 = 5;
/// Whose frame is said to be mapped: nobody's, so that nothing is.
const NEIGHBOUR: DomId = DomId(77);

type Storage = BatchStorage<512, 8>;

/// Runs the program.
pub(super) fn run<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Verdict {
    let mut steps = Steps::begin(kernel).or_say("console")?;
    let mut storage = Storage::new();
    let mut batch = storage.batch();
    let builders = kernel.guest.p2m();
    let (p2m, mut window) = open(kernel, &mut batch)?;
    steps.done(kernel, "open the window").or_say("console")?;
    compare(builders, &p2m)?;
    let kernel = &mut kernel.on_map(&p2m);
    steps.done(kernel, &format!("compare {} words", p2m.len())).or_say("console")?;

    let toolstack = Toolstack::new(kernel.platform.shared_info()?);
    let root = p2m.mfn(kernel.guest.kernel_root()).or_say("the root")?;
    // SAFETY: the map's list is in the window, which every root has.
    unsafe { toolstack.publish_list(&p2m, window.va(), root) }.or_say("linear list")?;
    let mut places = places(p2m.len() + 2 * GIB);
    let top = kernel.pool.take().ok_or("the pool is empty")?;
    let mut frame_list = FrameList::new(top, &mut places);
    frame_list.build(&kernel.guest, &window, &mut kernel.pool).or_say("frame list")?;
    let top = frame_list.top(&p2m).or_say("frame list")?;
    // SAFETY: it was built of the window's pages, and is refreshed after them.
    unsafe { toolstack.publish_frame_list(&p2m, Some(top)) };
    steps.done(kernel, "publish both lists").or_say("console")?;

    let built = p2m.len();
    let new = Pfns::new(Pfn::new(built), number(kernel.arguments, "pfns", GIB)?.max(1024));
    let cost = grow(kernel, &mut window, &toolstack, new, &mut batch)?;
    frame_list.refresh(&kernel.guest, &window, new, &mut kernel.pool).or_say("frame list")?;
    steps.done(kernel, &format!("grow by {} pfns, reserve them", new.count)).or_say("console")?;

    let moved = use_entries(kernel, new)?;
    steps.done(kernel, "give new pfns memory, marks and holes").or_say("console")?;
    let (list, toolstack) = (Some(window.va()), &toolstack);
    let tree = Some(&frame_list);
    audit(kernel, &Published { toolstack, list, frame_list: tree, leaves: &window })?;
    say_hazards(kernel, built)?;
    if kernel.arguments.split_whitespace().any(|word| word == "stay") {
        p2m.dump(kernel.console).or_say("console")?;
        return wait_to_be_examined(kernel, toolstack);
    }
    put_back(kernel, new, moved)?;

    grow_far(kernel, &mut window, toolstack, &mut batch)?;
    steps.done(kernel, "grow to 1 TiB, 3 GiB of it identity").or_say("console")?;
    audit(kernel, &Published { toolstack, list, frame_list: None, leaves: &window })?;
    steps.done(kernel, "audit a sparse terabyte").or_say("console")?;
    steps.end(kernel).or_say("console")?;
    Ok(format!("growth took {cost} hypercalls; {}", steps.summary()))
}

/// Grows the map to a terabyte, too long for a frame list, with a hole for devices at its end.
fn grow_far<M: Machine + Cpu>(
    kernel: &mut Kernel<'_, M>,
    window: &mut Window,
    toolstack: &Toolstack<'_>,
    batch: &mut Batch<'_>,
) -> Result<(), String> {
    let (guest, pool) = (kernel.guest, &mut kernel.pool);
    // SAFETY: there is no list to overwrite.
    unsafe { toolstack.publish_frame_list(guest.p2m(), None) };
    window.grow(&guest, Some(toolstack), TERABYTE, batch).or_say("grow")?;
    let devices = Pfns::new(Pfn::new(TERABYTE - 3 * GIB - 100), 3 * GIB + 50);
    // SAFETY: nothing will map the frames.
    unsafe { window.reserve_identity(&guest, Some(toolstack), devices, pool, batch) }
        .or_say("identity")?;
    guest.p2m().dump(kernel.console).or_say("console")
}

/// Maps the builder's list in the window.
pub(super) fn open<'a, M: Machine + Cpu>(
    kernel: &mut Kernel<'a, M>,
    batch: &mut Batch<'_>,
) -> Result<(P2m<'a>, Window), String> {
    let va = GuestVa::new(WINDOW).or_say("the window")?;
    let words = kernel.platform.words(va).ok_or("this program does not run on its own tables")?;
    let place = WindowPlace { va, words, capacity: CAPACITY };
    let needed = Window::frames_needed(kernel.guest.p2m().len(), CAPACITY);
    let frames = kernel.pool.take_run(needed).ok_or("the pool has no such run")?;
    let list = builder_list(kernel)?;
    // SAFETY: the builder leaves this slot free, nothing else here uses it, and no address space
    // but the kernel's exists; the builder's list is followed by nothing in its last page.
    unsafe { Window::open(&kernel.guest, list, place, frames, batch) }.or_say("open")
}

/// Both maps say the same of every pfn.
fn compare(builders: &P2m<'_>, p2m: &P2m<'_>) -> Result<(), String> {
    for pfn in builders.all().iter() {
        if builders.entry(pfn) != p2m.entry(pfn) {
            return Err(format!("pfn {pfn}: {:?} in the window", p2m.entry(pfn)));
        }
    }
    match p2m.len() == builders.len() {
        true => Ok(()),
        false => Err(format!("{} pfns in the window", p2m.len())),
    }
}

/// Grows the map over `new`, and reserves it. How many hypercalls that took.
fn grow<M: Machine + Cpu>(
    kernel: &mut Kernel<'_, M>,
    window: &mut Window,
    toolstack: &Toolstack<'_>,
    new: Pfns,
    batch: &mut Batch<'_>,
) -> Result<u64, String> {
    let (guest, toolstack) = (kernel.guest, Some(toolstack));
    let before = guest.machine().counts();
    window.grow(&guest, toolstack, new.end(), batch).or_say("grow")?;
    let last = Pfn::new(new.end() - 1);
    // SAFETY: it is refused, and the pfn is nobody's.
    let refused = unsafe { guest.p2m().populate(last, Mfn::new(1)) };
    if refused != Err(P2mError::NotReserved(last)) {
        return Err(format!("pfn {last} has no memory for its word: {refused:?}"));
    }
    window.reserve(&guest, toolstack, new, &mut kernel.pool, batch).or_say("reserve")?;
    match (guest.machine().counts() - before).hypercalls {
        cost @ 0..=GROWTH_MAX => Ok(cost),
        cost => Err(format!("growth took {cost} hypercalls, {GROWTH_MAX} are allowed")),
    }
}

/// Moves a page's memory to a new pfn, marks one foreign, and a few as identity.
fn use_entries<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>, new: Pfns) -> Result<Frame, String> {
    let (guest, p2m) = (&kernel.guest, kernel.guest.p2m());
    let given = kernel.pool.take().ok_or("the pool is empty")?;
    set_mapping(guest, given.pfn(), Pte::ABSENT)?;
    give(guest, given.pfn())?;
    take(guest, new.start)?;
    let end = Pfn::new(new.end() - 1);
    // SAFETY: a pfn that nobody has; nothing will map the frame.
    unsafe { p2m.set_foreign(end, NEIGHBOUR, Mfn::new(1)) }.or_say("foreign")?;
    let identity = Pfns::new(Pfn::new(new.end() - 600), 500);
    // SAFETY: pfns that nobody has; nothing will map the frames.
    unsafe { p2m.set_identity(identity) }.or_say("identity")?;
    Ok(given)
}

/// Undoes [`use_entries`].
fn put_back<M: Machine + Cpu>(
    kernel: &mut Kernel<'_, M>,
    new: Pfns,
    given: Frame,
) -> Result<(), String> {
    let guest = &kernel.guest;
    // SAFETY: marked by `use_entries`, and mapped nowhere.
    unsafe { guest.p2m().clear_foreign(Pfn::new(new.end() - 1)) }.or_say("foreign")?;
    give(guest, new.start)?;
    let mfn = take(guest, given.pfn())?;
    let flags = guest.machine().offered(hypercall::PteFlags::KERNEL_RW);
    set_mapping(guest, given.pfn(), Pte::new(mfn, flags))?;
    kernel.pool.give(given);
    Ok(())
}

/// Sets the entry of `pfn` in the direct mapping.
fn set_mapping(guest: &Guest<'_, impl Machine>, pfn: Pfn, pte: Pte) -> Result<(), String> {
    let machine = guest.machine();
    let va = machine.direct_map(pfn).or_say("direct mapping")?.addr();
    let mapping = VaMapping { va, pte, flush: VaFlush::PageAll };
    let mut calls = [Call::new(Request::VaMapping(mapping))];
    // SAFETY: the page is the program's, taken from the pool, and not used.
    unsafe { machine.issue(&mut calls) }.or_say("mapping")?;
    calls[0].result().or_say("mapping")
}

/// Gives the memory behind `pfn` back to Xen.
fn give(guest: &Guest<'_, impl Machine>, pfn: Pfn) -> Result<(), String> {
    let (machine, p2m) = (guest.machine(), guest.p2m());
    let mut extents = [Extent::from_mfn(p2m.mfn(pfn).or_say("give")?)];
    let (order, flags, domain) = (0, 0, DomId::SELF);
    let list = Reservation { extents: &mut extents, order, flags, domain };
    // SAFETY: the page is the program's, and nothing maps it.
    let done = unsafe { machine.memory_op(&mut MemoryOp::Decrease(list)) }.or_say("decrease")?;
    if done != 1 {
        return Err(format!("Xen does not take pfn {pfn} back"));
    }
    // SAFETY: Xen has just taken the memory, and nothing maps it.
    unsafe { p2m.depopulate(pfn) }.map(drop).or_say("depopulate")
}

/// Asks Xen for memory behind `pfn`.
fn take(guest: &Guest<'_, impl Machine>, pfn: Pfn) -> Result<Mfn, String> {
    let (machine, p2m) = (guest.machine(), guest.p2m());
    let mut extents = [Extent::from_pfn(pfn)];
    let (order, flags, domain) = (0, 0, DomId::SELF);
    let list = Reservation { extents: &mut extents, order, flags, domain };
    // SAFETY: a pfn that has nothing.
    let done = unsafe { machine.memory_op(&mut MemoryOp::Populate(list)) }.or_say("populate")?;
    if done != 1 {
        return Err(format!("Xen has no memory for pfn {pfn}"));
    }
    let mfn = extents[0].mfn();
    // SAFETY: Xen has just put the frame behind the pfn, which is the program's.
    unsafe { p2m.populate(pfn, mfn) }.or_say("populate")?;
    match guest.pfn(mfn) {
        Ok(back) if back == pfn => Ok(mfn),
        other => Err(format!("Xen gave mfn {mfn} for pfn {pfn}, and M2P says {other:?}")),
    }
}

/// What stands in the way of a kexec now: the page given away and the foreign mark.
fn say_hazards<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>, built: u64) -> Result<(), String> {
    let ram = [Pfns::new(Pfn::new(0), built)];
    let state = KexecState { p2m: kernel.guest.p2m(), ram: &ram, granted: None, maps: None };
    match state.kexec_is_safe() {
        Err(hazards) if (hazards.ballooned, hazards.foreign) == (1, 1) => {
            writeln!(kernel.console, "{hazards}").or_say("console")
        }
        other => Err(format!("a page was given away, one is foreign, and kexec says {other:?}")),
    }
}
