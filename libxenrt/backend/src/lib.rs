//! What every backend is made of, whatever its device: how it reaches its domain ([`Runtime`]) and what it asks of it after each turn
//! ([`Turn`]), the XenBus handshake ([`xenbus`]), the devices it finds that way ([`Devices`]) and what it leaves of them for its next
//! life beside the journal ([`cache`]).
//!
//! Neighbours: `netback` and `blkback` stand on it; `unikernels/*back-*` implement [`Runtime`] with hypercalls, `tests/sim` with a fake
//! hypervisor.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![deny(missing_docs)]
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

pub mod cache;
mod devices;
mod runtime;
mod turn;
pub mod xenbus;

pub use devices::{Device, Devices};
pub use runtime::Runtime;
pub use turn::Turn;
