//! IO-APICs: which pin a global system interrupt is, and its redirection entry. All pins are masked until their owner binds them.
//!
//! Their interrupts pass the IOMMU. An entry's vector is the index into the remapping table there, and that table has the same
//! vector at this index. The level-triggered kind still needs an explicit end at the pin: the local APIC broadcasts the end of a
//! remapped interrupt only where the IOMMU passes the trigger mode on, which QEMU's does not. Source: Intel 82093AA datasheet.

use crate::paging;
use alloc::vec::Vec;
use hv_core::acpi;
use spin::{Mutex, Once};

const REG_VERSION: u32 = 0x01;
const REG_ENTRY: u32 = 0x10;
const SELECT: usize = 0x00;
const WINDOW: usize = 0x10;
/// End of interrupt at the pin; version 20h and later, as every machine with an AMD IOMMU has.
const EOI: usize = 0x40;
const MASKED: u32 = 1 << 16;
const LEVEL: u32 = 1 << 15;
const LOW: u32 = 1 << 13;

struct IoApic {
    id: u8,
    gsi_base: u32,
    pins: u32,
    registers: *mut u32,
}
// SAFETY: the pointer is to registers that are mapped for ever, and is used under the lock around the structure.
unsafe impl Send for IoApic {}

static IOAPICS: Once<Vec<Mutex<IoApic>>> = Once::new();

impl IoApic {
    fn at(&self, offset: usize) -> *mut u32 {
        self.registers.wrapping_byte_add(offset)
    }
    fn read(&self, register: u32) -> u32 {
        // SAFETY: `init` has mapped the registers; SELECT only says what WINDOW means, under the lock.
        unsafe { self.at(SELECT).write_volatile(register) };
        // SAFETY: as above.
        unsafe { self.at(WINDOW).read_volatile() }
    }
    fn write(&self, register: u32, value: u32) {
        // SAFETY: as in `read`.
        unsafe { self.at(SELECT).write_volatile(register) };
        // SAFETY: as above. What an entry can reach is bounded by the IOMMU's table for this IO-APIC.
        unsafe { self.at(WINDOW).write_volatile(value) };
    }
    fn update(&self, pin: u32, change: impl FnOnce(u32) -> u32) {
        let register = REG_ENTRY + 2 * pin;
        self.write(register, change(self.read(register)));
    }
}

/// Maps the IO-APICs and masks every pin.
pub fn init(list: &[acpi::IoApic]) {
    IOAPICS.call_once(|| {
        let mut found = Vec::new();
        for entry in list {
            let Ok(registers) = paging::map_mmio(u64::from(entry.addr), 4096) else { continue };
            let mut this =
                IoApic { id: entry.id, gsi_base: entry.gsi_base, pins: 0, registers: registers.cast() };
            let version = this.read(REG_VERSION);
            this.pins = (version >> 16 & 0xFF) + 1;
            (0..this.pins).for_each(|pin| this.update(pin, |_| MASKED));
            log::info!("IO-APIC {}: GSI {}-{}", this.id, this.gsi_base, this.gsi_base + this.pins - 1);
            found.push(Mutex::new(this));
        }
        found
    });
}

fn with<R>(gsi: u32, f: impl FnOnce(&IoApic, u32) -> R) -> Option<R> {
    IOAPICS
        .get()?
        .iter()
        .find_map(|a| {
            let a = a.lock();
            gsi.checked_sub(a.gsi_base).filter(|&pin| pin < a.pins).map(|pin| (a, pin))
        })
        .map(|(a, pin)| f(&a, pin))
}

/// ID of the IO-APIC that has this interrupt.
pub fn id(gsi: u32) -> Option<u8> {
    with(gsi, |a, _| a.id)
}

/// Sets up a pin, masked: remapping index (and vector) `vector`.
pub fn program(gsi: u32, vector: u8, level: bool, low: bool) {
    with(gsi, |a, pin| {
        let flags = if level { LEVEL } else { 0 } | if low { LOW } else { 0 };
        a.update(pin, |_| MASKED);
        a.write(REG_ENTRY + 2 * pin + 1, 0);
        a.update(pin, |_| MASKED | flags | u32::from(vector));
    });
}

/// Masks or unmasks a pin.
pub fn mask(gsi: u32, masked: bool) {
    with(gsi, |a, pin| a.update(pin, |e| if masked { e | MASKED } else { e & !MASKED }));
}

/// Ends a level-triggered interrupt at its pin, which is masked: if the line is still active it fires again once unmasked.
pub fn end(gsi: u32) {
    with(gsi, |a, pin| {
        let entry = a.read(REG_ENTRY + 2 * pin);
        // SAFETY: a register of the mapped page; it clears Remote IRR of the pins with this vector.
        unsafe { a.at(EOI).write_volatile(entry & 0xFF) };
    });
}
