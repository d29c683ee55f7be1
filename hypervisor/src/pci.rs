//! The way to configuration space: ports CF8 and CFC, which every PC has for the 256 bytes that we and the owners need. Only the
//! hypervisor has it; what owners may do with theirs is `device.rs` and `hv_core::pci`.

use hv_core::pci::{Bdf, Config};
use spin::Mutex;
use x86_64::instructions::port::Port;

/// The two ports go together.
static PORTS: Mutex<(Port<u32>, Port<u32>)> = Mutex::new((Port::new(0xCF8), Port::new(0xCFC)));

/// Configuration space of segment group 0.
#[derive(Clone, Copy, Debug)]
pub struct Space;

const fn address(bdf: Bdf, offset: u16) -> u32 {
    1 << 31 | (bdf.0 as u32) << 8 | offset as u32 & 0xFC
}

impl Config for Space {
    fn read(&self, bdf: Bdf, offset: u16) -> u32 {
        let (select, data) = &mut *PORTS.lock();
        // SAFETY: CF8 only selects what CFC means, and the lock keeps the two together.
        unsafe { select.write(address(bdf, offset)) };
        // SAFETY: as above; reads of configuration space change nothing.
        unsafe { data.read() }
    }
    fn write(&self, bdf: Bdf, offset: u16, value: u32) {
        let (select, data) = &mut *PORTS.lock();
        // SAFETY: as in `read`.
        unsafe { select.write(address(bdf, offset)) };
        // SAFETY: a device can do no more than its IOMMU entry lets it, whatever is written.
        unsafe { data.write(value) };
    }
}
