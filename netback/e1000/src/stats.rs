//! Counters of the device, accumulated to 64 bits.
//!
//! The manual (317453, 13.7) has every counter cleared by reading. QEMU's model leaves some of the error counters standing. A
//! counter is therefore read twice: a second value not below the first means that this one does not clear.

use crate::regs::stat;
use netback::nic::{Mmio, NicStats};

#[derive(Clone, Copy, Debug, Default)]
struct Counter {
    total: u64,
    last: u32,
}

impl Counter {
    fn read<M: Mmio>(&mut self, mmio: &M, register: usize) {
        let first = mmio.read32(register);
        if first == 0 || first == u32::MAX {
            return;
        }
        let second = mmio.read32(register);
        let new = if second >= first {
            let new = second.wrapping_sub(self.last);
            self.last = second;
            u64::from(new)
        } else {
            self.last = 0;
            u64::from(first).saturating_add(u64::from(second))
        };
        self.total = self.total.saturating_add(new);
    }
}

/// All counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    rx_errors: [Counter; 7],
    rx_missed: Counter,
    tx_errors: [Counter; 3],
    sum: NicStats,
}

const RX_ERRORS: [usize; 7] =
    [stat::CRCERRS, stat::ALGNERRC, stat::SYMERRS, stat::RXERRC, stat::RLEC, stat::RUC, stat::ROC];
const TX_ERRORS: [usize; 3] = [stat::ECOL, stat::LATECOL, stat::TNCRS];

impl Counters {
    /// Reads the device's counters. All ones (no device) count as nothing.
    pub fn read<M: Mmio>(&mut self, mmio: &M) {
        let add = |total: &mut u64, value: u32| {
            if value != u32::MAX {
                *total = total.saturating_add(u64::from(value));
            }
        };
        add(&mut self.sum.rx_frames, mmio.read32(stat::GPRC));
        add(&mut self.sum.rx_group, mmio.read32(stat::BPRC));
        add(&mut self.sum.rx_group, mmio.read32(stat::MPRC));
        add(&mut self.sum.tx_frames, mmio.read32(stat::GPTC));
        for (register, total) in [(stat::GORCL, &mut self.sum.rx_bytes), (stat::GOTCL, &mut self.sum.tx_bytes)] {
            // The low half first: reading the high half clears both.
            let low = mmio.read32(register);
            let high = mmio.read32(register.saturating_add(4));
            if low != u32::MAX || high != u32::MAX {
                *total = total.saturating_add(u64::from(high) << 32 | u64::from(low));
            }
        }
        for (counter, register) in self.rx_errors.iter_mut().zip(RX_ERRORS) {
            counter.read(mmio, register);
        }
        for (counter, register) in self.tx_errors.iter_mut().zip(TX_ERRORS) {
            counter.read(mmio, register);
        }
        self.rx_missed.read(mmio, stat::MPC);
        self.sum.rx_errors = self.rx_errors.iter().fold(0, |sum, c| sum.saturating_add(c.total));
        self.sum.tx_errors = self.tx_errors.iter().fold(0, |sum, c| sum.saturating_add(c.total));
        self.sum.rx_missed = self.rx_missed.total;
    }

    /// What was read so far; the fields that the driver counts itself are 0.
    #[must_use]
    pub const fn sum(&self) -> NicStats {
        self.sum
    }
}
