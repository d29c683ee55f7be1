//! From any state of the controller to a stopped one, and from there to running drives (AHCI 10.1.2, 10.4.3, 10.6).
//!
//! A new instance finds the controller as a failed predecessor left it: ports running, commands in flight, bus mastership taken away
//! by the hypervisor. [`Stopped::stop`] needs no mastership; the wiring gives it back between that and [`Stopped::start`], when
//! there is nothing left that would read the predecessor's command lists. The controller is reset as a whole only where a port does
//! not stop, because that takes all links down.
//!
//! How much of a reset a drive needs is read off its port before that is stopped, since stopping clears the command registers. Idle:
//! none. Queued commands: a software reset. A command that is not queued, or a predecessor that did not get as far as to serve:
//! COMRESET, and that before mastership comes back. Such a drive is busy, so it takes no software reset (10.4.1); and QEMU's lets the old
//! command end whenever it likes: with mastership it would still reach for memory that was the predecessor's, it takes along the issue
//! bit of the command that is in its slot by then, and where the list has been started again QEMU itself ends.

use crate::memory::DriveMemory;
use crate::port::{Hw, Port};
use crate::recovery::COMRESET_US;
use crate::regs::{self, Bohc, Cap, Ghc, Link, PortCmd, PortInterrupts};
use crate::{Ahci, Config, DRIVE_BYTES, POLLED_GLANCE_US};
use blkback::disk::{Clock, Disks, DmaMemory, DriveId, Mmio, ResetError};

/// How long ports may take to stop, and then to stop receiving (3.3.7: 500 ms each).
const STOP_US: u64 = 500_000;
/// How long a reset of the controller may take (10.4.3: 1 s).
const RESET_US: u64 = 1_000_000;
/// How long the BIOS may take to give the controller up (10.6.3), without and with work to do.
const HANDOFF_US: u64 = 25_000;
/// With.
const HANDOFF_BUSY_US: u64 = 2_000_000;

fn poll_us<C: Clock>(clock: &C, timeout_us: u64, mut done: impl FnMut() -> bool) -> bool {
    let from = clock.now_us();
    loop {
        if done() {
            return true;
        }
        if clock.now_us().saturating_sub(from) >= timeout_us {
            return done();
        }
        clock.pause_us(1);
    }
}

/// What was found when all ports were stopped; a bit per port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Ports implemented.
    pub ports: u32,
    /// The drive may have queued commands.
    pub busy: u32,
    /// The link was reset.
    pub link: u32,
    /// The controller was reset.
    pub reset: bool,
}

fn ports_of(mask: u32) -> impl Iterator<Item = u8> {
    (0..regs::MAX_PORTS).filter(move |p| mask >> p & 1 != 0)
}

/// Masks interrupts and stops all ports; resets the controller if they do not.
pub(crate) fn stop_all<M: Mmio, C: Clock>(mmio: &M, clock: &C) -> Result<Found, ResetError> {
    let ghc = Ghc::from_bits_retain(mmio.read32(regs::GHC));
    if ghc.bits() == u32::MAX {
        return Err(ResetError::Gone);
    }
    // Before any other register (3.1.2, AE).
    mmio.write32(regs::GHC, Ghc::AE.bits());
    take_over(mmio, clock)?;
    let ports = mmio.read32(regs::PI);
    if ports == u32::MAX && mmio.read32(regs::GHC) == u32::MAX {
        return Err(ResetError::Gone);
    }
    let read = |port, register| mmio.read32(regs::port(port, register));
    let clear = |port, bits: PortCmd| {
        let cmd = PortCmd::from_bits_retain(read(port, regs::PXCMD));
        if cmd.intersects(bits) {
            mmio.write32(regs::port(port, regs::PXCMD), cmd.difference(bits).bits());
        }
    };
    let stopped =
        |bit: PortCmd| poll_us(clock, STOP_US, || ports_of(ports).all(|p| read(p, regs::PXCMD) & bit.bits() == 0));
    let (mut busy, mut link) = (0, 0);
    for port in ports_of(ports) {
        let bit = 1u32.wrapping_shl(u32::from(port));
        match found_state(|register| read(port, register)) {
            State::Nothing | State::Idle => {}
            State::Queued => busy |= bit,
            State::Wedged => link |= bit,
        }
        mmio.write32(regs::port(port, regs::PXIE), 0);
        clear(port, PortCmd::ST);
    }
    let mut quiet = stopped(PortCmd::CR);
    if quiet {
        ports_of(ports).for_each(|port| clear(port, PortCmd::FRE));
        quiet = stopped(PortCmd::FR);
    }
    if !quiet {
        reset_controller(mmio, clock)?;
    } else if link != 0 {
        let control = |port, det| {
            let old = read(port, regs::PXSCTL) & !regs::SCTL_DET;
            mmio.write32(regs::port(port, regs::PXSCTL), old | det);
        };
        ports_of(ports & link).for_each(|port| control(port, regs::SCTL_DET_RESET));
        poll_us(clock, COMRESET_US, || false);
        ports_of(ports & link).for_each(|port| control(port, 0));
    }
    Ok(Found { ports, busy, link, reset: !quiet })
}

/// What a port was doing.
enum State {
    /// There is no device.
    Nothing,
    /// It served, and had no commands.
    Idle,
    /// It served, and had queued commands.
    Queued,
    /// A command that is not queued keeps its drive busy, or nobody knows.
    Wedged,
}

/// Finds out before the port is stopped.
fn found_state(read: impl Fn(usize) -> u32) -> State {
    let held = read(regs::PXSCTL) & regs::SCTL_DET != 0;
    if Link::of(read(regs::PXSSTS)) == Link::Down && !held {
        return State::Nothing;
    }
    // Only a port that serves listens to errors.
    let listens = PortInterrupts::from_bits_retain(read(regs::PXIE)).intersects(PortInterrupts::errors());
    let started = read(regs::PXCMD) & PortCmd::ST.bits() != 0;
    // PxCI first: a bit that is in neither is not with the drive, whenever it ended.
    let (issued, active) = (read(regs::PXCI), read(regs::PXSACT));
    match (issued & !active, active) {
        _ if held || !listens || !started => State::Wedged,
        (0, 0) => State::Idle,
        (0, _) => State::Queued,
        _ => State::Wedged,
    }
}

/// Takes the controller from the BIOS (10.6.3).
fn take_over<M: Mmio, C: Clock>(mmio: &M, clock: &C) -> Result<(), ResetError> {
    if mmio.read32(regs::VS) < regs::VS_1_20 || mmio.read32(regs::CAP2) & regs::CAP2_BOH == 0 {
        return Ok(());
    }
    let state = || Bohc::from_bits_retain(mmio.read32(regs::BOHC));
    if !state().contains(Bohc::BOS) {
        return Ok(());
    }
    mmio.write32(regs::BOHC, (state() | Bohc::OOS).bits());
    if poll_us(clock, HANDOFF_US, || !state().contains(Bohc::BOS)) {
        return Ok(());
    }
    if state().contains(Bohc::BB) && poll_us(clock, HANDOFF_BUSY_US, || !state().contains(Bohc::BOS)) {
        return Ok(());
    }
    Err(ResetError::Timeout { waited_us: HANDOFF_US })
}

fn reset_controller<M: Mmio, C: Clock>(mmio: &M, clock: &C) -> Result<(), ResetError> {
    mmio.write32(regs::GHC, (Ghc::AE | Ghc::HR).bits());
    if !poll_us(clock, RESET_US, || mmio.read32(regs::GHC) & Ghc::HR.bits() == 0) {
        let gone = mmio.read32(regs::GHC) == u32::MAX;
        return Err(if gone { ResetError::Gone } else { ResetError::Timeout { waited_us: RESET_US } });
    }
    mmio.write32(regs::GHC, Ghc::AE.bits());
    Ok(())
}

/// A controller with all ports stopped and interrupts masked.
#[derive(Debug)]
pub struct Stopped<M, C> {
    mmio: M,
    clock: C,
    found: Found,
}

impl<M: Mmio, C: Clock> Stopped<M, C> {
    /// Stops all ports, whatever they do. Commands in flight are over: by the time [`Stopped::start`] returns the drives move no data
    /// for them any more.
    ///
    /// # Errors
    /// The controller does not answer, or does not stop.
    pub fn stop(mmio: M, clock: C) -> Result<Self, ResetError> {
        let found = stop_all(&mmio, &clock)?;
        Ok(Self { mmio, clock, found })
    }

    /// Brings the drives up, interrupts masked. The controller needs bus mastership. Returns when all drives are ready that get ready
    /// within [`Config::start_us`].
    ///
    /// # Errors
    /// `dma` does not suit the controller, or it has gone.
    pub fn start<D: DmaMemory>(self, dma: D, config: Config) -> Result<Ahci<M, D, C>, ResetError> {
        let Self { mmio, clock, found } = self;
        let cap = mmio.read32(regs::CAP);
        check_memory(&dma, Cap::from_bits_retain(cap).contains(Cap::S64A))?;
        let glance_us = POLLED_GLANCE_US.min(config.glance_us);
        let hw = Hw { mmio, dma, clock, config, cap, glance_us };
        let ports = ports_of(found.ports).zip(0..).map(|(index, place)| Port::new(index, DriveId(place))).collect();
        let mut ahci = Ahci { hw, ports, fault: None, enabled: false, turn: 0, resets_in_row: 0 };
        share_memory(&ahci.hw, &mut ahci.ports, found.link);
        ahci.each(|port, hw| port.begin(hw, &found));
        ahci.settle();
        if ahci.fault() == Some(blkback::disk::Fault::Gone) {
            return Err(ResetError::Gone);
        }
        // What is there now did not come by itself.
        while ahci.change().is_some() {}
        Ok(ahci)
    }
}

/// Ports with a drive get memory first, those that may get one later what is left. `reset`: their links were up, and come up again.
fn share_memory<M: Mmio, D: DmaMemory, C: Clock>(hw: &Hw<M, D, C>, ports: &mut [Port], reset: u32) {
    let mut n = 0;
    for connected in [true, false] {
        for port in ports.iter_mut() {
            let up = Link::of(hw.read(port.index, regs::PXSSTS)) != Link::Down || reset >> port.index & 1 != 0;
            if up == connected && port.memory.is_none() {
                port.memory = DriveMemory::nth(&hw.dma, n);
                n = n.saturating_add(usize::from(port.memory.is_some()));
            }
        }
    }
}

fn check_memory<D: DmaMemory>(dma: &D, wide: bool) -> Result<(), ResetError> {
    let (addr, len) = (dma.device_addr(), dma.len_bytes());
    let end = addr.checked_add(len as u64);
    let reachable = end.is_some_and(|end| wide || end <= 1 << 32);
    if addr % 4096 != 0 || len < DRIVE_BYTES || !reachable {
        return Err(ResetError::BadMemory { addr, len });
    }
    Ok(())
}
