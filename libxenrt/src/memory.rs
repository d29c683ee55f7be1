//! Pages of the domain's own RAM, and where above RAM things appear that are not RAM ([`window`]).
//!
//! Free RAM lies between the image and the special pages at the end. The heap grows from its bottom, [`Pages`] are taken from
//! its top, so both find contiguous room without a fixed border between them. One bit per page, kept at the bottom.

use abi::PAGE_SIZE;
use core::ptr::NonNull;
use spin::Mutex;

/// Guest-physical addresses above RAM that libxenrt gives to things that are not RAM.
pub mod window {
    /// Where the window begins; RAM beyond this is not used.
    pub const START: u64 = 0x4000_0000;
    /// The shared-info page.
    pub const SHARED_INFO: u64 = START;
    /// Grant-table frames, at most [`GRANT_FRAMES_MAX`].
    pub const GRANT_TABLE: u64 = START + 0x1000;
    /// Frames of the grant table that have room here.
    pub const GRANT_FRAMES_MAX: u32 = 32;
    /// Grants of other domains mapped here.
    pub const FOREIGN: u64 = START + 0x10_0000;
    /// Pages in the foreign part.
    pub const FOREIGN_PAGES: usize = 8192;
    /// Where everything mapped 1:1 ends (devices' registers lie between).
    pub const END: u64 = 0x1_0000_0000;
}

/// A bit per page: set = taken.
#[derive(Debug)]
struct PageMap<'a> {
    bits: &'a mut [u64],
    pages: usize,
}

impl PageMap<'_> {
    fn taken(&self, page: usize) -> bool {
        page >= self.pages || self.bits.get(page / 64).is_none_or(|w| w >> (page % 64) & 1 == 1)
    }
    fn set(&mut self, first: usize, count: usize, taken: bool) {
        for page in first..first.saturating_add(count).min(self.pages) {
            if let Some(word) = self.bits.get_mut(page / 64) {
                let bit = 1u64 << (page % 64);
                *word = if taken { *word | bit } else { *word & !bit };
            }
        }
    }
    /// Takes the highest run of `count` free pages.
    fn take_top(&mut self, count: usize) -> Option<usize> {
        let mut run = 0usize;
        for page in (0..self.pages).rev() {
            run = if self.taken(page) { 0 } else { run.saturating_add(1) };
            if run == count {
                self.set(page, count, true);
                return Some(page);
            }
        }
        None
    }
    /// Takes exactly `[first, first + count)`.
    fn take_at(&mut self, first: usize, count: usize) -> bool {
        let Some(end) = first.checked_add(count) else { return false };
        let free = (first..end).all(|page| !self.taken(page));
        if free {
            self.set(first, count, true);
        }
        free
    }
    fn free_pages(&self) -> usize {
        (0..self.pages).filter(|&p| !self.taken(p)).count()
    }
}

struct Ram {
    start: u64,
    map: PageMap<'static>,
    /// Pages below this index are still as the hypervisor gave them: zero. (`Pages` come from the top.)
    clean_below: usize,
}

impl Ram {
    /// Takes a run of pages: its index, and how many of its upper pages are not known to be zero.
    fn take(&mut self, count: usize) -> Option<(usize, usize)> {
        let first = self.map.take_top(count)?;
        let end = first.saturating_add(count);
        let dirty = end.saturating_sub(self.clean_below.max(first));
        self.clean_below = self.clean_below.min(first);
        Some((first, dirty))
    }
}

static RAM: Mutex<Option<Ram>> = Mutex::new(None);

/// Free RAM and all of it, in pages.
#[must_use]
pub fn usage() -> (usize, usize) {
    RAM.lock().as_ref().map_or((0, 0), |ram| (ram.map.free_pages(), ram.map.pages))
}

/// Bytes of the heap in use, and all it has taken from RAM so far; zero on the host, which has its own.
#[must_use]
pub fn heap_usage() -> (usize, usize) {
    #[cfg(target_os = "none")]
    return crate::heap::usage();
    #[cfg(not(target_os = "none"))]
    (0, 0)
}

/// Takes over the free RAM `[start, end)`.
///
/// Where `zeroed`, the hypervisor has cleared it (Xenolith does at every entry), and clearing 2 MiB of packet memory again would
/// be a good part of an outage.
///
/// # Safety
/// I5: the range is mapped, writable RAM that nothing uses, zero where `zeroed` says so, and this is called once.
#[cfg(target_os = "none")]
pub(crate) unsafe fn init(start: u64, end: u64, zeroed: bool) {
    let page = PAGE_SIZE as u64;
    let start = start.next_multiple_of(page);
    let pages = (end.saturating_sub(start) / page) as usize;
    let words = pages.div_ceil(64);
    let bits = core::ptr::with_exposed_provenance_mut::<u64>(start as usize);
    // SAFETY: I5 – the bottom of the range becomes the map; a fresh domain's RAM may hold anything, so it is cleared first.
    unsafe { bits.write_bytes(0, words) };
    // SAFETY: I5 – initialised above, aligned, and taken out of the range below.
    let bits = unsafe { core::slice::from_raw_parts_mut(bits, words) };
    let mut map = PageMap { bits, pages };
    map.set(0, words.wrapping_mul(8).div_ceil(PAGE_SIZE), true);
    *RAM.lock() = Some(Ram { start, map, clean_below: if zeroed { pages } else { 0 } });
}

/// Takes `count` pages directly at `at` for the heap, or, where `at` is `None`, the lowest free ones.
#[cfg(target_os = "none")]
pub(crate) fn take_for_heap(at: Option<u64>, count: usize) -> Option<u64> {
    let mut lock = RAM.lock();
    let ram = lock.as_mut()?;
    let page = PAGE_SIZE as u64;
    let first = match at {
        Some(at) => (at.checked_sub(ram.start)? / page) as usize,
        None => (0..ram.map.pages).find(|&p| !ram.map.taken(p))?,
    };
    ram.map.take_at(first, count).then(|| ram.start.wrapping_add((first as u64).wrapping_mul(page)))
}

/// Contiguous pages of the domain's RAM, zeroed, page-aligned, virtual = guest-physical = device address. Given back on drop.
#[derive(Debug)]
pub struct Pages {
    base: NonNull<u8>,
    count: usize,
}

// SAFETY: I3 – the pages are owned; how they are reached is up to the type that wraps them.
unsafe impl Send for Pages {}
// SAFETY: I3 – as above.
unsafe impl Sync for Pages {}

impl Pages {
    /// `count` pages, or `None` where there is no such run free.
    #[must_use]
    pub fn alloc(count: usize) -> Option<Self> {
        if count == 0 {
            return None;
        }
        let (base, dirty_pages) = take(count)?;
        let base = NonNull::new(base)?;
        let clean = count.saturating_sub(dirty_pages).wrapping_mul(PAGE_SIZE);
        // The upper part of the run has been used before.
        let dirty = base.as_ptr().wrapping_add(clean);
        // SAFETY: I5 – `take` gave exactly this run to us, and `clean` is inside of it.
        unsafe { dirty.write_bytes(0, dirty_pages.wrapping_mul(PAGE_SIZE)) };
        Some(Self { base, count })
    }
    /// First byte.
    #[must_use]
    pub const fn base(&self) -> NonNull<u8> {
        self.base
    }
    /// Guest-physical address of the first byte.
    #[must_use]
    pub fn gpa(&self) -> u64 {
        self.base.as_ptr().expose_provenance() as u64
    }
    /// How many.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }
}

/// Takes a run; answers its first byte and how many of its upper pages are not known to be zero.
#[cfg(target_os = "none")]
fn take(count: usize) -> Option<(*mut u8, usize)> {
    let mut lock = RAM.lock();
    let ram = lock.as_mut()?;
    let (first, dirty) = ram.take(count)?;
    let address = (ram.start as usize).wrapping_add(first.wrapping_mul(PAGE_SIZE));
    Some((core::ptr::with_exposed_provenance_mut(address), dirty))
}

#[cfg(not(target_os = "none"))]
fn layout(count: usize) -> Option<core::alloc::Layout> {
    core::alloc::Layout::from_size_align(count.checked_mul(PAGE_SIZE)?, PAGE_SIZE).ok()
}

#[cfg(not(target_os = "none"))]
fn take(count: usize) -> Option<(*mut u8, usize)> {
    // SAFETY: the size is not zero (`Pages::alloc` refuses that).
    Some((unsafe { alloc::alloc::alloc_zeroed(layout(count)?) }, 0))
}

impl Drop for Pages {
    fn drop(&mut self) {
        #[cfg(target_os = "none")]
        if let Some(ram) = RAM.lock().as_mut() {
            let first = self.gpa().saturating_sub(ram.start) as usize / PAGE_SIZE;
            ram.map.set(first, self.count, false);
        }
        #[cfg(not(target_os = "none"))]
        if let Some(layout) = layout(self.count) {
            // SAFETY: allocated by `take` with this very layout.
            unsafe { alloc::alloc::dealloc(self.base.as_ptr(), layout) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_from_the_top_and_the_heap_from_the_bottom() {
        let mut bits = [0u64; 2];
        let mut map = PageMap { bits: &mut bits, pages: 100 };
        assert_eq!(map.take_top(3), Some(97));
        assert_eq!(map.take_top(1), Some(96));
        assert!(map.take_at(0, 64));
        assert!(!map.take_at(63, 2));
        assert_eq!(map.free_pages(), 32);
        assert_eq!(map.take_top(33), None);
        map.set(97, 3, false);
        assert_eq!(map.take_top(2), Some(98));
        assert_eq!(map.take_top(32), Some(64));
        assert!(map.taken(100), "past the end counts as taken");
    }

    #[test]
    fn only_what_was_used_before_counts_as_dirty() {
        let bits = std::boxed::Box::leak(std::boxed::Box::new([0u64; 1]));
        let mut ram = Ram { start: 0, map: PageMap { bits, pages: 64 }, clean_below: 64 };
        assert_eq!(ram.take(4), Some((60, 0)));
        ram.map.set(60, 4, false);
        assert_eq!(ram.take(6), Some((58, 4)));
        assert_eq!(ram.take(1), Some((57, 0)));
        ram.map.set(58, 2, false);
        assert_eq!(ram.take(2), Some((58, 2)));
        let bits = std::boxed::Box::leak(std::boxed::Box::new([0u64; 1]));
        let mut ram = Ram { start: 0, map: PageMap { bits, pages: 64 }, clean_below: 0 };
        assert_eq!(ram.take(64), Some((0, 64)), "nothing is known of it");
    }
}
