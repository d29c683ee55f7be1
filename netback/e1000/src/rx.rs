//! The receive ring: posted buffers and what came back in them.

use crate::desc::{self, Received};
use crate::ring::Ring;
use alloc::vec::Vec;
use netback::nic::{DmaMemory, NicFault, RxError, RxFrame};

/// Descriptors of the ring.
pub const LEN: u16 = 256;
/// Bytes that the device may write to a buffer: RCTL.BSIZE as the driver sets it.
pub const BUFFER: u32 = 2048;

/// State of the receive ring that the device cannot touch.
#[derive(Debug)]
pub struct RxRing {
    ring: Ring,
    /// Buffers that one frame may fill at most.
    max_buffers: u16,
    tokens: Vec<u32>,
    /// Next descriptor to write.
    next: u16,
    /// Tail as the device knows it.
    told: u16,
    /// Next descriptor to come back.
    first: u16,
    /// Buffers of the frame being received that have come back.
    buffers: u16,
}

impl RxRing {
    /// An empty ring at `ring`, for frames of at most `max_frame` bytes.
    #[must_use]
    pub fn new(ring: Ring, max_frame: u32) -> Self {
        // Where the FCS alone falls into a further buffer, the device may hand that over empty.
        let max_buffers = max_frame.div_ceil(BUFFER).saturating_add(1) as u16;
        Self {
            ring,
            max_buffers,
            tokens: alloc::vec![0; usize::from(ring.descriptors())],
            next: 0,
            told: 0,
            first: 0,
            buffers: 0,
        }
    }

    /// Forgets all buffers; the device has been reset and both indices are 0.
    pub fn clear(&mut self) {
        self.next = 0;
        self.told = 0;
        self.first = 0;
        self.buffers = 0;
    }

    /// The ring.
    #[must_use]
    pub const fn ring(&self) -> Ring {
        self.ring
    }

    const fn posted(&self) -> u16 {
        self.ring.distance(self.first, self.next)
    }

    /// Buffers that can be posted.
    #[must_use]
    pub const fn room(&self) -> u16 {
        self.ring.descriptors().saturating_sub(1).saturating_sub(self.posted())
    }

    /// See `Nic::rx_post`.
    pub fn post<D: DmaMemory>(&mut self, dma: &D, addr: u64, token: u32) -> Result<(), RxError> {
        // The device takes address 0 for "no buffer" and skips the descriptor.
        if addr == 0 || addr.checked_add(u64::from(BUFFER)).is_none() {
            return Err(RxError::BadAddress(addr));
        }
        if self.room() == 0 {
            return Err(RxError::Full);
        }
        let slot = self.tokens.get_mut(usize::from(self.next)).ok_or(RxError::Full)?;
        *slot = token;
        self.ring.write(dma, self.next, desc::receive(addr));
        self.next = self.ring.step(self.next, 1);
        Ok(())
    }

    /// The tail to tell the device, if it moved.
    pub const fn flush(&mut self) -> Option<u16> {
        if self.told == self.next {
            return None;
        }
        self.told = self.next;
        Some(self.next)
    }

    /// See `Nic::rx_poll`.
    pub fn poll<D: DmaMemory>(&mut self, dma: &D) -> Result<Option<RxFrame>, NicFault> {
        // Only what the device was told of can have been filled.
        if self.first == self.told {
            return Ok(None);
        }
        let index = self.first;
        let word3 = self.ring.status(dma, index);
        if word3 & desc::RX_DD == 0 {
            return Ok(None);
        }
        let got = Received::from_words(self.ring.word(dma, index, 2), word3);
        let continued = self.buffers > 0;
        let good = if got.end { got.len <= BUFFER && (got.len > 0 || continued) } else { got.len == BUFFER };
        if !good {
            return Err(NicFault::RxLength { index, len: got.len });
        }
        self.buffers = self.buffers.saturating_add(1);
        if self.buffers > self.max_buffers {
            return Err(NicFault::RxEndless { index });
        }
        if got.end {
            self.buffers = 0;
        }
        self.first = self.ring.step(index, 1);
        let token = self.tokens.get(usize::from(index)).copied().unwrap_or_default();
        Ok(Some(RxFrame {
            token,
            len: got.len,
            end: got.end,
            checksum_ok: got.end && got.checksum_ok,
            error: got.error,
        }))
    }

    /// Rewrites the address of every buffer that is still out (fault injection).
    pub fn redirect<D: DmaMemory>(&mut self, dma: &D, addr: u64) {
        let [low, high, ..] = desc::receive(addr);
        let mut index = self.first;
        for _ in 0..self.posted() {
            self.ring.write_word(dma, index, 0, low);
            self.ring.write_word(dma, index, 1, high);
            index = self.ring.step(index, 1);
        }
    }
}
