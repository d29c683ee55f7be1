//! What the device is.

use std::collections::BTreeSet;

/// Feature bits.
pub const SIZE_MAX: u32 = 1;
pub const SEG_MAX: u32 = 2;
pub const RO: u32 = 5;
pub const BLK_SIZE: u32 = 6;
pub const FLUSH: u32 = 9;
pub const TOPOLOGY: u32 = 10;
pub const CONFIG_WCE: u32 = 11;
pub const DISCARD: u32 = 13;
pub const INDIRECT: u32 = 28;
pub const EVENT_IDX: u32 = 29;
pub const VERSION_1: u32 = 32;
pub const ACCESS_PLATFORM: u32 = 33;

/// All that QEMU 7.2's device offers and more.
pub const ALL: &[u32] = &[
    SEG_MAX,
    4,
    BLK_SIZE,
    FLUSH,
    TOPOLOGY,
    CONFIG_WCE,
    12,
    DISCARD,
    14,
    24,
    27,
    INDIRECT,
    EVENT_IDX,
    VERSION_1,
    ACCESS_PLATFORM,
    34,
    40,
];

/// What the device is.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Bits of the features it offers.
    pub features: BTreeSet<u32>,
    /// Places of its queue.
    pub queue_size: u16,
    /// Sectors of 512 bytes.
    pub capacity: u64,
    pub blk_size: u32,
    pub exponent: u8,
    pub seg_max: u32,
    pub size_max: u32,
    pub writeback: u8,
    pub max_discard: u32,
    /// It interrupts by message: its status is not looked at.
    pub messages: bool,
    /// It has no vector to give.
    pub no_vector: bool,
    /// How long a request takes.
    pub latency_us: u64,
    /// How long a reset takes.
    pub reset_us: u64,
    /// While it has requests it looks for more by itself and need not be notified.
    pub eager: bool,
    /// It clears FEATURES_OK.
    pub refuses: bool,
    /// Its configuration changes at each look.
    pub restless: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            features: ALL.iter().copied().collect(),
            queue_size: 256,
            capacity: 1 << 33,
            blk_size: 512,
            exponent: 0,
            seg_max: 254,
            size_max: 0,
            writeback: 1,
            max_discard: 1 << 20,
            messages: false,
            no_vector: false,
            latency_us: 0,
            reset_us: 0,
            eager: false,
            refuses: false,
            restless: false,
        }
    }
}

impl Setup {
    /// The same without these features.
    pub fn without(mut self, features: &[u32]) -> Self {
        self.features.retain(|feature| !features.contains(feature));
        self
    }

    /// The same with this one.
    pub fn with(mut self, feature: u32) -> Self {
        self.features.insert(feature);
        self
    }
}
