//! What every driver domain does, whatever its device: opens its PCI function ([`function`]), gives drivers their registers, memory
//! and time ([`hardware`]), gives backends events, the watchdog and xenstore ([`channels`], [`store`]), turns the backend's wheel
//! ([`domain`]) and publishes its counters ([`statistics`]). An image's `main.rs` names the driver and the backend, nothing more.
#![cfg_attr(target_os = "none", no_std)]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

extern crate alloc;

pub mod channels;
pub mod domain;
pub mod function;
pub mod hardware;
pub mod statistics;
pub mod store;

pub use abi;
pub use backend::{self, Turn};
pub use channels::Channels;
pub use domain::{Backend, Setting, run};
pub use function::Function;
pub use hardware::{PvClock, Registers, Rings};
pub use store::Xenstore;
