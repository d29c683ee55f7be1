//! A frame that a guest can write at any moment. It is never `&T` or `&[u8]`: single words through atomics, runs of bytes copied
//! once into private memory. Frames that hold Rust values of the hypervisor are never of this type.

use crate::mem;
use abi::PAGE_SIZE;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};
use hv_core::Mfn;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedFrame(Mfn);

macro_rules! word {
    ($name:ident, $t:ty) => {
        /// The word at byte `offset`; `None` if it is misaligned or leaves the frame.
        #[must_use]
        pub fn $name(&self, offset: usize) -> Option<&$t> {
            let end = offset.checked_add(size_of::<$t>())?;
            if end > PAGE_SIZE || !offset.is_multiple_of(size_of::<$t>()) {
                return None;
            }
            let ptr = mem::direct(self.0.addr()).wrapping_add(offset).cast::<$t>();
            // SAFETY: the frame is RAM in the direct map for ever (invariant of `SharedFrame::from_mfn`), the offset is
            // aligned and inside of it, and nothing but atomics and volatile copies touches it.
            Some(unsafe { &*ptr })
        }
    };
}

impl SharedFrame {
    /// Takes `mfn` as a frame that guests share.
    ///
    /// # Safety
    /// `mfn` is RAM that belongs to a domain, or to the hypervisor only to be shared with one; no Rust value lives in it, and
    /// the caller holds what keeps it so (the domain's p2m lock, a pin in the frame table, or the domain itself).
    pub const unsafe fn from_mfn(mfn: Mfn) -> Self {
        Self(mfn)
    }
    /// Its number.
    pub const fn mfn(&self) -> Mfn {
        self.0
    }
    word!(u8_at, AtomicU8);
    word!(u32_at, AtomicU32);
    word!(u64_at, AtomicU64);

    /// Copies `to.len()` bytes out, from byte `offset`. False, and nothing done, if they leave the frame.
    #[must_use]
    pub fn read(&self, offset: usize, to: &mut [u8]) -> bool {
        if offset.checked_add(to.len()).is_none_or(|end| end > PAGE_SIZE) {
            return false;
        }
        // SAFETY: inside the frame, which is mapped; `to` is private memory and cannot overlap a shared frame.
        unsafe { mem::copy_bytes(to.as_mut_ptr(), mem::direct(self.0.addr()).wrapping_add(offset), to.len()) };
        true
    }
    /// Copies `from` in, to byte `offset`. False, and nothing done, if it leaves the frame.
    #[must_use]
    pub fn write(&self, offset: usize, from: &[u8]) -> bool {
        if offset.checked_add(from.len()).is_none_or(|end| end > PAGE_SIZE) {
            return false;
        }
        // SAFETY: as in `read`, the other way round.
        unsafe { mem::copy_bytes(mem::direct(self.0.addr()).wrapping_add(offset), from.as_ptr(), from.len()) };
        true
    }
    /// Copies `len` bytes from another shared frame. False, and nothing done, if either range leaves its frame.
    #[must_use]
    pub fn copy_from(&self, offset: usize, from: &Self, from_offset: usize, len: usize) -> bool {
        let fits = |o: usize| o.checked_add(len).is_some_and(|end| end <= PAGE_SIZE);
        if !fits(offset) || !fits(from_offset) {
            return false;
        }
        let source = mem::direct(from.0.addr()).wrapping_add(from_offset);
        let target = mem::direct(self.0.addr()).wrapping_add(offset);
        // SAFETY: both ranges lie in mapped frames that hold no Rust values, and overlap only garbles them.
        unsafe { mem::copy_bytes(target, source, len) };
        true
    }
    /// Clears it.
    pub fn zero(&self) {
        // SAFETY: a whole mapped frame that holds no Rust values.
        unsafe { mem::zero_bytes(mem::direct(self.0.addr()), PAGE_SIZE) };
    }
}
