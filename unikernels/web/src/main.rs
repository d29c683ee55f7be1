//! The web guest: netfront, smoltcp, and the HTTP server of the library beside it. It shows the state that the control domain
//! publishes in xenstore, and places crash orders there where its manifest gives it the right.
//!
//! Keys: `port` (80), `connections` (12), `buffer-kib` (64, per direction and connection), `watchdog-ms` (off).
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod guest;
#[cfg(target_os = "none")]
mod xenolith_site;

#[cfg(target_os = "none")]
libxenrt::main!(guest::run);

/// The library is what runs on a host.
#[cfg(not(target_os = "none"))]
fn main() {}
