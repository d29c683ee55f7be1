//! A software 82540EM for host tests, written from the manual (317453) apart from the driver: it shares no constant with it.
//!
//! One [`Model`] is the registers, the memory behind the IOMMU and the clock. It is no kinder than hardware: reset takes its time and
//! clears what the manual says, a disabled unit does nothing, memory outside of the opened ranges faults, counters clear on
//! read. It stands in one file because it is one machine. [`Quirks`] turn it into QEMU's model where that differs; [`Model::lie`] makes it a liar.

use netback::nic::{Clock, DmaMemory, Mmio};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// Where the model's memory starts, as the device sees it.
pub const MEMORY: u64 = 0x10_0000;
/// Bytes of it: rings first, buffers behind.
pub const MEMORY_LEN: usize = 0x10_0000;
/// Bytes given to the rings.
pub const RINGS_LEN: usize = 0x2000;

/// Differences from hardware.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quirks {
    /// CTRL.RST does nothing (QEMU).
    pub ignores_reset: bool,
    /// Never comes out of reset.
    pub stuck_in_reset: bool,
    /// Reads all ones from everything.
    pub gone: bool,
    /// No frame is received for so long after a write to RCTL (QEMU: 1 s).
    pub deaf_after_rctl_us: u64,
    /// MPC is not cleared by reading (QEMU).
    pub sticky_missed: bool,
    /// Transmits only when [`Model::transmit`] is called, not by itself.
    pub slow_transmit: bool,
    /// EERD never says DONE.
    pub no_eeprom: bool,
}

/// A DMA access that the IOMMU refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// First byte.
    pub addr: u64,
    /// Bytes.
    pub len: usize,
    /// The device wanted to write.
    pub write: bool,
}

/// A lie about the next receive descriptor: words 2 and 3 as written back.
pub type Lie = (u32, u32);

#[derive(Default)]
struct Context {
    words: [u32; 4],
}

#[derive(Default)]
struct State {
    regs: BTreeMap<usize, u32>,
    memory: Vec<u8>,
    now_us: u64,
    quirks: Quirks,
    master: bool,
    mac: [u8; 6],
    reset_reads: u32,
    eerd_reads: u32,
    deaf_until: u64,
    checksum: Context,
    segment: Context,
    frame: Vec<u8>,
    popts: u32,
    sent: Vec<Vec<u8>>,
    faults: Vec<Fault>,
    writes: BTreeMap<usize, u32>,
    context_count: u32,
    status_count: u32,
    waiting: VecDeque<Vec<u8>>,
    lie: Option<Lie>,
}

const CTRL: usize = 0;
const STATUS: usize = 8;
const EERD: usize = 0x14;
const ICR: usize = 0xc0;
const IMS: usize = 0xd0;
const IMC: usize = 0xd8;
const RCTL: usize = 0x100;
const TCTL: usize = 0x400;
const RX: usize = 0x2800;
const TX: usize = 0x3800;
const MPC: usize = 0x4010;

impl State {
    fn reg(&self, at: usize) -> u32 {
        self.regs.get(&at).copied().unwrap_or(0)
    }

    fn power_on(&mut self) {
        self.regs.clear();
        self.regs.insert(CTRL, 0x0000_0201);
        // Link up, full duplex, 1000 Mbit/s: the PHY keeps its link over a MAC reset.
        self.regs.insert(STATUS, 0x0000_0083);
        let m = self.mac;
        self.regs.insert(0x5400, u32::from_le_bytes([m[0], m[1], m[2], m[3]]));
        self.regs.insert(0x5404, u32::from_le_bytes([m[4], m[5], 0, 0x80]));
        self.frame.clear();
        self.checksum = Context::default();
        self.segment = Context::default();
    }

    fn cause(&mut self, bits: u32) {
        *self.regs.entry(ICR).or_default() |= bits;
    }

    fn dma(&mut self, addr: u64, len: usize, write: bool) -> Option<std::ops::Range<usize>> {
        let start = addr.checked_sub(MEMORY).map(|s| s as usize);
        match start {
            Some(s) if self.master && s + len <= self.memory.len() => Some(s..s + len),
            _ => {
                self.faults.push(Fault { addr, len, write });
                None
            }
        }
    }

    fn dma_read(&mut self, addr: u64, len: usize) -> Vec<u8> {
        match self.dma(addr, len, false) {
            Some(r) => self.memory[r].to_vec(),
            None => vec![0xff; len],
        }
    }

    fn dma_write(&mut self, addr: u64, bytes: &[u8]) {
        if let Some(r) = self.dma(addr, bytes.len(), true) {
            self.memory[r].copy_from_slice(bytes);
        }
    }

    fn words(&mut self, addr: u64) -> [u32; 4] {
        let b = self.dma_read(addr, 16);
        std::array::from_fn(|i| u32::from_le_bytes(b[i * 4..i * 4 + 4].try_into().unwrap()))
    }

    fn ring_slot(&self, ring: usize, index: u32) -> u64 {
        (u64::from(self.reg(ring + 4)) << 32 | u64::from(self.reg(ring))) + u64::from(index) * 16
    }

    fn step_head(&mut self, ring: usize) {
        let head = self.reg(ring + 0x10) + 1;
        let len = self.reg(ring + 8) / 16;
        self.regs.insert(ring + 0x10, if head >= len { 0 } else { head });
    }

    fn transmit(&mut self, mut budget: usize) {
        while budget > 0 && self.reg(TCTL) & 2 != 0 && self.reg(TX + 0x10) != self.reg(TX + 0x18) {
            budget -= 1;
            let at = self.ring_slot(TX, self.reg(TX + 0x10));
            let w = self.words(at);
            self.descriptor(w);
            if w[2] & 1 << 27 != 0 {
                self.dma_write(at + 12, &(w[3] | 1).to_le_bytes());
                self.status_count += 1;
                self.cause(1);
            }
            self.step_head(TX);
        }
        self.cause(2);
    }

    fn descriptor(&mut self, w: [u32; 4]) {
        assert!(w[2] & 1 << 29 != 0, "legacy transmit descriptor {w:x?}");
        if w[2] >> 20 & 0xf == 0 {
            self.context_count += 1;
            let context = Context { words: w };
            if w[2] & 1 << 26 != 0 {
                self.segment = context
            } else {
                self.checksum = context
            }
            return;
        }
        assert_eq!(w[2] >> 20 & 0xf, 1, "DTYP");
        if self.frame.is_empty() {
            self.popts = w[3] >> 8 & 0xff;
        }
        let addr = u64::from(w[1]) << 32 | u64::from(w[0]);
        let bytes = self.dma_read(addr, (w[2] & 0xf_ffff) as usize);
        self.frame.extend(bytes);
        if w[2] & 1 << 24 != 0 {
            let frame = std::mem::take(&mut self.frame);
            if w[2] & 1 << 26 != 0 { self.send_segments(&frame) } else { self.send(frame) }
        }
    }

    fn send(&mut self, mut frame: Vec<u8>) {
        if self.popts & 2 != 0 {
            insert_sum(&mut frame, self.checksum.words[1]);
        }
        assert!(frame.len() <= 1518 || self.reg(RCTL) & 1 << 5 != 0, "oversize frame of {}", frame.len());
        self.count_sent(frame);
    }

    fn count_sent(&mut self, frame: Vec<u8>) {
        *self.regs.entry(0x4080).or_default() += 1;
        *self.regs.entry(0x4088 + 8).or_default() += frame.len() as u32 + 4;
        self.sent.push(frame);
    }

    /// Section 3.5: what the device does to each segment's header.
    fn send_segments(&mut self, frame: &[u8]) {
        let w = self.segment.words;
        let (payload, header, mss) = ((w[2] & 0xf_ffff) as usize, (w[3] >> 8 & 0xff) as usize, (w[3] >> 16) as usize);
        assert_eq!(frame.len(), header + payload, "PAYLEN");
        assert!(w[2] & 1 << 25 != 0, "IPv6, whose segments get a wrong length from QEMU's device");
        let (ip, tcp) = ((w[0] & 0xff) as usize, (w[1] & 0xff) as usize);
        let chunks: Vec<&[u8]> = frame[header..].chunks(mss).collect();
        for (i, chunk) in chunks.iter().enumerate() {
            let mut f = frame[..header].to_vec();
            f.extend_from_slice(chunk);
            let ip_payload = (f.len() - tcp) as u16;
            let total = (f.len() - ip) as u16;
            f[ip + 2..ip + 4].copy_from_slice(&total.to_be_bytes());
            let id = u16::from_be_bytes([f[ip + 4], f[ip + 5]]).wrapping_add(i as u16);
            f[ip + 4..ip + 6].copy_from_slice(&id.to_be_bytes());
            let seq = u32::from_be_bytes(f[tcp + 4..tcp + 8].try_into().unwrap()).wrapping_add((i * mss) as u32);
            f[tcp + 4..tcp + 8].copy_from_slice(&seq.to_be_bytes());
            if i + 1 < chunks.len() {
                f[tcp + 13] &= !0x09;
            }
            // The pseudo-header's sum in the field lacks the length.
            let field = (w[1] >> 8 & 0xff) as usize;
            let seed = u32::from(u16::from_be_bytes([f[field], f[field + 1]])) + u32::from(ip_payload);
            f[field..field + 2].copy_from_slice(&fold(seed).to_be_bytes());
            if self.popts & 2 != 0 {
                insert_sum(&mut f, w[1]);
            }
            if self.popts & 1 != 0 {
                insert_sum(&mut f, w[0]);
            }
            self.count_sent(f);
        }
    }

    fn deliver(&mut self) {
        while let Some(frame) = self.waiting.pop_front() {
            if self.reg(RCTL) & 2 == 0 || self.now_us < self.deaf_until || !self.master {
                self.waiting.push_front(frame);
                return;
            }
            if !self.receive(&frame) {
                *self.regs.entry(MPC).or_default() += 1;
                self.cause(1 << 6);
            }
        }
    }

    fn receive(&mut self, frame: &[u8]) -> bool {
        let (head, tail, len) = (self.reg(RX + 0x10), self.reg(RX + 0x18), self.reg(RX + 8) / 16);
        let free = if len == 0 { 0 } else { (tail + len - head) % len };
        let chunks: Vec<&[u8]> = frame.chunks(2048).collect();
        if chunks.len() > free as usize {
            return false;
        }
        for (i, chunk) in chunks.iter().enumerate() {
            let at = self.ring_slot(RX, self.reg(RX + 0x10));
            let w = self.words(at);
            self.dma_write(u64::from(w[1]) << 32 | u64::from(w[0]), chunk);
            let end = if i + 1 == chunks.len() { 2 } else { 0 };
            let (mut word2, mut word3) = (chunk.len() as u32, 1 | end | 1 << 2);
            if let Some(lie) = self.lie.take() {
                (word2, word3) = lie;
            }
            self.dma_write(at + 8, &word2.to_le_bytes());
            self.dma_write(at + 12, &word3.to_le_bytes());
            self.step_head(RX);
        }
        *self.regs.entry(0x4074).or_default() += 1;
        *self.regs.entry(0x4088).or_default() += frame.len() as u32 + 4;
        self.cause(1 << 7);
        true
    }
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// One's complement sum of 16-bit big-endian words.
#[must_use]
pub fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | c.get(1).map_or(0, |b| u32::from(*b)));
    words.fold(0, |s, w| u32::from(fold(s + w))) as u16
}

/// As a context's word says: start, offset, end (0: to the end of the frame).
fn insert_sum(frame: &mut [u8], word: u32) {
    let (start, at, end) = ((word & 0xff) as usize, (word >> 8 & 0xff) as usize, (word >> 16) as usize);
    let end = if end == 0 { frame.len() } else { end + 1 };
    let value = !sum(&frame[start..end]);
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// A handle on the device; clones are the same device.
#[derive(Clone)]
pub struct Model(Rc<RefCell<State>>);

impl Model {
    /// A powered-on device with bus mastership and the address 52:54:00:12:34:56.
    #[must_use]
    pub fn new(quirks: Quirks) -> Self {
        let mut s = State {
            memory: vec![0; MEMORY_LEN],
            quirks,
            master: true,
            mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56],
            ..State::default()
        };
        s.power_on();
        Self(Rc::new(RefCell::new(s)))
    }

    /// What the quirks are from now on.
    pub fn set_quirks(&self, quirks: Quirks) {
        self.0.borrow_mut().quirks = quirks;
    }

    /// What PCI configuration space says about bus mastership.
    pub fn set_master(&self, on: bool) {
        let mut s = self.0.borrow_mut();
        s.master = on;
        s.deliver();
    }

    /// The EEPROM's address.
    pub fn set_mac(&self, mac: [u8; 6]) {
        self.0.borrow_mut().mac = mac;
    }

    /// A register, without the effects of reading it.
    #[must_use]
    pub fn peek(&self, register: usize) -> u32 {
        self.0.borrow().reg(register)
    }

    /// Sets a register behind the driver's back.
    pub fn poke(&self, register: usize, value: u32) {
        self.0.borrow_mut().regs.insert(register, value);
    }

    /// Times a register was written.
    #[must_use]
    pub fn writes(&self, register: usize) -> u32 {
        self.0.borrow().writes.get(&register).copied().unwrap_or(0)
    }

    /// Context descriptors read and statuses written back.
    #[must_use]
    pub fn counts(&self) -> (u32, u32) {
        let s = self.0.borrow();
        (s.context_count, s.status_count)
    }

    /// Level of the interrupt line.
    #[must_use]
    pub fn line(&self) -> bool {
        let s = self.0.borrow();
        s.reg(ICR) & s.reg(IMS) != 0
    }

    /// Fills memory as a program would.
    pub fn store(&self, addr: u64, bytes: &[u8]) {
        let at = (addr - MEMORY) as usize;
        self.0.borrow_mut().memory[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Reads memory as a program would.
    #[must_use]
    pub fn load(&self, addr: u64, len: usize) -> Vec<u8> {
        let at = (addr - MEMORY) as usize;
        self.0.borrow().memory[at..at + len].to_vec()
    }

    /// Takes a frame from the wire; it waits while the receiver is off or deaf.
    pub fn receive(&self, frame: &[u8]) {
        let mut s = self.0.borrow_mut();
        s.waiting.push_back(frame.to_vec());
        s.deliver();
    }

    /// The next receive descriptor is written back with these words 2 and 3.
    pub fn lie(&self, lie: Lie) {
        self.0.borrow_mut().lie = Some(lie);
    }

    /// Serves at most `budget` transmit descriptors.
    pub fn transmit(&self, budget: usize) {
        self.0.borrow_mut().transmit(budget);
    }

    /// Frames sent since the last call.
    #[must_use]
    pub fn sent(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.0.borrow_mut().sent)
    }

    /// Accesses that were refused since the last call.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        std::mem::take(&mut self.0.borrow_mut().faults)
    }

    /// Lets time pass.
    pub fn advance_us(&self, us: u64) {
        let mut s = self.0.borrow_mut();
        s.now_us += us;
        s.deliver();
    }
}

impl Mmio for Model {
    fn read32(&self, offset: usize) -> u32 {
        let mut s = self.0.borrow_mut();
        if s.quirks.gone {
            return u32::MAX;
        }
        match offset {
            CTRL if s.quirks.stuck_in_reset => s.reg(CTRL) | 1 << 26,
            CTRL if s.reset_reads > 0 => {
                s.reset_reads -= 1;
                s.reg(CTRL) | 1 << 26
            }
            EERD => {
                if s.eerd_reads > 0 || s.quirks.no_eeprom {
                    s.eerd_reads = s.eerd_reads.saturating_sub(1);
                    return s.reg(EERD);
                }
                let word = (s.reg(EERD) >> 8 & 0xff) as usize;
                let value = s.mac.chunks(2).nth(word).map_or(0xffff, |c| u16::from_le_bytes([c[0], c[1]]));
                u32::from(value) << 16 | 1 << 4
            }
            MPC if s.quirks.sticky_missed => s.reg(MPC),
            // Octet counters: the high half clears both.
            0x4088 | 0x4090 => s.reg(offset),
            0x408c | 0x4094 => {
                s.regs.remove(&(offset - 4));
                s.regs.remove(&offset).unwrap_or(0)
            }
            ICR | 0x4000..0x4100 => s.regs.remove(&offset).unwrap_or(0),
            IMC => 0,
            _ => s.reg(offset),
        }
    }

    fn write32(&self, offset: usize, value: u32) {
        let mut s = self.0.borrow_mut();
        *s.writes.entry(offset).or_default() += 1;
        if s.quirks.gone {
            return;
        }
        match offset {
            CTRL if value & 1 << 31 != 0 => panic!("the PHY was reset"),
            CTRL if value & 1 << 26 != 0 => {
                if s.quirks.ignores_reset {
                    s.regs.insert(CTRL, value & !(1 << 26));
                } else {
                    s.power_on();
                    s.reset_reads = 3;
                }
            }
            STATUS => {}
            EERD => {
                s.eerd_reads = 4;
                s.regs.insert(EERD, value);
            }
            ICR => *s.regs.entry(ICR).or_default() &= !value,
            IMS => *s.regs.entry(IMS).or_default() |= value,
            IMC => *s.regs.entry(IMS).or_default() &= !value,
            RCTL => {
                s.regs.insert(RCTL, value);
                s.deaf_until = s.now_us + s.quirks.deaf_after_rctl_us;
                s.deliver();
            }
            0x2818 => {
                s.regs.insert(offset, value & 0xffff);
                s.deliver();
            }
            0x3818 | TCTL => {
                s.regs.insert(offset, value);
                if !s.quirks.slow_transmit {
                    s.transmit(usize::MAX);
                }
            }
            _ => {
                s.regs.insert(offset, value);
            }
        }
    }
}

impl DmaMemory for Model {
    fn device_addr(&self) -> u64 {
        MEMORY
    }

    fn len_bytes(&self) -> usize {
        RINGS_LEN
    }

    fn read(&self, offset: usize) -> u32 {
        assert!(offset + 4 <= RINGS_LEN && offset.is_multiple_of(4));
        u32::from_le_bytes(self.0.borrow().memory[offset..offset + 4].try_into().unwrap())
    }

    fn load_acquire(&self, offset: usize) -> u32 {
        self.read(offset)
    }

    fn write(&self, offset: usize, value: u32) {
        assert!(offset + 4 <= RINGS_LEN && offset.is_multiple_of(4));
        self.0.borrow_mut().memory[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn fence(&self) {}
}

impl Clock for Model {
    fn now_us(&self) -> u64 {
        self.0.borrow().now_us
    }

    fn pause_us(&self, us: u32) {
        self.advance_us(u64::from(us));
    }
}
