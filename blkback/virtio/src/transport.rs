//! `virtio_drivers`' [`Transport`] over [`NarrowMmio`]: the registers of a virtio 1.x PCI device. What that trait provides (the order of
//! the initialisation) is used as it is.
//!
//! The crate's own `PciTransport` is not: it sizes BARs, which only the hypervisor may write; it cannot route MSI-X vectors, without
//! which QEMU's device does not interrupt once MSI-X is on; and it waits for resets either not at all or for ever.

use crate::capabilities::{Place, Places};
use crate::regs;
use blkback::disk::{Clock, NarrowMmio};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// How long a reset may take. The specification has no bound; devices without moving parts need next to nothing.
pub const RESET_US: u64 = 100_000;
/// The queue this driver uses.
pub const QUEUE: u16 = 0;
/// Most bytes of a field of the configuration.
const FIELD: usize = 8;

/// One of the device's structures in one of its BARs. What is outside reads all ones and is not written.
#[derive(Debug)]
struct Structure<M> {
    bar: M,
    offset: usize,
    len: usize,
}

impl<M: NarrowMmio> Structure<M> {
    fn new(bar: M, place: Place) -> Self {
        Self { bar, offset: place.offset as usize, len: place.len as usize }
    }
    fn at(&self, offset: usize, width: usize) -> Option<usize> {
        let inside = offset.checked_add(width).is_some_and(|end| end <= self.len);
        self.offset.checked_add(offset).filter(|_| inside)
    }
    fn read8(&self, offset: usize) -> u8 {
        self.at(offset, 1).map_or(u8::MAX, |at| self.bar.read8(at))
    }
    fn read16(&self, offset: usize) -> u16 {
        self.at(offset, 2).map_or(u16::MAX, |at| self.bar.read16(at))
    }
    fn read32(&self, offset: usize) -> u32 {
        self.at(offset, 4).map_or(u32::MAX, |at| self.bar.read32(at))
    }
    fn write8(&self, offset: usize, value: u8) {
        if let Some(at) = self.at(offset, 1) {
            self.bar.write8(at, value);
        }
    }
    fn write16(&self, offset: usize, value: u16) {
        if let Some(at) = self.at(offset, 2) {
            self.bar.write16(at, value);
        }
    }
    fn write32(&self, offset: usize, value: u32) {
        if let Some(at) = self.at(offset, 4) {
            self.bar.write32(at, value);
        }
    }
    /// VirtioPci of 64 bits are written by halves (4.1.3.1).
    fn write64(&self, offset: usize, value: u64) {
        self.write32(offset, value as u32);
        self.write32(offset.saturating_add(4), (value >> 32) as u32);
    }
}

/// The registers of a device.
#[derive(Debug)]
pub struct VirtioPci<M, C> {
    common: Structure<M>,
    notify: Structure<M>,
    notify_multiplier: u32,
    /// Offset of the queue's doorbell.
    doorbell: usize,
    isr: Structure<M>,
    device: Structure<M>,
    clock: C,
}

impl<M: NarrowMmio, C: Clock> VirtioPci<M, C> {
    /// Over its BARs; `open` gives access to one.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn open<E>(places: &Places, clock: C, open: impl Fn(u8) -> Result<M, E>) -> Result<Self, E> {
        let structure = |place: Place| open(place.bar).map(|bar| Structure::new(bar, place));
        Ok(Self {
            common: structure(places.common)?,
            notify: structure(places.notify)?,
            notify_multiplier: places.notify_multiplier,
            doorbell: 0,
            isr: structure(places.isr)?,
            device: structure(places.device)?,
            clock,
        })
    }

    /// Time.
    pub const fn clock(&self) -> &C {
        &self.clock
    }

    /// The device status as it is; all ones where nobody answers.
    pub fn status(&self) -> u8 {
        self.common.read8(regs::DEVICE_STATUS)
    }

    /// Asks for a reset, which is over when [`VirtioPci::status`] is 0.
    pub fn begin_reset(&self) {
        self.common.write8(regs::DEVICE_STATUS, 0);
    }

    /// Lets the queue interrupt by the function's first MSI-X vector, configuration changes by none: they are found in the status.
    /// Where MSI-X is off the device does not look at vectors. False if it does not take it (4.1.5.1.2.2).
    pub fn route_interrupts(&self) -> bool {
        self.common.write16(regs::CONFIG_MSIX_VECTOR, regs::NO_VECTOR);
        self.common.write16(regs::QUEUE_SELECT, QUEUE);
        self.common.write16(regs::QUEUE_MSIX_VECTOR, 0);
        self.common.read16(regs::QUEUE_MSIX_VECTOR) == 0
    }

    fn select(&self, queue: u16) {
        self.common.write16(regs::QUEUE_SELECT, queue);
    }
}

impl<M: NarrowMmio, C: Clock> Transport for VirtioPci<M, C> {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn read_device_features(&mut self) -> u64 {
        let [low, high] = [0, 1].map(|half| {
            self.common.write32(regs::DEVICE_FEATURE_SELECT, half);
            u64::from(self.common.read32(regs::DEVICE_FEATURE))
        });
        high << 32 | low
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        for (half, bits) in [(0, driver_features as u32), (1, (driver_features >> 32) as u32)] {
            self.common.write32(regs::DRIVER_FEATURE_SELECT, half);
            self.common.write32(regs::DRIVER_FEATURE, bits);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.select(queue);
        self.common.read16(regs::QUEUE_SIZE).into()
    }

    fn notify(&mut self, queue: u16) {
        self.notify.write16(self.doorbell, queue);
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_truncate(self.status().into())
    }

    /// An empty status is a reset, which is waited for, with a bound: the status tells how it went.
    fn set_status(&mut self, status: DeviceStatus) {
        self.common.write8(regs::DEVICE_STATUS, status.bits() as u8);
        if status.is_empty() {
            let from = self.clock.now_us();
            while !matches!(self.status(), 0 | u8::MAX) && self.clock.now_us().saturating_sub(from) < RESET_US {
                self.clock.pause_us(1);
            }
        }
    }

    fn set_guest_page_size(&mut self, _guest_page_size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        self.select(queue);
        self.common.write16(regs::QUEUE_SIZE, size as u16);
        self.common.write64(regs::QUEUE_DESC, descriptors);
        self.common.write64(regs::QUEUE_DRIVER, driver_area);
        self.common.write64(regs::QUEUE_DEVICE, device_area);
        let unit = usize::from(self.common.read16(regs::QUEUE_NOTIFY_OFF));
        self.doorbell = unit.saturating_mul(self.notify_multiplier as usize);
        self.common.write16(regs::QUEUE_ENABLE, 1);
    }

    /// A queue of a PCI device ends with a reset only.
    fn queue_unset(&mut self, _queue: u16) {}

    fn queue_used(&mut self, queue: u16) -> bool {
        self.select(queue);
        self.common.read16(regs::QUEUE_ENABLE) == 1
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::from_bits_truncate(self.isr.read8(0).into())
    }

    fn read_config_generation(&self) -> u32 {
        self.common.read8(regs::CONFIG_GENERATION).into()
    }

    /// Fields are read as wide as they are (4.1.3.1).
    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let len = size_of::<T>();
        if offset.checked_add(len).is_none_or(|end| end > self.device.len) {
            return Err(Error::ConfigSpaceTooSmall);
        }
        let mut bytes = [0; FIELD];
        let field = bytes.get_mut(..len).ok_or(Error::InvalidParam)?;
        match len {
            1 => field.copy_from_slice(&[self.device.read8(offset)]),
            2 => field.copy_from_slice(&self.device.read16(offset).to_le_bytes()),
            _ => {
                for (n, word) in field.chunks_mut(4).enumerate() {
                    let value = self.device.read32(offset.saturating_add(n.saturating_mul(4))).to_le_bytes();
                    word.copy_from_slice(value.get(..word.len()).unwrap_or_default());
                }
            }
        }
        T::read_from_bytes(field).map_err(|_| Error::InvalidParam)
    }

    /// A block device's configuration has one field that may be written, and this driver leaves it.
    fn write_config_space<T: IntoBytes + Immutable>(&mut self, _offset: usize, _value: T) -> Result<(), Error> {
        Err(Error::Unsupported)
    }
}
