//! One IOMMU: switching it on, changing what it holds for a device, waiting until it has forgotten the old, reading its log.
//!
//! An entry is changed so that no mixture of old and new is ever valid: first the quadword with V, TV and the rights is replaced
//! by a denying one (a single store), then the others, then the quadword with the new rights; invalidation follows.
//!
//! The log is read by content, not by its tail register: on hardware an entry can trail that register (every entry is cleared
//! when it has been read, and no valid one is zero), and QEMU's source of before 10.1 never updates it. Nor does that log
//! wrap, and it counts its room in bytes; so the log is rewound long before its end, which costs hardware nothing.

use crate::entry::{
    Command, DEVICE_IDS, DEVICE_TABLE_BYTES, DTE_BYTES, DeviceEntry, Event, INTERRUPT_ENTRIES, InterruptEntry,
    Translation,
};
use hv_core::Mfn;

/// The IOMMU's registers and the memory it shares. Addresses are physical; all accesses are naturally aligned and in order.
pub trait Hardware {
    /// Reads the 64-bit register at `offset`.
    fn register(&self, offset: u64) -> u64;
    /// Writes it.
    fn set_register(&self, offset: u64, value: u64);
    /// Reads 64 bits of memory.
    fn load(&self, addr: u64) -> u64;
    /// Writes 64 bits of memory.
    fn store(&self, addr: u64, value: u64);
    /// Writes 32 bits of memory.
    fn store32(&self, addr: u64, value: u32);
    /// Time in ns, for deadlines.
    fn now_ns(&self) -> u64;
}

/// Registers (3.3).
pub mod reg {
    /// Device Table Base Address.
    pub const DEVICE_TABLE: u64 = 0x0000;
    /// Command Buffer Base Address.
    pub const COMMAND_BASE: u64 = 0x0008;
    /// Event Log Base Address.
    pub const EVENT_BASE: u64 = 0x0010;
    /// IOMMU Control.
    pub const CONTROL: u64 = 0x0018;
    /// Command Buffer Head Pointer.
    pub const COMMAND_HEAD: u64 = 0x2000;
    /// Command Buffer Tail Pointer.
    pub const COMMAND_TAIL: u64 = 0x2008;
    /// Event Log Head Pointer.
    pub const EVENT_HEAD: u64 = 0x2010;
    /// Event Log Tail Pointer.
    pub const EVENT_TAIL: u64 = 0x2018;
    /// IOMMU Status.
    pub const STATUS: u64 = 0x2020;

    /// CONTROL: IommuEn.
    pub const CONTROL_ENABLE: u64 = 1 << 0;
    /// CONTROL: EventLogEn.
    pub const CONTROL_EVENT_LOG: u64 = 1 << 2;
    /// CONTROL: EventIntEn.
    pub const CONTROL_EVENT_INT: u64 = 1 << 3;
    /// CONTROL: Coherent: table walks snoop.
    pub const CONTROL_COHERENT: u64 = 1 << 10;
    /// CONTROL: CmdBufEn.
    pub const CONTROL_COMMANDS: u64 = 1 << 12;
    /// STATUS: EventOverflow, EventLogInt, ComWaitInt; written 1 to clear.
    pub const STATUS_CLEAR: u64 = 0b111;
    /// STATUS: EventOverflow.
    pub const STATUS_OVERFLOW: u64 = 1 << 0;
    /// STATUS: EventLogRun.
    pub const STATUS_LOG_RUNS: u64 = 1 << 3;
}

/// Bytes of the command buffer: 256 commands, the least that can be encoded.
pub const COMMAND_BYTES: u64 = 4096;
/// Bytes of the event log: 16,384 entries. QEMU before 10.1 uses a sixteenth of it.
pub const LOG_BYTES: u64 = 1 << 18;
/// The log is rewound when its read position is past this.
const LOG_REWIND: u64 = LOG_BYTES / 64;
/// How long an invalidation may take, ns.
const DEADLINE_NS: u64 = 100_000_000;

/// Where the structures of one IOMMU lie. All cleared, and used for nothing else.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// [`DEVICE_TABLE_BYTES`]; may be shared by several IOMMUs.
    pub device_table: Mfn,
    /// [`COMMAND_BYTES`].
    pub commands: Mfn,
    /// [`LOG_BYTES`].
    pub log: Mfn,
    /// A quadword for COMPLETION_WAIT: physical address.
    pub completion: u64,
}

/// The IOMMU has not carried out its commands in time; nothing it holds can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout;

/// One IOMMU, enabled.
#[derive(Debug)]
pub struct Unit<H> {
    hardware: H,
    layout: Layout,
    tail: u64,
    sequence: u64,
    log_head: u64,
    control: u64,
}

/// Writes an entry that denies everything for every device ID.
pub fn deny_all(hardware: &impl Hardware, table: Mfn, denied: &DeviceEntry) {
    let bits = denied.bits();
    for id in 0..DEVICE_IDS as u64 {
        let base = table.addr().saturating_add(id.saturating_mul(DTE_BYTES));
        for (at, word) in (base..).step_by(8).zip(bits) {
            hardware.store(at, word);
        }
    }
}

/// Writes one entry of an interrupt remapping table; `None` blocks it. [`Unit::forget_device`] must follow.
pub fn set_interrupt(hardware: &impl Hardware, table: Mfn, index: u16, entry: Option<InterruptEntry>) {
    let index = u64::from(index) % INTERRUPT_ENTRIES;
    let bits = entry.map_or(InterruptEntry::BLOCKED, InterruptEntry::bits);
    hardware.store32(table.addr().saturating_add(index.saturating_mul(4)), bits);
}

impl<H: Hardware> Unit<H> {
    /// Switches an IOMMU on. Its device table denies everything already ([`deny_all`]).
    ///
    /// # Errors
    /// [`Timeout`] where it does not answer.
    pub fn enable(hardware: H, layout: Layout) -> Result<Self, Timeout> {
        const LOG2_COMMANDS: u64 = 8;
        const LOG2_EVENTS: u64 = 14;
        hardware.set_register(reg::CONTROL, 0);
        let pages = DEVICE_TABLE_BYTES / 4096;
        hardware.set_register(reg::DEVICE_TABLE, layout.device_table.addr() | pages.saturating_sub(1));
        hardware.set_register(reg::COMMAND_BASE, layout.commands.addr() | LOG2_COMMANDS << 56);
        hardware.set_register(reg::EVENT_BASE, layout.log.addr() | LOG2_EVENTS << 56);
        for pointer in [reg::COMMAND_HEAD, reg::COMMAND_TAIL, reg::EVENT_HEAD, reg::EVENT_TAIL] {
            hardware.set_register(pointer, 0);
        }
        hardware.set_register(reg::STATUS, reg::STATUS_CLEAR);
        let control = reg::CONTROL_ENABLE
            | reg::CONTROL_COHERENT
            | reg::CONTROL_COMMANDS
            | reg::CONTROL_EVENT_LOG
            | reg::CONTROL_EVENT_INT;
        hardware.set_register(reg::CONTROL, control);
        let mut this = Self { hardware, layout, tail: 0, sequence: 0, log_head: 0, control };
        this.complete()?;
        Ok(this)
    }

    /// The hardware behind it.
    pub const fn hardware(&self) -> &H {
        &self.hardware
    }

    /// Gives a device a new entry and returns when the IOMMU uses nothing of the old one. `old_domain` tags translations the device
    /// may have cached under the old entry.
    ///
    /// # Errors
    /// [`Timeout`].
    pub fn set_device(&mut self, id: u16, new: &DeviceEntry, old_domain: u8) -> Result<(), Timeout> {
        let base = self.layout.device_table.addr().saturating_add(u64::from(id).saturating_mul(DTE_BYTES));
        let translation = Translation { allowed: false, ..new.translation };
        let [denied, ..] = DeviceEntry { translation, ..*new }.bits();
        let [first, second, third, fourth] = new.bits();
        self.hardware.store(base, denied);
        for (at, word) in [(8, second), (16, third), (24, fourth)] {
            self.hardware.store(base.saturating_add(at), word);
        }
        self.hardware.store(base, first);
        self.submit(Command::InvalidatePages(old_domain))?;
        self.forget_device(id)
    }

    /// Makes the IOMMU forget what it keeps of a device's entry and interrupt table.
    ///
    /// # Errors
    /// [`Timeout`].
    pub fn forget_device(&mut self, id: u16) -> Result<(), Timeout> {
        self.submit(Command::InvalidateDevice(id))?;
        self.submit(Command::InvalidateInterrupts(id))?;
        self.complete()
    }

    /// Makes the IOMMU forget all translations with this tag.
    ///
    /// # Errors
    /// [`Timeout`].
    pub fn forget_pages(&mut self, domain_id: u8) -> Result<(), Timeout> {
        self.submit(Command::InvalidatePages(domain_id))?;
        self.complete()
    }

    /// The next event, oldest first.
    pub fn next_event(&mut self) -> Option<Event> {
        self.hardware.set_register(reg::STATUS, reg::STATUS_CLEAR & !reg::STATUS_OVERFLOW);
        let event = self.take_event();
        if event.is_none() && self.log_head > LOG_REWIND {
            return self.rewind();
        }
        event
    }

    fn take_event(&mut self) -> Option<Event> {
        let at = self.layout.log.addr().saturating_add(self.log_head);
        let event = Event::decode([self.hardware.load(at), self.hardware.load(at.saturating_add(8))])?;
        self.hardware.store(at, 0);
        self.hardware.store(at.saturating_add(8), 0);
        self.log_head = self.log_head.saturating_add(16) % LOG_BYTES;
        self.hardware.set_register(reg::EVENT_HEAD, self.log_head);
        Some(event)
    }

    /// Starts the log at its beginning again (2.5.1), without losing what is written meanwhile. Also the way out of an overflow.
    fn rewind(&mut self) -> Option<Event> {
        self.hardware.set_register(reg::CONTROL, self.control & !reg::CONTROL_EVENT_LOG);
        let stopped = self.until(|h| h.register(reg::STATUS) & reg::STATUS_LOG_RUNS == 0);
        let last = self.take_event();
        if last.is_none() && stopped.is_ok() {
            self.log_head = 0;
            self.hardware.set_register(reg::EVENT_HEAD, 0);
            self.hardware.set_register(reg::EVENT_TAIL, 0);
            self.hardware.set_register(reg::STATUS, reg::STATUS_CLEAR);
        }
        self.hardware.set_register(reg::CONTROL, self.control);
        last
    }

    /// Restarts the log if it has overflowed. True: it had, and events were lost.
    pub fn overflowed(&mut self) -> bool {
        let lost = self.hardware.register(reg::STATUS) & reg::STATUS_OVERFLOW != 0;
        if lost {
            while self.take_event().is_some() {}
            let _ = self.rewind();
        }
        lost
    }

    fn submit(&mut self, command: Command) -> Result<(), Timeout> {
        let next = self.tail.saturating_add(16) % COMMAND_BYTES;
        self.until(|h| h.register(reg::COMMAND_HEAD) & 0x7_FFF0 != next)?;
        let at = self.layout.commands.addr().saturating_add(self.tail);
        let [low, high] = command.bits();
        self.hardware.store(at, low);
        self.hardware.store(at.saturating_add(8), high);
        self.tail = next;
        self.hardware.set_register(reg::COMMAND_TAIL, next);
        Ok(())
    }

    fn complete(&mut self) -> Result<(), Timeout> {
        self.sequence = self.sequence.wrapping_add(1);
        let (addr, data) = (self.layout.completion, self.sequence);
        self.submit(Command::CompletionWait { addr, data })?;
        self.until(|h| h.load(addr) == data)
    }

    fn until(&self, done: impl Fn(&H) -> bool) -> Result<(), Timeout> {
        let end = self.hardware.now_ns().saturating_add(DEADLINE_NS);
        while !done(&self.hardware) {
            if self.hardware.now_ns() >= end {
                return Err(Timeout);
            }
            core::hint::spin_loop();
        }
        Ok(())
    }
}
