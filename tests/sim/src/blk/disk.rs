//! A controller with one drive. It moves data sector by sector through the IOMMU, in any order, between any two steps of others. Written
//! sectors are volatile until a flush that was begun after their command was completed, or for ever where they are forced.

use crate::world::World;
use blkback::disk::{
    Change, Command, Completion, Disks, DriveId, DriveInfo, DriveStats, Fault, IoError, Op, ResetError, Segment,
    SubmitError,
};
use hv_core::Mfn;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

/// A version of a sector that is not stable yet.
struct Volatile {
    bytes: Vec<u8>,
    /// The command that wrote it.
    command: u64,
}

struct Active {
    serial: u64,
    token: u32,
    op: Op,
    sector: u64,
    /// Sectors not moved yet.
    left: Vec<u64>,
    segments: Vec<Segment>,
    /// Commands completed when it was begun: what a flush covers.
    covers: BTreeSet<u64>,
    kicked: bool,
}

/// The controller and its drive.
pub struct Device {
    world: Rc<World>,
    info: DriveInfo,
    media: Vec<u8>,
    cache: BTreeMap<u64, Vec<Volatile>>,
    active: Vec<Active>,
    done: VecDeque<Completion>,
    /// Writes completed whose sectors may still be volatile.
    completed: BTreeSet<u64>,
    serial: u64,
    faulty: bool,
    enabled: bool,
    pub gone: bool,
    /// There is another drive in its place.
    pub exchanged: bool,
    changes: VecDeque<Change>,
    /// Sectors that cannot be read or written.
    pub bad: BTreeSet<u64>,
    pub resets: u64,
    pub flushes: u64,
    /// Most commands it had at one time.
    pub deepest: usize,
}

/// The shape of the drive.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub sector_size: u32,
    pub sectors: u64,
    pub depth: u16,
    pub max_segments: u16,
    pub max_sectors: u32,
    pub write_cache: bool,
}

impl Device {
    pub fn new(world: &Rc<World>, shape: Shape) -> Rc<RefCell<Self>> {
        let info = DriveInfo {
            sector_size: shape.sector_size,
            physical_sector_size: 4096,
            sectors: shape.sectors,
            depth: shape.depth,
            max_segments: shape.max_segments,
            max_segment: 1 << 16,
            segment_align: 2,
            max_sectors: shape.max_sectors,
            write_cache: shape.write_cache,
            fua: true,
            max_discard: 16,
            discard_granularity: 1,
            read_only: false,
            rotational: false,
            model: [b'm'; 40],
            serial: [b's'; 20],
        };
        Rc::new(RefCell::new(Self {
            world: world.clone(),
            info,
            media: vec![0; (u64::from(shape.sector_size) * shape.sectors) as usize],
            cache: BTreeMap::new(),
            active: Vec::new(),
            done: VecDeque::new(),
            completed: BTreeSet::new(),
            serial: 0,
            faulty: false,
            enabled: false,
            gone: false,
            exchanged: false,
            changes: VecDeque::new(),
            bad: BTreeSet::new(),
            resets: 0,
            flushes: 0,
            deepest: 0,
        }))
    }

    fn size(&self) -> usize {
        self.info.sector_size as usize
    }

    /// The sector as a read finds it.
    pub fn sector(&self, sector: u64) -> Vec<u8> {
        match self.cache.get(&sector).and_then(|versions| versions.last()) {
            Some(volatile) => volatile.bytes.clone(),
            None => self.media[sector as usize * self.size()..][..self.size()].to_vec(),
        }
    }

    /// Sectors of 512 bytes, as a frontend counts.
    pub fn sector512(&self, sector: u64) -> Vec<u8> {
        let ratio = self.size() as u64 / 512;
        self.sector(sector / ratio)[(sector % ratio) as usize * 512..][..512].to_vec()
    }

    /// How many of these there are.
    pub fn sectors512(&self) -> u64 {
        self.media.len() as u64 / 512
    }

    /// Puts bytes on the media, before the story begins.
    pub fn preset(&mut self, at: usize, bytes: &[u8]) {
        self.media[at..][..bytes.len()].copy_from_slice(bytes);
    }

    pub fn interrupting(&self) -> bool {
        self.enabled && (!self.done.is_empty() || self.faulty || !self.changes.is_empty())
    }

    pub fn is_idle(&self) -> bool {
        self.active.iter().all(|active| !active.kicked)
    }

    /// The driver domain is dead: DMA ends wherever it is. What is in the cache stays there.
    pub fn quiesce(&mut self) {
        self.active.clear();
        self.done.clear();
        self.faulty = false;
        self.enabled = false;
        // What changes while nobody looks is told to nobody.
        self.changes.clear();
    }

    /// All stops until a reset.
    pub fn break_down(&mut self) {
        self.faulty = true;
    }

    /// The drive is pulled out.
    pub fn pull_out(&mut self) {
        self.gone = true;
        self.changes.push_back(Change::Gone(DriveId(0)));
        for active in self.active.drain(..) {
            self.done.push_back(Completion { token: active.token, result: Err(IoError::Gone) });
        }
    }

    /// Another drive takes its place, one on which nobody has anything.
    pub fn exchange(&mut self) {
        self.pull_out();
        (self.gone, self.exchanged) = (false, true);
        (self.info.serial, self.info.sectors) = ([b'x'; 20], 16);
        self.media = vec![0; self.size() * 16];
        self.cache.clear();
        self.changes.push_back(Change::Came(DriveId(0)));
    }

    /// The power fails: of each sector any version that is not stable may have reached the media, or none.
    pub fn lose_power(&mut self) {
        self.quiesce();
        let size = self.size();
        for (sector, versions) in std::mem::take(&mut self.cache) {
            let n = self.world.chance.borrow_mut().below(versions.len() as u32 + 1) as usize;
            if n > 0 {
                self.media[sector as usize * size..][..size].copy_from_slice(&versions[n - 1].bytes);
            }
        }
    }

    /// Moves one sector of some command, or ends one; false if there is nothing to do.
    pub fn step(&mut self) -> bool {
        if self.faulty {
            return false;
        }
        let ready: Vec<usize> = (0..self.active.len()).filter(|&n| self.active[n].kicked).collect();
        if ready.is_empty() {
            return false;
        }
        let n = ready[self.world.chance.borrow_mut().below(ready.len() as u32) as usize];
        if self.active[n].left.is_empty() {
            self.complete(n);
            return true;
        }
        let which = self.world.chance.borrow_mut().below(self.active[n].left.len() as u32) as usize;
        let sector = self.active[n].left.swap_remove(which);
        if self.bad.contains(&sector) {
            let active = self.active.swap_remove(n);
            let result = Err(IoError::Device { status: 0x51, error: 0x40 });
            self.done.push_back(Completion { token: active.token, result });
            return true;
        }
        self.move_sector(n, sector);
        true
    }

    fn complete(&mut self, n: usize) {
        let active = self.active.swap_remove(n);
        match active.op {
            Op::Write { fua: true } => self.settle(&BTreeSet::from([active.serial])),
            Op::Write { fua: false } | Op::Discard => drop(self.completed.insert(active.serial)),
            Op::Flush => {
                self.flushes += 1;
                self.settle(&active.covers);
            }
            Op::Read => {}
        }
        self.done.push_back(Completion { token: active.token, result: Ok(()) });
    }

    /// What these commands wrote is stable, and what it replaced is gone.
    fn settle(&mut self, commands: &BTreeSet<u64>) {
        let size = self.size();
        for (&sector, versions) in &mut self.cache {
            let last = versions.iter().rposition(|volatile| commands.contains(&volatile.command));
            if let Some(last) = last {
                self.media[sector as usize * size..][..size].copy_from_slice(&versions[last].bytes);
                versions.drain(..=last);
            }
        }
        self.cache.retain(|_, versions| !versions.is_empty());
        self.completed.retain(|command| !commands.contains(command));
    }

    fn move_sector(&mut self, n: usize, sector: u64) {
        let size = self.size();
        let active = &self.active[n];
        let (op, command, first) = (active.op, active.serial, active.sector);
        let data = matches!(op, Op::Read | Op::Write { .. });
        let len = if data { size } else { 0 };
        let pieces = pieces(&active.segments, (sector - first) as usize * size, len);
        match op {
            Op::Read => {
                let bytes = self.sector(sector);
                let mut at = 0;
                for (addr, len) in pieces {
                    if self.reaches(addr, true) {
                        self.world.write(addr, &bytes[at..at + len]);
                    }
                    at += len;
                }
            }
            Op::Write { .. } => {
                let mut bytes = vec![0; size];
                let mut at = 0;
                for (addr, len) in pieces {
                    if self.reaches(addr, false) {
                        self.world.read(addr, &mut bytes[at..at + len]);
                    }
                    at += len;
                }
                self.cache.entry(sector).or_default().push(Volatile { bytes, command });
            }
            Op::Discard => self.cache.entry(sector).or_default().push(Volatile { bytes: vec![0; size], command }),
            Op::Flush => {}
        }
    }

    /// The IOMMU.
    fn reaches(&self, addr: u64, write: bool) -> bool {
        let reached = self.world.device_reaches(Mfn::containing(addr), write);
        if !reached {
            self.world.fail(format!("the device was pointed at {addr:#x} (write: {write})"));
        }
        reached
    }
}

/// Runs of memory that hold `len` bytes from byte `at` of the segments on, none across a page.
fn pieces(segments: &[Segment], mut at: usize, mut len: usize) -> Vec<(u64, usize)> {
    let mut pieces = Vec::new();
    for segment in segments {
        let mut offset = at.min(segment.len as usize);
        at -= offset;
        while offset < segment.len as usize && len > 0 {
            let addr = segment.addr + offset as u64;
            let here = len.min(segment.len as usize - offset).min(4096 - (addr % 4096) as usize);
            pieces.push((addr, here));
            offset += here;
            len -= here;
        }
    }
    assert_eq!(len, 0, "segments shorter than their sectors");
    pieces
}

/// The driver, as the backend sees it.
pub struct Driver(pub Rc<RefCell<Device>>, pub DriveInfo);

impl Driver {
    pub fn new(device: &Rc<RefCell<Device>>) -> Self {
        let info = device.borrow().info;
        Self(device.clone(), info)
    }
}

impl Disks for Driver {
    fn drives(&self) -> u8 {
        1
    }
    fn info(&self, drive: DriveId) -> Option<&DriveInfo> {
        (drive == DriveId(0) && !self.0.borrow().gone).then_some(&self.1)
    }
    fn room(&self, _: DriveId) -> usize {
        let device = self.0.borrow();
        usize::from(self.1.depth) - device.active.len().min(usize::from(self.1.depth))
    }
    fn submit(&mut self, drive: DriveId, command: &Command<'_>, token: u32) -> Result<(), SubmitError> {
        let room = self.room(drive);
        let mut device = self.0.borrow_mut();
        if device.gone || drive != DriveId(0) {
            return Err(SubmitError::NoDrive(drive));
        }
        if device.faulty {
            return Err(SubmitError::Faulty);
        }
        if device.exchanged {
            device.world.fail(format!("{:?} for the drive before", command.op));
        }
        let (sector, sectors) = (command.sector, command.sectors);
        let data = matches!(command.op, Op::Read | Op::Write { .. });
        let most = if command.op == Op::Discard { self.1.max_discard } else { self.1.max_sectors };
        if sector.checked_add(sectors.into()).is_none_or(|end| end > self.1.sectors) || sectors > most {
            return Err(SubmitError::BadRange { sector, sectors });
        }
        let bytes: u64 = command.segments.iter().map(|s| u64::from(s.len)).sum();
        let expected = if data { u64::from(sectors) * u64::from(self.1.sector_size) } else { 0 };
        let sound =
            |s: &Segment| s.len > 0 && s.len <= self.1.max_segment && (s.addr | u64::from(s.len)).is_multiple_of(2);
        if bytes != expected
            || command.segments.len() > self.1.max_segments.into()
            || !command.segments.iter().all(sound)
        {
            return Err(SubmitError::BadSegments(command.segments.len()));
        }
        if room == 0 {
            return Err(SubmitError::Full);
        }
        if device.active.iter().any(|active| active.token == token) {
            device.world.fail(format!("token {token} is used twice"));
        }
        device.serial += 1;
        let active = Active {
            serial: device.serial,
            token,
            op: command.op,
            sector,
            left: (sector..sector + u64::from(sectors)).collect(),
            segments: command.segments.to_vec(),
            covers: if command.op == Op::Flush { device.completed.clone() } else { BTreeSet::new() },
            kicked: false,
        };
        device.active.push(active);
        device.deepest = device.deepest.max(device.active.len());
        Ok(())
    }
    fn kick(&mut self) {
        self.0.borrow_mut().active.iter_mut().for_each(|active| active.kicked = true);
    }
    fn completed(&mut self) -> Option<(DriveId, Completion)> {
        let mut device = self.0.borrow_mut();
        if device.faulty {
            return None;
        }
        device.done.pop_front().map(|completion| (DriveId(0), completion))
    }
    fn interrupt(&mut self) {}
    fn interrupts_enable(&mut self, on: bool) {
        self.0.borrow_mut().enabled = on;
    }
    fn tick(&mut self) -> Option<u64> {
        self.1 = self.0.borrow().info;
        None
    }
    fn change(&mut self) -> Option<Change> {
        self.0.borrow_mut().changes.pop_front()
    }
    fn stats(&self, _: DriveId) -> DriveStats {
        DriveStats::default()
    }
    fn fault(&self) -> Option<Fault> {
        self.0.borrow().faulty.then_some(Fault::HostBus(DriveId(0)))
    }
    fn reset(&mut self) -> Result<(), ResetError> {
        let mut device = self.0.borrow_mut();
        device.resets += 1;
        device.faulty = false;
        device.active.clear();
        device.done.clear();
        Ok(())
    }
    fn point_dma_at(&mut self, _: u64) {}
}
