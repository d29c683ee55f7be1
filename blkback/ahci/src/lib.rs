//! Native driver for AHCI controllers: [`Disks`] over [`Mmio`], [`DmaMemory`] and [`Clock`].
//!
//! Written to the *Serial ATA AHCI Specification*, revision 1.3.1, *Serial ATA* 3.2 and ACS-3. Rooms: [`regs`] and [`fis`] say what the
//! words mean that controller and drive read, [`identify`] what a drive says of itself, [`memory`] where the words lie, [`slots`] which
//! command goes next, [`port`] moves commands and completions, [`recovery`] brings a port from any state to running, [`start`] the
//! controller, `stray` breaks its rules on demand, this file is what the backend sees.
//!
//! Choices. Drives with queuing get up to 32 queued commands; what cannot be queued (flush, discard) waits until the drive is idle, and
//! what came after it waits behind it. A link that is up is not reset, except where nothing less helps. Nothing the device writes is
//! believed: registers are compared with what was given, lengths with what was asked, and what cannot be is a [`Fault`].
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

pub mod fis;
pub mod identify;
pub mod memory;
#[cfg(test)]
pub mod model;
pub mod port;
pub mod recovery;
pub mod regs;
pub mod slots;
pub mod start;
mod stray;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use blkback::disk::{
    Change, Clock, Command, Completion, Disks, DmaMemory, DriveId, DriveInfo, DriveStats, Fault, Mmio, ResetError,
    SubmitError,
};
use port::{Hw, Port};
pub use recovery::{Step, Unserved};
use regs::Ghc;
use slots::Slots;
pub use start::Stopped;

/// Segments of one command.
pub const MAX_SEGMENTS: u16 = 128;
/// Bytes of [`DmaMemory`] per drive: command list, received FISes, command tables (see [`memory`]).
pub const DRIVE_BYTES: usize = 0x1_1800;
/// Bytes of [`DmaMemory`] for the usual number of drives (4); a controller with more drives serves as many as the memory is for.
pub const AREA_BYTES: usize = DRIVE_BYTES * 4;
/// Resets in a row, with no command done between them, after which [`Disks::reset`] refuses.
pub const MAX_RESETS: u32 = 4;
/// How often ports are looked at while interrupts are off, microseconds: errors are told by interrupts only.
const POLLED_GLANCE_US: u64 = 5_000;

/// What can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long a read or write may take, microseconds; then the drive is reset and the command tried once more.
    pub command_us: u64,
    /// The same for a flush or discard.
    pub flush_us: u64,
    /// How long a drive may take to get ready after a reset (it may have to spin up).
    pub ready_us: u64,
    /// How often a port with commands is looked at though no interrupt came.
    pub glance_us: u64,
    /// How long [`Stopped::start`] waits for drives; those that need longer come later ([`Change::Came`]).
    pub start_us: u64,
}

impl Default for Config {
    /// 5 s for commands, 20 s for flushes, 15 s for getting ready, a glance every 50 ms, 1 s for the start.
    fn default() -> Self {
        Self {
            command_us: 5_000_000,
            flush_us: 20_000_000,
            ready_us: 15_000_000,
            glance_us: 50_000,
            start_us: 1_000_000,
        }
    }
}

/// The driver. Owns the controller's registers and its memory.
#[derive(Debug)]
pub struct Ahci<M, D, C> {
    hw: Hw<M, D, C>,
    /// The ports implemented, a drive's place each.
    ports: Vec<Port>,
    fault: Option<Fault>,
    enabled: bool,
    /// Where [`Disks::completed`] begins, so that no drive comes last always.
    turn: usize,
    resets_in_row: u32,
}

impl<M: Mmio, D: DmaMemory, C: Clock> Ahci<M, D, C> {
    /// Why a device that is connected there is not served.
    #[must_use]
    pub fn unserved(&self, drive: DriveId) -> Option<Unserved> {
        self.port(drive)?.unserved()
    }

    /// Drives that are on their way to serve, and what they wait for.
    pub fn coming(&self) -> impl Iterator<Item = (DriveId, Step)> {
        self.ports.iter().filter_map(|port| Some((port.drive, port.step_of()?)))
    }

    fn port(&self, drive: DriveId) -> Option<&Port> {
        self.ports.get(usize::from(drive.0))
    }

    /// Stops; the ports are told to stop as well, and not waited for.
    fn fail(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
        self.hw.mmio.write32(regs::GHC, Ghc::AE.bits());
        for port in &self.ports {
            port.halt(&self.hw);
        }
    }

    /// Does something with each port, in turn, unless it is at fault.
    fn each(&mut self, mut f: impl FnMut(&mut Port, &Hw<M, D, C>) -> Result<(), Fault>) {
        if self.fault.is_some() {
            return;
        }
        let hw = &self.hw;
        if let Err(fault) = self.ports.iter_mut().try_for_each(|port| f(port, hw)) {
            self.fail(fault);
        }
    }

    /// Lets the ports get ready, for at most the time of a start.
    fn settle(&mut self) {
        let until = self.hw.clock.now_us().saturating_add(self.hw.config.start_us);
        while self.fault.is_none() && self.ports.iter().any(|p| p.step_of().is_some()) && self.hw.clock.now_us() < until
        {
            self.hw.clock.pause_us(1);
            self.tick();
        }
    }

    fn reap(&mut self) -> Option<(DriveId, Completion)> {
        let (before, from) = self.ports.split_at_mut_checked(self.turn)?;
        for port in from.iter_mut().chain(before) {
            if let Some(completion) = port.reap() {
                if completion.result.is_ok() {
                    self.resets_in_row = 0;
                }
                return Some((port.drive, completion));
            }
        }
        None
    }
}

impl<M: Mmio, D: DmaMemory, C: Clock> Disks for Ahci<M, D, C> {
    fn drives(&self) -> u8 {
        self.ports.len() as u8
    }

    fn info(&self, drive: DriveId) -> Option<&DriveInfo> {
        self.port(drive)?.info()
    }

    fn room(&self, drive: DriveId) -> usize {
        match (self.fault, self.port(drive)) {
            (None, Some(port)) if port.info().is_some() => port.room(),
            _ => 0,
        }
    }

    fn submit(&mut self, drive: DriveId, command: &Command<'_>, token: u32) -> Result<(), SubmitError> {
        if self.fault.is_some() {
            return Err(SubmitError::Faulty);
        }
        match self.ports.get_mut(usize::from(drive.0)) {
            Some(port) => port.submit(&self.hw, command, token),
            None => Err(SubmitError::NoDrive(drive)),
        }
    }

    fn kick(&mut self) {
        self.each(|port, hw| {
            port.pump(hw);
            Ok(())
        });
    }

    fn completed(&mut self) -> Option<(DriveId, Completion)> {
        if self.fault.is_some() {
            return None;
        }
        let known = self.reap();
        if known.is_some() {
            return known;
        }
        self.turn = self.turn.checked_add(1).filter(|t| *t < self.ports.len()).unwrap_or(0);
        // The last look before sleeping is at the registers.
        if self.enabled {
            self.each(Port::poll)
        } else {
            self.each(Port::peek)
        }
        if self.fault.is_some() { None } else { self.reap() }
    }

    fn interrupt(&mut self) {
        if self.fault.is_some() {
            return;
        }
        let causes = self.hw.mmio.read32(regs::IS);
        if causes == u32::MAX && self.hw.is_gone() {
            return self.fail(Fault::Gone);
        }
        if causes != 0 {
            self.each(|port, hw| if causes >> port.index & 1 != 0 { port.service(hw) } else { Ok(()) });
            // After the ports' own (3.1.3).
            self.hw.mmio.write32(regs::IS, causes);
        }
    }

    fn interrupts_enable(&mut self, on: bool) {
        if self.enabled == on {
            return;
        }
        self.enabled = on;
        self.hw.glance_us = if on { self.hw.config.glance_us } else { POLLED_GLANCE_US.min(self.hw.config.glance_us) };
        if self.fault.is_some() {
            return;
        }
        let mut ghc = Ghc::AE;
        if on {
            // Causes of what was polled would interrupt for nothing.
            self.interrupt();
            ghc |= Ghc::IE;
        }
        if self.fault.is_none() {
            self.hw.mmio.write32(regs::GHC, ghc.bits());
        }
    }

    fn tick(&mut self) -> Option<u64> {
        let now = self.hw.clock.now_us();
        let mut next: Option<u64> = None;
        self.each(|port, hw| {
            if let Some(at) = port.tick(hw, now)? {
                next = Some(next.map_or(at, |n| n.min(at)));
            }
            Ok(())
        });
        next
    }

    fn change(&mut self) -> Option<Change> {
        self.ports.iter_mut().find_map(Port::change)
    }

    fn stats(&self, drive: DriveId) -> DriveStats {
        self.port(drive).map(|p| p.stats).unwrap_or_default()
    }

    fn fault(&self) -> Option<Fault> {
        self.fault
    }

    fn reset(&mut self) -> Result<(), ResetError> {
        if self.resets_in_row >= MAX_RESETS {
            return Err(ResetError::TooMany(self.resets_in_row));
        }
        self.resets_in_row = self.resets_in_row.saturating_add(1);
        let was = start::stop_all(&self.hw.mmio, &self.hw.clock)?;
        self.fault = None;
        self.each(|port, hw| {
            let depth = port.identity.as_ref().map_or(0, |id| Port::depth(hw, id));
            port.slots = Slots::new(depth);
            port.begin(hw, &was)
        });
        self.settle();
        let enabled = core::mem::take(&mut self.enabled);
        self.interrupts_enable(enabled);
        Ok(())
    }

    fn point_dma_at(&mut self, addr: u64) {
        if let Some(port) = self.ports.iter().find(|p| p.info().is_some()) {
            port.stray(&self.hw, addr);
        }
    }
}
