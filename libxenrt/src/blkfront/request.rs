//! What is asked of a block device and what comes back.

use super::pool::Buffer;
use crate::clock::Instant;

/// What shall be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read into the buffer.
    Read,
    /// Write from the buffer.
    Write {
        /// The data is on stable media when this completes.
        fua: bool,
    },
    /// All that was completed before this was submitted is on stable media when it completes.
    Flush,
    /// The sectors' content is no longer needed.
    Discard,
}

/// One request. Requests in flight together have no order among each other.
#[derive(Debug)]
pub struct Request {
    /// What.
    pub op: Op,
    /// First sector, in units of 512 bytes.
    pub sector: u64,
    /// Sectors of 512 bytes; 0 for a flush.
    pub sectors: u32,
    /// The data, from its first byte; of at least `sectors * 512` bytes for a read or write, `None` for the others.
    pub buffer: Option<Buffer>,
    /// The caller's name for it.
    pub token: u64,
    /// When it is reported as [`IoError::TimedOut`]; `None` = never.
    pub deadline: Option<Instant>,
}

/// How a request ended.
#[derive(Debug)]
pub struct Completion {
    /// The request's.
    pub token: u64,
    /// The request's.
    pub op: Op,
    /// Its result.
    pub result: Result<(), IoError>,
    /// The request's; not there where the backend may still use it (after a timeout or a broken protocol).
    pub buffer: Option<Buffer>,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoError {
    /// The backend answered with an error.
    Failed,
    /// The backend does not do this.
    Unsupported,
    /// No answer before its deadline. It may still be carried out.
    TimedOut,
    /// The backend broke the protocol; the device is not used any more until the backend has closed it.
    Broken,
    /// After a reconnection the device does not have these sectors any more, or takes only shorter requests.
    Changed,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The ring is full, or there is no connection at this moment; try again after a completion or an event.
    Full,
    /// The backend broke the protocol.
    Broken,
    /// Not within the device, not a multiple of its sector size, or longer than [`super::Info::max_sectors`].
    BadRange {
        /// First sector.
        sector: u64,
        /// Sectors.
        sectors: u32,
    },
    /// Missing, too short, of another device, or where none belongs.
    BadBuffer,
    /// The device is read-only.
    ReadOnly,
    /// The device does not discard.
    Unsupported,
}

/// A request that was not taken, with its buffer.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub why: Refusal,
    /// The request, as it was given.
    pub request: Request,
}
