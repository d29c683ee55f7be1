//! What a device driver needs of the domain it runs in: registers, memory shared with the device, time. Drivers are written over
//! these traits alone, so that each runs against a model of its device on the host; `unikernels/*` implement them on libxenrt.
#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

/// A device's memory-mapped registers. Accesses are volatile, in program order, 32 bits, at byte offsets that are multiples of 4.
/// An offset outside of the window reads all ones and writes nothing, as a bus does.
pub trait Mmio {
    /// Reads a register.
    fn read32(&self, offset: usize) -> u32;
    /// Writes a register. All earlier [`DmaMemory`] writes are visible to the device before it.
    fn write32(&self, offset: usize, value: u32);
}

/// Registers of which some are narrower than 32 bits and have to be accessed as wide as they are (virtio 1.2, 4.1.3.1). Offsets are
/// multiples of the width; the rest is as [`Mmio`] says.
pub trait NarrowMmio: Mmio {
    /// Reads a register of one byte.
    fn read8(&self, offset: usize) -> u8;
    /// Writes one.
    fn write8(&self, offset: usize, value: u8);
    /// Reads a register of two bytes.
    fn read16(&self, offset: usize) -> u16;
    /// Writes one.
    fn write16(&self, offset: usize, value: u16);
}

/// Memory that driver and device share (descriptor rings). The device may write any word at any time: read once, check, use.
/// Offsets are in bytes, multiples of 4; outside of the area reads give 0 and writes do nothing.
pub trait DmaMemory {
    /// Device address of byte 0, a multiple of 4096.
    fn device_addr(&self) -> u64;
    /// Bytes.
    fn len_bytes(&self) -> usize;
    /// Volatile read.
    fn read(&self, offset: usize) -> u32;
    /// Volatile read; later reads of this memory are not moved before it (look at "done", then at the rest).
    fn load_acquire(&self, offset: usize) -> u32;
    /// Volatile write; the device sees writes in program order.
    fn write(&self, offset: usize, value: u32);
    /// What was written before is visible to the device before anything is read after (publish, then look whether it wants to know).
    fn fence(&self);
}

/// Time for bounded waits.
pub trait Clock {
    /// Microseconds since some start; never goes back.
    fn now_us(&self) -> u64;
    /// Lets `us` microseconds (at most 1000) pass.
    fn pause_us(&self, us: u32);
}
