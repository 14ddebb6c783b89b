//! `disk`: a virtio disk, read and written by the driver of crate `virtio-drivers` over this
//! project's DMA: once with buffers as they are, as far as the device may have them, and once with
//! every buffer bounced. The checksums it prints are compared with the image file from outside.

use alloc::format;
use alloc::string::String;
use alloc::vec;

use hypercall::middleware::Counting;
use hypercall::{Cpu, Machine};
use swiotlb::hal::DeviceDma;
use swiotlb::{Bounce, BusAddr, Counters, Device, Dma, DmaMask, Pool};
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::pci::PciTransport;

use super::memory::{Places, Room, close};
use super::pci::{self, PciId};
use super::registers::Registers;
use super::shared::{Current, Hal};
use crate::program::{Kernel, number};
use crate::programs::OrSay;
use crate::report::{Steps, Verdict};

/// Vendor and number of a virtio 1.0 disk (virtio 1.2, 4.1.2).
const DISK: PciId = PciId { vendor: 0x1af4, device: 0x1042 };
/// Sectors of a request: 64 KiB, which needs a long run of slots when it is bounced.
const AT_ONCE: usize = 128;

/// Runs the program.
pub(in crate::programs) fn run<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Verdict {
    let seed = number(kernel.arguments, "seed", 1)?;
    let mut steps = Steps::begin(kernel).or_say("console")?;
    let found = pci::find(kernel.platform.ports()?, DISK)?;
    let registers = Registers::map(kernel, found.start, found.len_bytes)?;
    let mut room = Room::new();
    let places = Places::new(4);
    let pool = places.pool(kernel, &mut room, DmaMask::bits(32))?;
    steps.done(kernel, "find the disk, gather a pool of 1 MiB").or_say("console")?;

    let mut root = found.root;
    let start = BusAddr::from_raw(found.start);
    for (bounce, what) in [(Bounce::IfNeeded, "directly"), (Bounce::Always, "bounced")] {
        let before = pool.counters();
        let device = Device { bounce, ..Device::new(DmaMask::bits(32)) };
        let lines = {
            let operations = DeviceDma { dma: dma(kernel, &pool), device };
            let current = Current {
                operations: &operations,
                platform: kernel.platform,
                registers: &registers,
                start,
            };
            current.at(|| {
                let transport = PciTransport::new::<Hal, _>(&mut root, found.function);
                let mut disk = Disk::new(transport.or_say("transport")?).or_say("disk")?;
                work(&mut disk, seed + u64::from(bounce == Bounce::Always))
            })?
        };
        writeln!(kernel.console, "{lines}").or_say("console")?;
        check(bounce, before, pool.counters())?;
        let step = format!("read all, write half, read again: {what}");
        steps.done(kernel, &step).or_say("console")?;
    }
    writeln!(kernel.console, "{:?}", pool.counters()).or_say("console")?;
    close(kernel, &mut room, pool)?;
    let frames = registers.unmap(kernel.guest.machine(), kernel.guest.p2m())?;
    kernel.pool.give_run(frames);
    steps.done(kernel, "give everything back").or_say("console")?;
    steps.end(kernel).or_say("console")?;
    Ok(steps.summary())
}

type Disk = VirtIOBlk<Hal, PciTransport>;

fn dma<'a, 'm, M>(kernel: &'a Kernel<'_, M>, pool: &'a Pool<'m>) -> Dma<'a, 'm, Counting<&'a M>> {
    Dma { guest: kernel.guest, pool, vcpu: 0 }
}

/// Reads the whole disk, writes its second half, and reads that back. What is to be compared from
/// outside: where, how much, and a checksum.
fn work(disk: &mut Disk, seed: u64) -> Result<String, String> {
    let sectors = usize::try_from(disk.capacity()).or_say("capacity")?;
    let half = sectors / 2;
    let read = checksum(disk, 0..sectors)?;
    let mut written = crc32fast::Hasher::new();
    let mut bytes = vec![0; AT_ONCE * SECTOR_SIZE];
    for first in (half..sectors).step_by(AT_ONCE) {
        let count = AT_ONCE.min(sectors - first);
        let bytes = &mut bytes[..count * SECTOR_SIZE];
        super::edu::fill(seed.wrapping_add(first as u64), bytes);
        disk.write_blocks(first, bytes).or_say("write")?;
        written.update(bytes);
    }
    disk.flush().or_say("flush")?;
    let written = written.finalize();
    match checksum(disk, half..sectors)? {
        same if same == written => Ok(format!(
            "PVMMU-DISK read 0 {sectors} {read:08x}\nPVMMU-DISK wrote {half} {} {written:08x}",
            sectors - half
        )),
        other => Err(format!("wrote {written:08x} and read back {other:08x}")),
    }
}

/// The checksum of some sectors.
fn checksum(disk: &mut Disk, range: core::ops::Range<usize>) -> Result<u32, String> {
    let mut sum = crc32fast::Hasher::new();
    let mut bytes = vec![0; AT_ONCE * SECTOR_SIZE];
    for first in range.clone().step_by(AT_ONCE) {
        let bytes = &mut bytes[..AT_ONCE.min(range.end - first) * SECTOR_SIZE];
        disk.read_blocks(first, bytes).or_say("read")?;
        sum.update(bytes);
    }
    Ok(sum.finalize())
}

/// The pool saw what it should have seen, and nothing is left.
fn check(bounce: Bounce, before: Counters, after: Counters) -> Result<(), String> {
    let direct = after.direct_maps - before.direct_maps;
    let bounced = after.bytes_to_device - before.bytes_to_device;
    let right = match bounce {
        Bounce::IfNeeded => direct > 0,
        Bounce::Always => direct == 0 && bounced > 0,
    };
    match right && after.slots_used == 0 && after.direct_now() == 0 && after.misuse == 0 {
        true => Ok(()),
        false => Err(format!("the pool went from {before:?} to {after:?}")),
    }
}
