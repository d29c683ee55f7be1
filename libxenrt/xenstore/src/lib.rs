//! Xenstore, the part both ends share: messages on the wire ([`wire`]), bytes through the two 1024-byte rings of the
//! store page ([`stream`]), paths ([`path`]), permissions ([`perms`]), errors by name ([`error`]), the end that asks
//! ([`client`]), and what a backend asks ([`store`]).
//!
//! Neighbours: libxenrt drives [`client::Client`] over a mapped page and an event channel; the control domain serves
//! many [`stream::Stream`]s and keeps the tree. Nothing here touches memory itself: pages are reached through
//! [`ring::SharedMem`], so the same code runs under tests, in the simulator and in domains. All that the peer wrote is
//! checked, and every queue has a bound. Source: Xen 4.17, `docs/misc/xenstore.txt`, `xenstore-ring.txt`,
//! `public/io/xs_wire.h`.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

extern crate alloc;

pub mod client;
pub mod error;
pub mod path;
pub mod perms;
pub mod store;
pub mod stream;
pub mod wire;

pub use abi::io::xs_wire::MsgType;
pub use client::{Client, ClientError, RequestId, WatchEvent};
pub use error::XsError;
pub use path::{Path, PathError};
pub use perms::{Access, Perm, Perms};
pub use store::{Store, StoreError};
pub use stream::{Side, Stream, StreamFault};
pub use wire::{Assembler, Message, WireError};
