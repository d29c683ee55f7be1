//! What it takes to have a Linux guest: its pieces from Debian's packages ([`packages`]), the modules among them
//! ([`modules`]), an initramfs ([`initramfs`], written as [`cpio`]), a root file system on a disk
//! ([`root`]), and whom it talks to ([`peer`]).
pub mod cpio;
mod initramfs;
mod lean;
mod modules;
mod packages;
pub mod peer;
pub mod root;

use crate::manifest::DEBIAN;
use crate::paths;
use anyhow::Result;
use std::path::PathBuf;

/// The file behind a manifest's `kernel`.
///
/// # Errors
/// Of the packages.
pub fn kernel(name: &str) -> Result<PathBuf> {
    if name == DEBIAN { Ok(packages::Kernel::fetch()?.image) } else { Ok(paths::root().join(name)) }
}

/// The file behind a manifest's `initrd`.
///
/// # Errors
/// Of the packages.
pub fn initrd(name: &str) -> Result<PathBuf> {
    match name {
        DEBIAN => initramfs::make(&packages::Kernel::fetch()?),
        file => Ok(paths::root().join(file)),
    }
}
