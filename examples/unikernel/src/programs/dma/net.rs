//! `net`: a virtio network card, by the driver of crate `virtio-drivers` over this project's DMA,
//! every buffer bounced: it asks its gateway for its address (ARP) and gets the answer.

use alloc::format;
use alloc::string::String;

use hypercall::{Cpu, Machine};
use swiotlb::hal::DeviceDma;
use swiotlb::{Bounce, BusAddr, Device, Dma, DmaMask};
use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::transport::pci::PciTransport;

use super::memory::{Places, Room, close};
use super::pci::{self, PciId};
use super::registers::Registers;
use super::shared::{Current, Hal};
use crate::program::Kernel;
use crate::programs::OrSay;
use crate::report::{Steps, Verdict};

/// Vendor and number of a virtio 1.0 network card (virtio 1.2, 4.1.2).
const NET: PciId = PciId { vendor: 0x1af4, device: 0x1041 };
/// Buffers in a queue.
const QUEUE: usize = 16;
/// QEMU's user network: this guest, and its gateway.
const OWN: [u8; 4] = [10, 0, 2, 15];
const GATEWAY: [u8; 4] = [10, 0, 2, 2];

type Net = VirtIONetRaw<Hal, PciTransport, QUEUE>;

/// Runs the program.
pub(in crate::programs) fn run<M: Machine + Cpu>(kernel: &mut Kernel<'_, M>) -> Verdict {
    let mut steps = Steps::begin(kernel).or_say("console")?;
    let found = pci::find(kernel.platform.ports()?, NET)?;
    let registers = Registers::map(kernel, found.start, found.len_bytes)?;
    let mut room = Room::new();
    let places = Places::new(2);
    let mask = DmaMask::bits(32);
    let pool = places.pool(kernel, &mut room, mask)?;
    steps.done(kernel, "find the card, gather a pool of 512 KiB").or_say("console")?;
    let mut root = found.root;
    let answer = {
        let dma = Dma { guest: kernel.guest, pool: &pool, vcpu: 0 };
        let device = Device { bounce: Bounce::Always, ..Device::new(mask) };
        let operations = DeviceDma { dma, device };
        let current = Current {
            operations: &operations,
            platform: kernel.platform,
            registers: &registers,
            start: BusAddr::from_raw(found.start),
        };
        current.at(|| {
            let transport = PciTransport::new::<Hal, _>(&mut root, found.function);
            let mut net = Net::new(transport.or_say("transport")?).or_say("card")?;
            ask(&mut net)
        })?
    };
    steps.done(kernel, "ask for the gateway's address").or_say("console")?;
    writeln!(kernel.console, "{:?}", pool.counters()).or_say("console")?;
    close(kernel, &mut room, pool)?;
    let frames = registers.unmap(kernel.guest.machine(), kernel.guest.p2m())?;
    kernel.pool.give_run(frames);
    steps.end(kernel).or_say("console")?;
    Ok(format!("{answer}; {}", steps.summary()))
}

/// Sends an ARP request for the gateway (RFC 826) and waits for its answer.
fn ask(net: &mut Net) -> Result<String, String> {
    let own = net.mac_address();
    let mut request = [0; 60];
    request[..6].fill(0xff);
    request[6..12].copy_from_slice(&own);
    // ARP, Ethernet and IPv4, addresses of 6 and 4 bytes, a request.
    request[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request[22..28].copy_from_slice(&own);
    request[28..32].copy_from_slice(&OWN);
    request[38..42].copy_from_slice(&GATEWAY);
    net.send(&request).or_say("send")?;
    let mut frame = [0; 2048];
    // Others may speak too; the harness ends a guest that hears nothing.
    loop {
        let (header, len_bytes) = net.receive_wait(&mut frame).or_say("receive")?;
        let Some(packet) = frame.get(header..header + len_bytes) else { continue };
        if packet.len() >= 42 && packet[12..22] == [8, 6, 0, 1, 8, 0, 6, 4, 0, 2] {
            let [a, b, c, d, e, f] = [0, 1, 2, 3, 4, 5].map(|at| packet[22 + at]);
            return match packet[..6] == own && packet[28..32] == GATEWAY {
                true => {
                    Ok(format!("10.0.2.2 is at {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"))
                }
                false => Err(format!("an ARP answer for somebody else: {packet:02x?}")),
            };
        }
    }
}
