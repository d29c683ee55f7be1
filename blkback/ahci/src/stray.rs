//! Fault injection: the crash kind `dma` has a drive write where its domain may not.

use crate::fis::{self, Data};
use crate::port::{ALIGN, Hw, Port};
use crate::regs::{self, PortCmd};
use crate::slots::each;
use blkback::disk::{Clock, DmaMemory, Mmio, Segment};

/// What a port may take to stop before a stray read where every tag is taken.
const STRAY_PAUSE_US: u32 = 100;

impl Port {
    /// A read into `addr` that nobody waits for, beside what the drive has: queued among queued commands, else not, behind
    /// one that is alone with it. Only where every tag is taken the list is started again. It never is over a command that is alone:
    /// QEMU would end with that command (see `start`).
    pub(crate) fn stray<M: Mmio, D: DmaMemory, C: Clock>(&self, hw: &Hw<M, D, C>, addr: u64) {
        let (Some(memory), Some(info)) = (self.memory, self.info()) else { return };
        // Whoever finds the port so knows that he knows nothing of its commands.
        hw.write(self.index, regs::PXIE, 0);
        let (issued, active) = (hw.read(self.index, regs::PXCI), hw.read(self.index, regs::PXSACT));
        let free = each(!(issued | active)).next().filter(|slot| u16::from(*slot) < info.depth);
        let slot = free.unwrap_or_else(|| {
            self.halt(hw);
            hw.clock.pause_us(STRAY_PAUSE_US);
            0
        });
        let queued = active != 0 && free.is_some();
        let target = Segment { addr: addr & !u64::from(ALIGN.wrapping_sub(1)), len: info.sector_size };
        memory.command(&hw.dma, slot, &if queued { fis::read_queued(0, 1, slot) } else { fis::read(0, 1) });
        let prds = memory.regions(&hw.dma, slot, &[target]);
        memory.header(&hw.dma, slot, Data::In, prds);
        let cmd = PortCmd::from_bits_retain(hw.read(self.index, regs::PXCMD));
        hw.write(self.index, regs::PXCMD, (cmd | PortCmd::ST).bits());
        let bit = 1u32.wrapping_shl(u32::from(slot));
        if queued {
            hw.write(self.index, regs::PXSACT, bit);
        }
        hw.write(self.index, regs::PXCI, bit);
    }
}
