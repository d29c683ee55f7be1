//! Entry formats. Each translates between an [`Entry`] and 64 bits, and nothing else.

use bitflags::bitflags;
use hv_core::{Dfn, Gfn, Mfn};

bitflags! {
    /// What a mapping permits, and how it is cached.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Rights: u8 {
        /// Loads; DMA reads.
        const READ = 1;
        /// Stores; DMA writes.
        const WRITE = 2;
        /// Instruction fetches (no meaning to a device).
        const EXECUTE = 4;
        /// Uncached, for a device's registers (no meaning to a device).
        const UNCACHED = 8;
        /// A domain's own memory.
        const RWX = 7;
        /// Granted memory, writable.
        const RW = 3;
        /// A BAR.
        const MMIO = 11;
    }
}

/// A frame number of the address space a table translates from.
pub trait Frame: Copy {
    /// The plain number.
    fn number(self) -> u64;
}
impl Frame for Gfn {
    fn number(self) -> u64 {
        self.0
    }
}
impl Frame for Dfn {
    fn number(self) -> u64 {
        self.0
    }
}

/// One table entry, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Translates nothing.
    Empty,
    /// Points to the table of the next lower level.
    Table(Mfn),
    /// Maps a page: 4 KiB at level 1, 2 MiB at level 2. The number is that of its first frame.
    Leaf(Mfn, Rights),
}

/// How entries are written. Levels count from 1 (the tables of 4 KiB leaves).
pub trait Format {
    /// What the table translates from.
    type From: Frame;
    /// Levels of a tree: it spans `512^LEVELS` pages.
    const LEVELS: u32;
    /// The bits of [`Entry::Empty`].
    const EMPTY: u64;
    /// Reads an entry of a table at `level`.
    fn decode(bits: u64, level: u32) -> Entry;
    /// Writes an entry for a table at `level`.
    fn encode(entry: Entry, level: u32) -> u64;
}

/// Address bits 51:12 of an entry, in both formats.
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

fn address(bits: u64) -> Mfn {
    Mfn::containing(bits & ADDRESS)
}

/// Nested paging: the format of a long-mode page table (AMD64 Manual vol. 2, 5.3 and 15.25.5). Every nested walk is a user
/// access, so U is set throughout.
#[derive(Clone, Copy, Debug)]
pub enum Nested {}

impl Nested {
    const P: u64 = 1 << 0;
    const W: u64 = 1 << 1;
    const U: u64 = 1 << 2;
    const PWT: u64 = 1 << 3;
    const PCD: u64 = 1 << 4;
    const PS: u64 = 1 << 7;
    const NX: u64 = 1 << 63;
}

impl Format for Nested {
    type From = Gfn;
    const LEVELS: u32 = 4;
    const EMPTY: u64 = 0;

    fn decode(bits: u64, level: u32) -> Entry {
        if bits & Self::P == 0 {
            return Entry::Empty;
        }
        if level > 1 && bits & Self::PS == 0 {
            return Entry::Table(address(bits));
        }
        let mut rights = Rights::READ;
        rights.set(Rights::WRITE, bits & Self::W != 0);
        rights.set(Rights::EXECUTE, bits & Self::NX == 0);
        rights.set(Rights::UNCACHED, bits & Self::PCD != 0);
        Entry::Leaf(address(bits), rights)
    }

    fn encode(entry: Entry, level: u32) -> u64 {
        match entry {
            Entry::Empty => Self::EMPTY,
            Entry::Table(table) => table.addr() & ADDRESS | Self::P | Self::W | Self::U,
            Entry::Leaf(mfn, rights) => {
                let mut bits = mfn.addr() & ADDRESS | Self::P | Self::U;
                bits |= if rights.contains(Rights::WRITE) { Self::W } else { 0 };
                bits |= if rights.contains(Rights::EXECUTE) { 0 } else { Self::NX };
                bits |= if rights.contains(Rights::UNCACHED) { Self::PCD | Self::PWT } else { 0 };
                bits | if level > 1 { Self::PS } else { 0 }
            }
        }
    }
}

/// The hypervisor's own table: as [`Nested`], for the supervisor only.
#[derive(Clone, Copy, Debug)]
pub enum Host {}

impl Format for Host {
    type From = Gfn;
    const LEVELS: u32 = Nested::LEVELS;
    const EMPTY: u64 = Nested::EMPTY;

    fn decode(bits: u64, level: u32) -> Entry {
        Nested::decode(bits, level)
    }
    fn encode(entry: Entry, level: u32) -> u64 {
        Nested::encode(entry, level) & !Nested::U
    }
}

/// AMD-Vi host translation, version 1 tables (AMD I/O Virtualization Technology Specification, order 48882, 2.2.3). Three levels:
/// 512 GiB of device address space, one memory access fewer per walk than four.
#[derive(Clone, Copy, Debug)]
pub enum Amdvi {}

impl Amdvi {
    const PR: u64 = 1 << 0;
    const NEXT_LEVEL_SHIFT: u32 = 9;
    const NEXT_LEVEL: u64 = 7 << Self::NEXT_LEVEL_SHIFT;
    /// Force coherent: the access snoops caches whatever the device asks for.
    const FC: u64 = 1 << 60;
    const IR: u64 = 1 << 61;
    const IW: u64 = 1 << 62;
}

impl Format for Amdvi {
    type From = Dfn;
    const LEVELS: u32 = 3;
    /// PR = 0; the other bits are the software's then. A next level of 1 keeps QEMU's walker (7.2 to 10.0) going until it
    /// sees PR = 0 and logs an IO_PAGE_FAULT: an entry of all zeroes stops it without any event, and one with a next level
    /// of 0 is taken for a leaf whatever PR says.
    const EMPTY: u64 = 1 << Self::NEXT_LEVEL_SHIFT;

    fn decode(bits: u64, level: u32) -> Entry {
        if bits & Self::PR == 0 {
            return Entry::Empty;
        }
        if level > 1 && bits & Self::NEXT_LEVEL != 0 {
            return Entry::Table(address(bits));
        }
        let mut rights = Rights::empty();
        rights.set(Rights::READ, bits & Self::IR != 0);
        rights.set(Rights::WRITE, bits & Self::IW != 0);
        Entry::Leaf(address(bits), rights)
    }

    fn encode(entry: Entry, level: u32) -> u64 {
        match entry {
            Entry::Empty => Self::EMPTY,
            Entry::Table(table) => {
                let next = u64::from(level.saturating_sub(1)) << Self::NEXT_LEVEL_SHIFT & Self::NEXT_LEVEL;
                table.addr() & ADDRESS | next | Self::PR | Self::IR | Self::IW
            }
            Entry::Leaf(mfn, rights) => {
                let mut bits = mfn.addr() & ADDRESS | Self::PR | Self::FC;
                bits |= if rights.contains(Rights::READ) { Self::IR } else { 0 };
                bits | if rights.contains(Rights::WRITE) { Self::IW } else { 0 }
            }
        }
    }
}
