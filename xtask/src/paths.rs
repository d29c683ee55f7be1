//! Where things lie. Everything xtask writes is below `target/xenolith`.

use std::path::{Path, PathBuf};

/// The target triple of the hypervisor and every domain.
pub const FREESTANDING: &str = "x86_64-unknown-none";

/// The workspace's root folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Cargo's target folder: the one we were built in, wherever cargo's settings put it.
pub fn target() -> PathBuf {
    let ours = std::env::current_exe().ok().and_then(|exe| target_of(&exe));
    ours.unwrap_or_else(|| root().join("target"))
}

/// The target folder that has a program: the one above it that cargo has tagged as it made it.
fn target_of(program: &Path) -> Option<PathBuf> {
    program.ancestors().skip(1).find(|folder| folder.join("CACHEDIR.TAG").exists()).map(Path::to_path_buf)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_folder_is_the_one_cargo_built_in() {
        let folder = std::env::temp_dir().join(format!("xenolith-target-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("debug/deps")).unwrap();
        std::fs::write(folder.join("CACHEDIR.TAG"), "").unwrap();
        assert_eq!(target_of(&folder.join("debug/xtask")), Some(folder.clone()));
        assert_eq!(target_of(&folder.join("debug/deps/xtask-1")), Some(folder.clone()));
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(target_of(&folder.join("debug/xtask")), None);
        assert!(target().is_absolute());
    }
}
