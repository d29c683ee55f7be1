//! The xenstore half that every frontend has: where the device and its backend are, which state to write when (a pure function), and
//! the loop that follows it. What is told and asked on the way is each frontend's own ([`Frontend`]).
//!
//! Neighbours: `netfront` and `blkfront`. Source: `public/io/xenbus.h`; what Linux' frontends do (`netfront.c`, `blkfront.c`).

use crate::clock::{self, Instant};
use crate::store::{Store, StoreError, Transaction, WatchEvent};
use abi::DomId;
use abi::io::xenbus::XenbusState;
use alloc::format;
use alloc::string::String;

/// Why a device could not be brought up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XenbusError {
    /// There is no such device in xenstore, or a node of it is malformed; names the node.
    BadNode(String),
    /// Xenstore failed.
    Store(StoreError),
    /// The backend was not Connected before the deadline; its last state.
    NotConnected(XenbusState),
}

impl From<StoreError> for XenbusError {
    fn from(e: StoreError) -> Self {
        Self::Store(e)
    }
}

/// What to do next, see [`next`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Write our state.
    Write(XenbusState),
    /// Make rings, tell the backend of them and write [`Frontend::NEGOTIATED`].
    Negotiate,
    /// The backend has taken up the rings: read what it offers and write Connected.
    Complete,
    /// The link is up.
    Established,
    /// The backend has left: give up the link and write Closing.
    Lose,
    /// Nothing until the backend's state changes.
    Wait,
}

/// The step from our own state and the backend's. `linked`: this instance has made the rings; `established`: the backend has
/// been seen Connected with them.
pub(crate) const fn next(own: XenbusState, linked: bool, established: bool, backend: XenbusState) -> Action {
    use XenbusState as S;
    match (own, linked) {
        (S::Connected, true) => match backend {
            S::Connected => Action::Established,
            S::Closing | S::Closed => Action::Lose,
            S::InitWait if established => Action::Lose,
            _ => Action::Wait,
        },
        (S::Initialised, true) => match backend {
            S::Connected => Action::Complete,
            S::Closing | S::Closed => Action::Lose,
            _ => Action::Wait,
        },
        // Left over from an earlier instance of this domain: its rings are gone.
        (S::Connected | S::Initialised, false) => Action::Write(S::Closing),
        (S::Closing, _) => match backend {
            S::Connected => Action::Wait,
            _ => Action::Write(S::Closed),
        },
        (S::Closed, _) => match backend {
            S::Closed | S::InitWait | S::Unknown | S::Initialising => Action::Write(S::Initialising),
            _ => Action::Wait,
        },
        (S::Initialising, _) => match backend {
            S::InitWait => Action::Negotiate,
            // It serves rings of an earlier instance, or is on its way out: make it close first.
            S::Connected | S::Closing => Action::Write(S::Closing),
            _ => Action::Wait,
        },
        _ => Action::Write(S::Initialising),
    }
}

/// A device of this domain: its directory, its backend's, and who that is.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    /// `device/CLASS/INDEX`, relative to this domain.
    pub front: String,
    /// Absolute.
    pub back: String,
    /// The backend's domain.
    pub backend: DomId,
    /// Of the watch on the backend's state.
    token: String,
}

impl Device {
    /// Finds `device/CLASS/INDEX`.
    ///
    /// # Errors
    /// [`XenbusError::BadNode`], or the store's.
    pub fn find(store: &mut Store, class: &str, index: u32) -> Result<Self, XenbusError> {
        let mut device = Self {
            front: format!("device/{class}/{index}"),
            back: String::new(),
            backend: DomId::default(),
            token: format!("libxenrt/{class}/{index}"),
        };
        device.back = device.own(store, "backend")?;
        let id = device.own(store, "backend-id")?;
        device.backend = DomId(id.trim().parse().map_err(|_| device.bad("backend-id"))?);
        Ok(device)
    }

    /// A node of our directory that has to be there.
    ///
    /// # Errors
    /// [`XenbusError::BadNode`], or the store's.
    pub fn own(&self, store: &mut Store, name: &str) -> Result<String, XenbusError> {
        store.read_opt(Transaction::NONE, &format!("{}/{name}", self.front))?.ok_or_else(|| self.bad(name))
    }

    /// What is wrong with a node of our directory.
    pub fn bad(&self, name: &str) -> XenbusError {
        XenbusError::BadNode(format!("{}/{name}", self.front))
    }

    /// A number in the backend's directory; `None` where it is absent or none.
    ///
    /// # Errors
    /// The store's.
    pub fn offer<T: core::str::FromStr>(&self, store: &mut Store, name: &str) -> Result<Option<T>, StoreError> {
        store.read_number(Transaction::NONE, &format!("{}/{name}", self.back))
    }

    /// Whether the backend's node is 1.
    ///
    /// # Errors
    /// The store's.
    pub fn offers(&self, store: &mut Store, name: &str) -> Result<bool, StoreError> {
        Ok(self.offer::<u32>(store, name)? == Some(1))
    }

    /// Writes nodes of our directory in one transaction. The state follows apart, as with Linux.
    ///
    /// # Errors
    /// The store's.
    pub fn publish(&self, store: &mut Store, nodes: &[(&str, String)]) -> Result<(), StoreError> {
        store.transaction(|store, tx| {
            for (name, value) in nodes {
                store.write(tx, &format!("{}/{name}", self.front), value)?;
            }
            Ok(())
        })
    }

    fn write_state(&self, store: &mut Store, state: XenbusState) -> Result<(), StoreError> {
        store.write(Transaction::NONE, &format!("{}/state", self.front), state.as_str())
    }

    /// A device without a store.
    #[cfg(test)]
    pub fn of_test() -> Self {
        Self { front: String::new(), back: String::new(), backend: DomId(3), token: String::new() }
    }

    /// Whether a watch event is about this device.
    pub fn is_about(&self, event: &WatchEvent) -> bool {
        event.token == self.token
    }
}

/// Reads a state node; a missing one is `Unknown`.
fn state(store: &mut Store, directory: &str) -> Result<XenbusState, StoreError> {
    let text = store.read_opt(Transaction::NONE, &format!("{directory}/state"))?;
    Ok(text.map_or(XenbusState::Unknown, |text| XenbusState::parse(&text)))
}

/// A frontend, as far as its states go.
pub(crate) trait Frontend {
    /// Its own error.
    type Error: From<XenbusError>;
    /// The state to write when the backend was told of the rings: Connected, or Initialised where what it offers is read only
    /// once it is Connected itself.
    const NEGOTIATED: XenbusState;

    /// Its place.
    fn device(&self) -> &Device;
    /// Whether this instance has made rings.
    fn linked(&self) -> bool;
    /// Whether the backend was seen Connected with them.
    fn established(&self) -> bool;
    /// Makes rings and tells the backend.
    ///
    /// # Errors
    /// Its own.
    fn negotiate(&mut self, store: &mut Store) -> Result<(), Self::Error>;
    /// Reads what a Connected backend offers.
    ///
    /// # Errors
    /// Its own.
    fn complete(&mut self, _store: &mut Store) -> Result<(), Self::Error> {
        Ok(())
    }
    /// The backend is Connected.
    fn establish(&mut self);
    /// The backend closes; our state has been written.
    fn lose(&mut self);
}

/// Brings the device up, waiting until `deadline` for the backend. Watch events of others that come meanwhile are dropped.
///
/// # Errors
/// [`XenbusError::NotConnected`], or the frontend's.
pub(crate) fn connect<F: Frontend>(this: &mut F, store: &mut Store, deadline: Instant) -> Result<(), F::Error> {
    let node = format!("{}/state", this.device().back);
    store.watch(&node, &this.device().token).map_err(XenbusError::Store)?;
    while !step(this, store)? {
        if clock::now() >= deadline {
            let state = state(store, &this.device().back).map_err(XenbusError::Store)?;
            return Err(XenbusError::NotConnected(state).into());
        }
        store.wait_event(deadline).map_err(XenbusError::Store)?;
    }
    Ok(())
}

/// Does what the two states ask for, until it has to wait; true when the link is up.
///
/// # Errors
/// The frontend's.
pub(crate) fn step<F: Frontend>(this: &mut F, store: &mut Store) -> Result<bool, F::Error> {
    loop {
        let own = state(store, &this.device().front).map_err(XenbusError::Store)?;
        let backend = state(store, &this.device().back).map_err(XenbusError::Store)?;
        let write = match next(own, this.linked(), this.established(), backend) {
            Action::Write(state) => state,
            Action::Negotiate => {
                this.negotiate(store)?;
                F::NEGOTIATED
            }
            Action::Complete => {
                this.complete(store)?;
                XenbusState::Connected
            }
            Action::Established => {
                if !this.established() {
                    this.establish();
                }
                return Ok(true);
            }
            Action::Lose => {
                log::warn!("{}: the backend closes", this.device().front);
                this.device().write_state(store, XenbusState::Closing).map_err(XenbusError::Store)?;
                this.lose();
                continue;
            }
            Action::Wait => return Ok(false),
        };
        this.device().write_state(store, write).map_err(XenbusError::Store)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use XenbusState as S;

    /// A backend that follows the frontend as Linux' backends do.
    fn backend(own: S, state: S) -> S {
        match (own, state) {
            (S::Initialising, S::Closed | S::Initialising) => S::InitWait,
            (S::Connected | S::Initialised, S::InitWait) => S::Connected,
            (S::Closing, S::Connected | S::InitWait) => S::Closing,
            (S::Closed, _) => S::Closed,
            (_, state) => state,
        }
    }

    #[test]
    fn every_pair_of_states_ends_connected() {
        let all = [S::Unknown, S::Initialising, S::InitWait, S::Initialised, S::Connected, S::Closing, S::Closed];
        for (own, there, negotiated) in all
            .iter()
            .flat_map(|&own| all.map(|there| (own, there)))
            .flat_map(|(own, there)| [S::Connected, S::Initialised].map(|negotiated| (own, there, negotiated)))
        {
            let (mut own, mut there, mut linked) = (own, there, false);
            let ended = (0..20).any(|_| {
                match next(own, linked, false, there) {
                    Action::Write(state) => own = state,
                    Action::Negotiate => (own, linked) = (negotiated, true),
                    Action::Complete => own = S::Connected,
                    Action::Lose => (own, linked) = (S::Closing, false),
                    Action::Established => return true,
                    Action::Wait => {}
                }
                there = backend(own, there);
                false
            });
            // A backend that is itself only starting writes InitWait in time; nothing here makes it do so.
            let starting = matches!(there, S::Unknown | S::Initialised);
            assert!(ended || starting, "{own:?} {there:?} {negotiated:?}");
        }
    }

    #[test]
    fn a_restarted_backend_that_keeps_connected_changes_nothing() {
        assert_eq!(next(S::Connected, true, true, S::Connected), Action::Established);
        assert_eq!(next(S::Connected, true, true, S::Closing), Action::Lose);
        assert_eq!(next(S::Connected, true, true, S::InitWait), Action::Lose);
        assert_eq!(next(S::Connected, true, false, S::InitWait), Action::Wait);
    }
}
