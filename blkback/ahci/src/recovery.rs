//! How a port gets from any state to running: the bring-up of a start is a recovery from an unknown state.
//!
//! ```text
//!            error, deadline, link               drive gone
//!  Running ──────────────► Stopping ──────────────────────────────► Empty
//!     ▲                        │ CR = 0
//!     │         ┌──────────────┼──────────── commands survived the stop: soft reset; non-queued ones: COMRESET
//!     │         ▼              ▼
//!     │     Comreset ► Link ► Ready ► (Drain) ► (SoftReset ► Settle) ► (Identify | ErrorLog)
//!     └──────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Where queued commands of an earlier life may have been in flight, one read of the driver's own is done alone before it serves (`Untold`):
//! QEMU notes a queued command that ends and takes the note from PxSACT with the next Set Device Bits FIS. What ended while no FIS was
//! received stays noted, through every reset, and that FIS would end whatever carries these tags by then.
//!
//! Every step has a deadline; a step that misses it is tried again with the next stronger reset, and after COMRESET the drive is given
//! up. Commands that failed are reported only when the drive is known to be quiet: until then it may write to their segments.
//!
//! A queued error is told by log 10h, so that exactly one command fails. Where there is no log (QEMU), or it cannot be true, the
//! commands that were in flight are tried one by one.
//!
//! It is long because the steps are one machine: each may end in any other.

use crate::fis::{self, Data};
use crate::identify::{Identity, Refusal};
use crate::memory::OWN_BYTES;
use crate::port::{Hw, Port, failed};
use crate::regs::{self, AtaStatus, Cap, Link, PortCmd, PortInterrupts};
use crate::slots::each;
use crate::start::Found;
use blkback::disk::{Clock, DmaMemory, Fault, IoError, Mmio};
use core::fmt;

/// How long a port may take to stop (3.3.7: 500 ms).
const STOP_US: u64 = 500_000;
/// How long COMRESET is held (10.4.2: at least 1 ms).
pub(crate) const COMRESET_US: u64 = 1_000;
/// How long the link may take to come up after COMRESET, or to come back by itself (10.4.2; in practice 10 to 100 ms).
const LINK_US: u64 = 250_000;
/// How long command list override may take.
const OVERRIDE_US: u64 = 50_000;
/// How long the FISes of a software reset may take to be sent.
const SEND_US: u64 = 100_000;
/// How long the reset is asserted (ATA8-AAM: 5 us).
const ASSERT_US: u32 = 5;
/// How long a drive that spins may take to come out of a software reset.
const SOFT_US: u64 = 3_000_000;
/// How long identification or log may take.
const OWN_COMMAND_US: u64 = 2_000_000;
/// Recoveries a command may be in without anybody knowing whose fault they were.
const MAX_DOUBTS: u8 = 3;
/// Slot of the driver's own commands, while no others are with the drive.
const OWN: u8 = 0;
const OWN_BIT: u32 = 1;

/// Why a port is recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The drive ended a command with an error.
    TaskFile,
    /// The link, the controller or the drive did something wrong; no command is to blame.
    Doubt,
    /// These commands missed their deadlines.
    Late(u32),
    /// The link changed.
    Link,
}

/// Resets, from the mildest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reset {
    /// The port is stopped and started.
    #[default]
    Port,
    /// The drive is reset by its control register, the link stays up (10.4.1).
    Soft,
    /// The link is reset (10.4.2).
    Link,
}

/// What is to be done on the way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    reset: Reset,
    /// The reset is still to be done.
    reset_due: bool,
    /// Find out which drive it is.
    identify: bool,
    /// Commands may have ended that nobody was told of.
    untold: bool,
    /// Read the queued error log: these were in flight.
    log: u32,
    /// Status and error when it began.
    told: (u8, u8),
    /// The drive is given up as soon as the port has stopped.
    give_up: bool,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// CR = 0.
    Stopping,
    /// The time COMRESET is held.
    Comreset,
    /// The link.
    Link,
    /// BSY = DRQ = 0.
    Ready,
    /// CLO = 0.
    Override,
    /// Command bits that survived everything.
    Drain,
    /// The FIS that asserts the software reset.
    Assert,
    /// The drive's answer to the one that ends it.
    Settle,
    /// IDENTIFY DEVICE.
    Identify,
    /// READ LOG EXT.
    ErrorLog,
    /// The end of a queued read that is alone, which tells of all that ended before.
    Untold,
}

/// Where a port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// There is no drive that is served. The port is stopped.
    Empty,
    /// On the way.
    Step {
        /// What is waited for.
        step: Step,
        /// Until when, microseconds.
        until: u64,
    },
    /// Commands run.
    Running,
}

/// Why a device that is connected is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unserved {
    /// Its signature is not that of a disk.
    Signature(u32),
    /// Its identification says so.
    Refused(Refusal),
    /// It does not answer.
    Silent,
    /// The driver's memory is for fewer drives.
    NoMemory,
}

impl fmt::Display for Unserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signature(s) => write!(f, "signature {s:08x} is no disk's"),
            Self::Refused(why) => write!(f, "{why}"),
            Self::Silent => write!(f, "it does not answer"),
            Self::NoMemory => write!(f, "the driver has memory for fewer drives"),
        }
    }
}

fn busy(tfd: u32) -> bool {
    AtaStatus::from_bits_retain(tfd as u8).intersects(AtaStatus::BSY | AtaStatus::DRQ)
}

impl Port {
    fn command<M: Mmio, D: DmaMemory, C: Clock>(&self, hw: &Hw<M, D, C>, off: PortCmd, on: PortCmd) {
        let old = PortCmd::from_bits_retain(hw.read(self.index, regs::PXCMD));
        let new = old.difference(off) | on;
        if new != old {
            hw.write(self.index, regs::PXCMD, new.bits());
        }
    }

    fn enter<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>, step: Step, within_us: u64) {
        self.phase = Phase::Step { step, until: hw.clock.now_us().saturating_add(within_us) };
    }

    /// How soon a step wants to be looked at again, microseconds.
    pub(crate) const fn patience(&self) -> u64 {
        match self.phase {
            Phase::Step { step: Step::Link | Step::Ready, .. } => 1_000,
            _ => 100,
        }
    }

    /// Begins with a port that was stopped as `found`.
    pub(crate) fn begin<M: Mmio, D: DmaMemory, C: Clock>(
        &mut self,
        hw: &Hw<M, D, C>,
        found: &Found,
    ) -> Result<(), Fault> {
        let has = |ports: u32| ports >> self.index & 1 != 0;
        let (interrupted, link_reset) = (has(found.busy), has(found.link));
        self.stats.link_resets = self.stats.link_resets.saturating_add(u64::from(link_reset));
        self.bring_up(hw, interrupted, link_reset || found.reset)
    }

    /// From a port that is stopped. `interrupted`: the drive may still have queued commands; `link_expected`: the link was just reset.
    fn bring_up<M: Mmio, D: DmaMemory, C: Clock>(
        &mut self,
        hw: &Hw<M, D, C>,
        interrupted: bool,
        link_expected: bool,
    ) -> Result<(), Fault> {
        let reset = if interrupted { Reset::Soft } else { Reset::Port };
        let untold = interrupted || link_expected;
        self.plan = Plan { reset, reset_due: interrupted, identify: true, untold, ..Plan::default() };
        self.unserved = None;
        let mut wait = link_expected;
        // A predecessor may have died while it held COMRESET, and with staggered spin-up the drive waits to be told (10.1.1).
        let control = hw.read(self.index, regs::PXSCTL);
        if control & regs::SCTL_DET != 0 {
            hw.write(self.index, regs::PXSCTL, control & !regs::SCTL_DET);
            wait = true;
        }
        let cmd = PortCmd::from_bits_retain(hw.read(self.index, regs::PXCMD));
        let on = PortCmd::SUD | PortCmd::POD;
        if !cmd.contains(on) {
            hw.write(self.index, regs::PXCMD, (cmd | on).bits());
            wait = true;
        }
        match Link::of(hw.read(self.index, regs::PXSSTS)) {
            Link::Up => {}
            Link::Down if !wait => {
                self.gone(hw, None);
                return Ok(());
            }
            Link::Down | Link::Coming => {
                self.enter(hw, Step::Link, LINK_US);
                return self.advance(hw);
            }
        }
        self.stopped(hw);
        self.advance(hw)
    }

    /// A link event on a port without a drive.
    pub(crate) fn arrive<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>) -> Result<(), Fault> {
        hw.write(self.index, regs::PXSERR, u32::MAX);
        match Link::of(hw.read(self.index, regs::PXSSTS)) {
            Link::Down => Ok(()),
            _ => self.bring_up(hw, false, true),
        }
    }

    /// Leaves [`Phase::Running`].
    pub(crate) fn recover<M: Mmio, D: DmaMemory, C: Clock>(
        &mut self,
        hw: &Hw<M, D, C>,
        cause: Cause,
    ) -> Result<(), Fault> {
        self.harvest(hw)?;
        self.stats.recoveries = self.stats.recoveries.saturating_add(1);
        let [mut status, mut error, ..] = hw.read(self.index, regs::PXTFD).to_le_bytes();
        if let Some(memory) = self.memory
            && !failed(status)
        {
            (status, error) = memory.device_bits(&hw.dma);
        }
        let told = IoError::Device { status, error };
        let issued = self.slots.issued();
        self.plan = Plan { told: (status, error), ..Plan::default() };
        match cause {
            Cause::TaskFile if self.slots.leader().is_some() => self.slots.fail(issued, told),
            // After a queued error a drive takes nothing but a read of its log, or a reset (SATA 13.6.2).
            Cause::TaskFile if self.identity.is_some_and(|id| id.logs) => self.plan.log = issued,
            Cause::TaskFile if issued.count_ones() == 1 => {
                self.plan.reset = Reset::Soft;
                self.slots.fail(issued, told);
            }
            Cause::TaskFile => {
                self.plan.reset = Reset::Soft;
                self.slots.doubt(issued, MAX_DOUBTS, told);
            }
            Cause::Doubt => {
                self.plan.reset = Reset::Soft;
                self.slots.doubt(issued, MAX_DOUBTS, told);
            }
            Cause::Late(mask) => {
                self.plan.reset = Reset::Soft;
                self.slots.missed(mask & issued);
            }
            Cause::Link => self.plan.identify = true,
        }
        if cause != Cause::TaskFile && self.is_busy(hw) {
            self.plan.reset = Reset::Link;
        }
        self.plan.reset_due = self.plan.reset > Reset::Port;
        let recalled = self.slots.recall();
        // A deadline missed as well: one sector that a drive tries hard to read holds up all that is behind it.
        if cause != Cause::Link && self.plan.log == 0 {
            self.slots.suspect(recalled);
        }
        hw.write(self.index, regs::PXIE, 0);
        self.stop(hw);
        self.advance(hw)
    }

    /// A command that is not queued is with the drive, and has not failed: the drive takes nothing but COMRESET (see `start`). Asked before
    /// the port is stopped, which clears the registers.
    pub(crate) fn is_busy<M: Mmio, D: DmaMemory, C: Clock>(&self, hw: &Hw<M, D, C>) -> bool {
        let issued = hw.read(self.index, regs::PXCI);
        let [status, ..] = hw.read(self.index, regs::PXTFD).to_le_bytes();
        issued & !hw.read(self.index, regs::PXSACT) != 0 && !failed(status)
    }

    fn stop<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>) {
        self.command(hw, PortCmd::ST, PortCmd::empty());
        self.enter(hw, Step::Stopping, STOP_US);
    }

    /// Goes as far as it can without waiting.
    pub(crate) fn advance<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>) -> Result<(), Fault> {
        while let Phase::Step { step, until } = self.phase {
            let over = hw.clock.now_us() >= until;
            self.step(hw, step, over)?;
            if self.phase == (Phase::Step { step, until }) {
                break;
            }
        }
        Ok(())
    }

    fn step<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>, step: Step, over: bool) -> Result<(), Fault> {
        match step {
            Step::Stopping => {
                if hw.read(self.index, regs::PXCMD) & PortCmd::CR.bits() == 0 {
                    self.stopped(hw);
                } else if over {
                    return Err(self.stuck(hw));
                }
            }
            Step::Comreset if over => {
                let control = hw.read(self.index, regs::PXSCTL);
                hw.write(self.index, regs::PXSCTL, control & !regs::SCTL_DET);
                self.enter(hw, Step::Link, LINK_US);
            }
            Step::Comreset => {}
            Step::Link => match Link::of(hw.read(self.index, regs::PXSSTS)) {
                Link::Up => self.stopped(hw),
                _ if over => self.gone(hw, None),
                _ => {}
            },
            Step::Ready => self.try_ready(hw, over),
            Step::Override => {
                if hw.read(self.index, regs::PXCMD) & PortCmd::CLO.bits() == 0 {
                    self.engage(hw);
                } else if over {
                    self.escalate(hw);
                }
            }
            Step::Drain => {
                if hw.read(self.index, regs::PXCI) == 0 {
                    self.engaged(hw);
                } else if over {
                    return Err(self.stuck(hw));
                }
            }
            Step::Assert => {
                if hw.read(self.index, regs::PXCI) & OWN_BIT == 0 {
                    hw.clock.pause_us(ASSERT_US);
                    if let Some(memory) = self.memory {
                        memory.clear_register_fis(&hw.dma);
                    }
                    self.own_command(hw, &fis::control(false), Data::Control, Step::Settle, SOFT_US);
                } else if over {
                    self.escalate(hw);
                }
            }
            Step::Settle => {
                let answered = self.memory.is_some_and(|m| m.register_fis(&hw.dma));
                if answered && hw.read(self.index, regs::PXCI) == 0 && !busy(hw.read(self.index, regs::PXTFD)) {
                    self.plan.reset_due = false;
                    // It may have returned to what it is after power-on: with its write cache on, for one.
                    self.plan.identify = true;
                    self.go_on(hw);
                } else if over {
                    self.escalate(hw);
                }
            }
            Step::Identify | Step::ErrorLog => self.own_command_step(hw, step, over)?,
            Step::Untold => self.untold_step(hw, over)?,
        }
        Ok(())
    }

    fn stuck<M: Mmio, D: DmaMemory, C: Clock>(&self, hw: &Hw<M, D, C>) -> Fault {
        if hw.is_gone() { Fault::Gone } else { Fault::PortStuck(self.drive) }
    }

    /// The next stronger reset, from a port that may be running.
    fn escalate<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>) {
        match self.plan.reset {
            Reset::Port if !self.is_busy(hw) => self.plan.reset = Reset::Soft,
            Reset::Port | Reset::Soft => self.plan.reset = Reset::Link,
            Reset::Link => self.plan.give_up = true,
        }
        self.plan.reset_due = true;
        self.stop(hw);
    }

    /// The port is stopped; resets or starts it.
    fn stopped<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>) {
        if self.plan.give_up {
            return self.gone(hw, Some(Unserved::Silent));
        }
        if Link::of(hw.read(self.index, regs::PXSSTS)) != Link::Up {
            return self.enter(hw, Step::Link, LINK_US);
        }
        // Stopping forgets all commands (3.3.13, 3.3.14). QEMU's controller does not, whatever its registers say; and those of its first
        // 7.2 still show them, PxCI even after COMRESET.
        let survived = if hw.read(self.index, regs::PXCI) != 0 {
            Reset::Link
        } else if hw.read(self.index, regs::PXSACT) != 0 {
            Reset::Soft
        } else {
            Reset::Port
        };
        if survived > self.plan.reset {
            self.plan.reset = survived;
            self.plan.reset_due = true;
        }
        if self.plan.reset == Reset::Link && self.plan.reset_due {
            self.plan.reset_due = false;
            self.plan.identify = true;
            self.stats.link_resets = self.stats.link_resets.saturating_add(1);
            let control = hw.read(self.index, regs::PXSCTL) & !regs::SCTL_DET;
            hw.write(self.index, regs::PXSCTL, control | regs::SCTL_DET_RESET);
            return self.enter(hw, Step::Comreset, COMRESET_US);
        }
        self.receive(hw);
    }

    /// Receives FISes, to learn the drive's state.
    fn receive<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>) {
        let Some(memory) = self.memory else { return self.gone(hw, Some(Unserved::NoMemory)) };
        let receiving = PortCmd::FRE | PortCmd::FR;
        if !PortCmd::from_bits_retain(hw.read(self.index, regs::PXCMD)).intersects(receiving) {
            let (list, fises) = (memory.command_list(&hw.dma), memory.received(&hw.dma));
            hw.write(self.index, regs::PXCLB, list as u32);
            hw.write(self.index, regs::PXCLBU, (list >> 32) as u32);
            hw.write(self.index, regs::PXFB, fises as u32);
            hw.write(self.index, regs::PXFBU, (fises >> 32) as u32);
        }
        memory.clear_device_bits(&hw.dma);
        hw.write(self.index, regs::PXSERR, u32::MAX);
        hw.write(self.index, regs::PXIS, u32::MAX);
        self.command(hw, PortCmd::empty(), PortCmd::FRE);
        self.enter(hw, Step::Ready, hw.config.ready_us);
    }

    fn try_ready<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>, over: bool) {
        if !busy(hw.read(self.index, regs::PXTFD)) {
            self.engage(hw);
        } else if self.plan.reset == Reset::Soft && self.plan.reset_due && hw.read(self.index, regs::PXSIG) != u32::MAX
        {
            // Without a signature it is busy because it comes out of a reset. Otherwise: a busy drive cannot be given the FIS without this (10.4.1).
            if hw.can(Cap::SCLO) {
                self.command(hw, PortCmd::empty(), PortCmd::CLO);
                self.enter(hw, Step::Override, OVERRIDE_US);
            } else {
                self.escalate(hw);
            }
        } else if over {
            self.escalate(hw);
        }
    }

    /// Starts the command list.
    fn engage<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>) {
        let Some(memory) = self.memory else { return self.gone(hw, Some(Unserved::NoMemory)) };
        let signature = hw.read(self.index, regs::PXSIG);
        if regs::NO_DISKS.contains(&signature) {
            return self.gone(hw, Some(Unserved::Signature(signature)));
        }
        // Bits that survived the stop will be taken for commands: they get one that does nothing.
        let stale = hw.read(self.index, regs::PXCI);
        each(stale).for_each(|slot| memory.own(&hw.dma, slot, &fis::control(false), Data::Control));
        self.command(hw, PortCmd::empty(), PortCmd::ST);
        if stale != 0 {
            return self.enter(hw, Step::Drain, SEND_US);
        }
        self.engaged(hw);
    }

    fn engaged<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>) {
        if self.plan.reset == Reset::Soft && self.plan.reset_due {
            self.own_command(hw, &fis::control(true), Data::Reset, Step::Assert, SEND_US);
        } else {
            self.go_on(hw);
        }
    }

    fn go_on<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>) {
        if self.plan.identify {
            self.own_command(hw, &fis::identify(), Data::In, Step::Identify, OWN_COMMAND_US);
        } else if self.plan.log != 0 && self.plan.reset == Reset::Port {
            self.own_command(hw, &fis::read_error_log(), Data::In, Step::ErrorLog, OWN_COMMAND_US);
        } else if let (true, Some(id), Some(memory)) = (self.plan.untold, self.identity, self.memory)
            && Self::queued(hw, &id)
        {
            memory.clear_device_bits(&hw.dma);
            memory.discard(&hw.dma, OWN, &fis::read_queued(0, 1, OWN), id.sector_size);
            hw.write(self.index, regs::PXSACT, OWN_BIT);
            hw.write(self.index, regs::PXCI, OWN_BIT);
            self.enter(hw, Step::Untold, OWN_COMMAND_US);
        } else {
            // A reset has cleared the log.
            let flying = core::mem::take(&mut self.plan.log);
            self.unnamed(flying);
            self.run(hw);
        }
    }

    fn own_command<M: Mmio, D: DmaMemory, C: Clock>(
        &mut self,
        hw: &Hw<M, D, C>,
        fis: &fis::Fis,
        data: Data,
        step: Step,
        within_us: u64,
    ) {
        if let Some(memory) = self.memory {
            memory.own(&hw.dma, OWN, fis, data);
        }
        hw.write(self.index, regs::PXCI, OWN_BIT);
        self.enter(hw, step, within_us);
    }

    fn own_command_step<M: Mmio, D: DmaMemory, C: Clock>(
        &mut self,
        hw: &Hw<M, D, C>,
        step: Step,
        over: bool,
    ) -> Result<(), Fault> {
        let causes = PortInterrupts::from_bits_retain(hw.read(self.index, regs::PXIS));
        if causes.intersects(PortInterrupts::host_errors()) {
            return Err(if hw.is_gone() { Fault::Gone } else { Fault::HostBus(self.drive) });
        }
        let ended = hw.read(self.index, regs::PXCI) & OWN_BIT == 0;
        let [status, ..] = hw.read(self.index, regs::PXTFD).to_le_bytes();
        let error = causes.intersects(PortInterrupts::errors()) || (ended && failed(status));
        let Some(memory) = self.memory else { return Ok(()) };
        if !ended && !error {
            if over {
                self.escalate(hw);
            }
            return Ok(());
        }
        let whole = ended && !error && memory.moved(&hw.dma, OWN) == OWN_BYTES;
        if step == Step::ErrorLog {
            let log = whole.then(|| fis::queued_error(&memory.own_data(&hw.dma))).flatten();
            self.read_log(hw, log);
        } else {
            self.identified(hw, whole.then(|| memory.own_data(&hw.dma)));
        }
        Ok(())
    }

    /// Whether the sector could be read is nobody's concern; but after an error a drive takes nothing before a reset (SATA 13.6.2).
    fn untold_step<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>, over: bool) -> Result<(), Fault> {
        let causes = PortInterrupts::from_bits_retain(hw.read(self.index, regs::PXIS));
        if causes.intersects(PortInterrupts::host_errors()) {
            return Err(if hw.is_gone() { Fault::Gone } else { Fault::HostBus(self.drive) });
        }
        let error = causes.intersects(PortInterrupts::errors())
            || self.memory.is_some_and(|memory| failed(memory.device_bits(&hw.dma).0));
        if error {
            self.plan = Plan { untold: false, reset: Reset::Soft, reset_due: true, ..self.plan };
            self.stop(hw);
        } else if over {
            self.plan.untold = false;
            self.escalate(hw);
        } else if hw.read(self.index, regs::PXSACT) & OWN_BIT == 0 {
            self.plan.untold = false;
            self.go_on(hw);
        }
        Ok(())
    }

    fn read_log<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>, log: Option<fis::QueuedError>) {
        let flying = self.plan.log;
        self.plan.log = 0;
        match log.filter(|e| flying >> e.tag & 1 != 0) {
            Some(e) => {
                self.slots.fail_waiting(e.tag, IoError::Device { status: e.status, error: e.error });
                self.run(hw);
            }
            None => {
                self.unnamed(flying);
                self.escalate(hw);
            }
        }
    }

    /// One of these failed, and the log does not say which.
    fn unnamed(&mut self, flying: u32) {
        if let (1, Some(slot)) = (flying.count_ones(), each(flying).next()) {
            // There is no other it could have been.
            let (status, error) = self.plan.told;
            self.slots.fail_waiting(slot, IoError::Device { status, error });
        }
        self.slots.suspect(flying);
    }

    fn identified<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>, data: Option<[u32; 128]>) {
        self.plan.identify = false;
        let identity = match data {
            Some(data) => {
                let mut words = [0u16; 256];
                let halves = data.iter().flat_map(|w| [*w as u16, (*w >> 16) as u16]);
                words.iter_mut().zip(halves).for_each(|(to, from)| *to = from);
                Identity::parse(&words)
            }
            None => Err(Refusal::NotAta),
        };
        let identity = match identity {
            Ok(identity) => identity,
            // What did not come whole may have met an error of the link: once more, after the next stronger reset.
            Err(why @ (Refusal::NotAta | Refusal::Garbled)) if self.plan.reset < Reset::Link => {
                self.unserved = Some(Unserved::Refused(why));
                self.plan.identify = true;
                return self.escalate(hw);
            }
            Err(why) => {
                self.unserved = Some(Unserved::Refused(why));
                self.plan.give_up = true;
                return self.stop(hw);
            }
        };
        self.unserved = None;
        if !self.identity.is_some_and(|old| old.same(&identity)) {
            self.forget_drive();
            self.slots.set_depth(Self::depth(hw, &identity));
            self.came = true;
        }
        self.info = Some(Self::describe(hw, &identity));
        self.identity = Some(identity);
        self.go_on(hw);
    }

    fn run<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>) {
        self.slots.release();
        hw.write(self.index, regs::PXIS, u32::MAX);
        hw.write(self.index, regs::PXIE, PortInterrupts::wanted().bits());
        self.phase = Phase::Running;
        self.pump(hw);
    }

    /// All of its commands end; it is not the backend's any more.
    fn forget_drive(&mut self) {
        self.slots.fail_all(IoError::Gone);
        self.came = false;
        self.went |= self.info.take().is_some();
        self.identity = None;
    }

    /// There is no drive any more, or none that is served. The port is stopped.
    fn gone<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>, why: Option<Unserved>) {
        self.forget_drive();
        self.unserved = self.unserved.or(why);
        self.command(hw, PortCmd::FRE, PortCmd::empty());
        self.empty(hw);
    }

    /// Waits for a drive to be connected.
    fn empty<M: Mmio, D: DmaMemory, C: Clock>(&mut self, hw: &Hw<M, D, C>) {
        hw.write(self.index, regs::PXSERR, u32::MAX);
        hw.write(self.index, regs::PXIS, u32::MAX);
        hw.write(self.index, regs::PXIE, PortInterrupts::link().bits());
        self.phase = Phase::Empty;
    }
}
