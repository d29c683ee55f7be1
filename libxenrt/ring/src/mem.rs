//! How a ring or the survivor page is reached: aligned 32-bit words, never a slice, because the other end may write at
//! any instant. Who implements it decides what a word is: a volatile page, a vector with a crash counter, loom atomics.

use abi::PAGE_SIZE;
use alloc::vec::Vec;

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

/// Pages of one ring, in a row. Words do not cross pages; a slot may.
pub struct Pages<M>(pub Vec<M>);

impl<M: SharedMem> Pages<M> {
    fn at(&self, offset: usize) -> Option<(&M, usize)> {
        Some((self.0.get(offset / PAGE_SIZE)?, offset % PAGE_SIZE))
    }
}

impl<M: SharedMem> SharedMem for Pages<M> {
    fn read(&self, offset: usize) -> u32 {
        self.at(offset).map_or(0, |(page, offset)| page.read(offset))
    }
    fn write(&self, offset: usize, value: u32) {
        if let Some((page, offset)) = self.at(offset) {
            page.write(offset, value);
        }
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        self.at(offset).map_or(0, |(page, offset)| page.load_acquire(offset))
    }
    fn store_release(&self, offset: usize, value: u32) {
        if let Some((page, offset)) = self.at(offset) {
            page.store_release(offset, value);
        }
    }
    fn fence(&self) {
        if let Some(page) = self.0.first() {
            page.fence();
        }
    }
}
