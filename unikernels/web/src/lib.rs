//! The web guest without its machine: an HTTP server over any smoltcp device, what it shows, and the deterministic bytes it
//! serves. The binary beside it adds netfront and xenstore; the host runs the same code in tests and checks blobs with it.
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

pub mod blob;
pub mod connection;
pub mod http;
pub mod net;
pub mod page;
pub mod server;
pub mod status;
pub mod throughput;
