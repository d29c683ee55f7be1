//! Where a virtio device's structures are, from its PCI capabilities (virtio 1.2, 4.1.4).
//!
//! `virtio_drivers`' own walk needs write access to BARs (to size them), which is the hypervisor's alone, and follows a list that is a
//! circle for ever.

use crate::regs;
use core::fmt;
use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::{DeviceFunctionInfo, HeaderType, PCI_CAP_ID_VNDR};
use virtio_drivers::transport::pci::{
    VIRTIO_PCI_CAP_COMMON_CFG, VIRTIO_PCI_CAP_DEVICE_CFG, VIRTIO_PCI_CAP_ISR_CFG, VIRTIO_PCI_CAP_NOTIFY_CFG,
    virtio_device_type,
};

/// First capability (PCI Local Bus 3.0, 6.7).
const FIRST: u16 = 0x34;
/// Most capabilities that fit behind the header.
const MOST: usize = 48;

/// A structure's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the memory BAR.
    pub bar: u8,
    /// Offset in it.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
}

/// All of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// Common configuration.
    pub common: Place,
    /// Doorbells …
    pub notify: Place,
    /// … and how far from each other.
    pub notify_multiplier: u32,
    /// Interrupt status.
    pub isr: Place,
    /// What is a block device's own.
    pub device: Place,
}

/// What is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Vendor and device are no virtio block device's.
    BlockDevice(u32),
    /// It has no structure of this type, or one too small: a legacy device.
    Structure(u8),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BlockDevice(id) => write!(f, "device {id:08x} is no virtio block device"),
            Self::Structure(kind) => write!(f, "no virtio 1.x structure of type {kind}: a legacy device?"),
        }
    }
}

impl Places {
    /// Finds them; `id` is the first word of configuration space, `read` reads a word of it.
    ///
    /// # Errors
    /// See [`Missing`].
    pub fn find(id: u32, read: impl Fn(u16) -> u32) -> Result<Self, Missing> {
        let (vendor_id, device_id) = (id as u16, (id >> 16) as u16);
        let function = DeviceFunctionInfo {
            vendor_id,
            device_id,
            class: 0,
            subclass: 0,
            prog_if: 0,
            revision: 0,
            header_type: HeaderType::Standard,
        };
        if virtio_device_type(&function) != Some(DeviceType::Block) {
            return Err(Missing::BlockDevice(id));
        }
        let [mut common, mut notify, mut isr, mut device] = [None; 4];
        let mut at = (read(FIRST) & 0xfc) as u16;
        for _ in 0..MOST {
            if at < 0x40 {
                break;
            }
            let [kind, next, len, structure] = read(at).to_le_bytes();
            if kind == PCI_CAP_ID_VNDR && len >= 16 {
                let wanted = match structure {
                    VIRTIO_PCI_CAP_COMMON_CFG => Some(&mut common),
                    VIRTIO_PCI_CAP_NOTIFY_CFG if len >= 20 => Some(&mut notify),
                    VIRTIO_PCI_CAP_ISR_CFG => Some(&mut isr),
                    VIRTIO_PCI_CAP_DEVICE_CFG => Some(&mut device),
                    _ => None,
                };
                // Of several the first that can be used counts (4.1.4.1): BARs above 5 are reserved.
                let [bar, ..] = read(at.saturating_add(4)).to_le_bytes();
                if let Some(place) = wanted.filter(|place| place.is_none() && bar <= 5) {
                    let found = Place { bar, offset: read(at.saturating_add(8)), len: read(at.saturating_add(12)) };
                    let multiplier = if len >= 20 { read(at.saturating_add(16)) } else { 0 };
                    *place = Some((found, multiplier));
                }
            }
            at = u16::from(next & 0xfc);
        }
        let need = |place: Option<(Place, u32)>, kind: u8, least: usize| {
            place.filter(|(place, _)| place.len as usize >= least).ok_or(Missing::Structure(kind))
        };
        let (notify, notify_multiplier) = need(notify, VIRTIO_PCI_CAP_NOTIFY_CFG, 2)?;
        Ok(Self {
            common: need(common, VIRTIO_PCI_CAP_COMMON_CFG, regs::COMMON_BYTES)?.0,
            notify,
            notify_multiplier,
            isr: need(isr, VIRTIO_PCI_CAP_ISR_CFG, 1)?.0,
            device: need(device, VIRTIO_PCI_CAP_DEVICE_CFG, 8)?.0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A virtio-blk-pci's capabilities as QEMU 7.2 lays them, MSI-X first.
    fn qemu(at: u16) -> u32 {
        match at {
            0x34 => 0x98,
            0x98 => 0x8001_8411,
            0x84 => 0x0514_7009,
            0x70 => 0x0214_6009,
            0x74 => 4,
            0x78 => 0x3000,
            0x7c => 0x1000,
            0x80 => 4,
            0x60 => 0x0410_5009,
            0x64 => 4,
            0x68 => 0x2000,
            0x6c => 0x1000,
            0x50 => 0x0310_4009,
            0x54 => 4,
            0x58 => 0x1000,
            0x5c => 0x1000,
            0x40 => 0x0110_0009,
            0x44 => 4,
            0x48 => 0,
            0x4c => 0x1000,
            _ => 0,
        }
    }

    const ID: u32 = 0x1042_1af4;

    #[test]
    fn the_structures_are_found() {
        let place = |offset| Place { bar: 4, offset, len: 0x1000 };
        let found = Places {
            common: place(0),
            notify: place(0x3000),
            notify_multiplier: 4,
            isr: place(0x1000),
            device: place(0x2000),
        };
        assert_eq!(Places::find(ID, qemu), Ok(found));
    }

    #[test]
    fn what_is_no_modern_block_device_is_told_from_it() {
        assert_eq!(Places::find(0x1041_1af4, qemu), Err(Missing::BlockDevice(0x1041_1af4)), "a NIC");
        assert_eq!(Places::find(0x100e_8086, qemu), Err(Missing::BlockDevice(0x100e_8086)));
        let legacy = |at| if at == 0x34 { 0 } else { qemu(at) };
        assert_eq!(Places::find(0x1001_1af4, legacy), Err(Missing::Structure(2)));
        let short = |at| if at == 0x4c { 0x30 } else { qemu(at) };
        assert_eq!(Places::find(ID, short), Err(Missing::Structure(1)), "too short for its registers");
    }

    #[test]
    fn a_list_that_is_a_circle_ends() {
        assert_eq!(Places::find(ID, |at| if at == 0x40 { 0x0110_9809 } else { qemu(at) }), Places::find(ID, qemu));
        assert!(Places::find(ID, |_| u32::MAX).is_err(), "nobody answers");
        assert!(Places::find(ID, |at| if at == 0x34 { 0x50 } else { 0x0010_5009 }).is_err());
    }

    #[test]
    fn of_two_structures_of_a_type_the_first_counts_unless_its_bar_is_reserved() {
        let twice = |first_bar: u32| {
            move |at| match at {
                0x34 => 0xa0,
                0xa0 => 0x0110_9809,
                0xa4 => first_bar,
                0xa8 => 0x8000,
                0xac => 0x100,
                at => qemu(at),
            }
        };
        assert_eq!(Places::find(ID, twice(2)).unwrap().common, Place { bar: 2, offset: 0x8000, len: 0x100 });
        assert_eq!(Places::find(ID, twice(6)).unwrap().common.offset, 0);
    }
}
