//! A page for the tests of what stands on [`SharedMem`]: private, without another end, and strict where a real page is not. A misaligned
//! access, or one outside of the page, is a mistake of the code under test and panics.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

use crate::SharedMem;
use abi::PAGE_SIZE;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;

/// See the module's head.
pub struct TestPage(Vec<Cell<u32>>);

impl Default for TestPage {
    fn default() -> Self {
        Self(vec![Cell::new(0); PAGE_SIZE / 4])
    }
}

impl TestPage {
    fn word(&self, offset: usize) -> &Cell<u32> {
        assert_eq!(offset % 4, 0, "a misaligned access");
        &self.0[offset / 4]
    }
}

impl SharedMem for TestPage {
    fn read(&self, offset: usize) -> u32 {
        self.word(offset).get()
    }
    fn write(&self, offset: usize, value: u32) {
        self.word(offset).set(value);
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        self.read(offset)
    }
    fn store_release(&self, offset: usize, value: u32) {
        self.write(offset, value);
    }
    fn fence(&self) {}
}
