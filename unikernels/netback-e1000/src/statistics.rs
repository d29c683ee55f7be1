//! What the domain tells about itself under `/local/domain/N/stats`: a few counters per subject, once a second while they change.

use crate::Netback;
use abi::DomId;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;
use libxenrt::store::Store;
use libxenrt::{Instant, clock, log};
use netback::PortId;
use netback::nic::Nic;

/// Time between two publications.
const PERIOD: Duration = Duration::from_secs(1);

/// What was published, and when.
#[derive(Debug)]
pub struct Statistics {
    root: String,
    due: Instant,
    published: Vec<(String, String)>,
    turns: u64,
}

impl Statistics {
    /// For domain `me`.
    pub fn new(me: DomId) -> Self {
        let root = format!("/local/domain/{}/stats", me.0);
        Self { root, due: clock::now() + PERIOD, published: Vec::new(), turns: 0 }
    }

    /// Publishes what has changed if it is time, without waiting for answers; says when to come back, if anything has happened.
    pub fn publish(&mut self, now: Instant, backend: &mut Netback, store: &mut Store) -> Option<Instant> {
        let turns = backend.stats().turns;
        if now < self.due {
            return (turns > self.turns.saturating_add(1)).then_some(self.due);
        }
        self.due = now + PERIOD;
        self.turns = turns;
        for (node, value) in Self::collect(backend) {
            let known = self.published.iter_mut().find(|(n, _)| *n == node);
            if known.as_ref().is_some_and(|(_, v)| *v == value) {
                continue;
            }
            if let Err(e) = store.post(&format!("{}/{node}", self.root), &value) {
                log::debug!("statistics: {e:?}");
                return Some(self.due);
            }
            match known {
                Some((_, v)) => *v = value,
                None => self.published.push((node, value)),
            }
        }
        None
    }

    fn collect(backend: &mut Netback) -> Vec<(String, String)> {
        let mut nodes = Vec::new();
        let n = backend.nic().stats();
        let link = backend.nic().link();
        nodes.push((
            String::from("nic"),
            format!(
                "link={} rx_frames={} rx_bytes={} rx_errors={} rx_missed={} tx_frames={} tx_bytes={} tx_errors={} resets={} interrupts={}",
                link.mbit, n.rx_frames, n.rx_bytes, n.rx_errors, n.rx_missed, n.tx_frames, n.tx_bytes, n.tx_errors,
                n.resets, n.interrupts
            ),
        ));
        let b = backend.stats();
        nodes.push((
            String::from("backend"),
            format!(
                "turns={} waits={} copy_calls={} copies={} notify_calls={} rx_dropped={} vifs_closed={}",
                b.turns, b.waits, b.copy_calls, b.copies, b.notify_calls, b.rx_dropped, b.vifs_closed
            ),
        ));
        let vifs: Vec<_> = backend.vifs().collect();
        for (port, vif) in vifs {
            let (s, w) = (vif.stats, backend.fabric().stats(port));
            nodes.push((
                format!("vif/{}/{}", vif.frontend.0, vif.device),
                format!(
                    "connected={} tx_packets={} tx_bytes={} tx_errors={} tx_dropped={} rx_packets={} rx_bytes={} rx_dropped={} notifications={} reattached={} spoofed={} flood_limited={} filtered={}",
                    u8::from(vif.connected), s.tx_packets, s.tx_bytes, s.tx_errors, s.tx_dropped, s.rx_packets, s.rx_bytes,
                    s.rx_dropped, s.notifications, s.reattached, w.spoofed, w.flood_limited, w.filtered
                ),
            ));
        }
        let w = backend.fabric().stats(PortId::UPLINK);
        nodes.push((
            String::from("uplink"),
            format!(
                "forwarded={} unknown={} flood_limited={} filtered={}",
                w.forwarded, w.unknown, w.flood_limited, w.filtered
            ),
        ));
        nodes
    }
}
