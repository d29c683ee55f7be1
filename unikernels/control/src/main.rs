//! The control domain's image: gives the library in `lib.rs` its pages, ports, hypercalls and serial line.
//!
//! One loop, in this order each time: failures (fetch the event, decide, restart, re-attach the store), starts that are due, a
//! turn of the store for each domain that asks, orders, the control socket, and only then what can wait: logs, status nodes. It
//! sleeps in one poll on all ports. See `live/`.
#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

mod live;

libxenrt::main!(live::run);
