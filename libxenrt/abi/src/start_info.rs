//! PVH start info (`public/arch-x86/hvm/start_info.h`). Entry: 32-bit protected mode, paging off, EBX = its physical address.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `XEN_HVM_START_MAGIC_VALUE`.
pub const MAGIC: u32 = 0x336e_c578;
/// ELF note type `XEN_ELFNOTE_PHYS32_ENTRY`, owner "Xen".
pub const ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// `hvm_start_info`, version 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HvmStartInfo {
    /// [`MAGIC`].
    pub magic: u32,
    /// 1.
    pub version: u32,
    /// `SIF_*`.
    pub flags: u32,
    /// Modules passed.
    pub nr_modules: u32,
    /// Physical address of [`ModlistEntry`] array.
    pub modlist_paddr: u64,
    /// Physical address of the NUL-terminated command line.
    pub cmdline_paddr: u64,
    /// Physical address of the RSDP.
    pub rsdp_paddr: u64,
    /// Physical address of [`MemmapEntry`] array.
    pub memmap_paddr: u64,
    /// Entries of it.
    pub memmap_entries: u32,
    /// Zero.
    pub reserved: u32,
}
crate::assert_layout!(HvmStartInfo, 56, modlist_paddr @ 16, cmdline_paddr @ 24, rsdp_paddr @ 32, memmap_paddr @ 40, memmap_entries @ 48);

/// `hvm_modlist_entry`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ModlistEntry {
    /// Physical address.
    pub paddr: u64,
    /// Bytes.
    pub size: u64,
    /// Physical address of its command line, or 0.
    pub cmdline_paddr: u64,
    /// Zero.
    pub reserved: u64,
}
crate::assert_layout!(ModlistEntry, 32);

/// `hvm_memmap_table_entry`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemmapEntry {
    /// First byte.
    pub addr: u64,
    /// Bytes.
    pub size: u64,
    /// E820 type: 1 = RAM.
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
}
crate::assert_layout!(MemmapEntry, 24);

/// E820 type of usable memory.
pub const MEMMAP_RAM: u32 = 1;
/// E820 type of what is not usable.
pub const MEMMAP_RESERVED: u32 = 2;
