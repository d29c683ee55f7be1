//! What the loader said, copied out of its structures before any memory is used.

use super::{multiboot2, pvh};
use heapless::Vec;

/// Entries of the memory map kept. A machine with more loses the rest, which only costs memory.
const REGIONS_MAX: usize = 64;
/// Bytes at physical 0 that are never given to anyone: firmware data, the trampoline of the other CPUs.
pub const LOW_MEMORY: u64 = 0x10_0000;

/// A range of physical addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// Byte past the last.
    pub end: u64,
}

impl Region {
    /// From a length; an overflowing one is cut.
    pub const fn new(start: u64, len: u64) -> Self {
        Self { start, end: start.saturating_add(len) }
    }
    /// Bytes.
    pub const fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }
    /// Whether they share a byte.
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// What the loader said.
#[derive(Clone, Debug, Default)]
pub struct BootInfo {
    /// Usable RAM.
    pub ram: Vec<Region, REGIONS_MAX>,
    /// The system bundle.
    pub module: Option<Region>,
    /// The loader's own structures, where they hold something that is needed later.
    pub keep: Option<Region>,
    /// Physical address of the RSDP, where the loader knows it.
    pub rsdp: Option<u64>,
}

impl BootInfo {
    /// Adds RAM.
    pub fn add_ram(&mut self, start: u64, len: u64) {
        let _ = self.ram.push(Region::new(start, len));
    }
    /// Byte past the last of RAM.
    pub fn ram_end(&self) -> u64 {
        self.ram.iter().map(|r| r.end).max().unwrap_or(0)
    }
}

/// Reads the loader's structures: `magic` is EAX of the entry (0 = PVH), `addr` the structure's physical address.
///
/// # Errors
/// A message for people.
pub fn read(magic: u32, addr: u32) -> Result<BootInfo, &'static str> {
    let info = match magic {
        0 => pvh::read(u64::from(addr))?,
        multiboot2::MAGIC => multiboot2::read(u64::from(addr))?,
        _ => return Err("entered by a loader that speaks neither PVH nor Multiboot2"),
    };
    if info.ram.is_empty() {
        return Err("the loader passed no memory map");
    }
    Ok(info)
}

/// Copies a structure from physical memory below 4 GiB.
pub fn peek<T: zerocopy::FromBytes>(addr: u64) -> Option<T> {
    if addr.checked_add(size_of::<T>() as u64)? > 1 << 32 {
        return None;
    }
    let ptr = crate::mem::direct(addr).cast::<T>();
    // SAFETY: the boot tables map the first 4 GiB; a `FromBytes` type takes any bytes, which are copied once.
    Some(unsafe { ptr.read_unaligned() })
}
