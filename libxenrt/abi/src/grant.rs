//! Grant table, version 1 (`public/grant_table.h`).

use crate::ids::{DomId, GrantRef};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `GNTTABOP_map_grant_ref`.
pub const MAP_GRANT_REF: u64 = 0;
/// `GNTTABOP_unmap_grant_ref`.
pub const UNMAP_GRANT_REF: u64 = 1;
/// `GNTTABOP_setup_table`.
pub const SETUP_TABLE: u64 = 2;
/// `GNTTABOP_copy`.
pub const COPY: u64 = 5;
/// `GNTTABOP_query_size`.
pub const QUERY_SIZE: u64 = 6;
/// `GNTTABOP_set_version`.
pub const SET_VERSION: u64 = 8;
/// `GNTTABOP_get_version`.
pub const GET_VERSION: u64 = 10;

/// `GNTTAB_NR_RESERVED_ENTRIES`: references below this are the toolstack's.
pub const NR_RESERVED_ENTRIES: u32 = 8;
/// `GNTTAB_RESERVED_CONSOLE`.
pub const RESERVED_CONSOLE: GrantRef = GrantRef(0);
/// `GNTTAB_RESERVED_XENSTORE`: the store page, granted to the control domain when the domain is made.
pub const RESERVED_XENSTORE: GrantRef = GrantRef(1);

/// `GTF_permit_access` in the type bits.
pub const GTF_PERMIT_ACCESS: u16 = 1;
/// The type bits.
pub const GTF_TYPE_MASK: u16 = 3;
/// `GTF_readonly`.
pub const GTF_READONLY: u16 = 1 << 2;
/// `GTF_reading`: set by the hypervisor while mapped or copied.
pub const GTF_READING: u16 = 1 << 3;
/// `GTF_writing`.
pub const GTF_WRITING: u16 = 1 << 4;

/// `GNTMAP_device_map`: also reachable by the caller's device.
pub const GNTMAP_DEVICE_MAP: u32 = 1 << 0;
/// `GNTMAP_host_map`: `host_addr` is a guest-physical address.
pub const GNTMAP_HOST_MAP: u32 = 1 << 1;
/// `GNTMAP_readonly`.
pub const GNTMAP_READONLY: u32 = 1 << 2;

/// `GNTCOPY_source_gref`.
pub const GNTCOPY_SOURCE_GREF: u16 = 1 << 0;
/// `GNTCOPY_dest_gref`.
pub const GNTCOPY_DEST_GREF: u16 = 1 << 1;

/// `GNTST_*`: the status of one operation in a batch.
pub mod status {
    /// Done.
    pub const OKAY: i16 = 0;
    /// General error.
    pub const GENERAL_ERROR: i16 = -1;
    /// Unrecognised domain.
    pub const BAD_DOMAIN: i16 = -2;
    /// Unrecognised or inactive reference.
    pub const BAD_GNTREF: i16 = -3;
    /// Unrecognised handle.
    pub const BAD_HANDLE: i16 = -4;
    /// Inappropriate virtual address.
    pub const BAD_VIRT_ADDR: i16 = -5;
    /// Inappropriate device address.
    pub const BAD_DEV_ADDR: i16 = -6;
    /// No space in the I/O MMU.
    pub const NO_DEVICE_SPACE: i16 = -7;
    /// Permission denied.
    pub const PERMISSION_DENIED: i16 = -8;
    /// Bad page.
    pub const BAD_PAGE: i16 = -9;
    /// Copy arguments cross a page.
    pub const BAD_COPY_ARG: i16 = -10;
    /// Address space exhausted.
    pub const ADDRESS_TOO_BIG: i16 = -11;
    /// Try again.
    pub const EAGAIN: i16 = -12;
}

/// Entries in one 4 KiB frame of a version 1 table.
pub const ENTRIES_PER_FRAME: u32 = 512;

/// `struct grant_entry_v1`. Written by the granting domain, `flags` last; the hypervisor sets `GTF_reading/writing`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EntryV1 {
    /// `GTF_*`.
    pub flags: u16,
    /// Who may use it.
    pub domid: DomId,
    /// Guest frame granted.
    pub frame: u32,
}
crate::assert_layout!(EntryV1, 8, domid @ 2, frame @ 4);

/// `gnttab_map_grant_ref`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MapGrantRef {
    /// IN: guest-physical address to map at, page aligned.
    pub host_addr: u64,
    /// IN: `GNTMAP_*`.
    pub flags: u32,
    /// IN.
    pub gref: GrantRef,
    /// IN: granting domain.
    pub dom: DomId,
    /// OUT: `GNTST_*`.
    pub status: i16,
    /// OUT.
    pub handle: u32,
    /// OUT: address for the caller's device (a Dfn, as bytes).
    pub dev_bus_addr: u64,
}
crate::assert_layout!(MapGrantRef, 32, flags @ 8, gref @ 12, dom @ 16, status @ 18, handle @ 20, dev_bus_addr @ 24);

/// `gnttab_unmap_grant_ref`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UnmapGrantRef {
    /// IN.
    pub host_addr: u64,
    /// IN: zero or as returned.
    pub dev_bus_addr: u64,
    /// IN.
    pub handle: u32,
    /// OUT.
    pub status: i16,
    /// Zero.
    pub pad: u16,
}
crate::assert_layout!(UnmapGrantRef, 24, handle @ 16, status @ 20);

/// One side of a [`GrantCopy`]: `u` is a [`GrantRef`] or a guest frame, as the flags say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CopyPtr {
    /// Grant reference, or guest frame number of `domid`.
    pub u: u64,
    /// Granting domain, or `DOMID_SELF` for a frame.
    pub domid: DomId,
    /// Byte offset in the page.
    pub offset: u16,
    /// Zero.
    pub pad: u32,
}
crate::assert_layout!(CopyPtr, 16, domid @ 8, offset @ 10);

/// `gnttab_copy`. Copies never cross a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GrantCopy {
    /// IN.
    pub source: CopyPtr,
    /// IN.
    pub dest: CopyPtr,
    /// IN: bytes.
    pub len: u16,
    /// IN: `GNTCOPY_*`.
    pub flags: u16,
    /// OUT.
    pub status: i16,
    /// Zero.
    pub pad: u16,
}
crate::assert_layout!(GrantCopy, 40, dest @ 16, len @ 32, flags @ 34, status @ 36);

/// `gnttab_setup_table`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetupTable {
    /// IN.
    pub dom: DomId,
    /// Zero.
    pub pad: u16,
    /// IN.
    pub nr_frames: u32,
    /// OUT.
    pub status: i16,
    /// Zero.
    pub pad2: [u16; 3],
    /// IN: linear address of an array of `u64` frame numbers.
    pub frame_list: u64,
}
crate::assert_layout!(SetupTable, 24, nr_frames @ 4, status @ 8, frame_list @ 16);

/// `gnttab_query_size`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct QuerySize {
    /// IN.
    pub dom: DomId,
    /// Zero.
    pub pad: u16,
    /// OUT.
    pub nr_frames: u32,
    /// OUT.
    pub max_nr_frames: u32,
    /// OUT.
    pub status: i16,
    /// Zero.
    pub pad2: u16,
}
crate::assert_layout!(QuerySize, 16, nr_frames @ 4, max_nr_frames @ 8, status @ 12);

/// `gnttab_set_version` and `gnttab_get_version` share one shape here: `{dom, version}` differ in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetVersion {
    /// IN.
    pub dom: DomId,
    /// Zero.
    pub pad: u16,
    /// OUT.
    pub version: u32,
}
crate::assert_layout!(GetVersion, 8, version @ 4);
