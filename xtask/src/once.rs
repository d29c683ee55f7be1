//! What is made once and used again by every run: a package, an initramfs, an image of a disk.
//!
//! Several xtasks may want the same at the same time. A lock on a file beside it (`flock`, which ends with whoever holds it, however
//! that ends) lets one of them make it while the others wait. It is made under another name and gets its own only when
//! it is whole, so whoever finds it may use it without the lock.

use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Between looks whether the lock is free.
const LOOK: Duration = Duration::from_millis(50);

/// Has `make` make the file or folder `path`, whose parent folder is made as well, unless it is there. `make` is given the name to
/// make it under; of what it leaves there nothing stays if it fails.
///
/// # Errors
/// Of `make`; of the file system; somebody wants us to stop.
pub fn made(path: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    locked(path, |part| if path.exists() { Ok(false) } else { make(part).map(|()| true) })
}

/// As [`made`], but it takes the place of what is there, which stays if `make` fails.
///
/// # Errors
/// As [`made`].
pub fn renewed(path: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    locked(path, |part| make(part).map(|()| true))
}

/// Under the lock of `path`, has `make` make it under another name; it gets its own if `make` says that it is made.
fn locked(path: &Path, make: impl FnOnce(&Path) -> Result<bool>) -> Result<()> {
    let lock_path = beside(path, "lock")?;
    let _lock = lock(&lock_path, path)?;
    // Of one that was killed.
    let part = beside(path, "part")?;
    remove(&part);
    let done = make(&part).and_then(|is_made| {
        if is_made {
            remove(path);
            std::fs::rename(&part, path).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    });
    remove(&part);
    if done.is_ok() {
        // Nobody looks at the lock again, as the thing is there; who waits for it already has it open.
        let _ = std::fs::remove_file(&lock_path);
    }
    done
}

/// Writes a file such that others, who may read or write it at the same time, find it whole, old or new.
///
/// # Errors
/// Of the file system.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let part = beside(path, &format!("{}-{number}", std::process::id()))?;
    let done = std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path));
    if done.is_err() {
        remove(&part);
    }
    done.with_context(|| format!("cannot write {}", path.display()))
}

/// Takes the lock, and tells people if it has to be waited for.
fn lock(lock_path: &Path, path: &Path) -> Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(lock_path);
    let file = file.with_context(|| format!("cannot write {}", lock_path.display()))?;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if crate::signals::stop() => bail!("interrupted"),
            Err(TryLockError::WouldBlock) => {
                if !told {
                    eprintln!("waiting for another xtask that makes {}", path.display());
                    told = true;
                }
                std::thread::sleep(LOOK);
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", lock_path.display()));
            }
        }
    }
}

/// `.NAME.SUFFIX` in the same folder, which is made.
fn beside(path: &Path, suffix: &str) -> Result<PathBuf> {
    let (folder, name) =
        path.parent().zip(path.file_name()).with_context(|| format!("{} is no file", path.display()))?;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{suffix}"));
    Ok(folder.join(hidden))
}

/// Removes a file or folder, if it is there.
fn remove(path: &Path) {
    let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    /// A folder of one test, which goes with it.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("xenolith-once-{name}-{}", std::process::id()));
            remove(&folder);
            Self(folder)
        }

        fn names(&self) -> Vec<String> {
            let entries = std::fs::read_dir(&self.0).unwrap().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            remove(&self.0);
        }
    }

    #[test]
    fn of_many_that_want_a_thing_one_makes_it_and_all_find_it_whole() {
        let folder = Folder::new("many");
        let (path, makers) = (folder.0.join("sub/thing"), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    made(&path, |part| {
                        makers.fetch_add(1, Ordering::Relaxed);
                        std::fs::create_dir(part)?;
                        std::fs::write(part.join("a"), "a")?;
                        std::thread::sleep(LOOK * 3);
                        Ok(std::fs::write(part.join("b"), "b")?)
                    })
                    .unwrap();
                    assert_eq!(std::fs::read_to_string(path.join("a")).unwrap(), "a");
                    assert_eq!(std::fs::read_to_string(path.join("b")).unwrap(), "b");
                });
            }
        });
        assert_eq!(makers.into_inner(), 1);
        assert_eq!(std::fs::read_dir(folder.0.join("sub")).unwrap().count(), 1, "locks and parts are gone");
    }

    #[test]
    fn what_failed_half_way_is_not_found_and_the_next_makes_it() {
        let folder = Folder::new("half");
        let path = folder.0.join("thing");
        // One that was killed before left this.
        std::fs::create_dir_all(folder.0.join(".thing.part/old")).unwrap();
        let failed = made(&path, |part| {
            assert!(!part.exists());
            std::fs::write(part, "half")?;
            bail!("no network")
        });
        assert_eq!(failed.unwrap_err().to_string(), "no network");
        assert_eq!(folder.names(), [".thing.lock"]);
        made(&path, |part| Ok(std::fs::write(part, "whole")?)).unwrap();
        made(&path, |_| bail!("it is there")).unwrap();
        assert_eq!((folder.names(), std::fs::read_to_string(&path).unwrap()), (vec!["thing".into()], "whole".into()));
    }

    #[test]
    fn a_file_that_is_written_again_and_again_is_always_whole() {
        let folder = Folder::new("again");
        let path = folder.0.join("bundle");
        write(&path, &[0; 100_000]).unwrap();
        std::thread::scope(|scope| {
            for byte in 1..=4 {
                let path = &path;
                scope.spawn(move || (0..50).for_each(|_| write(path, &[byte; 100_000]).unwrap()));
            }
            for _ in 0..200 {
                let found = std::fs::read(&path).unwrap();
                assert!(found.len() == 100_000 && found.iter().all(|byte| *byte == found[0]));
            }
        });
        assert_eq!(folder.names(), ["bundle"]);
    }
}
