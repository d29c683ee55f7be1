//! The hypervisor's logic without its hardware: who owns a frame, who may signal whom, who may touch whose page, who runs
//! next, why a domain stopped, what a hypercall's bytes mean.
//!
//! Neighbours: `hypervisor/src` holds these structures behind its locks, does the effects they return (setting bits in
//! shared pages, page tables, interrupts) and feeds them time. Nothing here reads a clock, a register or guest memory except
//! through a trait given by the caller, so all of it runs, and is checked against naive models, under `cargo test`.
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

pub mod acpi;
pub mod addr;
pub mod args;
pub mod evtchn;
pub mod frames;
pub mod grants;
pub mod lapic;
pub mod lifecycle;
pub mod pci;
pub mod rtc;
pub mod sched;
pub mod storm;
pub mod timer;
pub mod watchdog;

pub use abi::ids::{DomId, EvtchnPort, GrantRef, VcpuId};
pub use addr::{Dfn, Gfn, Mfn};
