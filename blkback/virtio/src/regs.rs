//! Registers of the common configuration (virtio 1.2, 4.1.4.3) and bits of the ring that the driver uses. Status bits, interrupt status
//! and the types of PCI capabilities are `virtio_drivers`'.

use bitflags::bitflags;

/// Which half of the device's features is read.
pub const DEVICE_FEATURE_SELECT: usize = 0x00;
/// It.
pub const DEVICE_FEATURE: usize = 0x04;
/// Which half of the driver's is written.
pub const DRIVER_FEATURE_SELECT: usize = 0x08;
/// It.
pub const DRIVER_FEATURE: usize = 0x0c;
/// MSI-X vector of configuration changes, 16 bits.
pub const CONFIG_MSIX_VECTOR: usize = 0x10;
/// Device status, 8 bits; 0 resets.
pub const DEVICE_STATUS: usize = 0x14;
/// Changes with the configuration, 8 bits.
pub const CONFIG_GENERATION: usize = 0x15;
/// Which queue the rest is about, 16 bits.
pub const QUEUE_SELECT: usize = 0x16;
/// Its size: at most at first, then as chosen, 16 bits.
pub const QUEUE_SIZE: usize = 0x18;
/// Its MSI-X vector, 16 bits.
pub const QUEUE_MSIX_VECTOR: usize = 0x1a;
/// 1 = it works, 16 bits.
pub const QUEUE_ENABLE: usize = 0x1c;
/// Where its doorbell is, in units of the capability's multiplier, 16 bits.
pub const QUEUE_NOTIFY_OFF: usize = 0x1e;
/// Descriptor table, 64 bits.
pub const QUEUE_DESC: usize = 0x20;
/// Available ring.
pub const QUEUE_DRIVER: usize = 0x28;
/// Used ring.
pub const QUEUE_DEVICE: usize = 0x30;
/// Bytes of it all, as far as used.
pub const COMMON_BYTES: usize = 0x38;

/// A vector that could not be set reads so; written, it means none (4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

bitflags! {
    /// Flags of a descriptor (2.7.5).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Descriptor: u16 {
        /// Another follows.
        const NEXT = 1 << 0;
        /// The device writes it.
        const WRITE = 1 << 1;
        /// It is a table of descriptors.
        const INDIRECT = 1 << 2;
    }

    /// Features the driver knows: of a block device (5.2.3), of rings and transports (6).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u64 {
        /// `size_max` limits segments.
        const SIZE_MAX = 1 << 1;
        /// `seg_max` limits their number.
        const SEG_MAX = 1 << 2;
        /// Writes are refused.
        const RO = 1 << 5;
        /// `blk_size` is the size of a sector.
        const BLK_SIZE = 1 << 6;
        /// There may be a write cache, and a command to flush it.
        const FLUSH = 1 << 9;
        /// Physical sectors are told of.
        const TOPOLOGY = 1 << 10;
        /// `writeback` says whether the write cache is on.
        const CONFIG_WCE = 1 << 11;
        /// Discards.
        const DISCARD = 1 << 13;
        /// Tables of descriptors.
        const INDIRECT_DESC = 1 << 28;
        /// Each side says at which index it wants to hear of something.
        const EVENT_IDX = 1 << 29;
        /// Not legacy.
        const VERSION_1 = 1 << 32;
        /// The device's accesses to memory pass the IOMMU.
        const ACCESS_PLATFORM = 1 << 33;
    }
}

/// Without these the device is not driven: a legacy device has other registers, and one without the second would take device addresses
/// for physical ones.
pub const REQUIRED: Features = Features::VERSION_1.union(Features::ACCESS_PLATFORM);

/// Types of requests (5.2.6).
pub mod request {
    /// Read.
    pub const IN: u32 = 0;
    /// Write.
    pub const OUT: u32 = 1;
    /// Flush.
    pub const FLUSH: u32 = 4;
    /// Discard.
    pub const DISCARD: u32 = 11;
}

/// How a request ended (5.2.6).
pub mod status {
    /// Well.
    pub const OK: u8 = 0;
    /// With an error.
    pub const IOERR: u8 = 1;
    /// The device does not do it.
    pub const UNSUPP: u8 = 2;
    /// Nothing the device says: what the driver writes before.
    pub const UNWRITTEN: u8 = 0xff;
}

/// Sectors in requests and in the configuration have 512 bytes, whatever the drive's are (5.2.6).
pub const SECTOR: u32 = 512;
