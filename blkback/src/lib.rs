//! The block backend: everything of a `blkback-DEVICE` domain that is neither a register nor a hypercall.
//!
//! Requests come from frontends (guests, over blkif rings), are bounded to their vbd and go to a drive ([`disk::Disks`]). All of it is soft
//! state: after a restart the unanswered requests are found in the rings and executed again.
#![cfg_attr(not(any(test, feature = "mutations")), no_std)]
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
mod cache;
mod command;
pub mod disk;
mod gpt;
mod grants;
mod line;
#[cfg(any(test, feature = "mutations"))]
pub mod mutation;
mod negotiate;
mod platform;
mod request;
mod run;
mod source;
mod table;
mod vbd;

pub use self::backend::{Backend, BackendStats, Config, Parts, VbdStatus};
pub use platform::{MapError, MapRequest, Mapped, Platform};
pub use vbd::VbdStats;

/// Is this step left out by the mutation under test? Without the feature, never: the branch folds away.
#[cfg(any(test, feature = "mutations"))]
macro_rules! mutated {
    ($name:ident) => {
        $crate::mutation::active($crate::mutation::Mutation::$name)
    };
}
#[cfg(not(any(test, feature = "mutations")))]
macro_rules! mutated {
    ($name:ident) => {
        false
    };
}
pub(crate) use mutated;
