//! The hypervisor's heap, for its own records only; what a domain causes to be allocated is bounded by its record in the bundle.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use linked_list_allocator::Heap as List;
use spin::Mutex;

struct Heap(Mutex<List>);

#[global_allocator]
static HEAP: Heap = Heap(Mutex::new(List::empty()));

// SAFETY: the list hands out disjoint, aligned parts of the memory `init` was given, under a lock.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.lock().allocate_first_fit(layout).map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        if let Some(ptr) = NonNull::new(ptr) {
            // SAFETY: `ptr` came from `alloc` with this layout, by the contract of `GlobalAlloc`.
            unsafe { self.0.lock().deallocate(ptr, layout) };
        }
    }
}

/// Gives the heap its memory.
///
/// # Safety
/// `len` bytes at `start` are mapped, unused, and the heap's for ever; called once.
pub unsafe fn init(start: *mut u8, len: usize) {
    // SAFETY: by this function's contract.
    unsafe { HEAP.0.lock().init(start, len) };
}

/// Bytes in use.
pub fn used_bytes() -> u64 {
    HEAP.0.lock().used() as u64
}
