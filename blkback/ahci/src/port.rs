//! One port with its drive: commands go in, completions come out, errors go to `recovery`.
//!
//! Rooms: [`Hw`] is what all ports share, [`crate::slots`] decides what goes next, [`crate::memory`] holds the words, `recovery` brings the
//! port from any state to running. A completion is what the controller's registers say (PxSACT, PxCI), never what lies in memory: a
//! bit that was not given cannot be over, and one that appears by itself is a [`Fault`].

use crate::fis::{self, Data};
use crate::identify::Identity;
use crate::memory::DriveMemory;
use crate::recovery::{Cause, Phase, Plan, Step, Unserved};
use crate::regs::{self, AtaStatus, Cap, PortCmd, PortInterrupts};
use crate::slots::{Kind, Next, Slots, each};
use crate::{Config, MAX_SEGMENTS};
use blkback::disk::{
    Change, Clock, Command, Completion, DmaMemory, DriveId, DriveInfo, DriveStats, Fault, IoError, Mmio, Op,
    SubmitError,
};

/// Sectors of one read or write: what the count register holds.
const MAX_SECTORS: u32 = 0xffff;
/// Alignment of segments: data travels in words of 32 bits.
pub(crate) const ALIGN: u32 = 4;

/// What all ports share.
#[derive(Debug)]
pub struct Hw<M, D, C> {
    /// Registers.
    pub mmio: M,
    /// Memory.
    pub dma: D,
    /// Time.
    pub clock: C,
    /// Choices.
    pub config: Config,
    /// CAP.
    pub cap: u32,
    /// How often ports with commands are looked at without being asked, microseconds.
    pub glance_us: u64,
}

impl<M: Mmio, D: DmaMemory, C: Clock> Hw<M, D, C> {
    /// A port's register.
    pub fn read(&self, port: u8, register: usize) -> u32 {
        self.mmio.read32(regs::port(port, register))
    }

    /// The same.
    pub fn write(&self, port: u8, register: usize, value: u32) {
        self.mmio.write32(regs::port(port, register), value);
    }

    /// Whether the controller can do this.
    pub fn can(&self, what: Cap) -> bool {
        Cap::from_bits_retain(self.cap).contains(what)
    }

    /// All ones from a port are believed only when the controller says nothing else either.
    pub fn is_gone(&self) -> bool {
        self.mmio.read32(regs::GHC) == u32::MAX
    }
}

/// A port and its drive.
#[derive(Debug)]
pub struct Port {
    /// Number on the controller.
    pub(crate) index: u8,
    /// Number for the backend.
    pub(crate) drive: DriveId,
    pub(crate) memory: Option<DriveMemory>,
    pub(crate) slots: Slots,
    pub(crate) identity: Option<Identity>,
    pub(crate) info: Option<DriveInfo>,
    pub(crate) unserved: Option<Unserved>,
    pub(crate) phase: Phase,
    pub(crate) plan: Plan,
    /// When the port is looked at without being asked, while it has commands.
    pub(crate) glance_at: u64,
    /// The drive said in memory that queued commands are done, the registers did not yet.
    hinted: bool,
    /// A drive went; a drive came. In this order.
    pub(crate) went: bool,
    pub(crate) came: bool,
    pub(crate) stats: DriveStats,
}

/// Whether status or error bits say that a command failed.
pub const fn failed(status: u8) -> bool {
    AtaStatus::from_bits_retain(status).intersects(AtaStatus::ERR.union(AtaStatus::DF))
}

impl Port {
    /// A port without a drive.
    #[must_use]
    pub fn new(index: u8, drive: DriveId) -> Self {
        Self {
            index,
            drive,
            memory: None,
            slots: Slots::new(0),
            identity: None,
            info: None,
            unserved: None,
            phase: Phase::Empty,
            plan: Plan::default(),
            glance_at: 0,
            hinted: false,
            went: false,
            came: false,
            stats: DriveStats::default(),
        }
    }

    /// See `Disks::info`.
    #[must_use]
    pub const fn info(&self) -> Option<&DriveInfo> {
        self.info.as_ref()
    }

    /// Why a device that is there is not served.
    #[must_use]
    pub const fn unserved(&self) -> Option<Unserved> {
        self.unserved
    }

    /// See `Disks::room`.
    #[must_use]
    pub fn room(&self) -> usize {
        self.slots.room() as usize
    }

    /// What the backend is told of a drive.
    pub(crate) fn describe<M: Mmio, D: DmaMemory, C: Clock>(hw: &Hw<M, D, C>, id: &Identity) -> DriveInfo {
        let discard = fis::TRIM_RANGES.saturating_mul(fis::TRIM_SECTORS);
        DriveInfo {
            sector_size: id.sector_size,
            physical_sector_size: id.physical_sector_size,
            sectors: id.sectors,
            depth: u16::from(Self::depth(hw, id)),
            max_segments: MAX_SEGMENTS,
            max_segment: fis::MAX_REGION,
            segment_align: ALIGN,
            max_sectors: MAX_SECTORS,
            write_cache: id.write_cache,
            fua: id.fua,
            max_discard: if id.trim { discard } else { 0 },
            discard_granularity: id.physical_sector_size.checked_div(id.sector_size).unwrap_or(1),
            read_only: false,
            rotational: id.rotational,
            model: id.model,
            serial: id.serial,
        }
    }

    pub(crate) fn queued<M: Mmio, D: DmaMemory, C: Clock>(hw: &Hw<M, D, C>, id: &Identity) -> bool {
        id.queue_depth > 0 && hw.can(Cap::SNCQ)
    }

    /// Commands in flight: without queuing one is with the drive and the others wait for it.
    pub(crate) fn depth<M: Mmio, D: DmaMemory, C: Clock>(hw: &Hw<M, D, C>, id: &Identity) -> u8 {
        let slots = regs::slots(hw.cap);
        if Self::queued(hw, id) { slots.min(id.queue_depth) } else { slots }
    }

    /// See `Disks::submit`.
    pub fn submit<M: Mmio, D: DmaMemory, C: Clock>(
        &mut self,
        hw: &Hw<M, D, C>,
        command: &Command<'_>,
        token: u32,
    ) -> Result<(), SubmitError> {
        let gone = SubmitError::NoDrive(self.drive);
        let (Some(info), Some(id), Some(memory)) = (&self.info, &self.identity, self.memory) else {
            return Err(gone);
        };
        check(info, id, hw.can(Cap::S64A), command)?;
        let slot = self.slots.free().ok_or(SubmitError::Full)?;
        let queued = Self::queued(hw, id);
        let (lba, count) = (command.sector, command.sectors as u16);
        let (fis, kind) = match command.op {
            Op::Read if queued => (fis::read_queued(lba, count, slot), Kind::Read),
            Op::Read => (fis::read(lba, count), Kind::Read),
            Op::Write { fua } => {
                // Without a cache every write is on media when it is done.
                let forced = fua && id.write_cache;
                let by_drive = forced && id.fua;
                let fis = if queued {
                    fis::write_queued(lba, count, slot, by_drive)
                } else {
                    fis::write(lba, count, by_drive)
                };
                (fis, Kind::Write { then_flush: forced && !by_drive })
            }
            Op::Flush => (fis::flush(id.flush_ext), Kind::Flush),
            Op::Discard => (fis::trim(), Kind::Discard),
        };
        let alone = !queued || matches!(command.op, Op::Flush | Op::Discard);
        let bytes = command.sectors.saturating_mul(id.sector_size);
        let prds = match command.op {
            Op::Discard => {
                memory.trim(&hw.dma, slot, lba, command.sectors);
                1
            }
            _ => memory.regions(&hw.dma, slot, command.segments),
        };
        memory.command(&hw.dma, slot, &fis);
        self.slots.put(slot, alone, (token, kind, bytes, prds));
        if command.op == Op::Flush && !id.write_cache {
            self.slots.finish_waiting(slot);
        }
        Ok(())
    }

    /// Issues what may be issued.
    pub fn pump<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>) {
        let (Phase::Running, Some(memory)) = (&self.phase, self.memory) else { return };
        let next = self.slots.next();
        let mask = match next {
            Next::Nothing => return,
            Next::Queued(mask) => mask,
            Next::Alone(slot) => 1u32.wrapping_shl(u32::from(slot)),
        };
        for slot in each(mask) {
            let command = self.slots.get(slot);
            let data = match command.kind {
                Kind::Read | Kind::Flush => Data::In,
                Kind::Write { .. } | Kind::Discard => Data::Out,
            };
            memory.header(&hw.dma, slot, data, command.prds);
        }
        let now = hw.clock.now_us();
        if self.slots.issued() == 0 {
            self.glance_at = now.saturating_add(hw.glance_us);
        }
        if let Next::Alone(slot) = next {
            self.slots.issue_alone(slot, now);
        } else {
            self.slots.issue_queued(mask, now);
            hw.write(self.index, regs::PXSACT, mask);
        }
        hw.write(self.index, regs::PXCI, mask);
    }

    fn impossible<M: Mmio, D: DmaMemory, C: Clock>(&self, hw: &Hw<M, D, C>, found: u32) -> Fault {
        if hw.is_gone() { Fault::Gone } else { Fault::Impossible { drive: self.drive, found } }
    }

    /// Looks which commands are over, but at the registers, which cost a trip to the device, only where memory says that it is worth it.
    /// What memory does not tell, [`Port::tick`] finds at its next glance.
    pub fn peek<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>) -> Result<(), Fault> {
        let (Some(memory), Phase::Running, None) = (self.memory, &self.phase, self.slots.leader()) else {
            return self.poll(hw);
        };
        if self.slots.issued() == 0 {
            return Ok(());
        }
        self.hinted |= memory.take_hint(&hw.dma) || failed(memory.device_bits(&hw.dma).0);
        if self.hinted { self.poll(hw) } else { Ok(()) }
    }

    /// Looks which commands are over, without looking at causes of interrupts.
    pub fn poll<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>) -> Result<(), Fault> {
        let given = self.slots.given();
        let (Phase::Running, Some(memory), true) = (&self.phase, self.memory, given != 0) else { return Ok(()) };
        if let Some(slot) = self.slots.leader() {
            let outstanding = hw.read(self.index, regs::PXCI);
            if outstanding & !given != 0 {
                return Err(self.impossible(hw, outstanding & !given));
            }
            if outstanding & given != 0 {
                return Ok(());
            }
            let [status, ..] = hw.read(self.index, regs::PXTFD).to_le_bytes();
            if failed(status) {
                return self.recover(hw, Cause::TaskFile);
            }
            self.finish_alone(hw, memory, slot)?;
        } else {
            let outstanding = hw.read(self.index, regs::PXSACT);
            if outstanding & !given != 0 {
                return Err(self.impossible(hw, outstanding & !given));
            }
            self.finish_queued(hw, memory, given & !outstanding);
            let (status, _) = memory.device_bits(&hw.dma);
            if failed(status) {
                return self.recover(hw, Cause::TaskFile);
            }
        }
        self.pump(hw);
        Ok(())
    }

    fn finish_queued<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>, memory: DriveMemory, done: u32) {
        if done != 0 {
            self.hinted = false;
            let flushes = self.slots.finish(done);
            self.turn_into_flushes(hw, memory, flushes);
        }
    }

    /// A command that was alone ended well, as far as the status says; what it moved has to be right as well (4.2.2, PRDBC).
    fn finish_alone<M: Mmio, D: DmaMemory, C: Clock>(
        &mut self,
        hw: &Hw<M, D, C>,
        memory: DriveMemory,
        slot: u8,
    ) -> Result<(), Fault> {
        let moved = memory.moved(&hw.dma, slot);
        let command = self.slots.get(slot);
        let (least, most) = match command.kind {
            Kind::Read | Kind::Write { .. } => (command.bytes, command.bytes),
            Kind::Flush => (0, 0),
            Kind::Discard => (0, crate::memory::OWN_BYTES),
        };
        if moved > most {
            return Err(self.impossible(hw, moved));
        }
        if moved < least {
            // It stopped early and says that all is well: to the backend that is an error of the drive.
            self.slots.fail(self.slots.issued(), IoError::Device { status: 0, error: 0 });
            return self.recover(hw, Cause::Doubt);
        }
        let flushes = self.slots.finish_alone();
        self.turn_into_flushes(hw, memory, flushes);
        Ok(())
    }

    fn turn_into_flushes<M: Mmio, D: DmaMemory, C: Clock>(&self, hw: &Hw<M, D, C>, memory: DriveMemory, mask: u32) {
        let ext = self.identity.is_none_or(|id| id.flush_ext);
        each(mask).for_each(|slot| memory.command(&hw.dma, slot, &fis::flush(ext)));
    }

    /// Before a recovery: what ended well ended well, whatever else happened (6.2.2).
    pub(crate) fn harvest<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>) -> Result<(), Fault> {
        let (Some(memory), None) = (self.memory, self.slots.leader()) else { return Ok(()) };
        let given = self.slots.given();
        let outstanding = hw.read(self.index, regs::PXSACT) | hw.read(self.index, regs::PXCI);
        if outstanding & !given != 0 {
            return Err(self.impossible(hw, outstanding & !given));
        }
        self.finish_queued(hw, memory, given & !outstanding);
        Ok(())
    }

    /// Reads and acknowledges the port's interrupt causes and acts on them.
    pub fn service<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>) -> Result<(), Fault> {
        let causes = hw.read(self.index, regs::PXIS);
        if causes == 0 {
            return Ok(());
        }
        if causes == u32::MAX && hw.is_gone() {
            return Err(Fault::Gone);
        }
        hw.write(self.index, regs::PXIS, causes);
        let causes = PortInterrupts::from_bits_retain(causes);
        if causes.intersects(PortInterrupts::host_errors()) {
            return Err(Fault::HostBus(self.drive));
        }
        match self.phase {
            Phase::Empty if causes.intersects(PortInterrupts::link()) => self.arrive(hw),
            Phase::Running if causes.intersects(PortInterrupts::link()) => self.recover(hw, Cause::Link),
            Phase::Running if causes.intersects(PortInterrupts::errors()) => {
                let cause = if causes.contains(PortInterrupts::TFES) { Cause::TaskFile } else { Cause::Doubt };
                self.recover(hw, cause)
            }
            Phase::Running => self.poll(hw),
            // The steps of a recovery look for themselves.
            Phase::Empty | Phase::Step { .. } => Ok(()),
        }
    }

    /// The next completion.
    pub fn reap(&mut self) -> Option<Completion> {
        let slot = self.slots.reap()?;
        let s = &mut self.stats;
        s.commands = s.commands.saturating_add(1);
        let bytes = u64::from(slot.bytes);
        match (slot.result, slot.kind) {
            (Err(_), _) => s.errors = s.errors.saturating_add(1),
            (Ok(()), Kind::Read) => s.read_bytes = s.read_bytes.saturating_add(bytes),
            (Ok(()), Kind::Flush) if bytes == 0 => s.flushes = s.flushes.saturating_add(1),
            // A write that went on as a flush is still a write.
            (Ok(()), Kind::Write { .. } | Kind::Flush) => s.written_bytes = s.written_bytes.saturating_add(bytes),
            (Ok(()), Kind::Discard) => {}
        }
        Some(Completion { token: slot.token, result: slot.result })
    }

    /// Tells the port to stop, without waiting.
    pub(crate) fn halt<M: Mmio, D: DmaMemory, C: Clock>(&self, hw: &Hw<M, D, C>) {
        let cmd = PortCmd::from_bits_retain(hw.read(self.index, regs::PXCMD));
        hw.write(self.index, regs::PXCMD, cmd.difference(PortCmd::ST).bits());
    }

    /// See `Disks::change`.
    pub(crate) fn change(&mut self) -> Option<Change> {
        if core::mem::take(&mut self.went) {
            Some(Change::Gone(self.drive))
        } else if core::mem::take(&mut self.came) {
            Some(Change::Came(self.drive))
        } else {
            None
        }
    }

    /// What it waits for, unless it serves or is empty.
    pub(crate) const fn step_of(&self) -> Option<Step> {
        match self.phase {
            Phase::Step { step, .. } => Some(step),
            Phase::Empty | Phase::Running => None,
        }
    }

    /// See `Disks::tick`.
    pub fn tick<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>, now: u64) -> Result<Option<u64>, Fault> {
        match self.phase {
            Phase::Empty => return Ok(None),
            Phase::Step { .. } => self.advance(hw)?,
            Phase::Running if self.slots.issued() != 0 && now >= self.glance_at => {
                self.glance_at = now.saturating_add(hw.glance_us);
                self.glance(hw, now)?;
            }
            Phase::Running => {}
        }
        Ok(match self.phase {
            Phase::Empty => None,
            Phase::Step { .. } => Some(now.saturating_add(self.patience())),
            Phase::Running => (self.slots.issued() != 0).then_some(self.glance_at),
        })
    }

    /// Looks after commands that take long: lost interrupts, missed deadlines, errors that nobody told of.
    fn glance<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>, now: u64) -> Result<(), Fault> {
        self.service(hw)?;
        self.poll(hw)?;
        if !matches!(self.phase, Phase::Running) {
            return Ok(());
        }
        let limit = |kind| match kind {
            Kind::Read | Kind::Write { .. } => hw.config.command_us,
            Kind::Flush | Kind::Discard => hw.config.flush_us,
        };
        let overdue = self
            .slots
            .deadlines(limit)
            .filter(|(_, at)| *at <= now)
            .fold(0, |m, (s, _)| m | 1u32.wrapping_shl(s.into()));
        if overdue != 0 {
            return self.recover(hw, Cause::Late(overdue));
        }
        // QEMU before 8.1 tells of a failed queued command only in the Set Device Bits FIS, which the next one overwrites;
        // PxSERR keeps a trace of it.
        let slow = self.slots.deadlines(|_| hw.config.glance_us.saturating_mul(2)).any(|(_, at)| at <= now);
        if slow {
            let [status, ..] = hw.read(self.index, regs::PXTFD).to_le_bytes();
            if failed(status) {
                return self.recover(hw, Cause::TaskFile);
            }
            if hw.read(self.index, regs::PXSERR) != 0 {
                return self.recover(hw, Cause::Doubt);
            }
        }
        Ok(())
    }
}

/// Checks a command against the drive.
fn check(info: &DriveInfo, id: &Identity, wide: bool, command: &Command<'_>) -> Result<(), SubmitError> {
    let (sector, sectors) = (command.sector, command.sectors);
    let range = SubmitError::BadRange { sector, sectors };
    let most = match command.op {
        Op::Read | Op::Write { .. } => MAX_SECTORS,
        Op::Discard if !id.trim => return Err(SubmitError::Unsupported),
        Op::Discard => info.max_discard,
        Op::Flush if sector != 0 || sectors != 0 => return Err(range),
        Op::Flush => 0,
    };
    let inside = sector.checked_add(u64::from(sectors)).is_some_and(|end| end <= info.sectors);
    if !inside || sectors > most || (sectors == 0 && command.op != Op::Flush) {
        return Err(range);
    }
    let count = command.segments.len();
    let bad = SubmitError::BadSegments(count);
    if matches!(command.op, Op::Flush | Op::Discard) {
        return if count == 0 { Ok(()) } else { Err(bad) };
    }
    let mut bytes = 0u64;
    for s in command.segments {
        let end = s.addr.checked_add(u64::from(s.len)).ok_or(bad)?;
        let aligned = s.addr.is_multiple_of(u64::from(ALIGN)) && s.len.is_multiple_of(ALIGN);
        if s.len == 0 || s.len > info.max_segment || !aligned || (!wide && end > 1 << 32) {
            return Err(bad);
        }
        bytes = bytes.saturating_add(u64::from(s.len));
    }
    if count > usize::from(MAX_SEGMENTS) || bytes != u64::from(sectors).saturating_mul(u64::from(id.sector_size)) {
        return Err(bad);
    }
    Ok(())
}
