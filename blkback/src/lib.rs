//! The block backend: everything of a `blkback-DEVICE` domain that is neither a register nor a hypercall.
//!
//! Requests come from frontends (guests, over blkif rings), are bounded to their vbd and go to a drive ([`disk::Disks`]). All of it is soft
//! state: after a restart the unanswered requests are found in the rings and executed again.
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

mod backend;
pub mod disk;
mod platform;

pub use self::backend::{Backend, BackendStats, Config, Parts, Turn, VbdStats, VbdStatus};
pub use platform::{MapError, MapRequest, Mapped, Platform};
