//! Layouts against values worked out by hand, and a unit against a fake IOMMU that walks, remaps and logs by itself.

use crate::entry::{DEVICE_TABLE_BYTES, DTE_BYTES, INTERRUPT_TABLE_BYTES};
use crate::unit::{LOG_BYTES, deny_all, reg, set_interrupt};
use crate::*;
use hv_core::{Dfn, Mfn};
use hv_npt::{DeviceTree, FrameStore, Rights};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

const TABLE: Mfn = Mfn(0x1000);
const COMMANDS: Mfn = Mfn(0x2000);
const LOG: Mfn = Mfn(0x3000);
const COMPLETION: u64 = 0x4000_0008;
const INTERRUPTS: Mfn = Mfn(0x5000);
const EMPTY_ROOT: Mfn = Mfn(0x6000);
const LAYOUT: Layout = Layout { device_table: TABLE, commands: COMMANDS, log: LOG, completion: COMPLETION };

/// Address, rights, domain.
type Cached = (u64, u64, u16);

/// Memory, registers and what the IOMMU has cached. Clones are the same IOMMU.
#[derive(Clone, Default)]
struct Fake(Rc<State>);
#[derive(Default)]
struct State {
    memory: RefCell<BTreeMap<u64, u64>>,
    registers: RefCell<HashMap<u64, u64>>,
    head: Cell<u64>,
    log_tail: Cell<u64>,
    dead: Cell<bool>,
    time: Cell<u64>,
    /// By device and page: never forgotten but by command.
    cache: RefCell<HashMap<(u16, u64), Cached>>,
    /// Counts its log in bytes and never wraps, as QEMU 7.2.
    quirk: bool,
    next_frame: Cell<u64>,
}

impl Fake {
    fn set_field(&self, offset: u64, bit: u64, on: bool) {
        let mut registers = self.0.registers.borrow_mut();
        let r = registers.entry(offset).or_default();
        *r = *r & !bit | if on { bit } else { 0 };
    }
    fn run(&self) {
        if self.register(reg::CONTROL) & reg::CONTROL_COMMANDS == 0 || self.0.dead.get() {
            return;
        }
        while self.0.head.get() != self.register(reg::COMMAND_TAIL) {
            let at = COMMANDS.addr() + self.0.head.get();
            let [low, high] = [self.load(at), self.load(at + 8)];
            let mut cache = self.0.cache.borrow_mut();
            match low >> 60 {
                1 => {
                    assert_eq!(low & 0x0FF0_0000_0000_0006, 0, "reserved bits");
                    drop(cache);
                    self.store(low & 0x000F_FFFF_FFFF_FFF8, high);
                }
                2 => cache.retain(|k, _| k.0 != low as u16),
                3 => {
                    assert_eq!((low & !(0xF << 60) & !(0xFFFF << 32), high & 0xFF8), (0, 0), "reserved bits");
                    cache.retain(|_, v| v.2 != (low >> 32) as u16);
                }
                5 => assert_eq!((low >> 16 & 0xFFF_FFFF_FFFF, high), (0, 0), "reserved bits"),
                other => panic!("command {other}"),
            }
            self.0.head.set((self.0.head.get() + 16) % 4096);
            self.0.registers.borrow_mut().insert(reg::COMMAND_HEAD, self.0.head.get());
        }
    }
    fn log(&self, code: u64, device: u16, address: u64, flags: u64) {
        if self.register(reg::CONTROL) & reg::CONTROL_EVENT_LOG == 0 || self.register(reg::STATUS) & 1 != 0 {
            return;
        }
        let tail = self.0.log_tail.get();
        let next = if self.0.quirk { tail + 16 } else { (tail + 16) % LOG_BYTES };
        let full = if self.0.quirk { tail >= LOG_BYTES / 16 } else { next == self.register(reg::EVENT_HEAD) };
        if full {
            return self.set_field(reg::STATUS, reg::STATUS_OVERFLOW, true);
        }
        self.store(LOG.addr() + tail, code << 60 | flags << 48 | u64::from(device));
        self.store(LOG.addr() + tail + 8, address);
        self.0.log_tail.set(next);
        if !self.0.quirk {
            self.0.registers.borrow_mut().insert(reg::EVENT_TAIL, next);
        }
    }
    fn entry(&self, device: u16) -> [u64; 4] {
        [0, 8, 16, 24].map(|o| self.load(TABLE.addr() + u64::from(device) * DTE_BYTES + o))
    }
    /// A DMA: the physical address, or `None` and an event. `want`: bit 0 read, bit 1 write.
    fn dma(&self, device: u16, addr: u64, want: u64) -> Option<u64> {
        if let Some(&(to, rights, _)) = self.0.cache.borrow().get(&(device, addr >> 12)) {
            return (rights & want == want).then_some(to | addr & 0xFFF);
        }
        let dte = self.entry(device);
        assert_eq!(dte[0] & 3, 3, "an entry without V passes everything");
        assert_eq!((dte[0] & 0x8030_0000_0000_00FC, dte[1] & 0x100, dte[3]), (0, 0, 0), "reserved in QEMU 7.2");
        let (mut pte, mut level) = (dte[0], (dte[0] >> 9 & 7) as u32);
        loop {
            if pte & 1 == 0 || pte >> 61 & want != want {
                self.log(2, device, addr, want);
                return None;
            }
            if level == 0 {
                break;
            }
            pte = self.load((pte & 0x000F_FFFF_FFFF_F000) + (addr >> (3 + 9 * level) & 511) * 8);
            let next = (pte >> 9 & 7) as u32;
            assert!(pte & 1 == 0 || next < level);
            level = next;
        }
        let to = pte & 0x000F_FFFF_FFFF_F000;
        self.0.cache.borrow_mut().insert((device, addr >> 12), (to, pte >> 61 & 3, dte[1] as u16));
        Some(to | addr & 0xFFF)
    }
    /// An MSI: (destination, vector).
    fn msi(&self, device: u16, data: u64) -> Option<(u8, u8)> {
        let dte = self.entry(device);
        assert_eq!(dte[2] & 1, 1, "an entry without IV passes every interrupt");
        assert_eq!(dte[2] & 0x08F0_0000_0000_0000, 0, "reserved in QEMU 7.2");
        if dte[2] >> 60 & 3 != 2 || dte[2] >> 56 & 0b111 != 0 {
            return None;
        }
        let at = (dte[2] & 0x000F_FFFF_FFFF_FFC0) + (data & 0x7FF) * 4;
        assert!((INTERRUPTS.addr()..INTERRUPTS.addr() + INTERRUPT_TABLE_BYTES).contains(&at));
        let irte = (self.load(at & !7) >> (8 * (at & 4))) as u32;
        (irte & 1 != 0).then_some(((irte >> 8) as u8, (irte >> 16) as u8))
    }
}

impl Hardware for Fake {
    fn register(&self, offset: u64) -> u64 {
        self.0.registers.borrow().get(&offset).copied().unwrap_or(0)
    }
    fn set_register(&self, offset: u64, value: u64) {
        let value = match offset {
            reg::STATUS if self.0.quirk => return, // QEMU 7.2 ignores these writes
            reg::STATUS => self.register(offset) & !value,
            _ => value,
        };
        self.0.registers.borrow_mut().insert(offset, value);
        match offset {
            reg::CONTROL => {
                self.set_field(reg::STATUS, reg::STATUS_LOG_RUNS, value & reg::CONTROL_EVENT_LOG != 0);
                self.run();
            }
            reg::COMMAND_TAIL => self.run(),
            reg::EVENT_TAIL => self.0.log_tail.set(value),
            _ => {}
        }
    }
    fn load(&self, addr: u64) -> u64 {
        assert!(addr.is_multiple_of(8));
        self.0.memory.borrow().get(&addr).copied().unwrap_or(0)
    }
    fn store(&self, addr: u64, value: u64) {
        assert!(addr.is_multiple_of(8));
        self.0.memory.borrow_mut().insert(addr, value);
    }
    fn store32(&self, addr: u64, value: u32) {
        let shift = 8 * (addr & 4);
        let old = self.load(addr & !7);
        self.store(addr & !7, old & !(0xFFFF_FFFF << shift) | u64::from(value) << shift);
    }
    fn now_ns(&self) -> u64 {
        self.0.time.set(self.0.time.get() + 1_000_000);
        self.0.time.get()
    }
}

impl FrameStore for Fake {
    fn alloc(&mut self) -> Option<Mfn> {
        self.0.next_frame.set(self.0.next_frame.get() + 1);
        Some(Mfn(0x10_0000 + self.0.next_frame.get()))
    }
    fn free(&mut self, _: Mfn) {}
    fn read(&self, table: Mfn, index: usize) -> u64 {
        self.load(table.addr() + index as u64 * 8)
    }
    fn write(&mut self, table: Mfn, index: usize, entry: u64) {
        self.store(table.addr() + index as u64 * 8, entry);
    }
}

const DENIED: DeviceEntry = DeviceEntry {
    translation: Translation { root: EMPTY_ROOT, domain_id: 0, allowed: false },
    interrupts: None,
    quiet: false,
};
const NIC: u16 = 0x18;

fn machine(quirk: bool) -> (Fake, Unit<Fake>) {
    let fake = Fake(Rc::new(State { quirk, ..State::default() }));
    deny_all(&fake, TABLE, &DENIED);
    let unit = Unit::enable(fake.clone(), LAYOUT).unwrap();
    (fake, unit)
}

#[test]
fn device_entries_by_hand() {
    assert_eq!(DENIED.bits(), [0x0600_0603, 0, 1, 0]);
    let entry = DeviceEntry {
        translation: Translation { root: Mfn(0x12345), domain_id: 7, allowed: true },
        interrupts: Some(Mfn(0x54321)),
        quiet: true,
    };
    // V, TV, mode 3 at 11:9, IR 61, IW 62; SA is bit 98; IV, length 11 at 132:129, IntCtl 10b at 189:188.
    assert_eq!(entry.bits(), [0x6000_0000_1234_5603, 0x4_0000_0007, 0x2000_0000_5432_1017, 0]);
}

#[test]
fn interrupt_entries_and_commands_by_hand() {
    assert_eq!(InterruptEntry { destination: 3, vector: 0x51 }.bits(), 0x0051_0301);
    let wait = Command::CompletionWait { addr: 0x1_2345_6788, data: 0x99 };
    assert_eq!(wait.bits(), [0x1000_0001_2345_6789, 0x99]);
    assert_eq!(Command::InvalidateDevice(0x18).bits(), [0x2000_0000_0000_0018, 0]);
    assert_eq!(Command::InvalidatePages(5).bits(), [0x3000_0005_0000_0000, 0x7FFF_FFFF_FFFF_F003]);
    assert_eq!(Command::InvalidateInterrupts(0xA0).bits(), [0x5000_0000_0000_00A0, 0]);
}

#[test]
fn events_by_hand() {
    assert_eq!(Event::decode([0, 0]), None);
    // QEMU 7.2: write to 0xABC000 by 00:03.0: code 2, I (51), wanted rights in 49:48.
    let event = Event::decode([0x200A_0000_0000_0018, 0xABC000]).unwrap();
    assert_eq!(event, Event { code: event::PAGE_FAULT, device: NIC, address: 0xABC000, flags: 0xA });
    assert!(event.is_devices());
    assert!(!Event::decode([0x5000_0000_0000_0000, 8]).unwrap().is_devices());
}

#[test]
fn everything_is_denied_before_anything_is_allowed() {
    let (fake, mut unit) = machine(false);
    for device in [0, NIC, 0xA0, 0xFFFF] {
        assert_eq!(fake.dma(device, 0x1000, 1), None);
        assert_eq!(unit.next_event().unwrap().device, device);
        assert_eq!(fake.msi(device, 0x31), None);
    }
    assert_eq!(
        fake.0
            .memory
            .borrow()
            .range(TABLE.addr()..)
            .take_while(|(a, _)| **a < TABLE.addr() + DEVICE_TABLE_BYTES)
            .count(),
        65536 * 4
    );
}

#[test]
fn a_device_reaches_what_is_mapped_until_it_is_denied() {
    let (fake, mut unit) = machine(false);
    let mut tree = DeviceTree::new(fake.clone()).unwrap();
    let _ = tree.map(Dfn(1), Mfn(0x777), 1, Rights::RW).unwrap();
    let _ = tree.map(Dfn(2), Mfn(0x888), 1, Rights::READ).unwrap();
    set_interrupt(&fake, INTERRUPTS, 0x51, Some(InterruptEntry { destination: 1, vector: 0x51 }));
    let translation = Translation { root: tree.root(), domain_id: 9, allowed: true };
    let allowed = DeviceEntry { translation, interrupts: Some(INTERRUPTS), quiet: false };
    unit.set_device(NIC, &allowed, 0).unwrap();

    assert_eq!(fake.dma(NIC, 0x1234, 3), Some(0x777234));
    assert_eq!(fake.dma(NIC, 0x2000, 2), None, "read only");
    assert_eq!(fake.dma(NIC, 0x3000, 1), None, "not mapped");
    let events: Vec<_> = std::iter::from_fn(|| unit.next_event()).map(|e| (e.device, e.address)).collect();
    assert_eq!(events, [(NIC, 0x2000), (NIC, 0x3000)]);
    assert_eq!((fake.msi(NIC, 0x51), fake.msi(NIC, 0x52), fake.msi(NIC, 0x7FF)), (Some((1, 0x51)), None, None));
    assert_eq!(fake.dma(NIC + 8, 0x1234, 1), None, "its neighbour has nothing");

    // Unmapped, but cached: only the flush makes it so.
    let _ = tree.unmap(Dfn(1), 1).unwrap();
    assert_eq!(fake.dma(NIC, 0x1234, 1), Some(0x777234));
    unit.forget_pages(9).unwrap();
    assert_eq!(fake.dma(NIC, 0x1234, 1), None);

    assert_eq!(fake.dma(NIC, 0x2000, 1), Some(0x888000));
    unit.set_device(NIC, &DeviceEntry { quiet: true, ..DENIED }, 9).unwrap();
    assert_eq!(fake.dma(NIC, 0x2000, 1), None);
    assert_eq!(fake.msi(NIC, 0x51), None);
}

#[test]
fn the_log_survives_any_number_of_events() {
    for quirk in [false, true] {
        let (fake, mut unit) = machine(quirk);
        for round in 0..3000u64 {
            for n in 0..7 {
                assert_eq!(fake.dma(NIC, (round * 7 + n) << 12, 1), None);
            }
            for n in 0..7 {
                assert_eq!(unit.next_event().map(|e| e.address), Some((round * 7 + n) << 12), "quirk {quirk}");
            }
            assert_eq!(unit.next_event(), None);
            assert!(!unit.overflowed());
        }
    }
}

#[test]
fn an_overflow_is_noticed_and_left_behind() {
    let (fake, mut unit) = machine(false);
    (0..20_000u64).for_each(|n| assert_eq!(fake.dma(NIC, n << 12, 1), None));
    assert!(unit.overflowed());
    assert!(!unit.overflowed());
    assert_eq!(fake.dma(NIC, 0x5000, 1), None);
    assert_eq!(unit.next_event().map(|e| e.address), Some(0x5000));
}

#[test]
fn a_dead_unit_is_a_timeout() {
    let (fake, mut unit) = machine(false);
    fake.0.dead.set(true);
    assert_eq!(unit.forget_device(NIC), Err(Timeout));
    assert_eq!(unit.set_device(NIC, &DENIED, 0), Err(Timeout));
}
