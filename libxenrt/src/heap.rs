//! The heap of a domain: a free-list allocator that grows from the bottom of free RAM, page run by page run.

use crate::memory::take_for_heap;
use abi::PAGE_SIZE;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use linked_list_allocator::Heap;
use spin::Mutex;

/// Least growth, so that the list does not grow page by page.
const GROWTH_PAGES: usize = 16;

struct Grown {
    heap: Heap,
    /// First byte after the heap; 0 before it has any memory.
    end: u64,
}

impl Grown {
    fn grow(&mut self, layout: Layout) -> bool {
        // Alignment and the free list's own header may need more than the bare size.
        let bytes = layout.size().saturating_add(layout.align()).saturating_add(64);
        let wanted = bytes.div_ceil(PAGE_SIZE).max(GROWTH_PAGES);
        let at = (self.end != 0).then_some(self.end);
        let least = bytes.div_ceil(PAGE_SIZE);
        let Some((start, count)) = [wanted, least].into_iter().find_map(|n| Some((take_for_heap(at, n)?, n))) else {
            return false;
        };
        let len = count.wrapping_mul(PAGE_SIZE);
        if at.is_none() {
            let bottom = core::ptr::with_exposed_provenance_mut(start as usize);
            // SAFETY: I5 – the page map has given this run to the heap for good.
            unsafe { self.heap.init(bottom, len) };
        } else {
            // SAFETY: I5 – as above, and the run begins where the heap ends.
            unsafe { self.heap.extend(len) };
        }
        self.end = start.wrapping_add(len as u64);
        true
    }
}

struct DomainHeap(Mutex<Grown>);

// SAFETY: blocks come from `Heap`, which upholds the contract; the lock makes it exclusive.
unsafe impl GlobalAlloc for DomainHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut grown = self.0.lock();
        if grown.end != 0
            && let Ok(block) = grown.heap.allocate_first_fit(layout)
        {
            return block.as_ptr();
        }
        if !grown.grow(layout) {
            return core::ptr::null_mut();
        }
        grown.heap.allocate_first_fit(layout).map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            // SAFETY: the caller got `block` from `alloc` with this layout.
            unsafe { self.0.lock().heap.deallocate(block, layout) };
        }
    }
}

#[global_allocator]
static HEAP: DomainHeap = DomainHeap(Mutex::new(Grown { heap: Heap::empty(), end: 0 }));

/// Bytes of the heap in use, and all it has.
pub(crate) fn usage() -> (usize, usize) {
    let grown = HEAP.0.lock();
    (grown.heap.used(), grown.heap.size())
}
