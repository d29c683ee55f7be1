//! Where things lie. Everything xtask writes is below `target/xenolith`.

use std::path::{Path, PathBuf};

/// The target triple of the hypervisor and every domain.
pub const FREESTANDING: &str = "x86_64-unknown-none";

/// The workspace's root folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// xtask's own output folder (bundles, sockets, logs, reports).
pub fn output() -> PathBuf {
    target().join("xenolith")
}

/// The executable a freestanding package builds to.
pub fn executable(package: &str) -> PathBuf {
    target().join(FREESTANDING).join("release").join(package)
}

/// A folder of the manifests.
pub fn images() -> PathBuf {
    root().join("images")
}
