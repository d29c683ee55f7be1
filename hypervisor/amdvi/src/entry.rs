//! What the IOMMU reads and writes in memory, as typed constructors. Section numbers are those of the specification.

use hv_core::Mfn;

/// Bytes of a device table entry.
pub const DTE_BYTES: u64 = 32;
/// Device IDs, and so entries of a device table.
pub const DEVICE_IDS: u32 = 1 << 16;
/// Bytes of the device table.
pub const DEVICE_TABLE_BYTES: u64 = DTE_BYTES * DEVICE_IDS as u64;
/// Entries of an interrupt remapping table: all that the eleven bits of an MSI's data can name, so that an index never leaves the
/// table even on an IOMMU that does not check it (QEMU's does not).
pub const INTERRUPT_ENTRIES: u64 = 2048;
/// Bytes of an interrupt remapping table.
pub const INTERRUPT_TABLE_BYTES: u64 = INTERRUPT_ENTRIES * 4;

/// Where a device's requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Root of a three-level page table (`hv_npt::Amdvi`).
    pub root: Mfn,
    /// Tag of the cached translations; devices with the same table share it. Below 256: QEMU 7.2 takes bit 8 for reserved.
    pub domain_id: u8,
    /// DMA allowed at all; without it every request faults.
    pub allowed: bool,
}

/// A device table entry (2.2.2.1). Always V = TV = IV = 1: an entry without V would pass everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceEntry {
    /// Memory requests.
    pub translation: Translation,
    /// The interrupt remapping table; `None` aborts all interrupts.
    pub interrupts: Option<Mfn>,
    /// Log no page faults (SA): for devices that have been found guilty already.
    pub quiet: bool,
}

impl DeviceEntry {
    /// The four quadwords.
    pub const fn bits(&self) -> [u64; 4] {
        const V: u64 = 1 << 0;
        const TV: u64 = 1 << 1;
        const MODE_3: u64 = 3 << 9;
        const IR: u64 = 1 << 61;
        const IW: u64 = 1 << 62;
        const SA: u64 = 1 << (98 - 64);
        const IV: u64 = 1;
        const INT_TAB_LEN_2048: u64 = 11 << (129 - 128);
        const INT_CTL_REMAP: u64 = 2 << (188 - 128);
        let rights = if self.translation.allowed { IR | IW } else { 0 };
        let remap = match self.interrupts {
            // InitPass, EIntPass, NMIPass, LINT0/1Pass stay 0: blocked.
            Some(table) => table.addr() | INT_TAB_LEN_2048 | INT_CTL_REMAP,
            None => 0,
        };
        [
            V | TV | MODE_3 | self.translation.root.addr() | rights,
            self.translation.domain_id as u64 | if self.quiet { SA } else { 0 },
            IV | remap,
            0,
        ]
    }
}

/// An interrupt remapping table entry, basic 32-bit format (2.2.5.2): fixed delivery, physical destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptEntry {
    /// Local APIC.
    pub destination: u8,
    /// Vector there.
    pub vector: u8,
}

impl InterruptEntry {
    /// RemapEn = 0, and no event for it.
    pub const BLOCKED: u32 = 0;
    /// The bits.
    pub const fn bits(self) -> u32 {
        1 | (self.destination as u32) << 8 | (self.vector as u32) << 16
    }
}

/// A command (2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Store `data` at `addr` (8-byte aligned) when all commands before it are done.
    CompletionWait {
        /// Where.
        addr: u64,
        /// What.
        data: u64,
    },
    /// Forget a device table entry.
    InvalidateDevice(u16),
    /// Forget all translations tagged with this domain ID, walk caches included.
    InvalidatePages(u8),
    /// Forget a device's interrupt table.
    InvalidateInterrupts(u16),
}

impl Command {
    /// The two quadwords.
    pub const fn bits(self) -> [u64; 2] {
        const fn opcode(n: u64) -> u64 {
            n << 60
        }
        match self {
            Self::CompletionWait { addr, data } => [opcode(1) | addr & 0x000F_FFFF_FFFF_FFF8 | 1, data],
            Self::InvalidateDevice(id) => [opcode(2) | id as u64, 0],
            // S = 1 with the address all ones up to bit 62 means everything; PDE = 1 the walk caches as well.
            Self::InvalidatePages(domain) => [opcode(3) | (domain as u64) << 32, 0x7FFF_FFFF_FFFF_F000 | 1 << 1 | 1],
            Self::InvalidateInterrupts(id) => [opcode(5) | id as u64, 0],
        }
    }
}

/// Codes of events (2.5) that a device caused, so that its owner answers for them. The others are the hypervisor's own errors.
pub mod event {
    /// IO_PAGE_FAULT.
    pub const PAGE_FAULT: u8 = 2;
    /// INVALID_DEVICE_REQUEST.
    pub const INVALID_REQUEST: u8 = 8;
}

/// An entry of the event log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened, [`event`].
    pub code: u8,
    /// The device ID that was used.
    pub device: u16,
    /// Device address, or physical address of what could not be read.
    pub address: u64,
    /// Bits 59:48 of the entry: RW is bit 5, PR bit 4, I bit 3 (QEMU sets I always and the wanted rights in bits 1:0).
    pub flags: u16,
}

impl Event {
    /// Reads an entry; `None` where nothing has been written yet (code 0 is reserved).
    pub const fn decode(bits: [u64; 2]) -> Option<Self> {
        let [head, address] = bits;
        let code = (head >> 60) as u8;
        if code == 0 {
            return None;
        }
        Some(Self { code, device: head as u16, address, flags: (head >> 48) as u16 & 0xFFF })
    }

    /// Whether a device did this, so that its owner answers for it. The others are the hypervisor's own errors.
    pub const fn is_devices(&self) -> bool {
        matches!(self.code, event::PAGE_FAULT | event::INVALID_REQUEST)
    }
}
