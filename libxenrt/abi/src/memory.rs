//! Memory operations (`public/memory.h`).

use crate::ids::DomId;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `XENMEM_increase_reservation`.
pub const INCREASE_RESERVATION: u64 = 0;
/// `XENMEM_decrease_reservation`.
pub const DECREASE_RESERVATION: u64 = 1;
/// `XENMEM_populate_physmap`.
pub const POPULATE_PHYSMAP: u64 = 6;
/// `XENMEM_add_to_physmap`.
pub const ADD_TO_PHYSMAP: u64 = 7;
/// `XENMEM_memory_map`.
pub const MEMORY_MAP: u64 = 9;
/// `XENMEM_remove_from_physmap`.
pub const REMOVE_FROM_PHYSMAP: u64 = 15;

/// `XENMAPSPACE_shared_info`.
pub const MAPSPACE_SHARED_INFO: u32 = 0;
/// `XENMAPSPACE_grant_table`.
pub const MAPSPACE_GRANT_TABLE: u32 = 1;

/// `xen_add_to_physmap`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AddToPhysmap {
    /// IN.
    pub domid: DomId,
    /// IN: pages, only for a range space.
    pub size: u16,
    /// IN: `XENMAPSPACE_*`.
    pub space: u32,
    /// IN: index into the space.
    pub idx: u64,
    /// IN: guest frame to appear at.
    pub gpfn: u64,
}
crate::assert_layout!(AddToPhysmap, 24, space @ 4, idx @ 8, gpfn @ 16);

/// `xen_remove_from_physmap`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RemoveFromPhysmap {
    /// IN.
    pub domid: DomId,
    /// Zero.
    pub pad: [u16; 3],
    /// IN.
    pub gpfn: u64,
}
crate::assert_layout!(RemoveFromPhysmap, 16, gpfn @ 8);

/// `xen_memory_reservation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryReservation {
    /// IN/OUT: linear address of an array of frame numbers.
    pub extent_start: u64,
    /// IN.
    pub nr_extents: u64,
    /// IN: log2 pages of an extent.
    pub extent_order: u32,
    /// IN: `XENMEMF_*`.
    pub mem_flags: u32,
    /// IN.
    pub domid: DomId,
    /// Zero.
    pub pad: [u16; 3],
}
crate::assert_layout!(MemoryReservation, 32, extent_order @ 16, domid @ 24);

/// `xen_memory_map`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryMap {
    /// IN: room; OUT: entries written.
    pub nr_entries: u32,
    /// Zero.
    pub pad: u32,
    /// IN: linear address of [`E820Entry`] array.
    pub buffer: u64,
}
crate::assert_layout!(MemoryMap, 16);

/// An E820 entry as the BIOS lays it out (20 bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
pub struct E820Entry {
    /// First byte.
    pub addr: u64,
    /// Bytes.
    pub size: u64,
    /// 1 = RAM, 2 = reserved.
    pub kind: u32,
}
crate::assert_layout!(E820Entry, 20);
