//! The hypervisor's heap, for its own records only; what a domain causes to be allocated is bounded by its record in the bundle.

use linked_list_allocator::LockedHeap;

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

/// Gives the heap its memory.
///
/// # Safety
/// `len` bytes at `start` are mapped, unused, and the heap's for ever; called once.
pub unsafe fn init(start: *mut u8, len: usize) {
    // SAFETY: by this function's contract.
    unsafe { HEAP.lock().init(start, len) };
}

/// Bytes in use.
pub fn used_bytes() -> u64 {
    HEAP.lock().used() as u64
}
