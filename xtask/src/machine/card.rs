//! How `ctl` finds the machine that runs: a file in `target/xenolith` with its socket, locked by the run it is of as long as that
//! lasts. Of several at a time the first has it.

use crate::{once, paths};
use anyhow::{Context, Result, anyhow};
use serde_json::Value;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

/// The file is of this run; it goes when this is dropped.
pub struct Card {
    path: PathBuf,
    /// Its lock ends with the process, however that ends.
    _lock: File,
}

impl Card {
    /// Writes it, unless another run that goes on has it, which is told.
    ///
    /// # Errors
    /// Of the file system.
    pub fn take(path: &Path, card: &Value) -> Result<Option<Self>> {
        let lock_path = path.with_extension("lock");
        let cannot = || format!("cannot write {}", lock_path.display());
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&lock_path).with_context(cannot)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                eprintln!("{}", reaches_another(&read(path).unwrap_or_default()));
                return Ok(None);
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(cannot),
        }
        once::write(path, format!("{card:#}\n").as_bytes())?;
        Ok(Some(Self { path: path.to_path_buf(), _lock: lock }))
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What whoever comes second is told.
fn reaches_another(card: &Value) -> String {
    format!(
        "note: `cargo xtask ctl` reaches the machine that runs already (system {}, process {}), not this one",
        card["system"], card["pid"]
    )
}

/// Where it is.
pub fn path() -> PathBuf {
    paths::output().join("running.json")
}

/// Reads what it says of the machine that runs.
///
/// # Errors
/// None runs: what to type.
pub fn card() -> Result<Value> {
    read(&path())
}

fn read(path: &Path) -> Result<Value> {
    let none = "no machine runs; start one in another terminal: cargo xtask run";
    let text = std::fs::read_to_string(path).map_err(|_| anyhow!(none))?;
    serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn of_two_runs_the_first_keeps_it_and_after_its_end_the_next_may_have_it() {
        let path = std::env::temp_dir().join(format!("xenolith-card-{}.json", std::process::id()));
        // Of a run that was killed.
        std::fs::write(&path, "{}").unwrap();
        let first = Card::take(&path, &json!({ "system": "one", "pid": 1 })).unwrap();
        assert!(first.is_some());
        let second = Card::take(&path, &json!({ "system": "two", "pid": 2 })).unwrap();
        assert!(second.is_none());
        assert_eq!(read(&path).unwrap()["system"], "one");
        drop(second);
        assert!(reaches_another(&read(&path).unwrap()).contains("system \"one\", process 1"));
        drop(first);
        assert!(read(&path).unwrap_err().to_string().contains("no machine runs"));
        assert!(Card::take(&path, &json!({ "system": "three" })).unwrap().is_some());
        let _ = std::fs::remove_file(path.with_extension("lock"));
    }
}
