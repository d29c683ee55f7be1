//! Memory a device reads and writes: descriptor rings and packet buffers. Contiguous, zeroed, its device address equal to its
//! guest-physical one (the IOMMU maps the domain's RAM so). The device is not trusted: what it wrote is read once, by value.

use crate::memory::Pages;
use crate::shared_page::copy;
use abi::PAGE_SIZE;
use core::sync::atomic::{Ordering, fence};

/// A contiguous region for a device.
#[derive(Debug)]
pub struct DmaRegion {
    pages: Pages,
}

macro_rules! access {
    ($($read:ident $write:ident $t:ty;)*) => {$(
        /// Volatile load at byte `offset`, which must be aligned; outside of the region all ones, as a bus would answer.
        #[must_use]
        pub fn $read(&self, offset: usize) -> $t {
            match self.at(offset, size_of::<$t>()) {
                // SAFETY: I3 – inside the region and aligned.
                Some(p) => unsafe { p.cast::<$t>().read_volatile() },
                None => <$t>::MAX,
            }
        }
        /// Volatile store at byte `offset`, which must be aligned; outside of the region nothing happens.
        pub fn $write(&self, offset: usize, value: $t) {
            if let Some(p) = self.at(offset, size_of::<$t>()) {
                // SAFETY: I3 – inside the region and aligned.
                unsafe { p.cast::<$t>().write_volatile(value) }
            }
        }
    )*};
}

impl DmaRegion {
    /// At least `len_bytes` bytes, rounded up to pages; `None` when no such run is free.
    #[must_use]
    pub fn alloc(len_bytes: usize) -> Option<Self> {
        Some(Self { pages: Pages::alloc(len_bytes.div_ceil(PAGE_SIZE))? })
    }
    /// Bytes of the region.
    #[must_use]
    pub const fn len_bytes(&self) -> usize {
        self.pages.count().wrapping_mul(PAGE_SIZE)
    }
    /// The device's address of the first byte.
    #[must_use]
    pub fn device_address(&self) -> u64 {
        self.pages.gpa()
    }

    fn at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        let end = offset.checked_add(len)?;
        (end <= self.len_bytes() && offset.is_multiple_of(len)).then(|| self.pages.base().as_ptr().wrapping_add(offset))
    }

    access! {
        read8 write8 u8;
        read16 write16 u16;
        read32 write32 u32;
        read64 write64 u64;
    }

    /// Copies bytes out; answers how many (fewer than asked only past the end).
    pub fn copy_out(&self, offset: usize, to: &mut [u8]) -> usize {
        let len = to.len().min(self.len_bytes().saturating_sub(offset));
        let (Some(to), true) = (to.get_mut(..len), len > 0) else { return 0 };
        // SAFETY: I3 – inside the region; `to` is private.
        unsafe { copy(self.pages.base().as_ptr().wrapping_add(offset), to.as_mut_ptr(), len) };
        len
    }
    /// Copies bytes in; answers how many (fewer than given only past the end).
    pub fn copy_in(&self, offset: usize, from: &[u8]) -> usize {
        let len = from.len().min(self.len_bytes().saturating_sub(offset));
        if len == 0 {
            return 0;
        }
        // SAFETY: I3 – inside the region; `from` is private.
        unsafe { copy(from.as_ptr(), self.pages.base().as_ptr().wrapping_add(offset), len) };
        len
    }
    /// One's complement sum (RFC 1071) of `len` bytes from `offset`, which is even, as big-endian words, the last one padded; folded
    /// to 16 bits. Bytes past the end count as zero.
    #[must_use]
    pub fn sum(&self, offset: usize, len: usize) -> u16 {
        let end = offset.saturating_add(len).min(self.len_bytes());
        let mut at = offset.min(end);
        let mut sum: u64 = 0;
        // Little-endian words give the same sum with its bytes exchanged (RFC 1071, 2 B).
        while at.wrapping_add(2) <= end && !at.is_multiple_of(8) {
            sum = sum.wrapping_add(u64::from(self.read16(at)));
            at = at.wrapping_add(2);
        }
        while at.wrapping_add(8) <= end {
            let word = self.base().wrapping_add(at).cast::<u64>();
            // SAFETY: I3 – inside the region and aligned.
            let word = unsafe { word.read_volatile() };
            // Below 2^33 each, and a region has fewer than 2^31 of them.
            sum = sum.wrapping_add(word & 0xFFFF_FFFF).wrapping_add(word >> 32);
            at = at.wrapping_add(8);
        }
        while at.wrapping_add(2) <= end {
            sum = sum.wrapping_add(u64::from(self.read16(at)));
            at = at.wrapping_add(2);
        }
        if at < end {
            sum = sum.wrapping_add(u64::from(self.read8(at)));
        }
        while sum > 0xFFFF {
            sum = (sum & 0xFFFF).wrapping_add(sum >> 16);
        }
        (sum as u16).swap_bytes()
    }
    fn base(&self) -> *mut u8 {
        self.pages.base().as_ptr()
    }
    /// Orders what was written before (descriptors) against what is written after (a doorbell).
    pub fn write_barrier(&self) {
        fence(Ordering::Release);
    }
    /// Orders what was read before (a descriptor's status) against what is read after (its buffer).
    pub fn read_barrier(&self) {
        fence(Ordering::Acquire);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_bytes_read_one_by_one() {
        let region = DmaRegion::alloc(PAGE_SIZE).unwrap();
        for offset in 0..PAGE_SIZE {
            region.write8(offset, (offset * 31 + offset / 7) as u8 | 1);
        }
        for (offset, len) in [(0, 0), (0, 1), (2, 7), (34, 1480), (6, 3), (14, 2), (8, 64), (4094, 2), (4090, 100)] {
            let mut words: u64 = 0;
            for at in offset..(offset + len).min(PAGE_SIZE) {
                words += u64::from(region.read8(at)) << if at % 2 == 0 { 8 } else { 0 };
            }
            while words > 0xFFFF {
                words = (words & 0xFFFF) + (words >> 16);
            }
            assert_eq!(u64::from(region.sum(offset, len)), words, "{len} bytes from {offset}");
        }
    }
}
