//! Page tables of the second stage: what a domain (nested paging) or its device (AMD-Vi) reaches.
//!
//! One walker ([`Tree`]) serves every entry format ([`Format`]) over any memory that can hold tables ([`FrameStore`]), so
//! the code that decides isolation exists once and is tested on the host against a naive map. `hypervisor/src` gives
//! it real frames; `hv-amdvi` uses the [`Amdvi`] format for devices. The crate knows no owner and no policy: the caller has
//! checked that the frames belong where it maps them.
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

mod format;
mod tree;

pub use format::{Amdvi, Entry, Format, Frame, Host, Nested, Rights};
pub use tree::{Flush, FrameStore, Leaf, MapError, Tree};

/// Entries of a table, in every format here.
pub const ENTRIES: usize = 512;
/// 4 KiB pages of a 2 MiB leaf.
pub const LARGE_PAGES: u64 = 512;

/// A nested page table: guest-physical to machine.
pub type NestedTree<S> = Tree<Nested, S>;
/// A device's page table: device address to machine.
pub type DeviceTree<S> = Tree<Amdvi, S>;
/// The hypervisor's own page table, by virtual page number (48 bits of address).
pub type HostTree<S> = Tree<Host, S>;

#[cfg(test)]
mod tests;
