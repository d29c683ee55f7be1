//! Driver for virtio block devices on PCI: [`Disks`] over [`NarrowMmio`], [`DmaMemory`] and [`Clock`].
//!
//! Written to *Virtual I/O Device (VIRTIO)* 1.2 on `virtio-drivers`, of which it takes the transport: initialisation, feature
//! negotiation, configuration space. Rooms: [`capabilities`] finds the device's structures, [`transport`] is its registers, [`config`] what it
//! says of itself, [`queue`] the rings and [`memory`] where they and the requests lie, [`command`] makes requests of commands, [`slots`]
//! keeps them, [`start`] brings the device from any state to running, this file moves requests and completions.
//!
//! Choices. A device is one drive. Up to 64 requests are with it; a short one is a chain in the queue's own table, a longer one a table
//! of descriptors. Virtio has no forced writes: `fua` makes a flush follow. It has no way to give up one request either: one that misses
//! its deadline costs a reset of the device, after which the others are given to it again. Nothing the device writes is believed: what
//! cannot be is a [`Fault`].
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

extern crate alloc;

pub mod capabilities;
pub mod command;
pub mod config;
pub mod memory;
#[cfg(test)]
mod model;
pub mod queue;
pub mod regs;
pub mod slots;
pub mod start;
#[cfg(test)]
mod tests;
pub mod transport;

use blkback::disk::{
    Change, Clock, Command, Completion, Disks, DmaMemory, DriveId, DriveInfo, DriveStats, Fault, IoError, NarrowMmio,
    ResetError, Segment, SubmitError,
};
use memory::Data;
use queue::{Queue, Used};
use regs::{Features, request, status};
use slots::{Kind, Slot, Slots, each};
pub use start::{StartError, Stopped};
pub use transport::VirtioPci;
use transport::{QUEUE, RESET_US};
use virtio_drivers::transport::{DeviceStatus, InterruptStatus, Transport};

/// Requests with the device at once.
pub const MAX_DEPTH: u8 = 64;
/// Segments of one request.
pub const MAX_SEGMENTS: u16 = 128;
/// Bytes of [`DmaMemory`] (see [`memory`]).
pub const AREA_BYTES: usize = 0x2_4000;
/// Resets in a row, with no command done between them, after which [`Disks::reset`] refuses.
pub const MAX_RESETS: u32 = 4;

/// The one drive.
const DRIVE: DriveId = DriveId(0);
/// How often a device in reset is looked at.
const RESET_GLANCE_US: u64 = 1_000;

/// What can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long a read or write may take, microseconds; then the device is reset and the command tried once more.
    pub command_us: u64,
    /// The same for a flush or discard.
    pub flush_us: u64,
    /// How often a device with requests is looked at though no interrupt came.
    pub glance_us: u64,
    /// The function interrupts by MSI-X: there is nothing to acknowledge.
    pub message_interrupts: bool,
}

impl Default for Config {
    /// 5 s for commands, 20 s for flushes, a glance every 50 ms.
    fn default() -> Self {
        Self { command_us: 5_000_000, flush_us: 20_000_000, glance_us: 50_000, message_interrupts: false }
    }
}

/// What the device is reached by.
#[derive(Debug)]
struct Hw<M, D, C> {
    registers: VirtioPci<M, C>,
    dma: D,
    config: Config,
}

impl<M: NarrowMmio, D: DmaMemory, C: Clock> Hw<M, D, C> {
    fn now(&self) -> u64 {
        self.registers.clock().now_us()
    }
}

/// The driver. Owns the device's registers and its memory.
#[derive(Debug)]
pub struct Virtio<M, D, C> {
    hw: Hw<M, D, C>,
    features: Features,
    info: DriveInfo,
    queue: Queue,
    slots: Slots,
    stats: DriveStats,
    fault: Option<Fault>,
    /// The device is in a reset that has to be over by then; what was with it is to be given again.
    resetting: Option<u64>,
    enabled: bool,
    /// When the device is looked at without being asked, while it has requests.
    glance_at: u64,
    resets_in_row: u32,
}

impl<M: NarrowMmio, D: DmaMemory, C: Clock> Virtio<M, D, C> {
    fn new(hw: Hw<M, D, C>, agreed: start::Agreed, queue: Queue) -> Self {
        Self {
            hw,
            features: agreed.features,
            info: agreed.info,
            slots: Slots::new(agreed.shape.depth),
            queue,
            stats: DriveStats::default(),
            fault: None,
            resetting: None,
            enabled: false,
            glance_at: 0,
            resets_in_row: 0,
        }
    }

    /// Stops: the device is told to reset, and not waited for.
    fn fail(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
        self.hw.registers.begin_reset();
    }

    /// Gives a slot, whose words are written, to the device.
    fn give(&mut self, slot: u8, mut request: Slot) {
        request.since = self.hw.now();
        if self.slots.out() == 0 {
            self.glance_at = request.since.saturating_add(self.hw.config.glance_us);
        }
        self.slots.put(slot, request);
        memory::unwrite_status(&self.hw.dma, slot);
        self.queue.push(&self.hw.dma, slot);
    }

    /// Takes from the used ring what is over.
    fn poll(&mut self) {
        if self.fault.is_some() || self.resetting.is_some() || self.slots.out() == 0 {
            return;
        }
        loop {
            match self.queue.pop(&self.hw.dma) {
                Ok(None) => break,
                Ok(Some(used)) => {
                    if let Err(found) = self.over(used) {
                        return self.fail(Fault::Impossible { drive: DRIVE, found });
                    }
                }
                Err(found) => return self.fail(Fault::Impossible { drive: DRIVE, found }),
            }
        }
        // Flushes of forced writes.
        self.kick();
    }

    /// A request is over, the device says.
    fn over(&mut self, used: Used) -> Result<(), u32> {
        let slot = self.queue.shape().slot(used.id).ok_or(used.id)?;
        let request = *self.slots.get(slot).ok_or(used.id)?;
        if used.len > request.writable {
            return Err(used.len);
        }
        let status = memory::read_status(&self.hw.dma, slot);
        let result = match status {
            // It stopped early and says that all is well: to the backend that is an error of the drive.
            status::OK if request.kind == Kind::Read && used.len < request.writable => {
                Err(IoError::Device { status, error: 0 })
            }
            status::OK => Ok(()),
            status::IOERR => Err(IoError::Device { status, error: 0 }),
            status::UNSUPP => Err(IoError::Unsupported),
            _ => return Err(status.into()),
        };
        if request.kind == (Kind::Write { then_flush: true }) && result.is_ok() {
            command::write_flush(&self.hw.dma, self.queue.shape(), slot);
            self.give(slot, Slot { kind: Kind::Flush, late: 0, ..request });
            return Ok(());
        }
        self.slots.finish(slot, result);
        Ok(())
    }

    /// The next completion known of.
    fn reap(&mut self) -> Option<Completion> {
        let Slot { token, kind, bytes, result, .. } = self.slots.reap()?;
        let s = &mut self.stats;
        s.commands = s.commands.saturating_add(1);
        let bytes = u64::from(bytes);
        match (result, kind) {
            (Err(_), _) => s.errors = s.errors.saturating_add(1),
            (Ok(()), Kind::Read) => s.read_bytes = s.read_bytes.saturating_add(bytes),
            (Ok(()), Kind::Flush) if bytes == 0 => s.flushes = s.flushes.saturating_add(1),
            // A write that went on as a flush is still a write.
            (Ok(()), Kind::Write { .. } | Kind::Flush) => s.written_bytes = s.written_bytes.saturating_add(bytes),
            (Ok(()), Kind::Discard) => {}
        }
        if result.is_ok() {
            self.resets_in_row = 0;
        }
        Some(Completion { token, result })
    }

    /// Looks at the status: a device that gave up says so, one that has gone says everything.
    fn look(&mut self) {
        match self.hw.registers.status() {
            u8::MAX => self.fail(Fault::Gone),
            _ if self.hw.registers.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET) => {
                // What it did not like is its queue or memory it was pointed at (2.1.1): the driver's word for it is a refused access.
                self.fail(Fault::HostBus(DRIVE));
            }
            _ => {}
        }
    }

    /// Looks after requests that take long: lost interrupts, missed deadlines, a device that gave up.
    fn glance(&mut self, now: u64) {
        self.look();
        self.poll();
        if self.fault.is_some() {
            return;
        }
        let config = self.hw.config;
        let mut overdue = false;
        for slot in each(self.slots.out()) {
            let Some(request) = self.slots.get_mut(slot) else { continue };
            let limit = match request.kind {
                Kind::Read | Kind::Write { .. } => config.command_us,
                Kind::Flush | Kind::Discard => config.flush_us,
            };
            if now.saturating_sub(request.since) >= limit {
                request.late = request.late.saturating_add(1);
                overdue = true;
            }
        }
        if overdue {
            self.stats.recoveries = self.stats.recoveries.saturating_add(1);
            self.hw.registers.begin_reset();
            self.resetting = Some(now.saturating_add(RESET_US));
            self.resume(now);
        }
    }

    /// A device in reset: once it is through, what was with it is given again, except what was late twice.
    fn resume(&mut self, now: u64) {
        let Some(until) = self.resetting else { return };
        match self.hw.registers.status() {
            0 => {}
            u8::MAX => return self.fail(Fault::Gone),
            _ if now < until => return,
            _ => return self.fail(Fault::PortStuck(DRIVE)),
        }
        self.resetting = None;
        if self.agree_again().is_err() {
            return self.fail(Fault::PortStuck(DRIVE));
        }
        for slot in each(self.slots.out()) {
            let Some(request) = self.slots.get(slot).copied() else { continue };
            if request.late > 1 {
                self.slots.finish(slot, Err(IoError::Timeout));
            } else {
                self.give(slot, request);
            }
        }
        self.glance_at = now.saturating_add(self.hw.config.glance_us);
        self.kick();
    }
}

impl<M: NarrowMmio, D: DmaMemory, C: Clock> Disks for Virtio<M, D, C> {
    fn drives(&self) -> u8 {
        1
    }

    fn info(&self, drive: DriveId) -> Option<&DriveInfo> {
        (drive == DRIVE).then_some(&self.info)
    }

    fn room(&self, drive: DriveId) -> usize {
        let ready = drive == DRIVE && self.fault.is_none() && self.resetting.is_none();
        if ready { self.slots.room() } else { 0 }
    }

    fn submit(&mut self, drive: DriveId, command: &Command<'_>, token: u32) -> Result<(), SubmitError> {
        if self.fault.is_some() {
            return Err(SubmitError::Faulty);
        }
        if drive != DRIVE {
            return Err(SubmitError::NoDrive(drive));
        }
        command::check(&self.info, command)?;
        let slot = self.slots.free().filter(|_| self.resetting.is_none()).ok_or(SubmitError::Full)?;
        let request = command::write(&self.hw.dma, self.queue.shape(), &self.info, slot, command, token);
        if request.kind == Kind::Flush && !self.info.write_cache {
            // Nothing is in flight that could be volatile, and the device may not know the command.
            self.slots.put(slot, request);
            self.slots.finish(slot, Ok(()));
        } else {
            self.give(slot, request);
        }
        Ok(())
    }

    fn kick(&mut self) {
        if self.fault.is_none() && self.resetting.is_none() && self.queue.publish(&self.hw.dma) {
            self.hw.registers.notify(QUEUE);
        }
    }

    fn completed(&mut self) -> Option<(DriveId, Completion)> {
        if self.fault.is_some() {
            return None;
        }
        if let Some(completion) = self.reap() {
            return Some((DRIVE, completion));
        }
        self.poll();
        if self.fault.is_some() { None } else { self.reap().map(|completion| (DRIVE, completion)) }
    }

    fn interrupt(&mut self) {
        if self.fault.is_some() || self.hw.config.message_interrupts {
            return;
        }
        let causes = self.hw.registers.ack_interrupt();
        if causes.contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT) && self.resetting.is_none() {
            self.look();
        }
    }

    fn interrupts_enable(&mut self, on: bool) {
        self.enabled = on;
        if self.fault.is_none() && self.resetting.is_none() {
            self.queue.interrupts_enable(&self.hw.dma, on);
        }
    }

    fn tick(&mut self) -> Option<u64> {
        let now = self.hw.now();
        if self.fault.is_none() && self.resetting.is_some() {
            self.resume(now);
        } else if self.fault.is_none() && self.slots.out() != 0 && now >= self.glance_at {
            self.glance_at = now.saturating_add(self.hw.config.glance_us);
            self.glance(now);
        }
        match (self.fault, self.resetting) {
            (Some(_), _) => None,
            (None, Some(_)) => Some(now.saturating_add(RESET_GLANCE_US)),
            (None, None) => (self.slots.out() != 0).then_some(self.glance_at),
        }
    }

    /// A virtio block device comes and goes as a PCI function, not as a drive of one.
    fn change(&mut self) -> Option<Change> {
        None
    }

    fn stats(&self, drive: DriveId) -> DriveStats {
        if drive == DRIVE { self.stats } else { DriveStats::default() }
    }

    fn fault(&self) -> Option<Fault> {
        self.fault
    }

    fn reset(&mut self) -> Result<(), ResetError> {
        if self.resets_in_row >= MAX_RESETS {
            return Err(ResetError::TooMany(self.resets_in_row));
        }
        self.resets_in_row = self.resets_in_row.saturating_add(1);
        self.hw.registers.set_status(DeviceStatus::empty());
        start::was_reset(self.hw.registers.status())?;
        self.agree_again()?;
        (self.fault, self.resetting) = (None, None);
        self.forget();
        Ok(())
    }

    /// A read of the first sector into `addr`, in a slot that is free, or in the first: with the device there is nothing more to come.
    fn point_dma_at(&mut self, addr: u64) {
        let slot = self.slots.free().unwrap_or(0);
        memory::header(&self.hw.dma, slot, request::IN, 0);
        let target = Segment { addr, len: self.info.sector_size };
        memory::describe(&self.hw.dma, self.queue.shape(), slot, Data::In(&[target]));
        self.queue.push(&self.hw.dma, slot);
        let _ = self.queue.publish(&self.hw.dma);
        self.hw.registers.notify(QUEUE);
    }
}
