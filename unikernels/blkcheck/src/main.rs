//! The verifying guest: blkcheck's workloads over blkfront.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
libxenrt::main!(guest::run);
#[cfg(target_os = "none")]
mod guest;

/// The library is what runs on a host.
#[cfg(not(target_os = "none"))]
fn main() {}
