//! What a hostile frontend does as an honest one: nodes and states of its device.

use abi::io::xenbus::XenbusState;
use alloc::format;
use alloc::string::String;
use core::time::Duration;
use libxenrt::store::{Store, Transaction};
use libxenrt::{clock, event};

/// How long a backend may take for an answer, or a state.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Reads a node.
pub fn read(store: &mut Store, path: &str) -> Result<String, String> {
    store.read(Transaction::NONE, path).map_err(|e| format!("{path}: {e:?}"))
}

/// Writes a node.
pub fn write(store: &mut Store, path: &str, value: &str) -> Result<(), String> {
    store.write(Transaction::NONE, path, value).map_err(|e| format!("{path}: {e:?}"))
}

/// Writes our state.
pub fn state(store: &mut Store, folder: &str, state: XenbusState) -> Result<(), String> {
    write(store, &format!("{folder}/state"), state.as_str())
}

/// Waits for a state of the backend.
pub fn wait_state(store: &mut Store, back: &str, wanted: impl Fn(XenbusState) -> bool) -> Result<(), String> {
    let deadline = clock::now() + PATIENCE;
    loop {
        let text = read(store, &format!("{back}/state"))?;
        let now = XenbusState::parse(&text);
        if wanted(now) {
            return Ok(());
        }
        if clock::now() >= deadline {
            return Err(format!("the backend stays {now:?}"));
        }
        nap(Duration::from_millis(2));
    }
}

/// Waits a moment.
pub fn nap(time: Duration) {
    let _ = event::poll(&[], Some(clock::now() + time));
}
