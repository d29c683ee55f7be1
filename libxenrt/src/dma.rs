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
    /// Orders what was written before (descriptors) against what is written after (a doorbell).
    pub fn write_barrier(&self) {
        fence(Ordering::Release);
    }
    /// Orders what was read before (a descriptor's status) against what is read after (its buffer).
    pub fn read_barrier(&self) {
        fence(Ordering::Acquire);
    }
}
