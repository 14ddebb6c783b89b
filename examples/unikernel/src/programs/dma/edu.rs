//! `edu`: QEMU's teaching device, whose DMA engine knows 28 address bits, moves bytes between its
//! own buffer and the guest's memory: from buffers that it cannot reach through the bounce pool,
//! and from contiguous memory directly. Every byte is compared, and the bytes around them.
#![expect(unsafe_code, reason = "gives the device buffers in frames of its own")]

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use hypercall::middleware::Counting;
use hypercall::{Cpu, FrameAccess, Machine, PAGE_SIZE, Pfn};
use swiotlb::direction::{Bidirectional, Direction, FromDevice, ToDevice};
use swiotlb::{Bounce, Buffer, BusAddr, Device, Dma, DmaMapping, DmaMask, GuestBytes};

use super::memory::{Places, Room, close, out_of_reach};
use super::pci::{self, PciId};
use super::registers::Registers;
use crate::program::Kernel;
use crate::programs::OrSay;
use crate::report::{Steps, Verdict};

/// Vendor and number (QEMU, docs/specs/edu.rst).
const EDU: PciId = PciId { vendor: 0x1234, device: 0x11e8 };
/// What its identification register says in the low bytes.
const IDENTITY: u32 = 0xed;
/// Where its own buffer is, for its DMA engine.
const BUFFER: u64 = 0x4_0000;
/// Bytes of it.
const BUFFER_BYTES: usize = 4096;
/// Its address bits.
const MASK: DmaMask = DmaMask::bits(28);

mod register {
    pub(super) const IDENTITY: usize = 0x00;
    pub(super) const LIVENESS: usize = 0x04;
    pub(super) const SOURCE: usize = 0x80;
    pub(super) const TARGET: usize = 0x88;
    pub(super) const COUNT: usize = 0x90;
    pub(super) const COMMAND: usize = 0x98;
}

const START: u64 = 1;
const TO_MEMORY: u64 = 2;

/// Offset in its frames and length of the buffers: aligned and not, across frames, one byte to all.
const SHAPES: [(usize, usize); 9] = [
    (0, 4096),
    (0, 2048),
    (1, 2047),
    (2047, 2),
    (4095, 2),
    (3000, 4096),
    (5, 1),
    (4096, 4000),
    (123, 3456),
];

type Around<'a, 'm, M> = Dma<'a, 'm, Counting<&'a M>>;

/// Runs the program.
pub(in crate::programs) fn run<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Verdict {
    let ports = kernel.platform.ports()?;
    let found = pci::find(ports, EDU)?;
    let mut steps = Steps::begin(kernel).or_say("console")?;
    let edu = Edu(Registers::map(kernel, found.start, PAGE_SIZE as u64)?);
    edu.identify()?;
    steps.done(kernel, "find the device, map its registers").or_say("console")?;

    let mut room = Room::new();
    let frames = out_of_reach(kernel, 3, MASK)?;
    let near = kernel.pool.take_run(64).ok_or("the frames are no run")?;
    let near = room.gather(kernel.guest, near, 6, MASK)?;
    steps.done(kernel, "gather 256 KiB below 256 MiB").or_say("console")?;
    let places = Places::new(4);
    let pool = places.pool(kernel, &mut room, MASK)?;
    steps.done(kernel, "gather a pool of 1 MiB").or_say("console")?;

    let dma = Dma { guest: kernel.guest, pool: &pool, vcpu: 0 };
    let device = Device::new(MASK);
    let mut bytes = 0;
    for (round, (offset, len_bytes)) in SHAPES.into_iter().enumerate() {
        let trip = Trip { edu: &edu, dma, device, seed: round as u64 };
        bytes += trip.there_and_back(frames.start(), offset, len_bytes, Copied::Yes)?;
    }
    steps.done(kernel, "buffers out of reach, bounced").or_say("console")?;
    let dma = Dma { guest: kernel.guest, pool: &pool, vcpu: 1 };
    for (round, (offset, len_bytes)) in SHAPES.into_iter().enumerate() {
        let trip = Trip { edu: &edu, dma, device, seed: 100 + round as u64 };
        bytes += trip.there_and_back(near.start(), offset, len_bytes, Copied::No)?;
        let device = Device { bounce: Bounce::Always, same_bits: 4095, ..device };
        let trip = Trip { device, seed: 200 + round as u64, ..trip };
        bytes += trip.there_and_back(near.start(), offset, len_bytes, Copied::Yes)?;
    }
    steps.done(kernel, "contiguous memory, direct and forced").or_say("console")?;
    let dma = Dma { guest: kernel.guest, pool: &pool, vcpu: 0 };
    bytes += coherent(&edu, &dma)?;
    partly(&edu, &dma, frames.start())?;
    steps.done(kernel, "coherent memory, parts of a mapping").or_say("console")?;
    let counters = pool.counters();
    writeln!(kernel.console, "{counters:?}").or_say("console")?;
    if counters.misuse + counters.full + counters.too_large != 0 {
        return Err(format!("the pool counts failures: {counters:?}"));
    }
    close(kernel, &mut room, pool)?;
    let near = room.scatter(kernel.guest, near)?;
    kernel.pool.give_run(near);
    kernel.pool.give_run(frames);
    let registers = edu.0.unmap(kernel.guest.machine(), kernel.guest.p2m())?;
    kernel.pool.give_run(registers);
    steps.done(kernel, "give everything back").or_say("console")?;
    steps.end(kernel).or_say("console")?;
    Ok(format!("{bytes} bytes compared, {} bounced; {}", counters.taken, steps.summary()))
}

/// Whether a mapping should be bounced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copied {
    Yes,
    No,
}

/// The device.
struct Edu(Registers);

impl Edu {
    fn identify(&self) -> Result<(), String> {
        let identity = self.0.read(register::IDENTITY)?;
        self.0.write(register::LIVENESS, 0x1234_5678)?;
        let answer = self.0.read(register::LIVENESS)?;
        match (identity & 0xff, answer) {
            (IDENTITY, 0xedcb_a987) => Ok(()),
            _ => Err(format!("no edu device: it says {identity:#x} and {answer:#x}")),
        }
    }

    /// Moves bytes between the device's buffer and memory, and waits for the end.
    fn transfer(&self, from: u64, to: u64, len_bytes: usize, way: u64) -> Result<(), String> {
        self.0.write_long(register::SOURCE, from)?;
        self.0.write_long(register::TARGET, to)?;
        self.0.write_long(register::COUNT, len_bytes as u64)?;
        self.0.write_long(register::COMMAND, START | way)?;
        // The harness ends a guest that waits for ever.
        while self.0.read_long(register::COMMAND)? & START != 0 {
            core::hint::spin_loop();
        }
        Ok(())
    }

    fn read_memory(&self, start: BusAddr, len_bytes: usize) -> Result<(), String> {
        self.transfer(start.raw(), BUFFER, len_bytes, 0)
    }

    fn write_memory(&self, start: BusAddr, len_bytes: usize) -> Result<(), String> {
        self.transfer(BUFFER, start.raw(), len_bytes, TO_MEMORY)
    }
}

/// One buffer's way into the device and back.
#[derive(Clone, Copy)]
struct Trip<'a, 'm, M> {
    edu: &'a Edu,
    dma: Around<'a, 'm, M>,
    device: Device,
    seed: u64,
}

impl<M: Machine> Trip<'_, '_, M> {
    /// To the device, then back into the same frames, filled with something else meanwhile.
    fn there_and_back(
        &self,
        first: Pfn,
        offset: usize,
        len_bytes: usize,
        copied: Copied,
    ) -> Result<usize, String> {
        let all = GuestBytes { pfn: first, offset: 0, len_bytes: 3 * PAGE_SIZE };
        let place = GuestBytes { pfn: first, offset, len_bytes };
        let sent = pattern(self.seed, all.len_bytes);
        write(self.dma.guest.machine(), all, &sent)?;
        let mapping: DmaMapping<ToDevice> = self.map(place, copied)?;
        self.edu.read_memory(mapping.bus(), len_bytes)?;
        self.unmap(mapping)?;
        self.compare(all, &sent, "the device only reads")?;

        let mut expected = pattern(!self.seed, all.len_bytes);
        write(self.dma.guest.machine(), all, &expected)?;
        let mapping: DmaMapping<FromDevice> = self.map(place, copied)?;
        self.edu.write_memory(mapping.bus(), len_bytes)?;
        self.unmap(mapping)?;
        expected[offset..offset + len_bytes].copy_from_slice(&sent[offset..offset + len_bytes]);
        self.compare(all, &expected, "it writes the buffer and nothing else")?;
        Ok(2 * all.len_bytes)
    }

    fn map<D: Direction>(
        &self,
        place: GuestBytes,
        copied: Copied,
    ) -> Result<DmaMapping<D>, String> {
        // SAFETY: frames of the program's pool, which it touches by copies alone (I-11).
        let buffer = unsafe { Buffer::claim(place) };
        let mapping = self.dma.map::<D>(&self.device, buffer).or_say("map")?;
        let found = if mapping.is_bounced() { Copied::Yes } else { Copied::No };
        let reached = self.device.mask.reaches(mapping.bus(), place.len_bytes as u64);
        let bits = self.device.same_bits as u64;
        let kept = mapping.bus().raw() & bits == place.offset as u64 & bits;
        match found == copied && reached && kept {
            true => Ok(mapping),
            false => Err(format!("{place:?} became {mapping:?}, copied should be {copied:?}")),
        }
    }

    fn unmap<D: Direction>(&self, mapping: DmaMapping<D>) -> Result<(), String> {
        self.dma.unmap(mapping).map(drop).or_say("unmap")
    }

    fn compare(&self, place: GuestBytes, expected: &[u8], what: &str) -> Result<(), String> {
        same(&read(self.dma.guest.machine(), place)?, expected).or_say(what)
    }
}

/// The device works on coherent memory: it reads what is written without any call.
fn coherent<M: Machine>(edu: &Edu, dma: &Around<'_, '_, M>) -> Result<usize, String> {
    let memory = dma.coherent(3, MASK).or_say("coherent memory")?;
    let all = GuestBytes { pfn: memory.pfn(), offset: 0, len_bytes: 3 * PAGE_SIZE };
    same(&read(dma.guest.machine(), all)?, &vec![0; all.len_bytes])
        .or_say("coherent memory is zeroes")?;
    let mut sent = pattern(77, all.len_bytes);
    write(dma.guest.machine(), all, &sent)?;
    edu.read_memory(memory.bus(), BUFFER_BYTES)?;
    let last = BusAddr::from_raw(memory.bus().raw() + 2 * PAGE_SIZE as u64);
    edu.write_memory(last, BUFFER_BYTES)?;
    let (first, rest) = sent.split_at_mut(2 * PAGE_SIZE);
    rest.copy_from_slice(&first[..PAGE_SIZE]);
    same(&read(dma.guest.machine(), all)?, &sent).or_say("coherent memory")?;
    dma.free_coherent(memory).or_say("free")?;
    Ok(2 * all.len_bytes)
}

/// A mapping in both directions, of which parts are shown and fetched while it lasts.
fn partly<M: Machine>(edu: &Edu, dma: &Around<'_, '_, M>, first: Pfn) -> Result<(), String> {
    let place = GuestBytes { pfn: first, offset: 40, len_bytes: 4000 };
    let mut expected = pattern(5, 4000);
    write(dma.guest.machine(), place, &expected)?;
    // SAFETY: as in `Trip::map`.
    let buffer = unsafe { Buffer::claim(place) };
    let device = Device::new(MASK);
    let mut mapping = dma.map::<Bidirectional>(&device, buffer).or_say("map")?;
    edu.read_memory(mapping.bus(), 4000)?;
    // The CPU changes all of it, and shows the device only the middle.
    let changed = pattern(6, 4000);
    write(dma.guest.machine(), place, &changed)?;
    dma.sync_for_device(&mapping, 1000..3000).or_say("sync for the device")?;
    edu.read_memory(mapping.bus(), 4000)?;
    expected[1000..3000].copy_from_slice(&changed[1000..3000]);
    edu.write_memory(mapping.bus(), 4000)?;
    // Of what the device wrote the CPU first fetches the last quarter.
    dma.sync_for_cpu(&mut mapping, 3000..4000).or_say("sync for the CPU")?;
    let mut partly = changed;
    partly[3000..].copy_from_slice(&expected[3000..]);
    same(&read(dma.guest.machine(), place)?, &partly).or_say("a part of a mapping")?;
    dma.unmap(mapping).map(drop).or_say("unmap")?;
    same(&read(dma.guest.machine(), place)?, &expected).or_say("the whole mapping")
}

/// Fills bytes with what no other seed makes.
pub(super) fn fill(seed: u64, bytes: &mut [u8]) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for byte in bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state.to_le_bytes()[3];
    }
}

fn pattern(seed: u64, len_bytes: usize) -> Vec<u8> {
    let mut bytes = vec![0; len_bytes];
    fill(seed, &mut bytes);
    bytes
}

/// The pieces of a place that lie in one frame each: pfn, offset, and where in the bytes.
fn pieces(place: GuestBytes) -> impl Iterator<Item = (Pfn, usize, core::ops::Range<usize>)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        let at = place.offset + done;
        let (pfn, offset) = (place.pfn.raw() + (at / PAGE_SIZE) as u64, at % PAGE_SIZE);
        let range = done..place.len_bytes.min(done + PAGE_SIZE - offset);
        done = range.end;
        (!range.is_empty()).then_some((Pfn::new(pfn), offset, range))
    })
}

fn write<M: FrameAccess>(machine: &M, place: GuestBytes, bytes: &[u8]) -> Result<(), String> {
    for (pfn, offset, range) in pieces(place) {
        // SAFETY: frames of the program's own (I-1).
        unsafe { machine.write_bytes(pfn, offset, &bytes[range]) }.or_say("write")?;
    }
    Ok(())
}

fn read<M: FrameAccess>(machine: &M, place: GuestBytes) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; place.len_bytes];
    for (pfn, offset, range) in pieces(place) {
        machine.read_bytes(pfn, offset, &mut bytes[range]).or_say("read")?;
    }
    Ok(bytes)
}

fn same(found: &[u8], expected: &[u8]) -> Result<(), String> {
    match found.iter().zip(expected).position(|(found, expected)| found != expected) {
        Some(at) => Err(format!("byte {at} is {:#x}, not {:#x}", found[at], expected[at])),
        None if found.len() == expected.len() => Ok(()),
        None => Err(format!("{} bytes, not {}", found.len(), expected.len())),
    }
}
