//! The network backend: everything of a `netback-DEVICE` domain that is neither a register nor a hypercall.
//!
//! Frames come from vifs (guests, over netif rings) and from the NIC, pass the switch ([`Fabric`]) and leave through vifs
//! or the NIC. The domain's side is reached through [`Platform`], [`Area`] and [`Store`], the device through
//! [`nic::Nic`]; `unikernels/netback-DEVICE` wires them to libxenrt, `tests/sim` to a fake hypervisor. All of it is soft
//! state: after a restart `Backend::start` finds the connected vifs in xenstore and goes on in their rings.
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
mod cache;
pub mod firewall;
mod frames;
mod gro;
mod headers;
mod negotiate;
pub mod nic;
mod offload;
mod platform;
mod pool;
mod ports;
mod rx;
pub mod switch;
mod tx;
mod vif;

pub use backend::{Backend, BackendStats, Config, Parts, VifStatus};
pub use platform::{Area, Platform};
pub use ports::{Fabric, PortId, PortSet};
pub use tx::VifFault;
pub use vif::VifStats;
pub use xenstore::{Store, StoreError};
