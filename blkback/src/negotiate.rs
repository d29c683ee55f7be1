//! A vbd in xenstore: what we offer and what its frontend chose. The words are those of `public/io/blkif.h` and Linux's xen-blkback; a
//! frontend for that is one for us. Where the directories are and what to do when a state changes is every backend's ([`xenbus`]).
//!
//! ```text
//! /local/domain/B/backend/vbd/F/V/   frontend source mode state extent error sectors sector-size … feature-*     ours
//! /local/domain/F/device/vbd/V/      state ring-ref | ring-page-order ring-refN, event-channel protocol feature-persistent
//! ```
//!
//! `extent` is for ourselves: which sectors `source` came to be when the vbd was offered, so that a later life need not read a partition
//! table before it serves. `error` says why a vbd is closed.

use crate::Config;
use crate::disk::DriveInfo;
use crate::source::Extent;
use ::backend::xenbus::{self, Kind};
use abi::io::blkif::{PROTOCOL, SEGMENTS_PER_INDIRECT_PAGE, info};
use abi::io::xenbus::XenbusState;
use abi::{DomId, EvtchnPort, GrantRef};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use xenstore::{Store, StoreError};

/// Largest ring, as a power of two of pages.
pub(crate) const MAX_ORDER: u32 = 3;

/// What the nodes of a vbd say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nodes {
    pub source: String,
    pub read_only: bool,
    /// What the source came to be when it was offered.
    pub extent: Option<Extent>,
    /// What the frontend chose, or why it cannot be used.
    pub keys: Result<Keys, BadKey>,
}

/// A vbd, as it stands in xenstore.
pub(crate) type Directory = xenbus::Directory<Nodes>;

/// What a frontend tells before it is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Keys {
    /// Pages of the ring: 1, 2, 4 or 8.
    pub rings: Vec<GrantRef>,
    pub port: EvtchnPort,
    pub persistent: bool,
}

/// A node that a frontend left out or filled with what does not belong there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadKey(pub &'static str);

/// The nodes read of a frontend, in the order of [`parse_keys`].
const FRONT_NODES: [&str; 14] = [
    "event-channel",
    "protocol",
    "feature-persistent",
    "multi-queue-num-queues",
    "ring-page-order",
    "ring-ref",
    "ring-ref0",
    "ring-ref1",
    "ring-ref2",
    "ring-ref3",
    "ring-ref4",
    "ring-ref5",
    "ring-ref6",
    "ring-ref7",
];

impl Kind for Nodes {
    const NAME: &'static str = "vbd";
    const OTHERS: &'static [&'static str] = &["source", "mode", "frontend", "online"];

    fn discover<S: Store>(store: &mut S, me: DomId) -> Result<Vec<Directory>, StoreError> {
        xenbus::discover(store, me, ["source", "mode", "extent"], FRONT_NODES, |[source, mode, extent], front| Self {
            source: source.unwrap_or_default(),
            read_only: !mode.is_some_and(|mode| mode.contains('w')),
            extent: extent.as_deref().and_then(Extent::parse),
            keys: parse_keys(&front),
        })
    }
}

fn parse_keys(values: &[Option<String>; 14]) -> Result<Keys, BadKey> {
    let number = |value: &Option<String>| value.as_deref().and_then(|text| text.trim().parse::<u32>().ok());
    let [port, protocol, persistent, queues, order, single, many @ ..] = values;
    if protocol.as_deref().is_some_and(|name| name.trim() != PROTOCOL) {
        return Err(BadKey("protocol (x86_64-abi is served)"));
    }
    if queues.as_ref().is_some_and(|_| number(queues) != Some(1)) {
        return Err(BadKey("multi-queue-num-queues (1 is served)"));
    }
    let port = number(port).filter(|&n| n != 0 && n < abi::evtchn::NR_CHANNELS_2L);
    let rings = match order {
        None => number(single).map(|gref| alloc::vec![GrantRef(gref)]).ok_or(BadKey("ring-ref"))?,
        Some(_) => {
            let order = number(order).filter(|&order| order <= MAX_ORDER).ok_or(BadKey("ring-page-order"))?;
            let pages = many.iter().take(1 << order).map(|value| number(value).map(GrantRef));
            pages.collect::<Option<_>>().ok_or(BadKey("ring-refN"))?
        }
    };
    Ok(Keys {
        rings,
        port: port.map(EvtchnPort).ok_or(BadKey("event-channel"))?,
        persistent: number(persistent).unwrap_or(0) != 0,
    })
}

/// Segments of an indirect request that we take: those of one page at most.
pub(crate) fn indirect_segments(config: &Config) -> u16 {
    config.indirect_segments.min(SEGMENTS_PER_INDIRECT_PAGE as u16)
}

/// What we offer to a frontend, then the state that says so.
pub(crate) fn offer(
    back: &str,
    extent: &Extent,
    read_only: bool,
    drive: &DriveInfo,
    config: &Config,
) -> Vec<(String, String)> {
    let flags = if read_only { info::READONLY } else { 0 };
    let mut nodes: Vec<(&str, String)> = alloc::vec![
        ("extent", extent.to_text()),
        ("sectors", extent.sectors.to_string()),
        ("sector-size", drive.sector_size.to_string()),
        ("physical-sector-size", drive.physical_sector_size.to_string()),
        ("info", flags.to_string()),
        ("feature-flush-cache", "1".to_string()),
        ("feature-barrier", "1".to_string()),
        ("feature-persistent", u8::from(config.persistent > 0).to_string()),
        ("max-ring-page-order", u32::from(config.ring_page_order).min(MAX_ORDER).to_string()),
        ("multi-queue-max-queues", "1".to_string()),
    ];
    let discard = drive.max_discard > 0 && !read_only;
    nodes.push(("feature-discard", u8::from(discard).to_string()));
    if discard {
        let granularity = drive.discard_granularity.max(1).saturating_mul(drive.sector_size);
        nodes.push(("discard-granularity", granularity.to_string()));
        nodes.push(("discard-alignment", "0".to_string()));
        nodes.push(("discard-secure", "0".to_string()));
    }
    if indirect_segments(config) > 0 {
        nodes.push(("feature-max-indirect-segments", indirect_segments(config).to_string()));
    }
    let mut nodes: Vec<_> = nodes.into_iter().map(|(node, value)| (format!("{back}/{node}"), value)).collect();
    nodes.push(xenbus::state(back, XenbusState::InitWait));
    nodes
}

/// Why the vbd is closed.
pub(crate) fn error(back: &str, why: &str) -> (String, String) {
    (format!("{back}/error"), why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(nodes: &[(&str, &str)]) -> Result<Keys, BadKey> {
        parse_keys(&FRONT_NODES.map(|node| nodes.iter().find(|(name, _)| *name == node).map(|(_, v)| (*v).to_string())))
    }

    #[test]
    fn a_linux_frontend_is_understood() {
        let old = [("ring-ref", "8"), ("event-channel", "5"), ("protocol", "x86_64-abi"), ("feature-persistent", "1")];
        let expected = Keys { rings: vec![GrantRef(8)], port: EvtchnPort(5), persistent: true };
        assert_eq!(keys(&old), Ok(expected));
        let new = [("ring-page-order", "1"), ("ring-ref0", "8"), ("ring-ref1", "9"), ("event-channel", "5")];
        let expected = Keys { rings: vec![GrantRef(8), GrantRef(9)], port: EvtchnPort(5), persistent: false };
        assert_eq!(keys(&new), Ok(expected));
    }

    #[test]
    fn a_bad_node_is_named() {
        let with = |node: (&'static str, &'static str)| keys(&[node, ("ring-ref", "8"), ("event-channel", "5")]);
        for node in [
            ("protocol", "x86_32-abi"),
            ("multi-queue-num-queues", "2"),
            ("ring-page-order", "4"),
            ("ring-page-order", "x"),
        ] {
            assert!(with(node).is_err_and(|bad| bad.0.starts_with(node.0)), "{node:?}");
        }
        assert_eq!(
            keys(&[("ring-page-order", "1"), ("ring-ref0", "8"), ("event-channel", "5")]),
            Err(BadKey("ring-refN"))
        );
        assert_eq!(keys(&[("ring-ref", "8"), ("event-channel", "4096")]), Err(BadKey("event-channel")));
        assert_eq!(keys(&[("event-channel", "5")]), Err(BadKey("ring-ref")));
    }
}
