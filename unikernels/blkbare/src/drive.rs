//! One drive of the controller as a workload's disk. It polls: nothing else runs on this machine.
//!
//! Data lies in pages of one pool, as a guest's does, so that the controller is given lists of the same shape; neighbours among them are
//! one segment, since here they are contiguous for the device too.

use alloc::rc::Rc;
use alloc::vec::Vec;
use blkback::disk::{self, Disks, DriveId, DriveInfo, IoError, Segment};
use blkcheck::disk::{Command, Disk, Done, Failure, Info, Op};
use core::cell::RefCell;
use libxenrt::clock;
use libxenrt::dma::DmaRegion;

/// Bytes of a page.
const PAGE: usize = 4096;
/// Bytes of a workload's sectors.
const SECTOR: u32 = 512;

/// Pages of one request; they go back when it is dropped.
pub struct Buffer {
    pages: Vec<usize>,
    free: Rc<RefCell<Vec<usize>>>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = self.free.borrow_mut();
        // In reverse, so that the next one gets neighbours in rising order again.
        free.extend(self.pages.drain(..).rev());
    }
}

/// A drive with its memory.
pub struct Drive<D> {
    disks: D,
    id: DriveId,
    info: DriveInfo,
    pool: DmaRegion,
    free: Rc<RefCell<Vec<usize>>>,
    /// What is in flight, by token.
    buffers: Vec<Option<Buffer>>,
}

impl<D: Disks> Drive<D> {
    /// The drive `id` with `pool_bytes` for data and `depth` requests at once; `None` where there is no such drive or memory.
    pub fn new(disks: D, id: DriveId, pool_bytes: usize, depth: usize) -> Option<Self> {
        let info = *disks.info(id)?;
        let pool = DmaRegion::alloc(pool_bytes)?;
        let free = Rc::new(RefCell::new((0..pool.len_bytes() / PAGE).rev().collect()));
        let mut buffers = Vec::new();
        buffers.resize_with(depth, || None);
        Some(Self { disks, id, info, pool, free, buffers })
    }

    /// Interrupts are off: asks the controller what has happened.
    pub fn poll(&mut self) {
        self.disks.interrupt();
        self.disks.tick();
    }

    fn segments(&self, buffer: &Buffer, mut left: u32) -> Vec<Segment> {
        let mut segments: Vec<Segment> = Vec::with_capacity(buffer.pages.len());
        for page in &buffer.pages {
            let here = left.min(PAGE as u32);
            left -= here;
            let addr = self.pool.device_address() + (page * PAGE) as u64;
            match segments.last_mut() {
                Some(last) if last.addr + u64::from(last.len) == addr => last.len += here,
                _ => segments.push(Segment { addr, len: here }),
            }
        }
        segments
    }
}

/// Runs `each` over the parts of pages that `len` bytes from `offset` on consist of: the place in the pool and the range of bytes.
fn parts(buffer: &Buffer, offset: usize, len: usize, mut each: impl FnMut(usize, core::ops::Range<usize>)) {
    let mut done = 0;
    while done < len {
        let at = offset + done;
        let Some(page) = buffer.pages.get(at / PAGE) else { return };
        let here = (len - done).min(PAGE - at % PAGE);
        each(page * PAGE + at % PAGE, done..done + here);
        done += here;
    }
}

impl<D: Disks> Disk for Drive<D> {
    type Buffer = Buffer;

    fn info(&self) -> Info {
        let align = self.info.sector_size / SECTOR;
        let by_segments = u32::from(self.info.max_segments) * (PAGE as u32 / SECTOR);
        Info {
            sectors: self.info.sectors * u64::from(align),
            align,
            max_sectors: (self.info.max_sectors * align).min(by_segments),
            discard: self.info.max_discard > 0,
        }
    }
    fn now_us(&self) -> u64 {
        clock::now().as_micros()
    }
    fn buffer(&mut self, len: usize) -> Option<Buffer> {
        let mut free = self.free.borrow_mut();
        let left = free.len().checked_sub(len.div_ceil(PAGE))?;
        let mut pages = free.split_off(left);
        pages.reverse();
        Some(Buffer { pages, free: Rc::clone(&self.free) })
    }
    fn put(&mut self, buffer: &mut Buffer, offset: usize, from: &[u8]) {
        parts(buffer, offset, from.len(), |at, range| {
            self.pool.copy_in(at, from.get(range).unwrap_or_default());
        });
    }
    fn get(&self, buffer: &Buffer, offset: usize, to: &mut [u8]) {
        parts(buffer, offset, to.len(), |at, range| {
            self.pool.copy_out(at, to.get_mut(range).unwrap_or_default());
        });
    }
    fn submit(&mut self, command: Command, buffer: Option<Buffer>, token: u32) -> Result<(), Option<Buffer>> {
        let align = self.info.sector_size / SECTOR;
        let op = match command.op {
            Op::Read => disk::Op::Read,
            Op::Write { fua } => disk::Op::Write { fua },
            Op::Flush => disk::Op::Flush,
            Op::Discard => disk::Op::Discard,
        };
        let bytes = command.sectors * SECTOR;
        let segments = buffer.as_ref().map(|b| self.segments(b, bytes)).unwrap_or_default();
        let (sector, sectors) = (command.sector / u64::from(align), command.sectors / align);
        let command = disk::Command { op, sector, sectors, segments: &segments };
        if self.disks.submit(self.id, &command, token).is_err() {
            return Err(buffer);
        }
        if let Some(place) = self.buffers.get_mut(token as usize) {
            *place = buffer;
        }
        Ok(())
    }
    fn kick(&mut self) {
        self.disks.kick();
    }
    fn completed(&mut self) -> Option<Done<Buffer>> {
        let (_, done) = self.disks.completed()?;
        let buffer = self.buffers.get_mut(done.token as usize).and_then(Option::take);
        let result = done.result.map_err(|e| if e == IoError::Timeout { Failure::TimedOut } else { Failure::Failed });
        Some(Done { token: done.token, result, buffer })
    }
}
