//! From any state of the controller to a stopped one (AHCI 10.1.2, 10.6).
//!
//! A new instance finds the controller as a failed predecessor left it: ports running, commands in flight, bus mastership taken away
//! by the hypervisor. [`Stopped::stop`] needs no mastership; the wiring gives it back between that and [`Stopped::start`], when
//! there is nothing left that would read the predecessor's command lists.

use crate::regs::{self, Ghc, PortCmd};
use crate::{Ahci, Config};
use blkback::disk::{Clock, DmaMemory, Mmio, ResetError};

/// How long a port may take to stop (3.3.7: 500 ms).
const STOP_US: u64 = 500_000;

/// A controller with all ports stopped and interrupts masked.
#[derive(Debug)]
pub struct Stopped<M, C> {
    mmio: M,
    clock: C,
    /// Ports implemented.
    ports: u32,
}

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

impl<M: Mmio, C: Clock> Stopped<M, C> {
    /// Stops all ports, whatever they do.
    ///
    /// # Errors
    /// The controller does not answer, or a port does not stop.
    pub fn stop(mmio: M, clock: C) -> Result<Self, ResetError> {
        if mmio.read32(regs::CAP) == u32::MAX {
            return Err(ResetError::Gone);
        }
        mmio.write32(regs::GHC, Ghc::AE.bits());
        let ports = mmio.read32(regs::PI);
        for port in (0..regs::MAX_PORTS).filter(|p| ports >> p & 1 != 0) {
            let at = regs::port(port, regs::PXCMD);
            let cmd = PortCmd::from_bits_retain(mmio.read32(at));
            mmio.write32(at, cmd.difference(PortCmd::ST).bits());
            if !poll_us(&clock, STOP_US, || mmio.read32(at) & PortCmd::CR.bits() == 0) {
                return Err(ResetError::Timeout { waited_us: STOP_US });
            }
        }
        Ok(Self { mmio, clock, ports })
    }

    /// Brings the drives up. The controller needs bus mastership.
    ///
    /// # Errors
    /// `dma` does not suit the controller.
    pub fn start<D: DmaMemory>(self, dma: D, config: Config) -> Result<Ahci<M, D, C>, ResetError> {
        let ports = self.ports.count_ones() as u8;
        Ok(Ahci { mmio: self.mmio, dma, clock: self.clock, config, fault: None, ports })
    }
}
