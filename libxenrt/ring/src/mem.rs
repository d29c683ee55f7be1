//! How a ring or the survivor page is reached: aligned 32-bit words, never a slice, because the other end may write at
//! any instant. Who implements it decides what a word is: a volatile page, a vector with a crash counter, loom atomics.

/// A run of shared memory. Offsets are bytes and multiples of 4; an offset outside of the run reads as zero and is not
/// written (callers in this crate never pass one).
pub trait SharedMem {
    /// Relaxed (and volatile: performed exactly once) load.
    fn read(&self, offset: usize) -> u32;
    /// Relaxed (and volatile) store.
    fn write(&self, offset: usize, value: u32);
    /// Load that no later access of the caller is performed before.
    fn load_acquire(&self, offset: usize) -> u32;
    /// Store that every earlier access of the caller is performed before.
    fn store_release(&self, offset: usize, value: u32);
    /// A full fence (`mfence`): what was stored before is visible before anything after is loaded.
    fn fence(&self);
}

impl<M: SharedMem + ?Sized> SharedMem for &M {
    fn read(&self, offset: usize) -> u32 {
        (**self).read(offset)
    }
    fn write(&self, offset: usize, value: u32) {
        (**self).write(offset, value);
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        (**self).load_acquire(offset)
    }
    fn store_release(&self, offset: usize, value: u32) {
        (**self).store_release(offset, value);
    }
    fn fence(&self) {
        (**self).fence();
    }
}
