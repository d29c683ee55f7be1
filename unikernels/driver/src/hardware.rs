//! What a driver's traits (`hw`) mean under libxenrt.

use core::sync::atomic::{Ordering, compiler_fence, fence};
use hw::{Clock, DmaMemory, Mmio, NarrowMmio};
use libxenrt::device::Mmio as Bar;
use libxenrt::dma::DmaRegion;

/// A memory BAR.
#[derive(Debug)]
pub struct Registers(Bar);

impl Registers {
    /// Over a BAR.
    #[must_use]
    pub const fn new(bar: Bar) -> Self {
        Self(bar)
    }
}

impl Mmio for Registers {
    fn read32(&self, offset: usize) -> u32 {
        self.0.read32(offset)
    }
    fn write32(&self, offset: usize, value: u32) {
        // Stores to write-back memory are not passed by a later store to uncached registers (AMD APM 2, 7.4.2); only the compiler
        // has to be told.
        compiler_fence(Ordering::SeqCst);
        self.0.write32(offset, value);
    }
}

impl NarrowMmio for Registers {
    fn read8(&self, offset: usize) -> u8 {
        self.0.read8(offset)
    }
    fn write8(&self, offset: usize, value: u8) {
        compiler_fence(Ordering::SeqCst);
        self.0.write8(offset, value);
    }
    fn read16(&self, offset: usize) -> u16 {
        self.0.read16(offset)
    }
    fn write16(&self, offset: usize, value: u16) {
        compiler_fence(Ordering::SeqCst);
        self.0.write16(offset, value);
    }
}

/// Memory of descriptor rings, command lists and the like.
#[derive(Debug)]
pub struct Rings(DmaRegion);

impl Rings {
    /// At least `len_bytes`, zeroed; `None` where no such run is free.
    #[must_use]
    pub fn alloc(len_bytes: usize) -> Option<Self> {
        DmaRegion::alloc(len_bytes).map(Self)
    }
}

impl DmaMemory for Rings {
    fn device_addr(&self) -> u64 {
        self.0.device_address()
    }
    fn len_bytes(&self) -> usize {
        self.0.len_bytes()
    }
    fn read(&self, offset: usize) -> u32 {
        self.0.read32(offset)
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        let value = self.0.read32(offset);
        self.0.read_barrier();
        value
    }
    fn write(&self, offset: usize, value: u32) {
        self.0.write32(offset, value);
    }
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// System time.
#[derive(Clone, Copy, Debug)]
pub struct PvClock;

impl Clock for PvClock {
    fn now_us(&self) -> u64 {
        libxenrt::clock::now().as_micros()
    }
    fn pause_us(&self, us: u32) {
        let until = self.now_us().saturating_add(u64::from(us.min(1000)));
        while self.now_us() < until {
            core::hint::spin_loop();
        }
    }
}
