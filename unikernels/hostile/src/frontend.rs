//! What hostile frontends of any device have in common: how their offences are begun and told of, nodes and states.

use crate::report::Report;
use abi::GrantRef;
use abi::io::xenbus::XenbusState;
use alloc::format;
use alloc::string::String;
use core::time::Duration;
use libxenrt::store::{Store, Transaction};
use libxenrt::{clock, event, log};

/// How long a backend may take for an answer, or a state.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// No grant of ours is there.
pub const NOBODY: GrantRef = GrantRef(0x00ff_ffff);

/// Commits the offences of a kind of frontend, and says whether it came to their end.
pub fn offend(kind: &str, r: &mut Report, commit: impl FnOnce(&mut Store, &mut Report) -> Result<(), String>) {
    let mut store = match Store::open() {
        Ok(store) => store,
        Err(e) => return r.answer("open", "a connection", format_args!("{e:?}")),
    };
    match commit(&mut store, r) {
        Ok(()) => log::info!("hostile: {kind}: done"),
        Err(what) => r.answer("the way to the backend", "no failure", format_args!("{what}")),
    }
}

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
