//! A block device as a file: `embedded-io`'s `Read`, `Write` and `Seek`, byte by byte. What does not cover whole sectors at its edges is read,
//! changed and written again; everything else goes in requests as long as the device takes.

use super::{Blkfront, BlkfrontError, IoError, Op, Refusal, Request};
use crate::clock::{self, Instant};
use crate::store::Store;
use core::time::Duration;
use embedded_io::{ErrorKind, ErrorType, Read, Seek, SeekFrom, Write};

/// Bytes of blkif's sectors.
const SECTOR: u64 = 512;
/// Largest sector of a device: a page.
const SECTOR_MAX: usize = abi::PAGE_SIZE;
/// How long a request may take unless the file says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileError {
    /// The device.
    Io(IoError),
    /// The device refused the request.
    Refused(Refusal),
    /// The link could not be made anew.
    Link(BlkfrontError),
    /// No answer, or no room for a request, in time.
    TimedOut,
    /// A position before the begin or beyond what a number holds.
    BadPosition,
    /// A write at the end of the device.
    End,
}

impl core::fmt::Display for FileError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{self:?}")
    }
}
impl core::error::Error for FileError {}

impl embedded_io::Error for FileError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::TimedOut | Self::Io(IoError::TimedOut) => ErrorKind::TimedOut,
            Self::Refused(Refusal::ReadOnly) => ErrorKind::PermissionDenied,
            Self::Refused(Refusal::Unsupported) | Self::Io(IoError::Unsupported) => ErrorKind::Unsupported,
            Self::BadPosition => ErrorKind::InvalidInput,
            Self::End => ErrorKind::WriteZero,
            Self::Io(_) | Self::Refused(_) | Self::Link(_) => ErrorKind::Other,
        }
    }
}

/// Whole sectors, one request at a time: what a file is made of.
pub trait Sectors {
    /// Bytes of a sector, a power of two up to a page.
    fn sector_size(&self) -> usize;
    /// Bytes of the device, a multiple of it.
    fn len_bytes(&self) -> u64;
    /// Bytes of one request, a multiple of it.
    fn request_max(&self) -> usize;
    /// Reads whole sectors from a byte address that is a multiple of the sector size.
    ///
    /// # Errors
    /// See [`FileError`].
    fn read_at(&mut self, at: u64, to: &mut [u8]) -> Result<(), FileError>;
    /// Writes whole sectors.
    ///
    /// # Errors
    /// See [`FileError`].
    fn write_at(&mut self, at: u64, from: &[u8]) -> Result<(), FileError>;
    /// Makes stable what was written.
    ///
    /// # Errors
    /// See [`FileError`].
    fn sync(&mut self) -> Result<(), FileError>;
}

/// A device whose requests are waited for. Completions of requests that others submitted are dropped, so it has the device for itself.
pub struct Waited<'a> {
    disk: &'a mut Blkfront,
    store: &'a mut Store,
    timeout: Duration,
    /// Of the last request.
    token: u64,
}

impl<'a> Waited<'a> {
    /// Over a connected device.
    pub const fn new(disk: &'a mut Blkfront, store: &'a mut Store) -> Self {
        Self { disk, store, timeout: TIMEOUT, token: 0 }
    }
    /// How long requests may take from now on.
    pub const fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    fn turn(&mut self, deadline: Instant) -> Result<(), FileError> {
        if clock::now() >= deadline {
            return Err(FileError::TimedOut);
        }
        self.disk.wait(self.store, deadline).map_err(FileError::Link)
    }

    /// Submits and waits; the buffer comes back when it was read into.
    fn run(
        &mut self,
        op: Op,
        at: u64,
        len: usize,
        fill: impl FnOnce(&mut super::Buffer),
    ) -> Result<Option<super::Buffer>, FileError> {
        let deadline = clock::now() + self.timeout;
        let mut buffer = None;
        if len > 0 {
            let mut taken = self.disk.buffer(len);
            while taken.is_none() {
                self.turn(deadline)?;
                self.disk.poll(drop);
                taken = self.disk.buffer(len);
            }
            buffer = taken;
        }
        if let Some(buffer) = &mut buffer {
            fill(buffer);
        }
        let sectors = u32::try_from(len as u64 / SECTOR).map_err(|_| FileError::BadPosition)?;
        self.token = self.token.wrapping_add(1);
        let token = self.token;
        let mut request = Request { op, sector: at / SECTOR, sectors, buffer, token, deadline: Some(deadline) };
        loop {
            match self.disk.submit(request) {
                Ok(()) => break,
                Err(refused) if refused.why == Refusal::Full => request = refused.request,
                Err(refused) => return Err(FileError::Refused(refused.why)),
            }
            self.turn(deadline)?;
            self.disk.poll(drop);
        }
        loop {
            while let Some(completion) = self.disk.completed() {
                if completion.token == token {
                    return completion.result.map(|()| completion.buffer).map_err(FileError::Io);
                }
            }
            self.turn(deadline + Duration::from_secs(1))?;
        }
    }
}

impl Sectors for Waited<'_> {
    fn sector_size(&self) -> usize {
        self.disk.info().sector_size as usize
    }
    fn len_bytes(&self) -> u64 {
        self.disk.info().sectors.saturating_mul(SECTOR)
    }
    fn request_max(&self) -> usize {
        (self.disk.info().max_sectors as usize).saturating_mul(SECTOR as usize)
    }
    fn read_at(&mut self, at: u64, to: &mut [u8]) -> Result<(), FileError> {
        let buffer = self.run(Op::Read, at, to.len(), |_| ())?;
        let copied = buffer.map_or(0, |buffer| buffer.copy_out(0, to));
        if copied == to.len() { Ok(()) } else { Err(FileError::BadPosition) }
    }
    fn write_at(&mut self, at: u64, from: &[u8]) -> Result<(), FileError> {
        self.run(Op::Write { fua: false }, at, from.len(), |buffer| {
            buffer.copy_in(0, from);
        })?;
        Ok(())
    }
    fn sync(&mut self) -> Result<(), FileError> {
        self.run(Op::Flush, 0, 0, |_| ()).map(drop)
    }
}

/// A position on a device.
pub struct BlockFile<S> {
    sectors: S,
    position: u64,
}

impl<S: Sectors> BlockFile<S> {
    /// At the device's begin.
    pub const fn new(sectors: S) -> Self {
        Self { sectors, position: 0 }
    }
    /// The device.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.sectors
    }

    /// What of `len` bytes at the position goes in one piece: the sector-aligned address, where in it the piece begins, and its length. A
    /// piece that begins or ends within a sector stays within that sector.
    fn piece(&self, len: usize) -> (u64, usize, usize) {
        let size = self.sectors.sector_size().max(1);
        let inside = (self.position % size as u64) as usize;
        let at = self.position.saturating_sub(inside as u64);
        let left = usize::try_from(self.sectors.len_bytes().saturating_sub(self.position)).unwrap_or(usize::MAX);
        let len = len.min(left);
        let len = if inside > 0 || len < size {
            len.min(size.saturating_sub(inside))
        } else {
            len.min(self.sectors.request_max().max(size)) / size * size
        };
        (at, inside, len)
    }

    fn whole(&self, inside: usize, len: usize) -> bool {
        inside == 0 && len.is_multiple_of(self.sectors.sector_size().max(1))
    }
}

impl<S: Sectors> ErrorType for BlockFile<S> {
    type Error = FileError;
}

impl<S: Sectors> Read for BlockFile<S> {
    /// Reads up to the device's end; 0 there.
    fn read(&mut self, to: &mut [u8]) -> Result<usize, FileError> {
        let (at, inside, len) = self.piece(to.len());
        let Some(to) = to.get_mut(..len).filter(|to| !to.is_empty()) else { return Ok(0) };
        if self.whole(inside, len) {
            self.sectors.read_at(at, to)?;
        } else {
            let mut edge = [0; SECTOR_MAX];
            let sector = edge.get_mut(..self.sectors.sector_size()).ok_or(FileError::BadPosition)?;
            self.sectors.read_at(at, sector)?;
            to.copy_from_slice(sector.get(inside..inside.saturating_add(len)).ok_or(FileError::BadPosition)?);
        }
        self.position = self.position.saturating_add(len as u64);
        Ok(len)
    }
}

impl<S: Sectors> Write for BlockFile<S> {
    /// Writes; [`FileError::End`] at the device's end.
    fn write(&mut self, from: &[u8]) -> Result<usize, FileError> {
        if from.is_empty() {
            return Ok(0);
        }
        let (at, inside, len) = self.piece(from.len());
        let from = from.get(..len).filter(|from| !from.is_empty()).ok_or(FileError::End)?;
        if self.whole(inside, len) {
            self.sectors.write_at(at, from)?;
        } else {
            let mut edge = [0; SECTOR_MAX];
            let sector = edge.get_mut(..self.sectors.sector_size()).ok_or(FileError::BadPosition)?;
            self.sectors.read_at(at, sector)?;
            sector.get_mut(inside..inside.saturating_add(len)).ok_or(FileError::BadPosition)?.copy_from_slice(from);
            self.sectors.write_at(at, sector)?;
        }
        self.position = self.position.saturating_add(len as u64);
        Ok(len)
    }
    /// What was written is stable afterwards.
    fn flush(&mut self) -> Result<(), FileError> {
        self.sectors.sync()
    }
}

impl<S: Sectors> Seek for BlockFile<S> {
    fn seek(&mut self, to: SeekFrom) -> Result<u64, FileError> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.sectors.len_bytes().checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = position.ok_or(FileError::BadPosition)?;
        Ok(self.position)
    }
}
