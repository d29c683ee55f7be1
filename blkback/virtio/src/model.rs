//! A software virtio block device for host tests, written from the specification apart from the driver: it shares no constant with it.
//!
//! One [`Model`] is the registers, the memory behind the IOMMU, the clock and the drive. It is no kinder than hardware: a driver that
//! breaks a rule of the specification panics here, time passes only by the clock, requests may end in any order, memory outside of
//! its own faults, and it looks for requests only when it was notified or said that it need not be.

mod handle;
mod setup;

pub use handle::{Bar, Model};
pub use setup::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Where the model's memory starts, as the device sees it.
pub const MEMORY: u64 = 0x10_0000;
/// Bytes of it: the driver's first, buffers behind.
pub const MEMORY_LEN: usize = 0x20_0000;
/// Device address of the first buffer.
pub const BUFFERS: u64 = MEMORY + crate::AREA_BYTES as u64;

/// A DMA access that the IOMMU refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    pub addr: u64,
    pub write: bool,
}

/// A piece of a request.
#[derive(Clone, Copy, Debug)]
struct Piece {
    addr: u64,
    len: u32,
    write: bool,
}

/// A request taken from the queue.
#[derive(Debug)]
struct Request {
    head: u16,
    pieces: Vec<Piece>,
    due: u64,
}

/// What the device does wrong, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Names this head.
    Head(u32),
    /// Names the head a second time.
    Twice,
    /// Says it wrote so many bytes.
    Len(u32),
    /// Writes this status.
    Status(u8),
    /// Writes no status.
    NoStatus,
    /// Moves the used index so much too far.
    Index(u16),
}

#[derive(Default, Debug)]
struct Registers {
    device_half: u32,
    driver_half: u32,
    driver_features: u64,
    status: u8,
    generation: u8,
    size: u16,
    vector: u16,
    enabled: bool,
    addresses: [u64; 3],
    isr: u8,
}

struct State {
    setup: Setup,
    regs: Registers,
    memory: Vec<u8>,
    now: u64,
    master: bool,
    gone: bool,
    /// When a reset is over.
    reset_until: Option<u64>,
    stuck_in_reset: bool,
    resets: u32,
    avail: u16,
    used: u16,
    running: Vec<Request>,
    media: BTreeMap<u64, Vec<u8>>,
    cache: BTreeMap<u64, Vec<u8>>,
    bad: BTreeSet<u64>,
    /// Sectors whose requests never end, and how often still.
    stuck: BTreeMap<u64, u32>,
    lies: VecDeque<Lie>,
    refused: Vec<Refused>,
    /// Types of the requests done.
    log: Vec<u32>,
    interrupts: u32,
    notifications: u32,
    longest_chain: usize,
    indirect: u32,
    seed: u64,
}

impl State {
    fn agreed(&self, feature: u32) -> bool {
        self.regs.driver_features >> feature & 1 == 1
    }

    fn dma(&mut self, addr: u64, len: usize, write: bool) -> Option<std::ops::Range<usize>> {
        let start = addr.checked_sub(MEMORY).map(|s| s as usize);
        match start {
            Some(s) if self.master && s + len <= self.memory.len() => Some(s..s + len),
            _ => {
                self.refused.push(Refused { addr, write });
                None
            }
        }
    }

    fn read(&mut self, addr: u64, len: usize) -> Vec<u8> {
        self.dma(addr, len, false).map_or_else(|| vec![0xff; len], |r| self.memory[r].to_vec())
    }

    fn write(&mut self, addr: u64, bytes: &[u8]) {
        if let Some(r) = self.dma(addr, bytes.len(), true) {
            self.memory[r].copy_from_slice(bytes);
        }
    }

    fn read16(&mut self, addr: u64) -> u16 {
        u16::from_le_bytes(self.read(addr, 2).try_into().unwrap())
    }

    fn read_u64(bytes: &[u8]) -> u64 {
        u64::from_le_bytes(bytes[..8].try_into().unwrap())
    }

    fn reset(&mut self) {
        self.regs = Registers { size: self.setup.queue_size, vector: 0xffff, ..Registers::default() };
        (self.avail, self.used) = (0, 0);
        self.running.clear();
        self.reset_until = None;
        self.resets += 1;
    }

    fn serving(&self) -> bool {
        self.regs.status & 0x44 == 4 && self.regs.enabled && self.reset_until.is_none() && self.master
    }

    /// Gives up: something it was pointed at cannot be.
    fn needs_reset(&mut self) {
        self.regs.status |= 0x40;
        if self.regs.status & 4 != 0 {
            self.regs.isr |= 2;
        }
    }

    /// Takes what is in the available ring, and says from where on it wants to hear of more.
    fn take(&mut self) {
        let [_, driver, device] = self.regs.addresses;
        loop {
            let size = self.regs.size;
            let index = self.read16(driver + 2);
            assert!(index.wrapping_sub(self.avail) <= size, "more requests than places");
            while self.avail != index {
                let head = self.read16(driver + 4 + u64::from(self.avail % size) * 2);
                self.avail = self.avail.wrapping_add(1);
                assert!(self.running.iter().all(|r| r.head != head), "head {head} is out already");
                let pieces = self.chain(head);
                let latency = self.setup.latency_us;
                let spread = if latency == 0 { 0 } else { self.random() % latency };
                self.running.push(Request { head, pieces, due: self.now + latency + spread });
            }
            // A device that looks by itself wants to hear of nothing: an index far ahead.
            let eager = self.setup.eager && !self.running.is_empty();
            let event = if eager { self.avail.wrapping_add(0x4000) } else { self.avail };
            self.write(device, &u16::from(eager && !self.agreed(EVENT_IDX)).to_le_bytes());
            if self.agreed(EVENT_IDX) {
                self.write(device + 4 + 8 * u64::from(size), &event.to_le_bytes());
            }
            if self.read16(driver + 2) == self.avail {
                return;
            }
        }
    }

    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.seed >> 33
    }

    fn chain(&mut self, head: u16) -> Vec<Piece> {
        let mut table = self.regs.addresses[0];
        let mut limit = self.regs.size;
        let mut at = head;
        let mut pieces: Vec<Piece> = Vec::new();
        let mut inside = false;
        loop {
            assert!(at < limit, "descriptor {at} of {limit}");
            let words = self.read(table + u64::from(at) * 16, 16);
            let (addr, len) = (Self::read_u64(&words), u32::from_le_bytes(words[8..12].try_into().unwrap()));
            let flags = u16::from_le_bytes(words[12..14].try_into().unwrap());
            let next = u16::from_le_bytes(words[14..16].try_into().unwrap());
            if flags & 4 != 0 {
                assert!(
                    self.agreed(INDIRECT) && !inside && pieces.is_empty() && flags == 4,
                    "a table where none may be"
                );
                assert!(len % 16 == 0 && len > 0);
                (table, limit, at, inside) = (addr, (len / 16) as u16, 0, true);
                self.indirect += 1;
                continue;
            }
            let write = flags & 2 != 0;
            assert!(len > 0, "an empty piece");
            assert!(write || pieces.iter().all(|p| !p.write), "readable behind writable");
            pieces.push(Piece { addr, len, write });
            if flags & 1 == 0 {
                break;
            }
            assert!(pieces.len() < usize::from(limit), "a circle");
            at = next;
        }
        self.longest_chain = self.longest_chain.max(pieces.len());
        pieces
    }

    /// Lets requests end whose time has come, in any order among them.
    fn work(&mut self) {
        if let Some(until) = self.reset_until {
            if self.now < until || self.stuck_in_reset {
                return;
            }
            self.reset();
        }
        if !self.serving() {
            return;
        }
        if self.setup.eager && !self.running.is_empty() {
            self.take();
        }
        loop {
            let ready: Vec<usize> = (0..self.running.len()).filter(|i| self.running[*i].due <= self.now).collect();
            if ready.is_empty() {
                return;
            }
            let pick = self.random() as usize % ready.len();
            let request = self.running.remove(ready[pick]);
            if !self.perform(request) || !self.serving() {
                return;
            }
            if self.running.is_empty() && self.setup.eager {
                self.take();
            }
        }
    }

    fn perform(&mut self, mut request: Request) -> bool {
        let header = request.pieces[0];
        assert!(header.len == 16 && !header.write, "no header");
        let words = self.read(header.addr, 16);
        let kind = u32::from_le_bytes(words[..4].try_into().unwrap());
        let sector = Self::read_u64(&words[8..]);
        let last = *request.pieces.last().unwrap();
        assert!(last.len == 1 && last.write, "no status");
        let data: Vec<Piece> = request.pieces[1..request.pieces.len() - 1].to_vec();
        let bytes: u64 = data.iter().map(|p| u64::from(p.len)).sum();
        assert!(data.len() <= self.limit(), "{} segments", data.len());
        let touched = sector..sector + bytes / 512;
        if let Some(times) = self.stuck.range_mut(touched.clone()).map(|(_, n)| n).find(|n| **n > 0)
            && kind <= 1
        {
            *times -= 1;
            request.due = u64::MAX;
            self.running.push(request);
            return true;
        }
        self.log.push(kind);
        let before = self.refused.len();
        let (mut status, mut written) = self.execute(kind, sector, &data);
        if self.refused.len() > before {
            self.needs_reset();
            return false;
        }
        written += 1;
        let lie = self.lies.pop_front();
        match lie {
            Some(Lie::Status(s)) => status = s,
            Some(Lie::Len(len)) => written = len,
            _ => {}
        }
        if lie != Some(Lie::NoStatus) {
            self.write(last.addr, &[status]);
        }
        let head = if let Some(Lie::Head(head)) = lie { head } else { request.head.into() };
        self.put(head, written);
        match lie {
            Some(Lie::Twice) => self.put(head, written),
            Some(Lie::Index(ahead)) => {
                self.used = self.used.wrapping_add(ahead);
                let device = self.regs.addresses[2];
                self.write(device + 2, &self.used.to_le_bytes());
            }
            _ => {}
        }
        true
    }

    fn limit(&self) -> usize {
        if self.agreed(SEG_MAX) { self.setup.seg_max as usize } else { 1 }
    }

    /// Status and bytes written.
    fn execute(&mut self, kind: u32, sector: u64, data: &[Piece]) -> (u8, u32) {
        let bytes: u64 = data.iter().map(|p| u64::from(p.len)).sum();
        let sectors = sector..sector + bytes / 512;
        let ratio = if self.agreed(BLK_SIZE) { u64::from(self.setup.blk_size / 512) } else { 1 };
        if self.agreed(SIZE_MAX) {
            assert!(data.iter().all(|p| p.len <= self.setup.size_max), "a segment too long");
        }
        match kind {
            0 | 1 => {
                assert!(bytes > 0 && bytes.is_multiple_of(512 * ratio) && sector.is_multiple_of(ratio));
                assert!(sectors.end <= self.setup.capacity, "beyond the end");
                assert!(data.iter().all(|p| p.write == (kind == 0)), "data the wrong way");
                assert!(kind == 0 || !self.setup.features.contains(&RO), "a write to what is read-only");
                if self.bad.range(sectors.clone()).next().is_some() {
                    return (1, 0);
                }
                if kind == 0 {
                    let mut all: Vec<u8> = sectors.flat_map(|s| self.sector(s, false)).collect();
                    for piece in data {
                        let rest = all.split_off(piece.len as usize);
                        self.write(piece.addr, &all);
                        all = rest;
                    }
                    return (0, bytes as u32);
                }
                let all: Vec<u8> = data.iter().flat_map(|p| self.read(p.addr, p.len as usize)).collect();
                for (s, bytes) in sectors.zip(all.chunks(512)) {
                    self.cache.insert(s, bytes.to_vec());
                }
                if !self.volatile() {
                    self.flush();
                }
                (0, 0)
            }
            4 => {
                assert!(sector == 0 && data.is_empty() && self.agreed(FLUSH));
                self.flush();
                (0, 0)
            }
            11 => {
                assert!(self.agreed(DISCARD) && sector == 0 && bytes == 16 && !data[0].write);
                let range = self.read(data[0].addr, 16);
                let (first, count) = (Self::read_u64(&range), u32::from_le_bytes(range[8..12].try_into().unwrap()));
                assert!(count <= self.setup.max_discard && range[12..] == [0; 4]);
                assert!(first + u64::from(count) <= self.setup.capacity);
                assert!(first.is_multiple_of(ratio) && u64::from(count).is_multiple_of(ratio));
                for s in first..first + u64::from(count) {
                    self.cache.insert(s, vec![0; 512]);
                }
                (0, 0)
            }
            _ => (2, 0),
        }
    }

    fn volatile(&self) -> bool {
        self.agreed(FLUSH) && (!self.agreed(CONFIG_WCE) || self.setup.writeback == 1)
    }

    fn flush(&mut self) {
        let cache = std::mem::take(&mut self.cache);
        self.media.extend(cache);
    }

    fn sector(&self, sector: u64, durable: bool) -> Vec<u8> {
        let cached = self.cache.get(&sector).filter(|_| !durable);
        cached.or_else(|| self.media.get(&sector)).cloned().unwrap_or_else(|| vec![0; 512])
    }

    /// Puts an element into the used ring, and interrupts if that is wanted.
    fn put(&mut self, head: u32, len: u32) {
        let [_, driver, device] = self.regs.addresses;
        let size = self.regs.size;
        let at = device + 4 + u64::from(self.used % size) * 8;
        self.write(at, &[head.to_le_bytes(), len.to_le_bytes()].concat());
        let old = self.used;
        self.used = self.used.wrapping_add(1);
        self.write(device + 2, &self.used.to_le_bytes());
        let wanted = if self.agreed(EVENT_IDX) {
            let event = self.read16(driver + 4 + 2 * u64::from(size));
            self.used.wrapping_sub(event).wrapping_sub(1) < self.used.wrapping_sub(old)
        } else {
            self.read16(driver) & 1 == 0
        };
        if wanted {
            self.interrupts += 1;
            self.regs.isr |= 1;
        }
    }
}
