//! What blkfront reads of its backend and what it writes about itself, as Linux' does (`public/io/blkif.h`, "Backend XenBus Nodes",
//! "Frontend XenBus Nodes").

use super::request::{Op, Refusal, Request};
use crate::store::{Store, StoreError};
use crate::xenbus::Device;
use abi::io::blkif::{self, MAX_SEGMENTS_PER_REQUEST, SECTOR_SIZE, SECTORS_PER_PAGE, SEGMENTS_PER_INDIRECT_PAGE};
use abi::{EvtchnPort, GrantRef};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Segments of one request at most: 1 MiB, and fewer than one indirect page holds.
const SEGMENTS_MAX: u32 = 256;
const _: () = assert!(SEGMENTS_MAX as usize <= SEGMENTS_PER_INDIRECT_PAGE);

/// What a device is and can do, as the backend says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Sectors of 512 bytes.
    pub sectors: u64,
    /// Bytes of a sector of the device: requests are multiples of it.
    pub sector_size: u32,
    /// Bytes of a physical sector, a multiple of it.
    pub physical_sector_size: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Sectors (of 512 bytes) of one read or write.
    pub max_sectors: u32,
    /// There are flushes; where not, a completed write is stable.
    pub flush: bool,
    /// There are barriers, so a write without indirect segments can be forced in one request.
    pub barrier: bool,
    /// Granularity of discards in bytes; 0 = there are none.
    pub discard_granularity: u32,
}

impl Info {
    /// Reads a Connected backend's directory.
    ///
    /// # Errors
    /// The name of a node that is missing or makes no sense, or the store's.
    pub(super) fn read(store: &mut Store, device: &Device) -> Result<Result<Self, &'static str>, StoreError> {
        let Some(sectors) = device.offer::<u64>(store, "sectors")? else { return Ok(Err("sectors")) };
        let sector_size = device.offer(store, "sector-size")?.unwrap_or(SECTOR_SIZE);
        if !sector_size.is_power_of_two() || !(SECTOR_SIZE..=abi::PAGE_SIZE as u32).contains(&sector_size) {
            return Ok(Err("sector-size"));
        }
        let physical = device.offer(store, "physical-sector-size")?.unwrap_or(sector_size);
        let info = device.offer(store, "info")?.unwrap_or(0u32);
        let indirect = device.offer(store, "feature-max-indirect-segments")?.unwrap_or(0u32);
        let segments = indirect.min(SEGMENTS_MAX).max(MAX_SEGMENTS_PER_REQUEST as u32);
        let granularity = match device.offers(store, "feature-discard")? {
            true => device.offer(store, "discard-granularity")?.unwrap_or(sector_size).max(sector_size),
            false => 0,
        };
        Ok(Ok(Self {
            sectors,
            sector_size,
            physical_sector_size: physical,
            read_only: info & blkif::info::READONLY != 0,
            max_sectors: segments.saturating_mul(u32::from(SECTORS_PER_PAGE)),
            flush: device.offers(store, "feature-flush-cache")?,
            barrier: device.offers(store, "feature-barrier")?,
            discard_granularity: granularity,
        }))
    }

    /// Sectors of 512 bytes that addresses and lengths are multiples of.
    #[must_use]
    pub const fn align(&self) -> u32 {
        self.sector_size / SECTOR_SIZE
    }

    /// Whether a request fits the device.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn check(&self, request: &Request) -> Result<(), Refusal> {
        let &Request { op, sector, sectors, .. } = request;
        let data = matches!(op, Op::Read | Op::Write { .. });
        match (op, &request.buffer) {
            (Op::Read | Op::Write { .. }, Some(buffer))
                if (sectors as usize).saturating_mul(SECTOR_SIZE as usize) <= buffer.len_bytes() => {}
            (Op::Flush | Op::Discard, None) => {}
            _ => return Err(Refusal::BadBuffer),
        }
        if op == Op::Flush {
            return Ok(());
        }
        if self.read_only && op != Op::Read {
            return Err(Refusal::ReadOnly);
        }
        if op == Op::Discard && self.discard_granularity == 0 {
            return Err(Refusal::Unsupported);
        }
        let inside = sector.checked_add(u64::from(sectors)).is_some_and(|end| end <= self.sectors);
        let aligned = sector.is_multiple_of(u64::from(self.align())) && sectors.is_multiple_of(self.align());
        let bounded = !data || sectors <= self.max_sectors;
        if inside && aligned && bounded && sectors > 0 { Ok(()) } else { Err(Refusal::BadRange { sector, sectors }) }
    }
}

/// Tells the backend of the rings.
///
/// # Errors
/// The store's.
pub(super) fn publish(
    store: &mut Store,
    device: &Device,
    ring: &[GrantRef],
    port: EvtchnPort,
    multi_page: bool,
) -> Result<(), StoreError> {
    let mut nodes: Vec<(String, String)> = Vec::with_capacity(ring.len().saturating_add(4));
    let mut put = |name: String, value: String| nodes.push((name, value));
    match ring {
        // A backend that knows no multi-page rings looks for this name.
        [only] if !multi_page => put("ring-ref".to_string(), only.0.to_string()),
        _ => {
            put("ring-page-order".to_string(), ring.len().checked_ilog2().unwrap_or(0).to_string());
            for (i, page) in ring.iter().enumerate() {
                put(format!("ring-ref{i}"), page.0.to_string());
            }
        }
    }
    put("event-channel".to_string(), port.0.to_string());
    put("protocol".to_string(), blkif::PROTOCOL.to_string());
    put("feature-persistent".to_string(), "1".to_string());
    let nodes: Vec<(&str, String)> = nodes.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    device.publish(store, &nodes)
}
