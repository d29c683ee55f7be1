//! The model's drive: media, a volatile cache, faults on order. Knows ATA commands and no port.

use std::collections::{BTreeMap, BTreeSet};

/// What a drive is.
#[derive(Clone, Debug)]
pub struct DriveSetup {
    /// Sectors.
    pub sectors: u64,
    /// Bytes of a sector, 512 or 4096.
    pub sector_size: u32,
    /// Queued commands, 0 = none.
    pub queue_depth: u8,
    /// There is a volatile cache.
    pub cache: bool,
    /// A software reset switches it on.
    pub cache_returns: bool,
    /// FUA.
    pub fua: bool,
    /// TRIM.
    pub trim: bool,
    /// The queued error log can be read.
    pub log: bool,
    /// How long a command takes.
    pub latency_us: u64,
    /// Serial number.
    pub serial: &'static str,
    /// Signature; 0x101 is a disk's.
    pub signature: u32,
}

impl Default for DriveSetup {
    fn default() -> Self {
        Self {
            sectors: 0x1_0000_0000,
            sector_size: 512,
            queue_depth: 32,
            cache: true,
            cache_returns: false,
            fua: true,
            trim: true,
            log: true,
            latency_us: 0,
            serial: "MODEL-1",
            signature: 0x101,
        }
    }
}

/// A drive. Sectors never written are zero.
#[derive(Debug)]
pub struct Drive {
    /// What it is.
    pub setup: DriveSetup,
    pub(super) media: BTreeMap<u64, Vec<u8>>,
    pub(super) cache: BTreeMap<u64, Vec<u8>>,
    /// Sectors that fail, and how often still.
    pub(super) bad: BTreeMap<u64, u32>,
    /// Sectors whose commands never end, and how often still.
    pub(super) stuck: BTreeMap<u64, u32>,
    /// Commands that fail, whatever they are about.
    pub(super) bad_commands: BTreeSet<u8>,
    /// FLUSH CACHE (EXT) done.
    pub flushes: u32,
    /// All commands taken: command, LBA, sectors.
    pub commands: Vec<(u8, u64, u32)>,
    /// The last queued error: tag, status, error. Commands are refused until the log is read or the drive reset.
    pub(super) error: Option<(u8, u8, u8)>,
    /// The log is this instead.
    pub(super) false_log: Option<[u8; 512]>,
    /// Since when software reset is asserted.
    pub(super) srst: Option<u64>,
    /// Resets by FIS and by link.
    pub resets: (u32, u32),
    /// FIFO or not: orders completions.
    pub(super) seed: u64,
}

/// A decoded command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ata {
    pub(super) command: u8,
    pub(super) features: u16,
    pub(super) lba: u64,
    pub(super) count: u16,
    pub(super) device: u8,
}

impl Ata {
    pub(super) fn of(fis: &[u8]) -> Self {
        let b = |i: usize| u64::from(fis[i]);
        Self {
            command: fis[2],
            features: u16::from(fis[3]) | u16::from(fis[11]) << 8,
            lba: b(4) | b(5) << 8 | b(6) << 16 | b(8) << 24 | b(9) << 32 | b(10) << 40,
            count: u16::from(fis[12]) | u16::from(fis[13]) << 8,
            device: fis[7],
        }
    }

    pub(super) fn queued(&self) -> bool {
        matches!(self.command, 0x60 | 0x61)
    }

    /// Sectors of a read or write.
    pub(super) fn sectors(&self) -> u32 {
        match (if self.queued() { self.features } else { self.count }).into() {
            0 => 0x1_0000,
            n => n,
        }
    }

    /// Whether it is a transfer by DMA that is not queued.
    pub(super) fn moves(&self) -> bool {
        matches!(self.command, 0x25 | 0x35 | 0x3d | 0x06)
    }

    pub(super) fn transfers(&self) -> bool {
        self.queued() || matches!(self.command, 0x25 | 0x35 | 0x3d)
    }
}

/// What executing a command gives.
pub(super) enum Answer {
    /// Data for the host.
    Read(Vec<u8>),
    /// So many bytes are wanted from the host; then [`Drive::store`].
    Write(usize),
    /// Done.
    Done,
    /// Status and error.
    Error(u8, u8),
}

impl Drive {
    pub(super) fn new(setup: DriveSetup) -> Self {
        Self {
            setup,
            media: BTreeMap::new(),
            cache: BTreeMap::new(),
            bad: BTreeMap::new(),
            stuck: BTreeMap::new(),
            bad_commands: BTreeSet::new(),
            flushes: 0,
            commands: Vec::new(),
            error: None,
            false_log: None,
            srst: None,
            resets: (0, 0),
            seed: 1,
        }
    }

    fn hit(map: &mut BTreeMap<u64, u32>, ata: &Ata) -> bool {
        let range = ata.lba..ata.lba + u64::from(ata.sectors());
        match map.range_mut(range).find(|(_, left)| **left > 0) {
            Some((_, left)) => {
                *left -= 1;
                true
            }
            None => false,
        }
    }

    /// Whether it will never end.
    pub(super) fn sticks(&mut self, ata: &Ata) -> bool {
        ata.transfers() && Self::hit(&mut self.stuck, ata)
    }

    pub(super) fn sector(&self, lba: u64, durable: bool) -> Vec<u8> {
        let cached = if durable { None } else { self.cache.get(&lba) };
        let zero = || vec![0; self.setup.sector_size as usize];
        cached.or_else(|| self.media.get(&lba)).cloned().unwrap_or_else(zero)
    }

    pub(super) fn execute(&mut self, ata: &Ata) -> Answer {
        const ABORTED: Answer = Answer::Error(0x41, 0x04);
        if self.error.is_some() && ata.command != 0x2f || self.bad_commands.contains(&ata.command) {
            return ABORTED;
        }
        let size = self.setup.sector_size as usize;
        if ata.transfers() {
            assert_eq!(ata.device & 0x40, 0x40, "LBA");
            assert!(ata.lba + u64::from(ata.sectors()) <= self.setup.sectors, "outside of the drive");
            if Self::hit(&mut self.bad, ata) {
                return Answer::Error(0x41, 0x40);
            }
        }
        match ata.command {
            0x60 | 0x25 => {
                let all = ata.lba..ata.lba + u64::from(ata.sectors());
                Answer::Read(all.flat_map(|lba| self.sector(lba, false)).collect())
            }
            0x3d if !self.setup.fua => ABORTED,
            0x61 | 0x35 | 0x3d => Answer::Write(ata.sectors() as usize * size),
            0xea | 0xe7 => {
                self.flushes += 1;
                self.media.append(&mut self.cache);
                Answer::Done
            }
            0x06 if self.setup.trim && ata.features == 1 => Answer::Write(usize::from(ata.count) * 512),
            0xec => Answer::Read(self.identify()),
            0x2f if self.setup.log && ata.lba & 0xff == 0x10 && ata.count == 1 => Answer::Read(self.read_log()),
            _ => ABORTED,
        }
    }

    /// The data of a [`Answer::Write`].
    pub(super) fn store(&mut self, ata: &Ata, data: &[u8]) {
        if ata.command == 0x06 {
            for entry in data.chunks(8) {
                let e = u64::from_le_bytes(entry.try_into().unwrap());
                for lba in (e & 0xffff_ffff_ffff)..(e & 0xffff_ffff_ffff) + (e >> 48) {
                    self.media.remove(&lba);
                    self.cache.remove(&lba);
                }
            }
            return;
        }
        let fua = ata.command == 0x3d || (ata.command == 0x61 && ata.device & 0x80 != 0);
        assert!(!fua || self.setup.fua, "FUA of a drive that cannot");
        for (lba, sector) in (ata.lba..).zip(data.chunks(self.setup.sector_size as usize)) {
            if fua || !self.setup.cache {
                self.cache.remove(&lba);
                self.media.insert(lba, sector.to_vec());
            } else {
                self.cache.insert(lba, sector.to_vec());
            }
        }
    }

    fn read_log(&mut self) -> Vec<u8> {
        let mut log = vec![0u8; 512];
        if let Some((tag, status, error)) = self.error.take() {
            (log[0], log[2], log[3]) = (tag, status, error);
        }
        log[511] = 0u8.wrapping_sub(log.iter().fold(0u8, |s, b| s.wrapping_add(*b)));
        self.false_log.take().map_or(log, |l| l.to_vec())
    }

    fn identify(&self) -> Vec<u8> {
        let s = &self.setup;
        let mut w = [0u16; 256];
        let mut text = |at: usize, len: usize, t: &str| {
            for (i, pair) in format!("{t:<len$}").as_bytes().chunks(2).enumerate() {
                w[at + i] = u16::from_be_bytes([pair[0], pair[1]]);
            }
        };
        text(10, 20, s.serial);
        text(27, 40, "XENOLITH MODEL DISK");
        w[49] = 0x0300;
        if s.queue_depth > 0 {
            (w[75], w[76]) = (u16::from(s.queue_depth) - 1, 0x0100);
        }
        let cache = if s.cache { 1 << 5 } else { 0 };
        let supported = if s.cache || s.cache_returns { 1 << 5 } else { 0 };
        (w[82], w[83], w[84]) = (supported, 0x6400, 0x4000 | u16::from(s.fua) << 6 | u16::from(s.log) << 5);
        (w[85], w[86], w[87]) = (cache, 0x2400, 0x4000);
        for i in 0..4 {
            w[100 + i] = (s.sectors >> (16 * i)) as u16;
        }
        if s.sector_size != 512 {
            (w[106], w[117]) = (0x5000, (s.sector_size / 2) as u16);
        }
        w[169] = u16::from(s.trim);
        w[255] = 0xa5;
        let sum = w.iter().flat_map(|w| w.to_le_bytes()).fold(0u8, u8::wrapping_add);
        w[255] |= u16::from(0u8.wrapping_sub(sum)) << 8;
        w.iter().flat_map(|w| w.to_le_bytes()).collect()
    }
}
