//! A software AHCI controller for host tests, written from the specification apart from the driver: it shares no constant with it.
//!
//! One [`Model`] is the registers, the memory behind the IOMMU and the clock, with a [`Drive`] per port. It is no kinder than hardware:
//! a driver that breaks a rule of the specification panics here, time passes only by the clock, commands may end in any order,
//! memory outside of the opened ranges faults. It is long, one file because it is one machine. [`Setup::qemu`] turns it into QEMU's
//! model where that differs; the functions below [`Model::lie_active`] make it a liar.

pub mod drive;
mod handle;

use blkback::disk::{Clock, DmaMemory, Mmio};
use drive::{Answer, Ata};
pub use drive::{Drive, DriveSetup};
pub use handle::Model;
use std::collections::BTreeMap;

/// Where the model's memory starts, as the device sees it.
pub const MEMORY: u64 = 0x10_0000;
/// Bytes of it: the driver's first, buffers behind.
pub const MEMORY_LEN: usize = 0x40_0000;
/// Bytes given to the driver.
pub const AREA_LEN: usize = crate::AREA_BYTES;
/// Device address of the first buffer.
pub const BUFFERS: u64 = MEMORY + AREA_LEN as u64;

/// What the controller is.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Ports implemented.
    pub ports: u32,
    /// Slots of a command list.
    pub slots: u8,
    /// Queuing.
    pub queuing: bool,
    /// 64-bit addresses.
    pub wide: bool,
    /// Command list override.
    pub override_: bool,
    /// Drives wait to be told to spin up.
    pub staggered: bool,
    /// The BIOS owns it: never gives up, or after so many microseconds.
    pub bios_us: Option<u64>,
    /// QEMU: stopping stops nothing, and a reset waits for what runs; a command that is not queued takes the issue bit of its slot along
    /// whenever it ends, and QEMU itself ends with one whose list was started again; an error does not end other commands; a busy
    /// drive does not say so; what ends while no FIS is received is told of by the next one, of whichever life.
    pub qemu: bool,
    /// QEMU 7.2.0: nor does stopping clear the command registers, or COMRESET PxCI, and a queued error shows in the Set Device Bits FIS
    /// and as a bit of PxSERR only.
    pub keeps: bool,
    /// How long a port takes to stop.
    pub stop_us: u64,
    /// How long a link takes to come up.
    pub link_us: u64,
    /// How long a drive is busy after COMRESET.
    pub spin_us: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            ports: 0x3f,
            slots: 32,
            queuing: true,
            wide: true,
            override_: true,
            staggered: false,
            bios_us: None,
            qemu: false,
            keeps: false,
            stop_us: 20,
            link_us: 500,
            spin_us: 300,
        }
    }
}

/// QEMU's ich9-ahci, as of 7.2.22 and 10.0.
pub const QEMU: Setup = Setup {
    ports: 0x3f,
    slots: 32,
    queuing: true,
    wide: true,
    override_: false,
    staggered: false,
    bios_us: None,
    qemu: true,
    keeps: false,
    stop_us: 0,
    link_us: 0,
    spin_us: 0,
};

/// QEMU 7.2.0's.
pub const QEMU_7_2_0: Setup = Setup { keeps: true, ..QEMU };

/// A DMA access that the IOMMU refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// First byte.
    pub addr: u64,
    /// Bytes.
    pub len: usize,
    /// The device wanted to write.
    pub write: bool,
}

/// Memory beyond the model's own, for tests of whole backends.
pub trait Bus {
    /// Reads; `false` where there is nothing.
    fn read(&mut self, addr: u64, to: &mut [u8]) -> bool;
    /// Writes.
    fn write(&mut self, addr: u64, from: &[u8]) -> bool;
}

#[derive(Debug)]
struct Running {
    slot: u8,
    ata: Ata,
    /// `u64::MAX`: never.
    due: u64,
    /// The controller forgot it, the drive did not: it ends by a reset only.
    orphan: bool,
    /// The command list was started again over it.
    lost: bool,
    /// Whether data goes to the drive, and the regions, as they were when the command was taken.
    to_drive: bool,
    regions: Vec<(u64, usize)>,
}

#[derive(Default)]
struct Port {
    regs: BTreeMap<usize, u32>,
    drive: Option<Drive>,
    running: Vec<Running>,
    /// CR and FR go off then.
    stopped_at: u64,
    /// COMRESET since.
    comreset: Option<u64>,
    /// The link is up from then on, the drive ready.
    link_at: u64,
    ready_at: u64,
    /// A task file error stopped the list.
    halted: bool,
    stuck_running: bool,
    prdbc_lie: Option<u32>,
    /// Queued commands that ended and are not told of yet; QEMU tells of them by the next FIS, whatever was reset in between.
    finished: u32,
}

struct State {
    setup: Setup,
    host: BTreeMap<usize, u32>,
    ports: Vec<Port>,
    memory: Vec<u8>,
    bus: Option<Box<dyn Bus>>,
    now: u64,
    master: bool,
    gone: bool,
    stuck_in_reset: bool,
    refused: Vec<Refused>,
    resets: u32,
    accesses: (u64, u64),
}

const GHC: usize = 4;
const IS: usize = 8;
const CLB: usize = 0x00;
const FB: usize = 0x08;
const PIS: usize = 0x10;
const PIE: usize = 0x14;
const CMD: usize = 0x18;
const TFD: usize = 0x20;
const SIG: usize = 0x24;
const SSTS: usize = 0x28;
const SCTL: usize = 0x2c;
const SERR: usize = 0x30;
const SACT: usize = 0x34;
const CI: usize = 0x38;

const ST: u32 = 1;
const CLO: u32 = 8;
const FRE: u32 = 1 << 4;
const FR: u32 = 1 << 14;
const CR: u32 = 1 << 15;

impl Port {
    fn reg(&self, at: usize) -> u32 {
        self.regs.get(&at).copied().unwrap_or(0)
    }

    fn set(&mut self, at: usize, value: u32) {
        self.regs.insert(at, value);
    }

    fn or(&mut self, at: usize, value: u32) {
        self.set(at, self.reg(at) | value);
    }

    fn addr(&self, at: usize) -> u64 {
        u64::from(self.reg(at + 4)) << 32 | u64::from(self.reg(at))
    }

    fn link_up(&self) -> bool {
        self.reg(SSTS) & 0xf == 3
    }

    fn drive(&mut self) -> &mut Drive {
        self.drive.as_mut().unwrap()
    }
}

impl State {
    fn dma(&mut self, addr: u64, len: usize, write: bool) -> Option<std::ops::Range<usize>> {
        let start = addr.checked_sub(MEMORY).map(|s| s as usize);
        match start {
            Some(s) if self.master && s + len <= self.memory.len() => Some(s..s + len),
            _ => {
                self.refused.push(Refused { addr, len, write });
                None
            }
        }
    }

    fn dma_read(&mut self, addr: u64, len: usize) -> Option<Vec<u8>> {
        let mut out = vec![0; len];
        if let Some(bus) = self.bus.as_mut().filter(|_| self.master)
            && bus.read(addr, &mut out)
        {
            return Some(out);
        }
        self.dma(addr, len, false).map(|r| self.memory[r].to_vec())
    }

    fn dma_write(&mut self, addr: u64, bytes: &[u8]) -> bool {
        if let Some(bus) = self.bus.as_mut().filter(|_| self.master)
            && bus.write(addr, bytes)
        {
            return true;
        }
        match self.dma(addr, bytes.len(), true) {
            Some(r) => {
                self.memory[r].copy_from_slice(bytes);
                true
            }
            None => false,
        }
    }

    fn word(&mut self, addr: u64) -> u32 {
        self.dma_read(addr, 4).map_or(u32::MAX, |b| u32::from_le_bytes(b.try_into().unwrap()))
    }

    fn cause(&mut self, p: usize, bits: u32) {
        self.ports[p].or(PIS, bits);
    }

    fn port_causes(&self, p: usize) -> u32 {
        let port = &self.ports[p];
        let serr = port.reg(SERR);
        let link = if self.setup.qemu { 0 } else { (serr >> 26 & 1) << 6 | (serr >> 16 & 1) << 22 };
        port.reg(PIS) | link
    }

    fn causes(&self) -> u32 {
        let ports = 0..self.ports.len();
        ports.filter(|p| self.port_causes(*p) & self.ports[*p].reg(PIE) != 0).fold(0, |m, p| m | 1 << p)
    }

    /// The drive's register FIS.
    fn register_fis(&mut self, p: usize, status: u8, error: u8) {
        self.ports[p].set(TFD, u32::from(error) << 8 | u32::from(status));
        if self.ports[p].reg(CMD) & FRE != 0 {
            let at = self.ports[p].addr(FB) + 0x40;
            self.dma_write(at, &[0x34, 0x40, status, error]);
        }
    }

    fn signature(&mut self, p: usize) {
        let sig = self.ports[p].drive().setup.signature;
        self.ports[p].set(SIG, sig);
        self.register_fis(p, 0x50, 1);
    }

    fn power_on(&mut self, p: usize) {
        let there = self.ports[p].drive.is_some();
        let (now, link) = (self.now, self.setup.link_us);
        let port = &mut self.ports[p];
        let stale = port.reg(CI);
        port.regs.clear();
        port.running.clear();
        if self.setup.keeps {
            port.set(CI, stale);
        }
        port.set(SIG, u32::MAX);
        port.set(TFD, 0x7f);
        port.set(CMD, if self.setup.staggered { 4 } else { 6 });
        port.link_at = if there && !self.setup.staggered { now + link } else { u64::MAX };
        port.ready_at = u64::MAX;
        port.halted = false;
        self.time(p);
    }

    /// QEMU's resets wait for what runs.
    fn wait_out(&mut self, p: usize) {
        let waits = self.setup.qemu;
        let running = std::mem::take(&mut self.ports[p].running);
        running.iter().filter(|run| waits && run.due != u64::MAX).for_each(|run| self.end(p, run));
    }

    fn link_reset(&mut self, p: usize) {
        self.wait_out(p);
        let now = self.now;
        let keeps = self.setup.keeps;
        let port = &mut self.ports[p];
        port.halted = false;
        port.set(TFD, 0x7f);
        port.set(SIG, u32::MAX);
        port.set(SACT, 0);
        if !keeps {
            port.set(CI, 0);
        }
        if let Some(d) = &mut port.drive {
            d.resets.1 += 1;
            (d.error, d.srst) = (None, None);
            port.link_at = now + self.setup.link_us;
        }
        port.ready_at = u64::MAX;
    }

    /// Lets time have its effects on a port.
    fn time(&mut self, p: usize) {
        let now = self.now;
        let spin = self.setup.spin_us;
        let qemu = self.setup.qemu;
        let port = &mut self.ports[p];
        if now >= port.stopped_at && !port.stuck_running {
            let cmd = port.reg(CMD);
            let off = if cmd & ST == 0 { CR } else { 0 } | if cmd & FRE == 0 { FR } else { 0 };
            port.set(CMD, cmd & !off);
        }
        if port.comreset.is_some() {
            return;
        }
        if now >= port.link_at && !port.link_up() {
            port.set(SSTS, 0x113);
            if !qemu {
                port.or(SERR, 1 << 26 | 1 << 16);
                port.set(TFD, 0x80);
            }
            port.ready_at = now + spin;
        }
        if now >= port.ready_at && (port.reg(CMD) & FRE != 0) {
            port.ready_at = u64::MAX;
            self.signature(p);
        }
        self.work(p);
    }

    fn all_time(&mut self) {
        (0..self.ports.len()).for_each(|p| self.time(p));
    }

    /// Ends what is due, in an order of the drive's choice.
    fn work(&mut self, p: usize) {
        loop {
            let now = self.now;
            let port = &mut self.ports[p];
            let due: Vec<usize> = (0..port.running.len()).filter(|i| port.running[*i].due <= now).collect();
            if due.is_empty() || (port.halted && !self.setup.qemu) {
                break;
            }
            let d = port.drive();
            d.seed = d.seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let which = due[(d.seed >> 33) as usize % due.len()];
            let run = port.running.remove(which);
            self.end(p, &run);
        }
        self.fetch(p);
    }

    fn regions(&mut self, p: usize, slot: u8) -> Vec<(u64, usize)> {
        let header = self.ports[p].addr(CLB) + u64::from(slot) * 32;
        let prds = self.word(header) >> 16;
        let table = u64::from(self.word(header + 12)) << 32 | u64::from(self.word(header + 8));
        (0..u64::from(prds))
            .map(|i| {
                let at = table + 0x80 + i * 16;
                let addr = u64::from(self.word(at + 4)) << 32 | u64::from(self.word(at));
                let count = self.word(at + 12);
                assert!(addr % 2 == 0 && count % 2 == 1, "odd region {addr:x} {count:x}");
                assert_eq!(count >> 22, 0, "reserved bits of a region, or an interrupt on it");
                (addr, count as usize + 1)
            })
            .collect()
    }

    /// Moves data; `None` if memory was refused.
    fn transfer(&mut self, p: usize, run: &Running, answer: Answer) -> Option<Result<usize, (u8, u8)>> {
        let (to_drive, regions) = (run.to_drive, run.regions.clone());
        let room: usize = regions.iter().map(|r| r.1).sum();
        match answer {
            Answer::Done => Some(Ok(0)),
            Answer::Error(s, e) => Some(Err((s, e))),
            Answer::Read(data) => {
                assert!(!to_drive && room == data.len(), "regions of {room} bytes for {} read", data.len());
                let mut at = 0;
                for (addr, len) in regions {
                    if !self.dma_write(addr, &data[at..at + len]) {
                        return None;
                    }
                    at += len;
                }
                Some(Ok(at))
            }
            Answer::Write(len) => {
                assert!(to_drive && room == len, "regions of {room} bytes for {len} written");
                let mut data = Vec::new();
                for (addr, len) in regions {
                    data.extend(self.dma_read(addr, len)?);
                }
                self.ports[p].drive().store(&run.ata, &data);
                Some(Ok(len))
            }
        }
    }

    fn end(&mut self, p: usize, run: &Running) {
        let answer = self.ports[p].drive().execute(&run.ata);
        // QEMU maps the regions when it takes the command: what becomes of mastership meanwhile is no matter.
        let master = self.master;
        self.master |= self.setup.qemu && run.ata.queued();
        let result = self.transfer(p, run, answer);
        self.master = master;
        let Some(result) = result else {
            // Host bus fatal error: the list stops.
            self.ports[p].halted = true;
            return self.cause(p, 1 << 29);
        };
        if run.ata.queued() { self.end_queued(p, run, result) } else { self.end_alone(p, run, result) }
    }

    fn end_queued(&mut self, p: usize, run: &Running, result: Result<usize, (u8, u8)>) {
        let bit = 1u32 << run.slot;
        let (status, error, active) = match result {
            Ok(_) => (0x40, 0, bit),
            Err((s, e)) => (s, e, 0),
        };
        let (qemu, keeps) = (self.setup.qemu, self.setup.keeps);
        let port = &mut self.ports[p];
        port.finished |= active;
        let receives = port.reg(CMD) & FRE != 0;
        if qemu && !receives {
            return;
        }
        let active = std::mem::take(&mut port.finished);
        port.set(TFD, u32::from(error) << 8 | u32::from(status));
        port.set(SACT, port.reg(SACT) & !active);
        if receives {
            let at = port.addr(FB) + 0x58;
            let [a, b, c, d] = active.to_le_bytes();
            self.dma_write(at, &[0xa1, 0x40, status, error, a, b, c, d]);
        }
        self.cause(p, if result.is_err() && qemu && !keeps { 1 << 30 } else { 1 << 3 });
        if result.is_err() {
            let port = &mut self.ports[p];
            if qemu {
                port.or(SERR, if keeps { bit } else { 0 });
            } else {
                // The drive forgets everything and waits for the log to be read; the controller stops (6.2.2).
                port.drive().error = Some((run.slot, status, error));
                port.running.clear();
                port.halted = true;
                self.cause(p, 1 << 30);
            }
        }
    }

    fn end_alone(&mut self, p: usize, run: &Running, result: Result<usize, (u8, u8)>) {
        assert!(!run.lost || !run.ata.moves(), "QEMU ends: a command whose list was started again");
        let header = self.ports[p].addr(CLB) + u64::from(run.slot) * 32;
        let (status, error) = result.err().unwrap_or((0x50, 0));
        let moved = result.map_or(0, |m| m as u32);
        let lie = self.ports[p].prdbc_lie.take().unwrap_or(moved);
        self.dma_write(header + 4, &lie.to_le_bytes());
        self.register_fis(p, status, error);
        let qemu = self.setup.qemu;
        let port = &mut self.ports[p];
        if result.is_ok() || qemu {
            port.set(CI, port.reg(CI) & !(1 << run.slot));
        } else {
            port.halted = true;
        }
        self.cause(p, if result.is_ok() { 1 } else { 1 << 30 | u32::from(qemu) });
    }

    /// Takes commands from the list.
    fn fetch(&mut self, p: usize) {
        for slot in 0..32u8 {
            let port = &self.ports[p];
            if port.reg(CMD) & ST == 0 || port.reg(CMD) & CR == 0 || (port.halted && !self.setup.qemu) {
                return;
            }
            if port.reg(CI) >> slot & 1 == 0 || port.running.iter().any(|r| r.slot == slot && !r.orphan) {
                continue;
            }
            if port.running.iter().any(|r| !r.ata.queued() && !r.orphan) {
                return;
            }
            self.take(p, slot);
        }
    }

    fn take(&mut self, p: usize, slot: u8) {
        let header = self.ports[p].addr(CLB) + u64::from(slot) * 32;
        let flags = self.word(header);
        let table = u64::from(self.word(header + 12)) << 32 | u64::from(self.word(header + 8));
        assert_eq!((flags & 0x1f, table % 128), (5, 0), "header {flags:x}");
        let Some(fis) = self.dma_read(table, 20) else {
            self.ports[p].halted = true;
            return self.cause(p, 1 << 29);
        };
        assert_eq!((fis[0], fis[1] & 0x7f), (0x27, 0), "FIS");
        let now = self.now;
        let qemu = self.setup.qemu;
        let port = &mut self.ports[p];
        if fis[1] & 0x80 == 0 {
            port.set(CI, port.reg(CI) & !(1 << slot));
            let reset = fis[15] & 4 != 0;
            assert_eq!(flags & 0x500, if reset { 0x500 } else { 0x400 }, "bits R and C");
            let d = port.drive();
            match (reset, d.srst) {
                (true, None) => d.srst = Some(now),
                (false, Some(since)) => {
                    assert!(now >= since + 5 || qemu, "software reset too short");
                    (d.srst, d.error) = (None, None);
                    d.resets.0 += 1;
                    d.setup.cache |= d.setup.cache_returns;
                    self.wait_out(p);
                    let port = &mut self.ports[p];
                    if qemu {
                        port.set(SACT, 0);
                        port.set(SERR, 0);
                    }
                    self.signature(p);
                }
                _ => {}
            }
            return;
        }
        assert_eq!(fis[15], 0, "control");
        let regions = self.regions(p, slot);
        let port = &mut self.ports[p];
        assert_eq!(flags & 0x500, 0, "bits R and C");
        let ata = Ata::of(&fis);
        let latency = port.drive().setup.latency_us;
        let due = if port.drive().sticks(&ata) { u64::MAX } else { now + latency };
        if ata.queued() {
            assert_eq!(ata.count >> 3, u16::from(slot), "tag");
            assert!(port.reg(SACT) >> slot & 1 == 1, "queued command without PxSACT");
            assert!(u32::from(slot) < u32::from(port.drive().setup.queue_depth), "tag beyond the drive's depth");
            port.set(CI, port.reg(CI) & !(1 << slot));
        } else {
            assert!(port.running.is_empty(), "a command that is not queued among queued ones");
            assert!(port.reg(SACT) == 0 || qemu);
            if !qemu {
                port.set(TFD, 0x80);
            }
        }
        let sectors = if ata.transfers() { ata.sectors() } else { 0 };
        port.drive().commands.push((ata.command, ata.lba, sectors));
        assert!(!port.running.iter().any(|r| r.orphan), "a command to a drive that was not reset");
        port.running.push(Running {
            slot,
            ata,
            due,
            orphan: false,
            lost: false,
            to_drive: flags >> 6 & 1 == 1,
            regions,
        });
        if due <= now {
            let run = port.running.pop().unwrap();
            self.end(p, &run);
        }
    }

    fn write_command(&mut self, p: usize, value: u32) {
        let (qemu, keeps) = (self.setup.qemu, self.setup.keeps);
        let (clo, now, stop) = (self.setup.override_, self.now, self.setup.stop_us);
        let port = &mut self.ports[p];
        let old = port.reg(CMD);
        let mut new = old & (CR | FR) | value & 0x17;
        if value & CLO != 0 {
            assert!(clo && old & (ST | CR) == 0, "command list override");
            port.set(TFD, port.reg(TFD) & !0x88);
        }
        if value & FRE != 0 {
            new |= FR;
        }
        if value & ST != 0 && old & ST == 0 {
            port.running.iter_mut().for_each(|run| run.lost = true);
            assert!(new & FRE != 0 && old & CR == 0, "started without FRE or still running");
            assert!(port.link_up(), "started without a link");
            assert!(qemu || port.reg(TFD) & 0x88 == 0, "started a busy drive");
            assert_eq!((port.addr(CLB) % 1024, port.addr(FB) % 256), (0, 0));
            new |= CR;
        }
        if value & ST == 0 && old & ST != 0 {
            port.stopped_at = now + stop;
            port.halted = false;
            if !keeps {
                // The controller forgets; what the drive was given, the drive still has.
                port.set(CI, 0);
                port.set(SACT, 0);
            }
            if !qemu {
                port.running.iter_mut().for_each(|r| (r.orphan, r.due) = (true, u64::MAX));
            }
        }
        assert!(old & (ST | CR) == 0 || new & FRE != 0, "FRE cleared while running");
        if value & 2 != 0 && old & 2 == 0 && port.drive.is_some() {
            port.link_at = now + self.setup.link_us;
        }
        port.set(CMD, new);
        self.time(p);
    }

    fn write_port(&mut self, p: usize, at: usize, value: u32) {
        let qemu = self.setup.qemu;
        let slots = self.setup.slots;
        let now = self.now;
        let port = &mut self.ports[p];
        match at {
            0x00..=0x04 => {
                assert_eq!(port.reg(CMD) & (ST | CR), 0, "command list moved while running");
                port.set(at, value);
            }
            0x08..=0x0c => {
                assert_eq!(port.reg(CMD) & (FRE | FR), 0, "FIS area moved while receiving");
                port.set(at, value);
            }
            PIS => port.set(PIS, port.reg(PIS) & !value),
            PIE => port.set(PIE, value),
            CMD => self.write_command(p, value),
            SCTL => {
                port.set(SCTL, value);
                match (value & 0xf, port.comreset) {
                    (1, None) => {
                        assert_eq!(port.reg(CMD) & (ST | CR), 0, "COMRESET of a running port");
                        port.comreset = Some(now);
                        port.set(SSTS, 0);
                    }
                    (0, Some(since)) => {
                        assert!(now >= since + 1000, "COMRESET of {} us", now - since);
                        port.comreset = None;
                        self.link_reset(p);
                        self.time(p);
                    }
                    _ => {}
                }
            }
            SERR => port.set(SERR, port.reg(SERR) & !value),
            SACT => {
                assert!(port.reg(CMD) & ST != 0, "PxSACT of a stopped port");
                port.or(SACT, value);
            }
            CI => {
                assert!(port.reg(CMD) & ST != 0, "PxCI of a stopped port");
                assert!(value < 1 << slots.min(31) || slots == 32, "slot that is not there");
                assert!(qemu || port.reg(CI) & value == 0, "slot issued twice");
                port.or(CI, value);
                self.fetch(p);
            }
            _ => panic!("write of port register {at:x}"),
        }
    }
}
