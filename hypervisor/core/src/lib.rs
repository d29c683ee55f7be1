//! The hypervisor's logic without hardware: what a frame, a port, a grant and a run queue are, and which changes of them are
//! legal. Pure, so that it runs under `cargo test` and miri on the host; `hypervisor/src` wires it to the machine.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod addr;

pub use addr::{Dfn, Gfn, Mfn};
