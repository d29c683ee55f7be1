//! Registers of an AHCI controller that the driver uses: byte offsets in BAR 5 (ABAR) and their bits.
//!
//! Source: Intel, *Serial ATA AHCI Specification*, revision 1.3.1, chapter 3. Names are the specification's.

use bitflags::bitflags;

/// Host capabilities (3.1.1).
pub const CAP: usize = 0x00;
/// Global host control (3.1.2).
pub const GHC: usize = 0x04;
/// Interrupt status, a bit per port; write 1 to clear, after the port's (3.1.3).
pub const IS: usize = 0x08;
/// Ports implemented (3.1.4).
pub const PI: usize = 0x0c;
/// Version (3.1.5).
pub const VS: usize = 0x10;
/// Extended capabilities (3.1.10).
pub const CAP2: usize = 0x24;
/// BIOS/OS handoff (3.1.11).
pub const BOHC: usize = 0x28;

/// First version with [`CAP2`] and [`BOHC`].
pub const VS_1_20: u32 = 0x0001_0200;

/// CAP2.BOH: there is a BIOS to take the controller from.
pub const CAP2_BOH: u32 = 1 << 0;

/// Offset of port `port`'s register `register` (3.3): 128 bytes each.
#[must_use]
pub const fn port(port: u8, register: usize) -> usize {
    0x100usize.saturating_add((port as usize).saturating_mul(0x80)).saturating_add(register)
}

/// Command list base, 1 KiB aligned (3.3.1).
pub const PXCLB: usize = 0x00;
/// High half (3.3.2).
pub const PXCLBU: usize = 0x04;
/// FIS base, 256-byte aligned (3.3.3).
pub const PXFB: usize = 0x08;
/// High half (3.3.4).
pub const PXFBU: usize = 0x0c;
/// Interrupt status, write 1 to clear (3.3.5).
pub const PXIS: usize = 0x10;
/// Interrupt enable (3.3.6).
pub const PXIE: usize = 0x14;
/// Command and status (3.3.7).
pub const PXCMD: usize = 0x18;
/// Task file data: status in bits 7:0, error in 15:8 (3.3.8).
pub const PXTFD: usize = 0x20;
/// Signature of the device (3.3.9).
pub const PXSIG: usize = 0x24;
/// SStatus (3.3.10).
pub const PXSSTS: usize = 0x28;
/// SControl (3.3.11).
pub const PXSCTL: usize = 0x2c;
/// SError, write 1 to clear (3.3.12).
pub const PXSERR: usize = 0x30;
/// SActive: queued commands outstanding; write 1 to set (3.3.13).
pub const PXSACT: usize = 0x34;
/// Command issue, write 1 to set (3.3.14).
pub const PXCI: usize = 0x38;

bitflags! {
    /// CAP.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Cap: u32 {
        /// Command list override.
        const SCLO = 1 << 24;
        /// Staggered spin-up.
        const SSS = 1 << 27;
        /// Native command queuing.
        const SNCQ = 1 << 30;
        /// 64-bit addressing.
        const S64A = 1 << 31;
        const _ = !0;
    }

    /// GHC.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Ghc: u32 {
        /// HBA reset; clears itself.
        const HR = 1 << 0;
        /// Interrupts enabled.
        const IE = 1 << 1;
        /// AHCI enabled.
        const AE = 1 << 31;
        const _ = !0;
    }

    /// BOHC.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Bohc: u32 {
        /// BIOS owns the controller.
        const BOS = 1 << 0;
        /// The operating system owns it.
        const OOS = 1 << 1;
        /// Ownership has changed; write 1 to clear.
        const OOC = 1 << 3;
        /// BIOS is busy cleaning up.
        const BB = 1 << 4;
        const _ = !0;
    }

    /// PxIS and PxIE.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct PortInterrupts: u32 {
        /// A register FIS was received.
        const DHRS = 1 << 0;
        /// A Set Device Bits FIS was received.
        const SDBS = 1 << 3;
        /// An unknown FIS was received.
        const UFS = 1 << 4;
        /// Port connect change, cleared by SERR.DIAG.X.
        const PCS = 1 << 6;
        /// PhyRdy change, cleared by SERR.DIAG.N.
        const PRCS = 1 << 22;
        /// The device sent more than the command's memory holds.
        const OFS = 1 << 24;
        /// Interface fatal error.
        const IFS = 1 << 27;
        /// Host bus data error.
        const HBDS = 1 << 28;
        /// Host bus fatal error.
        const HBFS = 1 << 29;
        /// Task file error.
        const TFES = 1 << 30;
        const _ = !0;
    }

    /// PxCMD.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PortCmd: u32 {
        /// The command list is processed.
        const ST = 1 << 0;
        /// Spin up.
        const SUD = 1 << 1;
        /// Power on.
        const POD = 1 << 2;
        /// Command list override: clears BSY and DRQ; clears itself.
        const CLO = 1 << 3;
        /// FISes are received.
        const FRE = 1 << 4;
        /// FIS receive is running.
        const FR = 1 << 14;
        /// The command list is running.
        const CR = 1 << 15;
        const _ = !0;
    }

    /// The status byte (PxTFD 7:0; ATA8-ACS 6.2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct AtaStatus: u8 {
        /// The command ended with an error.
        const ERR = 1 << 0;
        /// Data is to be transferred.
        const DRQ = 1 << 3;
        /// The device has a fault.
        const DF = 1 << 5;
        /// The device is busy.
        const BSY = 1 << 7;
        const _ = !0;
    }
}

impl PortInterrupts {
    /// What the driver listens to.
    #[must_use]
    pub fn wanted() -> Self {
        Self::DHRS | Self::SDBS | Self::PCS | Self::PRCS | Self::errors() | Self::host_errors()
    }

    /// A command or the link failed; the port has to be recovered (6.2.2).
    #[must_use]
    pub fn errors() -> Self {
        Self::TFES | Self::IFS | Self::OFS | Self::UFS
    }

    /// The controller's own memory accesses failed.
    #[must_use]
    pub fn host_errors() -> Self {
        Self::HBDS | Self::HBFS
    }

    /// Something about the link has changed.
    #[must_use]
    pub fn link() -> Self {
        Self::PCS | Self::PRCS
    }
}

/// Ports that a controller may have.
pub const MAX_PORTS: u8 = 32;

/// Commands of the command list (CAP.NCS): 1 to 32.
#[must_use]
pub const fn slots(cap: u32) -> u8 {
    ((cap >> 8 & 0x1f) as u8).saturating_add(1)
}

/// SStatus.DET: whether a device is there and the link up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Nothing is connected, or the port is off line.
    Down,
    /// A device was seen, its link is not up (yet).
    Coming,
    /// Up.
    Up,
}

impl Link {
    /// Of PxSSTS.
    #[must_use]
    pub const fn of(ssts: u32) -> Self {
        match ssts & 0xf {
            3 => Self::Up,
            1 => Self::Coming,
            _ => Self::Down,
        }
    }
}

/// PxSCTL.DET.
pub const SCTL_DET: u32 = 0xf;
/// DET: COMRESET is sent while it stands.
pub const SCTL_DET_RESET: u32 = 1;

/// PxSIG of devices that are no disks: ATAPI, enclosure, port multiplier. Anything else is asked to identify itself.
pub const NO_DISKS: [u32; 3] = [0xeb14_0101, 0xc33c_0101, 0x9669_0101];
