//! A vif in xenstore: what we offer and what its frontend chose. Where its directories are and what to do when a state changes is
//! every backend's ([`xenbus`]). The words are those of `public/io/netif.h` and Linux's xen-netback; a frontend for that is one for us.
//!
//! ```text
//! /local/domain/B/backend/vif/F/I/  frontend mac state rules feature-*     ours
//! /local/domain/F/device/vif/I/     state tx-ring-ref rx-ring-ref event-channel[-tx|-rx] feature-* request-*    the frontend's
//! ```

use crate::nic::MacAddr;
use crate::{Store, StoreError};
use ::backend::xenbus::{self, Kind};
use abi::io::xenbus::XenbusState;
use abi::{DomId, EvtchnPort, GrantRef};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// What the nodes of a vif say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nodes {
    pub mac: Option<MacAddr>,
    /// The firewall's rules.
    pub rules: Option<String>,
    /// What the frontend chose, or why it cannot be used.
    pub keys: Result<Keys, BadKey>,
}

/// A vif, as it stands in xenstore.
pub(crate) type Directory = xenbus::Directory<Nodes>;

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

/// The nodes read of a frontend, in the order of [`parse_keys`].
const FRONT_NODES: [&str; 12] = [
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

impl Kind for Nodes {
    const NAME: &'static str = "vif";
    const OTHERS: &'static [&'static str] = &["rules", "mac", "frontend", "online"];

    fn discover<S: Store>(store: &mut S, me: DomId) -> Result<Vec<Directory>, StoreError> {
        xenbus::discover(store, me, ["mac", "rules"], FRONT_NODES, |[mac, rules], front| Self {
            mac: mac.as_deref().and_then(parse_mac),
            rules,
            keys: parse_keys(&front),
        })
    }
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
    nodes.push(xenbus::state(back, XenbusState::InitWait));
    nodes
}

#[cfg(test)]
#[path = "negotiate/tests.rs"]
mod tests;
