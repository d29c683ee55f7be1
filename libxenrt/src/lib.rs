//! libxenrt: what every unikernel domain links. It turns the raw machine that the hypervisor gives (long mode or PVH's 32-bit
//! entry, a hypercall page, some RAM) into a small run-time: heap, events, grants, xenstore, console, clock, devices, and the
//! frontends of network and disks.
//!
//! Neighbours: `abi` has every number and layout; `ring` and `xenstore` are the pure protocols this crate gives memory and
//! ports to; unikernels use only this crate. One vCPU, one stack, no threads: a unikernel is a loop around
//! [`event::poll`]. Unsafe code is confined here; the invariants its `SAFETY` comments cite (`I1`…) are in README.md.
//!
//! On the host (any target with an operating system) the crate compiles so that pure parts can be tested; hypercalls then
//! answer ENOSYS and no memory is shared.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(not(target_os = "none"), allow(dead_code, reason = "what boots and maps has no caller on the host"))]

extern crate alloc;

#[cfg(all(target_os = "none", feature = "bare"))]
pub mod bare;
#[cfg(feature = "blkfront")]
pub mod blkfront;
pub mod clock;
pub mod config;
pub mod console;
pub mod crash;
pub mod device;
pub mod dma;
pub mod event;
pub mod grant;
pub mod hypercall;
pub mod identity;
pub mod io_port;
pub mod memory;
#[cfg(feature = "smoltcp")]
pub mod netfront;
pub mod shared_page;
pub mod store;
pub mod survivor;
pub mod watchdog;

#[cfg(target_os = "none")]
mod boot;
#[cfg(target_os = "none")]
mod heap;
mod shared_info;
#[cfg(any(feature = "smoltcp", feature = "blkfront"))]
pub mod xenbus;

pub use abi;
pub use abi::{DomId, Errno, EvtchnPort, GrantRef};
pub use clock::Instant;
pub use hypercall::shutdown;
pub use log;
pub use shared_page::SharedPage;

/// Names the function the domain runs: `libxenrt::main!(run);` with `fn run()`. When it returns the domain powers off.
///
/// On the host the macro makes an empty `main`, so that a unikernel's pure parts can be tested there.
#[macro_export]
macro_rules! main {
    ($run:path) => {
        #[cfg(target_os = "none")]
        #[unsafe(no_mangle)]
        fn libxenrt_domain_main() {
            $run()
        }
        #[cfg(not(target_os = "none"))]
        fn main() {
            let _: fn() = $run;
        }
    };
}
