//! AMD-Vi: the IOMMU that keeps a device inside its owner's memory and its interrupts inside its owner's vectors.
//!
//! [`entry`] has the layouts that hardware reads (device table and interrupt table entries, commands) and writes (events);
//! [`unit`] drives one IOMMU through them over a [`Hardware`] trait, so that the crate holds no unsafe code and runs on
//! a fake IOMMU under `cargo test`. Page tables are `hv_npt::DeviceTree`s; who may map what is `hypervisor/src/iommu.rs`'s
//! business. Source: AMD I/O Virtualization Technology (IOMMU) Specification, order 48882, revision 3.07.
//!
//! Denial is the default: the device table has an entry for each of the 65,536 device IDs, all valid, all without rights
//! and with aborted interrupts, before the IOMMU is switched on.
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

pub mod entry;
pub mod unit;

pub use entry::{Command, DeviceEntry, Event, InterruptEntry, Translation, event};
pub use unit::{Hardware, Layout, Timeout, Unit};

#[cfg(test)]
mod tests;
