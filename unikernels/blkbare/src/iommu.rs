//! The machine's IOMMU, on request (`iommu=1`): all of memory is mapped to itself page by page, so that the emulator walks and caches
//! translations for this driver's DMA as it does for a driver domain's. Nothing is protected by it; it is there to be paid for.
//!
//! Section numbers are those of the AMD I/O Virtualization Technology Specification, 48882, revision 3.

use libxenrt::bare::Function;
use libxenrt::dma::DmaRegion;

/// Base system peripheral, IOMMU (PCI Code and ID Assignment 1.11, 1.9), and the capability that says where its registers are (3.2).
const CLASS: u32 = 0x08_06_00;
const CAPABILITY: u8 = 0x0f;
/// Registers in use (3.4): device table base, control; their bytes.
const DEVICE_TABLE: usize = 0x00;
const CONTROL: usize = 0x18;
const REGISTERS: usize = 0x4000;
/// IommuEn in CONTROL.
const ENABLE: u32 = 1;

/// Bytes of a page and of a table, and entries of a table.
const PAGE: usize = 4096;
const ENTRIES: usize = 512;
/// Pages of the device table: bus 0 whole.
const DEVICE_PAGES: usize = 2;
/// What is mapped: the first GiB, below which all RAM is that libxenrt uses.
const MAPPED: usize = 1 << 30;
/// IR and IW of any entry.
const RIGHTS: u64 = 3 << 61;

/// The tables, in use until this is dropped: not before the machine ends.
pub struct Iommu {
    _tables: DmaRegion,
}

impl Iommu {
    /// Turns translation on for every function of bus 0.
    ///
    /// # Errors
    /// What is missing.
    pub fn enable() -> Result<Self, &'static str> {
        let function = Function::of_class(CLASS).ok_or("no IOMMU")?;
        let at = function.capability(CAPABILITY).ok_or("no IOMMU's capability")?;
        // Base address low (bit 0: enabled) and high (3.2).
        let base = u64::from(function.read(at + 4) & !0x3fff) | u64::from(function.read(at + 8)) << 32;
        let registers = function.registers(base, REGISTERS).ok_or("the IOMMU's registers are out of reach")?;
        let leaves = MAPPED / PAGE / ENTRIES;
        // Device table, level 3, level 2, level 1.
        let tables = DmaRegion::alloc((DEVICE_PAGES + 2 + leaves) * PAGE).ok_or("no memory for the IOMMU's tables")?;
        let page = |n: usize| n * PAGE;
        let addr = |n: usize| tables.device_address() + page(n) as u64;
        let (top, middle, leaf) = (DEVICE_PAGES, DEVICE_PAGES + 1, DEVICE_PAGES + 2);
        for id in 0..DEVICE_PAGES * PAGE / 32 {
            // V, TV, a table of three levels (2.2.2.1).
            tables.write64(id * 32, 3 | 3 << 9 | addr(top) | RIGHTS);
            tables.write64(id * 32 + 8, 1);
        }
        // Present, the level below (2.2.3).
        tables.write64(page(top), 1 | 2 << 9 | addr(middle) | RIGHTS);
        for n in 0..leaves {
            tables.write64(page(middle) + n * 8, 1 | 1 << 9 | addr(leaf + n) | RIGHTS);
        }
        for n in 0..MAPPED / PAGE {
            tables.write64(page(leaf) + n * 8, 1 | page(n) as u64 | RIGHTS);
        }
        tables.write_barrier();
        let table = tables.device_address() | (DEVICE_PAGES as u64 - 1);
        registers.write32(DEVICE_TABLE, table as u32);
        registers.write32(DEVICE_TABLE + 4, (table >> 32) as u32);
        registers.write32(CONTROL, ENABLE);
        registers.write32(CONTROL + 4, 0);
        Ok(Self { _tables: tables })
    }
}
