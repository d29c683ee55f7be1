//! Native driver for AHCI controllers: [`Disks`] over [`Mmio`], [`DmaMemory`] and [`Clock`].
//!
//! Written to the *Serial ATA AHCI Specification*, revision 1.3.1, and the ATA command set (ACS-3).
#![cfg_attr(not(any(test, feature = "model")), no_std)]
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(
    not(any(test, feature = "model")),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

extern crate alloc;

pub mod regs;
pub mod start;

use blkback::disk::{
    Change, Clock, Command, Completion, Disks, DmaMemory, DriveId, DriveInfo, DriveStats, Fault, Mmio, ResetError,
    SubmitError,
};
pub use start::Stopped;

/// Segments of one command.
pub const MAX_SEGMENTS: u16 = 128;
/// Bytes of [`DmaMemory`] per drive: command list, received FISes, command tables.
pub const DRIVE_BYTES: usize = 0x1_1800;
/// Bytes of [`DmaMemory`] for the usual number of drives (4); a controller with more drives serves as many as the memory is for.
pub const AREA_BYTES: usize = DRIVE_BYTES * 4;

/// What can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long a read or write may take, microseconds; then the drive is reset and the command tried once more.
    pub command_us: u64,
    /// The same for a flush or discard.
    pub flush_us: u64,
    /// How long a drive may take to get ready after a reset (it may have to spin up).
    pub ready_us: u64,
}

impl Default for Config {
    /// 5 s for commands, 20 s for flushes, 15 s for getting ready.
    fn default() -> Self {
        Self { command_us: 5_000_000, flush_us: 20_000_000, ready_us: 15_000_000 }
    }
}

/// The driver. Owns the controller's registers and its memory.
#[derive(Debug)]
pub struct Ahci<M, D, C> {
    mmio: M,
    dma: D,
    clock: C,
    config: Config,
    fault: Option<Fault>,
    ports: u8,
}

impl<M: Mmio, D: DmaMemory, C: Clock> Disks for Ahci<M, D, C> {
    fn drives(&self) -> u8 {
        self.ports
    }

    fn info(&self, _drive: DriveId) -> Option<&DriveInfo> {
        None
    }

    fn room(&self, _drive: DriveId) -> usize {
        0
    }

    fn submit(&mut self, drive: DriveId, _command: &Command<'_>, _token: u32) -> Result<(), SubmitError> {
        Err(SubmitError::NoDrive(drive))
    }

    fn kick(&mut self) {}

    fn completed(&mut self) -> Option<(DriveId, Completion)> {
        None
    }

    fn interrupt(&mut self) {
        let causes = self.mmio.read32(regs::IS);
        self.mmio.write32(regs::IS, causes);
    }

    fn interrupts_enable(&mut self, _on: bool) {}

    fn tick(&mut self) -> Option<u64> {
        None
    }

    fn change(&mut self) -> Option<Change> {
        None
    }

    fn stats(&self, _drive: DriveId) -> DriveStats {
        DriveStats::default()
    }

    fn fault(&self) -> Option<Fault> {
        self.fault
    }

    fn reset(&mut self) -> Result<(), ResetError> {
        Ok(())
    }

    fn point_dma_at(&mut self, _addr: u64) {}
}
