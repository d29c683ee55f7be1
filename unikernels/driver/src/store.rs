//! Xenstore, as backends see it, over libxenrt's connection.

use abi::Errno;
use alloc::string::String;
use alloc::vec::Vec;
use libxenrt::store;
use xenstore::{Store, StoreError};

/// The connection.
#[derive(Debug)]
pub struct Xenstore(pub(crate) store::Store);

/// The token of all of the backend's watches: an event's path says what changed.
const TOKEN: &str = "backend";

fn store_error(e: store::StoreError) -> StoreError {
    match e {
        store::StoreError::TimedOut(_) => StoreError::Timeout,
        store::StoreError::Unavailable(e) => StoreError::Refused(e),
        store::StoreError::NotText => StoreError::Refused(Errno::EINVAL),
        other => {
            log::warn!("xenstore: {other:?}");
            StoreError::Refused(Errno::EIO)
        }
    }
}

impl Store for Xenstore {
    fn read(&mut self, paths: &[String]) -> Result<Vec<Option<String>>, StoreError> {
        self.0.read_many(paths).map_err(store_error)
    }
    fn list(&mut self, paths: &[String]) -> Result<Vec<Vec<String>>, StoreError> {
        self.0.directory_many(paths).map_err(store_error)
    }
    fn write(&mut self, nodes: &[(String, String)]) -> Result<(), StoreError> {
        self.0.write_many(nodes).map_err(store_error)
    }
    fn watch(&mut self, path: &str) -> Result<(), StoreError> {
        self.0.watch(path, TOKEN).map_err(store_error)
    }
    fn unwatch(&mut self, path: &str) {
        if let Err(e) = self.0.unwatch(path, TOKEN) {
            log::debug!("unwatch {path}: {e:?}");
        }
    }
}
