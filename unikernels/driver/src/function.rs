//! The PCI function a driver domain owns.

use crate::hardware::Registers;
use alloc::format;
use alloc::string::String;
use libxenrt::device::Device;

/// Offset and bus-master bit of the COMMAND register in configuration space (PCI Local Bus 3.0, 6.2.2).
const COMMAND: (u16, u32) = (4, 1 << 2);

/// The domain's one function. Errors are for people: a domain without its device ends.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    device: Device,
    was_running: bool,
}

impl Function {
    /// Opens it.
    ///
    /// # Errors
    /// None is assigned, or its configuration space cannot be read.
    pub fn open() -> Result<Self, String> {
        let device = Device::nth(0).map_err(|e| format!("device: {e:?}"))?.ok_or("no device assigned")?;
        let command = device.pci_read(COMMAND.0, 2).map_err(|e| format!("configuration space: {e:?}"))?;
        Ok(Self { device, was_running: command & COMMAND.1 != 0 })
    }

    /// The device.
    #[must_use]
    pub const fn device(&self) -> &Device {
        &self.device
    }

    /// Vendor in the low, device in the high half.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.device.info().id
    }

    /// Base class, class and programming interface, one byte each, as configuration space has them.
    #[must_use]
    pub const fn class(&self) -> u32 {
        self.device.info().class >> 8
    }

    /// Whether it was the bus's master when it was opened: firmware may have left it at work.
    #[must_use]
    pub const fn was_running(&self) -> bool {
        self.was_running
    }

    /// The registers behind memory BAR `index`.
    ///
    /// # Errors
    /// There is no such BAR.
    pub fn registers(&self, index: usize) -> Result<Registers, String> {
        self.device.mmio(index).map(Registers::new).map_err(|e| format!("registers: {e:?}"))
    }

    /// Lets the device do DMA. To be called with the device at rest.
    ///
    /// # Errors
    /// The hypervisor's refusal.
    pub fn allow_dma(&self) -> Result<(), String> {
        self.device.set_bus_master(true).map_err(|e| format!("bus mastership: {e:?}"))
    }
}
