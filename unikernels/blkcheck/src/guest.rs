//! The guest's start: its configuration, the vbds, and the workload on each.

use libxenrt::log;
use libxenrt::store::Store;

/// Runs until every vbd's workload is done.
pub fn run() {
    let mut store = match Store::open() {
        Ok(store) => store,
        Err(e) => return log::error!("no xenstore: {e:?}"),
    };
    match store.directory(libxenrt::store::Transaction::NONE, "device/vbd") {
        Ok(vbds) => log::info!("blkcheck: {} vbds", vbds.len()),
        Err(e) => log::error!("blkcheck: no vbds: {e:?}"),
    }
}
