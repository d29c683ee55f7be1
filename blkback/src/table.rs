//! A drive as the backend keeps it: its partition table, read when a vbd asks for a partition, and the flushes that wait for it.

use crate::disk::{DriveId, DriveInfo, Segment};
use crate::gpt::{Gpt, PartitionError, Reader};
use crate::source::{Extent, Source, SourceError};
use alloc::vec::Vec;
use hw::DmaMemory;

/// A request of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    /// Place among the vbds.
    pub slot: usize,
    pub epoch: u32,
    /// In its ring.
    pub index: u32,
}

/// A partition table.
pub(crate) enum Table {
    Unread,
    Reading {
        reader: Reader,
        /// A command for it is out.
        out: bool,
    },
    Read(Result<Gpt, PartitionError>),
}

/// See the module's head.
pub(crate) struct Drive {
    pub id: DriveId,
    /// It was there and has gone.
    pub gone: bool,
    pub table: Table,
    /// Requests that wait for a flush that has not begun.
    pub waiters: Vec<Ticket>,
    pub flushing: bool,
}

/// Why a source is not resolved.
pub(crate) enum Unresolved {
    /// Its partition table is being read.
    Pending,
    Never(SourceError),
}

impl Drive {
    pub fn new(id: DriveId) -> Self {
        Self { id, gone: false, table: Table::Unread, waiters: Vec::new(), flushing: false }
    }

    /// Finds a part of it; begins to read the partition table where that is needed.
    pub fn resolve(&mut self, source: &Source, info: &DriveInfo) -> Result<Extent, Unresolved> {
        if !source.needs_table() {
            return source.resolve(info, None).map_err(Unresolved::Never);
        }
        match &self.table {
            Table::Unread => {
                self.table = Table::Reading { reader: Reader::new(info.sector_size, info.sectors), out: false };
                Err(Unresolved::Pending)
            }
            Table::Reading { .. } => Err(Unresolved::Pending),
            Table::Read(Err(error)) => Err(Unresolved::Never(SourceError::Partition(error.clone()))),
            Table::Read(Ok(gpt)) => source.resolve(info, Some(gpt)).map_err(Unresolved::Never),
        }
    }

    /// What to read into `scratch` now, if anything: sector, sectors, where to.
    pub fn next_read<M: DmaMemory>(&self, info: &DriveInfo, scratch: &M) -> Option<(u64, u32, Segment)> {
        let Table::Reading { reader, out: false } = &self.table else { return None };
        let (sector, sectors) = reader.wanted();
        let size = info.sector_size.max(1);
        let room = u32::try_from(scratch.len_bytes()).unwrap_or(u32::MAX).min(info.max_segment);
        let sectors = sectors.min(room.checked_div(size).unwrap_or(0)).min(info.max_sectors);
        Some((sector, sectors, Segment { addr: scratch.device_addr(), len: sectors.saturating_mul(size) }))
    }

    /// What it wanted was read, so many bytes, or not. True once the whole table was.
    pub fn read<M: DmaMemory>(&mut self, len: Option<u32>, scratch: &M) -> bool {
        let Table::Reading { reader, out } = &mut self.table else { return false };
        *out = false;
        let bytes: Option<Vec<u8>> = len.map(|len| {
            let words = (0..len as usize).step_by(4).map(|at| scratch.load_acquire(at));
            words.flat_map(u32::to_le_bytes).collect()
        });
        let Some(result) = reader.feed(bytes.as_deref()) else { return false };
        match &result {
            Ok(gpt) => {
                if let Some(remark) = &gpt.remark {
                    log::warn!("drive {}: {remark}", self.id.0);
                }
            }
            Err(error) => log::warn!("drive {}: {error}", self.id.0),
        }
        self.table = Table::Read(result);
        true
    }
}
