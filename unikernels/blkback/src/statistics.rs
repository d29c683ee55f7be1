//! What people are told: a few counters per subject.

use crate::Blkback;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use blkback::disk::Disks;
use driver_domain::statistics::Subject;

/// All counters as they are now.
pub(crate) fn collect<D: Disks>(backend: &Blkback<D>) -> Vec<Subject> {
    let mut nodes = Vec::new();
    for (id, info, s) in backend.drives() {
        nodes.push((
            format!("drive/{}", id.0),
            format!(
                "sectors={} sector_size={} depth={} commands={} read_bytes={} written_bytes={} flushes={} errors={} recoveries={} link_resets={}",
                info.sectors, info.sector_size, info.depth, s.commands, s.read_bytes, s.written_bytes, s.flushes, s.errors,
                s.recoveries, s.link_resets
            ),
        ));
        nodes.push((format!("drive/{}/model", id.0), String::from_utf8_lossy(&info.model).trim().into()));
    }
    let b = backend.stats();
    nodes.push((
        String::from("backend"),
        format!(
            "turns={} waits={} map_calls={} maps={} unmap_calls={} notify_calls={} commands={} resets={} vbds_closed={}",
            b.turns, b.waits, b.map_calls, b.maps, b.unmap_calls, b.notify_calls, b.commands, b.resets, b.vbds_closed
        ),
    ));
    for vbd in backend.vbds() {
        let s = vbd.stats;
        nodes.push((
            format!("vbd/{}/{}", vbd.frontend.0, vbd.device),
            format!(
                "connected={} drive={} first={} sectors={} read_only={} slots={} depth={} max_depth={} reads={} read_bytes={} writes={} written_bytes={} flushes={} discards={} errors={} segments={} merged={} overlaps={} mapped={} persistent={} notifications={} reattached={} replayed={}",
                u8::from(vbd.connected), vbd.drive.map_or(-1, |drive| i16::from(drive.0)), vbd.first, vbd.sectors,
                u8::from(vbd.read_only), vbd.slots, vbd.depth, s.max_depth, s.reads, s.read_bytes, s.writes, s.written_bytes,
                s.flushes, s.discards, s.errors, s.segments, s.merged, s.overlaps, vbd.mapped, vbd.persistent,
                s.notifications, s.reattached, s.replayed
            ),
        ));
    }
    nodes
}
