//! Devices assigned to this domain: what there is, its configuration space (mediated by the hypervisor), its registers and its
//! interrupt.

use crate::event::Event;
use crate::hypercall;
use crate::memory::window;
use abi::xenolith::{self, Bar};
use abi::{Errno, EvtchnPort, physdev};

/// Why a device could not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceError {
    /// The hypervisor refused.
    Hypercall(Errno),
    /// No such BAR, or one of another kind.
    NoBar(usize),
    /// The BAR lies where libxenrt maps no registers.
    BadBar {
        /// Its number.
        index: usize,
        /// Where it is.
        addr: u64,
        /// Its length.
        len: u64,
    },
}

impl From<Errno> for DeviceError {
    fn from(e: Errno) -> Self {
        Self::Hypercall(e)
    }
}

/// COMMAND register in configuration space (PCI Local Bus 3.0, 6.2.2).
const COMMAND: u16 = 4;
/// Bus-master enable in COMMAND.
const COMMAND_BUS_MASTER: u32 = 1 << 2;

/// An assigned PCI function.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    info: xenolith::DeviceInfo,
}

impl Device {
    /// The domain's `index`-th device; `None` past the last.
    ///
    /// # Errors
    /// The hypervisor's, other than ENODEV.
    pub fn nth(index: u32) -> Result<Option<Self>, DeviceError> {
        let mut info = xenolith::DeviceInfo { index, ..Default::default() };
        match hypercall::device_info(&mut info) {
            Ok(_) => Ok(Some(Self { info })),
            Err(Errno::ENODEV) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// All there is to know.
    #[must_use]
    pub const fn info(&self) -> &xenolith::DeviceInfo {
        &self.info
    }
    /// Vendor.
    #[must_use]
    pub const fn vendor(&self) -> u16 {
        self.info.id as u16
    }
    /// Device.
    #[must_use]
    pub const fn device(&self) -> u16 {
        (self.info.id >> 16) as u16
    }

    /// Reads `width` (1, 2 or 4) bytes of configuration space.
    ///
    /// # Errors
    /// The hypervisor's.
    pub fn pci_read(&self, offset: u16, width: u16) -> Result<u32, DeviceError> {
        let mut op = xenolith::PciAccess { bdf: self.info.bdf, offset, width, value: 0, pad: 0 };
        hypercall::pci_read(&mut op)?;
        Ok(op.value)
    }

    /// Writes `width` (1, 2 or 4) bytes of configuration space.
    ///
    /// # Errors
    /// EPERM for what stays the hypervisor's.
    pub fn pci_write(&self, offset: u16, width: u16, value: u32) -> Result<(), DeviceError> {
        let mut op = xenolith::PciAccess { bdf: self.info.bdf, offset, width, value, pad: 0 };
        hypercall::pci_write(&mut op)?;
        Ok(())
    }

    /// Lets the device do DMA, or no longer.
    ///
    /// # Errors
    /// The hypervisor's.
    pub fn set_bus_master(&self, on: bool) -> Result<(), DeviceError> {
        let old = self.pci_read(COMMAND, 2)?;
        let new = if on { old | COMMAND_BUS_MASTER } else { old & !COMMAND_BUS_MASTER };
        self.pci_write(COMMAND, 2, new)
    }

    /// The registers behind memory BAR `index`.
    ///
    /// # Errors
    /// [`DeviceError::NoBar`], [`DeviceError::BadBar`].
    pub fn mmio(&self, index: usize) -> Result<Mmio, DeviceError> {
        let &Bar { addr, len, kind, .. } = self.info.bars.get(index).ok_or(DeviceError::NoBar(index))?;
        if kind != 1 || addr == 0 || len == 0 {
            return Err(DeviceError::NoBar(index));
        }
        let end = addr.checked_add(len).filter(|&end| addr >= window::START && end <= window::END);
        if end.is_none() || !addr.is_multiple_of(4) {
            return Err(DeviceError::BadBar { index, addr, len });
        }
        Ok(Mmio { base: addr as usize, len: len as usize })
    }

    /// Binds its interrupt to a port.
    ///
    /// # Errors
    /// The hypervisor's.
    pub fn interrupt(&self) -> Result<Interrupt, DeviceError> {
        let event = Event::bind_pirq(self.info.pirq)?;
        Ok(Interrupt { event, pirq: self.info.pirq, needs_eoi: self.info.needs_eoi != 0 })
    }
}

/// Registers of a device, mapped uncached at their bus address. Accesses outside of the region read all ones and write nothing, as
/// a bus would answer.
#[derive(Debug)]
pub struct Mmio {
    base: usize,
    len: usize,
}

macro_rules! access {
    ($($read:ident $write:ident $t:ty;)*) => {$(
        /// Volatile load at byte `offset`, which must be aligned.
        #[must_use]
        pub fn $read(&self, offset: usize) -> $t {
            match self.at(offset, size_of::<$t>()) {
                // SAFETY: I9 – inside the BAR, aligned, and no Rust value lives there.
                Some(p) => unsafe { p.cast::<$t>().read_volatile() },
                None => <$t>::MAX,
            }
        }
        /// Volatile store at byte `offset`, which must be aligned.
        pub fn $write(&self, offset: usize, value: $t) {
            if let Some(p) = self.at(offset, size_of::<$t>()) {
                // SAFETY: I9 – as above; what the device does with it is bounded by the IOMMU.
                unsafe { p.cast::<$t>().write_volatile(value) }
            }
        }
    )*};
}

impl Mmio {
    /// Registers of the bare machine.
    #[cfg(feature = "bare")]
    pub(crate) const fn bare(base: usize, len: usize) -> Self {
        Self { base, len }
    }
    /// Bytes of the region.
    #[must_use]
    pub const fn len_bytes(&self) -> usize {
        self.len
    }
    fn at(&self, offset: usize, width: usize) -> Option<*mut u8> {
        let end = offset.checked_add(width)?;
        let inside = end <= self.len && offset.is_multiple_of(width);
        inside.then(|| core::ptr::with_exposed_provenance_mut(self.base.wrapping_add(offset)))
    }
    access! {
        read8 write8 u8;
        read16 write16 u16;
        read32 write32 u32;
    }
}

/// A device's interrupt as an event.
#[derive(Debug)]
pub struct Interrupt {
    event: Event,
    pirq: u32,
    needs_eoi: bool,
}

impl Interrupt {
    /// Binds a physical interrupt that came with I/O ports instead of a PCI device.
    ///
    /// # Errors
    /// The hypervisor's: EPERM where the interrupt is not ours.
    pub fn of_pirq(pirq: u32) -> Result<Self, DeviceError> {
        let event = Event::bind_pirq(pirq)?;
        let mut query = physdev::IrqStatusQuery { irq: pirq, flags: 0 };
        hypercall::physdev_irq_status_query(&mut query)?;
        Ok(Self { event, pirq, needs_eoi: query.flags & physdev::IRQSTAT_NEEDS_EOI != 0 })
    }
    /// The port to wait on.
    #[must_use]
    pub const fn port(&self) -> EvtchnPort {
        self.event.port()
    }
    /// Takes the pending event, if there is one.
    pub fn take_pending(&self) -> bool {
        self.event.take_pending()
    }
    /// Says the interrupt has been served; a level-triggered one may then come again.
    ///
    /// # Errors
    /// The hypervisor's.
    pub fn done(&self) -> Result<(), DeviceError> {
        if self.needs_eoi {
            hypercall::physdev_eoi(&mut physdev::Eoi { irq: self.pirq })?;
        }
        Ok(())
    }
}
