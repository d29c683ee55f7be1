//! From any state of the device to a running one: quiesce, reset, set up (SDM 317453, chapter 14).
//!
//! A new instance finds the device as a failed predecessor left it. The hypervisor has taken its bus mastership away, and the
//! wiring gives it back only after [`crate::E1000::start`]: until then no transfer can be under way. Nothing here relies on it for safety
//! (the IOMMU does that), but it allows the reset without the wait that a running device needs.
//!
//! Registers are written only where they differ. It saves time in the one path that an outage consists of, and more than time in
//! QEMU: its model ignores CTRL.RST, and stops receiving for one second after *any* write to RCTL. On hardware the reset
//! clears RCTL, so that it differs and is written.

use crate::filter::{Filter, station};
use crate::regs::{self, Ctrl, Interrupts, Rctl, Rxcsum, Status, Tctl};
use crate::ring::Ring;
use crate::{Config, RING_BYTES};
use netback::nic::{Clock, DmaMemory, MacAddr, Mmio, ResetError, is_group};

/// How long the device may take out of reset, with the load of its EEPROM (measured in milliseconds).
const RESET_TIMEOUT_US: u64 = 20_000;
/// How long one word of the EEPROM may take.
const EEPROM_TIMEOUT_US: u64 = 5_000;
/// What a running device needs to end its transfers once disabled.
const DRAIN_US: u32 = 1_000;
/// Pauses of [`DRAIN_US`] before resetting a running device.
const DRAIN_PAUSES: u32 = 10;
/// Least time before the device may be touched after CTRL.RST.
const RESET_SETTLE_US: u32 = 2;

fn write_if_different<M: Mmio>(mmio: &M, register: usize, value: u32) {
    if mmio.read32(register) != value {
        mmio.write32(register, value);
    }
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

/// Whether bus mastership was off since the device last ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// It was: nothing is in flight.
    Quiet,
    /// It may be in the middle of transfers.
    Running,
}

/// Stops interrupts and transfers, and resets the MAC.
pub fn reset<M: Mmio, C: Clock>(mmio: &M, clock: &C, before: Before) -> Result<(), ResetError> {
    mmio.write32(regs::IMC, u32::MAX);
    if mmio.read32(regs::STATUS) == u32::MAX {
        return Err(ResetError::Gone);
    }
    mmio.write32(regs::TCTL, Tctl::PSP.bits());
    if before == Before::Running {
        mmio.write32(regs::RCTL, 0);
        for _ in 0..DRAIN_PAUSES {
            clock.pause_us(DRAIN_US);
        }
    }
    let ctrl = Ctrl::from_bits_retain(mmio.read32(regs::CTRL)).difference(Ctrl::PHY_RST);
    mmio.write32(regs::CTRL, (ctrl | Ctrl::RST).bits());
    clock.pause_us(RESET_SETTLE_US);
    let from = clock.now_us();
    let done = poll_us(clock, RESET_TIMEOUT_US, || {
        let ctrl = mmio.read32(regs::CTRL);
        ctrl != u32::MAX && ctrl & Ctrl::RST.bits() == 0
    });
    if !done {
        return Err(ResetError::Timeout { waited_us: clock.now_us().saturating_sub(from) });
    }
    mmio.write32(regs::IMC, u32::MAX);
    let _cleared_by_reading = mmio.read32(regs::ICR);
    Ok(())
}

fn eeprom_word<M: Mmio, C: Clock>(mmio: &M, clock: &C, address: u32) -> Result<u16, ResetError> {
    mmio.write32(regs::EERD, address << regs::EERD_ADDR_SHIFT | regs::EERD_START);
    let mut value = 0;
    let done = poll_us(clock, EEPROM_TIMEOUT_US, || {
        value = mmio.read32(regs::EERD);
        value & regs::EERD_DONE != 0
    });
    if value == u32::MAX {
        return Err(ResetError::Gone);
    }
    if !done {
        return Err(ResetError::Timeout { waited_us: EEPROM_TIMEOUT_US });
    }
    Ok((value >> regs::EERD_DATA_SHIFT) as u16)
}

/// The station address from EEPROM words 0 to 2 (5.6.1). Not from RAL and RAH: a predecessor may have written those.
pub fn read_mac<M: Mmio, C: Clock>(mmio: &M, clock: &C) -> Result<MacAddr, ResetError> {
    let [a, b] = eeprom_word(mmio, clock, 0)?.to_le_bytes();
    let [c, d] = eeprom_word(mmio, clock, 1)?.to_le_bytes();
    let [e, f] = eeprom_word(mmio, clock, 2)?.to_le_bytes();
    let mac = [a, b, c, d, e, f];
    if is_group(&mac) || mac == [0; 6] {
        return Err(ResetError::BadMac(mac));
    }
    Ok(mac)
}

/// Checks that the rings fit their memory and the device.
pub fn check_memory<D: DmaMemory>(dma: &D) -> Result<(), ResetError> {
    let (addr, len) = (dma.device_addr(), dma.len_bytes());
    if addr % 4096 != 0 || len < RING_BYTES || addr.checked_add(len as u64).is_none() {
        return Err(ResetError::BadMemory { addr, len });
    }
    Ok(())
}

/// Writes the receive filter; RCTL last.
pub fn apply_filter<M: Mmio>(mmio: &M, filter: &Filter, config: &Config) {
    if let Some(table) = &filter.table {
        for (i, word) in table.iter().enumerate() {
            mmio.write32(regs::MTA.saturating_add(i.saturating_mul(4)), *word);
        }
    }
    if !filter.rctl.contains(Rctl::UPE) {
        for i in 1..regs::RA_COUNT {
            let (low, high) = match filter.exact.get(i.saturating_sub(1)) {
                Some(mac) => {
                    let (low, high) = station(mac);
                    (low, high | regs::RAH_AV)
                }
                None => (0, 0),
            };
            let at = i.saturating_mul(8);
            write_if_different(mmio, regs::RAL.saturating_add(at), low);
            write_if_different(mmio, regs::RAH.saturating_add(at), high);
        }
    }
    let mut rctl = filter.rctl | Rctl::EN | Rctl::SECRC;
    if config.max_frame > crate::STANDARD_FRAME {
        rctl |= Rctl::LPE;
    }
    write_if_different(mmio, regs::RCTL, rctl.bits());
}

/// Sets everything up on a reset device, rings empty, interrupts masked.
pub fn set_up<M: Mmio, D: DmaMemory>(mmio: &M, dma: &D, rings: (Ring, Ring), mac: &MacAddr, config: &Config) {
    let (rx, tx) = rings;
    // Follow the PHY (14.5); it is not reset, so its link stands.
    let ctrl = Ctrl::from_bits_retain(mmio.read32(regs::CTRL)) | Ctrl::SLU | Ctrl::ASDE;
    let off = Ctrl::FRCSPD | Ctrl::FRCDPX | Ctrl::ILOS | Ctrl::VME | Ctrl::PHY_RST | Ctrl::RST;
    write_if_different(mmio, regs::CTRL, ctrl.difference(off).bits());

    let (low, high) = station(mac);
    write_if_different(mmio, regs::RAL, low);
    write_if_different(mmio, regs::RAH, high | regs::RAH_AV);

    // Head before tail: between the two an enabled device must not see descriptors.
    let at = dma.device_addr().wrapping_add(rx.base() as u64);
    mmio.write32(regs::RDH, 0);
    mmio.write32(regs::RDT, 0);
    mmio.write32(regs::RDBAL, at as u32);
    mmio.write32(regs::RDBAH, (at >> 32) as u32);
    mmio.write32(regs::RDLEN, rx.bytes() as u32);
    write_if_different(mmio, regs::RDTR, config.rx_delay_ticks());
    write_if_different(mmio, regs::RADV, config.rx_delay_ticks());
    write_if_different(mmio, regs::RXCSUM, (Rxcsum::IPOFL | Rxcsum::TUOFL).bits());

    let at = dma.device_addr().wrapping_add(tx.base() as u64);
    mmio.write32(regs::TDH, 0);
    mmio.write32(regs::TDT, 0);
    mmio.write32(regs::TDBAL, at as u32);
    mmio.write32(regs::TDBAH, (at >> 32) as u32);
    mmio.write32(regs::TDLEN, tx.bytes() as u32);
    write_if_different(mmio, regs::TIPG, regs::TIPG_COPPER);
    write_if_different(mmio, regs::TIDV, config.tx_delay_ticks());
    write_if_different(mmio, regs::TADV, config.tx_delay_ticks().saturating_mul(2));
    write_if_different(mmio, regs::ITR, config.interrupt_ticks());
    set_duplex(mmio, Status::from_bits_retain(mmio.read32(regs::STATUS)).contains(Status::FD));
}

/// TCTL for the link's duplex (collision distance).
pub fn set_duplex<M: Mmio>(mmio: &M, full: bool) {
    let cold = if full { regs::TCTL_COLD_FULL } else { regs::TCTL_COLD_HALF };
    let tctl = (Tctl::EN | Tctl::PSP | Tctl::RTLC).bits() | regs::TCTL_CT | cold;
    write_if_different(mmio, regs::TCTL, tctl);
}

/// Everything that can interrupt, besides transmission (see [`crate::E1000`]).
#[must_use]
pub fn base_interrupts() -> Interrupts {
    Interrupts::RXT0 | Interrupts::RXO | Interrupts::RXDMT0 | Interrupts::LSC
}
