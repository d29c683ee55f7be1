//! What people are told: a few counters per subject.

use crate::Netback;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use driver_domain::statistics::Subject;
use netback::PortId;
use netback::nic::Nic;

/// All counters as they are now.
pub fn collect(backend: &mut Netback) -> Vec<Subject> {
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
