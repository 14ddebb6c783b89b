//! PCI configuration space by the two ports of mechanism 1 (PCI Local Bus 3.0, 3.2.2.3.2), for the
//! PCI part of crate `virtio-drivers`.

use alloc::format;
use alloc::string::String;

use virtio_drivers::transport::pci::bus::{
    BarInfo, Command, ConfigurationAccess, DeviceFunction, PciRoot,
};

use crate::program::Ports;
use crate::programs::OrSay;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;

/// Configuration space, one word at a time.
#[derive(Clone, Copy)]
pub(super) struct PortAccess<'a>(&'a dyn Ports);

impl PortAccess<'_> {
    fn select(self, function: DeviceFunction, register: u8) {
        let DeviceFunction { bus, device, function } = function;
        let place = u32::from(bus) << 16 | u32::from(device) << 11 | u32::from(function) << 8;
        self.0.write(ADDRESS, ENABLE | place | u32::from(register & !3));
    }
}

impl ConfigurationAccess for PortAccess<'_> {
    fn read_word(&self, function: DeviceFunction, register: u8) -> u32 {
        self.select(function, register);
        self.0.read(DATA)
    }

    fn write_word(&mut self, function: DeviceFunction, register: u8, word: u32) {
        self.select(function, register);
        self.0.write(DATA, word);
    }

    // The program is the only one at the ports.
    #[expect(unsafe_code, reason = "a method of a foreign trait")]
    unsafe fn unsafe_clone(&self) -> Self {
        *self
    }
}

/// A device and where its registers are.
pub(super) struct Found<'a> {
    pub(super) root: PciRoot<PortAccess<'a>>,
    pub(super) function: DeviceFunction,
    /// The bus address of its memory BAR.
    pub(super) start: u64,
    pub(super) len_bytes: u64,
}

/// What kind of device it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PciId {
    pub(super) vendor: u16,
    pub(super) device: u16,
}

/// Finds a device on bus 0, and lets it do DMA.
pub(super) fn find(ports: &dyn Ports, id: PciId) -> Result<Found<'_>, String> {
    let PciId { vendor, device } = id;
    let mut root = PciRoot::new(PortAccess(ports));
    let is_it = |info: &virtio_drivers::transport::pci::bus::DeviceFunctionInfo| {
        (info.vendor_id, info.device_id) == (vendor, device)
    };
    let found = root.enumerate_bus(0).find(|(_, info)| is_it(info));
    let (function, _) = found.ok_or_else(|| {
        format!("PCI has no device {vendor:04x}:{device:04x}: start QEMU with one")
    })?;
    let bars = root.bars(function).or_say("BARs")?;
    let memory = bars.into_iter().flatten().filter_map(|bar| match bar {
        BarInfo::Memory { address, size, .. } if address != 0 && size > 0 => Some((address, size)),
        _ => None,
    });
    // The registers are in the largest one; the small one of a virtio device is for interrupts.
    let (start, len_bytes) = memory.max_by_key(|(_, size)| *size).ok_or("no memory BAR")?;
    let command = Command::MEMORY_SPACE | Command::BUS_MASTER;
    root.set_command(function, command);
    Ok(Found { root, function, start, len_bytes })
}
