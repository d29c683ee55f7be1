//! The handshake of a split driver as its backend sees it: finding all devices of a kind, and what a pair of states asks for. The order
//! of states is Linux's (`drivers/xen/xenbus`, and what xen-netback and xen-blkback do with it).
//!
//! ```text
//! /local/domain/B/backend/KIND/F/I/   frontend state …     ours
//! /local/domain/F/device/KIND/I/      state …              the frontend's
//! ```
//!
//! Everything is read in as few round trips as there are levels, for all devices together: a restart may wait for this.

use abi::DomId;
use abi::io::xenbus::XenbusState;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use xenstore::{Store, StoreError};

/// Our directory of a kind of device (`vif`, `vbd`).
#[must_use]
pub fn root(me: DomId, kind: &str) -> String {
    format!("/local/domain/{me}/backend/{kind}")
}

/// Whose a device is and where its directories are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Whose.
    pub frontend: DomId,
    /// Its number there.
    pub device: u16,
    /// Our directory.
    pub back: String,
    /// The frontend's.
    pub front: String,
}

impl Place {
    /// With the usual directories.
    #[must_use]
    pub fn usual(me: DomId, kind: &str, frontend: DomId, device: u16) -> Self {
        let back = format!("{}/{frontend}/{device}", root(me, kind));
        Self { frontend, device, back, front: format!("/local/domain/{frontend}/device/{kind}/{device}") }
    }

    /// Is `other` the same device's?
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        (self.frontend, self.device) == (other.frontend, other.device)
    }
}

/// The state node of either side's directory.
#[must_use]
pub fn state_of(directory: &str) -> String {
    format!("{directory}/state")
}

/// Our state node with its value.
#[must_use]
pub fn state(back: &str, state: XenbusState) -> (String, String) {
    (state_of(back), state.as_str().to_string())
}

/// A state node's value.
#[must_use]
pub fn parse_state(value: Option<&str>) -> XenbusState {
    value.map_or(XenbusState::Unknown, XenbusState::parse)
}

/// The rest of `path` where it is `directory` ("") or below it ("/rules"): `vif/1/10` is not below `vif/1/1`.
fn beyond<'a>(path: &'a str, directory: &str) -> Option<&'a str> {
    path.strip_prefix(directory).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Does a change at `path` concern the backend of `kind` that serves `devices` (their directories on our side and their frontends')? Of
/// their nodes on our side only `nodes` do, which others write, and the directory itself, which is made and removed.
pub fn concerns<'a>(
    path: &str,
    (me, kind): (DomId, &str),
    devices: impl IntoIterator<Item = (&'a str, &'a str)>,
    nodes: &[&str],
) -> bool {
    let mut relevant = beyond(path, &root(me, kind)).is_some();
    for (back, front) in devices {
        if let Some(rest) = beyond(path, back) {
            return rest.strip_prefix('/').is_none_or(|node| nodes.contains(&node));
        }
        relevant |= beyond(path, front).is_some();
    }
    relevant
}

/// A device as xenstore has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory<N> {
    /// Where it is.
    pub place: Place,
    /// Our state.
    pub back_state: XenbusState,
    /// The frontend's.
    pub front_state: XenbusState,
    /// What the other nodes say.
    pub nodes: N,
}

/// A kind of device, by what is read of each.
pub trait Kind: Sized {
    /// What they are called in xenstore.
    const NAME: &'static str;
    /// The nodes of our directory that others write.
    const OTHERS: &'static [&'static str];

    /// Finds all of this backend's, with [`discover`].
    ///
    /// # Errors
    /// The store's.
    fn discover<S: Store>(store: &mut S, me: DomId) -> Result<Vec<Directory<Self>>, StoreError>;
}

/// Finds all devices of a kind whose directories on our side name their frontends' and reads the named nodes of both directories of each.
///
/// # Errors
/// The store's; a directory that is incomplete is no error, it is left out.
pub fn discover<S: Store, K: Kind, const B: usize, const F: usize>(
    store: &mut S,
    me: DomId,
    back_nodes: [&str; B],
    front_nodes: [&str; F],
    parse: impl Fn([Option<String>; B], [Option<String>; F]) -> K,
) -> Result<Vec<Directory<K>>, StoreError> {
    let root = root(me, K::NAME);
    let frontends = store.list(core::slice::from_ref(&root))?.into_iter().next().unwrap_or_default();
    let paths: Vec<String> = frontends.iter().map(|f| format!("{root}/{f}")).collect();
    let mut places: Vec<(DomId, u16, String)> = Vec::new();
    for ((name, path), devices) in frontends.iter().zip(&paths).zip(store.list(&paths)?) {
        let Ok(frontend) = name.parse().map(DomId) else { continue };
        let numbers = devices.iter().filter_map(|device| device.parse().ok());
        places.extend(numbers.map(|device: u16| (frontend, device, format!("{path}/{device}"))));
    }
    let below = |directory: &str, nodes: &[&str]| -> Vec<String> {
        nodes.iter().map(|node| format!("{directory}/{node}")).collect()
    };
    let ours = |back: &str| below(back, &["frontend", "state"]).into_iter().chain(below(back, &back_nodes));
    let nodes: Vec<String> = places.iter().flat_map(|(.., back)| ours(back)).collect();
    let mut values = store.read(&nodes)?.into_iter();
    let mut next = || values.next().flatten();
    let mut all = Vec::new();
    for (frontend, device, back) in places {
        let (front, back_state, back_values) = (next(), parse_state(next().as_deref()), back_nodes.map(|_| next()));
        let Some(front) = front.filter(|front| !front.is_empty()) else { continue };
        all.push((Place { frontend, device, back, front }, back_state, back_values));
    }
    let theirs = |front: &str| below(front, &["state"]).into_iter().chain(below(front, &front_nodes));
    let nodes: Vec<String> = all.iter().flat_map(|(place, ..)| theirs(&place.front)).collect();
    let mut values = store.read(&nodes)?.into_iter();
    let mut next = || values.next().flatten();
    let found = all.into_iter().map(|(place, back_state, back_values)| {
        let front_state = parse_state(next().as_deref());
        Directory { place, back_state, front_state, nodes: parse(back_values, front_nodes.map(|_| next())) }
    });
    Ok(found.collect())
}

/// What a pair of states asks of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Stay,
    /// Let go of the rings, if any, and offer the device (again).
    Offer,
    /// Take up rings that the frontend has just set up.
    Connect,
    /// Take up rings that an earlier instance of this domain served.
    Reattach,
    /// Let go of the rings and say so with this state.
    Close(XenbusState),
}

/// The step for our state and the frontend's; `live` if this instance holds the rings.
#[must_use]
pub fn step(back: XenbusState, front: XenbusState, live: bool) -> Step {
    use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising, Reconfigured, Reconfiguring};
    match (front, back) {
        // A frontend that starts (again): its rings, if we still hold some, are its former life's.
        (Initialising, InitWait) if !live => Step::Stay,
        (Initialising, _) => Step::Offer,
        (Initialised | Connected, Connected) => match live {
            true => Step::Stay,
            false => Step::Reattach,
        },
        (Initialised | Connected, InitWait) => Step::Connect,
        // We died before we could offer, yet the frontend is ready: it has read an earlier instance's offer.
        (Initialised | Connected, Initialising | XenbusState::Unknown) => Step::Connect,
        // We closed it: the frontend has to begin again.
        (Initialised | Connected, _) => Step::Stay,
        (Closing, Closing | Closed) if !live => Step::Stay,
        (Closing, _) => Step::Close(Closing),
        (Closed, Closed) if !live => Step::Stay,
        (Closed, _) => Step::Close(Closed),
        // No frontend (yet): an offer waits for it, anything else is over.
        (XenbusState::Unknown, InitWait | Closed) if !live => Step::Stay,
        (XenbusState::Unknown, Initialising | XenbusState::Unknown) if !live => Step::Offer,
        (XenbusState::Unknown, _) => Step::Close(Closed),
        (InitWait | Reconfiguring | Reconfigured, _) => Step::Stay,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising};

    #[test]
    fn an_ordinary_life() {
        assert_eq!(step(Initialising, Initialising, false), Step::Offer);
        assert_eq!(step(InitWait, Initialising, false), Step::Stay);
        assert_eq!(step(InitWait, Initialised, false), Step::Connect);
        assert_eq!(step(InitWait, Connected, false), Step::Connect);
        assert_eq!(step(Connected, Connected, true), Step::Stay);
        assert_eq!(step(Connected, Closing, true), Step::Close(Closing));
        assert_eq!(step(Closing, Closed, false), Step::Close(Closed));
        assert_eq!(step(Closed, Initialising, false), Step::Offer);
    }

    #[test]
    fn a_restarted_backend_continues_only_what_was_connected() {
        assert_eq!(step(Connected, Connected, false), Step::Reattach);
        assert_eq!(step(InitWait, Connected, false), Step::Connect);
        assert_eq!(step(Closing, Connected, false), Step::Stay, "closed for a breach, stays closed");
        assert_eq!(step(Connected, Initialising, false), Step::Offer);
    }

    #[test]
    fn a_device_does_not_hide_one_whose_number_begins_alike() {
        let (one, ten) = ("/local/domain/7/backend/vif/1/1", "/local/domain/7/backend/vif/1/10");
        let fronts = ("/local/domain/1/device/vif/1", "/local/domain/1/device/vif/10");
        let concerns = |path: &str, devices: &[(&str, &str)]| {
            super::concerns(path, (DomId(7), "vif"), devices.iter().copied(), &["rules", "mac"])
        };
        for devices in [[(one, fronts.0), (ten, fronts.1)], [(ten, fronts.1), (one, fronts.0)]] {
            for back in [one, ten] {
                assert!(concerns(back, &devices), "{back} is made or removed");
                assert!(concerns(&format!("{back}/rules"), &devices));
                assert!(!concerns(&format!("{back}/state"), &devices), "we wrote it ourselves");
                assert!(!concerns(&format!("{back}/rules/more"), &devices));
            }
        }
        // Before the second device is known, all of it is news.
        assert!(concerns(&format!("{ten}/state"), &[(one, fronts.0)]));
        assert!(concerns("/local/domain/1/device/vif/1/state", &[(one, fronts.0)]));
        assert!(!concerns("/local/domain/1/device/vif/10/state", &[(one, fronts.0)]), "nobody's yet");
        assert!(concerns("/local/domain/7/backend/vif", &[]) && !concerns("/local/domain/7/backend/vifs", &[]));
    }

    #[test]
    fn a_restarted_frontend_begins_again() {
        assert_eq!(step(Connected, Initialising, true), Step::Offer);
        assert_eq!(step(Connected, XenbusState::Unknown, true), Step::Close(Closed));
        assert_eq!(step(XenbusState::Unknown, XenbusState::Unknown, false), Step::Offer);
    }
}
