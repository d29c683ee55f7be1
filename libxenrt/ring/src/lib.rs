//! Shared rings as journals: the back ring a driver domain serves and continues after a restart, and its front twin.
//!
//! Neighbours: `netback` and `blkback` drive [`BackRing`], `libxenrt`'s frontends drive [`FrontRing`]; both stand on
//! [`SharedMem`], which libxenrt implements over a page, the tests over a vector that kills its user after any store, and
//! the models over `loom` atomics. Layout and indices are Xen's (`public/io/ring.h`).
//!
//! Why a journal: responses are published strictly in request order, so what a dead backend left unanswered is exactly
//! `[rsp_prod, req_prod)`, and a fresh one needs nothing else. The one moment at which this is not so, a response half
//! written over its request, is covered by the [`Survivor`] record.
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

mod mem;

pub use mem::SharedMem;
