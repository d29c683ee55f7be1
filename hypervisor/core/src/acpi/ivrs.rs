//! The I/O Virtualization Reporting Structure: which IOMMU serves which devices, and by which ID a device's requests arrive
//! (AMD I/O Virtualization Technology Specification, order 48882, 5.2).
//!
//! An IOMMU may be described several times, by blocks of type 10h, 11h and 40h, later types saying more. For each IOMMU the
//! highest type that is there counts.

use super::{AcpiError, Bytes};
use alloc::vec::Vec;

/// A contiguous range of device IDs, inclusive (`bus << 8 | device << 3 | function`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Devices {
    /// First.
    pub first: u16,
    /// Last.
    pub last: u16,
    /// The ID their requests carry, if not their own (devices behind a bridge).
    pub alias: Option<u16>,
}

/// One IOMMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Iommu {
    /// 10h, 11h or 40h.
    pub block_type: u8,
    /// Its own PCI function.
    pub bdf: u16,
    /// Offset of its capability block in that function's configuration space.
    pub capability: u16,
    /// Physical address of its registers.
    pub base: u64,
    /// Segment group it serves.
    pub segment: u16,
    /// What it serves; empty: everything of the segment.
    pub devices: Vec<Devices>,
    /// Device IDs of the IO-APICs' interrupts: (IO-APIC ID, device ID).
    pub ioapics: Vec<(u8, u16)>,
}

/// The table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ivrs {
    /// IOMMUs, each once.
    pub iommus: Vec<Iommu>,
}

impl Ivrs {
    /// Reads a whole table whose header has been checked.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, AcpiError> {
        let mut this = Self::default();
        let mut offset = 48usize;
        while let Some(rest) = bytes.get(offset..).filter(|b| !b.is_empty()) {
            let bad = AcpiError::BadEntry { table: *b"IVRS", offset };
            let len = usize::from(rest.u16(2).filter(|&l| l >= 4).ok_or(bad)?);
            let block = rest.get(..len).ok_or(bad)?;
            let header = match block.u8(0) {
                Some(0x10) => 24,
                Some(0x11 | 0x40) => 40,
                _ => {
                    offset = offset.saturating_add(len);
                    continue;
                }
            };
            let iommu = Iommu::parse(block, header, offset)?;
            match this.iommus.iter_mut().find(|i| i.base == iommu.base) {
                Some(known) if known.block_type < iommu.block_type => *known = iommu,
                Some(_) => {}
                None => this.iommus.push(iommu),
            }
            offset = offset.saturating_add(len);
        }
        Ok(this)
    }

    /// The ID that a device's requests carry.
    pub fn requester(&self, bdf: u16) -> u16 {
        let known = self.iommus.iter().flat_map(|i| &i.devices).find(|d| d.first <= bdf && bdf <= d.last);
        known.and_then(|d| d.alias).unwrap_or(bdf)
    }
    /// The device ID of an IO-APIC's interrupts.
    pub fn ioapic(&self, id: u8) -> Option<u16> {
        self.iommus.iter().flat_map(|i| &i.ioapics).find(|a| a.0 == id).map(|a| a.1)
    }
}

impl Iommu {
    fn parse(block: &[u8], header: usize, base_offset: usize) -> Result<Self, AcpiError> {
        let bad = |at: usize| AcpiError::BadEntry { table: *b"IVRS", offset: base_offset.saturating_add(at) };
        let fixed = || {
            Some(Self {
                block_type: block.u8(0)?,
                bdf: block.u16(4)?,
                capability: block.u16(6)?,
                base: block.u64(8)?,
                segment: block.u16(16)?,
                devices: Vec::new(),
                ioapics: Vec::new(),
            })
        };
        let mut this = fixed().ok_or(bad(0))?;
        let mut range: Option<Devices> = None;
        let mut at = header;
        while let Some(rest) = block.get(at..).filter(|b| !b.is_empty()) {
            let len = entry_len(rest).ok_or(bad(at))?;
            let entry = rest.get(..len).ok_or(bad(at))?;
            this.entry(entry, &mut range).ok_or(bad(at))?;
            at = at.saturating_add(len);
        }
        Ok(this)
    }

    fn entry(&mut self, e: &[u8], range: &mut Option<Devices>) -> Option<()> {
        let one = |id: u16, alias| Devices { first: id, last: id, alias };
        match e.u8(0)? {
            // All; the ID is reserved there.
            1 => self.devices.push(Devices { first: 0, last: u16::MAX, alias: None }),
            // Select, and its alias and extended forms.
            2 | 70 => self.devices.push(one(e.u16(1)?, None)),
            66 => self.devices.push(one(e.u16(1)?, Some(e.u16(5)?))),
            // Start of a range, likewise; it ends at the next entry of type 4.
            3 | 71 => *range = Some(one(e.u16(1)?, None)),
            67 => *range = Some(one(e.u16(1)?, Some(e.u16(5)?))),
            4 => {
                let start = range.take()?;
                self.devices.push(Devices { last: e.u16(1)?, ..start });
            }
            // Special device: the handle is an IO-APIC's ID where the variety says 1.
            72 if e.u8(7)? == 1 => self.ioapics.push((e.u8(4)?, e.u16(5)?)),
            _ => {}
        }
        Some(())
    }
}

/// Bytes of a device entry: 4, 8, 16 or 32 by the upper two bits of its type; type F0h (an ACPI device) says it itself.
fn entry_len(entry: &[u8]) -> Option<usize> {
    match entry.u8(0)? {
        0xF0 => Some(usize::from(entry.u8(21)?).saturating_add(22)),
        kind => Some(4 << (kind >> 6)),
    }
}
