//! One drive of the controller as a workload's disk. It polls: nothing else runs on this machine.
//!
//! A request's data is one run of a pool's pages, contiguous for the device as well: what a bare unikernel would do, and the shortest
//! list a controller can be given.

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

/// Which pages of the pool are in use.
type Used = Rc<RefCell<Vec<bool>>>;

/// The run of pages of one request; it goes back when it is dropped.
pub struct Buffer {
    first: usize,
    count: usize,
    used: Used,
}

impl Buffer {
    fn take(used: &Used, count: usize) -> Option<Self> {
        let mut pages = used.borrow_mut();
        let first = pages.windows(count.max(1)).position(|run| run.iter().all(|used| !used))?;
        pages.iter_mut().skip(first).take(count).for_each(|used| *used = true);
        Some(Self { first, count, used: Rc::clone(used) })
    }
    /// Where in the pool `len` bytes from `offset` on are; `None` past its end.
    fn place(&self, offset: usize, len: usize) -> Option<usize> {
        (offset + len <= self.count * PAGE).then_some(self.first * PAGE + offset)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.used.borrow_mut().iter_mut().skip(self.first).take(self.count).for_each(|used| *used = false);
    }
}

/// A drive with its memory.
pub struct Drive<D> {
    disks: D,
    id: DriveId,
    info: DriveInfo,
    pool: DmaRegion,
    used: Used,
    /// What is in flight, by token.
    buffers: Vec<Option<Buffer>>,
}

impl<D: Disks> Drive<D> {
    /// The drive `id` with `pool_bytes` for data and `depth` requests at once; `None` where there is no such drive or memory.
    pub fn new(mut disks: D, id: DriveId, pool_bytes: usize, depth: usize) -> Option<Self> {
        let info = *disks.info(id)?;
        disks.interrupts_enable(true);
        disks.interrupts_enable(false);
        let pool = DmaRegion::alloc(pool_bytes)?;
        let used = Rc::new(RefCell::new(alloc::vec![false; pool.len_bytes() / PAGE]));
        let mut buffers = Vec::new();
        buffers.resize_with(depth, || None);
        Some(Self { disks, id, info, pool, used, buffers })
    }

    /// Interrupts are off: the driver looks by itself.
    pub fn poll(&mut self) {
        self.disks.tick();
    }

    fn segments(&self, buffer: &Buffer, bytes: u32) -> Vec<Segment> {
        let (mut addr, mut left) = (self.pool.device_address() + (buffer.first * PAGE) as u64, bytes);
        let mut segments = Vec::with_capacity(1);
        while left > 0 {
            let len = left.min(self.info.max_segment);
            segments.push(Segment { addr, len });
            (addr, left) = (addr + u64::from(len), left - len);
        }
        segments
    }
}

impl<D: Disks> Disk for Drive<D> {
    type Buffer = Buffer;

    fn info(&self) -> Info {
        let align = self.info.sector_size / SECTOR;
        Info {
            sectors: self.info.sectors * u64::from(align),
            align,
            max_sectors: self.info.max_sectors * align,
            discard: self.info.max_discard > 0,
        }
    }
    fn now_us(&self) -> u64 {
        clock::now().as_micros()
    }
    fn buffer(&mut self, len: usize) -> Option<Buffer> {
        Buffer::take(&self.used, len.div_ceil(PAGE))
    }
    fn put(&mut self, buffer: &mut Buffer, offset: usize, from: &[u8]) {
        if let Some(at) = buffer.place(offset, from.len()) {
            self.pool.copy_in(at, from);
        }
    }
    fn get(&self, buffer: &Buffer, offset: usize, to: &mut [u8]) {
        if let Some(at) = buffer.place(offset, to.len()) {
            self.pool.copy_out(at, to);
        }
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
