//! What it takes to have a Linux guest: its pieces from Debian's packages ([`packages`]), the modules among them
//! ([`modules`]), an initramfs ([`initramfs`], written as [`cpio`]), a root file system on a disk
//! ([`root`], with [`dpkg`]'s database), and whom it talks to ([`peer`]).
pub mod cpio;
mod dpkg;
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

/// The kernel's package that a manifest's word stands for: `debian` is the stock one, `debian:PACKAGE` another, such as
/// `debian:linux-image-cloud-amd64`. None for a file.
fn package(name: &str) -> Option<&str> {
    match name.strip_prefix(DEBIAN)? {
        "" => Some(packages::KERNEL),
        rest => rest.strip_prefix(':'),
    }
}

/// The file behind a manifest's `kernel`.
///
/// # Errors
/// Of the packages.
pub fn kernel(name: &str) -> Result<PathBuf> {
    match package(name) {
        Some(package) => Ok(packages::Kernel::fetch(package)?.image),
        None => Ok(paths::root().join(name)),
    }
}

/// The file behind a manifest's `initrd`.
///
/// # Errors
/// Of the packages.
pub fn initrd(name: &str) -> Result<PathBuf> {
    match package(name) {
        Some(package) => initramfs::make(&packages::Kernel::fetch(package)?),
        None => Ok(paths::root().join(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_kernels_are_told_from_files() {
        assert_eq!(package("debian"), Some(packages::KERNEL));
        assert_eq!(package("debian:linux-image-rt-amd64"), Some("linux-image-rt-amd64"));
        assert_eq!(package("debian.img"), None);
        assert_eq!(package("/boot/vmlinuz"), None);
    }
}
