//! Network rings (`public/io/netif.h`). TX and RX are the frontend's view. A ring slot holds a request or a response.

use crate::ids::GrantRef;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a TX slot (a union of 12-byte request and 4-byte response).
pub const TX_SLOT: usize = 12;
/// Bytes of an RX slot (a union of 8-byte request and 8-byte response).
pub const RX_SLOT: usize = 8;
/// Slots every backend must accept for one packet (`XEN_NETIF_NR_SLOTS_MIN`).
pub const NR_SLOTS_MIN: u32 = 18;

/// `NETTXF_*` of a TX request.
pub mod txf {
    /// The checksum is blank: only the pseudo-header's is in the field.
    pub const CSUM_BLANK: u16 = 1 << 0;
    /// The data is known good; set whenever `CSUM_BLANK` is.
    pub const DATA_VALIDATED: u16 = 1 << 1;
    /// Another slot of this packet follows.
    pub const MORE_DATA: u16 = 1 << 2;
    /// An extra-info slot follows.
    pub const EXTRA_INFO: u16 = 1 << 3;
}
/// `NETRXF_*` of an RX response.
pub mod rxf {
    /// The data is known good.
    pub const DATA_VALIDATED: u16 = 1 << 0;
    /// The checksum is blank.
    pub const CSUM_BLANK: u16 = 1 << 1;
    /// Another slot of this packet follows.
    pub const MORE_DATA: u16 = 1 << 2;
    /// An extra-info slot follows.
    pub const EXTRA_INFO: u16 = 1 << 3;
}
/// `NETIF_RSP_*`: the status of a response (for RX, a positive status is the length).
pub mod rsp {
    /// The frontend's slot, not a response (extra-info and such).
    pub const NULL: i16 = 1;
    /// Sent.
    pub const OKAY: i16 = 0;
    /// Failed.
    pub const ERROR: i16 = -1;
    /// Dropped.
    pub const DROPPED: i16 = -2;
}
/// `XEN_NETIF_EXTRA_TYPE_*`.
pub mod extra {
    /// None.
    pub const NONE: u8 = 0;
    /// Segmentation offload.
    pub const GSO: u8 = 1;
    /// Multicast address to add.
    pub const MCAST_ADD: u8 = 2;
    /// Multicast address to remove.
    pub const MCAST_DEL: u8 = 3;
    /// Another extra-info slot follows (flag).
    pub const FLAG_MORE: u8 = 1;
    /// `XEN_NETIF_GSO_TYPE_TCPV4`.
    pub const GSO_TCPV4: u8 = 1;
    /// `XEN_NETIF_GSO_TYPE_TCPV6`.
    pub const GSO_TCPV6: u8 = 2;
}

/// `netif_tx_request`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TxRequest {
    /// Page with the data.
    pub gref: GrantRef,
    /// Offset in it.
    pub offset: u16,
    /// [`txf`].
    pub flags: u16,
    /// Echoed in the response.
    pub id: u16,
    /// First slot: bytes of the whole packet; later slots: bytes of this slot.
    pub size: u16,
}
crate::assert_layout!(TxRequest, 12, offset @ 4, flags @ 6, id @ 8, size @ 10);

/// `netif_tx_response`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TxResponse {
    /// Echoed.
    pub id: u16,
    /// [`rsp`].
    pub status: i16,
}
crate::assert_layout!(TxResponse, 4);

/// `netif_rx_request`: an empty page for the backend to fill.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RxRequest {
    /// Echoed in the response.
    pub id: u16,
    /// Zero.
    pub pad: u16,
    /// Page to fill.
    pub gref: GrantRef,
}
crate::assert_layout!(RxRequest, 8, gref @ 4);

/// `netif_rx_response`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RxResponse {
    /// Echoed.
    pub id: u16,
    /// Offset of the data in the page.
    pub offset: u16,
    /// [`rxf`].
    pub flags: u16,
    /// Bytes in this slot, or a negative [`rsp`].
    pub status: i16,
}
crate::assert_layout!(RxResponse, 8, offset @ 2, flags @ 4, status @ 6);

/// `netif_extra_info` with the GSO union member; 8 bytes, laid over the first bytes of a slot of either ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ExtraGso {
    /// [`extra::GSO`].
    pub kind: u8,
    /// [`extra::FLAG_MORE`].
    pub flags: u8,
    /// Maximum payload per segment.
    pub size: u16,
    /// `XEN_NETIF_GSO_TYPE_*`.
    pub gso_type: u8,
    /// Zero.
    pub pad: u8,
    /// `XEN_NETIF_GSO_FEAT_*`.
    pub features: u16,
}
crate::assert_layout!(ExtraGso, 8, size @ 2, gso_type @ 4, features @ 6);
