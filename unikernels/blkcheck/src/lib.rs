//! blkcheck without its machine: sectors that say who wrote them ([`sector`]), what a disk may answer ([`model`]), workloads over any
//! disk ([`workload`]), and the same judgement over an image on the host ([`image`]), which is independent of every driver of ours.
//!
//! The binary beside it joins the workloads to blkfront, `unikernels/blkbare` to the bare AHCI driver; xtask links [`image`] and
//! [`sequence`] to check images. Formats and reports: `docs/testing.md`.
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

pub mod disk;
pub mod histogram;
pub mod image;
pub mod model;
pub mod options;
pub mod random;
pub mod report;
pub mod sector;
pub mod sequence;
pub mod workload;
