//! A descriptor ring in memory that the device shares: index arithmetic and word access, nothing about descriptors.

use crate::desc::{SIZE, Words};
use netback::nic::DmaMemory;

/// Where a ring lies in the driver's [`DmaMemory`], and how long it is.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    base: usize,
    len: u16,
}

impl Ring {
    /// A ring of `len` descriptors at byte `base`. The device wants both the length in bytes and (16-byte aligned) the
    /// base to be multiples of 128 (SDM 317453, 3.2.6, 3.4); callers give constants, checked below.
    #[must_use]
    pub const fn new(base: usize, len: u16) -> Self {
        assert!(len > 0 && len.is_multiple_of(8) && base.is_multiple_of(128));
        Self { base, len }
    }

    /// Descriptors.
    #[must_use]
    pub const fn descriptors(self) -> u16 {
        self.len
    }

    /// Bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        (self.len as usize).saturating_mul(SIZE)
    }

    /// Offset of its first byte in the memory.
    #[must_use]
    pub const fn base(self) -> usize {
        self.base
    }

    /// The index `by` descriptors further, `by` at most the ring's length.
    #[must_use]
    pub const fn step(self, index: u16, by: u16) -> u16 {
        let sum = (index as u32).saturating_add(by as u32);
        if sum >= self.len as u32 { sum.saturating_sub(self.len as u32) as u16 } else { sum as u16 }
    }

    /// Descriptors from `from` up to but without `to`.
    #[must_use]
    pub const fn distance(self, from: u16, to: u16) -> u16 {
        if to >= from { to.saturating_sub(from) } else { self.len.saturating_sub(from).saturating_add(to) }
    }

    const fn offset(self, index: u16, word: usize) -> usize {
        self.base.saturating_add((index as usize).saturating_mul(SIZE)).saturating_add(word.saturating_mul(4))
    }

    /// Writes a whole descriptor, the words with the device's status last.
    pub fn write<D: DmaMemory>(self, dma: &D, index: u16, words: Words) {
        for (i, word) in words.into_iter().enumerate() {
            dma.write(self.offset(index, i), word);
        }
    }

    /// Writes one word of a descriptor.
    pub fn write_word<D: DmaMemory>(self, dma: &D, index: u16, word: usize, value: u32) {
        dma.write(self.offset(index, word), value);
    }

    /// Reads one word of a descriptor.
    pub fn word<D: DmaMemory>(self, dma: &D, index: u16, word: usize) -> u32 {
        dma.read(self.offset(index, word))
    }

    /// Reads the word with the device's status; the others are read after it.
    pub fn status<D: DmaMemory>(self, dma: &D, index: u16) -> u32 {
        dma.load_acquire(self.offset(index, 3))
    }
}
