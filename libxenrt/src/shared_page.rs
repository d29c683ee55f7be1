//! A page that another domain, the hypervisor or a device may read and write at any moment: reached word by word through
//! atomics ([`ring::SharedMem`]) or copied in and out, never borrowed as bytes.
//!
//! A `SharedPage` owns its backing: memory of this domain ([`Pages`]), a mapped grant of another domain, or a page the
//! hypervisor put at a fixed address. Dropping it gives the backing back.

use crate::{crash, grant::Mapping, memory::Pages};
use abi::{PAGE_SHIFT, PAGE_SIZE};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
use ring::SharedMem;

/// What keeps the page there.
#[derive(Debug)]
enum Backing {
    Own(#[expect(dead_code, reason = "held until the page is dropped")] Pages),
    Foreign(Mapping),
    Fixed,
}

/// One page of shared memory.
#[derive(Debug)]
pub struct SharedPage {
    base: NonNull<u8>,
    backing: Backing,
}

// SAFETY: I3 – all access goes through atomics or byte-wise volatile copies, from whatever context.
unsafe impl Send for SharedPage {}
// SAFETY: I3 – as above.
unsafe impl Sync for SharedPage {}

impl SharedPage {
    /// A zeroed page of this domain's own memory, to be granted. `None` when memory is exhausted.
    #[must_use]
    pub fn alloc() -> Option<Self> {
        let pages = Pages::alloc(1)?;
        Some(Self { base: pages.base(), backing: Backing::Own(pages) })
    }

    pub(crate) fn foreign(mapping: Mapping) -> Self {
        Self { base: mapping.base(), backing: Backing::Foreign(mapping) }
    }

    /// The mapping behind it, if it is another domain's page.
    pub(crate) fn into_mapping(self) -> Option<Mapping> {
        match self.backing {
            Backing::Foreign(mapping) => Some(mapping),
            Backing::Own(_) | Backing::Fixed => None,
        }
    }

    /// The page the hypervisor keeps at `gpa`.
    ///
    /// # Safety
    /// I4: `gpa` is a page of this domain that nothing of Rust's lives in, mapped as long as the domain runs.
    #[cfg(target_os = "none")]
    pub(crate) unsafe fn fixed(gpa: u64) -> Self {
        let base = core::ptr::with_exposed_provenance_mut::<u8>(gpa as usize);
        // A fixed page at 0 would be the null guard; the boot code refuses it before.
        Self { base: NonNull::new(base).unwrap_or(NonNull::dangling()), backing: Backing::Fixed }
    }

    /// Guest-physical address.
    #[must_use]
    pub fn gpa(&self) -> u64 {
        self.base.as_ptr().expose_provenance() as u64
    }
    /// Guest frame number, as grants name it.
    #[must_use]
    pub fn gfn(&self) -> u64 {
        self.gpa() >> PAGE_SHIFT
    }
    /// The address this domain's device uses for it: own memory has its guest-physical address, a mapped grant the one the
    /// hypervisor gave (only where it was mapped for the device).
    #[must_use]
    pub fn device_address(&self) -> Option<u64> {
        match &self.backing {
            Backing::Own(_) => Some(self.gpa()),
            Backing::Foreign(mapping) => mapping.device_address(),
            Backing::Fixed => None,
        }
    }

    fn at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        let end = offset.checked_add(len)?;
        (end <= PAGE_SIZE && offset.is_multiple_of(len)).then(|| self.base.as_ptr().wrapping_add(offset))
    }

    fn atomic32(&self, offset: usize) -> Option<&AtomicU32> {
        // SAFETY: I3 – inside the page, aligned, and lives as long as `self`; every access to the page is atomic or volatile.
        self.at(offset, 4).map(|p| unsafe { AtomicU32::from_ptr(p.cast()) })
    }

    fn atomic64(&self, offset: usize) -> Option<&AtomicU64> {
        // SAFETY: I3 – as above.
        self.at(offset, 8).map(|p| unsafe { AtomicU64::from_ptr(p.cast()) })
    }

    /// The word at `offset`, acquired. Unlike [`SharedMem`]'s accessors no crash point: the clock reads through it.
    pub(crate) fn word(&self, offset: usize) -> u32 {
        self.atomic32(offset).map_or(0, |a| a.load(Ordering::Acquire))
    }
    /// The 64-bit word at `offset`, acquired.
    pub(crate) fn pair(&self, offset: usize) -> u64 {
        self.atomic64(offset).map_or(0, |a| a.load(Ordering::Acquire))
    }
    /// Sets bits of the 64-bit word at `offset`; answers what it was.
    pub(crate) fn fetch_or64(&self, offset: usize, bits: u64) -> u64 {
        self.atomic64(offset).map_or(0, |a| a.fetch_or(bits, Ordering::AcqRel))
    }
    /// Clears bits of the 64-bit word at `offset`; answers what it was.
    pub(crate) fn fetch_clear64(&self, offset: usize, bits: u64) -> u64 {
        self.atomic64(offset).map_or(0, |a| a.fetch_and(!bits, Ordering::AcqRel))
    }
    /// Takes the 64-bit word at `offset`, leaving zero.
    pub(crate) fn swap64(&self, offset: usize, value: u64) -> u64 {
        self.atomic64(offset).map_or(0, |a| a.swap(value, Ordering::AcqRel))
    }
    /// Replaces the byte at `offset`; answers what it was.
    pub(crate) fn swap8(&self, offset: usize, value: u8) -> u8 {
        // SAFETY: I3 – as `atomic32`.
        self.at(offset, 1).map_or(0, |p| unsafe { AtomicU8::from_ptr(p) }.swap(value, Ordering::AcqRel))
    }
    /// Compare-and-exchange of a 32-bit word; `Err` carries what was there.
    pub(crate) fn compare_exchange32(&self, offset: usize, from: u32, to: u32) -> Result<u32, u32> {
        let Some(word) = self.atomic32(offset) else { return Err(0) };
        word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
    }

    /// Copies bytes out; answers how many (fewer than asked only past the page's end).
    pub fn copy_out(&self, offset: usize, to: &mut [u8]) -> usize {
        let len = to.len().min(PAGE_SIZE.saturating_sub(offset));
        let (Some(to), true) = (to.get_mut(..len), len > 0) else { return 0 };
        // SAFETY: I3 – `[offset, offset + len)` is inside the page, `to` is private memory.
        unsafe { copy(self.base.as_ptr().wrapping_add(offset), to.as_mut_ptr(), len) };
        len
    }

    /// Copies bytes in; answers how many (fewer than given only past the page's end).
    pub fn copy_in(&self, offset: usize, from: &[u8]) -> usize {
        let len = from.len().min(PAGE_SIZE.saturating_sub(offset));
        if len == 0 {
            return 0;
        }
        // SAFETY: I3 – `[offset, offset + len)` is inside the page, `from` is private memory.
        unsafe { copy(from.as_ptr(), self.base.as_ptr().wrapping_add(offset), len) };
        len
    }
}

/// A copy the compiler knows nothing about, so that memory which changes meanwhile yields some bytes and no undefined
/// behaviour.
///
/// # Safety
/// Both ranges are mapped for `len` bytes; whichever is private memory is borrowed accordingly by the caller.
#[inline]
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's promise; the string instructions touch exactly `len` bytes of each, and DF is clear by the ABI.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        core::arch::asm!(
            "rep movsq",
            "mov rcx, {tail}",
            "rep movsb",
            tail = in(reg) len & 7,
            inout("rcx") len >> 3 => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
}

impl SharedMem for SharedPage {
    fn read(&self, offset: usize) -> u32 {
        self.atomic32(offset).map_or(0, |a| a.load(Ordering::Relaxed))
    }
    fn write(&self, offset: usize, value: u32) {
        crash::point();
        if let Some(word) = self.atomic32(offset) {
            word.store(value, Ordering::Relaxed);
        }
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        self.word(offset)
    }
    fn store_release(&self, offset: usize, value: u32) {
        crash::point();
        if let Some(word) = self.atomic32(offset) {
            word.store(value, Ordering::Release);
        }
    }
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_copies_stay_inside_the_page() {
        let page = SharedPage::alloc().expect("host memory");
        page.write(4092, 7);
        page.write(4096, 9);
        page.write(2, 9);
        assert_eq!((page.read(4092), page.read(4096), page.read(2), page.read(0)), (7, 0, 0, 0));
        assert_eq!(page.copy_in(4090, &[1, 2, 3, 4, 5, 6, 7, 8, 9]), 6);
        let mut back = [0; 9];
        assert_eq!(page.copy_out(4090, &mut back), 6);
        assert_eq!(back, [1, 2, 3, 4, 5, 6, 0, 0, 0]);
        assert_eq!(page.copy_out(5000, &mut back), 0);
    }
}
