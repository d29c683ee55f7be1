//! What a disk driver gives the backend ([`Disks`]); what it needs from the domain it runs in is `hw`'s ([`Mmio`], [`DmaMemory`], [`Clock`]).
//!
//! A driver knows no grants, no xenstore and no vbds: it sees device addresses, sectors of its drives and 32-bit tokens. The backend
//! owns every buffer and knows no register. Both sides are pure, so each is tested against a model of the other.
//!
//! One driver serves one PCI function, which may have several drives (AHCI's ports). Commands on one drive may complete in
//! any order; a barrier is the backend's business: it submits a [`Op::Flush`] only when what it shall cover is done.
//!
//! A device is not trusted. A driver checks all that the device writes; what cannot be true becomes a sticky [`Fault`]: from then on
//! the driver neither reports nor accepts anything until [`Disks::reset`].

use core::fmt;

pub use hw::{Clock, DmaMemory, Mmio, NarrowMmio};

/// A contiguous run of bytes as the device addresses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Device address of the first byte, a multiple of [`DriveInfo::segment_align`].
    pub addr: u64,
    /// Bytes, a multiple of it, at most [`DriveInfo::max_segment`].
    pub len: u32,
}

/// Which drive of the function, from 0, in the order of the controller's ports; stays the same over restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DriveId(pub u8);

/// What shall be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read into the segments.
    Read,
    /// Write from the segments.
    Write {
        /// The data is on stable media when this completes.
        fua: bool,
    },
    /// Everything completed before is on stable media when this completes. No segments, `sector` and `sectors` 0.
    Flush,
    /// The sectors' content is no longer needed. No segments.
    Discard,
}

/// One command.
#[derive(Clone, Copy, Debug)]
pub struct Command<'a> {
    /// What.
    pub op: Op,
    /// First sector, in units of [`DriveInfo::sector_size`].
    pub sector: u64,
    /// Sectors; the segments' bytes together are `sectors * sector_size` for reads and writes.
    pub sectors: u32,
    /// Where the data is.
    pub segments: &'a [Segment],
}

/// What a drive is and can do; constant while it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriveInfo {
    /// Bytes of a sector: 512 or 4096.
    pub sector_size: u32,
    /// Bytes of a physical sector, a multiple of it.
    pub physical_sector_size: u32,
    /// Sectors.
    pub sectors: u64,
    /// Commands in flight at once, not 0.
    pub depth: u16,
    /// Segments of one command, not 0.
    pub max_segments: u16,
    /// Bytes of one segment.
    pub max_segment: u32,
    /// Alignment of a segment's address and length, a power of two.
    pub segment_align: u32,
    /// Sectors of one read or write.
    pub max_sectors: u32,
    /// There is a volatile write cache: writes are stable only after [`Op::Flush`] or with `fua`. Where not, a flush completes at once.
    pub write_cache: bool,
    /// Writes can be forced to media; where not, the driver makes `fua` of a write and a flush.
    pub fua: bool,
    /// Sectors of one discard, 0 = no [`Op::Discard`].
    pub max_discard: u32,
    /// Sectors, granularity of discards.
    pub discard_granularity: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// It spins.
    pub rotational: bool,
    /// Model, ASCII, padded with spaces.
    pub model: [u8; 40],
    /// Serial number, ASCII, padded with spaces.
    pub serial: [u8; 20],
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// As given to [`Disks::submit`]; the segments are the backend's again.
    pub token: u32,
    /// Its result.
    pub result: Result<(), IoError>,
}

/// Why a command failed. Exactly this command is affected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoError {
    /// The drive reported an error (status and error register in the low bytes); a read's segments hold anything.
    Device {
        /// ATA status, or the device's own code.
        status: u8,
        /// ATA error register, 0 where there is none.
        error: u8,
    },
    /// It was not served within its deadline, and again after recovery.
    Timeout,
    /// The drive has gone.
    Gone,
    /// The drive does not do this.
    Unsupported,
}

/// Why a command was not queued. Nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubmitError {
    /// As many commands in flight as the drive takes, or the driver recovers; retry after a completion.
    Full,
    /// No such drive, or it has gone.
    NoDrive(DriveId),
    /// Outside of the drive, or 0 or too many sectors.
    BadRange {
        /// First sector.
        sector: u64,
        /// Sectors.
        sectors: u32,
    },
    /// Too many, misaligned, too long, or not as long as the sectors.
    BadSegments(usize),
    /// The drive does not do this ([`DriveInfo`] says so).
    Unsupported,
    /// The controller is faulty or not yet reset.
    Faulty,
}

/// What a controller did that it cannot do, or did not do in time; what makes a driver stop until [`Disks::reset`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// All ones from a register: the device has gone from the bus.
    Gone,
    /// A port did not come out of an error within its bounds.
    PortStuck(DriveId),
    /// A port completed a command that it was not given, or moved more bytes than it was told to.
    Impossible {
        /// The drive.
        drive: DriveId,
        /// What was found, as the driver's documentation says.
        found: u32,
    },
    /// The controller reported a host bus error: its DMA was refused.
    HostBus(DriveId),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => write!(f, "the device does not answer"),
            Self::PortStuck(d) => write!(f, "drive {}: the port does not recover", d.0),
            Self::Impossible { drive, found } => {
                write!(f, "drive {}: the port said what cannot be ({found:#x})", drive.0)
            }
            Self::HostBus(d) => write!(f, "drive {}: the controller was refused its memory", d.0),
        }
    }
}

/// Why a reset did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetError {
    /// The controller did not come out of it in time.
    Timeout {
        /// Microseconds waited.
        waited_us: u64,
    },
    /// It does not answer.
    Gone,
    /// More resets than the driver allows in a row; the domain should end itself to be restarted.
    TooMany(u32),
    /// The memory for the controller's structures is too small, misaligned or above what it can address.
    BadMemory {
        /// Device address.
        addr: u64,
        /// Bytes.
        len: usize,
    },
}

impl fmt::Display for ResetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout { waited_us } => write!(f, "the controller does not stop ({waited_us} us)"),
            Self::Gone => write!(f, "the controller does not answer"),
            Self::TooMany(n) => write!(f, "{n} resets in a row"),
            Self::BadMemory { addr, len } => write!(f, "unsuitable memory ({len} bytes at {addr:#x})"),
        }
    }
}

/// What changed on a drive by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The drive has gone: its commands end with [`IoError::Gone`].
    Gone(DriveId),
    /// A drive is there; ask [`Disks::info`].
    Came(DriveId),
}

/// Counters of a drive since the driver was made; a reset does not clear them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriveStats {
    /// Commands completed.
    pub commands: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flushes completed.
    pub flushes: u64,
    /// Commands that failed.
    pub errors: u64,
    /// Error recoveries of the port.
    pub recoveries: u64,
    /// Link resets among them.
    pub link_resets: u64,
}

/// A disk controller. Calls never block; none loops longer than its ports times their depth.
pub trait Disks {
    /// Places for drives; ids are below it. Constant.
    fn drives(&self) -> u8;

    /// What the drive is; `None` where there is none (any more).
    fn info(&self, drive: DriveId) -> Option<&DriveInfo>;

    /// Commands that can be queued on it now.
    fn room(&self, drive: DriveId) -> usize;

    /// Queues a command; the device learns of it by [`Disks::kick`]. The segments must stay valid until the token's [`Completion`].
    ///
    /// # Errors
    /// Nothing was queued, see [`SubmitError`].
    fn submit(&mut self, drive: DriveId, command: &Command<'_>, token: u32) -> Result<(), SubmitError>;

    /// Tells the device of all that was queued since the last call (one register write per drive with work).
    fn kick(&mut self);

    /// The next completed command of any drive, in any order.
    fn completed(&mut self) -> Option<(DriveId, Completion)>;

    /// Reads and acknowledges the interrupt's causes; a level-triggered line is low afterwards. Look at [`Disks::completed`] after it.
    fn interrupt(&mut self);

    /// Lets the device interrupt, or not. After enabling, look at [`Disks::completed`] once more before sleeping.
    fn interrupts_enable(&mut self, on: bool);

    /// Goes on with error recovery and looks after deadlines; cheap when there is nothing. Returns when it wants to be called again at
    /// the latest (microseconds of [`Clock`]), `None` = not before something happens.
    fn tick(&mut self) -> Option<u64>;

    /// What changed by itself since the last call.
    fn change(&mut self) -> Option<Change>;

    /// Counters.
    fn stats(&self, drive: DriveId) -> DriveStats;

    /// The fault that stopped the driver, until a reset clears it.
    fn fault(&self) -> Option<Fault>;

    /// Stops and restarts the controller (no link renegotiation where a port works). Every command is forgotten: no token given
    /// before is reported afterwards, and all segments are the backend's again.
    ///
    /// # Errors
    /// The device is silent and stays so, see [`ResetError`]; the domain should end itself to be restarted.
    fn reset(&mut self) -> Result<(), ResetError>;

    /// Fault injection (crash kind `dma`): makes the device read from or write to `addr`, which the caller knows not to be its own.
    /// The driver is unusable afterwards.
    fn point_dma_at(&mut self, addr: u64);
}
