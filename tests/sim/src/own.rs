//! A guest's own pages, as it reaches them itself.

use crate::world::World;
use abi::PAGE_SIZE;
use hv_core::Mfn;
use ring::SharedMem;
use std::rc::Rc;

/// A page.
#[derive(Clone)]
pub struct Own(pub Rc<World>, pub Mfn);

impl Own {
    fn addr(&self, offset: usize) -> u64 {
        self.1.0 * PAGE_SIZE as u64 + offset as u64
    }
}

impl SharedMem for Own {
    fn read(&self, offset: usize) -> u32 {
        self.0.read32(self.addr(offset))
    }
    fn write(&self, offset: usize, value: u32) {
        self.0.write32(self.addr(offset), value);
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        self.read(offset)
    }
    fn store_release(&self, offset: usize, value: u32) {
        self.write(offset, value);
    }
    fn fence(&self) {}
}
