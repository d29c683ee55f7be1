//! The way to configuration space: memory-mapped (MCFG) where there is a window for the bus, ports CF8/CFC otherwise. Only the
//! hypervisor has it; what owners may do with theirs is `device.rs` and `hv_core::pci`.

use crate::{mem, paging};
use alloc::vec::Vec;
use hv_core::acpi::{Ecam, Platform};
use hv_core::pci::{self, Bdf, Config};
use spin::{Mutex, Once};
use x86_64::instructions::port::Port;

static WINDOWS: Once<Vec<Ecam>> = Once::new();
static FUNCTIONS: Once<Vec<Bdf>> = Once::new();
/// CF8 and CFC go together.
static PORTS: Mutex<()> = Mutex::new(());

/// Configuration space of segment group 0.
#[derive(Clone, Copy, Debug)]
pub struct Space;

/// Bytes of a function's memory-mapped configuration space, and of a bus's.
const FUNCTION_BYTES: u64 = 4096;
const BUS_BYTES: u64 = FUNCTION_BYTES << 8;

/// Maps the windows and finds all functions. On the boot CPU, before the others run.
pub fn init(platform: &Platform) {
    let mapped = |w: &&Ecam| {
        let first = w.base.saturating_add(u64::from(w.first_bus) * BUS_BYTES);
        let len = (u64::from(w.last_bus.saturating_sub(w.first_bus)) + 1) * BUS_BYTES;
        w.segment == 0 && w.first_bus <= w.last_bus && paging::map_mmio(first, len).is_ok()
    };
    WINDOWS.call_once(|| platform.ecam.iter().filter(mapped).copied().collect());
    let found = FUNCTIONS.call_once(|| pci::enumerate(&Space));
    log::info!("PCI: {} functions", found.len());
}

/// All functions found at boot.
pub fn functions() -> &'static [Bdf] {
    FUNCTIONS.get().map_or(&[], Vec::as_slice)
}

fn mapped(bdf: Bdf, offset: u16) -> Option<*mut u32> {
    let window = WINDOWS.get()?.iter().find(|w| (w.first_bus..=w.last_bus).contains(&bdf.bus()))?;
    let at = window.base + u64::from(bdf.0) * FUNCTION_BYTES + u64::from(offset & 0xFFC);
    Some(mem::direct(at).cast())
}

fn select(bdf: Bdf, offset: u16) -> Port<u32> {
    let mut address: Port<u32> = Port::new(0xCF8);
    // SAFETY: CF8 only selects what CFC means, and the caller holds `PORTS`.
    unsafe { address.write(1 << 31 | u32::from(bdf.0) << 8 | u32::from(offset & 0xFC)) };
    Port::new(0xCFC)
}

impl Config for Space {
    fn read(&self, bdf: Bdf, offset: u16) -> u32 {
        if let Some(word) = mapped(bdf, offset) {
            // SAFETY: inside a window that `init` has mapped; reads of configuration space change nothing.
            return unsafe { word.read_volatile() };
        }
        if offset >= 256 {
            return u32::MAX;
        }
        let _ports = PORTS.lock();
        // SAFETY: as above, by the ports.
        unsafe { select(bdf, offset).read() }
    }
    fn write(&self, bdf: Bdf, offset: u16, value: u32) {
        if let Some(word) = mapped(bdf, offset) {
            // SAFETY: inside a mapped window. A device can do no more than its IOMMU entry lets it, whatever is written.
            unsafe { word.write_volatile(value) };
        } else if offset < 256 {
            let _ports = PORTS.lock();
            // SAFETY: as above, by the ports.
            unsafe { select(bdf, offset).write(value) };
        }
    }
}
