//! What a block device says of itself (virtio 1.2, 5.2.4) and what the backend is told of it. Nothing of it is believed that could lead
//! out of bounds.

use crate::queue::Shape;
use crate::regs::{Features, SECTOR};
use blkback::disk::DriveInfo;
use virtio_drivers::config::{ReadOnly, read_config};
use virtio_drivers::transport::Transport;

/// The device's configuration.
#[repr(C)]
struct BlkConfig {
    capacity_low: ReadOnly<u32>,
    capacity_high: ReadOnly<u32>,
    size_max: ReadOnly<u32>,
    seg_max: ReadOnly<u32>,
    _geometry: u32,
    blk_size: ReadOnly<u32>,
    physical_block_exp: ReadOnly<u8>,
    _alignment_offset: u8,
    _min_io_size: u16,
    _opt_io_size: u32,
    writeback: ReadOnly<u8>,
    _unused: u8,
    _num_queues: u16,
    max_discard_sectors: ReadOnly<u32>,
    max_discard_seg: ReadOnly<u32>,
    discard_sector_alignment: ReadOnly<u32>,
}

const _: () = assert!(core::mem::offset_of!(BlkConfig, blk_size) == 20);
const _: () = assert!(core::mem::offset_of!(BlkConfig, writeback) == 32);
const _: () = assert!(core::mem::offset_of!(BlkConfig, discard_sector_alignment) == 44);

/// How often the configuration may change while it is read.
const ATTEMPTS: u32 = 8;
/// Bytes of one segment, unless the device wants less.
const MAX_SEGMENT: u32 = 1 << 22;
/// Sectors of one read or write.
const MAX_SECTORS: u32 = 0xffff;
/// The largest physical sector believed: 64 KiB are 2^7 sectors of 512 bytes.
const MAX_EXPONENT: u8 = 7;
/// What the backend calls it.
const MODEL: &[u8; 40] = b"virtio block device                     ";

/// The configuration as far as it is used; what the device does not offer has the value that the specification gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// In sectors of 512 bytes.
    pub capacity: u64,
    /// Bytes of a segment at most.
    pub size_max: u32,
    /// Segments of a request at most.
    pub seg_max: u32,
    /// Bytes of a sector.
    pub blk_size: u32,
    /// Physical sectors have 2 to the power of this sectors.
    pub physical_block_exp: u8,
    /// The write cache is on.
    pub write_cache: bool,
    /// Sectors of 512 bytes of a discard, 0 = none.
    pub max_discard: u32,
    /// Its granularity, likewise.
    pub discard_alignment: u32,
}

impl Config {
    /// Reads it; `None` where it is too short, or changes all the time.
    pub fn read<T: Transport>(transport: &T, features: Features) -> Option<Self> {
        for _ in 0..ATTEMPTS {
            let generation = transport.read_config_generation();
            let config = Self::attempt(transport, features)?;
            if transport.read_config_generation() == generation {
                return Some(config);
            }
        }
        None
    }

    fn attempt<T: Transport>(transport: &T, features: Features) -> Option<Self> {
        macro_rules! field {
            ($name:ident) => {
                read_config!(*transport, BlkConfig, $name).ok()?
            };
            ($name:ident if $feature:ident else $default:expr) => {
                if features.contains(Features::$feature) { field!($name) } else { $default }
            };
        }
        let [low, high]: [u32; 2] = [field!(capacity_low), field!(capacity_high)];
        let writeback: u8 = field!(writeback if CONFIG_WCE else 1);
        let discard_segments: u32 = field!(max_discard_seg if DISCARD else 0);
        let max_discard: u32 = field!(max_discard_sectors if DISCARD else 0);
        Some(Self {
            capacity: u64::from(high) << 32 | u64::from(low),
            size_max: field!(size_max if SIZE_MAX else u32::MAX),
            // One at least, whatever it says: without segments there is nothing it could do.
            seg_max: field!(seg_max if SEG_MAX else 1),
            blk_size: field!(blk_size if BLK_SIZE else SECTOR),
            physical_block_exp: field!(physical_block_exp if TOPOLOGY else 0),
            write_cache: features.contains(Features::FLUSH) && writeback != 0,
            max_discard: if discard_segments == 0 { 0 } else { max_discard },
            discard_alignment: field!(discard_sector_alignment if DISCARD else 0),
        })
    }

    /// What the backend is told; `None` where it has no place for such a drive.
    pub fn describe(&self, features: Features, shape: Shape) -> Option<DriveInfo> {
        if !matches!(self.blk_size, 512 | 4096) {
            return None;
        }
        let ratio = self.blk_size.checked_div(SECTOR)?;
        let max_segment = self.size_max.min(MAX_SEGMENT);
        let max_segment = max_segment.saturating_sub(max_segment.checked_rem(SECTOR)?);
        let sectors = self.capacity.checked_div(u64::from(ratio))?;
        let exponent = if self.physical_block_exp > MAX_EXPONENT { 0 } else { self.physical_block_exp };
        (max_segment > 0 && sectors > 0).then_some(DriveInfo {
            sector_size: self.blk_size,
            physical_sector_size: self.blk_size.wrapping_shl(exponent.into()),
            sectors,
            depth: shape.depth.into(),
            max_segments: shape.max_segments,
            max_segment,
            segment_align: 1,
            max_sectors: MAX_SECTORS,
            write_cache: self.write_cache,
            fua: false,
            max_discard: self.max_discard.checked_div(ratio)?,
            discard_granularity: self.discard_alignment.checked_div(ratio)?.max(1),
            read_only: features.contains(Features::RO),
            rotational: false,
            model: *MODEL,
            // It costs a request at each start, and nobody asks for it.
            serial: [b' '; 20],
        })
    }
}
