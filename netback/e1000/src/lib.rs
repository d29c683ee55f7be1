//! Native driver for Intel's 82540EM (QEMU's `e1000`): a [`Nic`] over [`Mmio`], [`DmaMemory`] and [`Clock`].
//!
//! Written to the *PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual* (317453). Rooms: [`regs`] and
//! [`desc`] say what the device's words mean, [`ring`] where they lie, [`tx`] and [`rx`] what is in flight, [`filter`] and [`stats`]
//! what their names say, [`start`] how to get the device running from any state, this file what the backend sees.
//!
//! Choices. Receive uses legacy descriptors (all that the device has), transmit only extended ones. Transmit interrupts are off while the
//! backend polls and are enabled only for a sleep with frames in flight: a device that sends faster than its driver looks never
//! interrupts for it. Nothing the device writes is believed (see [`NicFault`]); it can at worst make the backend lose frames.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
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

pub mod desc;
pub mod filter;
#[cfg(test)]
pub mod model;
pub mod regs;
pub mod ring;
pub mod rx;
pub mod start;
pub mod stats;
#[cfg(test)]
mod tests;
pub mod tx;

use filter::Filter;
use netback::nic::{
    Caps, Causes, Clock, DmaMemory, Link, MacAddr, Mmio, Nic, NicFault, NicStats, ResetError, RxError, RxFilter,
    RxFrame, Segment, TxError, TxMeta,
};
use regs::{Interrupts, Status};
use ring::Ring;
use rx::RxRing;
pub use start::Before;
use stats::Counters;
use tx::TxRing;

const RX: Ring = Ring::new(0, rx::LEN);
const TX: Ring = Ring::new(RX.bytes(), tx::LEN);
/// Bytes of [`DmaMemory`] the driver needs.
pub const RING_BYTES: usize = RX.bytes().saturating_add(TX.bytes());
/// Bytes of a standard frame without FCS, with a VLAN tag; the device drops longer ones unless RCTL.LPE is set.
pub const STANDARD_FRAME: u32 = 1518;
/// Resets in a row, with no frame between them, after which [`Nic::reset`] refuses.
pub const MAX_RESETS: u32 = 4;
/// How long frames may stay in flight with the link up before the device counts as hung.
pub const TX_HANG_US: u64 = 2_000_000;

/// What can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Largest frame on the wire without FCS: 1514 to 16110 (jumbo frames come in several buffers).
    pub max_frame: u32,
    /// Least time between two interrupts in microseconds (ITR), 0 to 16000.
    pub interrupt_gap_us: u32,
    /// How long a received frame may wait for others before it interrupts, in microseconds (RDTR, RADV).
    pub rx_delay_us: u32,
    /// The same for sent frames (TIDV; TADV is twice this).
    pub tx_delay_us: u32,
    /// Take all multicast whatever filter is set. A switch's uplink wants it anyway, and QEMU is deaf for a second after each
    /// change of the bits in RCTL (see [`start`]); unicast addresses are changed without touching RCTL.
    pub open_groups: bool,
}

impl Default for Config {
    /// Frames of 1518 bytes; a received frame interrupts at once, at most 8000 times a second.
    fn default() -> Self {
        Self { max_frame: STANDARD_FRAME, interrupt_gap_us: 125, rx_delay_us: 0, tx_delay_us: 64, open_groups: true }
    }
}

impl Config {
    /// Largest `max_frame` (SDM, RCTL.LPE: 16384 bytes with everything).
    pub const MAX_FRAME: u32 = 16_110;

    fn interrupt_ticks(&self) -> u32 {
        // Units of 256 ns, 16 bits.
        self.interrupt_gap_us.saturating_mul(1000).div_ceil(256).min(0xffff)
    }

    fn rx_delay_ticks(&self) -> u32 {
        // Units of 1.024 us, 16 bits.
        self.rx_delay_us.saturating_mul(1000).div_ceil(1024).min(0xffff)
    }

    fn tx_delay_ticks(&self) -> u32 {
        self.tx_delay_us.saturating_mul(1000).div_ceil(1024).min(0x7fff)
    }
}

/// The driver. Owns the device's registers and its rings.
#[derive(Debug)]
pub struct E1000<M, D, C> {
    mmio: M,
    dma: D,
    clock: C,
    config: Config,
    mac: MacAddr,
    tx: TxRing,
    rx: RxRing,
    filter: Filter,
    counters: Counters,
    fault: Option<NicFault>,
    /// Interrupts that IMS holds now.
    mask: Interrupts,
    enabled: bool,
    /// When the oldest frame in flight was first seen there.
    tx_since: Option<u64>,
    resets_in_row: u32,
    resets: u64,
    interrupts: u64,
}

impl<M: Mmio, D: DmaMemory, C: Clock> E1000<M, D, C> {
    /// Brings the device from any state to running: rings empty, filter at the station's own address and groups, interrupts masked. `before` says whether the
    /// device could transfer until now; if not, give it bus mastership after this returns.
    ///
    /// # Errors
    /// The device does not answer or come out of reset in time, has no usable address, or `dma` does not suit it.
    pub fn start(mmio: M, dma: D, clock: C, config: Config, before: Before) -> Result<Self, ResetError> {
        let config = Config { max_frame: config.max_frame.clamp(STANDARD_FRAME, Config::MAX_FRAME), ..config };
        start::check_memory(&dma)?;
        start::reset(&mmio, &clock, before)?;
        let mac = start::read_mac(&mmio, &clock)?;
        start::set_up(&mmio, &dma, (RX, TX), &mac, &config);
        let filter = Filter::new(&RxFilter::default(), config.open_groups);
        start::apply_filter(&mmio, &filter, &config);
        Ok(Self {
            mmio,
            dma,
            clock,
            config,
            mac,
            tx: TxRing::new(TX, config.max_frame),
            rx: RxRing::new(RX, config.max_frame),
            filter,
            counters: Counters::default(),
            fault: None,
            mask: Interrupts::empty(),
            enabled: false,
            tx_since: None,
            resets_in_row: 0,
            resets: 0,
            interrupts: 0,
        })
    }

    fn fail(&mut self, fault: NicFault) {
        self.fault.get_or_insert(fault);
        self.mmio.write32(regs::IMC, u32::MAX);
    }

    /// Frames that stay in flight while the link is up and not paused are a hang.
    fn check_hang(&mut self) {
        let now = self.clock.now_us();
        let since = *self.tx_since.get_or_insert(now);
        if now.saturating_sub(since) < TX_HANG_US {
            return;
        }
        let status = self.mmio.read32(regs::STATUS);
        if status == u32::MAX {
            return self.fail(NicFault::Gone);
        }
        let status = Status::from_bits_retain(status);
        if status.contains(Status::LU) && !status.contains(Status::TXOFF) {
            self.fail(NicFault::TxHung { in_flight: self.tx.in_flight() });
        } else {
            self.tx_since = Some(now);
        }
    }
}

impl<M: Mmio, D: DmaMemory, C: Clock> Nic for E1000<M, D, C> {
    fn mac(&self) -> MacAddr {
        self.mac
    }

    fn caps(&self) -> Caps {
        Caps {
            tx_checksum_v4: true,
            tx_checksum_v6: true,
            tso_v4: true,
            // QEMU's device writes the length with IPv6's own header into the payload length of each segment, 40 bytes too many
            // (`hw/net/e1000.c`, `xmit_seg`), and Linux leaves it to the processor on this controller as well.
            tso_v6: false,
            gso_pseudo_with_len: false,
            rx_checksum: true,
            max_segments: tx::MAX_SEGMENTS,
            max_segment: tx::MAX_SEGMENT,
            max_frame: self.config.max_frame,
            max_gso: tx::MAX_GSO,
            max_gso_header: 255,
            rx_buffer: rx::BUFFER,
        }
    }

    fn link(&mut self) -> Link {
        let status = self.mmio.read32(regs::STATUS);
        if status == u32::MAX {
            self.fail(NicFault::Gone);
            return Link::default();
        }
        let status = Status::from_bits_retain(status);
        if !status.contains(Status::LU) {
            return Link::default();
        }
        let full_duplex = status.contains(Status::FD);
        if self.fault.is_none() {
            start::set_duplex(&self.mmio, full_duplex);
        }
        let mbit = if status.contains(Status::SPEED_1000) {
            1000
        } else if status.contains(Status::SPEED_100) {
            100
        } else {
            10
        };
        Link { up: true, mbit, full_duplex }
    }

    fn tx_room(&self) -> usize {
        if self.fault.is_some() { 0 } else { usize::from(self.tx.room()) }
    }

    fn tx(&mut self, segments: &[Segment], meta: &TxMeta, token: u32) -> Result<(), TxError> {
        if self.fault.is_some() {
            return Err(TxError::Faulty);
        }
        self.tx.queue(&self.dma, segments, meta, token)
    }

    fn tx_flush(&mut self) {
        if self.fault.is_none()
            && let Some(tail) = self.tx.flush(&self.dma)
        {
            self.mmio.write32(regs::TDT, u32::from(tail));
        }
    }

    fn tx_done(&mut self) -> Option<u32> {
        if self.fault.is_some() || self.tx.in_flight() == 0 {
            return None;
        }
        match self.tx.harvest(&self.dma) {
            Ok(Some(token)) => {
                self.tx_since = None;
                self.resets_in_row = 0;
                Some(token)
            }
            Ok(None) => {
                self.check_hang();
                None
            }
            Err(fault) => {
                self.fail(fault);
                None
            }
        }
    }

    fn rx_room(&self) -> usize {
        if self.fault.is_some() { 0 } else { usize::from(self.rx.room()) }
    }

    fn rx_post(&mut self, addr: u64, token: u32) -> Result<(), RxError> {
        if self.fault.is_some() {
            return Err(RxError::Faulty);
        }
        self.rx.post(&self.dma, addr, token)
    }

    fn rx_flush(&mut self) {
        if self.fault.is_none()
            && let Some(tail) = self.rx.flush()
        {
            self.mmio.write32(regs::RDT, u32::from(tail));
        }
    }

    fn rx_poll(&mut self) -> Option<RxFrame> {
        if self.fault.is_some() {
            return None;
        }
        match self.rx.poll(&self.dma) {
            Ok(frame) => {
                if frame.is_some() {
                    self.resets_in_row = 0;
                }
                frame
            }
            Err(fault) => {
                self.fail(fault);
                None
            }
        }
    }

    fn interrupt(&mut self) -> Causes {
        let icr = self.mmio.read32(regs::ICR);
        if icr == u32::MAX {
            self.fail(NicFault::Gone);
            return Causes::default();
        }
        let icr = Interrupts::from_bits_retain(icr);
        self.interrupts = self.interrupts.saturating_add(1);
        Causes {
            rx: icr.intersects(Interrupts::RXT0 | Interrupts::RXDMT0),
            tx: icr.intersects(Interrupts::TXDW | Interrupts::TXQE),
            link: icr.contains(Interrupts::LSC),
            overrun: icr.contains(Interrupts::RXO),
        }
    }

    fn interrupts_enable(&mut self, on: bool) {
        self.enabled = on;
        let mut want = Interrupts::empty();
        if on && self.fault.is_none() {
            want = start::base_interrupts();
            if self.tx.in_flight() > 0 {
                want |= Interrupts::TXDW;
            }
        }
        let off = self.mask.difference(want);
        if !off.is_empty() {
            self.mmio.write32(regs::IMC, off.bits());
        }
        if !want.difference(self.mask).is_empty() {
            self.mmio.write32(regs::IMS, want.bits());
        }
        self.mask = want;
    }

    fn set_receive_filter(&mut self, filter: &RxFilter<'_>) {
        let new = Filter::new(filter, self.config.open_groups);
        if new != self.filter {
            if self.fault.is_none() {
                start::apply_filter(&self.mmio, &new, &self.config);
            }
            self.filter = new;
        }
    }

    fn stats(&mut self) -> NicStats {
        self.counters.read(&self.mmio);
        let sum = self.counters.sum();
        NicStats {
            tx_errors: sum.tx_errors.max(self.tx.errors),
            resets: self.resets,
            interrupts: self.interrupts,
            ..sum
        }
    }

    fn fault(&self) -> Option<NicFault> {
        self.fault
    }

    fn reset(&mut self) -> Result<(), ResetError> {
        self.fault.get_or_insert(NicFault::TxHung { in_flight: self.tx.in_flight() });
        if self.resets_in_row >= MAX_RESETS {
            return Err(ResetError::TooMany(self.resets_in_row));
        }
        self.resets_in_row = self.resets_in_row.saturating_add(1);
        self.resets = self.resets.saturating_add(1);
        // The counters do not survive.
        self.counters.read(&self.mmio);
        start::reset(&self.mmio, &self.clock, Before::Running)?;
        self.tx.clear();
        self.rx.clear();
        start::set_up(&self.mmio, &self.dma, (RX, TX), &self.mac, &self.config);
        start::apply_filter(&self.mmio, &self.filter, &self.config);
        self.fault = None;
        self.tx_since = None;
        self.mask = Interrupts::empty();
        let enabled = self.enabled;
        self.interrupts_enable(enabled);
        Ok(())
    }

    fn point_dma_at(&mut self, addr: u64) {
        // Every posted buffer, for the next frame from the wire to be written there; and a frame read from there, for the device to
        // trip at once.
        self.rx.redirect(&self.dma, addr);
        let _full = self.tx.queue(&self.dma, &[Segment { addr, len: 60 }], &TxMeta::default(), u32::MAX);
        self.tx_flush();
    }
}
