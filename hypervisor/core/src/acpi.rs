//! Static ACPI tables as bytes: the processors, interrupt controllers, configuration space, timer, power-off and IOMMUs of the
//! machine. Firmware wrote them, so every length and checksum is checked and a defect is an error that names the table.
//!
//! Written here rather than taken from the `acpi` crate: that reads tables through pointers and brings an AML interpreter's
//! needs, and has no IVRS; this is safe code over slices that a fuzzer can run. Source: ACPI Specification 6.5, chapter 5;
//! for the IVRS see [`ivrs`].

mod bytes;
pub mod ivrs;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use bytes::Bytes;
pub use ivrs::Ivrs;

/// Reads physical memory: `len` bytes at an address, or `None` where there is no memory that firmware could have used.
pub trait Firmware<'a> {
    /// See the trait.
    fn bytes(&self, addr: u64, len: usize) -> Option<&'a [u8]>;
}
impl<'a, F: Fn(u64, usize) -> Option<&'a [u8]>> Firmware<'a> for F {
    fn bytes(&self, addr: u64, len: usize) -> Option<&'a [u8]> {
        self(addr, len)
    }
}

/// What is wrong with the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiError {
    /// No root pointer at this address, or its checksum is wrong.
    BadRsdp(u64),
    /// A table lies outside of memory or is shorter than its header says.
    Truncated {
        /// Signature, or zero where it is not known yet.
        table: [u8; 4],
        /// Where it was looked for.
        addr: u64,
    },
    /// A table's bytes do not add up to zero.
    Checksum([u8; 4]),
    /// An entry with an impossible length.
    BadEntry {
        /// Whose.
        table: [u8; 4],
        /// Offset of the entry.
        offset: usize,
    },
    /// A table that we cannot do without.
    Missing([u8; 4]),
}

impl core::fmt::Display for AcpiError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::BadRsdp(addr) => write!(f, "no ACPI root pointer at {addr:#x}"),
            Self::Truncated { table, addr } => {
                write!(f, "ACPI table {} at {addr:#x} is cut short", table.escape_ascii())
            }
            Self::Checksum(table) => write!(f, "wrong checksum in ACPI table {}", table.escape_ascii()),
            Self::BadEntry { table, offset } => {
                write!(f, "bad entry in ACPI table {} at offset {offset:#x}", table.escape_ascii())
            }
            Self::Missing(table) => write!(f, "the firmware gives no ACPI table {}", table.escape_ascii()),
        }
    }
}

/// An IO-APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// Its ID, by which the IVRS names it.
    pub id: u8,
    /// Physical address of its registers.
    pub addr: u32,
    /// Global system interrupt of its first pin.
    pub gsi_base: u32,
}
/// Where an ISA interrupt is connected if not at the GSI of its own number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Override {
    /// ISA interrupt.
    pub irq: u8,
    /// Its global system interrupt.
    pub gsi: u32,
    /// Active low; ISA is active high.
    pub low: bool,
    /// Level-triggered; ISA is edge-triggered.
    pub level: bool,
}
/// How to turn the machine off: write `type << 10 | 1 << 13` to the control port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoftOff {
    /// `PM1a_CNT` and its `SLP_TYP`.
    pub pm1a: (u16, u8),
    /// `PM1b_CNT`, where there is one.
    pub pm1b: Option<(u16, u8)>,
}

/// The machine as its firmware describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Platform {
    /// Physical address of the local APICs.
    pub lapic_addr: u64,
    /// APIC IDs of the processors that may be started, in the table's order: the boot processor is the first.
    pub lapics: Vec<u32>,
    /// IO-APICs.
    pub ioapics: Vec<IoApic>,
    /// ISA interrupts that are not where their number says.
    pub overrides: Vec<Override>,
    /// I/O port of the power-management timer, 3.579545 MHz, to calibrate others by.
    pub pm_timer: Option<u16>,
    /// Power off.
    pub soft_off: Option<SoftOff>,
    /// IOMMUs; `None` without an IVRS.
    pub ivrs: Option<Ivrs>,
}

const HEADER: usize = 36;

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |a, &b| a.wrapping_add(b))
}

/// A whole table at `addr`, its length and checksum proved.
fn table<'a>(firmware: &impl Firmware<'a>, addr: u64) -> Result<([u8; 4], &'a [u8]), AcpiError> {
    let cut = AcpiError::Truncated { table: [0; 4], addr };
    let head = firmware.bytes(addr, HEADER).ok_or(cut)?;
    let name = head.first_chunk().copied().ok_or(cut)?;
    let cut = AcpiError::Truncated { table: name, addr };
    let len = head.u32(4).ok_or(cut)? as usize;
    let whole = firmware.bytes(addr, len).filter(|b| b.len() >= HEADER).ok_or(cut)?;
    if sum(whole) != 0 {
        return Err(AcpiError::Checksum(name));
    }
    Ok((name, whole))
}

/// Addresses of all tables that the root pointer leads to.
fn root<'a>(firmware: &impl Firmware<'a>, rsdp: u64) -> Result<Vec<u64>, AcpiError> {
    let bad = AcpiError::BadRsdp(rsdp);
    let v1 = firmware.bytes(rsdp, 20).filter(|b| b.starts_with(b"RSD PTR ") && sum(b) == 0).ok_or(bad)?;
    let v2 = v1.get(15).filter(|&&revision| revision >= 2).and_then(|_| firmware.bytes(rsdp, 36));
    let xsdt = v2.filter(|b| sum(b) == 0).and_then(|b| b.u64(24)).filter(|&a| a != 0);
    let (addr, width) = match xsdt {
        Some(addr) => (addr, 8),
        None => (u64::from(v1.u32(16).ok_or(bad)?), 4),
    };
    let (_, sdt) = table(firmware, addr)?;
    let entries = sdt.get(HEADER..).unwrap_or_default();
    Ok(entries.chunks_exact(width).filter_map(|e| e.u64(0).or_else(|| e.u32(0).map(u64::from))).collect())
}

impl Platform {
    /// Reads the tables that the root pointer at physical address `rsdp` leads to.
    ///
    /// # Errors
    /// See [`AcpiError`]. Only the MADT is indispensable; a defect in any table that is there is an error too.
    pub fn parse<'a>(firmware: &impl Firmware<'a>, rsdp: u64) -> Result<Self, AcpiError> {
        let mut platform = Self::default();
        let mut found_madt = false;
        for addr in root(firmware, rsdp)? {
            let (name, bytes) = table(firmware, addr)?;
            match &name {
                b"APIC" => {
                    platform.madt(bytes)?;
                    found_madt = true;
                }
                b"FACP" => platform.fadt(firmware, bytes)?,
                b"IVRS" => platform.ivrs = Some(Ivrs::parse(bytes)?),
                _ => {}
            }
        }
        if found_madt { Ok(platform) } else { Err(AcpiError::Missing(*b"APIC")) }
    }

    /// Where an ISA interrupt is connected.
    pub fn isa_irq(&self, irq: u8) -> Override {
        let own = Override { irq, gsi: u32::from(irq), low: false, level: false };
        self.overrides.iter().copied().find(|o| o.irq == irq).unwrap_or(own)
    }

    /// MADT, 5.2.12.
    fn madt(&mut self, bytes: &[u8]) -> Result<(), AcpiError> {
        self.lapic_addr = u64::from(bytes.u32(HEADER).unwrap_or_default());
        let mut offset = 44usize;
        while let Some(head) = bytes.get(offset..).filter(|b| !b.is_empty()) {
            let bad = AcpiError::BadEntry { table: *b"APIC", offset };
            let len = usize::from(head.u8(1).filter(|&l| l >= 2).ok_or(bad)?);
            let entry = head.get(..len).ok_or(bad)?;
            self.madt_entry(entry).ok_or(bad)?;
            offset = offset.saturating_add(len);
        }
        Ok(())
    }

    fn madt_entry(&mut self, e: &[u8]) -> Option<()> {
        // Enabled; "online capable" processors would have to be added by firmware first.
        let enabled = |flags: u32| flags & 1 != 0;
        match e.u8(0)? {
            0 if enabled(e.u32(4)?) => self.lapics.push(e.u8(3)?.into()),
            1 => self.ioapics.push(IoApic { id: e.u8(2)?, addr: e.u32(4)?, gsi_base: e.u32(8)? }),
            2 => {
                let flags = e.u16(8)?;
                let (low, level) = (flags & 3 == 3, flags >> 2 & 3 == 3);
                self.overrides.push(Override { irq: e.u8(3)?, gsi: e.u32(4)?, low, level });
            }
            5 => self.lapic_addr = e.u64(4)?,
            9 if enabled(e.u32(8)?) => self.lapics.push(e.u32(4)?),
            _ => {}
        }
        Some(())
    }

    /// FADT, 5.2.9; and the `\_S5` package of the DSDT.
    fn fadt<'a>(&mut self, firmware: &impl Firmware<'a>, bytes: &[u8]) -> Result<(), AcpiError> {
        // The 32-bit field, or else the extended one if that is an I/O port.
        let port = |legacy: usize, extended: usize| {
            let old = bytes.u32(legacy).filter(|&p| p != 0).map(u64::from);
            let new = || bytes.u8(extended).filter(|&space| space == 1).and(bytes.u64(extended.saturating_add(4)));
            old.or_else(new).and_then(|p| u16::try_from(p).ok()).filter(|&p| p != 0)
        };
        self.pm_timer = port(76, 208);
        let dsdt = bytes.u64(140).filter(|&a| a != 0).or_else(|| bytes.u32(40).map(u64::from)).filter(|&a| a != 0);
        if let (Some(pm1a), Some(dsdt)) = (port(64, 172), dsdt) {
            let (_, aml) = table(firmware, dsdt)?;
            self.soft_off =
                sleep_types(aml).map(|(a, b)| SoftOff { pm1a: (pm1a, a), pm1b: port(68, 184).map(|pm1b| (pm1b, b)) });
        }
        Ok(())
    }
}

/// `SLP_TYP` for PM1a and PM1b out of `Name (_S5, Package () {a, b, …})`. The package is constant data, so it can be read
/// without interpreting AML (20.2.5.4): NameOp, name, PackageOp, PkgLength, NumElements, elements.
fn sleep_types(aml: &[u8]) -> Option<(u8, u8)> {
    const NAME: &[u8] = b"_S5_\x12";
    let at = aml.windows(NAME.len()).position(|w| w == NAME)?;
    let package = aml.get(at.checked_add(NAME.len())?..)?;
    let more_length_bytes = usize::from(package.first()? >> 6);
    let mut elements = package.get(more_length_bytes.checked_add(2)?..)?.iter();
    let mut element = || match *elements.next()? {
        0x0A => elements.next().copied(), // BytePrefix
        constant @ (0 | 1) => Some(constant),
        _ => None,
    };
    Some((element()? & 7, element()? & 7))
}
