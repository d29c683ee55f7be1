//! The model from outside: what tests do to it, and what the driver sees of it.

use super::*;
use crate::capabilities::{Place, Places};
use blkback::disk::{Clock, DmaMemory, Mmio, NarrowMmio};
use std::cell::RefCell;
use std::rc::Rc;

/// A handle on the device, its memory and the clock; clones are the same device.
#[derive(Clone)]
pub struct Model(Rc<RefCell<State>>);

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Model")
    }
}

/// One of its BARs: 0 has the common configuration from 0x100 on, 2 the doorbells, 4 interrupt status and what is a block device's own.
#[derive(Clone, Debug)]
pub struct Bar(Model, u8);

const COMMON: usize = 0x100;
const DOORBELL: usize = 0x40 + 3 * 8;
const ISR: usize = 0x10;
const DEVICE: usize = 0x20;

impl Model {
    pub fn new(setup: Setup) -> Self {
        let mut state = State {
            setup,
            regs: Registers::default(),
            memory: vec![0; MEMORY_LEN],
            now: 1_000_000,
            master: true,
            gone: false,
            reset_until: None,
            stuck_in_reset: false,
            resets: 0,
            avail: 0,
            used: 0,
            running: Vec::new(),
            media: BTreeMap::new(),
            cache: BTreeMap::new(),
            bad: BTreeSet::new(),
            stuck: BTreeMap::new(),
            lies: VecDeque::new(),
            refused: Vec::new(),
            log: Vec::new(),
            interrupts: 0,
            notifications: 0,
            longest_chain: 0,
            indirect: 0,
            seed: 7,
        };
        state.reset();
        state.resets = 0;
        Self(Rc::new(RefCell::new(state)))
    }

    /// Where its structures are.
    pub fn places() -> Places {
        let place = |bar, offset: usize, len| Place { bar, offset: offset as u32, len };
        Places {
            common: place(0, COMMON, 0x38),
            notify: place(2, 0x40, 0x20),
            notify_multiplier: 8,
            isr: place(4, ISR, 1),
            device: place(4, DEVICE, 0x3c),
        }
    }

    pub fn bar(&self, bar: u8) -> Bar {
        Bar(self.clone(), bar)
    }

    fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.0.borrow_mut())
    }

    /// A sector of 512 bytes as a read would give it, or (`durable`) as it is after a power cut.
    pub fn sector(&self, sector: u64, durable: bool) -> Vec<u8> {
        self.with(|s| s.sector(sector, durable))
    }

    /// Reads and writes of this sector fail.
    pub fn break_sector(&self, sector: u64) {
        self.with(|s| s.bad.insert(sector));
    }

    /// Requests on this sector never end, the next `times` times.
    pub fn stick_sector(&self, sector: u64, times: u32) {
        self.with(|s| s.stuck.insert(sector, times));
    }

    /// What it does with the next requests that end.
    pub fn lie(&self, lie: Lie) {
        self.with(|s| s.lies.push_back(lie));
    }

    /// It gives up.
    pub fn need_reset(&self) {
        self.with(State::needs_reset);
    }

    /// It does not come out of its next reset.
    pub fn stick_reset(&self, on: bool) {
        self.with(|s| s.stuck_in_reset = on);
    }

    /// All registers read as ones.
    pub fn vanish(&self) {
        self.with(|s| s.gone = true);
    }

    /// Makes it another device.
    pub fn change(&self, f: impl FnOnce(&mut Setup)) {
        self.with(|s| f(&mut s.setup));
    }

    pub fn set_master(&self, on: bool) {
        self.with(|s| s.master = on);
    }

    /// Forgets the volatile cache.
    pub fn cut_power(&self) {
        self.with(|s| s.cache.clear());
    }

    /// Level of the interrupt line, or whether a message came.
    pub fn line(&self) -> bool {
        self.with(|s| s.regs.isr != 0)
    }

    /// The message was taken.
    pub fn take_message(&self) {
        self.with(|s| s.regs.isr = 0);
    }

    pub fn resets(&self) -> u32 {
        self.with(|s| s.resets)
    }

    /// Requests with it.
    pub fn running(&self) -> usize {
        self.with(|s| s.running.len())
    }

    /// Interrupts and notifications since the last call.
    pub fn signals(&self) -> (u32, u32) {
        self.with(|s| (std::mem::take(&mut s.interrupts), std::mem::take(&mut s.notifications)))
    }

    /// Longest chain, and tables of descriptors, since the last call.
    pub fn chains(&self) -> (usize, u32) {
        self.with(|s| (std::mem::take(&mut s.longest_chain), std::mem::take(&mut s.indirect)))
    }

    /// Types of requests done since the last call.
    pub fn log(&self) -> Vec<u32> {
        self.with(|s| std::mem::take(&mut s.log))
    }

    /// What the driver agreed to.
    pub fn agreed(&self) -> u64 {
        self.with(|s| s.regs.driver_features)
    }

    /// Fills memory as a program would.
    pub fn store(&self, addr: u64, bytes: &[u8]) {
        let at = (addr - MEMORY) as usize;
        self.with(|s| s.memory[at..at + bytes.len()].copy_from_slice(bytes));
    }

    /// Reads memory as a program would.
    pub fn load(&self, addr: u64, len: usize) -> Vec<u8> {
        let at = (addr - MEMORY) as usize;
        self.with(|s| s.memory[at..at + len].to_vec())
    }

    pub fn refused(&self) -> Vec<Refused> {
        self.with(|s| std::mem::take(&mut s.refused))
    }

    pub fn advance_us(&self, us: u64) {
        self.with(|s| {
            s.now += us;
            s.work();
        });
    }
}

impl State {
    fn config(&self) -> Vec<u8> {
        let c = &self.setup;
        let mut bytes = vec![0; 0x3c];
        let mut put = |at: usize, b: &[u8]| bytes[at..at + b.len()].copy_from_slice(b);
        put(0, &c.capacity.to_le_bytes());
        put(8, &c.size_max.to_le_bytes());
        put(12, &c.seg_max.to_le_bytes());
        put(20, &c.blk_size.to_le_bytes());
        put(24, &[c.exponent]);
        put(32, &[c.writeback]);
        put(36, &c.max_discard.to_le_bytes());
        put(40, &1u32.to_le_bytes());
        put(44, &(c.blk_size / 512).to_le_bytes());
        bytes
    }

    fn common_read(&mut self, at: usize, width: usize) -> u32 {
        let r = &self.regs;
        match (at, width) {
            (0x04, 4) => {
                let bits = self.setup.features.iter().fold(0u64, |all, bit| all | 1 << bit);
                (bits >> (32 * r.device_half)) as u32
            }
            (0x14, 1) => r.status.into(),
            (0x15, 1) => {
                if self.setup.restless {
                    self.regs.generation = self.regs.generation.wrapping_add(1);
                }
                self.regs.generation.into()
            }
            (0x18, 2) => r.size.into(),
            (0x1a, 2) => r.vector.into(),
            (0x1c, 2) => r.enabled.into(),
            (0x1e, 2) => 3,
            _ => panic!("read of {width} bytes at {at:#x}"),
        }
    }

    fn common_write(&mut self, at: usize, width: usize, value: u32) {
        assert!(self.reset_until.is_none() || at == 0x14, "a write at {at:#x} while it resets");
        let setting_up = self.regs.status & 0xc == 8;
        match (at, width) {
            (0x00, 4) => self.regs.device_half = value,
            (0x08, 4) => self.regs.driver_half = value,
            (0x0c, 4) => {
                assert!(self.regs.status & 8 == 0, "features after FEATURES_OK");
                let shift = 32 * self.regs.driver_half;
                let old = self.regs.driver_features & !(0xffff_ffff << shift);
                self.regs.driver_features = old | u64::from(value) << shift;
            }
            (0x10, 2) => assert_eq!(value, 0xffff, "a vector for changes of the configuration"),
            (0x14, 1) if value == 0 => {
                // What was reset is reset.
                let quick = self.setup.reset_us == 0 || self.regs.status == 0;
                if quick && !self.stuck_in_reset {
                    self.reset();
                } else if self.reset_until.is_none() {
                    self.reset_until = Some(self.now + self.setup.reset_us);
                    self.running.clear();
                }
            }
            (0x14, 1) => {
                let value = value as u8;
                assert!(self.reset_until.is_none(), "status {value:#x} while it resets");
                assert!(self.regs.status & !value & 0xf == 0, "status {:#x} became {value:#x}", self.regs.status);
                assert!(value & 4 == 0 || self.regs.status & 8 != 0, "DRIVER_OK without FEATURES_OK");
                let offered = self.setup.features.iter().fold(0u64, |all, bit| all | 1 << bit);
                assert!(self.regs.driver_features & !offered == 0, "features that were not offered");
                let refuses = self.setup.refuses && value & 4 == 0;
                self.regs.status = if refuses { value & !8 } else { value };
            }
            (0x16, 2) => assert_eq!(value, 0, "a queue that is not used"),
            (0x18, 2) => {
                assert!(setting_up && value <= self.setup.queue_size.into() && value.is_power_of_two());
                self.regs.size = value as u16;
            }
            (0x1a, 2) => self.regs.vector = if self.setup.no_vector { 0xffff } else { value as u16 },
            (0x1c, 2) => {
                let aligned = self.regs.addresses.iter().zip([16, 2, 4]).all(|(a, by)| a.is_multiple_of(by));
                assert!(setting_up && value == 1 && aligned && self.regs.vector == 0);
                self.regs.enabled = true;
            }
            (0x20..0x38, 4) if at.is_multiple_of(4) => {
                assert!(setting_up && !self.regs.enabled);
                let (which, shift) = ((at - 0x20) / 8, at % 8 * 8);
                let address = &mut self.regs.addresses[which];
                *address = *address & !(0xffff_ffff << shift) | u64::from(value) << shift;
            }
            _ => panic!("write of {width} bytes at {at:#x}"),
        }
    }
}

impl Bar {
    fn read(&self, offset: usize, width: usize) -> u32 {
        self.0.with(|s| {
            if s.gone {
                return u32::MAX;
            }
            s.work();
            match (self.1, offset) {
                (0, COMMON..) => s.common_read(offset - COMMON, width),
                (4, ISR) if width == 1 => {
                    assert!(!s.setup.messages, "interrupt status, though messages come");
                    std::mem::take(&mut s.regs.isr).into()
                }
                (4, DEVICE..) => {
                    let config = s.config();
                    let at = offset - DEVICE;
                    assert!(offset.is_multiple_of(width) && width == if matches!(at, 24 | 32) { 1 } else { 4 });
                    config[at..at + width].iter().rev().fold(0, |all, byte| all << 8 | u32::from(*byte))
                }
                (bar, offset) => panic!("read of BAR {bar} at {offset:#x}"),
            }
        })
    }

    fn write(&self, offset: usize, width: usize, value: u32) {
        self.0.with(|s| {
            if s.gone {
                return;
            }
            match (self.1, offset, width) {
                (0, COMMON.., _) => s.common_write(offset - COMMON, width, value),
                (2, DOORBELL, 2) => {
                    assert_eq!(value, 0);
                    assert!(s.regs.status & 4 != 0, "a notification before DRIVER_OK");
                    s.notifications += 1;
                    if s.serving() {
                        s.take();
                    }
                }
                (bar, offset, width) => panic!("write of {width} bytes to BAR {bar} at {offset:#x}"),
            }
        });
    }
}

impl Mmio for Bar {
    fn read32(&self, offset: usize) -> u32 {
        self.read(offset, 4)
    }
    fn write32(&self, offset: usize, value: u32) {
        self.write(offset, 4, value);
    }
}

impl NarrowMmio for Bar {
    fn read8(&self, offset: usize) -> u8 {
        self.read(offset, 1) as u8
    }
    fn write8(&self, offset: usize, value: u8) {
        self.write(offset, 1, value.into());
    }
    fn read16(&self, offset: usize) -> u16 {
        self.read(offset, 2) as u16
    }
    fn write16(&self, offset: usize, value: u16) {
        self.write(offset, 2, value.into());
    }
}

impl DmaMemory for Model {
    fn device_addr(&self) -> u64 {
        MEMORY
    }
    fn len_bytes(&self) -> usize {
        crate::AREA_BYTES
    }
    fn read(&self, offset: usize) -> u32 {
        assert!(offset + 4 <= crate::AREA_BYTES && offset.is_multiple_of(4));
        u32::from_le_bytes(self.with(|s| s.memory[offset..offset + 4].try_into().unwrap()))
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        self.read(offset)
    }
    fn write(&self, offset: usize, value: u32) {
        assert!(offset + 4 <= crate::AREA_BYTES && offset.is_multiple_of(4));
        self.with(|s| s.memory[offset..offset + 4].copy_from_slice(&value.to_le_bytes()));
    }
    fn fence(&self) {}
}

impl Clock for Model {
    fn now_us(&self) -> u64 {
        self.with(|s| s.now)
    }
    fn pause_us(&self, us: u32) {
        self.advance_us(us.into());
    }
}
