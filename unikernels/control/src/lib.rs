//! The control domain, as far as it is logic: the xenstore ([`store`], [`connection`]), who restarts whom ([`supervisor`],
//! [`history`]), who may crash whom ([`rights`]) and the line protocol of the control socket ([`json`], [`protocol`],
//! [`report`], [`uart`]).
//!
//! Neighbours: `main.rs` maps pages, makes hypercalls and moves bytes; this library decides. Time and identity are parameters, so
//! all of it runs under `cargo test` and in the simulator. Everything a domain or the socket's peer sends is checked here.
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

pub mod connection;
pub mod history;
pub mod json;
pub mod protocol;
pub mod report;
pub mod rights;
pub mod seed;
pub mod store;
pub mod supervisor;
pub mod terminal;
pub mod throttle;
pub mod uart;
