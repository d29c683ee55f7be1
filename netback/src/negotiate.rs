//! A vif in xenstore: where its directories are, what we offer, what its frontend chose, and what to do when a state
//! changes. The words are those of `public/io/netif.h` and Linux's xen-netback; a frontend for that is one for us.
//!
//! ```text
//! /local/domain/B/backend/vif/F/I/  frontend mac state rules feature-*     ours
//! /local/domain/F/device/vif/I/     state tx-ring-ref rx-ring-ref event-channel[-tx|-rx] feature-* request-*    the frontend's
//! ```
//!
//! Everything is read in as few round trips as there are levels, for all vifs together: a restart waits for this.

use crate::nic::MacAddr;
use crate::{Store, StoreError};
use abi::io::xenbus::XenbusState;
use abi::{DomId, EvtchnPort, GrantRef};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// One vif's directories and states, as they stand in xenstore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Directory {
    pub frontend: DomId,
    pub device: u16,
    /// Our directory.
    pub back: String,
    /// The frontend's.
    pub front: String,
    pub mac: Option<MacAddr>,
    /// The firewall's rules.
    pub rules: Option<String>,
    pub back_state: XenbusState,
    pub front_state: XenbusState,
    /// What the frontend chose, or why it cannot be used.
    pub keys: Result<Keys, BadKey>,
}

/// What a frontend tells before it is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Keys {
    pub tx_ring: GrantRef,
    pub rx_ring: GrantRef,
    pub tx_port: EvtchnPort,
    /// The same as `tx_port` without split event channels.
    pub rx_port: EvtchnPort,
    pub features: Features,
}

/// What a frontend can take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features {
    /// Frames over several pages.
    pub sg: bool,
    pub gso_v4: bool,
    pub gso_v6: bool,
    /// Blank checksums.
    pub blank_v4: bool,
    pub blank_v6: bool,
    /// It names the multicast groups it wants.
    pub groups: bool,
}

/// A node that a frontend left out or filled with what does not belong there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadKey(pub &'static str);

/// Our root directory.
pub(crate) fn root(me: DomId) -> String {
    format!("/local/domain/{me}/backend/vif")
}

/// The directory of a vif on our side.
pub(crate) fn back_path(me: DomId, frontend: DomId, device: u16) -> String {
    format!("{}/{frontend}/{device}", root(me))
}

/// The usual directory of a vif on its frontend's side.
pub(crate) fn front_path(frontend: DomId, device: u16) -> String {
    format!("/local/domain/{frontend}/device/vif/{device}")
}

/// The nodes read of a frontend, in the order of [`parse_keys`].
const FRONT_NODES: [&str; 13] = [
    "state",
    "tx-ring-ref",
    "rx-ring-ref",
    "event-channel",
    "event-channel-tx",
    "event-channel-rx",
    "request-rx-copy",
    "feature-sg",
    "feature-gso-tcpv4",
    "feature-gso-tcpv6",
    "feature-no-csum-offload",
    "feature-ipv6-csum-offload",
    "request-multicast-control",
];

/// Finds all vifs of this backend and reads both directories of each.
///
/// # Errors
/// The store's; a directory that is incomplete is no error, it is left out.
pub(crate) fn discover<S: Store>(store: &mut S, me: DomId) -> Result<Vec<Directory>, StoreError> {
    let root = root(me);
    let frontends = store.list(core::slice::from_ref(&root))?.into_iter().next().unwrap_or_default();
    let paths: Vec<String> = frontends.iter().map(|f| format!("{root}/{f}")).collect();
    let mut found: Vec<(DomId, u16, String)> = Vec::new();
    for ((name, path), devices) in frontends.iter().zip(&paths).zip(store.list(&paths)?) {
        let Ok(frontend) = name.parse().map(DomId) else { continue };
        let numbers = devices.iter().filter_map(|device| device.parse().ok());
        found.extend(numbers.map(|device: u16| (frontend, device, format!("{path}/{device}"))));
    }
    let nodes: Vec<String> = found
        .iter()
        .flat_map(|(.., back)| ["frontend", "mac", "state", "rules"].map(|node| format!("{back}/{node}")))
        .collect();
    let mut values = store.read(&nodes)?.into_iter();
    let mut vifs = Vec::new();
    for (frontend, device, back) in found {
        let [front, mac, state, rules] = [(); 4].map(|()| values.next().flatten());
        let Some(front) = front.filter(|front| !front.is_empty()) else { continue };
        vifs.push(Directory {
            frontend,
            device,
            back,
            front,
            mac: mac.as_deref().and_then(parse_mac),
            rules,
            back_state: parse_state(state.as_deref()),
            front_state: XenbusState::Unknown,
            keys: Err(BadKey("state")),
        });
    }
    let nodes: Vec<String> =
        vifs.iter().flat_map(|vif| FRONT_NODES.map(|node| format!("{}/{node}", vif.front))).collect();
    let mut values = store.read(&nodes)?.into_iter();
    for vif in &mut vifs {
        let values = FRONT_NODES.map(|_| values.next().flatten());
        let [state, keys @ ..] = &values;
        vif.front_state = parse_state(state.as_deref());
        vif.keys = parse_keys(keys);
    }
    Ok(vifs)
}

fn parse_state(value: Option<&str>) -> XenbusState {
    value.map_or(XenbusState::Unknown, XenbusState::parse)
}

fn parse_mac(text: &str) -> Option<MacAddr> {
    let mut mac = [0; 6];
    let mut parts = text.trim().split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    (parts.next().is_none() && !crate::nic::is_group(&mac) && mac != [0; 6]).then_some(mac)
}

fn parse_keys(values: &[Option<String>; 12]) -> Result<Keys, BadKey> {
    let [tx_ring, rx_ring, port, tx_port, rx_port, copy, sg, gso_v4, gso_v6, no_csum, v6_csum, groups] =
        values.each_ref().map(|value| value.as_deref().and_then(|text| text.trim().parse::<u32>().ok()));
    let flag = |value: Option<u32>| value.unwrap_or(0) != 0;
    let port = |split: Option<u32>, name| {
        let number = split.or(port).filter(|&n| n != 0 && n < abi::evtchn::NR_CHANNELS_2L);
        number.map(EvtchnPort).ok_or(BadKey(name))
    };
    if !flag(copy) {
        return Err(BadKey("request-rx-copy"));
    }
    Ok(Keys {
        tx_ring: tx_ring.map(GrantRef).ok_or(BadKey("tx-ring-ref"))?,
        rx_ring: rx_ring.map(GrantRef).ok_or(BadKey("rx-ring-ref"))?,
        tx_port: port(tx_port, "event-channel-tx")?,
        rx_port: port(rx_port, "event-channel-rx")?,
        features: Features {
            sg: flag(sg),
            gso_v4: flag(gso_v4),
            gso_v6: flag(gso_v6),
            blank_v4: !flag(no_csum),
            blank_v6: flag(v6_csum),
            groups: flag(groups),
        },
    })
}

/// What we offer to every frontend, then the state that says so.
pub(crate) fn offer(back: &str) -> Vec<(String, String)> {
    let features = [
        ("feature-sg", "1"),
        ("feature-gso-tcpv4", "1"),
        ("feature-gso-tcpv6", "1"),
        ("feature-ipv6-csum-offload", "1"),
        ("feature-rx-copy", "1"),
        ("feature-rx-flip", "0"),
        ("feature-split-event-channels", "1"),
        ("feature-multicast-control", "1"),
    ];
    let mut nodes: Vec<_> =
        features.iter().map(|(node, value)| (format!("{back}/{node}"), (*value).to_string())).collect();
    nodes.push(state(back, XenbusState::InitWait));
    nodes
}

/// Our state node.
pub(crate) fn state(back: &str, state: XenbusState) -> (String, String) {
    (format!("{back}/state"), state.as_str().to_string())
}

/// What a pair of states asks of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
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
pub(crate) fn step(back: XenbusState, front: XenbusState, live: bool) -> Step {
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
#[path = "negotiate/tests.rs"]
mod tests;
