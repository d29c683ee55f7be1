//! The model from outside: what tests do to it, and what the driver sees of it ([`Mmio`], [`DmaMemory`], [`Clock`]).

use super::*;
use std::cell::RefCell;
use std::rc::Rc;

/// A handle on the controller; clones are the same controller.
#[derive(Clone)]
pub struct Model(Rc<RefCell<State>>);

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Model")
    }
}

impl Model {
    /// A powered-on controller with bus mastership and these drives at ports 0, 1, …
    #[must_use]
    pub fn new(setup: Setup, drives: Vec<Option<DriveSetup>>) -> Self {
        let model = Self(Rc::new(RefCell::new(State {
            setup,
            host: BTreeMap::new(),
            ports: (0..32).map(|_| Port::default()).collect(),
            memory: vec![0; MEMORY_LEN],
            bus: None,
            now: 1_000_000,
            master: true,
            gone: false,
            stuck_in_reset: false,
            refused: Vec::new(),
            resets: 0,
            accesses: (0, 0),
        })));
        let mut s = model.0.borrow_mut();
        for (port, drive) in s.ports.iter_mut().zip(drives) {
            port.drive = drive.map(Drive::new);
        }
        (0..32).for_each(|p| s.power_on(p));
        s.now += 10_000;
        s.all_time();
        drop(s);
        model
    }

    /// Looks at or changes a drive.
    pub fn drive<R>(&self, port: usize, f: impl FnOnce(&mut Drive) -> R) -> R {
        f(self.0.borrow_mut().ports[port].drive())
    }

    /// A sector as a read would give it, or (`durable`) as it is after a power cut.
    #[must_use]
    pub fn sector(&self, port: usize, lba: u64, durable: bool) -> Vec<u8> {
        self.drive(port, |d| d.sector(lba, durable))
    }

    /// Reads and writes of this sector fail the next `times` times.
    pub fn break_sector(&self, port: usize, lba: u64, times: u32) {
        self.drive(port, |d| d.bad.insert(lba, times));
    }

    /// Commands on this sector never end, the next `times` times.
    pub fn stick_sector(&self, port: usize, lba: u64, times: u32) {
        self.drive(port, |d| d.stuck.insert(lba, times));
    }

    /// This ATA command fails.
    pub fn break_command(&self, port: usize, command: u8, on: bool) {
        self.drive(port, |d| if on { d.bad_commands.insert(command) } else { d.bad_commands.remove(&command) });
    }

    /// The drive's cache is lost.
    pub fn cut_power(&self, port: usize) {
        self.drive(port, |d| d.cache.clear());
    }

    /// Takes the drive out, or puts one in.
    pub fn plug(&self, port: usize, drive: Option<DriveSetup>) {
        let mut s = self.0.borrow_mut();
        let (now, link) = (s.now, s.setup.link_us);
        let p = &mut s.ports[port];
        p.running.clear();
        p.set(SSTS, 0);
        p.or(SERR, 1 << 16);
        p.link_at = if drive.is_some() { now + link } else { u64::MAX };
        p.ready_at = u64::MAX;
        p.drive = drive.map(Drive::new);
    }

    /// The link is lost for a moment.
    pub fn blip(&self, port: usize) {
        let mut s = self.0.borrow_mut();
        s.ports[port].set(SSTS, 0);
        s.link_reset(port);
    }

    /// The port does not stop.
    pub fn stick_port(&self, port: usize, on: bool) {
        self.0.borrow_mut().ports[port].stuck_running = on;
    }

    /// The controller does not come out of its reset.
    pub fn stick_reset(&self, on: bool) {
        self.0.borrow_mut().stuck_in_reset = on;
    }

    /// All registers read as ones.
    pub fn vanish(&self) {
        self.0.borrow_mut().gone = true;
    }

    /// Sets bits of PxSACT that nobody gave.
    pub fn lie_active(&self, port: usize, bits: u32) {
        self.0.borrow_mut().ports[port].or(SACT, bits);
    }

    /// Sets bits of PxCI that nobody gave.
    pub fn lie_issued(&self, port: usize, bits: u32) {
        self.0.borrow_mut().ports[port].or(CI, bits);
    }

    /// The next command that is not queued moved so many bytes.
    pub fn lie_moved(&self, port: usize, bytes: u32) {
        self.0.borrow_mut().ports[port].prdbc_lie = Some(bytes);
    }

    /// The next queued error log is this.
    pub fn lie_log(&self, port: usize, log: [u8; 512]) {
        self.drive(port, |d| d.false_log = Some(log));
    }

    /// Raises causes of a port's interrupt, as an interface error would.
    pub fn raise(&self, port: usize, causes: u32) {
        self.0.borrow_mut().cause(port, causes);
    }

    /// What PCI configuration space says about bus mastership.
    pub fn set_master(&self, on: bool) {
        self.0.borrow_mut().master = on;
    }

    /// Memory beyond the model's own.
    pub fn set_bus(&self, bus: Box<dyn Bus>) {
        self.0.borrow_mut().bus = Some(bus);
    }

    /// A register, without the effects of reading it.
    #[must_use]
    pub fn peek(&self, register: usize) -> u32 {
        let s = self.0.borrow();
        if register < 0x100 {
            return s.host.get(&register).copied().unwrap_or(0);
        }
        s.ports[(register - 0x100) / 0x80].reg(register & 0x7f)
    }

    /// Sets a register behind the driver's back.
    pub fn poke(&self, register: usize, value: u32) {
        let mut s = self.0.borrow_mut();
        if register < 0x100 {
            s.host.insert(register, value);
        } else {
            s.ports[(register - 0x100) / 0x80].set(register & 0x7f, value);
        }
    }

    /// Level of the interrupt line.
    #[must_use]
    pub fn line(&self) -> bool {
        let s = self.0.borrow();
        s.host.get(&GHC).is_some_and(|g| g & 2 != 0) && s.causes() != 0
    }

    /// Resets of the whole controller.
    #[must_use]
    pub fn resets(&self) -> u32 {
        self.0.borrow().resets
    }

    /// Registers read and written since the last call.
    #[must_use]
    pub fn accesses(&self) -> (u64, u64) {
        std::mem::take(&mut self.0.borrow_mut().accesses)
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

    /// Accesses that were refused since the last call.
    #[must_use]
    pub fn refused(&self) -> Vec<Refused> {
        std::mem::take(&mut self.0.borrow_mut().refused)
    }

    /// Lets time pass.
    pub fn advance_us(&self, us: u64) {
        let mut s = self.0.borrow_mut();
        s.now += us;
        s.all_time();
    }
}

impl Mmio for Model {
    fn read32(&self, offset: usize) -> u32 {
        let mut s = self.0.borrow_mut();
        s.accesses.0 += 1;
        if s.gone {
            return u32::MAX;
        }
        let bios = s.setup.bios_us;
        match offset {
            0x00 => {
                let c = &s.setup;
                let bit = |on: bool, n: u32| u32::from(on) << n;
                let flags = bit(c.override_, 24) | bit(c.staggered, 27) | bit(c.queuing, 30) | bit(c.wide, 31);
                5 | u32::from(c.slots - 1) << 8 | flags | bit(true, 18)
            }
            GHC => s.host.get(&GHC).copied().unwrap_or(0) | u32::from(s.stuck_in_reset),
            IS => s.causes(),
            0x0c => s.setup.ports,
            0x10 => {
                if s.setup.qemu {
                    0x1_0000
                } else {
                    0x1_0301
                }
            }
            0x24 => u32::from(bios.is_some()),
            0x28 => {
                let asked = s.host.get(&0x28).copied().unwrap_or(0);
                let held = bios.is_some_and(|us| asked == 0 || s.now < u64::from(asked) + us);
                u32::from(held) | if held { 1 << 4 } else { 0 } | if asked != 0 { 2 } else { 0 }
            }
            0x100.. => {
                assert!(s.host.get(&GHC).is_some_and(|g| g >> 31 == 1), "AHCI is not enabled");
                let p = (offset - 0x100) / 0x80;
                assert!(s.setup.ports >> p & 1 == 1, "port {p} is not there");
                s.time(p);
                match offset & 0x7f {
                    PIS => s.port_causes(p),
                    at => s.ports[p].reg(at),
                }
            }
            _ => 0,
        }
    }

    fn write32(&self, offset: usize, value: u32) {
        let mut s = self.0.borrow_mut();
        s.accesses.1 += 1;
        if s.gone {
            return;
        }
        match offset {
            GHC if value & 1 != 0 => {
                s.resets += 1;
                s.host.clear();
                let qemu = s.setup.qemu;
                s.host.insert(GHC, if qemu { 1 << 31 } else { 0 });
                for p in 0..32 {
                    s.ports[p].stuck_running = false;
                    s.ports[p].stopped_at = 0;
                    s.power_on(p);
                }
            }
            GHC => {
                s.host.insert(GHC, value & (1 << 31 | 2));
            }
            IS => {}
            0x28 => {
                let now = s.now as u32;
                s.host.insert(0x28, now);
            }
            0x100.. => {
                let p = (offset - 0x100) / 0x80;
                assert!(s.setup.ports >> p & 1 == 1, "port {p} is not there");
                s.write_port(p, offset & 0x7f, value);
            }
            _ => panic!("write of register {offset:x}"),
        }
    }
}

impl DmaMemory for Model {
    fn device_addr(&self) -> u64 {
        MEMORY
    }

    fn len_bytes(&self) -> usize {
        AREA_LEN
    }

    fn read(&self, offset: usize) -> u32 {
        assert!(offset + 4 <= AREA_LEN && offset.is_multiple_of(4));
        u32::from_le_bytes(self.0.borrow().memory[offset..offset + 4].try_into().unwrap())
    }

    fn load_acquire(&self, offset: usize) -> u32 {
        self.read(offset)
    }

    fn write(&self, offset: usize, value: u32) {
        assert!(offset + 4 <= AREA_LEN && offset.is_multiple_of(4));
        self.0.borrow_mut().memory[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn fence(&self) {}
}

impl Clock for Model {
    fn now_us(&self) -> u64 {
        self.0.borrow().now
    }

    fn pause_us(&self, us: u32) {
        self.advance_us(u64::from(us));
    }
}
